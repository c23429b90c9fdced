"""What only PostgreSQL promises: many replicas, one clock, and connections that may break at any moment."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from databases import NOW, Calendar, Server, Store, in_threads, transact
from sqlalchemy import event, text, update
from things import arrival, attempt, body, claimed, declare, outcome, tracked
from things import event as event_of

from receiver.clock import SystemClock
from receiver.core.delivering import Persistence
from receiver.core.lifecycle import State
from receiver.errors import LeaseLostError, StoreError
from receiver.store import budget, hook_queue, inbox, jobs, settlement
from receiver.store.engine import Database
from receiver.store.inbox import Arrival, Outcome
from receiver.store.tables import deliveries, events, outcomes
from receiver.store.tables import jobs as jobs_table
from receiver.store.transaction import Transaction


def accept(store: Store, one: Arrival) -> Outcome:
    async def wait() -> Outcome:
        return await store.database.arrive(one)

    outcome: Outcome = store.run(wait())
    return outcome


def break_connections(store: Store) -> None:
    """All but the test's own, from the server's side."""
    assert store._side is not None
    store._side.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


# Deadlocks.


def test_a_deadlock_is_tried_again_and_reaches_nobody(postgres: Store) -> None:
    """Its victim was rolled back whole, so the very same work is done once more, and both are done in the end."""
    tracked(postgres, "a")
    tracked(postgres, "b")
    together = threading.Barrier(2)
    attempts: list[str] = []

    def work(first: str, second: str) -> Callable[[Transaction], None]:
        begun = threading.Event()

        def touch(tx: Transaction) -> None:
            attempts.append(first)
            tx.execute(update(jobs_table).where(jobs_table.c.id == first).values(requests=jobs_table.c.requests + 1))
            if not begun.is_set():
                begun.set()
                together.wait(30)
            tx.execute(update(jobs_table).where(jobs_table.c.id == second).values(requests=jobs_table.c.requests + 1))

        return touch

    async def scene() -> None:
        await asyncio.gather(postgres.database.write(work("a", "b")), postgres.database.write(work("b", "a")))

    postgres.run(scene())
    assert [row["requests"] for row in postgres.rows(jobs_table)] == [2, 2]
    assert len(attempts) == 3


def test_replicas_batches_over_the_same_jobs_never_wait_in_a_ring(postgres: Store) -> None:
    """Each touches its rows in one order. A deadlock would be survived, but each costs a second; past the writer, it is raised."""
    replicas = [postgres.database] + [postgres.open() for _ in range(3)]
    kinds = ("job.completed", "job.page", "job.failed", "job.started")

    def worker(number: int) -> Callable[[], int]:
        chance = random.Random(number)

        def work() -> int:
            done = 0
            for turn in range(15):
                batch = [
                    arrival(
                        body(f"job_{n}", chance.choice(kinds), n=f"{number}/{turn}" if chance.random() < 0.5 else turn),
                        id=f"dlv_{chance.randrange(30)}",
                        at=NOW + turn,
                    )
                    for n in chance.choices(range(10), k=20)
                ]
                done += len(transact(replicas[number], lambda tx, batch=batch: inbox.accept(tx, batch)))
            return done

        return work

    assert in_threads([worker(number) for number in range(4)]) == [300] * 4


HAMMERED_FOR = float(os.environ.get("RECEIVER_TEST_HAMMER_SECONDS", "20"))


@pytest.mark.slow
@pytest.mark.timeout(max(120, HAMMERED_FOR * 3))
def test_replicas_that_hammer_the_same_jobs_never_deadlock(postgres: Store) -> None:
    """Deliveries with the same keys for the same jobs, claims, settlements, sweeps and events: past the writer, each is raised."""
    replicas = [postgres.database] + [postgres.open() for _ in range(3)]
    over = SystemClock().monotonic() + HAMMERED_FOR
    declare(postgres, "hook")

    def repeat(turn: Callable[[random.Random, int], Any], seed: int) -> Callable[[], int]:
        def work() -> int:
            dice, done = random.Random(seed), 0
            while SystemClock().monotonic() < over:
                with suppress(LeaseLostError):
                    turn(dice, done)
                done += 1
            return done

        return work

    def deliver(replica: Database) -> Callable[[random.Random, int], Any]:
        def turn(dice: random.Random, number: int) -> None:
            kinds = ("job.completed", "job.page", "job.failed", "job.started")
            batch = [
                arrival(body(f"job_{n}", dice.choice(kinds), n=dice.randrange(number + 1)), id=f"dlv_{dice.randrange(30)}")
                for n in dice.choices(range(10), k=20)
            ]
            transact(replica, lambda tx: inbox.accept(tx, batch))

        return turn

    def settle(replica: Database) -> Callable[[random.Random, int], Any]:
        def turn(dice: random.Random, number: int) -> None:
            job = transact(replica, lambda tx: jobs.claim(tx, owner=f"w{dice.random()}", lease=60))
            if job is None:
                return
            generation = job.settled_generation + 1
            seen = {"state": State.HYDRATING, "status": "completed", "mark": "m", "noticed_at": NOW, "discovered_by": "poll"}
            transact(replica, lambda tx: jobs.save(tx, job, **seen, generation=generation, document=b"{}"))
            transact(replica, lambda tx: jobs.hold(tx, job, lease=60))
            opened = replace(job, generation=generation)
            end = event_of(job.id, generation)
            transact(replica, lambda tx: settlement.settle(tx, opened, outcome(opened), end))
            told = transact(replica, lambda tx: hook_queue.claim(tx, hook="hook", most=3, owner="d", lease=60))
            done = [attempt(each, dice.choice(["delivered", "failed"])) for each in told]
            transact(replica, lambda tx: hook_queue.finish(tx, "hook", done, Persistence()))

        return turn

    def sweep(replica: Database) -> Callable[[random.Random, int], Any]:
        return lambda dice, number: transact(replica, lambda tx: jobs.sweep(tx, within=dice.random()))

    works = [repeat(kind(replica), n) for n, replica in enumerate(replicas) for kind in (deliver, deliver, settle)]
    done = in_threads([*works, repeat(sweep(replicas[0]), 99)])
    assert min(done) > 0
    assert len(postgres.rows(outcomes)) == len(postgres.rows(events)) > 0
    assert all(row["lease_owner"] is None for row in postgres.rows(jobs_table))


# The clock.


def test_a_replica_whose_clock_is_off_leases_by_the_databases(postgres: Store) -> None:
    """Its own may say what it will: what is due, and until when it is leased, is one replica's word as another's."""
    tracked(postgres)
    postgres.clock.now += 3600  # this process only
    job = claimed(postgres, lease=60)
    assert (job.lease_until, postgres.read(lambda tx: tx.now)) == (NOW + 60, NOW)
    assert postgres.write(jobs.claim, owner="b", lease=60) is None
    postgres.clock.now -= 3600


def test_the_clock_is_the_servers(postgresql_url: str) -> None:
    """Where no test has put another in its place."""
    server_time = "SELECT extract(epoch FROM clock_timestamp())::float8"
    with psycopg.connect(postgresql_url) as side, Database.open(postgresql_url, Calendar()) as database:
        before = side.execute(server_time).fetchone()
        now = database.read_now(lambda tx: tx.now)
        after = side.execute(server_time).fetchone()
    assert before is not None
    assert after is not None
    assert before[0] <= now <= after[0]


# Connections that break.


def test_a_connection_that_breaks_midway_is_an_error_that_passes(postgres: Store) -> None:
    """Undone whole by the server; refused in our words; the next one finds a new connection."""

    def work(tx: Transaction) -> None:
        jobs.track(tx, "lost", source="track")
        break_connections(postgres)
        jobs.track(tx, "never", source="track")

    with pytest.raises(StoreError, match="the database did not take it"):
        postgres.write(work)
    assert postgres.rows(jobs_table) == []
    assert accept(postgres, arrival()).name == "accepted"


def test_idle_connections_that_broke_are_noticed_before_they_are_used(postgres: Store) -> None:
    """PostgreSQL was restarted at night: the morning's first delivery is taken, not refused."""
    tracked(postgres)
    break_connections(postgres)
    assert accept(postgres, arrival()).name == "accepted"
    break_connections(postgres)
    assert postgres.read(lambda tx: jobs.listing(tx)[1]) == 1


