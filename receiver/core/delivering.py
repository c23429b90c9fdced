"""How long one keeps trying to bring an event to a hook, and when the hook itself is left alone for a while."""

from __future__ import annotations

from dataclasses import dataclass

from receiver.core.backoff import backoff

CAP = 6 * 3600.0
"""Seconds: the longest wait between two attempts."""
IN_A_ROW = 10
"""Failures without a success between them, at least, before a hook is paused: one event that always fails is not the hook's fault."""
GONE = 12
"""A hook that said it is gone for good (410) is asked again, but that many times more seldom."""


@dataclass(frozen=True, slots=True)
class Persistence:
    """All in seconds but `attempts`.

    `base`: the first wait, which doubles up to `CAP`. `pause_after`: for how long a hook has failed when it is paused; 0: never.
    `probe`: how often one delivery is then let through, to see whether it is well again.
    """

    attempts: int = 16
    base: float = 5.0
    pause_after: float = 600.0
    probe: float = 300.0

    def wait(self, attempts: int, *, retry_after: float | None, chance: float) -> float | None:
        """How long to wait after an attempt failed, before which there were so many; None: it was the last one.

        By itself this goes on for about a day.
        """
        if attempts + 1 >= self.attempts:
            return None
        return max(backoff(attempts, base=self.base, cap=CAP, chance=chance), retry_after or 0.0)

    def pauses(self, failures: int, *, for_seconds: float) -> bool:
        """Whether to leave a hook alone that has failed so often in a row, for so long."""
        return 0 < self.pause_after <= for_seconds and failures >= IN_A_ROW
