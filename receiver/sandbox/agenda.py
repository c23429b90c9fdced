"""What is due later, on the running loop; all of it can be dropped at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

_GRACE: Final = 0.001
"""Loops wake up to a clock tick early; a state must have been reached by the time it is told of."""


class Agenda:
    """Calls made later."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: set[asyncio.TimerHandle] = set()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call it so many real seconds from now."""

        def run() -> None:
            self._due.discard(handle)
            call()

        handle = self._loop.call_later(max(0.0, seconds) + _GRACE, run)
        self._due.add(handle)

    def close(self) -> None:
        """Drop everything."""
        for handle in self._due:
            handle.cancel()
        self._due.clear()
