"""The figures, counted alike on both databases."""

from __future__ import annotations

from databases import Store
from things import claimed, opened, settle, tracked

from receiver.store import figures, jobs


def test_of_an_empty_store_all_figures_are_nothing(store: Store) -> None:
    told = store.read(figures.read)
    assert set(told.jobs.values()) == {0}
    assert (told.outcomes, told.missed, told.noticed.count, told.in_use, told.paused) == ({}, 0, 0, 0, [])


def test_ends_are_counted_by_status_and_discoverer_and_by_whether_a_webhook_came(store: Store) -> None:
    for job_id, by in (("job_1", "webhook"), ("job_2", "poll"), ("job_3", "poll")):
        tracked(store, job_id)
        job = opened(store, claimed(store), 1)
        store.write(jobs.save, job, discovered_by=by, told=by == "webhook", status="completed")
        settle(store, job)
    tracked(store, "job_4")
    told = store.read(figures.read)
    assert (told.jobs["settled"], told.jobs["watching"], sum(told.outcomes.values()), told.missed) == (3, 1, 3, 2)
    assert told.settled.count == told.settled.within[-1] == 3
