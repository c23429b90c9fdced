"""Pages asked for before their turn, and handed out in turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """`ask(skip, limit)` brings one page. Whoever uses it calls `drop` in the end: what was begun is then broken off."""

    def __init__(self, ask: Callable[[int, int], Coroutine[Any, Any, T]]) -> None:
        self._ask = ask
        self._begun: deque[tuple[int, int, asyncio.Task[T]]] = deque()
        self._broken: set[asyncio.Task[T]] = set()

    async def page(self, skip: int, limit: int) -> T:
        """The page, begun before or now. Those begun stay for their turn, unless they no longer fit behind this one."""
        if self._begun and self._begun[0][:2] == (skip, limit):
            return await self._begun.popleft()[2]
        if any(begun <= skip or size != limit for begun, size, _ in self._begun):
            await self.drop()
        return await self._ask(skip, limit)

    @property
    def holds(self) -> bool:
        """Whether pages are begun, or there already, whose turn has not come."""
        return bool(self._begun)

    def extend(self, skips: Iterable[int], limit: int) -> None:
        """Begin pages to come, in order; those begun already are left alone. None behind one that failed: it would be of no use."""
        if any(_failed(task) for *_, task in self._begun):
            return
        for skip in skips:
            if not self._begun or self._begun[-1][0] < skip:
                task = asyncio.create_task(self._ask(skip, limit))
                task.add_done_callback(self._break_off_behind)
                self._begun.append((skip, limit, task))

    def _break_off_behind(self, ended: asyncio.Task[T]) -> None:
        """At once, not in its turn: pages before it may still be stored for a while, and those behind it granted meanwhile.

        What is there already stays. What is broken off is no longer begun, and would be asked for anew.
        """
        if not _failed(ended):
            return
        tasks = [task for *_, task in self._begun]
        behind = {task for task in tasks[tasks.index(ended) + 1 if ended in tasks else 0 :] if not task.done()}
        for task in behind:
            task.cancel()
        self._broken |= behind
        self._begun = deque(begun for begun in self._begun if begun[2] not in behind)

    async def drop(self) -> None:
        """Break off what was begun, and wait until it is."""
        begun, self._begun, self._broken = {task for *_, task in self._begun} | self._broken, deque(), set()
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)


def _failed(task: asyncio.Task[T]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None
