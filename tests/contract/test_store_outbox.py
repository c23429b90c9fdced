"""The outbox: each event to each hook at least once, in order for each job, until it is delivered or dead."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from databases import NOW, Store, in_threads, transact
from things import declare, event

from receiver.errors import LeaseLostError
from receiver.store import outbox
from receiver.store.outbox import HookDelivery
from receiver.store.tables import hook_deliveries
from receiver.store.transaction import Transaction

HOOKS = ("index", "notify")


@pytest.fixture(autouse=True)
def hooks(store: Store) -> None:
    declare(store, *HOOKS)


def publish(store: Store, *ends: tuple[str, int]) -> None:
    """Events of (job, generation)."""
    for job_id, generation in ends:
        store.write(outbox.publish, event(job_id, generation))


def claim(store: Store, *names: str, lease: float = 60.0, owner: str = "w") -> HookDelivery | None:
    return store.write(outbox.claim, names=names or HOOKS, owner=owner, lease=lease)


def must_claim(store: Store, *names: str) -> HookDelivery:
    delivery = claim(store, *names)
    assert delivery is not None
    return delivery


def test_an_event_goes_to_each_hook_once(store: Store) -> None:
    publish(store, ("job_1", 1))
    got = []
    while delivery := claim(store):
        got.append((delivery.hook, delivery.event, delivery.attempts))
        store.write(outbox.delivered, delivery, status=200)
    assert sorted(got, key=lambda each: each[0]) == [(hook, event(), 0) for hook in HOOKS]
    states = [(row["state"], row["attempts"], row["delivered_at"], row["last_status"]) for row in store.rows(hook_deliveries)]
    assert states == [("delivered", 1, NOW, 200)] * 2


def test_a_process_takes_only_what_it_can_deliver(store: Store) -> None:
    publish(store, ("job_1", 1))
    assert must_claim(store, "notify").hook == "notify"
    assert claim(store, "notify") is None
    assert claim(store, "another") is None


def test_no_names_nothing_claimed(store: Store) -> None:
    publish(store, ("job_1", 1))
    assert store.write(outbox.claim, names=[], owner="w", lease=60) is None


def test_a_hook_gets_a_jobs_events_in_order(store: Store) -> None:
    """A later generation waits while an earlier one is pending: leased, or put off, or not yet tried."""
    publish(store, ("job_1", 1), ("job_1", 2))
    first = must_claim(store, "index")
    assert (first.event.generation, claim(store, "index")) == (1, None)
    store.write(outbox.later, first, wait=30, error="503", status=503)
    assert claim(store, "index") is None
    store.advance(30)
    again = must_claim(store, "index")
    assert again.event.generation == 1
    store.write(outbox.delivered, again, status=200)
    assert must_claim(store, "index").event.generation == 2


def test_a_dead_event_lets_the_next_one_through(store: Store) -> None:
    publish(store, ("job_1", 1), ("job_1", 2))
    store.write(outbox.dead, must_claim(store, "index"), error="no", status=410)
    assert must_claim(store, "index").event.generation == 2


def test_one_hooks_trouble_is_not_anothers_nor_one_jobs(store: Store) -> None:
    publish(store, ("job_1", 1), ("job_1", 2), ("job_2", 1))
    store.write(outbox.later, must_claim(store, "index"), wait=600, error="no", status=None)
    assert must_claim(store, "index").event.job_id == "job_2"
    for generation in (1, 2):
        delivery = must_claim(store, "notify")
        if delivery.event.job_id == "job_1":
            assert delivery.event.generation == generation
        store.write(outbox.delivered, delivery, status=200)


def test_the_longest_due_goes_first(store: Store) -> None:
    publish(store, ("late", 1))
    store.write(outbox.later, must_claim(store, "index"), wait=10, error="no", status=None)
    store.advance(5)
    publish(store, ("new", 1))
    store.advance(30)
    assert [must_claim(store, "index").event.job_id for _ in range(2)] == ["new", "late"]


def test_later_counts_and_says_why(store: Store) -> None:
    publish(store, ("job_1", 1))
    for attempt in range(3):
        delivery = must_claim(store, "index")
        assert delivery.attempts == attempt
        store.write(outbox.later, delivery, wait=10, error="it \x00 said \ud800 no", status=503)
        assert claim(store, "index") is None
        store.advance(10)
    row = store.row(hook_deliveries, hook="index")
    assert (row["attempts"], row["last_error"], row["last_status"]) == (3, "it \ufffd said ? no", 503)


def test_dead_is_for_good(store: Store) -> None:
    publish(store, ("job_1", 1))
    store.write(outbox.dead, must_claim(store, "index"), error="gone", status=410)
    store.advance(1e9)
    assert claim(store, "index") is None
    row = store.row(hook_deliveries, hook="index")
    assert (row["state"], row["attempts"], row["last_error"], row["last_status"]) == ("dead", 1, "gone", 410)


WRITES: dict[str, Callable[[Transaction, HookDelivery], None]] = {
    "delivered": lambda tx, d: outbox.delivered(tx, d, status=200),
    "later": lambda tx, d: outbox.later(tx, d, wait=1, error="stale", status=None),
    "dead": lambda tx, d: outbox.dead(tx, d, error="stale", status=None),
    "hold": lambda tx, d: outbox.hold(tx, d, lease=60),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_stale_worker_writes_nothing(store: Store, write: Callable[[Transaction, HookDelivery], None]) -> None:
    publish(store, ("job_1", 1))
    stale = must_claim(store, "index")
    store.advance(60)
    must_claim(store, "index")
    before = store.rows(hook_deliveries)
    with pytest.raises(LeaseLostError):
        store.write(write, stale)
    assert store.rows(hook_deliveries) == before


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("finish", ["delivered", "later", "dead"])
def test_a_late_write_cannot_take_a_finished_lease_back(
    store: Store, finish: str, write: Callable[[Transaction, HookDelivery], None]
) -> None:
    publish(store, ("job_1", 1))
    delivery = must_claim(store, "index")
    store.write(lambda tx: WRITES[finish](tx, delivery))
    before = store.rows(hook_deliveries)
    with pytest.raises(LeaseLostError):
        store.write(write, delivery)
    assert store.rows(hook_deliveries) == before


def test_a_delivery_that_is_held_stays_ours(store: Store) -> None:
    publish(store, ("job_1", 1))
    delivery = must_claim(store, "index")
    store.advance(40)
    store.write(outbox.hold, delivery, lease=60)
    store.advance(40)
    assert claim(store, "index") is None
    store.advance(20)
    assert must_claim(store, "index").fence == delivery.fence + 1


def test_next_due_is_the_soonest_that_nobody_works_on(store: Store) -> None:
    def next_due() -> float | None:
        return store.read(outbox.next_due, names=["index"])

    due = [next_due()]
    publish(store, ("job_1", 1), ("job_2", 1))
    store.advance(3)
    due.append(next_due())
    first = must_claim(store, "index")
    store.write(outbox.later, first, wait=10, error="no", status=None)
    must_claim(store, "index")
    due.append(next_due())
    store.advance(60)
    due.append(next_due())
    assert due == [None, -3.0, 10.0, -63.0]
    assert store.read(outbox.next_due, names=[]) is None


def test_next_due_is_the_end_of_a_lease_if_nothing_falls_due_before(store: Store) -> None:
    publish(store, ("job_1", 1))
    must_claim(store, "index")
    due = store.read(outbox.next_due, names=["index"])
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
            while delivery := transact(database, lambda tx: outbox.claim(tx, names=HOOKS, owner=f"w{number}", lease=60)):
                claimed.append((delivery.hook, delivery.event.job_id, delivery.event.generation))
                transact(database, partial(outbox.delivered, delivery=delivery, status=200))

        return work

    in_threads([worker(n) for n in range(8)])
    for hook in HOOKS:
        for job_id in (f"job_{n}" for n in range(6)):
            assert [each[2] for each in claimed if each[:2] == (hook, job_id)] == [1, 2, 3]
    assert {row["attempts"] for row in store.rows(hook_deliveries)} == {1}
