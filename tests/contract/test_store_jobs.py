"""Jobs: claimed in order by one worker at a time, written only by who holds the newest fence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from databases import NOW, Store, in_threads, transact
from things import arrival, claimed, hydrating, opened, settle, tracked

from receiver.core.lifecycle import State
from receiver.core.schedule import RECENT, Outlook
from receiver.errors import LeaseLostError
from receiver.store import jobs
from receiver.store.tables import jobs as jobs_table
from receiver.store.transaction import Transaction

# Claiming.


def test_nothing_due_nothing_claimed(store: Store) -> None:
    tracked(store, wait=1)
    assert store.write(jobs.claim, owner="w", lease=60) is None


def test_a_claim_gives_the_whole_job_leased(store: Store) -> None:
    tracked(store)
    job = claimed(store, owner="w", lease=60)
    assert (job.id, job.state, job.lease_owner, job.lease_until, job.fence) == ("job_1", State.WATCHING, "w", NOW + 60, 1)
    assert job == store.read(jobs.get, "job_1")


def test_the_longest_due_goes_first(store: Store) -> None:
    for job_id, wait in {"second": 20, "third": 30, "first": 10, "not yet": 50}.items():
        tracked(store, job_id, wait=wait)
    store.advance(40)
    assert [claimed(store).id for _ in range(3)] == ["first", "second", "third"]
    assert store.write(jobs.claim, owner="w", lease=60) is None


def test_a_cued_job_goes_before_those_of_the_schedule(store: Store) -> None:
    """Somebody says that it has ended; of several, the one cued first."""
    tracked(store, "scheduled")
    store.advance(5)
    store.arrive(arrival(job="cued", id="a"))
    store.advance(5)
    store.arrive(arrival(job="cued-later", id="b"))
    assert [claimed(store).id for _ in range(3)] == ["cued", "cued-later", "scheduled"]


def test_a_cued_job_waits_until_it_is_due(store: Store) -> None:
    """Put back with its cue, it lets others go first until then."""
    store.arrive(arrival(job="cued"))
    job = claimed(store)
    store.write(lambda tx: jobs.finish(tx, job, due_at=tx.now + 30, keep_cue=True))
    tracked(store, "scheduled")
    assert claimed(store).id == "scheduled"
    store.advance(30)
    assert claimed(store).id == "cued"


def test_a_leased_job_is_nobody_elses_until_its_lease_runs_out(store: Store) -> None:
    tracked(store)
    claimed(store, lease=60)
    store.advance(59.5)
    assert store.write(jobs.claim, owner="b", lease=60) is None
    store.advance(0.5)
    job = claimed(store, owner="b")
    assert (job.lease_owner, job.fence) == ("b", 2)


def test_a_lease_that_is_held_goes_on(store: Store) -> None:
    tracked(store)
    job = claimed(store, lease=60)
    store.advance(40)
    store.write(jobs.hold, job, lease=60)
    store.advance(40)
    assert store.write(jobs.claim, owner="b", lease=60) is None


def test_two_claimers_never_get_the_same_job(store: Store) -> None:
    """Eight workers (on PostgreSQL over four replicas) take forty jobs at the same time, each exactly once."""
    for n in range(40):
        tracked(store, f"job_{n}")
    replicas = [store.database] + [store.open() for _ in range(3 if store.postgresql else 0)]

    def worker(number: int) -> Callable[[], list[str]]:
        database = replicas[number % len(replicas)]

        def work() -> list[str]:
            got = []
            while job := transact(database, lambda tx: jobs.claim(tx, owner=f"w{number}", lease=60)):
                got.append(job.id)
            return got

        return work

    taken = [job_id for got in in_threads([worker(n) for n in range(8)]) for job_id in got]
    assert Counter(taken) == Counter(f"job_{n}" for n in range(40))


# Giving back.


def test_what_is_given_back_can_be_claimed_at_once_with_its_cue(store: Store) -> None:
    """Nothing of it is answered, so it is claimed as it was before."""
    store.arrive(arrival(job="job_1"))
    store.write(jobs.give_back, claimed(store, owner="a"))
    assert store.read(jobs.next_due) == 0
    again = claimed(store, owner="b")
    assert (again.lease_owner, again.cued_by, again.fence) == ("b", "webhook", 2)


def test_what_got_on_keeps_its_place_and_what_did_not_goes_behind_the_rest(store: Store) -> None:
    """Else one whose answers take longer than a pass would keep all others from their turn, in each of them."""
    tracked(store, "slow")
    store.advance(1)
    tracked(store, "other")
    store.advance(1)
    slow = claimed(store)
    store.write(jobs.give_back, slow)
    assert (slow.id, claimed(store).id) == ("slow", "other")
    slow = claimed(store)
    store.advance(1)
    tracked(store, "third")
    store.advance(1)
    store.write(jobs.save, slow, requests=slow.requests + 1)
    store.write(jobs.give_back, slow)
    assert claimed(store).id == "slow"


# Fencing.

WRITES: dict[str, Callable[[Transaction, jobs.Job], None]] = {
    "hold": lambda tx, job: jobs.hold(tx, job, lease=60),
    "save": lambda tx, job: jobs.save(tx, job, trouble="written by a stale worker"),
    "finish": lambda tx, job: jobs.finish(tx, job, due_at=tx.now + 1, trouble="written by a stale worker"),
    "give back": jobs.give_back,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_stale_worker_writes_nothing(store: Store, write: Callable[[Transaction, jobs.Job], None]) -> None:
    """Its lease ran out and somebody else has the job: what it does raises, and changes nothing."""
    tracked(store)
    stale = claimed(store, owner="same name", lease=60)
    store.advance(61)
    claimed(store, owner="same name", lease=60)
    before = store.row(jobs_table)
    with pytest.raises(LeaseLostError):
        store.write(write, stale)
    assert store.row(jobs_table) == before


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_late_write_cannot_take_a_finished_lease_back(store: Store, write: Callable[[Transaction, jobs.Job], None]) -> None:
    """A renewal, or a second finish, that comes after the job was given back."""
    tracked(store)
    job = claimed(store)
    store.write(lambda tx: jobs.finish(tx, job, due_at=tx.now + 10))
    before = store.row(jobs_table)
    with pytest.raises(LeaseLostError):
        store.write(write, job)
    assert store.row(jobs_table) == before


def test_what_stands_beside_a_lost_lease_is_rolled_back(store: Store) -> None:
    """Everything in the transaction happens only if the lease is ours."""
    tracked(store)
    stale = claimed(store, lease=60)
    store.advance(61)
    claimed(store)

    def work(tx: Transaction) -> None:
        jobs.track(tx, "another", source="track")
        jobs.hold(tx, stale, lease=60)

    with pytest.raises(LeaseLostError):
        store.write(work)
    assert [row["id"] for row in store.rows(jobs_table)] == ["job_1"]


def test_a_lease_that_ran_out_is_still_good_if_nobody_took_the_job(store: Store) -> None:
    tracked(store)
    job = claimed(store, lease=60)
    store.advance(600)
    store.write(lambda tx: jobs.finish(tx, job, due_at=tx.now + 10))
    assert store.row(jobs_table)["due_at"] == NOW + 610


def test_a_worker_of_before_the_restart_is_stale(store: Store) -> None:
    """SQLite has one process: its start frees what the last one held. PostgreSQL's other replicas keep their leases."""
    tracked(store)
    job = claimed(store, lease=60)
    store.reopen()
    if store.postgresql:
        assert store.write(jobs.claim, owner="b", lease=60) is None
    else:
        claimed(store, owner="b")
        with pytest.raises(LeaseLostError):
            store.write(jobs.save, job, trouble=None)


