"""Figures over all replicas, counted from what is stored: the same wherever they are asked for, and none is lost by a restart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, func, select

from receiver.core.lifecycle import State
from receiver.store import budget
from receiver.store.tables import grants, hook_deliveries, jobs, outcomes, pauses
from receiver.store.transaction import Transaction

BUCKETS = (1.0, 2.0, 5.0, 15.0, 60.0, 300.0, 3600.0)
"""Seconds: upper bounds of the delays that are told apart."""


@dataclass(frozen=True, slots=True)
class Delays:
    """How many waited at most so long (`BUCKETS`), how many there are, and all their seconds together."""

    within: Sequence[int]
    count: int
    total: float


@dataclass(frozen=True, slots=True)
class Figures:
    """`jobs`: by state. `outcomes`: by (status, discoverer). `missed`: newest ends of jobs that no webhook has told of.

    `noticed`, `settled`, `delivered`: from Reader's `completedAt` to our noticing, from there to all results stored, and from
    there to each delivered event. `requests`: by what they were for. `in_use`: requests of the last minute. `paused`: by cause.
    """

    jobs: dict[str, int]
    outcomes: dict[tuple[str, str], int]
    missed: int
    noticed: Delays
    settled: Delays
    delivered: Delays
    hook_deliveries: dict[str, int]
    requests: dict[str, int]
    in_use: int
    paused: list[str]


def read(tx: Transaction) -> Figures:
    """All of them, in one transaction."""
    by_state = dict.fromkeys(State, 0) | _counts(tx, jobs.c.state)
    kinds = (outcomes.c.status, outcomes.c.discovered_by)
    found = tx.execute(select(*kinds, func.count()).group_by(*kinds))
    settled = (jobs.c.state == State.SETTLED, jobs.c.status != "cancelled", ~jobs.c.told)
    delivered = hook_deliveries.join(
        outcomes,
        (outcomes.c.job_id == hook_deliveries.c.job_id) & (outcomes.c.generation == hook_deliveries.c.generation),
    )
    in_use = select(func.count()).select_from(grants).where(grants.c.frees_at > tx.now)
    return Figures(
        jobs=by_state,
        outcomes={(status, by): count for status, by, count in found},
        missed=tx.execute(select(func.count()).select_from(jobs).where(*settled)).scalar_one(),
        noticed=_delays(tx, outcomes, outcomes.c.noticed_at - outcomes.c.ended_at),
        settled=_delays(tx, outcomes, outcomes.c.settled_at - outcomes.c.noticed_at),
        delivered=_delays(tx, delivered, hook_deliveries.c.delivered_at - outcomes.c.settled_at),
        hook_deliveries=_counts(tx, hook_deliveries.c.state),
        requests=budget.counts(tx),
        in_use=tx.execute(in_use).scalar_one(),
        paused=list(tx.execute(select(pauses.c.name).where(pauses.c.until > tx.now)).scalars()),
    )


def _counts(tx: Transaction, column: ColumnElement[Any]) -> dict[str, int]:
    return {name: count for name, count in tx.execute(select(column, func.count()).group_by(column))}  # noqa: C416 - rows are not tuples to the checker


def _delays(tx: Transaction, source: Any, delay: ColumnElement[Any]) -> Delays:
    within = [func.coalesce(func.sum(case((delay <= bound, 1), else_=0)), 0) for bound in BUCKETS]
    columns = (*within, func.count(), func.coalesce(func.sum(case((delay > 0, delay), else_=0.0)), 0.0))
    *counts, count, total = tx.execute(select(*columns).select_from(source).where(delay.is_not(None))).one()
    return Delays([int(number) for number in counts], count, float(total))
