"""The database: opened, migrated, read from many threads, written through one `Writer`."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import QueuePool, StaticPool

from receiver.clock import Clock
from receiver.errors import SettingsError, StoreError
from receiver.store import ephemeral, inbox, postgresql, schema
from receiver.store.failures import is_passing, translate
from receiver.store.held_keys import HeldKeys
from receiver.store.lock import DatabaseLock
from receiver.store.postgresql import DEFAULTS, Line, Options
from receiver.store.transaction import Transaction
from receiver.store.writer import TRIES, Tell, Waiting, Writer

if TYPE_CHECKING:
    from receiver.settings import Settings

T = TypeVar("T")

READERS = 4
"""Connections that read an SQLite file."""
_USAGE = "use sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"
_BUSY = 5.0
"""Seconds a write waits for a lock somebody else holds on the SQLite file, less than a sender's patience."""
_BATCHES = 10_000
"""Sizes of transactions that are remembered until somebody asks."""
_CLOSE_WITHIN = 2.0
"""Seconds for what still waits to be written when the database is closed."""


class _Engines:
    """The two ways to the database: one that writes, one that only reads. `writers`, `readers`: how many may at once."""

    def __init__(
        self, writing: Engine, reading: Engine, *, path: Path | None = None, line: Line | None = None, writers: int, readers: int
    ) -> None:
        self.writing = writing
        self.reading = reading
        self.path = path
        self.line = line
        self.writers = writers
        self.readers = readers

    @classmethod
    def of(cls, url: str, options: Options) -> Self:
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):  # a port that is no number is the latter
            raise SettingsError(f"RECEIVER_DATABASE_URL is not a database URL: {_USAGE}") from None
        if parsed.drivername == "sqlite":
            if options.schema is not None:
                raise SettingsError("RECEIVER_DATABASE_SCHEMA is for PostgreSQL: unset it, an SQLite file has no schemas")
            return cls._sqlite(parsed)
        if parsed.drivername in {"postgres", "postgresql", "postgresql+psycopg"}:
            return cls._postgresql(parsed, options)
        raise SettingsError(f"RECEIVER_DATABASE_URL names {parsed.drivername!r}, which is not supported: {_USAGE}")

    @classmethod
    def _sqlite(cls, url: URL) -> Self:
        if not url.database or url.database == ":memory:" or url.host:
            raise SettingsError(f"RECEIVER_DATABASE_URL has no path of a file (deliveries must outlive the process): {_USAGE}")
        if (place := ephemeral.platform()) is not None:
            raise SettingsError(
                f"RECEIVER_DATABASE_URL is an SQLite file, and the disk of {place} goes with its process: "
                "acknowledged deliveries would be lost. Use postgresql://USER:PASSWORD@HOST/NAME"
            )
        path = Path(url.database).absolute()

        def connect(mode: str) -> sqlite3.Connection:
            # A transaction begins where we say so, with BEGIN IMMEDIATE; the driver's own guessing is off.
            return sqlite3.connect(
                f"file:{quote(str(path))}?mode={mode}",
                uri=True,
                timeout=_BUSY,
                isolation_level=None,
                check_same_thread=False,
            )

        writing = create_engine("sqlite://", creator=lambda: connect("rwc"), poolclass=StaticPool, hide_parameters=True)
        event.listen(writing, "connect", _prepare_writing)
        event.listen(writing, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        reading = create_engine(
            "sqlite://",
            creator=lambda: connect("ro"),
            poolclass=QueuePool,
            pool_size=READERS,
            max_overflow=1,
            hide_parameters=True,
        )
        event.listen(reading, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        return cls(writing, reading, path=path, writers=1, readers=READERS)

    @classmethod
    def _postgresql(cls, url: URL, options: Options) -> Self:
        engine = postgresql.connect(url, options)
        reading = engine.execution_options(postgresql_readonly=True)
        return cls(engine, reading, line=Line(url, options), writers=options.writers, readers=options.readers)

    def check_exists(self) -> None:
        """Raises `StoreError` where there is nothing to read yet, or nothing we may see."""
        try:
            exists = self.path is None or self.path.exists()
        except OSError as error:
            raise StoreError(f"cannot read {self.path} ({error.strerror})") from error
        if not exists:
            raise StoreError(f"there is no database at {self.path} yet: start `receiver serve`, or set RECEIVER_DATABASE_URL")

    def dispose(self) -> None:
        # Who leaves an SQLite file last brings the WAL into it, and readers may not: a copy of the file alone would lack that.
        self.reading.dispose()
        self.writing.dispose()


def _prepare_writing(connection: sqlite3.Connection, _: object) -> None:
    # FULL: a commit that was answered outlives a power cut. Sharing one fsync among many makes it cheap.
    # FAST: what is pruned is not written over with zeroes at once, as some builds do: that takes five times as long.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=FAST", "cache_size=-32000", "wal_autocheckpoint=4000"):
        connection.execute(f"PRAGMA {pragma}").close()


class Database:
    """One database, open. Use as a context manager, or call `close`."""

    def __init__(self, engines: _Engines, clock: Clock, *, lock: DatabaseLock | None, writes: bool) -> None:
        self._engines = engines
        self._clock = clock
        self.lock = lock
        self.is_postgresql = engines.path is None
        self.line = engines.line
        self._batches: deque[int] = deque(maxlen=_BATCHES)
        self._readers = ThreadPoolExecutor(engines.readers, thread_name_prefix="reader")
        self._held = HeldKeys() if writes and not self.is_postgresql else None
        self._writer: Writer[inbox.Arrival, inbox.Outcome] | None = None
        if writes:
            self._writer = Writer(self._begin_write, self._take_in, threads=engines.writers, now=clock.monotonic)

    @classmethod
    def of(cls, settings: Settings, clock: Clock, *, readonly: bool = False, migrate: bool = False) -> Self:
        """The one that is configured; see `open`."""
        options = Options.of(settings)
        return cls.open(settings.receiver_database_url, clock, readonly=readonly, migrate=migrate, options=options)

    @classmethod
    def open(cls, url: str, clock: Clock, *, readonly: bool = False, migrate: bool = False, options: Options = DEFAULTS) -> Self:
        """Open what `url` names and check its schema, creating or migrating SQLite's by itself (PostgreSQL's if `migrate`).

        Raises `SettingsError` if the URL or the schema is not right, `StoreError` if the database does not answer, and
        `LockHeldError` if another process writes to the SQLite file. `readonly` takes no lock.
        """
        engines = _Engines.of(url, options)
        lock = None
        try:
            if engines.path is not None and not readonly:
                lock = _lock(engines.path)
            if readonly:
                engines.check_exists()
            database = cls(engines, clock, lock=lock, writes=not readonly)
        except BaseException:
            if lock is not None:
                lock.release()
            engines.dispose()
            raise
        try:
            database._prepare(readonly=readonly, migrate=migrate)
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Write what waits, then let go of everything. Blocks, but not for long."""
        if self._writer is not None and not self._writer.stop(within=_CLOSE_WITHIN):
            return  # still waiting for the database, which can undo what is not committed; the lock goes when the process does
        self._readers.shutdown()
        self._engines.dispose()
        if self.lock is not None:
            self.lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in a read transaction. Keep it short: on SQLite a long one makes the WAL grow."""
        try:
            future = asyncio.get_running_loop().run_in_executor(self._readers, self.read_now, work)
        except RuntimeError:  # the executor's word for it
            raise StoreError("the store is closed") from None
        return await future

    def read_now(self, work: Callable[[Transaction], T]) -> T:
        """The same, in this thread."""
        tries = TRIES
        while True:
            tries -= 1
            try:
                with self._engines.reading.begin() as connection:
                    return work(Transaction(connection, self._clock.steady))
            except SQLAlchemyError as error:
                if not (is_passing(error) and tries):
                    raise translate(error) from error

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in a transaction of its own; return once it is durable. Raises `StoreError` if it is not known to be."""
        future: asyncio.Future[Any] = self._writing().submit(work)  # type: ignore[arg-type]  # one Writer serves every T
        result: T = await future
        return result

    def write_sometime(self, work: Callable[[Transaction], Any]) -> None:
        """Have `work` run like that, soon; nobody is told what became of it. Raises `StoreError` where it is not even begun."""
        future: asyncio.Future[Any] = self._writing().submit(work)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

    def arrive(self, arrival: inbox.Arrival) -> asyncio.Future[inbox.Outcome]:
        """Store a delivery, in one transaction with whatever else arrives now. Raises `StoreBusyError` if too much waits."""
        return self._writing().arrive(arrival)

    def take(self, arrival: inbox.Arrival, tell: Tell) -> Waiting:
        """The same, by a call instead of a future: `tell` gets the `Outcome`, or the error."""
        return self._writing().take(arrival, tell)

    def batches(self) -> Iterator[int]:
        """How many deliveries shared each transaction since this was asked last."""
        with suppress(IndexError):  # the threads that write go on meanwhile
            while True:
                yield self._batches.popleft()

    def _take_in(self, tx: Transaction, arrivals: Sequence[inbox.Arrival]) -> list[inbox.Outcome]:
        self._batches.append(len(arrivals))
        return inbox.accept(tx, arrivals)

    def _writing(self) -> Writer[inbox.Arrival, inbox.Outcome]:
        if self._writer is None:
            raise StoreError("the database is open for reading only")
        return self._writer

    @contextmanager
    def _begin_write(self) -> Iterator[Transaction]:
        committed = False
        try:
            with self._engines.writing.begin() as connection:
                yield Transaction(connection, self._clock.steady, self._held)
            committed = True
        finally:
            if self._held is not None:
                self._held.settle(committed=committed)

    def _prepare(self, *, readonly: bool, migrate: bool) -> None:
        try:
            if not readonly and (migrate or not self.is_postgresql):
                with self._engines.writing.connect() as connection:
                    schema.migrate(connection)
            with self._engines.reading.connect() as connection:
                schema.check(connection)
            if self.lock is not None:
                # The leases of a process that is gone: nobody else can hold any while we have the lock.
                with self._begin_write() as tx:
                    schema.clear_leases(tx)
                    if self._held is not None:
                        self._held.recall(tx)
        except SQLAlchemyError as error:
            raise StoreError(f"{translate(error)}: check RECEIVER_DATABASE_URL") from error


def _lock(path: Path) -> DatabaseLock:
    try:
        return DatabaseLock(path)
    except OSError as error:
        raise StoreError(
            f"cannot write to {path.parent} ({error.strerror}): choose another place with RECEIVER_DATABASE_URL"
        ) from error
