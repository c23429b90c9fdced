"""Submissions: written down before the request leaves, so that a crash in between loses nothing.

The idempotency key makes sending one again harmless, for as long as Reader remembers it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import and_, or_, select, update

from receiver.errors import LeaseLostError
from receiver.store.tables import submissions
from receiver.store.transaction import Transaction

KEY_LIVES = 24 * 3600.0
"""Seconds for which Reader returns the first answer for the same `x-idempotency-key`."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A request for a job. `body` is the JSON of `POST /v1/read`."""

    id: str
    idempotency_key: str
    body: str
    created_at: float
    attempts: int
    fence: int


def add(tx: Transaction, submission_id: str, *, key: str, body: str, lease: float, owner: str) -> Submission:
    """Write it down, leased to who is about to send it."""
    tx.execute(
        submissions.insert().values(
            id=submission_id,
            idempotency_key=key,
            body=body,
            state="pending",
            created_at=tx.now,
            due_at=tx.now,
            lease_owner=owner,
            lease_until=tx.now + lease,
        )
    )
    return Submission(submission_id, key, body, tx.now, attempts=0, fence=0)


def claim(tx: Transaction, *, owner: str, lease: float) -> Submission | None:
    """Take one whose answer never came."""
    s = submissions
    due = (
        select(s.c.id)
        .where(s.c.due_at <= tx.now, or_(s.c.lease_until.is_(None), s.c.lease_until <= tx.now))
        .order_by(s.c.due_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = tx.execute(
        update(s)
        .where(s.c.id == due.scalar_subquery())
        .values(lease_owner=owner, lease_until=tx.now + lease, fence=s.c.fence + 1)
        .returning(s.c.id, s.c.idempotency_key, s.c.body, s.c.created_at, s.c.attempts, s.c.fence)
    ).one_or_none()
    return None if row is None else Submission(*row)


def sent(tx: Transaction, submission: Submission, *, job_id: str) -> None:
    """Reader took it as `job_id`."""
    _finish(tx, submission, state="sent", job_id=job_id, due_at=None, trouble=None)


def later(tx: Transaction, submission: Submission, *, wait: float, trouble: str) -> None:
    """Send it again in `wait` seconds."""
    _finish(tx, submission, due_at=tx.now + wait, trouble=trouble, attempts=submission.attempts + 1)


def refused(tx: Transaction, submission: Submission, *, trouble: str) -> None:
    """Reader will not take it, however often it is asked."""
    _finish(tx, submission, state="refused", due_at=None, trouble=trouble)


def expired(tx: Transaction, submission: Submission) -> None:
    """Its key is forgotten by now: sending it again could start the job a second time."""
    _finish(
        tx,
        submission,
        state="expired",
        due_at=None,
        trouble="not answered within 24 h, and not safe to send again: submit it anew",
    )


def _finish(tx: Transaction, submission: Submission, **values: object) -> None:
    s = submissions
    # Leased still: what was given back once, with whatever end, is not written again.
    ours = and_(s.c.id == submission.id, s.c.fence == submission.fence, s.c.lease_owner.is_not(None))
    if tx.execute(update(s).where(ours).values(**values, lease_owner=None, lease_until=None)).rowcount != 1:
        raise LeaseLostError(f"another worker has taken submission {submission.id} over")


def body_of(tx: Transaction, submission_id: str) -> str | None:
    """The request that started a job."""
    return tx.execute(select(submissions.c.body).where(submissions.c.id == submission_id)).scalar_one_or_none()


def next_due(tx: Transaction) -> float | None:
    """Seconds until one falls due; None if none waits."""
    s = submissions
    free = or_(s.c.lease_until.is_(None), s.c.lease_until <= tx.now)
    due = tx.execute(select(s.c.due_at).where(s.c.due_at.is_not(None), free).order_by(s.c.due_at).limit(1)).scalar_one_or_none()
    return None if due is None else due - tx.now
