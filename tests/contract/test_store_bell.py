"""The bell between replicas: heard at once, rung seldom, and never missed for long where it cannot be heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any

import psycopg
import pytest
from databases import Server, Store
from sqlalchemy import event
from sqlalchemy.engine import make_url
from structlog.testing import capture_logs
from test_store_postgresql import break_connections

from receiver.clock import SystemClock
from receiver.store import bell as bells
from receiver.store.bell import Bell
from receiver.store.engine import Database
from receiver.store.postgresql import Line, Options

pytestmark = pytest.mark.anyio


class Impatient(SystemClock):
    """Never waits long."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))


class Ears:
    """What one replica hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._news = asyncio.Event()

    def __call__(self, name: str) -> None:
        if name != "proof":
            self.heard.append(name)
            self._news.set()

    async def hear(self, count: int = 1) -> list[str]:
        async with asyncio.timeout(30):
            while len(self.heard) < count:
                self._news.clear()
                await self._news.wait()
        return self.heard


@asynccontextmanager
async def hung(
    database: Database, ears: Callable[[str], None], *, line: Line | None = None, clock: SystemClock | None = None
) -> AsyncIterator[Bell]:
    """A bell that rings and listens."""
    line = line or database.line
    assert line is not None
    bell = Bell(database, line, clock or Impatient(), heard=ears)
    bell.start(listens=True)
    try:
        yield bell
    finally:
        await bell.stop()


async def hearing(*them: Bell) -> None:
    async with asyncio.timeout(30):
        while not all(bell.hears for bell in them):  # noqa: ASYNC110 - it signals nobody
            await asyncio.sleep(0.01)


@contextmanager
def rings(store: Store) -> Iterator[list[str]]:
    """The NOTIFYs that are sent."""
    seen: list[str] = []

    def note(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
        if "pg_notify" in statement:
            seen.append(str(parameters))

    event.listen(store.writing, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(store.writing, "before_cursor_execute", note)


async def test_it_is_heard_by_all_others_and_not_by_oneself(postgres: Store) -> None:
    mine, yours, theirs = Ears(), Ears(), Ears()
    async with hung(postgres.database, mine) as bell, hung(postgres.open(), yours) as b, hung(postgres.open(), theirs) as c:
        await hearing(bell, b, c)
        bell.ring("reconciler")
        assert await yours.hear() == await theirs.hear() == ["reconciler"]
        b.ring("dispatcher")
        assert await mine.hear() == ["dispatcher"]


async def test_neighbours_in_other_schemas_do_not_hear_it(postgresql: Server) -> None:
    with postgresql.empty() as url:
        ears, others = Ears(), Ears()
        options = [Options(schema=schema) for schema in ("a", "a", "b")]
        opened = [Database.open(url, SystemClock(), migrate=True, options=each) for each in options]
        async with hung(opened[0], Ears()) as bell, hung(opened[1], ears) as b, hung(opened[2], others) as c:
            await hearing(bell, b, c)
            bell.ring("reconciler")
            await ears.hear()
            c.ring("dispatcher")
            bell.ring("submitter")
            assert await ears.hear(2) == ["reconciler", "submitter"]
        assert others.heard == []
        for database in opened:
            database.close()


async def test_a_burst_is_one_ring_now_and_one_a_little_later(postgres: Store) -> None:
    """However many deliveries there are: NOTIFY makes commits wait for each other."""
    resting, rest = asyncio.Event(), asyncio.Event()

    class Restless(SystemClock):
        async def sleep(self, seconds: float) -> None:
            resting.set()
            await rest.wait()

    assert postgres.database.line is not None
    bell = Bell(postgres.database, postgres.database.line, Restless(), heard=Ears())
    with rings(postgres) as sent:
        bell.start(listens=False)
        for _ in range(1000):
            bell.ring("reconciler")
        await resting.wait()
        assert len(sent) == 1
        for _ in range(1000):
            bell.ring("reconciler")
            bell.ring("dispatcher")
            await asyncio.sleep(0)
        assert len(sent) == 1
        resting.clear()
        rest.set()
        await resting.wait()
        assert len(sent) == 2
        assert "dispatcher reconciler" in sent[1]
        await bell.stop()


async def test_what_is_still_to_be_rung_is_rung_at_the_end(postgres: Store) -> None:
    """A command that makes a job due and ends."""
    assert postgres.database.line is not None
    ears = Ears()
    async with hung(postgres.open(), ears) as other:
        await hearing(other)
        bell = Bell(postgres.database, postgres.database.line, SystemClock(), heard=Ears())
        bell.start(listens=False)
        bell.ring("reconciler")
        await bell.stop()
        assert await ears.hear() == ["reconciler"]


async def test_it_listens_again_after_its_connection_broke(postgres: Store) -> None:
    """Told once, and once more when it is over."""
    ears = Ears()
    with capture_logs() as logs:
        async with hung(postgres.database, ears) as bell, hung(postgres.open(), Ears()) as other:
            await hearing(bell, other)
            await asyncio.to_thread(break_connections, postgres)
            async with asyncio.timeout(30):
                while [log["event"] for log in logs].count("replicas_heard") < 2:  # noqa: ASYNC110 - it signals nobody
                    await asyncio.sleep(0.01)
            other.ring("reconciler")
            assert "reconciler" in await ears.hear()
    assert sorted(log["event"] for log in logs) == ["replicas_heard"] * 2 + ["replicas_not_heard"] * 2


async def test_where_nothing_can_be_heard_it_says_so_once_and_goes_on(
    postgres: Store, postgresql: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a transaction pooler. Here: it listens in another database than it rings in."""
    monkeypatch.setattr(bells, "_PROVED_WITHIN", 0.05)
    with postgresql.empty() as elsewhere, rings(postgres) as sent, capture_logs() as logs:
        async with hung(postgres.database, Ears(), line=Line(make_url(elsewhere), Options())) as bell:
            async with asyncio.timeout(60):
                while len(sent) < 3:  # noqa: ASYNC110 - it signals nobody
                    await asyncio.sleep(0.01)
            assert not bell.hears
    (told,) = logs
    assert told["event"] == "replicas_not_heard"
    assert "pooler" in told["hint"]


async def test_anybodys_notes_on_the_channel_are_harmless(postgres: Store) -> None:
    """Whoever may use the database may use the channel."""
    ears = Ears()
    async with hung(postgres.database, ears) as bell:
        await hearing(bell)
        with closing(psycopg.connect(postgres.url, autocommit=True)) as side:
            for payload in ("", " ", "a b\tc", "é\x7f reconciler"):
                side.execute("SELECT pg_notify('receiver', %s)", [payload])
        assert await ears.hear(3) == ["b", "c", "reconciler"]
        assert bell.hears


async def test_a_database_that_is_closed_does_not_keep_it_from_stopping(postgresql_url: str) -> None:
    database = Database.open(postgresql_url, SystemClock())
    assert database.line is not None
    bell = Bell(database, database.line, SystemClock(), heard=Ears())
    database.close()
    bell.ring("reconciler")
    await bell.stop()
