"""The workspace's registered webhooks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from receiver.sandbox.draws import token
from receiver.sandbox.problems import ApiError, not_found
from receiver.sandbox.times import iso

MOST: Final = 10


@dataclass(slots=True)
class Hook:
    """Where events go. `key` names it in draws; a read request's own hook has no id and is in no list."""

    key: str
    url: str
    events: frozenset[str]
    secret: str | None
    headers: dict[str, str] = field(default_factory=dict)
    id: str = ""
    name: str = ""
    active: bool = True
    deleted: bool = False
    created_at: float = 0
    updated_at: float = 0
    attempts: int = 0
    failures: int = 0
    last_at: float | None = None
    last_status: int | None = None

    def row(self) -> dict[str, Any]:
        """As the API shows it: never the secret."""
        return {
            "id": self.id,
            "url": self.url,
            "name": self.name,
            "events": sorted(self.events),
            "headers": self.headers,
            "active": self.active,
            "createdAt": iso(self.created_at),
            "updatedAt": iso(self.updated_at),
            "deliveryStats": {
                "totalAttempts": self.attempts,
                "failedDeliveries": self.failures,
                "lastDeliveryAt": iso(self.last_at),
                "lastDeliveryStatus": self.last_status,
            },
        }

    def wants(self, event: str) -> bool:
        """Whether it is to be told of this event."""
        return self.active and not self.deleted and event in self.events


class Registry:
    """At most ten webhooks, oldest first."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._made = 0
        self._hooks: dict[str, Hook] = {}

    def __iter__(self) -> Iterator[Hook]:
        return iter(self._hooks.values())

    def __len__(self) -> int:
        return len(self._hooks)

    def create(self, fields: dict[str, Any], now: float) -> Hook:
        """Register one from checked fields. Raises `ApiError` conflict when there are ten."""
        if len(self._hooks) >= MOST:
            raise ApiError("conflict", f"A workspace has at most {MOST} webhooks", {"max": MOST})
        self._made += 1
        hook_id = "wh_" + token(self._seed, 16, "webhook", self._made)
        hook = Hook(
            key=hook_id,
            id=hook_id,
            url=fields["url"],
            name=fields["name"],
            events=frozenset(fields["events"]),
            secret=fields.get("secret"),
            headers=fields.get("headers") or {},
            created_at=now,
            updated_at=now,
        )
        self._hooks[hook_id] = hook
        return hook

    def get(self, hook_id: str) -> Hook:
        """Raises `ApiError` not_found."""
        try:
            return self._hooks[hook_id]
        except KeyError:
            raise not_found("Webhook") from None

    def change(self, hook_id: str, fields: dict[str, Any], now: float) -> Hook:
        """Change the given, checked fields. Raises `ApiError` not_found."""
        hook = self.get(hook_id)
        for name, value in fields.items():
            setattr(hook, name, frozenset(value) if name == "events" else value)
        hook.updated_at = now
        return hook

    def delete(self, hook_id: str) -> None:
        """Forget it; what it still had to be sent is dropped. Raises `ApiError` not_found."""
        self.get(hook_id).deleted = True
        del self._hooks[hook_id]
