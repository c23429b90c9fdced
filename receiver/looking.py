"""Several workers of one process look for work: one after another, and none for what another has just looked for in vain."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Looks(Generic[T]):
    """Looks by `look`, which tells None where there is nothing to do.

    All workers are woken together. Each in a transaction of its own, they would be in the way of the one that has found something.
    """

    def __init__(self, look: Callable[[], Awaitable[T | None]]) -> None:
        self._look = look
        self._turn = asyncio.Lock()
        self._begun = 0
        self._in_vain = 0
        """The last look that found nothing, counting from 1."""

    async def __call__(self) -> T | None:
        """What there is to do; None if a look that began after this call has found nothing."""
        asked = self._begun
        async with self._turn:
            if self._in_vain > asked:
                return None
            self._begun += 1
            begun = self._begun
            found = await self._look()
            if found is None:
                self._in_vain = begun
            return found
