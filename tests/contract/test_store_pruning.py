"""Retention: what is old and needed no more goes in small parts; what somebody still needs stays, and what went is missed aloud."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from databases import NOW, Store, transact
from things import arrival, attempt, claimed, declare, finish, hydrating, opened, settle, taken, tracked
from things import event as end

from receiver.core.delivery import Delivery, Meaning
from receiver.core.hydration import Row
from receiver.core.lifecycle import State
from receiver.errors import ResultsPrunedError
from receiver.store import budget, figures, jobs, outbox, pruning, results, settlement, submissions
from receiver.store.inbox import Arrival
from receiver.store.results import Stored
from receiver.store.tables import chunks, deliveries, events, grants, hook_deliveries, outcomes, seen
from receiver.store.tables import jobs as jobs_table
from receiver.store.tables import results as results_table
from receiver.store.tables import submissions as submissions_table

DAY = 86400.0


def prune(store: Store, function: Any, *, before: float | None = None) -> list[int]:
    """All there is, by as many transactions as it takes; the rows deleted in each."""
    rows: list[int] = []
    after = None
    while True:
        part = store.write(function, store.now if before is None else before, after)
        rows.append(part.rows)
        after = part.after
        if after is None:
            return rows
        assert len(rows) < 1000, "it never ends"


def kept(store: Store, table: Any, column: str = "id") -> list[Any]:
    return [row[column] for row in store.rows(table)]


def fill(store: Store, job_id: str, generation: int = 1, *, count: int = 3, parts: int = 1) -> None:
    """Results of a generation, and their chunks."""
    rows = [Stored(n, 0, f"https://a.example/{n}", None, bytes([n % 256]), n * 2, 2) for n in range(count)]
    store.write(results.put_rows, job_id, generation, rows)
    store.write(results.put_chunks, job_id, generation, 0, [(n, results.compress(b"{}" * count)) for n in range(parts)])


def settled(store: Store, job_id: str = "job_1", **size: int) -> jobs.Job:
    job = hydrating(store, job_id)
    fill(store, job_id, **size)
    settle(store, job)
    return job


def slices(store: Store, job_id: str = "job_1", generation: int = 1) -> list[bytes]:
    return store.read(results.read_slices, job_id, generation, skip=0, limit=100)


def take(store: Store) -> None:
    """The next event is delivered."""
    delivery = taken(store)
    assert delivery is not None
    finish(store, attempt(delivery))


# Deliveries and their keys.


def test_deliveries_go_when_they_are_old(store: Store) -> None:
    for n in range(3):
        store.arrive(arrival(job=f"job_{n}", id=f"{n}", at=NOW + n))
    prune(store, pruning.old_deliveries, before=NOW + 2)
    assert kept(store, deliveries, "job_id") == ["job_2"]


def test_deliveries_go_in_parts_of_so_many_rows_and_so_many_bytes(store: Store) -> None:
    """However old they are: nothing that arrives meanwhile waits for more than one of them."""
    small = [{"received_at": NOW, "outcome": "ignored", "body": b"{}"}] * (pruning.ROWS + 1)
    large = [{"received_at": NOW, "outcome": "ignored", "body": b"x" * (1 << 20)}] * 6
    store.put(deliveries, *small, *large)
    rows = prune(store, pruning.old_deliveries, before=NOW + 1)
    assert rows[:-1] == [pruning.ROWS, 4, 3]
    assert kept(store, deliveries) == []


def test_a_delivery_larger_than_a_part_goes_by_itself(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "BYTES", 10)
    store.put(deliveries, *[{"received_at": NOW, "outcome": "ignored", "body": b"x" * 20}] * 2)
    assert prune(store, pruning.old_deliveries, before=NOW + 1) == [1, 1, 0]


def test_a_delivery_that_came_while_the_clock_was_ahead_keeps_no_other(store: Store) -> None:
    rows = [{"received_at": at, "outcome": "ignored", "body": b"{}"} for at in (NOW + 1e6, NOW, NOW + 1e6, NOW)]
    store.put(deliveries, *rows)
    prune(store, pruning.old_deliveries, before=NOW + 1)
    assert kept(store, deliveries, "received_at") == [NOW + 1e6] * 2


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_keys_go_by_the_time_of_their_delivery(store: Store, signed: bool) -> None:
    """And what came later is known as before."""
    tracked(store, "job_1")
    old, new = (arrival(id=name, at=at, signed=signed) for name, at in (("a", NOW), ("b", NOW + DAY)))
    store.arrive(old)
    store.arrive(new)
    rows = prune(store, pruning.signed_keys if signed else pruning.unsigned_keys, before=NOW + DAY - 1)
    assert sum(rows) == 1 + len(old.delivery.id_keys)
    assert set(kept(store, seen, "key")) == {new.delivery.key, *new.delivery.id_keys}
    assert [outcome.name for outcome in store.arrive(new)] == ["duplicate"]


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_keys_go_in_parts(store: Store, signed: bool) -> None:
    meaning, job = Meaning.NOTHING, None
    mark = "s1600000000:" if signed else "u"
    many = [
        Arrival(Delivery(b"", meaning, job, None, None, None, 1_600_000_000 if signed else None, "x", f"{mark}{n:05}", ()), NOW)
        for n in range(2 * pruning.ROWS + 1)
    ]
    store.arrive(*many)
    rows = prune(store, pruning.signed_keys if signed else pruning.unsigned_keys, before=NOW + 1)
    assert [count for count in rows if count] == [pruning.ROWS, pruning.ROWS, 1]


def test_a_key_of_an_old_time_that_came_just_now_stays(store: Store) -> None:
    """Its clock or ours was wrong: it is known for as long as any other."""
    store.arrive(Arrival(arrival(at=NOW - 10 * DAY).delivery, NOW))
    prune(store, pruning.signed_keys, before=NOW - DAY)
    assert len(store.rows(seen)) == 2


def test_requests_whose_minute_is_over_go(store: Store) -> None:
    for _ in range(2):
        granted = store.write(budget.acquire, "probe", rpm=100, share=1.0, lasts=1.0)
        assert isinstance(granted, budget.Granted)
        store.advance(50)
    prune(store, pruning.old_grants)
    assert len(store.rows(grants)) == 1


# Results.


def test_results_go_and_their_outcome_says_so(store: Store) -> None:
    """Who reads them is told what to do, and not that there were none."""
    settled(store)
    prune(store, pruning.old_results, before=NOW + 1)
    assert (store.rows(results_table), store.rows(chunks)) == ([], [])
    row = store.row(outcomes)
    assert (row["results"], row["pruned_at"], row["swept"]) == (2, NOW, True)
    with pytest.raises(ResultsPrunedError, match=r"pruned, .*`receiver track job_1` fetches them again"):
        slices(store)


def test_results_that_are_not_old_stay(store: Store) -> None:
    settled(store)
    prune(store, pruning.old_results, before=NOW)
    assert len(slices(store)) == 3


def test_a_large_job_goes_in_parts_and_is_gone_from_the_first(store: Store) -> None:
    """A reader in the midst of it is never shown a part as if it were the whole."""
    settled(store, count=2500, parts=70)
    part = store.write(pruning.old_results, NOW + 1, None)
    assert part.after is not None
    assert store.rows(results_table) != []
    with pytest.raises(ResultsPrunedError):
        slices(store)
    rows = []
    while part.after is not None:
        part = store.write(pruning.old_results, NOW + 1, part.after)
        rows.append(part.rows)
    assert max(rows) <= 1000
    assert (store.rows(results_table), store.rows(chunks), store.row(outcomes)["swept"]) == ([], [], True)


def test_what_a_crash_left_half_pruned_is_pruned_by_the_next_pass(store: Store) -> None:
    settled(store, count=2500)
    store.write(pruning.old_results, NOW + 1, None)
    prune(store, pruning.old_results, before=NOW + 1)
    assert (store.rows(results_table), store.rows(chunks)) == ([], [])


def test_many_small_jobs_share_a_transaction(store: Store) -> None:
    """A commit for each would take all night."""
    for n in range(30):
        settled(store, f"job_{n:02}")
    assert len(prune(store, pruning.old_results, before=NOW + 1)) <= 4
    assert store.rows(results_table) == []


def test_results_whose_event_is_still_to_be_delivered_stay(store: Store) -> None:
    """A handler reads them. Once it has, they may go."""
    declare(store, "index")
    settled(store)
    prune(store, pruning.old_results, before=NOW + 1)
    assert len(slices(store)) == 3
    take(store)
    prune(store, pruning.old_results, before=NOW + 1)
    assert store.rows(results_table) == []


def test_results_whose_event_is_held_back_stay(store: Store) -> None:
    job = hydrating(store)
    fill(store, "job_1")
    outcome = settlement.Outcome("job_1", 1, "completed", b"{}", 3, 1, True, "poll", 1, None, NOW, NOW)
    store.write(settlement.settle, job, outcome, None, retry=True)
    prune(store, pruning.old_results, before=NOW + 1)
    assert len(slices(store)) == 3


def test_results_of_a_job_that_runs_again_stay(store: Store) -> None:
    settled(store)
    tracked(store)
    job = claimed(store)
    store.write(jobs.finish, job, due_at=NOW + 60, state=State.WATCHING)
    prune(store, pruning.old_results, before=NOW + 1)
    assert len(slices(store)) == 3


def test_results_of_an_open_generation_are_not_pruned(store: Store) -> None:
    hydrating(store)
    fill(store, "job_1")
    prune(store, pruning.old_results, before=NOW + DAY)
    assert len(store.rows(results_table)) == 3


def test_what_must_stay_does_not_keep_what_is_behind_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook nobody runs any more may leave thousands behind: each part looks at a few, and the next goes on after those."""
    monkeypatch.setattr(pruning, "ROWS", 2)
    declare(store, "index")
    for n in range(7):
        settled(store, f"job_{n}")
    for _ in range(2):
        take(store)
    delivered = {row["job_id"] for row in store.rows(hook_deliveries, state="delivered")}
    prune(store, pruning.old_results, before=NOW + 1)
    assert {row["job_id"] for row in store.rows(outcomes) if row["swept"]} == delivered


