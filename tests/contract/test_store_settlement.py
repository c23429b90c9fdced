"""Settling: the outcome, the switch to its results and the event are one step, taken once."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from databases import NOW, Store
from things import arrival, claimed, declare, event, hydrating, opened, outcome, settle, tracked

from receiver.errors import LeaseLostError, StoreError
from receiver.store import jobs, outbox, settlement
from receiver.store.tables import events, hook_deliveries, outcomes
from receiver.store.tables import jobs as jobs_table


def everything(store: Store) -> dict[str, list[dict[str, Any]]]:
    return {table.name: store.rows(table) for table in (jobs_table, outcomes, events, hook_deliveries)}


def test_settling_writes_all_of_it(store: Store) -> None:
    declare(store, "index", "notify")
    job = hydrating(store)
    settle(store, job)
    assert store.read(settlement.get_outcome, "job_1", 1) == outcome(job)
    row = store.row(jobs_table)
    assert (row["state"], row["settled_generation"], row["lease_owner"]) == ("settled", 1, None)
    assert row["due_at"] == NOW + 3600, "the first late look"
    assert [(row["id"], row["type"]) for row in store.rows(events)] == [("evt_job_1_1", "job.completed")]
    waiting = [(row["event_id"], row["hook"], row["state"], row["due_at"]) for row in store.rows(hook_deliveries)]
    assert waiting == [("evt_job_1_1", hook, "pending", NOW) for hook in ("index", "notify")]


def test_there_is_no_outcome_before(store: Store) -> None:
    hydrating(store)
    assert store.read(settlement.get_outcome, "job_1", 1) is None


def test_a_stale_worker_settles_nothing(store: Store) -> None:
    declare(store, "index")
    stale = hydrating(store)
    store.advance(61)
    claimed(store)
    before = everything(store)
    with pytest.raises(LeaseLostError):
        settle(store, stale)
    assert everything(store) == before


def test_a_worker_that_gave_its_lease_back_settles_nothing(store: Store) -> None:
    job = hydrating(store)
    settle(store, job)
    before = everything(store)
    with pytest.raises(LeaseLostError):
        settle(store, job)
    assert everything(store) == before


@pytest.mark.parametrize("kept", ["outcome and event", "event only", "outcome only"])
def test_a_generation_settles_once(store: Store, kept: str) -> None:
    """Whoever holds the lease, and whichever of the two rows is there from before: a constraint refuses, nothing changes."""
    declare(store, "index")
    settle(store, hydrating(store))
    if kept == "event only":
        store.write(lambda tx: tx.execute(outcomes.delete()))
    elif kept == "outcome only":
        store.write(lambda tx: [tx.execute(table.delete()) for table in (events, hook_deliveries)])
    store.advance(3600)
    job = claimed(store)
    before = everything(store)
    with pytest.raises(StoreError):
        store.write(settlement.settle, job, outcome(job), replace(event(), id="evt_another"))
    assert everything(store) == before


def test_two_events_with_one_id_are_refused(store: Store) -> None:
    settle(store, hydrating(store))
    before = everything(store)
    with pytest.raises(StoreError):
        store.write(outbox.publish, replace(event(), generation=2))
    assert everything(store) == before


def test_a_retried_job_settles_again(store: Store) -> None:
    """The next generation has its own outcome and event; the first one's stay."""
    declare(store, "index")
    settle(store, hydrating(store))
    store.advance(3600)
    settle(store, opened(store, claimed(store), 2))
    assert [row["generation"] for row in store.rows(outcomes)] == [1, 2]
    assert [row["generation"] for row in store.rows(events)] == [1, 2]
    assert store.row(jobs_table)["settled_generation"] == 2


def test_a_generation_behind_the_newest_does_not_settle(store: Store) -> None:
    job = hydrating(store, generation=2)
    before = everything(store)
    with pytest.raises(StoreError):
        settle(store, replace(job, generation=1))
    assert everything(store) == before


def test_a_cue_during_the_last_page_survives_settling(store: Store) -> None:
    """It may tell of a retry: the job is looked at at once, not in an hour."""
    job = hydrating(store)
    store.arrive(arrival())
    settle(store, job)
    row = store.row(jobs_table)
    assert (row["state"], row["due_at"], row["cued_by"]) == ("settled", NOW, "webhook")


# Who gets an event.


def test_hooks_get_the_types_they_asked_for(store: Store) -> None:
    declare(store, "all")
    declare(store, "failures", types=("job.failed",))
    for job_id, kind in {"a": "job.completed", "b": "job.failed", "c": "job.cancelled"}.items():
        store.write(outbox.publish, event(job_id, type=kind))
    got = [(row["event_id"], row["hook"]) for row in store.rows(hook_deliveries)]
    assert got == [("evt_a_1", "all"), ("evt_b_1", "all"), ("evt_b_1", "failures"), ("evt_c_1", "all")]


