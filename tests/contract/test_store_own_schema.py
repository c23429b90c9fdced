"""`RECEIVER_DATABASE_SCHEMA`: everything of ours in a schema of its own, and several receivers in one database."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TypeVar

import psycopg
import pytest
from databases import NOW, Server
from sqlalchemy import text
from things import arrival, attempt, event, outcome

from receiver.clock import SystemClock
from receiver.core.delivering import Persistence
from receiver.core.lifecycle import State
from receiver.errors import SettingsError
from receiver.store import budget, hook_queue, inbox, jobs, leadership, outbox, settlement
from receiver.store.engine import Database
from receiver.store.postgresql import Options
from receiver.store.tables import metadata
from receiver.store.transaction import Transaction

T = TypeVar("T")


def opened(url: str, schema: str | None, *, migrate: bool = False, readonly: bool = False) -> Database:
    return Database.open(url, SystemClock(), migrate=migrate, readonly=readonly, options=Options(schema=schema))


def write(database: Database, work: Callable[[Transaction], T]) -> T:
    async def wait() -> T:
        return await database.write(work)

    return asyncio.run(wait())


def places(url: str) -> dict[str, set[str]]:
    """The tables there are, by schema."""
    found: dict[str, set[str]] = {}
    with psycopg.connect(url) as side:
        for schema, table in side.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname !~ '^(pg_|information_)'"
        ):
            found.setdefault(schema, set()).add(table)
    return found


@pytest.fixture(scope="module")
def shared_url(postgresql: Server) -> Iterator[str]:
    """A database with two receivers in it, `left` and `right`."""
    with postgresql.empty() as url:
        for schema in ("left", "right"):
            opened(url, schema, migrate=True).close()
        yield url


@pytest.fixture
def left(shared_url: str) -> Iterator[Database]:
    with closing(opened(shared_url, "left")) as database:
        yield database
        write(database, _wipe)


@pytest.fixture
def right(shared_url: str) -> Iterator[Database]:
    with closing(opened(shared_url, "right")) as database:
        yield database
        write(database, _wipe)


def _wipe(tx: Transaction) -> None:
    for table in metadata.tables.values():
        tx.execute(table.delete())


def test_everything_is_made_inside_it(shared_url: str) -> None:
    """Alembic's table too; nothing is left in `public`."""
    everything = set(metadata.tables) | {"alembic_version"}
    assert places(shared_url) == {"left": everything, "right": everything}


def test_a_schema_nobody_made_yet_names_the_command(postgresql: Server) -> None:
    """Also where another schema of the database has our tables: none of them is taken for ours."""
    with postgresql.migrated() as url:
        with pytest.raises(SettingsError, match="has no tables yet: run `receiver migrate`"):
            opened(url, "own")
        assert set(places(url)) == {"public"}


def test_one_that_is_there_needs_no_right_to_make_one(postgresql: Server) -> None:
    with postgresql.empty() as url, psycopg.connect(url, autocommit=True) as admin:
        admin.execute("CREATE ROLE lodger LOGIN")
        try:
            admin.execute("CREATE SCHEMA own AUTHORIZATION lodger")
            opened(url.replace("//postgres:", "//lodger:"), "own", migrate=True).close()
            assert set(places(url)) == {"own"}
        finally:
            admin.execute("DROP OWNED BY lodger; DROP ROLE lodger")


def test_the_whole_way_of_a_delivery_leads_through_it(left: Database, right: Database) -> None:
    """From its arrival to the event's delivery; the neighbour has none of it."""

    def way(tx: Transaction) -> None:
        assert [o.name for o in inbox.accept(tx, [arrival(), arrival()])] == ["accepted", "duplicate"]
        assert isinstance(budget.acquire(tx, "hydrate", rpm=10, share=1.0, lasts=1.0), budget.Granted)
        job = jobs.claim(tx, owner="a", lease=60)
        assert job is not None
        seen = {"state": State.HYDRATING, "generation": 1, "mark": "m", "document": b"{}", "noticed_at": NOW}
        jobs.save(tx, job, **seen, status="completed", discovered_by="poll")
        job = jobs.get(tx, job.id)
        assert job is not None
        settlement.settle(tx, job, outcome(job), event())
        (told,) = hook_queue.claim(tx, hook="hook", most=1, owner="a", lease=60)
        hook_queue.finish(tx, "hook", [attempt(told)], Persistence())

    hook = outbox.Declaration("hook", "python", "hook", ("job.completed",))
    write(left, lambda tx: outbox.declare(tx, [hook], all_configured=True))
    write(left, way)
    assert left.read_now(lambda tx: jobs.listing(tx)[1]) == 1
    assert right.read_now(lambda tx: jobs.listing(tx)[1]) == 0
    assert right.read_now(lambda tx: hook_queue.next_due(tx, hook="hook")) is None
    assert [o.name for o in write(right, lambda tx: inbox.accept(tx, [arrival()]))] == ["accepted"]


def test_a_job_is_tracked_and_tracked_again_in_it(left: Database, right: Database) -> None:
    """Also once its results are gone, which only other tables tell."""
    for place in (left, right, left):
        job = write(place, lambda tx: jobs.track(tx, "job_1", source="track"))
        assert (job.id, job.refetch) == ("job_1", False)


def test_neighbours_lead_for_themselves(left: Database, right: Database) -> None:
    assert write(left, lambda tx: leadership.lead(tx, "stream", owner="a", seconds=60))
    assert write(right, lambda tx: leadership.lead(tx, "stream", owner="b", seconds=60))


def test_neighbours_do_not_wait_for_each_others_locks(left: Database, right: Database) -> None:
    """Advisory locks belong to the whole database."""
    holding, go = threading.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        budget.acquire(tx, "hydrate", rpm=10, share=1.0, lasts=1.0)
        holding.set()
        assert go.wait(30)

    async def scene() -> None:
        held = asyncio.ensure_future(left.write(hold))
        await asyncio.to_thread(holding.wait, 30)
        try:
            await right.write(lambda tx: budget.acquire(tx, "hydrate", rpm=10, share=1.0, lasts=1.0))
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            assert await right.read(lambda tx: tx.execute(text(waiting)).scalar_one()) == 1
        finally:
            go.set()
            await held

    asyncio.run(scene())


def test_it_is_no_sessions_state(left: Database) -> None:
    """A transaction pooler gives each transaction another session: every statement says by itself which schema it means."""
    for engine in (left._engines.writing, left._engines.reading):
        with engine.connect() as connection:
            assert connection.execute(text("SHOW search_path")).scalar_one() == '"$user", public'


def test_migrating_leaves_the_session_as_it_was(postgresql: Server) -> None:
    with postgresql.empty() as url, closing(opened(url, "own", migrate=True)) as database:
        assert database.read_now(lambda tx: tx.execute(text("SHOW search_path")).scalar_one()) == '"$user", public'
        assert database.read_now(lambda tx: tx.execute(text("SHOW statement_timeout")).scalar_one()) == "30s"


@pytest.mark.parametrize("readonly", [False, True])
def test_sqlite_has_none(sqlite_url: str, readonly: bool) -> None:
    """It is refused: ignored, two receivers that were meant to be apart would be one."""
    with pytest.raises(SettingsError, match="RECEIVER_DATABASE_SCHEMA is for PostgreSQL: unset it"):
        opened(sqlite_url, "own", readonly=readonly)