def test_a_job_that_is_being_written_is_not_pruned(postgres: Store) -> None:
    """The worker may be about to fetch the results again: whoever has the job's row first goes first."""
    settled(postgres)
    with postgres.database._begin_write() as other:
        other.execute(jobs_table.update().values(requests=5))
        prune(postgres, pruning.old_results, before=NOW + 1)
    assert len(slices(postgres)) == 3
    prune(postgres, pruning.old_results, before=NOW + 1)
    assert postgres.rows(results_table) == []


# Fetched again.


def pruned(store: Store) -> None:
    declare(store, "index")
    settled(store)
    take(store)
    prune(store, pruning.old_results, before=NOW + 1)


def test_who_tracks_a_pruned_job_wants_its_results_again(store: Store) -> None:
    pruned(store)
    assert not store.row(jobs_table)["refetch"]
    assert tracked(store).refetch


@pytest.mark.parametrize("by", ["webhook", "stream"])
def test_a_late_cue_for_a_pruned_job_fetches_nothing(store: Store, by: Any) -> None:
    pruned(store)
    store.write(jobs.cue, {"job_1": 0.0}, by=by)
    assert not store.row(jobs_table)["refetch"]


def test_a_job_with_its_results_is_not_fetched_again(store: Store) -> None:
    settled(store)
    assert not tracked(store).refetch


