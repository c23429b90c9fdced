"""Taking deliveries in: stored before they are answered, and answered in time either way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from receiver import tracing
from receiver.errors import StoreError
from receiver.store import quarantine, refusals
from receiver.store.inbox import Arrival, Outcome

if TYPE_CHECKING:
    from receiver.clock import Clock
    from receiver.core.delivery import Delivery
    from receiver.store.engine import Database
    from receiver.store.writer import Waiting

ANSWER_WITHIN = 7.5
"""Seconds. Reader waits for 10, and counts what comes later as a failure."""

Told = Callable[[Outcome | None, Exception | None], None]


class Ingest:
    """`on_cue` is called after a commit that made a job due, so that the reconciler need not wait for its next round."""

    def __init__(self, database: Database, clock: Clock, *, on_cue: Callable[[], None]) -> None:
        self._database = database
        self._clock = clock
        self._on_cue = on_cue
        self._deadlines = _Deadlines(clock)

    def take(self, delivery: Delivery, told: Told) -> None:
        """Store a delivery. `told` is called once: with its outcome when that is durable, or with the error if it is not in time.

        Raises `StoreError` where it is not even begun.
        """

        def tell(outcome: Outcome | None, error: Exception | None) -> None:
            if outcome is not None and outcome.cued:
                self._on_cue()
            told(outcome, error)

        if (tracer := tracing.on()) is not None and delivery.job_id is not None:
            told = _traced(tracer, self._clock, delivery, told)
        self._deadlines.watch(self._database.take(Arrival(delivery, self._clock.wall()), tell))

    def refused(self, reason: str, count: int) -> None:
        """Have deliveries counted that failed authentication. Nothing hangs on it, so nobody waits for it."""
        with suppress(StoreError):
            self._database.write_sometime(lambda tx: refusals.note(tx, reason, count))

    async def reprocess(self) -> dict[str, int]:
        """Read what is quarantined once more; how much of it there was, and what became of it."""
        looked_at = accepted = ignored = 0
        found = quarantine.Reread()
        while found.last is not None:
            after = found.last
            found = await self._database.write(lambda tx, after=after: quarantine.read_again(tx, after=after))  # type: ignore[misc]
            looked_at, accepted, ignored = looked_at + found.looked_at, accepted + found.accepted, ignored + found.ignored
        if accepted:
            self._on_cue()
        return {"accepted": accepted, "ignored": ignored, "quarantined": looked_at - accepted - ignored}

    def give_up(self) -> None:
        """Wait no longer for what is not stored by now: its senders are told so, and come again."""
        self._deadlines.end_all(StoreError("not stored before the server had to stop"))


def _traced(tracer: tracing.Tracer, clock: Clock, delivery: Delivery, told: Told) -> Told:
    """The same, with a span from now until it is told."""
    began = clock.monotonic()

    def tell(outcome: Outcome | None, error: Exception | None) -> None:
        named = {"event": delivery.event, "delivery": delivery.delivery_id, "outcome": outcome.name if outcome else "unavailable"}
        attributes = {f"receiver.{name}": value for name, value in named.items()}
        assert delivery.job_id is not None
        tracer.past("webhook", delivery.job_id, seconds=clock.monotonic() - began, attributes=attributes)
        told(outcome, error)

    return tell


class _Deadlines:
    """Ends the wait of what has waited for too long, by one timer for all: they come in the order in which their time runs out."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: deque[tuple[float, Waiting]] = deque()
        self._set = False

    def watch(self, one: Waiting) -> None:
        waiting = self._waiting
        while waiting and waiting[0][1].over:
            waiting.popleft()
        waiting.append((self._clock.monotonic() + ANSWER_WITHIN, one))
        if not self._set:
            self._set = True
            asyncio.get_running_loop().call_later(ANSWER_WITHIN, self._look)

    def end_all(self, error: StoreError) -> None:
        while self._waiting:
            self._waiting.popleft()[1].end(None, error)

    def _look(self) -> None:
        now = self._clock.monotonic()
        while self._waiting:
            until, one = self._waiting[0]
            if not one.over:
                if until > now:
                    asyncio.get_running_loop().call_later(until - now, self._look)
                    return
                one.end(None, StoreError(f"not stored within {ANSWER_WITHIN:g} s"))
            self._waiting.popleft()
        self._set = False
