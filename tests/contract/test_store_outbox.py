"""The outbox: each event to each hook at least once, in order for each job, until it is delivered or dead."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from databases import NOW, Store, in_threads, transact
from things import attempt, declare, event, finish, taken

from receiver.core.delivering import Persistence
from receiver.errors import LeaseLostError
from receiver.store import hook_queue, outbox
from receiver.store.hook_queue import HookDelivery
from receiver.store.tables import hook_attempts, hook_deliveries
from receiver.store.transaction import Transaction

HOOKS = ("index", "notify")


@pytest.fixture(autouse=True)
def hooks(store: Store) -> None:
    declare(store, *HOOKS)


def publish(store: Store, *ends: tuple[str, int]) -> None:
    """Events of (job, generation)."""
    for job_id, generation in ends:
        store.write(outbox.publish, event(job_id, generation))


def must_claim(store: Store, hook: str = "index") -> HookDelivery:
    delivery = taken(store, hook)
    assert delivery is not None
    return delivery


def test_an_event_goes_to_each_hook_once(store: Store) -> None:
    publish(store, ("job_1", 1))
    got = []
    for hook in HOOKS:
        while delivery := taken(store, hook):
            got.append((delivery.hook, delivery.event, delivery.attempts))
            finish(store, attempt(delivery, status=200))
    assert got == [(hook, event(), 0) for hook in HOOKS]
    states = [(row["state"], row["attempts"], row["delivered_at"], row["last_status"]) for row in store.rows(hook_deliveries)]
    assert states == [("delivered", 1, NOW, 200)] * 2


def test_a_process_takes_only_what_it_can_deliver(store: Store) -> None:
    publish(store, ("job_1", 1))
    assert must_claim(store, "notify").hook == "notify"
    assert taken(store, "notify") is None
    assert taken(store, "another") is None


def test_many_are_taken_at_once_the_longest_due_first_and_no_two_of_one_job(store: Store) -> None:
    publish(store, ("job_1", 1), ("job_1", 2))
    store.advance(1)
    publish(store, ("job_2", 1))
    store.advance(1)
    publish(store, ("job_3", 1))

    def take(most: int) -> list[str]:
        claimed = store.write(hook_queue.claim, hook="index", most=most, owner="w", lease=60)
        return [delivery.event.id for delivery in claimed]

    assert (take(2), take(9), take(9)) == (["evt_job_1_1", "evt_job_2_1"], ["evt_job_3_1"], [])


def test_a_hook_gets_a_jobs_events_in_order(store: Store) -> None:
    """A later generation waits while an earlier one is pending: leased, or put off, or not yet tried."""
    publish(store, ("job_1", 1), ("job_1", 2))
    first = must_claim(store, "index")
    assert (first.event.generation, taken(store, "index")) == (1, None)
    finish(store, attempt(first, "failed", wait=30, error="503", status=503))
    assert taken(store, "index") is None
    store.advance(30)
    again = must_claim(store, "index")
    assert again.event.generation == 1
    finish(store, attempt(again, status=200))
    assert must_claim(store, "index").event.generation == 2


def test_a_dead_event_lets_the_next_one_through(store: Store) -> None:
    publish(store, ("job_1", 1), ("job_1", 2))
    finish(store, attempt(must_claim(store, "index"), "dead", error="no", status=410))
    assert must_claim(store, "index").event.generation == 2


def test_one_hooks_trouble_is_not_anothers_nor_one_jobs(store: Store) -> None:
    publish(store, ("job_1", 1), ("job_1", 2), ("job_2", 1))
    finish(store, attempt(must_claim(store, "index"), "failed", wait=600, error="no", status=None))
    assert must_claim(store, "index").event.job_id == "job_2"
    for generation in (1, 2):
        delivery = must_claim(store, "notify")
        if delivery.event.job_id == "job_1":
            assert delivery.event.generation == generation
        finish(store, attempt(delivery, status=200))


def test_the_longest_due_goes_first(store: Store) -> None:
    publish(store, ("late", 1))
    finish(store, attempt(must_claim(store, "index"), "failed", wait=10, error="no", status=None))
    store.advance(5)
    publish(store, ("new", 1))
    store.advance(30)
    assert [must_claim(store, "index").event.job_id for _ in range(2)] == ["new", "late"]


def test_later_counts_and_says_why(store: Store) -> None:
    publish(store, ("job_1", 1))
    for number in range(3):
        delivery = must_claim(store, "index")
        assert delivery.attempts == number
        finish(store, attempt(delivery, "failed", wait=10, error="it \x00 said \ud800 no", status=503))
        assert taken(store, "index") is None
        store.advance(10)
    row = store.row(hook_deliveries, hook="index")
    assert (row["attempts"], row["last_error"], row["last_status"]) == (3, "it \ufffd said ? no", 503)


def test_dead_is_for_good(store: Store) -> None:
    publish(store, ("job_1", 1))
    finish(store, attempt(must_claim(store, "index"), "dead", error="gone", status=410))
    store.advance(1e9)
    assert taken(store, "index") is None
    row = store.row(hook_deliveries, hook="index")
    assert (row["state"], row["attempts"], row["last_error"], row["last_status"]) == ("dead", 1, "gone", 410)


ENDS: dict[str, dict[str, Any]] = {
    "delivered": {"status": 200},
    "failed": {"wait": 1, "error": "stale"},
    "later": {"wait": 1},
    "dead": {"error": "stale"},
}


@pytest.mark.parametrize("outcome", ENDS)
def test_a_stale_worker_writes_nothing(store: Store, outcome: str) -> None:
    """What others hand in with it is written."""
    publish(store, ("job_1", 1), ("job_2", 1))
    stale = must_claim(store)
    store.advance(60)
    taken_over = {must_claim(store).event.id: None for _ in range(2)}
    assert stale.event.id in taken_over
    before, log = store.rows(hook_deliveries), store.rows(hook_attempts)
    assert finish(store, attempt(stale, outcome, **ENDS[outcome])).lost == {stale.event.id}
    with pytest.raises(LeaseLostError):
        store.write(hook_queue.hold, stale, lease=60)
    with pytest.raises(LeaseLostError):
        store.write(hook_queue.release, stale)
    assert (store.rows(hook_deliveries), store.rows(hook_attempts)) == (before, log)


@pytest.mark.parametrize("late", ENDS)
@pytest.mark.parametrize("outcome", ENDS)
def test_a_late_write_cannot_take_a_finished_lease_back(store: Store, outcome: str, late: str) -> None:
    publish(store, ("job_1", 1))
    delivery = must_claim(store)
    assert finish(store, attempt(delivery, outcome, **ENDS[outcome])).lost == set()
    before = store.rows(hook_deliveries)
    assert finish(store, attempt(delivery, late, **ENDS[late])).lost == {delivery.event.id}
    with pytest.raises(LeaseLostError):
        store.write(hook_queue.hold, delivery, lease=60)
    assert store.rows(hook_deliveries) == before


def test_of_what_is_handed_in_together_only_what_is_stale_is_lost(store: Store) -> None:
    publish(store, ("job_1", 1), ("job_2", 1))
    stale = must_claim(store)
    store.advance(60)
    fresh = {delivery.event.id: delivery for delivery in (must_claim(store), must_claim(store))}
    other = next(delivery for id_, delivery in fresh.items() if id_ != stale.event.id)
    assert finish(store, attempt(stale), attempt(other)).lost == {stale.event.id}
    assert store.row(hook_deliveries, hook="index", event_id=other.event.id)["state"] == "delivered"


def test_what_is_given_back_is_there_for_the_next(store: Store) -> None:
    publish(store, ("job_1", 1))
    store.write(hook_queue.release, must_claim(store))
    assert must_claim(store).attempts == 0


def test_a_delivery_that_is_held_stays_ours(store: Store) -> None:
    publish(store, ("job_1", 1))
    delivery = must_claim(store, "index")
    store.advance(40)
    store.write(hook_queue.hold, delivery, lease=60)
    store.advance(40)
    assert taken(store, "index") is None
    store.advance(20)
    assert must_claim(store, "index").fence == delivery.fence + 1


def test_next_due_is_the_soonest_that_nobody_works_on(store: Store) -> None:
    def next_due() -> float | None:
        return store.read(hook_queue.next_due, hook="index")

    due = [next_due()]
    publish(store, ("job_1", 1), ("job_2", 1))
    store.advance(3)
    due.append(next_due())
    first = must_claim(store, "index")
    finish(store, attempt(first, "failed", wait=10, error="no", status=None))
    must_claim(store, "index")
    due.append(next_due())
    store.advance(60)
    due.append(next_due())
    assert due == [None, -3.0, 10.0, -63.0]


def test_next_due_is_the_end_of_a_lease_if_nothing_falls_due_before(store: Store) -> None:
    publish(store, ("job_1", 1))
    must_claim(store, "index")
    due = store.read(hook_queue.next_due, hook="index")
    assert due is not None
    assert due > 0


def test_workers_share_the_events_between_them(store: Store) -> None:
    """Eight at the same time (on PostgreSQL over four replicas): each delivery is claimed once, each job's in order."""
    publish(store, *[(f"job_{n}", generation) for generation in (1, 2, 3) for n in range(6)])
    replicas = [store.database] + [store.open() for _ in range(3 if store.postgresql else 0)]
    claimed: list[tuple[str, str, int]] = []

    def worker(number: int) -> Callable[[], None]:
        database = replicas[number % len(replicas)]

        def work() -> None:
            # A claim may find nothing while the others hold the earlier ones; those go on with what follows.
            for hook in HOOKS:

                def claim(tx: Transaction, hook: str = hook) -> list[HookDelivery]:
                    return hook_queue.claim(tx, hook=hook, most=2, owner=f"w{number}", lease=60)

                while found := transact(database, claim):
                    claimed.extend((each.hook, each.event.job_id, each.event.generation) for each in found)
                    done = [attempt(each, status=200) for each in found]
                    transact(database, partial(hook_queue.finish, hook=hook, attempts=done, policy=Persistence()))

        return work

    in_threads([worker(n) for n in range(8)])
    for hook in HOOKS:
        for job_id in (f"job_{n}" for n in range(6)):
            assert [each[2] for each in claimed if each[:2] == (hook, job_id)] == [1, 2, 3]
    assert {row["attempts"] for row in store.rows(hook_deliveries)} == {1}
