"""Everything that is written goes through here: one queue, and few threads that turn it into transactions.

**Group commit**: all deliveries that wait at the same moment share one transaction, and so one fsync; each is answered only
after its own commit. Who was answered just now is about to send the next one: the next group waits a moment for that, else there
would be two halves that take turns, each with its whole cost. Between two such groups one other transaction has its turn, so neither
starves the other, and no delivery waits for more than one of them.

**Overload is honest**: an arrival that is not expected to be stored in time is refused at once, so that those before it are.

On SQLite there is one thread, because there must be one writing connection.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Generic, TypeVar

from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from receiver.core.admission import PATIENCE, expected_wait, learnt
from receiver.errors import StoreBusyError, StoreError
from receiver.store.failures import is_about_a_row, is_loss, is_passing, translate
from receiver.store.transaction import Transaction

A = TypeVar("A")
R = TypeVar("R")

GROUP = 256
"""Deliveries in one transaction, at most: keeps a commit, and so an answer, short."""
ABREAST = 2
"""Groups written at the same time, while none of them is stuck: one can gather while another is committed; more would be smaller ones,
each with its whole cost."""
_STUCK = 0.1
"""Seconds after which a group holds up no other: what it waits for may be somebody else's lock."""
_PAUSE = 0.0002
"""Seconds without an arrival after which a group waits for no more of them."""
TRIES = 5
"""Times a transaction is begun that is not to blame for its end: deadlocks, and connections that broke while they lay idle."""
QUEUE = 4096
"""Deliveries waiting, at most, however quickly they are written: their bodies are in memory."""


Tell = Callable[[Any, Exception | None], None]
"""Called once, on the event loop, with what became of a thing to write, or with why it is not known to be written."""


@dataclass(slots=True, eq=False)
class Waiting:
    """One thing to write, and who is to be told of it."""

    item: Any
    loop: asyncio.AbstractEventLoop
    tell: Tell
    future: asyncio.Future[Any] | None = None
    over: bool = False

    @property
    def is_over(self) -> bool:
        """Somebody was told, or nobody wants to be: what is not begun yet need not be written."""
        return self.over or (self.future is not None and self.future.done())

    def end(self, result: Any, error: Exception | None) -> None:
        """Tell, if nobody was told yet."""
        if not self.over:
            self.over = True
            self.tell(result, error)


