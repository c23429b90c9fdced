"""Taking deliveries in: stored before they are answered, and answered in time either way."""

from __future__ import annotations

import asyncio
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

    async def accept(self, delivery: Delivery) -> Outcome:
        """Store a delivery. Returns once it is durable; raises `StoreError` if that is not known in time."""
        future = self._database.arrive(Arrival(delivery, self._clock.wall()))
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                outcome = await future
        except TimeoutError:
            raise StoreError(f"not stored within {ANSWER_WITHIN:g} s") from None
        if outcome.cued:
            self._on_cue()
        return outcome