# Finishing.


def test_finish_writes_gives_back_and_sets_when_to_look(store: Store) -> None:
    store.arrive(arrival())
    job = claimed(store)
    store.write(lambda tx: jobs.finish(tx, job, due_at=tx.now + 10, completed=3, total=7))
    row = store.row(jobs_table)
    assert (row["completed"], row["total"], row["due_at"]) == (3, 7, NOW + 10)
    assert (row["lease_owner"], row["lease_until"], row["cued_by"]) == (None, None, None)


def test_finish_keeps_a_cue_that_is_not_answered(store: Store) -> None:
    """`keep_cue`: it is looked at as cued when it falls due again, no sooner."""
    store.arrive(arrival())
    job = claimed(store)
    store.write(lambda tx: jobs.finish(tx, job, due_at=tx.now + 10, keep_cue=True))
    row = store.row(jobs_table)
    assert (row["due_at"], row["cued_by"]) == (NOW + 10, "webhook")


@pytest.mark.parametrize("keep_cue", [False, True])
def test_a_cue_is_answered_once(store: Store, keep_cue: bool) -> None:
    """One that came during the lease makes the job due at once; the look that it asked for answers it."""
    store.arrive(arrival(id="a"))
    job = claimed(store)
    store.arrive(arrival(id="b", content=b'{"jobId": "job_1", "n": 2}'))
    store.write(lambda tx: jobs.finish(tx, job, due_at=tx.now + 10, keep_cue=keep_cue))
    again = claimed(store)
    assert again.cued_by == "webhook"
    store.write(lambda tx: jobs.finish(tx, again, due_at=tx.now + 10))
    row = store.row(jobs_table)
    assert (row["due_at"], row["cued_by"]) == (NOW + 10, None)


