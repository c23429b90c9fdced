"""Time, chance and ids: the only place that asks for them.

Everything else takes a `Clock`, so that a test can hold the time still, jump it, or make chance certain.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol


class Clock(Protocol):
    """What the package may ask of the outside world's time and dice."""

    def wall(self) -> float:
        """Seconds since the Unix epoch, as the machine believes now. It may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds that only ever grow, from an arbitrary start."""
        ...

    def steady(self) -> float:
        """Seconds since the epoch as believed when the clock was made, grown monotonically since.

        A leap of the wall clock does not move it, so leases and due times stay right within a process.
        """
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    def chance(self) -> float:
        """A draw from [0, 1)."""
        ...

    def token(self, bits: int = 128) -> str:
        """An unguessable string of lower-case hexadecimal digits."""
        ...


# CLOCK_BOOTTIME where there is one: unlike CLOCK_MONOTONIC it goes on while the machine is suspended.
_boottime: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)


class SystemClock:
    """The machine's own."""

    # Asked several times for each delivery: not even a call of our own stands between.
    wall = staticmethod(time.time)
    monotonic = staticmethod(_boottime)

    def __init__(self) -> None:
        self._offset = time.time() - _boottime()

    def steady(self) -> float:
        return self._offset + _boottime()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def chance(self) -> float:
        return random.random()  # noqa: S311 - jitter, not a secret

    def token(self, bits: int = 128) -> str:
        return secrets.token_hex(bits // 8)
