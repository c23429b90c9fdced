"""What a handler writes along with the end of its delivery: in the same transaction, within a second.

The handler's function runs in a thread of its own while the writer waits for it. If it takes too long, the statement it is at is
broken off, its connection is of no more use to it, and all of it is rolled back: it cannot keep others from writing, nor write
anything later.
"""

from __future__ import annotations

import contextvars
import inspect
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection as SqlConnection
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from receiver.core.delivering import Persistence
from receiver.errors import LeaseLostError, UsageError
from receiver.store import hook_queue
from receiver.store.failures import is_passing
from receiver.store.hook_queue import Attempt, Finished
from receiver.store.transaction import Transaction

WITHIN = 1.0
"""Seconds a handler's function may take."""
_ASK_AGAIN = 0.05
_ENDS = re.compile(
    r"\s*(begin|start\s+transaction|commit|end|rollback(?!\s+(transaction\s+|work\s+)?to\b)|abort)\b", re.IGNORECASE
)
"""Statements that begin or end a transaction; a savepoint's are within one."""


class TheirsError(Exception):
    """The handler's function raised `cause`."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Connection:
    """What the function gets. See `receiver.hooks.event.Connection`."""

    def __init__(self, connection: SqlConnection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._over = False

    @property
    def sqlalchemy(self) -> SqlConnection:
        """SQLAlchemy's own."""
        return self._connection

    def execute(self, statement: Any, parameters: Any = None) -> Any:
        """One statement. What it finds is read at once: there is no coming back for it once the transaction is over."""
        with self._lock:
            if self._over:
                raise RuntimeError("this transaction is over")
            result = self._run(statement, parameters)
            return result.freeze()() if result.returns_rows else result

    def executemany(self, statement: Any, parameters: Any) -> Any:
        """The same for each of many parameters."""
        several = [each if isinstance(each, Mapping) else tuple(each) for each in parameters]
        return self.execute(statement, several) if several else None

    def _run(self, statement: Any, parameters: Any) -> Any:
        if _ENDS.match(str(statement)):
            raise UsageError("the transaction is committed or rolled back together with the event: leave that to commit()")
        if not isinstance(statement, str):
            return self._connection.execute(statement, parameters)
        first = parameters[0] if isinstance(parameters, list) and parameters else parameters
        if isinstance(first, Mapping) and "%(" not in statement:
            return self._connection.execute(text(statement), parameters)
        if isinstance(parameters, list) and not isinstance(first, Mapping | tuple):
            parameters = tuple(parameters)
        return self._connection.exec_driver_sql(statement, parameters)

    def end(self) -> None:
        """Let nothing more be done with it; a statement that runs is broken off."""
        self._over = True
        while not self._lock.acquire(timeout=_ASK_AGAIN):
            with suppress(Exception):  # it has ended by itself just now
                raw: Any = self._connection.connection.dbapi_connection
                (raw.interrupt if hasattr(raw, "interrupt") else raw.cancel)()
        self._lock.release()


def commit(tx: Transaction, attempt: Attempt, function: Callable[[Connection], object], policy: Persistence) -> Finished:
    """Run it, and write that the delivery is done. Raises `LeaseLostError`, `TimeoutError`, and `TheirsError` for what it raises."""
    hook_queue.check(tx, attempt.delivery)
    _run(tx, function)
    finished = hook_queue.finish(tx, attempt.delivery.hook, [attempt], policy)
    if finished.lost:
        raise LeaseLostError(f"another worker has taken event {attempt.delivery.event.id} for {attempt.delivery.hook} over")
    return finished


def _run(tx: Transaction, function: Callable[[Connection], object]) -> None:
    connection = Connection(tx.connection)
    context = contextvars.copy_context()
    ended = threading.Event()
    failure: BaseException | None = None

    def run() -> None:
        nonlocal failure
        try:
            result = context.run(function, connection)
            if inspect.iscoroutine(result):
                result.close()
                raise UsageError("commit() takes a plain function, and was given an async one")
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            failure = error
        ended.set()

    threading.Thread(target=run, name="commit", daemon=True).start()
    in_time = ended.wait(WITHIN)
    connection.end()
    if not in_time:
        raise TimeoutError(f"the function that commit() ran took longer than {WITHIN:g} s: nothing of it is written")
    if isinstance(failure, SQLAlchemyError) and is_passing(failure):
        raise failure  # all of it is tried again
    if failure is not None:
        raise TheirsError(failure)