def test_a_track_during_a_lease_survives_finish(store: Store) -> None:
    tracked(store)
    job = claimed(store)
    tracked(store)
    store.write(lambda tx: jobs.finish(tx, job, due_at=tx.now + 600))
    assert store.row(jobs_table)["due_at"] == NOW


# Tracking.


def test_a_job_is_tracked_once(store: Store) -> None:
    """What is known of it stays; it is looked at by then at the latest."""
    first = tracked(store, wait=600)
    store.advance(1)
    again = store.write(jobs.track, "job_1", source="submit", submission_id="sub_1", total=5, wait=60)
    assert (first.source, again.source, again.tracked_at, again.due_at) == ("track", "track", NOW, NOW + 61)
    assert again.submission_id == "sub_1"
    later = store.write(jobs.track, "job_1", source="submit", submission_id="sub_2", wait=900)
    assert (later.submission_id, later.due_at) == ("sub_1", NOW + 61)


def test_a_submitted_job_that_its_webhook_overtook_knows_its_submission(store: Store) -> None:
    """The webhook may come before the answer to the request that made the job; the submitted URLs are looked up by it."""
    store.arrive(arrival(event="job.started"))
    job = store.write(jobs.track, "job_1", source="submit", submission_id="sub_1", total=5, wait=5)
    assert job.submission_id == "sub_1"


def test_tracking_takes_a_parked_job_out(store: Store) -> None:
    tracked(store)
    job = claimed(store)
    store.write(jobs.finish, job, due_at=None, state=State.PARKED)
    assert store.write(jobs.claim, owner="w", lease=60) is None
    assert tracked(store).state is State.WATCHING
    assert claimed(store).state is State.WATCHING


def test_a_cue_that_comes_while_a_job_is_given_up_keeps_it_from_being_parked(store: Store) -> None:
    tracked(store)
    job = claimed(store)
    store.arrive(arrival())
    store.write(jobs.finish, job, due_at=None, state=State.PARKED)
    again = claimed(store)
    assert (again.state, again.cued_by) == (State.WATCHING, "webhook")


def test_a_job_parked_midway_goes_on_with_its_reading(store: Store) -> None:
    job = hydrating(store)
    store.write(jobs.finish, job, due_at=None, state=State.PARKED)
    assert tracked(store).state is State.HYDRATING


# What the schedule goes by.


def ended(store: Store, job_id: str, *, by: str = "webhook", status: str = "completed", after: float = 100.0) -> None:
    """A job that took so many seconds, settled."""
    tracked(store, job_id)
    store.advance(after)
    job = opened(store, claimed(store), 1)
    store.write(jobs.save, job, discovered_by=by, told=by == "webhook", status=status)
    settle(store, job)


def seen(store: Store, *, stream_up: bool = False) -> Outlook:
    return store.read(jobs.outlook, budget=48.0, stream_up=stream_up)


def test_of_an_empty_store_the_outlook_is_empty(store: Store) -> None:
    assert seen(store) == Outlook(watched=0, ended=0, told=0, lasted=0.0, budget=48.0)


def test_what_the_stream_told_counts_while_it_is_up(store: Store) -> None:
    ended(store, "heard", by="stream")
    ended(store, "polled", by="poll")
    assert (seen(store).told, seen(store, stream_up=True).told) == (0, 1)


def test_the_outlook_counts_the_watched_and_the_last_ends(store: Store) -> None:
    """Neither cancelled jobs, for which Reader sends no webhook, nor those that only a webhook made known."""
    ended(store, "told", after=50)
    ended(store, "polled", by="poll", after=70)
    ended(store, "cancelled", by="poll", status="cancelled", after=900)
    store.arrive(arrival(job="known-by-webhook"))
    settle(store, opened(store, claimed(store), 1))
    hydrating(store, "being-read")
    tracked(store, "running")
    tracked(store, "another")
    outlook = seen(store)
    assert (outlook.watched, outlook.ended, outlook.told, outlook.lasted) == (2, 3, 1, 70.0)


def test_only_the_last_ends_count_and_only_for_a_day(store: Store) -> None:
    ended(store, "slow", by="poll", after=5000)
    for n in range(RECENT):
        ended(store, f"job_{n}", after=10)
    assert (seen(store).ended, seen(store).told, seen(store).lasted) == (RECENT, RECENT, 10.0)
    store.advance(86_401)
    assert seen(store).ended == 0


# Looking ahead.