def test_an_event_that_nobody_wants_is_kept(store: Store) -> None:
    """A replay may bring it to a hook that is declared later."""
    settle(store, hydrating(store))
    assert len(store.rows(events)) == 1
    assert store.rows(hook_deliveries) == []


def _http(name: str, *, url: str = "https://example.com/hook") -> outbox.Declaration:
    return outbox.Declaration(name, "http", url, ["job.completed"])


def test_a_hook_that_is_declared_no_more_is_retired(store: Store) -> None:
    """HTTP hooks are all in one list; a Python handler may run in another process."""
    declare(store, "handler")
    store.write(outbox.declare, [_http("a"), _http("b")], all_configured=True)
    store.write(outbox.declare, [_http("b")], all_configured=True)
    store.write(outbox.publish, event())
    assert [row["hook"] for row in store.rows(hook_deliveries)] == ["b", "handler"]
    store.write(outbox.declare, [], all_configured=True)
    store.write(outbox.publish, event(generation=2))
    assert [row["hook"] for row in store.rows(hook_deliveries, generation=2)] == ["handler"]


def test_a_hook_that_is_declared_again_is_back_as_declared(store: Store) -> None:
    store.write(outbox.declare, [_http("a")], all_configured=True)
    store.write(outbox.declare, [], all_configured=True)
    again = outbox.Declaration("a", "http", "https://example.com/moved", ["job.failed"])
    store.write(outbox.declare, [again], all_configured=True)
    store.write(outbox.publish, event())
    store.write(outbox.publish, event(generation=2, type="job.failed"))
    assert [row["generation"] for row in store.rows(hook_deliveries)] == [2]


def test_a_process_that_knows_only_handlers_retires_nothing(store: Store) -> None:
    store.write(outbox.declare, [_http("a")], all_configured=True)
    declare(store, "handler")
    store.write(outbox.publish, event())
    assert [row["hook"] for row in store.rows(hook_deliveries)] == ["a", "handler"]


def test_the_payload_is_kept_as_it_was_written(store: Store) -> None:
    payload = json.dumps({"text": "\x00 \ud800 é 💩"})
    store.write(outbox.publish, replace(event(), payload=payload))
    assert store.row(events)["payload"] == payload


def test_a_tracked_job_alone_has_no_event(store: Store) -> None:
    tracked(store)
    assert everything(store)["events"] == []


# Generations that are to be retried.


def test_one_to_be_retried_is_due_at_once_and_its_event_may_be_held_back(store: Store) -> None:
    declare(store, "index")
    job = hydrating(store)
    store.write(settlement.settle, job, outcome(job), None, retry=True)
    row = store.row(jobs_table)
    assert (row["state"], row["retry"], row["retries"], row["held"], row["due_at"]) == ("settled", "due", 1, True, NOW)
    assert store.rows(events) == store.rows(hook_deliveries) == []
    assert store.read(settlement.get_outcome, "job_1", 1) == outcome(job)


def test_one_to_be_retried_may_be_told_at_once(store: Store) -> None:
    job = hydrating(store)
    store.write(settlement.settle, job, outcome(job), event(), retry=True)
    assert (store.row(jobs_table)["retry"], store.row(jobs_table)["held"]) == ("due", False)
    assert len(store.rows(events)) == 1


def test_nothing_is_held_back_without_a_retry_to_come(store: Store) -> None:
    job = hydrating(store)
    before = everything(store)
    with pytest.raises(StoreError, match="held_is_due"):
        store.write(settlement.settle, job, outcome(job), None)
    assert everything(store) == before


def test_a_job_with_an_event_held_back_is_not_parked(store: Store) -> None:
    """It would be lost: nobody looks at a parked job. Whoever parks it publishes the event."""
    job = hydrating(store)
    store.write(settlement.settle, job, outcome(job), None, retry=True)
    with pytest.raises(StoreError, match="held_is_due"):
        store.write(jobs.finish, claimed(store), due_at=None, state="parked", retry=None)


def test_what_is_held_back_is_overtaken_by_the_next_generation(store: Store) -> None:
    job = hydrating(store)
    store.write(settlement.settle, job, outcome(job), None, retry=True)
    job = claimed(store)
    store.write(jobs.save, job, retry=None, state="watching")
    settle(store, opened(store, job, 2))
    row = store.row(jobs_table)
    assert (row["held"], row["retry"], row["retries"]) == (False, None, 1)
    assert [row["generation"] for row in store.rows(events)] == [2]
    first = store.read(settlement.first_outcome, "job_1")
    assert first is not None
    assert first.generation == 1
