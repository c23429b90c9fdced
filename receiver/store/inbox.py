"""The inbox: deliveries as they came, deduped by unique constraint, each making its job due in the same transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select

from receiver.core.delivery import Delivery, Meaning
from receiver.store import jobs
from receiver.store.tables import deliveries, seen
from receiver.store.tables import jobs as jobs_table
from receiver.store.transaction import Transaction, per_dialect


@dataclass(frozen=True, slots=True)
class Arrival:
    """A delivery and when it came (Unix seconds, wall clock)."""

    delivery: Delivery
    at: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an arrival. `same_id`: another body has come under its delivery id before. `cued`: a job fell due at once."""

    name: Literal["accepted", "duplicate", "ignored", "quarantined"]
    same_id: bool = False
    cued: bool = False


_NAMES: dict[Meaning, Literal["accepted", "ignored", "quarantined"]] = {
    Meaning.ENDED: "accepted",
    Meaning.ALIVE: "accepted",
    Meaning.NOTHING: "ignored",
    Meaning.UNREADABLE: "quarantined",
}


def accept(tx: Transaction, arrivals: Sequence[Arrival]) -> list[Outcome]:
    """Store many deliveries; return what became of each, in order.

    One that any of whose keys is known is a duplicate, and stores nothing. This is the one door: a cue by webhook ends here in
    `jobs.cue`, as one by poll or by stream does.
    """
    fresh = _note_keys(tx, arrivals)
    outcomes: list[Outcome] = []
    kept: list[dict[str, Any]] = []
    cues: list[jobs.Cue] = []
    unsigned = _known_jobs(tx, [a.delivery for a in arrivals if not a.delivery.signed])
    for arrival in arrivals:
        delivery = arrival.delivery
        # Popped: within the batch the first of equals is the new one.
        new = [fresh.pop(key, False) for key in delivery.keys]
        same_id = delivery.delivery_id is not None and not fresh.pop(_id_key(delivery), False)
        if not all(new):
            outcomes.append(Outcome("duplicate"))
            continue
        name = _NAMES[delivery.meaning]
        if not delivery.signed and name == "accepted" and delivery.job_id not in unsigned:
            name = "ignored"  # anybody could make us spend requests on jobs of their invention
        ended = delivery.meaning is Meaning.ENDED
        outcomes.append(Outcome(name, same_id=same_id, cued=ended and name == "accepted"))
        kept.append(_row(arrival, name))
        if name == "accepted":
            assert delivery.job_id is not None
            cues.append(jobs.Cue(delivery.job_id, by="webhook", ended=ended))
    if kept:
        tx.execute(deliveries.insert(), kept)
    jobs.cue(tx, cues)
    return outcomes


def _note_keys(tx: Transaction, arrivals: Sequence[Arrival]) -> dict[str, bool]:
    """Insert all keys; return those that were new."""
    hits: dict[str, int] = {}
    for arrival in arrivals:
        for key in arrival.delivery.keys:
            hits[key] = hits.get(key, 0) + 1
        if arrival.delivery.delivery_id is not None:
            # Beside the id's key with the body: tells that an id has come with another body.
            hits.setdefault(_id_key(arrival.delivery), 1)
    # Sorted, so that two replicas' batches never wait for each other in a ring.
    rows = [{"key": key, "hits": hits[key], "first_at": arrivals[0].at} for key in sorted(hits)]
    return {key: True for key, count in tx.execute(_note(tx), rows) if count == hits[key]}


@per_dialect
def _note(insert: Any) -> Any:
    statement = insert(seen)
    return statement.on_conflict_do_update(
        index_elements=[seen.c.key], set_={"hits": seen.c.hits + statement.excluded.hits}
    ).returning(seen.c.key, seen.c.hits)


def _id_key(delivery: Delivery) -> str:
    # Sorts next to the id's keys with a body, and is none of them whatever the id: those end in a digest.
    return f"{'d' if delivery.signed else 'u'}{delivery.delivery_id}:"


def _known_jobs(tx: Transaction, unsigned: Sequence[Delivery]) -> set[str]:
    ids = {delivery.job_id for delivery in unsigned if delivery.job_id is not None}
    if not ids:
        return set()
    return set(tx.execute(select(jobs_table.c.id).where(jobs_table.c.id.in_(ids))).scalars())


def _row(arrival: Arrival, outcome: str) -> dict[str, Any]:
    delivery = arrival.delivery
    return {
        "received_at": arrival.at,
        "outcome": outcome,
        "reason": delivery.reason,
        "event": delivery.event,
        "job_id": delivery.job_id,
        "delivery_id": delivery.delivery_id,
        "signed_at": delivery.timestamp,
        "key": delivery.keys[0],
        "body": delivery.body,
    }
