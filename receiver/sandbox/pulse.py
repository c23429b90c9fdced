"""Something changed: look again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Pulse:
    """Waiting for a condition without asking the clock: it is looked at again at each beat."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def beat(self) -> None:
        """Something changed."""
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds."""
        while not condition():
            await self.next()

    async def next(self) -> None:
        """Return at the next beat."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)