@pytest.mark.parametrize("committed", [False, True], ids=["before", "after"])
def test_a_commit_whose_outcome_is_unknown_may_be_sent_again(postgres: Store, committed: bool) -> None:
    """The connection breaks just before the server commits, or just before it says so: 503 either way, and one row in the end."""
    dialect = postgres.writing.dialect
    plain = dialect.do_commit

    def broken(connection: Any) -> None:
        del dialect.do_commit  # once
        if committed:
            plain(connection)
        break_connections(postgres)
        plain(connection) if not committed else connection.cursor().execute("SELECT 1")

    dialect.do_commit = broken  # type: ignore[method-assign]
    with pytest.raises(StoreError):
        accept(postgres, arrival())
    assert len(postgres.rows(deliveries)) == committed
    assert accept(postgres, arrival()).name == ("duplicate" if committed else "accepted")
    assert len(postgres.rows(deliveries)) == 1
    assert len(postgres.rows(jobs_table)) == 1


@pytest.mark.parametrize("locked", [1, 3])
def test_writers_that_are_locked_out_stop_none_of_the_others(postgres: Store, locked: int) -> None:
    """Some jobs' rows are locked by somebody; deliveries for others go on, even where more are stuck than write groups at a time."""
    for number in range(locked):
        tracked(postgres, f"locked_{number}")
    with psycopg.connect(postgres.url) as side:
        side.execute("SELECT 1 FROM jobs FOR UPDATE")

        async def scene() -> tuple[Outcome, bool]:
            stuck = []
            for number in range(locked):
                stuck.append(postgres.database.arrive(arrival(job=f"locked_{number}", id=f"{number}")))
                # Each in a transaction of its own: what shares one with a locked row waits with it.
                while len(side.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall()) <= number:  # noqa: ASYNC110 - it signals nobody
                    await asyncio.sleep(0)
                postgres.advance(1)
            free = await postgres.database.arrive(arrival(job="free", id="free"))
            done = any(one.done() for one in stuck)
            side.rollback()
            await asyncio.gather(*stuck)
            return free, done

        free, done = postgres.run(scene())
    assert (free.name, done) == ("accepted", False)


