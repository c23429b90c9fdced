"""A browser session: nothing but its bookkeeping, for the official client's calls to talk to."""

from __future__ import annotations

from typing import Any

from receiver.sandbox.draws import token
from receiver.sandbox.times import iso


class Session:
    """A browser session: nothing but its bookkeeping."""

    def __init__(self, session_id: str, now: float, lasts: float) -> None:
        self.id = session_id
        self.created_at = now
        self.expires_at = now + lasts
        self.stopped_at: float | None = None

    def status(self, now: float) -> str:
        """active, stopped or expired."""
        if self.stopped_at is not None:
            return "stopped"
        return "active" if now < self.expires_at else "expired"

    def duration(self, now: float) -> float:
        """Seconds it has been open."""
        return min(now, self.stopped_at or now, self.expires_at) - self.created_at

    def charged(self, now: float) -> int:
        """Credits: one a minute begun, once it is over."""
        return 0 if self.status(now) == "active" else int(self.duration(now) // 60) + 1

    def row(self, url: str, seed: int, now: float) -> dict[str, Any]:
        """As the API shows it."""
        return {
            "sessionId": self.id,
            "wsEndpoint": f"{url.replace('http', 'ws', 1)}/sessions/{self.id}",
            "token": token(seed, 32, "session-token", self.id),
            "status": self.status(now),
            "createdAt": iso(self.created_at),
            "expiresAt": iso(self.expires_at),
        }
