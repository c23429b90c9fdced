"""The inbox: deliveries as they came, deduped by unique constraint, each making its job due in the same transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from sqlalchemy import Double, Integer, bindparam, cast, select

from receiver.core.delivery import Delivery, Meaning
from receiver.store import jobs
from receiver.store.many import TRUE, insert_rows, members
from receiver.store.tables import deliveries, seen
from receiver.store.tables import jobs as jobs_table
from receiver.store.transaction import Transaction, per_dialect


class Arrival(NamedTuple):
    """A delivery and when it came (Unix seconds, wall clock)."""

    delivery: Delivery
    at: float


OutcomeName = Literal["accepted", "duplicate", "ignored", "quarantined"]


class Outcome(NamedTuple):
    """What became of an arrival. `same_id`: another body has come under its delivery id before. `cued`: a job fell due at once."""

    name: OutcomeName
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
    kept: list[tuple[Any, ...]] = []
    cues: dict[str, float | None] = {}
    unsigned = _known_jobs(tx, [a.delivery for a in arrivals if not a.delivery.signed])
    for arrival in arrivals:
        delivery = arrival.delivery
        # Popped: within the batch the first of equals is the new one.
        new = [fresh.pop(key, False) for key in delivery.keys]
        new_id = [fresh.pop(key, False) for key in delivery.id_keys]
        if not all(new):
            outcomes.append(Outcome("duplicate"))
            continue
        name = _NAMES[delivery.meaning]
        if not delivery.signed and name == "accepted" and delivery.job_id not in unsigned:
            name = "ignored"  # anybody could make us spend requests on jobs of their invention
        ended = delivery.meaning is Meaning.ENDED
        outcomes.append(Outcome(name, same_id=not all(new_id), cued=ended and name == "accepted"))
        kept.append(_row(arrival, name))
        if name == "accepted":
            assert delivery.job_id is not None
            if ended or delivery.job_id not in cues:  # an end says more than a sign of life
                cues[delivery.job_id] = 0.0 if ended else None
    insert_rows(tx, deliveries, _COLUMNS, kept)
    jobs.cue(tx, cues, by="webhook")
    return outcomes


def _note_keys(tx: Transaction, arrivals: Sequence[Arrival]) -> dict[str, bool]:
    """Insert all keys; return those that were new."""
    hits: dict[str, int] = {}
    for arrival in arrivals:
        for key in arrival.delivery.keys:
            hits[key] = hits.get(key, 0) + 1
        for key in arrival.delivery.id_keys:
            # Beside the id's key with the body: tells that an id has come with another body.
            hits.setdefault(key, 1)
    # Sorted, so that two replicas' batches never wait for each other in a ring.
    given = {"hits": json.dumps({key: hits[key] for key in sorted(hits)}), "at": arrivals[0].at}
    return {key: True for key, count in tx.execute(_note(tx), given).all() if count == hits[key]}


@per_dialect
def _note(insert: Any) -> Any:
    pairs = members("hits", insert)
    statement = insert(seen).from_select(
        ["key", "hits", "first_at"],
        select(pairs.c.key, cast(pairs.c.value, Integer), bindparam("at", type_=Double)).where(TRUE),
    )
    return statement.on_conflict_do_update(
        index_elements=[seen.c.key], set_={"hits": seen.c.hits + statement.excluded.hits}
    ).returning(seen.c.key, seen.c.hits)


def _known_jobs(tx: Transaction, unsigned: Sequence[Delivery]) -> set[str]:
    ids = {delivery.job_id for delivery in unsigned if delivery.job_id is not None}
    if not ids:
        return set()
    return set(tx.execute(select(jobs_table.c.id).where(jobs_table.c.id.in_(ids))).scalars())


_COLUMNS = ("received_at", "outcome", "reason", "event", "job_id", "delivery_id", "signed_at", "key", "body")


def _row(arrival: Arrival, outcome: OutcomeName) -> tuple[Any, ...]:
    told = arrival.delivery
    said = (told.reason, told.event, told.job_id, told.delivery_id, told.timestamp)
    return (arrival.at, outcome, *said, told.keys[0], told.body)
