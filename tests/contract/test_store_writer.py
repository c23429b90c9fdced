"""The writer: many wait, few transactions, each answered for itself; one's trouble is not another's."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Sequence
from typing import Any

import pytest
from databases import NOW, Store
from sqlalchemy import insert, text
from things import arrival, body

from receiver.clock import SystemClock
from receiver.core.admission import PATIENCE
from receiver.core.delivery import Delivery, Meaning
from receiver.errors import LeaseLostError, StoreBusyError, StoreError
from receiver.store import jobs, writer
from receiver.store.engine import Database
from receiver.store.inbox import Arrival, Outcome
from receiver.store.tables import deliveries
from receiver.store.tables import jobs as jobs_table
from receiver.store.transaction import Transaction
from receiver.store.writer import GROUP, Writer


def numbered(count: int) -> list[Arrival]:
    return [arrival(job=f"job_{n}", id=f"dlv_{n}") for n in range(count)]


def queued(store: Store, arrivals: Sequence[Arrival]) -> list[asyncio.Future[Outcome]]:
    """Handed to the writer, which is busy."""

    async def enqueue() -> list[asyncio.Future[Outcome]]:
        return [store.database.arrive(each) for each in arrivals]

    futures: list[asyncio.Future[Outcome]] = store.run(enqueue())
    return futures


def answers(store: Store, futures: Sequence[asyncio.Future[Any]]) -> list[Any]:
    """What each came to: a result or an error."""

    async def wait() -> list[Any]:
        return await asyncio.gather(*futures, return_exceptions=True)

    found: list[Any] = store.run(wait())
    return found


# Group commit.


def test_all_that_wait_share_one_commit(store: Store) -> None:
    with store.busy() as go:
        futures = queued(store, numbered(GROUP))
        with store.commits() as commits:
            go.set()
            outcomes = answers(store, futures)
            blockers = store.database._writing()._working
            assert len(commits) <= blockers + 1
    assert outcomes == [Outcome("accepted", cued=True)] * GROUP
    assert len(store.rows(deliveries)) == GROUP


def test_a_group_has_a_bound(store: Store) -> None:
    """A commit, and so an answer, stays short however many wait."""
    sizes: list[int] = []

    def group(_: Transaction, batch: Sequence[int]) -> Sequence[int]:
        sizes.append(len(batch))
        return batch

    answered = _through(store, group, arrivals=range(GROUP * 2 + 10))
    assert answered == list(range(GROUP * 2 + 10))
    assert sizes == [GROUP, GROUP, 10]


def test_each_gets_its_own_answer(store: Store) -> None:
    arrivals = [arrival(job="a", id="a"), arrival(b"", id="b"), arrival(job="a", id="a"), arrival(job="b", id="c")]
    with store.busy() as go:
        futures = queued(store, arrivals)
        go.set()
        outcomes = answers(store, futures)
    assert [outcome.name for outcome in outcomes] == ["accepted", "quarantined", "duplicate", "accepted"]


def test_what_was_given_up_before_it_was_written_is_not_written(store: Store) -> None:
    """Its sender has had a 503 and sends it again; the others of its group are written."""
    with store.busy() as go:
        futures = queued(store, numbered(3))
        futures[1].cancel()
        go.set()
        outcomes = answers(store, futures)
    assert [type(outcome) for outcome in outcomes] == [Outcome, asyncio.CancelledError, Outcome]
    assert [row["job_id"] for row in store.rows(deliveries)] == ["job_0", "job_2"]


def test_work_that_was_given_up_before_it_began_is_not_done(store: Store) -> None:
    async def give_up() -> None:
        task = asyncio.create_task(store.database.write(lambda tx: jobs.track(tx, "job_1", source="track")))
        await asyncio.sleep(0)  # it is queued now
        task.cancel()
        await asyncio.wait([task])

    with store.busy():
        store.run(give_up())
    assert store.rows(jobs_table) == []


def test_work_that_was_given_up_midway_harms_nobody(own: Store) -> None:
    """Nobody waits for its answer any more; it is done or not, as a whole."""

    async def scene() -> None:
        with own.commit_held() as (reached, go):
            future = own.database.arrive(arrival())
            await asyncio.get_running_loop().run_in_executor(None, reached.wait, 10)
            future.cancel()
            go.set()
        await own.database.write(lambda tx: jobs.track(tx, "after", source="track"))

    own.run(scene())
    own.reopen()  # after what was under way
    assert [row["id"] for row in own.rows(jobs_table)] == ["after", "job_1"]


def test_what_waits_at_the_end_is_written(own: Store) -> None:
    """`close` drains; after it, everything is refused in our own words."""
    database = own.database

    async def scene() -> list[Outcome]:
        futures = [database.arrive(each) for each in numbered(20)]
        await asyncio.get_running_loop().run_in_executor(None, database.close)
        return await asyncio.gather(*futures)

    assert {outcome.name for outcome in own.run(scene())} == {"accepted"}
    for refused in (database.write(lambda tx: tx.now), database.read(lambda tx: tx.now), _arrive(database)):
        with pytest.raises(StoreError, match="the store is closed"):
            own.run(refused)
    own.reopen()
    assert len(own.rows(deliveries)) == 20


async def _arrive(database: Database, one: Arrival | None = None) -> Outcome:
    return await database.arrive(one or arrival())


def test_too_much_waiting_is_refused_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 in time is better than an answer too late. What is in the queue is written."""
    monkeypatch.setattr(writer, "QUEUE", 10)
    with store.busy() as go:
        futures = queued(store, numbered(10))
        with pytest.raises(StoreBusyError):
            queued(store, [arrival(id="one too many")])
        go.set()
        answers(store, futures)
    assert len(store.rows(deliveries)) == 10


