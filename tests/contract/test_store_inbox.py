"""The inbox: every delivery kept as it came, each only once, each cue effective once its delivery is durable."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from databases import NOW, Store
from things import arrival, body, claimed, hydrating, settle, tracked

from receiver.core.delivery import Delivery, Meaning
from receiver.store import jobs
from receiver.store.inbox import Arrival, Outcome
from receiver.store.tables import deliveries, seen
from receiver.store.tables import jobs as jobs_table
from receiver.store.transaction import Transaction

ACCEPTED = Outcome("accepted", cued=True)
DUPLICATE = Outcome("duplicate")


def names(outcomes: list[Outcome]) -> list[str]:
    return [outcome.name for outcome in outcomes]


def test_a_delivery_is_stored_whole(store: Store) -> None:
    assert store.arrive(arrival()) == [ACCEPTED]
    row = store.row(deliveries)
    assert row == {
        "id": row["id"],
        "received_at": NOW,
        "outcome": "accepted",
        "reason": None,
        "event": "job.completed",
        "job_id": "job_1",
        "delivery_id": "dlv_1",
        "signed_at": int(NOW),
        "key": arrival().delivery.key,
        "body": body(),
    }


# What identifies a delivery, and what of it may change.


@pytest.mark.parametrize(
    "again",
    [
        pytest.param({}, id="the very same"),
        pytest.param({"id": "dlv_2"}, id="the same signed bytes under a new id"),
        pytest.param({"id": None}, id="the same signed bytes without an id"),
        pytest.param({"at": NOW + 1}, id="signed anew, under the same id"),
    ],
)
@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "one after the other"])
def test_a_delivery_comes_again(store: Store, again: dict[str, Any], together: bool) -> None:
    """It is a duplicate, stores nothing and cues nothing, whichever of its keys is known."""
    first, second = arrival(), arrival(**again)
    outcomes = store.arrive(first, second) if together else store.arrive(first) + store.arrive(second)
    assert outcomes == [ACCEPTED, DUPLICATE]
    assert len(store.rows(deliveries)) == 1
    assert store.row(jobs_table)["cue"] == 1


def test_a_key_learned_from_a_duplicate_counts(store: Store) -> None:
    """A new id with known bytes is noted: those bytes signed anew under that id are known too."""
    outcomes = [store.arrive(a)[0] for a in (arrival(id="a"), arrival(id="b"), arrival(id="b", at=NOW + 1))]
    assert outcomes == [ACCEPTED, DUPLICATE, DUPLICATE]


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "one after the other"])
def test_one_id_with_another_body(store: Store, together: bool) -> None:
    """Both are kept, and the second says so."""
    first, second = arrival(), arrival(body(note="another"))
    outcomes = store.arrive(first, second) if together else store.arrive(first) + store.arrive(second)
    assert outcomes == [ACCEPTED, Outcome("accepted", same_id=True, cued=True)]
    assert [row["body"] for row in store.rows(deliveries)] == [body(), body(note="another")]


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "one after the other"])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_an_id_with_each_of_its_bodies_again(store: Store, together: bool, signed: bool) -> None:
    """Signed anew, each of them is known, and nothing is said of the id."""
    tracked(store)
    bodies = [body(note=note) for note in ("one", "another", "a third")]
    arrivals = [arrival(each, at=NOW + n, signed=signed) for n in range(2) for each in bodies]
    outcomes = store.arrive(*arrivals) if together else [store.arrive(each)[0] for each in arrivals]
    assert [(outcome.name, outcome.same_id) for outcome in outcomes] == [
        ("accepted", False),
        ("accepted", True),
        ("accepted", True),
        *[("duplicate", False)] * 3,
    ]


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "one after the other"])
def test_an_id_first_seen_on_a_duplicate_with_another_body(store: Store, together: bool) -> None:
    """The id has come with two bodies, whether or not the first of them was stored under it."""
    arrivals = [arrival(id="a"), arrival(id="b"), arrival(body(note="another"), id="b")]
    outcomes = store.arrive(*arrivals) if together else [store.arrive(each)[0] for each in arrivals]
    assert outcomes == [ACCEPTED, DUPLICATE, Outcome("accepted", same_id=True, cued=True)]


def test_an_id_that_is_made_to_look_like_anothers_key(store: Store) -> None:
    """Ids are not signed: whoever replays a delivery under a made-up one must not make a later delivery a duplicate."""
    victim = arrival(job="job_2", id="dlv_2", at=NOW + 1)
    told = victim.delivery
    (key,) = told.id_keys
    made_up = [key.removeprefix("d"), told.key_with_body(key).removeprefix("e"), f"dlv_2:{told.digest}", told.key]
    store.arrive(*[arrival(id=id_) for id_ in made_up], *[arrival(body(n=1), id=id_) for id_ in made_up])
    assert store.arrive(victim) == [ACCEPTED]


def test_an_unsigned_delivery_does_not_make_a_signed_one_a_duplicate(store: Store) -> None:
    """Anybody can send the one; only Reader the other."""
    assert names(store.arrive(arrival(signed=False))) == ["ignored"]
    assert store.arrive(arrival()) == [ACCEPTED]


def test_a_hundred_at_once_over_four_replicas(store: Store) -> None:
    """One delivery, a hundred times: one row, one effect, everybody answered."""
    replicas = [store.database] + [store.open() for _ in range(3 if store.postgresql else 0)]

    async def together() -> list[Outcome]:
        return await asyncio.gather(*[replicas[n % len(replicas)].arrive(arrival()) for n in range(100)])

    outcomes = store.run(together())
    assert names(outcomes).count("accepted") == 1
    assert names(outcomes).count("duplicate") == 99
    assert len(store.rows(deliveries)) == 1
    assert store.row(jobs_table)["cue"] == 1
    told = arrival().delivery
    assert [store.row(seen, key=key)["hits"] for key in (told.key, *told.id_keys)] == [100, 100]


def test_nobody_is_answered_before_the_commit(store: Store) -> None:
    """Neither the first nor a duplicate that comes while the first is being written."""

    async def scene() -> tuple[bool, bool, list[Outcome]]:
        loop = asyncio.get_running_loop()
        with store.commit_held() as (reached, go):
            first = store.database.arrive(arrival())
            await loop.run_in_executor(None, reached.wait, 10)
            second = store.database.arrive(arrival())
            await asyncio.wait([first, second], timeout=0.1)
            before = first.done(), second.done()
            go.set()
            return *before, await asyncio.gather(first, second)

    assert store.run(scene()) == (False, False, [ACCEPTED, DUPLICATE])


# What is kept, and what it does.


def test_what_is_not_understood_is_kept(store: Store) -> None:
    """Quarantined or ignored, with the reason, and no job comes of it."""
    outcomes = store.arrive(
        arrival(b"[]", id="a"), arrival(body(event="job.exploded"), id="b"), arrival(b'{"event":"credit.low"}')
    )
    assert outcomes == [Outcome("quarantined"), Outcome("ignored"), Outcome("ignored")]
    kept = [(row["outcome"], row["reason"], row["job_id"]) for row in store.rows(deliveries)]
    assert kept == [("quarantined", "the top level is not an object", None), ("ignored", None, "job_1"), ("ignored", None, None)]
    assert store.rows(jobs_table) == []


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b'{"jobId": "job_1", "note": "\\u0000"}', id="an escaped NUL"),
        pytest.param(b'{"jobId": "job_1", "note": "\x00"}', id="a NUL"),
        pytest.param(b'{"jobId": "job_1", "note": "\\ud800"}', id="a lone surrogate"),
        pytest.param(b'{"jobId": "job_1", "event": "\\u0000\\ud800"}', id="both in the event"),
        pytest.param(b'{"jobId": "\\u0000\\udfff"}', id="both in the job id"),
        pytest.param(b"\xff\xfe\x00", id="not UTF-8"),
        pytest.param(b'{"jobId": "job_1", "note": "' + b"\xf0\x9f\x92\xa9" * 250_000 + b'"}', id="a mebibyte"),
        pytest.param(bytes(range(256)), id="every byte there is"),
    ],
)
def test_any_body_is_kept_byte_for_byte(store: Store, content: bytes) -> None:
    store.arrive(arrival(content), arrival(content + b" ", id="\x00\udcff"))
    assert [row["body"] for row in store.rows(deliveries)] == [content, content + b" "]


def test_an_unsigned_delivery_cues_only_a_known_job(store: Store) -> None:
    """One for an unknown job is kept, ignored: anybody could make us spend requests on jobs of their invention."""
    tracked(store, "known", wait=600)
    outcomes = store.arrive(arrival(job="known", signed=False), arrival(job="unknown", id="b", signed=False))
    assert outcomes == [ACCEPTED, Outcome("ignored")]
    assert [(row["id"], row["due_at"]) for row in store.rows(jobs_table)] == [("known", NOW)]


def test_an_unsigned_delivery_without_an_id_is_deduped_by_its_body(store: Store) -> None:
    tracked(store)
    outcomes = [store.arrive(arrival(id=None, at=NOW + n, signed=False))[0] for n in range(2)]
    assert outcomes == [ACCEPTED, DUPLICATE]


def _counts(tx: Transaction) -> tuple[int, int]:
    return len(tx.execute(deliveries.select()).all()), len(tx.execute(jobs_table.select()).all())


def test_the_job_is_due_with_its_delivery_or_not_at_all(store: Store) -> None:
    """One transaction: while it is not committed, a reader sees neither; after it, both."""

    async def scene() -> tuple[tuple[int, int], tuple[int, int]]:
        loop = asyncio.get_running_loop()
        with store.commit_held() as (reached, go):
            future = store.database.arrive(arrival())
            await loop.run_in_executor(None, reached.wait, 10)
            before = await store.database.read(_counts)
            go.set()
            await future
            return before, await store.database.read(_counts)

    assert store.run(scene()) == ((0, 0), (1, 1))


def test_a_webhook_makes_a_waiting_job_due_at_once(store: Store) -> None:
    tracked(store, wait=600)
    store.arrive(arrival())
    job = store.row(jobs_table)
    assert (job["due_at"], job["cued_by"], job["source"]) == (NOW, "webhook", "track")


def test_a_webhook_for_a_job_that_is_due_already_is_still_its_cue(store: Store) -> None:
    """So that the look asks for a whole page, and the webhook has the credit."""
    tracked(store)
    tracked(store)
    store.arrive(arrival())
    assert store.row(jobs_table)["cued_by"] == "webhook"


def test_a_job_that_started_is_known_and_looked_at_in_due_time(store: Store) -> None:
    store.arrive(arrival(event="job.started"))
    job = store.row(jobs_table)
    assert (job["state"], job["due_at"], job["cued_by"]) == ("watching", NOW + 5, None)


@pytest.mark.parametrize("event", ["job.page", "job.completed"])
@pytest.mark.parametrize("situation", ["unknown", "watched", "leased", "settled"])
def test_a_thousand_deliveries_for_one_job_write_it_a_few_times(store: Store, event: str, situation: str) -> None:
    if situation == "watched":
        tracked(store, wait=600)
    elif situation == "leased":
        tracked(store)
        claimed(store, lease=600)
    elif situation == "settled":
        settle(store, hydrating(store))
        store.advance(120)
    with store.writes_to(jobs_table) as count:
        for batch in range(10):
            store.advance(0.1)
            store.arrive(*[arrival(body(event=event, n=f"{batch}/{n}"), id=f"{batch}/{n}") for n in range(100)])
        assert count() <= 2
    assert len(store.rows(deliveries)) == 1000


@pytest.mark.parametrize("event", ["job.completed", "job.failed"])
def test_a_cue_during_a_lease_survives_finish(store: Store, event: str) -> None:
    """What the worker saw may be older than what the delivery tells of: the job is due at once, as cued."""
    tracked(store)
    job = claimed(store)
    store.arrive(arrival(event=event))
    store.advance(1)
    store.write(lambda tx: jobs.finish(tx, job, due_at=tx.now + 600))
    row = store.row(jobs_table)
    assert (row["due_at"], row["cued_by"]) == (NOW + 1, "webhook")


def test_a_sign_of_life_during_a_late_look_survives_finish(store: Store) -> None:
    """A settled job was retried elsewhere just after we looked: the next look must not wait for hours."""
    settle(store, hydrating(store))
    store.advance(3600)
    job = claimed(store)
    store.arrive(arrival(event="job.started"))
    store.write(lambda tx: jobs.finish(tx, job, due_at=tx.now + 6 * 3600))
    due_at = store.row(jobs_table)["due_at"]
    assert due_at <= store.now + 5


def test_a_webhook_after_a_sign_of_life_during_a_late_look_is_still_a_cue(store: Store) -> None:
    settle(store, hydrating(store))
    store.advance(3600)
    job = claimed(store)
    store.arrive(arrival(event="job.started"))
    store.advance(10)
    store.arrive(arrival(event="job.completed", id="b"))
    store.write(lambda tx: jobs.finish(tx, job, due_at=tx.now + 6 * 3600))
    row = store.row(jobs_table)
    assert (row["due_at"], row["cued_by"]) == (store.now, "webhook")


@pytest.mark.parametrize(("after", "due_in"), [(30, 3600 - 30), (90, 5)])
def test_a_sign_of_life_of_a_settled_job(store: Store, after: float, due_in: float) -> None:
    """A straggler of the run that has ended, at first; later it means a retry."""
    settle(store, hydrating(store))
    store.advance(after)
    store.arrive(arrival(event="job.page"))
    assert store.row(jobs_table)["due_at"] == store.now + due_in


def test_a_parked_job_comes_back_with_a_cue(store: Store) -> None:
    tracked(store)
    job = claimed(store)
    store.write(jobs.finish, job, due_at=None, state="parked")
    store.arrive(arrival())
    back = claimed(store)
    assert (back.id, back.state) == ("job_1", "watching")


def test_one_batch_with_every_kind(store: Store) -> None:
    """Each is answered for itself, in the order in which they came."""
    tracked(store, "known")
    outcomes = store.arrive(
        arrival(b"", id="a"),
        arrival(job="job_b", id="b"),
        arrival(b"{", id="a"),
        arrival(job="job_b", id="b"),
        arrival(job="job_c", event="job.started", id="c"),
        arrival(job="known", id="d", signed=False),
        arrival(b'{"type":"credit.low"}', id="e"),
    )
    assert names(outcomes) == ["quarantined", "accepted", "quarantined", "duplicate", "accepted", "accepted", "ignored"]
    assert [row["id"] for row in store.rows(jobs_table)] == ["job_b", "job_c", "known"]


def test_a_job_cued_by_both_kinds_in_one_batch_is_due_at_once(store: Store) -> None:
    again = body(event="job.page", n=2)
    store.arrive(arrival(event="job.page", id="a"), arrival(id="b"), arrival(again, id="c"))
    row = store.row(jobs_table)
    assert (row["due_at"], row["cue"], row["cued_by"]) == (NOW, 1, "webhook")


def test_an_arrival_needs_no_delivery_id_nor_event(store: Store) -> None:
    delivery = Delivery(b"{}", Meaning.ENDED, "job_1", None, None, None, int(NOW), "x", "s1:x", ())
    assert store.arrive(Arrival(delivery, NOW)) == [ACCEPTED]


@pytest.mark.parametrize("event", ["job.started", "job.completed"])
def test_a_batch_about_many_jobs(store: Store, event: str) -> None:
    """Known and unknown, settled and watched: all in one transaction."""
    settle(store, hydrating(store))
    store.advance(120)
    outcomes = store.arrive(*[arrival(job=f"job_{n}", event=event, id=f"{n}") for n in range(200)])
    assert set(names(outcomes)) == {"accepted"}
    assert len(store.rows(jobs_table)) == 200
    assert all(row["due_at"] <= store.now + 5 for row in store.rows(jobs_table))
