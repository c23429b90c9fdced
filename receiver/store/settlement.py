"""Settling: the one place where a generation becomes what readers see, and its event goes out or is held back for the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update

from receiver.core.lifecycle import State
from receiver.core.retrying import Retry
from receiver.core.schedule import late_look
from receiver.store import hours, jobs, measures, outbox
from receiver.store.tables import outcomes
from receiver.store.transaction import Transaction


@dataclass(frozen=True, slots=True)
class Outcome:
    """A settled generation. `ended_at` is Reader's `completedAt` in Unix seconds, where it told one."""

    job_id: str
    generation: int
    status: str
    document: bytes
    results: int
    failed_urls: int
    verified: bool
    discovered_by: str
    requests: int
    ended_at: float | None
    noticed_at: float
    settled_at: float
    pruned_at: float | None = None
    """When retention began to take its results away."""


_COLUMNS = [outcomes.c[name] for name in Outcome.__slots__]


def settle(tx: Transaction, job: jobs.Job, outcome: Outcome, event: outbox.Event | None, *, retry: bool = False) -> None:
    """In one transaction, if the lease is still ours: the outcome, the switch to its results, the event in the outbox.

    `retry`: it is to be retried, which is due at once; then `event` may be None: it is held back, see `held`. What was held back
    of the generation before is overtaken now. Raises `LeaseLostError`; a generation that was settled before violates a constraint.
    """
    wait = 0.0 if retry else late_look(0)
    jobs.finish(
        tx,
        job,
        due_at=None if wait is None else tx.now + wait,
        retry=Retry.DUE if retry else None,
        retries=job.retries + retry,
        held=event is None,
        state=State.SETTLED,
        settled_generation=outcome.generation,
        restarts=0,
        attempts=0,
        misses=0,
        late_looks=0,
        trouble=None,
        expects_end=False,
        page_limit=100,
    )
    tx.execute(outcomes.insert().values(**{column.name: getattr(outcome, column.name) for column in _COLUMNS}))
    if event is not None:
        outbox.publish(tx, event)
    took = [measures.delay("settled", outcome.settled_at - outcome.noticed_at)]
    if outcome.ended_at is not None:
        took.append(measures.delay("noticed", outcome.noticed_at - outcome.ended_at))
    stored = [
        measures.Measure("results", "read", count=outcome.results - outcome.failed_urls),
        measures.Measure("results", "failed", count=outcome.failed_urls),
    ]
    hours.note(tx, "ended", {outcome.status: 1})
    measures.note(tx, measures.Measure("ended", f"{outcome.status} {outcome.discovered_by}"), *took, *stored)


def reopened(job: jobs.Job) -> dict[str, Any]:
    """What to write of a settled job to have the results of its newest generation, pruned since, read again."""
    return {
        "state": State.HYDRATING,
        "settled_generation": job.generation - 1,
        "restarts": 0,
        "attempts": 0,
        "misses": 0,
        "refetch": False,
    }


def restore(tx: Transaction, job: jobs.Job, outcome: Outcome) -> bool:
    """Settle a reopened job, if it is one: its results are there again, to be pruned anew in time. Its end was told long ago.

    Raises `LeaseLostError`.
    """
    ours = (outcomes.c.job_id == outcome.job_id, outcomes.c.generation == outcome.generation)
    known = {name: getattr(outcome, name) for name in ("document", "results", "failed_urls", "verified", "settled_at")}
    if tx.execute(update(outcomes).where(*ours).values(**known, pruned_at=None, swept=False)).rowcount == 0:
        return False
    jobs.finish(
        tx,
        job,
        due_at=None,
        state=State.SETTLED,
        settled_generation=outcome.generation,
        restarts=0,
        attempts=0,
        misses=0,
        trouble=None,
        page_limit=100,
    )
    return True


def get_outcome(tx: Transaction, job_id: str, generation: int) -> Outcome | None:
    """What became of one generation."""
    where = (outcomes.c.job_id == job_id, outcomes.c.generation == generation)
    row = tx.execute(select(*_COLUMNS).where(*where)).one_or_none()
    return None if row is None else Outcome(**_mapping(row))


def first_outcome(tx: Transaction, job_id: str) -> Outcome | None:
    """What became of the first generation that was settled."""
    where = outcomes.c.job_id == job_id
    row = tx.execute(select(*_COLUMNS).where(where).order_by(outcomes.c.generation).limit(1)).one_or_none()
    return None if row is None else Outcome(**_mapping(row))


def outcomes_of(tx: Transaction, job_id: str) -> list[Outcome]:
    """What became of each of a job's generations that were settled, in their order."""
    rows = tx.execute(select(*_COLUMNS).where(outcomes.c.job_id == job_id).order_by(outcomes.c.generation))
    return [Outcome(**_mapping(row)) for row in rows]


def _mapping(row: Any) -> dict[str, Any]:
    return dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