# Behind a transaction pooler, which gives each transaction another connection.


def test_no_statement_stays_prepared(postgres: Store) -> None:
    for _ in range(20):
        tracked(postgres)
        postgres.read(jobs.listing)
    for engine in (postgres.writing, postgres.database._engines.reading):
        with engine.connect() as connection:
            assert connection.execute(text("SELECT name FROM pg_prepared_statements")).all() == []


def test_no_lock_outlives_its_transaction(postgres: Store) -> None:
    postgres.write(budget.acquire, "hydrate", rpm=10, share=1.0, lasts=30.0)
    assert postgres.read(lambda tx: tx.execute(text("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'")).all()) == []


def test_a_reader_says_that_it_only_reads(postgres: Store) -> None:
    """With its first statement, and never for those that write after it on the same connection."""
    seen: list[Any] = []

    def note(connection: Any, *_: object) -> None:
        seen.append(connection.connection.driver_connection.read_only)

    event.listen(postgres.writing, "before_cursor_execute", note)
    try:
        for _ in range(3):
            postgres.read(jobs.listing)
            reads, seen[:] = set(seen), []
            tracked(postgres)
            writes, seen[:] = set(seen), []
            assert (reads, writes) == ({True}, {False})
    finally:
        event.remove(postgres.writing, "before_cursor_execute", note)


def test_nothing_listens_on_a_port(postgresql: Server) -> None:
    """The tests' server is theirs alone: neither the machine's own nor its port is touched."""
    with postgresql.empty() as url, psycopg.connect(url) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
