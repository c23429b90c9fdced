"""Figures over all replicas, from what is stored: the same wherever they are asked for, and none is lost by a restart or by pruning.

What only ever grows was added up as it happened (see `measures`); what stands here now is counted, by an index that holds no more.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from sqlalchemy import ColumnElement, Table, TextClause, func, or_, select, text

from receiver.core.lifecycle import State
from receiver.errors import SignatureReason
from receiver.store import budget, inbox, leadership
from receiver.store.measures import ACK_BUCKETS, BATCH_BUCKETS, Delays, Sums
from receiver.store.tables import MISSED, deliveries, grants, hook_deliveries, hooks, jobs, pauses, submissions
from receiver.store.transaction import Transaction

# Told of from the beginning: of a series that begins with its first count nobody sees that it rose.
_ANSWERED: Final = [
    *((outcome, "") for outcome in (*get_args(inbox.OutcomeName), "unavailable")),
    *(("refused", reason) for reason in (*get_args(SignatureReason), "too_large", "media_type")),
]
_CAUSES: Final = ("rate_limited", "unauthenticated", "insufficient_credits")


@dataclass(frozen=True, slots=True)
class Figures:
    """What `/metrics` tells.

    `deliveries`: by (outcome, why it was refused). `acks`: from a stored one's headers to its answer. `batches`: how many shared a
    transaction. `jobs`: by state. `outcomes`: by (status, discoverer). `missed`: newest ends of jobs that no webhook has told of.
    `noticed`, `settled`, `delivered`: from Reader's `completedAt` to our noticing, from there to all results stored, and from
    there to each delivered event. `results`: of settled ends, `read` or `failed`. `hook_deliveries`: by state; all that were ever
    delivered. `attempts`: by (hook, outcome). `hooks`: whether each is paused. `pruned`: rows, by what they were of.
    `requests`: by what they were for. `in_use`: requests of the last minute, of `limit` that the workspace has. `paused`: by cause;
    `held_back`: how often, by cause. `overdue`: seconds that the work longest due has waited, by what it is. `stream_up`: somebody
    follows the workspace stream. `now`: the database's clock, Unix seconds. `files`: bytes of an SQLite database.
    `quarantined`: deliveries that are genuine, and could not be read.
    """

    deliveries: dict[tuple[str, str], int]
    acks: Delays
    batches: Delays
    jobs: dict[str, int]
    outcomes: dict[tuple[str, str], int]
    missed: int
    noticed: Delays
    settled: Delays
    delivered: Delays
    results: dict[str, int]
    hook_deliveries: dict[str, int]
    attempts: dict[tuple[str, str], int]
    hooks: dict[str, bool]
    pruned: dict[str, int]
    requests: dict[str, int]
    in_use: int
    limit: int
    paused: list[str]
    held_back: dict[str, int]
    overdue: dict[str, float]
    stream_up: bool
    now: float
    files: dict[str, int]
    quarantined: int


def read(tx: Transaction, *, rpm: int | None = None) -> Figures:
    """All of them, in one transaction. `rpm`: the workspace's limit as configured, None to go by its tier."""
    sums = Sums(tx)
    by_state = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    attempts = {_parts(label): count for label, count in sums.counts("attempts").items()}
    return Figures(
        deliveries=dict.fromkeys(_ANSWERED, 0) | {_parts(label): count for label, count in sums.counts("deliveries").items()},
        acks=sums.delays("acks", ACK_BUCKETS),
        batches=sums.delays("batches", BATCH_BUCKETS),
        jobs=dict.fromkeys(State, 0) | {state: count for state, count in tx.execute(by_state)},  # noqa: C416 - rows are not tuples to the checker
        outcomes={_parts(label): count for label, count in sums.counts("ended").items()},
        missed=_count(tx, jobs, text(MISSED)),
        noticed=sums.delays("noticed"),
        settled=sums.delays("settled"),
        delivered=sums.delays("delivered"),
        results={"read": 0, "failed": 0} | sums.counts("results"),
        hook_deliveries={
            "pending": _count(tx, hook_deliveries, hook_deliveries.c.due_at.is_not(None)),
            "delivered": sums.counts("taken").get("", 0),
            "dead": _count(tx, hook_deliveries, text("state = 'dead'")),
        },
        attempts={(hook, outcome): count for (outcome, hook), count in attempts.items()},
        hooks={
            name: paused_at is not None
            for name, paused_at in tx.execute(select(hooks.c.name, hooks.c.paused_at).where(~hooks.c.retired))
        },
        pruned=sums.counts("pruned"),
        requests=budget.counts(tx),
        in_use=_count(tx, grants, grants.c.frees_at > tx.now),
        limit=budget.allowed(tx, rpm),
        paused=list(tx.execute(select(pauses.c.name).where(pauses.c.until > tx.now)).scalars()),
        held_back=dict.fromkeys(_CAUSES, 0) | sums.counts("held back"),
        overdue={"jobs": _overdue(tx, jobs), "events": _overdue_events(tx), "submissions": _overdue(tx, submissions)},
        stream_up=leadership.led(tx, leadership.STREAM),
        now=tx.now,
        files={} if tx.is_postgresql else _files(tx),
        quarantined=_count(tx, deliveries, text("outcome = 'quarantined' AND outcome <> 'accepted'")),
    )


def _count(tx: Transaction, table: Table, which: ColumnElement[bool] | TextClause) -> int:
    return tx.execute(select(func.count()).select_from(table).where(which)).scalar_one()


def _overdue(tx: Transaction, table: Table, *more: ColumnElement[bool]) -> float:
    """How long the one longest due has waited to be taken up."""
    free = or_(table.c.lease_until.is_(None), table.c.lease_until <= tx.now)
    first = select(table.c.due_at).where(table.c.due_at <= tx.now, free, *more).order_by(table.c.due_at).limit(1)
    due_at = tx.execute(first).scalar()
    return 0.0 if due_at is None else tx.now - due_at


def _overdue_events(tx: Transaction) -> float:
    """Of hooks that events are brought to: what waits for one that is paused, or gone, waits on purpose."""
    names = tx.execute(select(hooks.c.name).where(~hooks.c.retired, hooks.c.paused_at.is_(None))).scalars().all()
    return max((_overdue(tx, hook_deliveries, hook_deliveries.c.hook == name) for name in names), default=0.0)


def _files(tx: Transaction) -> dict[str, int]:
    path = tx.execute(text("SELECT file FROM pragma_database_list WHERE name = 'main'")).scalar_one()
    sizes = {}
    for name, suffix in (("database", ""), ("wal", "-wal")):
        with suppress(FileNotFoundError):  # there is no WAL before the first write
            sizes[name] = Path(path + suffix).stat().st_size
    return {"wal": 0} | sizes


def _parts(label: str) -> tuple[str, str]:
    first, _, second = label.partition(" ")
    return first, second
