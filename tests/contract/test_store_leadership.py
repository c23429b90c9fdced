"""One process does a thing for all: as long as it renews its lease, and not longer."""

from __future__ import annotations

from collections.abc import Callable

from databases import Store, in_threads, transact

from receiver import views
from receiver.store import jobs, leadership, schema
from receiver.store.leadership import led


def lead(store: Store, owner: str, seconds: float = 30.0) -> bool:
    return store.write(leadership.lead, "stream", owner=owner, seconds=seconds)


def test_one_leads_and_the_other_does_not(store: Store) -> None:
    assert lead(store, "a")
    assert not lead(store, "b")
    assert lead(store, "a"), "it renews"
    assert store.write(led, "stream")
    assert not store.write(led, "another thing")


def test_a_lead_that_is_not_renewed_falls_to_the_next(store: Store) -> None:
    assert lead(store, "a", seconds=-1.0)
    assert not store.write(led, "stream")
    assert lead(store, "b")
    assert not lead(store, "a")


def test_only_who_leads_resigns(store: Store) -> None:
    lead(store, "a")
    store.write(leadership.resign, "stream", owner="b")
    assert not lead(store, "b")
    store.write(leadership.resign, "stream", owner="a")
    assert lead(store, "b")


def test_of_many_that_want_it_at_once_one_leads(store: Store) -> None:
    def worker(number: int) -> Callable[[], bool]:
        return lambda: transact(store.database, lambda tx: leadership.lead(tx, "stream", owner=f"owner-{number}", seconds=30.0))

    assert in_threads([worker(n) for n in range(8)]).count(True) == 1


def test_the_lead_of_a_process_that_is_gone_is_cleared_with_its_other_leases(store: Store) -> None:
    lead(store, "a")
    store.write(schema.clear_leases)
    assert lead(store, "b")


# What the stream tells


def overheard(store: Store, job: str = "job_1", *, ended: bool = True) -> bool:
    return store.write(jobs.overheard, job, ended=ended)


def test_a_job_never_heard_of_is_watched_from_its_first_sign_of_life(store: Store) -> None:
    assert overheard(store, ended=False)
    job = store.write(jobs.get, "job_1")
    assert job is not None
    assert (job.state, job.source, job.cued_by) == ("watching", "stream", None)
    assert not overheard(store, ended=False), "one is enough"


def test_an_end_makes_it_due_soon_and_once(store: Store) -> None:
    overheard(store, ended=False)
    assert overheard(store)
    assert not overheard(store)
    due = store.write(jobs.next_due)
    assert due is not None
    assert 0 < due <= 1.0


def test_a_webhook_after_the_stream_hurries_it_and_has_the_merit(store: Store) -> None:
    overheard(store)
    store.write(jobs.cue, {"job_1": 0.0}, by="webhook")
    job = store.write(jobs.claim, owner="a", lease=60.0)
    assert job is not None
    assert job.cued_by == "webhook"


def test_an_end_that_was_just_seen_is_not_looked_at_again(store: Store) -> None:
    store.write(jobs.cue, {"job_1": 0.0}, by="webhook")
    job = store.write(jobs.claim, owner="a", lease=60.0)
    assert job is not None
    assert not overheard(store), "it is being looked at for its webhook"


def test_how_far_a_job_is_shows_without_a_look_at_it(store: Store) -> None:
    overheard(store, ended=False)
    assert not store.write(jobs.overheard, "job_1", ended=False, completed=30)
    assert not store.write(jobs.overheard, "job_1", ended=False, completed=20)
    assert store.read(views.find, "job_1").completed == 30
    assert store.read(jobs.next_due) > 0, "it is no reason to look"
