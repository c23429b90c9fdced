"""One attempt to bring an event to a hook: what the hook gets, and what becomes of the delivery by what it does."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import structlog

from receiver.errors import HookError, LeaseLostError, StoreError, UsageError
from receiver.hooks.target import Answer, Delivery
from receiver.store import alongside, hook_queue, results
from receiver.store.hook_queue import Attempt, HookDelivery

if TYPE_CHECKING:
    from receiver.clock import Clock
    from receiver.core.delivering import Persistence
    from receiver.hooks.event import Connection
    from receiver.hooks.target import Hook
    from receiver.store.engine import Database
    from receiver.store.hook_health import Change
    from receiver.store.transaction import Transaction

_BATCH_BYTES = 4 << 20
"""Results are read in short transactions of about this much, however slowly a handler takes them."""
_GONE = 410

log = structlog.get_logger("receiver.dispatcher")


class Attempting:
    """`changed` is called when a handler's own transaction has resumed its hook."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        hook: Hook,
        leased: HookDelivery,
        *,
        policy: Persistence,
        changed: Callable[[Change], None],
    ) -> None:
        self._database = database
        self._clock = clock
        self._hook = hook
        self._leased = leased
        self._policy = policy
        self._changed = changed
        self._at, self._began = clock.steady(), clock.monotonic()
        self._doubt: Exception | None = None
        self.is_written = False
        """Whether its handler has had it written already, with what it wrote itself."""

    async def make(self) -> Attempt:
        """How it ended. Raises `LeaseLostError`, `StoreError`."""
        event = self._leased.event
        delivery = Delivery(event.id, event.payload, self._leased.attempts + 1, self._batches, self._commit)
        try:
            answer = await self._hook.target.deliver(delivery)
            if self._doubt is not None:
                raise HookError(f"its commit() failed: {self._doubt}")
        except HookError as error:
            if not self.is_written:
                return self._failed(error)
            log.warning("failed_after_commit", hint=f"{error}; the event is done all the same")
            return self._delivered(Answer())
        return self._delivered(answer)

    async def hold(self, *, lease: float) -> None:
        """Renew the lease. Raises `LeaseLostError`."""
        try:
            await self._database.write(lambda tx: hook_queue.hold(tx, self._leased, lease=lease))
        except LeaseLostError:
            if not self.is_written:  # given back with it
                raise

    def _delivered(self, answer: Answer) -> Attempt:
        return Attempt(self._leased, "delivered", self._at, self._seconds, status=answer.status, answer=answer.excerpt)

    def _failed(self, error: HookError) -> Attempt:
        told: dict[str, Any] = {"status": error.answer, "error": str(error), "answer": error.excerpt}
        if error.again_in is not None:
            return Attempt(self._leased, "later", self._at, self._seconds, wait=error.again_in, **told)
        wait = None
        if not error.final:
            chance = self._clock.chance()
            wait = self._policy.wait(self._leased.attempts, retry_after=error.retry_after, chance=chance)
        told |= {"blamed": error.blamed, "gone": error.answer == _GONE}
        if wait is None:
            return Attempt(self._leased, "dead", self._at, self._seconds, **told)
        return Attempt(self._leased, "failed", self._at, self._seconds, wait=wait, **told)

    @property
    def _seconds(self) -> float:
        return self._clock.monotonic() - self._began

    def _commit(self, function: Callable[[Connection], object]) -> Coroutine[Any, Any, None]:
        if self.is_written:
            raise UsageError("this event is committed already: call commit() once, with all there is to write")
        if inspect.iscoroutinefunction(function):
            raise UsageError(
                "commit() takes a plain function, and was given an async one: read and compute before, then only write"
            )
        # Until it is: else the event would pass for done, with nothing written.
        self._doubt = UsageError("it was not awaited: write `await event.commit(…)`")
        return self._write(function)

    async def _write(self, function: Callable[[Connection], object]) -> None:
        self._doubt = None
        attempt = self._delivered(Answer())
        try:
            finished = await self._database.write(lambda tx: alongside.commit(tx, attempt, function, self._policy))
        except alongside.TheirsError as error:
            raise error.cause from None
        except (LeaseLostError, StoreError, TimeoutError) as error:
            # Whatever the handler makes of it: without what it wanted to write the event is not done.
            self._doubt = error
            raise
        self._doubt, self.is_written = None, True
        if finished.change is not None:
            self._changed(finished.change)

    async def _batches(self, most: int) -> AsyncIterator[list[bytes]]:
        event, position = self._leased.event, 0
        while True:

            def work(tx: Transaction, at: int = position) -> list[bytes]:
                return results.read_slices(tx, event.job_id, event.generation, skip=at, limit=most, max_bytes=_BATCH_BYTES)

            batch = await self._database.read(work)
            if not batch:
                return
            yield batch
            position += len(batch)