def test_next_due_is_the_soonest_that_nobody_works_on(store: Store) -> None:
    due = [store.read(jobs.next_due)]
    for job_id, wait in {"a": 10, "b": 5}.items():
        tracked(store, job_id, wait=wait)
    due.append(store.read(jobs.next_due))
    store.advance(7)
    due.append(store.read(jobs.next_due))
    claimed(store, lease=60)
    due.append(store.read(jobs.next_due))
    store.advance(60)
    due.append(store.read(jobs.next_due))
    assert due == [None, 5.0, -2.0, 3.0, -62.0]


def test_next_due_is_the_end_of_a_lease_if_nothing_falls_due_before(store: Store) -> None:
    """Who holds it may be dead: nobody will tell of the job then, and it shall not wait for a round."""
    tracked(store, "a")
    tracked(store, "b", wait=90)
    claimed(store, lease=60)
    assert store.read(jobs.next_due) == 60.0
    store.advance(61)
    assert store.read(jobs.next_due) == -61.0, "overdue for as long as it was due"


def test_a_parked_job_never_falls_due(store: Store) -> None:
    tracked(store)
    job = claimed(store)
    store.write(jobs.finish, job, due_at=None, state=State.PARKED)
    assert store.read(jobs.next_due) is None


# Reading.


def test_the_newest_job_is_listed_first(store: Store) -> None:
    for job_id in ("c", "a", "b"):
        tracked(store, job_id)
    store.advance(1)
    tracked(store, "d")
    listed, total = store.read(jobs.listing)
    assert ([job.id for job in listed], total) == (["d", "a", "b", "c"], 4)
    listed, total = store.read(jobs.listing, skip=1, limit=2)
    assert ([job.id for job in listed], total) == (["a", "b"], 4)


def test_jobs_are_listed_by_readers_status_or_by_state(store: Store) -> None:
    settle(store, hydrating(store, "done"))
    tracked(store, "new")

    def ids(status: str) -> tuple[list[str], int]:
        listed, total = store.read(jobs.listing, status=status)
        return [job.id for job in listed], total

    assert ids("completed") == ids("settled") == (["done"], 1)
    assert ids("unknown") == ids("watching") == (["new"], 1)
    assert ids("failed") == ids("\x00") == ids("\ud800") == ([], 0)


def test_which_jobs_are_unknown(store: Store) -> None:
    tracked(store, "a")
    assert store.read(jobs.unknown, ["a", "b", "c", "b"]) == {"b", "c"}
    assert store.read(jobs.unknown, []) == set()
    assert store.read(jobs.get, "b") is None


# What Reader says is kept whatever it is.


@pytest.mark.parametrize("text", ["a\x00b", "a\ud800b", "é" * 10_000])
def test_a_text_that_one_database_could_not_hold_does_not_stop_the_job(store: Store, text: str) -> None:
    tracked(store)
    job = claimed(store)
    store.write(lambda tx: jobs.finish(tx, job, due_at=tx.now, trouble=text, status=text))
    row = store.row(jobs_table)
    shown = text.replace("\x00", "\ufffd").replace("\ud800", "?")
    assert (row["trouble"], row["status"]) == (shown, shown)


def test_numbers_that_reader_makes_up_do_not_stop_the_job(store: Store) -> None:
    tracked(store)
    job = claimed(store)
    store.write(lambda tx: jobs.finish(tx, job, due_at=tx.now, completed=2**53, total=2**53, result_total=2**53))
    row = store.row(jobs_table)
    assert (row["completed"], row["total"], row["result_total"]) == (2**53,) * 3


def test_a_generation_goes_on_where_it_was(store: Store) -> None:
    """What a turn has saved is there for the next one."""
    job = hydrating(store)
    store.write(jobs.save, job, requests=1, result_total=250)
    store.advance(61)
    again = claimed(store)
    assert (again.state, again.generation, again.requests, again.result_total) == (State.HYDRATING, 1, 1, 250)
    assert opened(store, again, 1).lease_owner == again.lease_owner


# The sweep.


def test_a_sweep_makes_due_what_is_under_way_and_nothing_else(store: Store) -> None:
    store.write(jobs.cue, {"job_watched": None}, by="webhook")
    store.write(jobs.track, "job_parked", source="track")
    parked = store.write(jobs.claim, owner="a", lease=60.0)
    assert parked is not None
    store.write(jobs.finish, parked, due_at=None, state=State.PARKED)
    assert store.write(jobs.next_due) > 0
    assert store.write(jobs.sweep) == 1
    swept = store.write(jobs.claim, owner="a", lease=60.0)
    assert swept is not None
    assert swept.id == "job_watched"
    assert store.write(jobs.claim, owner="a", lease=60.0) is None
