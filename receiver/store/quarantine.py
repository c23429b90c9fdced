"""The quarantine: deliveries that are genuine, and that nobody could read; read again by a release that can."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import bindparam, select, update

from receiver.core.delivery import Claims, Meaning, understand
from receiver.store import jobs
from receiver.store.inbox import outcome_of
from receiver.store.tables import deliveries
from receiver.store.tables import jobs as jobs_table
from receiver.store.transaction import Transaction

ROWS = 200
"""Deliveries read again in one transaction, at most."""


class Reread(NamedTuple):
    """So many were looked at; of these, so many were taken in, and so many need no taking in. `last`: where to go on, if at all."""

    looked_at: int = 0
    accepted: int = 0
    ignored: int = 0
    last: int | None = 0


def read_again(tx: Transaction, *, after: int) -> Reread:
    """Read the next ones by what is known today. What can be read becomes what it would have become when it came."""
    d = deliveries
    chosen = select(d.c.id, d.c.event, d.c.delivery_id, d.c.signed_at, d.c.body)
    rows = tx.execute(chosen.where(d.c.outcome == "quarantined", d.c.id > after).order_by(d.c.id).limit(ROWS)).all()
    changes = []
    cues: dict[str, float | None] = {}
    for row in rows:
        claims = Claims(
            event=row.event, delivery_id=row.delivery_id, timestamp=None if row.signed_at is None else str(row.signed_at)
        )
        told = understand(bytes(row.body), claims, signed=row.signed_at is not None)
        if told.meaning is Meaning.UNREADABLE:
            continue
        outcome = outcome_of(told, known=told.timestamp is not None or _is_known(tx, told.job_id))
        if outcome == "accepted":
            assert told.job_id is not None
            ended = told.meaning is Meaning.ENDED
            if ended or told.job_id not in cues:
                cues[told.job_id] = 0.0 if ended else None
        changes.append({"row": row.id, "outcome": outcome, "event": told.event, "job_id": told.job_id})
    if changes:
        change = update(d).where(d.c.id == bindparam("row"))
        tx.execute(
            change.values(outcome=bindparam("outcome"), event=bindparam("event"), job_id=bindparam("job_id"), reason=None),
            changes,
        )
    jobs.cue(tx, cues, by="webhook")
    accepted = sum(change["outcome"] == "accepted" for change in changes)
    return Reread(len(rows), accepted, len(changes) - accepted, rows[-1].id if len(rows) == ROWS else None)


def _is_known(tx: Transaction, job_id: str | None) -> bool:
    return tx.execute(select(jobs_table.c.id).where(jobs_table.c.id == job_id)).first() is not None