def test_the_wish_ends_with_the_look_unless_it_came_meanwhile(store: Store) -> None:
    pruned(store)
    tracked(store)
    first = claimed(store)
    tracked(store)
    store.write(jobs.finish, first, due_at=None)
    assert store.row(jobs_table)["refetch"]
    store.write(jobs.finish, claimed(store), due_at=None)
    assert not store.row(jobs_table)["refetch"]


def test_fetched_results_are_there_again_and_their_end_is_not_told_again(store: Store) -> None:
    """To be pruned anew when they are old again."""
    pruned(store)
    tracked(store)
    store.advance(DAY)
    job = claimed(store)
    store.write(jobs.save, job, **settlement.reopened(job))
    fill(store, "job_1")
    prune(store, pruning.old_results, before=NOW + DAY)
    outcome = settlement.Outcome("job_1", 1, "completed", b"{}", 3, 0, True, "poll", 1, None, NOW, store.now)
    assert store.write(settlement.restore, job, outcome)
    assert len(slices(store)) == 3
    row = store.row(jobs_table)
    assert (row["state"], row["settled_generation"], row["due_at"]) == ("settled", 1, None)
    assert len(store.rows(events)) == 1
    assert prune(store, pruning.old_results, before=NOW + DAY) == [0]
    prune(store, pruning.old_results, before=NOW + DAY + 1)
    assert store.rows(results_table) == []


def test_an_end_that_is_new_is_not_taken_for_one_that_was_pruned(store: Store) -> None:
    job = hydrating(store)
    outcome = settlement.Outcome("job_1", 1, "completed", b"{}", 3, 0, True, "poll", 1, None, NOW, NOW)
    assert not store.write(settlement.restore, job, outcome)


def test_a_reading_of_a_pruned_generation_can_be_begun_again(store: Store) -> None:
    """What is left of the first is deleted, tombstone or not."""
    settled(store)
    store.write(pruning.old_results, NOW + 1, None)
    fill(store, "job_1")
    while store.write(results.drop_some, "job_1", 1):
        pass
    assert store.read(results.read_rows, "job_1", 1) == []
    fill(store, "job_1")
    assert store.read(results.read_rows, "job_1", 1)[0] == (0, Row("https://a.example/0", b"\x00"))


# Events.