def refuses(store: Store) -> bool:
    """Whether one that comes now is turned away; it is given up if not."""

    async def offer() -> bool:
        try:
            store.database.arrive(arrival(id="one more")).cancel()
        except StoreBusyError:
            return True
        return False

    refused: bool = store.run(offer())
    return refused


def test_while_nothing_moves_who_comes_is_soon_turned_away_and_who_waits_is_written(own: Store) -> None:
    with own.busy() as go:
        futures = queued(own, numbered(3))
        own.advance(PATIENCE)
        assert not refuses(own)
        own.advance(0.1)
        assert refuses(own)
        go.set()
        assert {outcome.name for outcome in answers(own, futures)} == {"accepted"}
    assert not refuses(own), "it moves again"


def test_while_commits_are_slow_no_more_are_let_in_than_can_be_written_in_time(own: Store) -> None:
    threads = own.database._writing()._working
    _slow_commits(own, seconds=2.0)
    at_once = GROUP * threads
    with own.busy() as go:
        futures = queued(own, numbered(2 * at_once))
        assert refuses(own), "two groups before it, and its own: six seconds"
        go.set()
        assert {outcome.name for outcome in answers(own, futures)} == {"accepted"}
    with own.busy():
        assert not refuses(own), "quick ones have been seen since"


def test_a_burst_after_an_hour_of_nothing_is_taken(own: Store) -> None:
    assert answers(own, queued(own, numbered(1)))[0].name == "accepted"
    _at_rest(own)
    own.advance(3600)
    futures = queued(own, [arrival(job=f"j{n}", id=f"j{n}") for n in range(3 * GROUP)])
    assert {outcome.name for outcome in answers(own, futures)} == {"accepted"}


def test_a_writer_with_nothing_to_do_takes_what_comes_however_slow_it_was(own: Store) -> None:
    """Else it could never learn that it is quick again."""
    _slow_commits(own, seconds=60.0)
    assert not refuses(own)


