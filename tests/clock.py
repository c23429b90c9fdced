"""A clock that stands still until a test moves it, and dice that fall as the test says."""

from __future__ import annotations

import asyncio

EPOCH = 1_712_275_200.0
"""2024-04-05T00:00:00Z, where a `FakeClock` begins."""


class FakeClock:
    """Satisfies `receiver.clock.Clock`. Sleeping takes no time: it moves the clock on, and is written down in `naps`."""

    def __init__(self, now: float = EPOCH, *, chance: float = 0.5) -> None:
        self._steady = now
        self._leap = 0.0
        self._tokens = 0
        self.dice = chance
        self.naps: list[float] = []

    def wall(self) -> float:
        return self._steady + self._leap

    def monotonic(self) -> float:
        return self._steady - EPOCH

    def steady(self) -> float:
        return self._steady

    async def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.advance(seconds)
        await asyncio.sleep(0)

    def chance(self) -> float:
        return self.dice

    def token(self, bits: int = 128) -> str:
        self._tokens += 1
        return f"{self._tokens:0{bits // 4}x}"

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._steady += max(seconds, 0.0)

    def leap(self, seconds: float) -> None:
        """Set the wall clock alone, as an administrator or NTP may."""
        self._leap += seconds
