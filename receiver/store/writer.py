"""Everything that is written goes through here: one queue, and few threads that turn it into transactions.

**Group commit**: all deliveries that wait at the same moment share one transaction, and so one fsync; each is answered only
after its own commit. Between two such groups one other transaction has its turn, so neither starves the other, and no delivery
waits for more than one of them.

On SQLite there is one thread, because there must be one writing connection.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from receiver.errors import StoreBusyError, StoreError
from receiver.store.failures import is_about_a_row, is_passing, translate
from receiver.store.transaction import Transaction

A = TypeVar("A")
R = TypeVar("R")

GROUP = 256
"""Deliveries in one transaction, at most: keeps a commit, and so an answer, short."""
QUEUE = 4096
"""Deliveries waiting, at most: beyond it the honest answer is 503, at once."""


@dataclass(slots=True)
class _Waiting:
    """One thing to write and who waits for it."""

    item: Any
    future: asyncio.Future[Any]

    @property
    def given_up(self) -> bool:
        return self.future.done()


class Writer(Generic[A, R]):
    """See the module. `group` writes many arrivals in one transaction and returns what to answer each, in order."""

    def __init__(
        self,
        begin: Callable[[], Any],
        group: Callable[[Transaction, Sequence[A]], Sequence[R]],
        *,
        threads: int,
    ) -> None:
        self._begin = begin
        self._group = group
        self._arrivals: deque[_Waiting] = deque()
        self._tasks: deque[_Waiting] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._working = threads
        for number in range(threads):
            threading.Thread(target=self._run, name=f"writer-{number}", daemon=True).start()

    def arrive(self, arrival: A) -> asyncio.Future[R]:
        """Write one arrival together with whatever else waits. Cancel the future to give it up before it is written."""
        if len(self._arrivals) >= QUEUE:
            raise StoreBusyError("more deliveries are waiting than can be stored in time")
        return self._enqueue(self._arrivals, arrival)

    def submit(self, work: Callable[[Transaction], R]) -> asyncio.Future[R]:
        """Run `work` in a transaction of its own."""
        return self._enqueue(self._tasks, work)

    def stop(self, *, within: float) -> bool:
        """Write what waits, then end. Blocks; False if the database kept a thread waiting for longer than `within` seconds."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
            return self._wake.wait_for(lambda: self._working == 0, timeout=within)

    def _enqueue(self, queue: deque[_Waiting], item: Any) -> asyncio.Future[Any]:
        waiting = _Waiting(item, asyncio.get_running_loop().create_future())
        with self._wake:
            if self._stopping:
                raise StoreError("the store is closed")
            queue.append(waiting)
            self._wake.notify()
        return waiting.future

    def _run(self) -> None:
        try:
            self._work()
        finally:
            with self._wake:
                self._working -= 1
                self._wake.notify_all()

    def _work(self) -> None:
        arrivals_turn = True
        while True:
            with self._wake:
                while not (self._arrivals or self._tasks or self._stopping):
                    self._wake.wait()
                if not (self._arrivals or self._tasks):
                    return
                if self._arrivals and (arrivals_turn or not self._tasks):
                    batch = [self._arrivals.popleft() for _ in range(min(GROUP, len(self._arrivals)))]
                    task = None
                else:
                    batch, task = [], self._tasks.popleft()
            arrivals_turn = task is not None
            if task is None:
                self._write_group([waiting for waiting in batch if not waiting.given_up])
            elif not task.given_up:
                self._write_one(task)

    def _write_one(self, waiting: _Waiting) -> None:
        try:
            result = self._transact(waiting.item)
        except Exception as error:  # noqa: BLE001 - handed to who waits, whatever it is
            _deliver([(waiting.future, error, None)])
        else:
            _deliver([(waiting.future, None, result)])

    def _write_group(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        try:
            answers = self._transact(lambda tx: self._group(tx, [waiting.item for waiting in batch]))
        except Exception as error:  # noqa: BLE001 - as above
            if len(batch) > 1 and is_about_a_row(error):
                # One of them cannot be written, and the others must not share its fate: halved until it stands alone.
                middle = len(batch) // 2
                self._write_group(batch[:middle])
                self._write_group(batch[middle:])
            else:
                _deliver([(waiting.future, error, None) for waiting in batch])
        else:
            _deliver([(waiting.future, None, answer) for waiting, answer in zip(batch, answers, strict=True)])

    def _transact(self, work: Callable[[Transaction], Any]) -> Any:
        tries = 5
        while True:
            tries -= 1
            try:
                with self._begin() as tx:
                    return work(tx)
            except (IntegrityError, DataError) as error:
                # Alone: the driver's words go on to show the row, and bodies and secrets have no place in a traceback.
                raise translate(error) from None
            except SQLAlchemyError as error:
                if not (is_passing(error) and tries):
                    raise translate(error) from error


def _deliver(outcomes: list[tuple[asyncio.Future[Any], Exception | None, Any]]) -> None:
    """Hand results over to their event loop, all in one call where it is the same loop."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Exception | None, Any]]] = {}
    for outcome in outcomes:
        loops.setdefault(outcome[0].get_loop(), []).append(outcome)
    for loop, group in loops.items():
        with suppress(RuntimeError):  # it is closed: what was written is written, and nobody is there to be told
            loop.call_soon_threadsafe(_settle, group)


def _settle(outcomes: list[tuple[asyncio.Future[Any], Exception | None, Any]]) -> None:
    for future, error, result in outcomes:
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