def test_events_go_once_every_hook_has_them(store: Store) -> None:
    declare(store, "index", "other")
    settle(store, hydrating(store))
    take(store)
    prune(store, pruning.old_events, before=NOW + 1)
    assert len(store.rows(hook_deliveries)) == 2
    other = taken(store, "other")
    assert other is not None
    finish(store, attempt(other, "dead", error="no"))
    prune(store, pruning.old_events, before=NOW + 1)
    assert (store.rows(events), store.rows(hook_deliveries)) == ([], [])


def test_an_event_that_nobody_hears_goes(store: Store) -> None:
    settle(store, hydrating(store))
    prune(store, pruning.old_events, before=NOW)
    assert len(store.rows(events)) == 1
    prune(store, pruning.old_events, before=NOW + 1)
    assert store.rows(events) == []


def test_events_go_in_parts_that_what_waits_does_not_stop(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "ROWS", 4)
    declare(store, "index")
    for n in range(7):
        store.write(outbox.publish, end(f"job_{n}"))
    for _ in range(3):
        take(store)
    waiting = {row["event_id"] for row in store.rows(hook_deliveries, state="pending")}
    rows = prune(store, pruning.old_events, before=NOW + 1)
    assert (max(rows), sum(rows)) == (2, 3)
    assert set(kept(store, events)) == waiting


def test_an_event_that_is_replayed_just_now_stays(postgres: Store) -> None:
    """Another replica has its delivery's row, and what it will say of it is not known yet."""
    declare(postgres, "index")
    settle(postgres, hydrating(postgres))
    take(postgres)
    with ThreadPoolExecutor(1) as thread:
        with postgres.database._begin_write() as other:
            other.execute(hook_deliveries.update().values(state="pending", due_at=NOW, delivered_at=None))
            pruning_it = thread.submit(transact, postgres.database, lambda tx: pruning.old_events(tx, NOW + 1, None))
            _until_somebody_waits_for_a_lock(postgres)
        assert pruning_it.result(30).rows == 0
    assert len(postgres.rows(events)) == len(postgres.rows(hook_deliveries)) == 1


def _until_somebody_waits_for_a_lock(postgres: Store) -> None:
    assert postgres._side is not None
    waiting = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')"
    while not postgres._side.execute(waiting).fetchone()[0]:  # type: ignore[index]  # there is a row
        pass


def test_a_generation_whose_event_was_pruned_gives_no_other(store: Store) -> None:
    """The tombstone knows it."""
    settle(store, hydrating(store))
    prune(store, pruning.old_results, before=NOW + 1)
    prune(store, pruning.old_events, before=NOW + 1)
    store.arrive(arrival())
    job = claimed(store)
    assert (job.state, job.mark, job.settled_generation, job.refetch) == (State.SETTLED, "completed 1", 1, False)


# Submissions.


def submitted(store: Store, name: str, job_id: str | None) -> None:
    submission = store.write(submissions.add, name, key=name, body="{}", lease=60, owner="w")
    if job_id is not None:
        store.write(submissions.sent, submission, job_id=job_id)


def test_submissions_go_once_answered_and_their_job_needs_them_no_more(store: Store) -> None:
    """Which URLs were asked for tells whether all were read: wanted for as long as somebody reads."""
    settled(store)
    for name, job_id in (("done", "job_1"), ("running", "job_2"), ("unknown", "job_3"), ("waiting", None)):
        submitted(store, name, job_id)
    tracked(store, "job_2")
    prune(store, pruning.old_submissions, before=NOW + 1)
    assert kept(store, submissions_table) == ["done", "running", "waiting"]
    prune(store, pruning.old_results, before=NOW + 1)
    prune(store, pruning.old_submissions, before=NOW + 1)
    assert kept(store, submissions_table) == ["running", "waiting"]


# Counts.


def test_what_was_pruned_still_counts(store: Store) -> None:
    """A counter that falls is taken for a restart by who reads it, and its rate is nonsense."""
    declare(store, "index")
    settled(store)
    store.advance(3)
    take(store)
    before = store.read(figures.read)
    for function in (pruning.old_results, pruning.old_events, pruning.old_deliveries):
        prune(store, function, before=NOW + DAY)
    after = store.read(figures.read)
    assert replace(after, files={}) == replace(before, files={})
    assert (after.outcomes, after.hook_deliveries["delivered"]) == ({("completed", "webhook"): 1}, 1)
    assert (after.delivered.count, after.delivered.within[:3], after.delivered.total) == (1, [0, 0, 1], 3.0)


def test_a_generation_that_opens_after_pruning_is_told(store: Store) -> None:
    """A retry of an old job: its new end is an end like any other."""
    settle(store, hydrating(store))
    prune(store, pruning.old_results, before=NOW + 1)
    tracked(store)
    settle(store, opened(store, claimed(store), 2))
    assert len(store.rows(events)) == 2
