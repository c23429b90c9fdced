"""Pruning: what is kept no longer is deleted, a small part in each transaction, so that no acknowledgement waits long for it.

Each function deletes one part and returns where to go on; they are walks along an index, oldest first, that never look twice at what
they leave (because somebody still needs it, or its clock was ahead). What is left is found again by the next pass.

SQLite's freed pages are left in the file, and used again by what comes next: a file under retention stops growing. To give them back
to the disk, `auto_vacuum` would have to move pages about, in the one transaction that may write, for space that is needed again by
tomorrow; who needs it now runs VACUUM while the server is stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, exists, func, select, text, true, tuple_, update

from receiver.core.delivery import keys_signed_before
from receiver.core.lifecycle import State
from receiver.store import measures, results
from receiver.store.tables import (
    UNSIGNED,
    deliveries,
    events,
    grants,
    history,
    hook_attempts,
    hook_deliveries,
    hours,
    jobs,
    outcomes,
    seen,
    submissions,
)
from receiver.store.transaction import Transaction

ROWS = 500
"""Rows deleted in one transaction, about; looked at, at the most."""
BYTES = 4 << 20
"""Bytes of bodies deleted in one transaction, beyond those of a single one."""
_AS_CHUNK, _AS_JOB = ROWS // 32, ROWS // 25
"""Rows that a chunk of results counts as, and what is to be done for each job."""
_AT_REST = (State.SETTLED, State.PARKED)


@dataclass(frozen=True, slots=True)
class Part:
    """What one transaction has deleted. `after`: where the next one begins; None: this was the last."""

    rows: int
    after: Any = None


def old_grants(tx: Transaction, before: float, after: Any) -> Part:
    """Requests that no longer count against any limit, whoever made them. `before` is not needed: they say so themselves."""
    del before, after
    return Part(tx.execute(delete(grants).where(grants.c.frees_at <= tx.now)).rowcount)


def signed_keys(tx: Transaction, before: float, after: str | None) -> Part:
    """Dedupe keys of deliveries signed `before`: they are led by that time, so no index of another time is needed."""
    _spill(tx)
    for first, end in keys_signed_before(before):
        if after is not None and after >= end:
            continue
        begin = seen.c.key >= first if after is None or after < first else seen.c.key > after
        found = list(tx.execute(select(seen.c.key).where(begin, seen.c.key < end).order_by(seen.c.key).limit(ROWS)).scalars())
        if found:
            which = (seen.c.key >= found[0], seen.c.key <= found[-1])
            # By our own clock too: it may have been wrong when they came.
            return Part(tx.execute(delete(seen).where(*which, seen.c.first_at < before)).rowcount, found[-1])
    return Part(0)


def unsigned_keys(tx: Transaction, before: float, after: Any) -> Part:
    """Those of deliveries that nobody signed, and that came `before`."""
    del after
    _spill(tx)
    old = select(seen.c.key).where(text(UNSIGNED), seen.c.first_at < before).order_by(seen.c.first_at, seen.c.key).limit(ROWS)
    keys = list(tx.execute(old).scalars())
    tx.execute(delete(seen).where(seen.c.key.in_(keys)))
    return Part(len(keys), len(keys) == ROWS or None)


def _spill(tx: Transaction) -> None:
    if tx.held is not None:
        tx.held.spill(tx)


def old_deliveries(tx: Transaction, before: float, after: int | None) -> Part:
    """Deliveries received `before`, in the order in which they came: until there is a part with none so old."""
    d = deliveries
    size = func.length(d.c.body)
    found = tx.execute(select(d.c.id, d.c.received_at, size).where(d.c.id > (after or 0)).order_by(d.c.id).limit(ROWS)).all()
    part = found[: _within_bytes([row[2] for row in found])]
    old = [id_ for id_, received_at, _ in part if received_at < before]
    if not old:
        return Part(0)
    tx.execute(delete(d).where(d.c.id.in_(old)))
    return Part(len(old), part[-1].id)


def _within_bytes(sizes: Sequence[int]) -> int:
    """How many of the first are at most `BYTES` together, or one."""
    total = 0
    for number, size in enumerate(sizes):
        total += size
        if number and total > BYTES:
            return number
    return len(sizes)


def old_results(tx: Transaction, before: float, after: tuple[float, str, int] | None) -> Part:
    """Results of generations settled `before`. The outcome stays, and says from the first moment that they are gone.

    Those of a job that is not at rest stay, and those whose event is held back or still to be delivered.
    """
    place = (outcomes.c.settled_at, outcomes.c.job_id, outcomes.c.generation)
    kept = and_(text("NOT swept"), outcomes.c.settled_at < before, _after(place, after))
    page = select(*place).where(kept).order_by(*place).limit(ROWS).subquery()
    d = hook_deliveries
    pending = exists().where(d.c.job_id == page.c.job_id, d.c.generation == page.c.generation, d.c.due_at.is_not(None))
    free = select(jobs.c.id).where(jobs.c.id == page.c.job_id, jobs.c.state.in_(_AT_REST), ~jobs.c.held).exists() & ~pending
    found = tx.execute(select(*page.c, free.label("free")).order_by(*page.c)).all()
    weight = rows = 0
    for row in found:
        _, job_id, generation = here = (row.settled_at, row.job_id, row.generation)
        if row.free and _is_ours(tx, job_id):
            dropped = _prune(tx, job_id, generation)
            rows += dropped.rows
            weight += _AS_JOB + dropped.rows + dropped.chunks * _AS_CHUNK
            if dropped.more:
                return Part(rows, after or (0.0, "", 0))
        after = here
        if weight >= ROWS:
            return Part(rows, after)
    return Part(rows, after if len(found) == ROWS else None)


def _is_ours(tx: Transaction, job_id: str) -> bool:
    """Whether the job is at rest, and stays so in this transaction: else it might just begin to fetch its results again."""
    at_rest = (jobs.c.id == job_id, jobs.c.state.in_(_AT_REST))
    return tx.execute(select(jobs.c.id).where(*at_rest).with_for_update(skip_locked=True)).first() is not None


def _prune(tx: Transaction, job_id: str, generation: int) -> results.Dropped:
    dropped = results.drop_part(tx, job_id, generation)
    ours = (outcomes.c.job_id == job_id, outcomes.c.generation == generation)
    since = func.coalesce(outcomes.c.pruned_at, tx.now)
    tx.execute(update(outcomes).where(*ours).values(pruned_at=since, swept=not dropped.more))
    return dropped


def old_events(tx: Transaction, before: float, after: tuple[float, str] | None) -> Part:
    """Events of `before` that every hook has got, or that were given up, with their deliveries."""
    place = (events.c.created_at, events.c.id)
    statement = select(*place).where(events.c.created_at < before, _after(place, after)).order_by(*place).limit(ROWS // 2)
    found = tx.execute(statement).all()
    if not found:
        return Part(0)
    ids = [row.id for row in found]
    d = hook_deliveries
    waiting = select(d.c.event_id).where(d.c.event_id.in_(ids), d.c.due_at.is_not(None))
    done = sorted(set(ids) - set(tx.execute(waiting).scalars()))
    tx.execute(delete(d).where(d.c.event_id.in_(done), d.c.due_at.is_(None)))
    tx.execute(delete(hook_attempts).where(hook_attempts.c.event_id.in_(done)))
    # Looked at once more: one may have been replayed just now, and then it is still to be delivered.
    left = exists().where(d.c.event_id == events.c.id)
    rows = tx.execute(delete(events).where(events.c.id.in_(done), ~left)).rowcount
    return Part(rows, tuple(found[-1]) if len(found) == ROWS // 2 else None)


def old_submissions(tx: Transaction, before: float, after: tuple[float, str] | None) -> Part:
    """Submissions of `before` that were answered. While results of their job are kept or read, so is what it was asked for."""
    s = submissions
    place = (s.c.created_at, s.c.id)
    statement = select(*place, s.c.job_id).where(s.c.due_at.is_(None), s.c.created_at < before, _after(place, after))
    found = tx.execute(statement.order_by(*place).limit(ROWS // 10)).all()
    busy = select(jobs.c.id).where(jobs.c.id == s.c.job_id, jobs.c.state.not_in(_AT_REST)).exists()
    kept = select(outcomes.c.job_id).where(outcomes.c.job_id == s.c.job_id, text("NOT swept")).exists()
    ids = [row.id for row in found]
    gone = tx.execute(delete(s).where(s.c.id.in_(ids), ~busy, ~kept)).rowcount if ids else 0
    return Part(gone, tuple(found[-1][:2]) if len(found) == ROWS // 10 else None)


def old_history(tx: Transaction, before: float, after: int | None) -> Part:
    """What happened to jobs `before`, in the order in which it was written."""
    h = history
    found = tx.execute(select(h.c.id, h.c.last_at).where(h.c.id > (after or 0)).order_by(h.c.id).limit(ROWS)).all()
    old = [row.id for row in found if row.last_at < before]
    if not old:
        return Part(0)
    tx.execute(delete(h).where(h.c.id.in_(old), h.c.last_at < before))
    return Part(len(old), found[-1].id)


def old_hours(tx: Transaction, before: float, after: Any) -> Part:
    """Counts of hours `before`."""
    del after
    return Part(tx.execute(delete(hours).where(hours.c.hour < int(before // 3600))).rowcount)


def _after(place: tuple[Any, ...], after: tuple[Any, ...] | None) -> ColumnElement[bool]:
    return true() if after is None else tuple_(*place) > tuple_(*after)


def note(tx: Transaction, what: str, rows: int) -> None:
    """Count what was deleted, for the metrics."""
    if rows:
        measures.note(tx, measures.Measure("pruned", what, count=rows))
