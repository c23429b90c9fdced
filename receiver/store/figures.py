"""Figures over all replicas, from what is stored: the same wherever they are asked for, and none is lost by a restart or by pruning.

What only ever grows was added up as it happened (see `measures`); what stands here now is counted, by an index that holds no more.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Table, TextClause, func, select, text

from receiver.core.lifecycle import State
from receiver.store import budget
from receiver.store.measures import Delays, Sums
from receiver.store.tables import MISSED, grants, hook_deliveries, jobs, pauses
from receiver.store.transaction import Transaction


@dataclass(frozen=True, slots=True)
class Figures:
    """`jobs`: by state. `outcomes`: by (status, discoverer). `missed`: newest ends of jobs that no webhook has told of.

    `noticed`, `settled`, `delivered`: from Reader's `completedAt` to our noticing, from there to all results stored, and from
    there to each delivered event. `hook_deliveries`: by state; all that were ever delivered. `pruned`: rows, by what they were of.
    `requests`: by what they were for. `in_use`: requests of the last minute. `paused`: by cause.
    """

    jobs: dict[str, int]
    outcomes: dict[tuple[str, str], int]
    missed: int
    noticed: Delays
    settled: Delays
    delivered: Delays
    hook_deliveries: dict[str, int]
    pruned: dict[str, int]
    requests: dict[str, int]
    in_use: int
    paused: list[str]


def read(tx: Transaction) -> Figures:
    """All of them, in one transaction."""
    sums = Sums(tx)
    by_state = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    return Figures(
        jobs=dict.fromkeys(State, 0) | {state: count for state, count in tx.execute(by_state)},  # noqa: C416 - rows are not tuples to the checker
        outcomes={_parts(label): count for label, count in sums.counts("ended").items()},
        missed=_count(tx, jobs, text(MISSED)),
        noticed=sums.delays("noticed"),
        settled=sums.delays("settled"),
        delivered=sums.delays("delivered"),
        hook_deliveries={
            "pending": _count(tx, hook_deliveries, hook_deliveries.c.due_at.is_not(None)),
            "delivered": sums.counts("taken").get("", 0),
            "dead": _count(tx, hook_deliveries, text("state = 'dead'")),
        },
        pruned=sums.counts("pruned"),
        requests=budget.counts(tx),
        in_use=_count(tx, grants, grants.c.frees_at > tx.now),
        paused=list(tx.execute(select(pauses.c.name).where(pauses.c.until > tx.now)).scalars()),
    )


def _count(tx: Transaction, table: Table, which: ColumnElement[bool] | TextClause) -> int:
    return tx.execute(select(func.count()).select_from(table).where(which)).scalar_one()


def _parts(label: str) -> tuple[str, str]:
    status, _, by = label.partition(" ")
    return status, by
