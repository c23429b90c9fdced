"""Where the workers of one hook take their work and hand it in: what they want at the same moment is one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from receiver.errors import LeaseLostError, RowRefusedError, StoreError
from receiver.store import hook_queue
from receiver.store.hook_queue import Attempt, HookDelivery

if TYPE_CHECKING:
    from receiver.core.delivering import Persistence
    from receiver.store.engine import Database
    from receiver.store.hook_health import Change
    from receiver.store.transaction import Transaction


@dataclass(frozen=True, slots=True)
class _Written:
    """What came of one transaction."""

    claimed: list[HookDelivery]
    finished: hook_queue.Finished


class Desk:
    """`changed` is called when a hook is paused, or resumed, by what was handed in."""

    def __init__(
        self, database: Database, hook: str, *, owner: str, lease: float, policy: Persistence, changed: Callable[[Change], None]
    ) -> None:
        self._database = database
        self._hook = hook
        self._owner = owner
        self._lease = lease
        self._policy = policy
        self._changed = changed
        self._wanting: list[asyncio.Future[HookDelivery | None]] = []
        self._ended: list[tuple[Attempt, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[float | None] | None = None

    async def claim(self) -> HookDelivery | None:
        """The next delivery, leased; None if none is due."""
        future: asyncio.Future[HookDelivery | None] = asyncio.get_running_loop().create_future()
        self._wanting.append(future)
        self._go()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                await self.give_back(future.result(), begun=False)  # it was handed to us a moment before
            raise

    async def give_back(self, delivery: HookDelivery | None, *, begun: bool) -> None:
        """Let go of one, for whoever comes next. If that fails, it is free when its lease ends."""
        if delivery is not None:
            with suppress(StoreError, LeaseLostError):
                await self._database.write(lambda tx: hook_queue.release(tx, delivery, begun=begun))

    async def finish(self, attempt: Attempt) -> None:
        """Write how an attempt ended. Raises `LeaseLostError`, `StoreError`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended.append((attempt, future))
        self._go()
        await future

    async def next_due(self) -> float | None:
        """Seconds until something is due; None: not until an event comes."""
        if self._looking is None or self._looking.done():
            reading = self._database.read(lambda tx: hook_queue.next_due(tx, hook=self._hook))
            self._looking = asyncio.create_task(reading)
            self._looking.add_done_callback(
                lambda task: task.cancelled() or task.exception()
            )  # looked at, should nobody wait any more
        return await asyncio.shield(self._looking)

    async def close(self) -> None:
        """Wait until what was handed in is written."""
        if self._task is not None:
            await self._task

    def _go(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while self._wanting or self._ended:
            wanting, self._wanting = [future for future in self._wanting if not future.done()], []
            ended, self._ended = self._ended, []
            try:
                written = await self._write([attempt for attempt, _ in ended], len(wanting))
            except Exception as error:  # noqa: BLE001 - handed to who waits, whatever it is
                if isinstance(error, RowRefusedError) and len(ended) > 1:
                    # One of them cannot be written, and the others must not share its fate.
                    await asyncio.gather(*(self._one(attempt, future) for attempt, future in ended))
                    self._wanting += wanting
                    continue
                futures: list[asyncio.Future[Any]] = [*wanting, *(future for _, future in ended)]
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
                continue
            self._tell_ended(ended, written.finished)
            await self._hand_out(wanting, written.claimed)

    async def _write(self, attempts: list[Attempt], most: int) -> _Written:
        def work(tx: Transaction) -> _Written:
            finished = hook_queue.finish(tx, self._hook, attempts, self._policy)
            claimed = []
            if most:
                claimed = hook_queue.claim(
                    tx, hook=self._hook, most=most, owner=self._owner, lease=self._lease, probe=self._policy.probe
                )
            return _Written(claimed, finished)

        return await self._database.write(work)

    async def _one(self, attempt: Attempt, future: asyncio.Future[None]) -> None:
        try:
            self._tell_ended([(attempt, future)], (await self._write([attempt], 0)).finished)
        except StoreError as error:
            if not future.done():
                future.set_exception(error)

    def _tell_ended(self, ended: list[tuple[Attempt, asyncio.Future[None]]], finished: hook_queue.Finished) -> None:
        for attempt, future in ended:
            if future.done():
                continue
            event = attempt.delivery.event.id
            if event in finished.lost:
                future.set_exception(LeaseLostError(f"another worker has taken event {event} for {self._hook} over"))
            else:
                future.set_result(None)
        if finished.change is not None:
            self._changed(finished.change)

    async def _hand_out(self, wanting: list[asyncio.Future[HookDelivery | None]], claimed: list[HookDelivery]) -> None:
        left = list(reversed(claimed))
        for future in wanting:
            if not future.done():
                future.set_result(left.pop() if left else None)
        for delivery in left:  # who wanted it is gone meanwhile
            await self.give_back(delivery, begun=False)