def _slow_commits(own: Store, *, seconds: float) -> None:
    """Several, each of a single delivery, so that it is known by then how long one takes; the writer has come to rest after them."""
    for number in range(8):
        with own.commit_held() as (reached, go):
            futures = queued(own, [arrival(job=f"slow_{number}", id=f"slow_{number}")])
            assert reached.wait(10)
            own.advance(seconds)
            go.set()
            assert answers(own, futures)[0].name == "accepted"
        _at_rest(own)


def _at_rest(own: Store) -> None:
    """Wait until its threads, having answered, wait for more."""
    threads = own.database._writing()
    while threads._idle < threads._working:
        time.sleep(0.001)


def _through(store: Store, group: Any, *, arrivals: Sequence[Any], tasks: Sequence[Any] = ()) -> list[Any]:
    """Through one writing thread of its own, all of it waiting before it begins."""

    async def scene() -> list[Any]:
        own: Writer[Any, Any] = Writer(store.database._begin_write, group, threads=1, now=store.clock.monotonic)
        with own._wake:  # it cannot look before we have finished
            futures = [own.arrive(each) for each in arrivals] + [own.submit(each) for each in tasks]
        try:
            return await asyncio.gather(*futures, return_exceptions=True)
        finally:
            await asyncio.get_running_loop().run_in_executor(None, lambda: own.stop(within=30))

    found: list[Any] = store.run(scene())
    return found


# One is not another's trouble.


def _delivery(**changes: Any) -> Arrival:
    sound = Delivery(b"{}", Meaning.ENDED, "poison", "job.completed", None, "poison", int(NOW), "x", "s1:poison", ())
    return Arrival(sound._replace(**changes), NOW)


