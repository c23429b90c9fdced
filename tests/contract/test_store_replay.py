"""Replaying: what is chosen is due again under its old id, for every hook that wants it, and for nobody else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from databases import NOW, Store
from things import attempt, declare, event, finish, taken

from receiver.store import hook_log, hook_queue, outbox
from receiver.store import replay as store_replay
from receiver.store.hook_log import DeliveryRow
from receiver.store.replay import ROWS, Selection
from receiver.store.tables import hook_deliveries


def publish(store: Store, job_id: str = "job_1", generation: int = 1, **more: Any) -> None:
    store.write(outbox.publish, replace(event(job_id, generation, **more), created_at=store.now))


def end(store: Store, hook: str, outcome: str = "delivered", *, number: int = 1) -> None:
    for _ in range(number):
        delivery = taken(store, hook)
        assert delivery is not None
        finish(store, attempt(delivery, outcome, error=None if outcome == "delivered" else "no", status=500))


def replay(store: Store, *, dry_run: bool = False, **chosen: Any) -> tuple[int, Counter[str]]:
    """Events, and deliveries by hook."""
    events, hooks, after = 0, Counter[str](), None
    while True:
        part = store.write(store_replay.replay, Selection(**chosen), until=store.now, after=after, dry_run=dry_run)
        events += len(part.events)
        hooks += part.hooks
        after = part.after
        if after is None:
            return events, hooks


def waiting(store: Store) -> list[tuple[str, str]]:
    return sorted((row["hook"], row["event_id"]) for row in store.rows(hook_deliveries, state="pending"))


@pytest.fixture(autouse=True)
def hooks(store: Store) -> None:
    declare(store, "index", "notify")


def ended(store: Store) -> None:
    """Two jobs, one of which ended twice: all delivered, but one that is dead."""
    publish(store)
    publish(store, "job_1", 2)
    publish(store, "job_2")
    end(store, "index", number=3)
    end(store, "notify", number=2)
    end(store, "notify", "dead")


CHOSEN: list[tuple[dict[str, Any], set[tuple[str, str]]]] = [
    ({"event": "evt_job_1_2"}, {("index", "1_2"), ("notify", "1_2")}),
    ({"event": "evt_job_1_2", "hook": "notify"}, {("notify", "1_2")}),
    ({"event": "evt_nosuch"}, set()),
    ({"job": "job_1"}, {("index", "1_1"), ("index", "1_2"), ("notify", "1_1"), ("notify", "1_2")}),
    ({"job": "job_1", "hook": "index"}, {("index", "1_1"), ("index", "1_2")}),
    ({"dead": True}, {("notify", "2_1")}),
    ({"dead": True, "hook": "index"}, set()),
    ({"since": NOW, "hook": "index"}, {("index", "1_1"), ("index", "1_2"), ("index", "2_1")}),
    ({"since": NOW + 1}, set()),
]


@pytest.mark.parametrize(("chosen", "due"), CHOSEN)
def test_what_is_chosen_is_due_again_and_nothing_else(store: Store, chosen: dict[str, Any], due: set[tuple[str, str]]) -> None:
    ended(store)
    expected = sorted((hook, f"evt_job_{end}") for hook, end in due)
    before = store.rows(hook_deliveries)
    counted = replay(store, dry_run=True, **chosen)
    assert store.rows(hook_deliveries) == before
    assert replay(store, **chosen) == counted == (len({e for _, e in due}), Counter(hook for hook, _ in due))
    assert waiting(store) == expected
    for row in store.rows(hook_deliveries, state="pending"):
        assert (row["attempts"], row["delivered_at"], row["last_error"], row["due_at"]) == (0, None, None, store.now)


def test_what_is_replayed_is_delivered_in_the_order_of_its_generations(store: Store) -> None:
    ended(store)
    replay(store, job="job_1", hook="index")
    first = taken(store, "index")
    assert first is not None
    assert (first.event.generation, taken(store, "index")) == (1, None)


def test_what_was_put_off_is_due_now_and_what_is_at_work_is_left_alone(store: Store) -> None:
    publish(store)
    busy = taken(store, "index")
    assert busy is not None
    put_off = taken(store, "notify")
    assert put_off is not None
    finish(store, attempt(put_off, "failed", wait=3600.0, error="no"))
    assert replay(store, job="job_1") == (1, Counter({"notify": 1}))
    assert taken(store, "notify") is not None
    assert finish(store, attempt(busy)).lost == set()


def test_who_had_it_and_froze_writes_nothing_of_it_any_more(store: Store) -> None:
    publish(store)
    frozen = taken(store, "index")
    assert frozen is not None
    store.advance(61)
    replay(store, job="job_1", hook="index")
    assert finish(store, attempt(frozen, "dead", error="late")).lost == {frozen.event.id}
    assert taken(store, "index") is not None


def test_a_hook_that_was_declared_since_gets_what_it_wants(store: Store) -> None:
    publish(store)
    publish(store, "job_2", type="job.failed")
    declare(store, "new", types=("job.failed",))
    assert replay(store, since=NOW, hook="new") == (1, Counter({"new": 1}))
    assert [each for each in waiting(store) if each[0] == "new"] == [("new", "evt_job_2_1")]


def test_a_retired_hook_gets_nothing(store: Store) -> None:
    old = outbox.Declaration("old", "http", "https://old.example", ["job.completed"])
    store.write(outbox.declare, [old], all_configured=True)
    publish(store)
    end(store, "old", "dead")
    store.write(outbox.declare, [], all_configured=True)
    assert replay(store, dead=True) == (0, Counter())
    assert replay(store, job="job_1")[1]["old"] == 0


def test_many_take_as_many_transactions_and_none_is_taken_twice(store: Store) -> None:
    def many(tx: Any) -> None:
        for n in range(ROWS + 20):
            outbox.publish(tx, replace(event(f"job_{n}"), created_at=NOW + n % 7))

    store.advance(10)
    store.write(many)
    while found := store.write(hook_queue.claim, hook="index", most=200, owner="w", lease=60):
        finish(store, *[attempt(each, "dead", error="no") for each in found])
    assert replay(store, dead=True) == (ROWS + 20, Counter({"index": ROWS + 20}))
    assert replay(store, since=NOW, hook="index") == (ROWS + 20, Counter({"index": ROWS + 20}))
    assert len(store.rows(hook_deliveries, hook="index", state="pending")) == ROWS + 20


def test_hooks_are_listed_with_what_waits_and_what_was_given_up(store: Store) -> None:
    ended(store)
    publish(store, "job_3")
    index, notify = store.read(hook_log.all_hooks)
    assert (index.name, index.kind, index.state, index.pending, index.dead) == ("index", "python", "running", 1, 0)
    assert (notify.name, notify.state, notify.pending, notify.dead, notify.failures) == ("notify", "failing", 1, 1, 1)
    assert index.last_delivered_at == NOW
    assert store.read(hook_log.find_hook, "nobody") is None


def test_deliveries_are_listed_newest_first_with_each_attempt(store: Store) -> None:
    ended(store)
    store.advance(5)
    publish(store, "job_3")

    def listed(**which: Any) -> list[DeliveryRow]:
        return store.read(hook_log.deliveries, **which)

    assert [row.event_id for row in listed(hook="notify", limit=1)] == ["evt_job_3_1"]
    assert {row.hook for row in listed(event="evt_job_1_1")} == {"index", "notify"}
    (dead,) = listed(hook="notify", state="dead")
    assert (dead.event_id, dead.type, dead.attempts, dead.last_error) == ("evt_job_2_1", "job.completed", 1, "no")
    log = store.read(hook_log.attempts, listed())
    assert [(row.number, row.outcome, row.status) for row in log["evt_job_2_1", "notify"]] == [(1, "dead", 500)]
    assert log["evt_job_3_1", "index"] == []