class Writer(Generic[A, R]):
    """See the module. `group` writes many arrivals in one transaction and returns what to answer each, in order."""

    def __init__(
        self,
        begin: Callable[[], Any],
        group: Callable[[Transaction, Sequence[A]], Sequence[R]],
        *,
        threads: int,
        now: Callable[[], float],
    ) -> None:
        self._begin = begin
        self._group = group
        self._arrivals: deque[Waiting] = deque()
        self._tasks: deque[Waiting] = deque()
        lock = threading.RLock()
        self._wake, self._all_here = threading.Condition(lock), threading.Condition(lock)
        self._stopping = False
        self._working = threads
        self._now = now
        self._at_once = GROUP * threads
        self._idle = 0
        self._under_way: dict[int, float] = {}  # the threads that write groups, and since when
        self._nudging: asyncio.AbstractEventLoop | None = None
        self._gathering = False
        self._company = 0  # so many came by the time the last group was written
        self._moved_at = now()
        self._commit = 0.0
        for number in range(threads):
            threading.Thread(target=self._run, name=f"writer-{number}", daemon=True).start()

    def arrive(self, arrival: A) -> asyncio.Future[R]:
        """As `take`, for who awaits it. Cancel the future to give it up before it is begun."""
        future, tell = _awaited(asyncio.get_running_loop())
        self.take(arrival, tell).future = future
        return future

    def take(self, arrival: A, tell: Tell) -> Waiting:
        """Write one arrival together with whatever else waits, then `tell`. No future of its own: there are thousands a second.

        Raises `StoreBusyError` if it is not expected to be written in time.
        """
        if self._is_overloaded():
            raise StoreBusyError("more deliveries are waiting than can be stored in time")
        if self._stopping:
            raise StoreError("the store is closed")
        loop = asyncio.get_running_loop()
        waiting = Waiting(arrival, loop, tell)
        self._arrivals.append(waiting)
        if self._nudging is not loop:
            # Once all that arrived together is here: one lock for all of it, and a thread that then need not compete for its turn.
            self._nudging = loop
            loop.call_soon(self._nudge)
        return waiting

    def submit(self, work: Callable[[Transaction], R]) -> asyncio.Future[R]:
        """Run `work` in a transaction of its own. Cancel the future to give it up before it is begun."""
        loop = asyncio.get_running_loop()
        future, tell = _awaited(loop)
        waiting = Waiting(work, loop, tell, future)
        with self._wake:
            if self._stopping:
                raise StoreError("the store is closed")
            self._tasks.append(waiting)
            self._wake.notify()
        return future

    def stop(self, *, within: float) -> bool:
        """Write what waits, then end. Blocks; False if the database kept a thread waiting for longer than `within` seconds."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
            return self._wake.wait_for(lambda: self._working == 0, timeout=within)

    def _is_overloaded(self) -> bool:
        ahead = len(self._arrivals)
        if ahead < self._idle * GROUP:
            return False  # somebody is there to write it; and to learn that commits are quick again
        stalled = 0.0 if self._idle else self._now() - self._moved_at
        wait = expected_wait(ahead, at_once=self._at_once, commit=self._commit, stalled=stalled)
        return ahead >= QUEUE or wait > PATIENCE

    def _may_group(self) -> bool:
        """Whether to begin with what has arrived, or let more of it come together."""
        if self._gathering:
            return False  # another thread is about to take them all
        if not self._under_way or not self._arrivals:
            return bool(self._arrivals)
        if len(self._under_way) < ABREAST or len(self._arrivals) >= GROUP:
            return True
        return self._now() - min(self._under_way.values()) > _STUCK

    def _nudge(self) -> None:
        self._nudging = None
        with self._wake:
            if not self._gathering:
                self._wake.notify()
            elif len(self._arrivals) >= self._company:
                self._all_here.notify()

    def _gather(self) -> None:
        """Let those come that came with the last group: their senders have just been answered, and one commit does for all.

        Until as many are here, or nobody has come for a moment.
        """
        here = 0
        self._gathering = True
        while here < len(self._arrivals) < self._company:
            here = len(self._arrivals)
            self._all_here.wait(_PAUSE)
        self._gathering = False

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
                self._idle += 1
                while not (self._may_group() or self._tasks or (self._stopping and not self._arrivals)):
                    self._wake.wait(_STUCK if self._arrivals else None)
                # In this order, for the loop looks at them without the lock: a pause without work must not look like a standstill.
                self._moved_at = self._now()
                self._idle -= 1
                if not (self._arrivals or self._tasks):
                    return
                if self._may_group() and (arrivals_turn or not self._tasks):
                    self._gather()
                    batch = [self._arrivals.popleft() for _ in range(min(GROUP, len(self._arrivals)))]
                    task = None
                    self._under_way[threading.get_ident()] = self._moved_at
                    if self._arrivals:  # more than one group
                        self._wake.notify()
                else:
                    batch, task = [], self._tasks.popleft()
            arrivals_turn = task is not None
            if task is None:
                self._write_group([waiting for waiting in batch if not waiting.is_over])
                with self._wake:
                    del self._under_way[threading.get_ident()]
                    self._company = min(len(batch) + len(self._arrivals), GROUP)
                    if self._arrivals and self._tasks:  # of which only one is taken here
                        self._wake.notify()
            elif not task.is_over:
                self._write_one(task)

    def _write_one(self, waiting: Waiting) -> None:
        try:
            result = self._transact(waiting.item)
        except Exception as error:  # noqa: BLE001 - handed to who waits, whatever it is
            _deliver([waiting], [None], error)
        else:
            _deliver([waiting], [result])

    def _write_group(self, batch: list[Waiting]) -> None:
        if not batch:
            return
        began = self._now()
        try:
            answers = self._transact(lambda tx: self._group(tx, [waiting.item for waiting in batch]))
        except Exception as error:  # noqa: BLE001 - as above
            if len(batch) > 1 and is_about_a_row(error):
                # One of them cannot be written, and the others must not share its fate: halved until it stands alone.
                middle = len(batch) // 2
                self._write_group(batch[:middle])
                self._write_group(batch[middle:])
            else:
                _deliver(batch, repeat(None), error)
        else:
            # Only by what succeeds: how long it took to fail tells of patience somewhere, and not of what comes after it.
            self._commit = learnt(self._commit, self._now() - began)
            _deliver(batch, answers)

    def _transact(self, work: Callable[[Transaction], Any]) -> Any:
        tries = TRIES
        while True:
            tries -= 1
            committing = False
            try:
                with self._begin() as tx:
                    result = work(tx)
                    committing = True
                return result
            except (IntegrityError, DataError) as error:
                # Alone: the driver's words go on to show the row, and bodies and secrets have no place in a traceback.
                raise translate(error) from None
            except SQLAlchemyError as error:
                unknown = committing and is_loss(error)
                if unknown or not (is_passing(error) and tries):
                    raise translate(error) from error


def _awaited(loop: asyncio.AbstractEventLoop) -> tuple[asyncio.Future[Any], Tell]:
    """A future, and what is to be told to end it."""
    future = loop.create_future()

    def tell(result: Any, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    return future, tell


def _deliver(batch: Sequence[Waiting], results: Iterable[Any], error: Exception | None = None) -> None:
    """Hand results over to their event loop, all in one call where it is the same loop."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[Waiting, Any]]] = {}
    for each in zip(batch, results, strict=False):
        loops.setdefault(each[0].loop, []).append(each)
    for loop, group in loops.items():
        with suppress(RuntimeError):  # it is closed: what was written is written, and nobody is there to be told
            loop.call_soon_threadsafe(_settle, group, error)


def _settle(group: list[tuple[Waiting, Any]], error: Exception | None) -> None:
    for waiting, result in group:
        waiting.end(result, error)
