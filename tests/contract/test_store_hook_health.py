"""How a hook fares is in the store: who keeps failing is left alone, by all replicas, until it takes one that is let through."""

from __future__ import annotations

from typing import Any

import pytest
from databases import NOW, Store
from things import attempt, declare, event, finish, taken

from receiver.core.delivering import GONE, IN_A_ROW, Persistence
from receiver.store import hook_health, hook_queue, outbox
from receiver.store.hook_queue import Attempt, HookDelivery
from receiver.store.tables import hook_attempts, hook_deliveries, hooks

POLICY = Persistence(pause_after=60.0, probe=30.0)
FAILED: dict[str, Any] = {"wait": 5.0, "error": "answered 500", "status": 500}


@pytest.fixture(autouse=True)
def declared(store: Store) -> None:
    declare(store, "index", "other")


def publish(store: Store, number: int, first: int = 0) -> None:
    for n in range(first, first + number):
        store.write(outbox.publish, event(f"job_{n}"))


def take(store: Store, most: int = 100) -> list[HookDelivery]:
    return store.write(hook_queue.claim, hook="index", most=most, owner="w", lease=600, probe=POLICY.probe)


def end(store: Store, *attempts: Attempt) -> hook_queue.Finished:
    return finish(store, *attempts, policy=POLICY)


def paused(store: Store) -> None:
    """By failing for longer than it may."""
    publish(store, IN_A_ROW)
    found = take(store)
    end(store, *[attempt(each, "failed", **FAILED) for each in found[:1]])
    store.advance(60)
    change = end(store, *[attempt(each, "failed", **FAILED) for each in found[1:]]).change
    assert change is not None
    assert change.to == "paused"


def row(store: Store) -> dict[str, Any]:
    return dict(store.row(hooks, name="index"))


def test_who_fails_often_and_for_long_is_paused_and_says_why(store: Store) -> None:
    paused(store)
    assert row(store)["paused_why"] == f"it failed {IN_A_ROW} times in a row: answered 500"
    store.advance(20)
    assert take(store) == []
    assert taken(store, "other") is not None
    assert store.read(hook_queue.next_due, hook="index") == pytest.approx(10.0)


@pytest.mark.parametrize("kind", ["often but not for long", "for long but not often", "with a success between"])
def test_who_does_not_is_not(store: Store, kind: str) -> None:
    publish(store, IN_A_ROW)
    found = take(store)
    many = found if kind != "for long but not often" else found[1:]
    for each in many[:-1]:
        end(store, attempt(each, "failed", **FAILED))
    if kind != "often but not for long":
        store.advance(600)
    if kind == "with a success between":
        end(store, attempt(many[-1]))
        publish(store, 1, first=1000)
        many = take(store, 1)
    end(store, attempt(many[-1], "failed", **FAILED))
    assert row(store)["paused_at"] is None
    store.advance(5)
    assert take(store) != []


def test_of_a_paused_hook_one_delivery_at_a_time_is_let_through_and_a_success_resumes_it(store: Store) -> None:
    paused(store)
    publish(store, 1, first=50)
    store.advance(30)
    (probe,) = take(store)
    assert probe.event.job_id == "job_50", "the one that was tried least"
    assert take(store) == []
    assert end(store, attempt(probe, "failed", **FAILED)).change is None
    assert take(store) == []
    store.advance(30)
    (probe,) = take(store)
    change = end(store, attempt(probe)).change
    assert change == hook_health.Change("resumed", "it took an event again")
    assert (row(store)["paused_at"], row(store)["failures"]) == (None, 0)
    assert len(take(store)) == IN_A_ROW, "all the others at once, though they were put off"


def test_a_probe_that_nobody_ends_is_followed_by_another(store: Store) -> None:
    paused(store)
    store.advance(30)
    first = take(store)
    store.advance(30)
    assert len(take(store)) == len(first) == 1


def test_who_is_gone_is_paused_at_once_and_probed_seldom(store: Store) -> None:
    publish(store, 2)
    one, _ = take(store)
    change = end(store, attempt(one, "failed", wait=1.0, error="answered 410", status=410, gone=True)).change
    assert change == hook_health.Change("paused", "it answered 410, gone")
    store.advance(POLICY.probe * GONE - 1)
    assert take(store) == []
    store.advance(1)
    assert len(take(store)) == 1


def test_an_event_that_is_refused_and_one_that_is_put_off_tell_nothing_against_the_hook(store: Store) -> None:
    publish(store, IN_A_ROW * 2)
    found = take(store)
    end(store, attempt(found[0], "dead", error="no use", blamed=False))
    store.advance(600)
    end(store, *[attempt(each, "dead", error="no use", blamed=False) for each in found[1:IN_A_ROW]])
    end(store, *[attempt(each, "later", wait=5.0) for each in found[IN_A_ROW:]])
    assert (row(store)["failures"], row(store)["paused_at"]) == (0, None)
    assert {each["attempts"] for each in store.rows(hook_deliveries, hook="index", state="pending")} == {0}


def test_who_is_paused_by_command_stays_so_until_it_is_resumed_by_command(store: Store) -> None:
    publish(store, 2)
    (under_way,) = take(store, 1)
    assert store.write(hook_health.pause, "index")
    assert store.read(hook_queue.next_due, hook="index") is None
    end(store, attempt(under_way))
    store.advance(1e6)
    assert take(store) == []
    declare(store, "index")
    assert take(store) == []
    assert row(store)["paused_why"] == "paused by command"
    assert store.write(hook_health.resume, "index")
    assert len(take(store)) == 1


def test_there_may_be_no_such_hook(store: Store) -> None:
    assert not store.write(hook_health.pause, "nobody")
    assert not store.write(hook_health.resume, "nobody")


def test_who_is_started_again_is_probed_at_once(store: Store) -> None:
    """It may be the very process that was mended."""
    paused(store)
    assert take(store) == []
    store.advance(6)
    declare(store, "index")
    assert len(take(store)) == 1


def test_every_attempt_is_written_down(store: Store) -> None:
    publish(store, 1)
    end(store, attempt(take(store)[0], "failed", wait=0.0, error="it \x00 said \ud800 no", status=503, answer="\x00busy"))
    end(store, attempt(take(store)[0], status=204, answer=""))
    told = [{name: row[name] for name in row if name != "id"} for row in store.rows(hook_attempts)]
    common = {"event_id": "evt_job_0_1", "hook": "index", "at": NOW, "seconds": 0.25}
    failed = {"number": 1, "outcome": "failed", "status": 503, "error": "it \ufffd said ? no", "answer": "\ufffdbusy"}
    assert told == [common | failed, common | {"number": 2, "outcome": "delivered", "status": 204, "error": None, "answer": None}]


def test_of_a_delivery_that_is_put_off_for_ever_the_last_attempts_are_kept(store: Store) -> None:
    publish(store, 1)
    for _ in range(hook_queue.KEPT + 5):
        end(store, attempt(take(store)[0], "later", wait=0.0))
    assert len(store.rows(hook_attempts)) == hook_queue.KEPT
