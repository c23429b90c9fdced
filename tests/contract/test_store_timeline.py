"""What people are told of a job: everything that happened, in its order, out of what is stored, and never much of it at once."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from databases import NOW, Store
from things import arrival, attempt, body, declare, event, finish, hydrating, outcome, settle, taken, tracked

from receiver.store import arrivals, history, pruning, settlement, timeline
from receiver.telling import duration, tell


def words(store: Store, job_id: str = "job_1") -> list[str]:
    return [tell(moment) for moment in store.read(timeline.read, job_id).moments]


def test_a_job_nobody_knows_has_no_timeline(store: Store) -> None:
    assert store.read(timeline.read, "job_x") == timeline.Timeline([], whole=True)


def test_all_that_happened_is_told_in_its_order(store: Store) -> None:
    declare(store, "index")
    job = hydrating(store)
    store.advance(1)
    store.arrive(arrival())
    store.arrive(arrival())
    store.advance(1)
    store.write(history.note, job.id, "page", generation=1, skip=0, rows=2, bytes=10)
    end, ended = replace(event(), created_at=store.now), replace(outcome(job), settled_at=store.now, ended_at=NOW - 3)
    store.write(settlement.settle, job, ended, end)
    store.advance(3)
    delivery = taken(store)
    assert delivery is not None
    finish(store, replace(attempt(delivery, status=200), at=store.now))
    assert words(store) == [
        "ended at Reader: completed",
        "known from here on: somebody asked to track it",
        "webhook job.completed: accepted; came 1 more time, known as a duplicate",
        "its end was noticed, by a webhook: completed",
        "results 1–2 stored",
        "settled: 2 results, 1 with an error, in 1 request and 2.0 s",
        "told downstream: job.completed",
        "hook index took it (200), within 0.2 s",
    ]


def test_what_happens_again_and_again_is_one_moment(store: Store) -> None:
    tracked(store)
    for completed in (1, 5, 9):
        store.write(history.note, "job_1", "looked", completed=completed, total=10, by="poll")
        store.advance(60)
    store.write(history.note, "job_1", "looked", completed=9, total=10, by="webhook")
    first, second = (m for m in store.read(timeline.read, "job_1").moments if m.what == "looked")
    assert (first.at, first.last_at, first.count, first.detail["completed"]) == (NOW, NOW + 120, 3, 9)
    assert tell(second) == "looked, because of a webhook: still running, 9 of 10"


def test_of_a_job_with_a_long_history_the_newest_is_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST", 5)
    for page in range(12):
        store.write(history.note, "job_1", "page", generation=1, skip=page, rows=1, bytes=1)
    store.write(history.note, "job_2", "parked", reason="it was told so")
    kept = store.read(history.of_job, "job_1")
    assert [entry.detail["skip"] for entry in kept] == [7, 8, 9, 10, 11]
    assert len(store.rows(history.history)) == 6


def test_history_goes_when_it_is_old(store: Store) -> None:
    store.write(history.note, "job_1", "looked", completed=0, total=1, by="poll")
    store.write(history.note, "job_2", "parked", reason="gone")
    store.advance(10)
    store.write(history.note, "job_1", "looked", completed=1, total=1, by="poll")
    part = store.write(pruning.old_history, NOW + 5, None)
    assert part.rows == 1
    assert [row["job_id"] for row in store.rows(history.history)] == ["job_1"]  # it went on until lately


def test_webhooks_are_found_among_those_of_other_jobs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where more came in between than are looked through: near what happened to the job."""
    monkeypatch.setattr(arrivals, "LOOKED_THROUGH", 10)
    number = itertools.count()

    def others(many: int) -> None:
        told = (body("job_other", "job.rumour", number=next(number)) for _ in range(many))
        store.arrive(*(arrival(each, id=None, at=store.now) for each in told))
        store.advance(600)

    others(30)
    job = hydrating(store)
    store.arrive(arrival(body(event="job.started"), id="first", at=store.now))
    others(40)
    store.arrive(arrival(id="second", at=store.now))
    settle(store, job)
    others(30)
    found = store.read(arrivals.of_job, "job_1", [job.tracked_at, job.tracked_at + 600], until=store.now)
    assert [one.delivery_id for one in found.found] == ["first", "second"]
    assert not found.whole
    monkeypatch.setattr(arrivals, "LOOKED_THROUGH", 1000)
    assert store.read(arrivals.of_job, "job_1", [job.tracked_at], until=store.now).whole


def test_deliveries_are_listed_newest_first_and_by_what_became_of_them(store: Store) -> None:
    store.arrive(arrival(id="1"), arrival(b"nonsense", id="2"), arrival(event="credit.low", id="3"))
    assert [one.delivery_id for one in store.read(arrivals.newest)] == ["3", "2", "1"]
    (odd,) = store.read(arrivals.newest, outcome="quarantined")
    assert (odd.delivery_id, odd.reason) == ("2", "not JSON in UTF-8")
    (older,) = store.read(arrivals.newest, before=odd.id)
    assert older.delivery_id == "1"
    shown = store.read(arrivals.get, odd.id)
    assert shown is not None
    assert shown[1] == b"nonsense"
    assert store.read(arrivals.get, 10**9) is None


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 ms"),
        (0.04, "40 ms"),
        (0.41, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (86400, "1 d"),
        (59.7, "1 min"),
    ],
)
def test_durations_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