POISON = {
    "a CHECK": _delivery(meaning=Meaning.UNREADABLE),
    "a NOT NULL": _delivery(body=None),
    "a lone surrogate": _delivery(event="\ud800"),
    "a number too big": _delivery(timestamp=2**70),
    "our own mistake": _delivery(job_id=None),
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
@pytest.mark.parametrize("at", [0, 100, 199])
def test_one_row_that_cannot_be_written_does_not_fail_its_neighbours(store: Store, poison: Arrival, at: int) -> None:
    arrivals = numbered(200)
    arrivals[at] = poison
    with store.busy() as go:
        futures = queued(store, arrivals)
        with store.commits() as commits:
            go.set()
            outcomes = answers(store, futures)
        blockers = store.database._writing()._working
    failed = outcomes.pop(at)
    assert isinstance(failed, Exception)
    assert outcomes == [Outcome("accepted", cued=True)] * 199
    assert len(store.rows(deliveries)) == 199
    assert len(commits) - blockers <= 12, "found by halving, not one by one"


def test_several_poisons_in_one_batch(store: Store) -> None:
    arrivals = [*numbered(3), POISON["a CHECK"], *numbered(5)[3:], POISON["a lone surrogate"]]
    with store.busy() as go:
        futures = queued(store, arrivals)
        go.set()
        outcomes = answers(store, futures)
    assert [isinstance(outcome, Outcome) for outcome in outcomes] == [True] * 3 + [False] + [True] * 2 + [False]


def test_a_flood_of_arrivals_and_other_work_take_turns(store: Store) -> None:
    """Neither starves: between two groups one other transaction has its turn, and the other way round."""
    order: list[str] = []

    def group(_: Transaction, batch: Sequence[int]) -> Sequence[int]:
        order.append("group")
        return batch

    def task(_: Transaction) -> None:
        order.append("task")

    _through(store, group, arrivals=range(GROUP * 4), tasks=[task] * 6)
    assert order == ["group", "task"] * 4 + ["task"] * 2


def test_other_work_does_not_starve_a_single_delivery(store: Store) -> None:
    order: list[str] = []

    def group(_: Transaction, batch: Sequence[int]) -> Sequence[int]:
        order.append("group")
        return batch

    _through(store, group, arrivals=[1], tasks=[lambda _: order.append("task")] * 50)
    assert order.index("group") <= 1


# Errors.


def test_the_databases_errors_are_ours(store: Store) -> None:
    """Its cause in one line, and nothing of what was to be written."""

    def work(tx: Transaction) -> None:
        tx.execute(insert(jobs_table), [{"id": "hunter2", "state": "lost", "source": "track", "tracked_at": NOW}])

    with pytest.raises(StoreError, match="the database did not take it") as caught:
        store.write(work)
    assert (caught.value.status, caught.value.fault) == (503, "database")
    assert "\n" not in str(caught.value)


def test_an_error_tells_nothing_of_what_was_written(store: Store) -> None:
    """Its traceback may go to a log; bodies and secrets may not."""
    secret = "hunter" + "2"  # so that these lines do not show it either
    poison = POISON["a CHECK"].delivery._replace(body=secret.encode(), event=secret)

    with pytest.raises(StoreError) as refused:
        store.run(_arrive(store.database, Arrival(poison, NOW)))
    with pytest.raises(StoreError) as misspelt:
        store.write(lambda tx: tx.execute(text("UPDATE nowhere SET body = :body"), {"body": secret}))
    for error in (refused.value, misspelt.value):
        assert secret not in "".join(traceback.format_exception(error))
    assert "UPDATE nowhere" in "".join(traceback.format_exception(misspelt.value))


@pytest.mark.parametrize("error", [LeaseLostError("gone"), ValueError("a mistake of ours"), KeyError("x")])
def test_other_errors_reach_who_waits_and_undo_the_transaction(store: Store, error: Exception) -> None:
    def work(tx: Transaction) -> None:
        jobs.track(tx, "job_1", source="track")
        raise error

    with pytest.raises(type(error)):
        store.write(work)
    assert store.rows(jobs_table) == []


def test_a_read_that_fails_is_translated_too(store: Store) -> None:
    with pytest.raises(StoreError, match="the database did not take it"):
        store.read(lambda tx: tx.execute(text("SELECT nonsense FROM nowhere")))


# Event loops.


def test_two_event_loops_are_served(store: Store) -> None:
    """An application may run us in one and call us from another."""

    async def once(name: str) -> str:
        return (await store.database.write(lambda tx: jobs.track(tx, name, source="track"))).id

    with asyncio.Runner() as other:
        assert [store.run(once("a")), other.run(once("b")), store.run(once("c"))] == ["a", "b", "c"]


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_loop_that_is_gone_takes_nobody_with_it(own: Store, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arrival is stored; there is just nobody to tell. The writer goes on."""
    gone = asyncio.new_event_loop()

    async def leave() -> None:
        own.database.arrive(arrival())

    with own.busy():
        gone.run_until_complete(leave())
        gone.close()
        if when == "during":  # closed between our look and our call
            monkeypatch.setattr(gone, "is_closed", lambda: False)
    own.write(jobs.track, "after", source="track")
    own.reopen()  # after what was under way
    assert [row["id"] for row in own.rows(jobs_table)] == ["after", "job_1"]


def test_a_database_that_only_reads_says_so(store: Store) -> None:
    with Database.open(store.url, SystemClock(), readonly=True) as readonly:
        for refused in (readonly.write(lambda tx: tx.now), _arrive(readonly)):
            with pytest.raises(StoreError, match="for reading only"):
                store.run(refused)


def test_bodies_of_a_mebibyte_share_a_commit(store: Store) -> None:
    big = [arrival(body(note="x" * 1_000_000, n=n), id=f"{n}") for n in range(16)]
    with store.busy() as go:
        futures = queued(store, big)
        go.set()
        assert {outcome.name for outcome in answers(store, futures)} == {"accepted"}
    assert sum(len(row["body"]) for row in store.rows(deliveries)) > 16_000_000
