"""The inbox: deliveries as they came, deduped by unique constraint, each making its job due in the same transaction."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import Double, Integer, bindparam, cast, func, select

from receiver.core.delivery import Delivery, Meaning
from receiver.store import jobs
from receiver.store.held_keys import Key
from receiver.store.many import TRUE, insert_if_new, insert_rows, members
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


_ACCEPTED: Final = Outcome("accepted", cued=True)
_DUPLICATE: Final = Outcome("duplicate")


class _Known(NamedTuple):
    """What is known of an arrival: itself, its id with another body."""

    itself: bool = False
    same_id: bool = False


def accept(tx: Transaction, arrivals: Sequence[Arrival]) -> list[Outcome]:
    """Store many deliveries; return what became of each, in order.

    One whose key is known, or whose id with its body, is a duplicate, and stores nothing. This is the one door: a cue by webhook
    ends here in `jobs.cue`, as one by poll or by stream does.
    """
    outcomes: list[Outcome] = []
    kept: list[tuple[Any, ...]] = []
    cues: dict[str, float | None] = {}
    unsigned = _known_jobs(tx, [told for told, _ in arrivals if told.timestamp is None])
    for arrival, known in zip(arrivals, _note_keys(tx, arrivals), strict=False):
        delivery = arrival.delivery
        if known.itself:
            outcomes.append(_DUPLICATE)
            continue
        name = outcome_of(delivery, known=delivery.timestamp is not None or delivery.job_id in unsigned)
        kept.append(_row(arrival, name))
        if name != "accepted":
            outcomes.append(Outcome(name, known.same_id))
            continue
        ended = delivery.meaning is Meaning.ENDED
        outcomes.append(_ACCEPTED if ended and not known.same_id else Outcome(name, known.same_id, ended))
        assert delivery.job_id is not None
        if ended or delivery.job_id not in cues:  # an end says more than a sign of life
            cues[delivery.job_id] = 0.0 if ended else None
    insert_rows(tx, deliveries, _COLUMNS, kept)
    jobs.cue(tx, cues, by="webhook")
    return outcomes


def outcome_of(delivery: Delivery, *, known: bool) -> Literal["accepted", "ignored", "quarantined"]:
    """What becomes of one that is not a duplicate. `known`: it is signed, or its job is known."""
    name = _NAMES[delivery.meaning]
    # Of an unsigned one: anybody could make us spend requests on jobs of their invention.
    return "ignored" if name == "accepted" and not known else name


def _note_keys(tx: Transaction, arrivals: Sequence[Arrival]) -> Iterable[_Known]:
    """Insert all keys; return what was known of each arrival, in order."""
    at = arrivals[0].at
    keys = [(key, at, told.digest) for told, _ in arrivals for key in (told.key, *told.id_keys)]
    if tx.held is not None:
        new = tx.held.hold_if_new(tx, keys)
    else:
        # Sorted, so that two replicas' batches never wait for each other in a ring.
        new = insert_if_new(tx, seen, ("key", "first_at", "digest"), sorted(keys))
    return repeat(_Known()) if new else _known(tx, arrivals, keys)


def _known(tx: Transaction, arrivals: Sequence[Arrival], keys: Sequence[Key]) -> Iterator[_Known]:
    at = arrivals[0].at
    if tx.held is not None:
        tx.held.spill(tx)
    counts = Counter(key for key, _, _ in keys)
    first = {key: told.digest for told, _ in reversed(arrivals) for key in (told.key, *told.id_keys)}
    found = _hit(tx, [(key, first[key], count) for key, count in counts.items()], at)
    # Taken out as they are met: within the batch the first of equals is the new one.
    new = {key for key, (hits, _) in found.items() if hits == counts[key]}
    for told, _ in arrivals:
        itself, same_id = not _taken(new, told.key), False
        for key in told.id_keys:
            if _taken(new, key):
                continue
            if found[key][1] != told.digest:
                both = told.key_with_body(key)
                if _hit(tx, [(both, told.digest, 1)], at)[both][0] == 1:
                    same_id = True
                    continue
            itself = True
        yield _Known(itself, same_id)


def _taken(keys: set[str], key: str) -> bool:
    if key in keys:
        keys.remove(key)
        return True
    return False


def _hit(tx: Transaction, keys: Sequence[tuple[str, str, int]], at: float) -> dict[str, tuple[int, str]]:
    """Insert keys, or count those that are known: (key, digest, how often). Returns their hits by now, and the first's digest."""
    if tx.held is not None:
        tx.held.written([key for key, _, _ in keys])
    # Sorted, as above.
    given = json.dumps({key: f"{digest:32}{count}" for key, digest, count in sorted(keys)})
    return {key: (hits, digest) for key, hits, digest in tx.execute(_note(tx), {"keys": given, "at": at})}


@per_dialect
def _note(insert: Any) -> Any:
    given = members("keys", insert)
    digest, count = func.rtrim(func.substr(given.c.value, 1, 32)), cast(func.substr(given.c.value, 33), Integer)
    statement = insert(seen).from_select(
        ["key", "digest", "hits", "first_at"],
        select(given.c.key, digest, count, bindparam("at", type_=Double)).where(TRUE),
    )
    return statement.on_conflict_do_update(
        index_elements=[seen.c.key], set_={"hits": seen.c.hits + statement.excluded.hits}
    ).returning(seen.c.key, seen.c.hits, seen.c.digest)


def _known_jobs(tx: Transaction, unsigned: Sequence[Delivery]) -> set[str]:
    ids = {delivery.job_id for delivery in unsigned if delivery.job_id is not None}
    if not ids:
        return set()
    return set(tx.execute(select(jobs_table.c.id).where(jobs_table.c.id.in_(ids))).scalars())


_COLUMNS = ("received_at", "outcome", "reason", "event", "job_id", "delivery_id", "signed_at", "key", "body")


def _row(arrival: Arrival, outcome: OutcomeName) -> tuple[Any, ...]:
    told = arrival.delivery
    said = (told.reason, told.event, told.job_id, told.delivery_id, told.timestamp)
    return (arrival.at, outcome, *said, told.key, told.body)
