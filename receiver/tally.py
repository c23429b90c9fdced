"""What became of deliveries and how soon, counted: also of those that leave no row, because they were known already, or refused.

Counted in memory, for the endpoint writes nothing but what it stores, and added to the figures of all replicas every few seconds. What
was counted in the last of them before a `kill -9` is lost to the figures, and to nothing else.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING

from receiver.errors import StoreError
from receiver.store import hours, measures

if TYPE_CHECKING:
    from receiver.clock import Clock
    from receiver.store.engine import Database
    from receiver.store.transaction import Transaction

EVERY = 1.0
"""Seconds between two times that they are written, if there are any."""
_CLOSE_WITHIN = 1.0
NAME, ACKS, BATCHES = "deliveries", "acks", "batches"
_Kind = tuple[str, str]
"""What is counted: its name, and its label."""


class Tally:
    """A service, and the counter that the endpoint adds to. Labels: an outcome, `unavailable`, or `refused` and why."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._counts: Counter[_Kind] = Counter()
        self._sums: defaultdict[_Kind, float] = defaultdict(float)
        self._written_at = clock.monotonic()

    def note(self, label: str, seconds: float | None = None) -> None:
        """One more. `seconds`: from its headers to its answer, where it was stored."""
        self._counts[NAME, label] += 1
        if seconds is not None:
            kind = (ACKS, measures.bucket(seconds, measures.ACK_BUCKETS))
            self._counts[kind] += 1
            self._sums[kind] += seconds

    async def run_once(self) -> bool:
        """Write what was counted; False if there is nothing, or it is too soon."""
        if not self._counts or self._wait() > 0:
            return False
        await self._write()
        return True

    async def next_due(self) -> float | None:
        """Seconds until the next time."""
        return max(self._wait(), 0.0) if self._counts else EVERY

    async def close(self) -> None:
        """Write what is left, if the database takes it soon: figures are not worth waiting for."""
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(_CLOSE_WITHIN):
                if self._counts:
                    await self._write()

    def _wait(self) -> float:
        return self._written_at + EVERY - self._clock.monotonic()

    async def _write(self) -> None:
        for size in self._database.batches():
            kind = (BATCHES, measures.bucket(size, measures.BATCH_BUCKETS))
            self._counts[kind] += 1
            self._sums[kind] += size
        counts, sums = self._counts, self._sums
        self._counts, self._sums = Counter(), defaultdict(float)
        self._written_at = self._clock.monotonic()
        found = [measures.Measure(*kind, count=count, seconds=sums[kind]) for kind, count in counts.items()]

        def work(tx: Transaction) -> None:
            hours.note(tx, NAME, {label: count for (name, label), count in counts.items() if name == NAME})
            measures.note(tx, *found)

        try:
            await self._database.write(work)
        except StoreError:
            self._counts += counts  # it may be counted twice then, which is better than not at all
            for kind, amount in sums.items():
                self._sums[kind] += amount
            raise
