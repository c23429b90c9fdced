"""What happened to a job, for people to read: written along with what is done, and never asked for by what does it.

The same thing several times in a row is one row, and of each job only so many are kept: a job that is looked at for weeks, or that has
a million pages, costs no more than another.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import delete, select, update

from receiver.store.tables import history
from receiver.store.transaction import Transaction

What = Literal[
    "asked",  # by a person: `wish`, to `look`, `cancel` or `retry`
    "heard",  # that it ended, or lives again, from the workspace stream
    "looked",  # it still runs: `completed`, `total`; `by`: what made us look
    "noticed",  # that it ended: `status`, `by`
    "page",  # read and stored: `skip`, `rows`, `bytes` as they are stored
    "again",  # what was read so far is thrown away: `reason`
    "unchanged",  # a settled job that is as it was
    "trouble",  # it is put back for `wait` seconds: `reason`
    "parked",  # `reason`
    "retried",  # its failed URLs, by ourselves
    "given up",  # such a retry: `reason`
    "reopened",  # its pruned results are to be read again
    "restored",  # and were
]

MOST = 300
"""Rows of one job, at most."""
_ALIKE = ("by", "wish", "reason")
"""What two of a kind must have in common to be one row."""
_REPEATED = frozenset({"asked", "heard", "looked", "unchanged", "trouble"})


@dataclass(frozen=True, slots=True)
class Entry:
    """`count` times the same, from `at` to `last_at` (Unix seconds); `detail` is of the last one."""

    what: What
    generation: int | None
    at: float
    last_at: float
    count: int
    detail: dict[str, Any]


def note(tx: Transaction, job_id: str, what: What, *, generation: int | None = None, **detail: Any) -> None:
    """Write it down, at this transaction's time. Any time before what must be last in a transaction."""
    last = tx.execute(_newest(job_id).limit(1)).first()
    if last is not None and last.what == what and what in _REPEATED and last.generation == generation:
        before = json.loads(last.detail)
        if all(before.get(name) == detail.get(name) for name in _ALIKE):
            again = {"count": history.c.count + 1, "last_at": tx.now, "detail": json.dumps(detail)}
            tx.execute(update(history).where(history.c.id == last.id).values(**again))
            return
    number = 1 if last is None else last.number + 1
    values = {"job_id": job_id, "number": number, "what": what, "generation": generation, "detail": json.dumps(detail)}
    tx.execute(history.insert().values(**values, at=tx.now, last_at=tx.now))
    if number > MOST:
        tx.execute(delete(history).where(history.c.job_id == job_id, history.c.number <= number - MOST))


def of_job(tx: Transaction, job_id: str) -> list[Entry]:
    """In the order in which it was written."""
    found = tx.execute(_newest(job_id).limit(MOST)).all()
    return [Entry(r.what, r.generation, r.at, r.last_at, r.count, json.loads(r.detail)) for r in reversed(found)]


def _newest(job_id: str) -> Any:
    return select(history).where(history.c.job_id == job_id).order_by(history.c.number.desc(), history.c.id.desc())
