"""Taking deliveries in: stored before they are answered, and answered in time either way."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from receiver.errors import StoreError
from receiver.store.inbox import Arrival, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from receiver.clock import Clock
    from receiver.core.delivery import Delivery
    from receiver.store.engine import Database

ANSWER_WITHIN = 7.5
"""Seconds. Reader waits for 10, and counts what comes later as a failure."""


class Ingest:
    """`on_cue` is called after a commit that made a job due, so that the reconciler need not wait for its next round."""

    def __init__(self, database: Database, clock: Clock, *, on_cue: Callable[[], None]) -> None:
        self._database = database
        self._clock = clock
        self._on_cue = on_cue
        self._deadlines = _Deadlines(clock)

    async def accept(self, delivery: Delivery) -> Outcome:
        """Store a delivery. Returns once it is durable; raises `StoreError` if that is not known in time."""
        future = self._database.arrive(Arrival(delivery, self._clock.wall()))
        self._deadlines.watch(future)
        outcome = await future
        if outcome.cued:
            self._on_cue()
        return outcome


class _Deadlines:
    """Ends the wait of what has waited for too long, by one timer for all: they come in the order in which their time runs out."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: deque[tuple[float, asyncio.Future[Outcome]]] = deque()
        self._set = False

    def watch(self, future: asyncio.Future[Outcome]) -> None:
        waiting = self._waiting
        while waiting and waiting[0][1].done():
            waiting.popleft()
        waiting.append((self._clock.monotonic() + ANSWER_WITHIN, future))
        if not self._set:
            self._set = True
            future.get_loop().call_later(ANSWER_WITHIN, self._look)

    def _look(self) -> None:
        now = self._clock.monotonic()
        while self._waiting:
            until, future = self._waiting[0]
            if not future.done():
                if until > now:
                    future.get_loop().call_later(until - now, self._look)
                    return
                future.set_exception(StoreError(f"not stored within {ANSWER_WITHIN:g} s"))
            self._waiting.popleft()
        self._set = False
