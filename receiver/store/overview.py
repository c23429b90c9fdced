"""What one look at everything shows. Each figure costs the same however much is stored: it is counted up to a bound."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Select, TextClause, func, select, text

from receiver.core.lifecycle import State
from receiver.store import budget, hours, lookup
from receiver.store.hook_log import DeliveryRow, state_of
from receiver.store.jobs import Job
from receiver.store.tables import events, grants, hook_deliveries, hooks, jobs, pauses
from receiver.store.transaction import Transaction

SHOWN = 12
"""Jobs in flight that are shown."""
ENDED = 6
"""Jobs that have ended that are shown."""
MANY = 1000
"""Up to here is counted; beyond it is "more than"."""
LISTED = 20
"""Deliveries of a hook that are listed."""
_LATELY, _LAST = 86400.0, 200
"""Of the ends of the last day, the last so many tell how often webhooks come."""
_GRACE = 60.0
"""Seconds after we noticed an end within which its webhook may still come, and is not missed."""


@dataclass(frozen=True, slots=True)
class Webhooks:
    """Of the last ends that webhooks tell of, how many there were and for how many none came.

    `open`: of these, those so new that it may be on its way.
    """

    ends: int
    missed: int
    open: int


@dataclass(frozen=True, slots=True)
class Budget:
    """Requests to Reader that count against this minute, and how many may. `paused`: why none may leave, by cause."""

    used: int
    allowed: int
    paused: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Hook:
    """How a hook fares. `waiting` and `dead` are counted up to `MANY`; `overdue`: seconds since the first that waits fell due.

    `state`, `failures` and the times as in `hook_log.HookRow`.
    """

    name: str
    kind: str
    target: str
    events: Sequence[str]
    state: str
    failures: int
    failing_since: float | None
    paused_at: float | None
    paused_why: str | None
    probe_at: float | None
    waiting: int
    overdue: float
    dead: int


@dataclass(frozen=True, slots=True)
class Overview:
    """`in_flight`, `lately`: the newest that run, and that have ended. `counts`: jobs not settled, by state, up to `MANY`.

    `ended`, `deliveries`: by hour and label.
    """

    now: float
    empty: bool
    in_flight: Sequence[Job]
    lately: Sequence[lookup.Listed]
    counts: Mapping[str, int]
    ended: Mapping[int, Mapping[str, int]]
    deliveries: Mapping[int, Mapping[str, int]]
    webhooks: Webhooks
    budget: Budget
    hooks: Sequence[Hook]


def read(tx: Transaction, *, rpm: int | None, share: float) -> Overview:
    """All of it, in one short transaction. `rpm` and `share` as they are configured."""
    since = int(tx.now // hours.HOUR) - 23
    counts: dict[str, int] = {
        state: _count(tx, jobs, jobs.c.state == state) for state in (State.WATCHING, State.HYDRATING, State.PARKED)
    }
    return Overview(
        now=tx.now,
        empty=tx.execute(select(jobs.c.id).limit(1)).first() is None,
        in_flight=under_way(tx),
        lately=lookup.ended(tx, limit=ENDED),
        counts=counts,
        ended=hours.since(tx, "ended", since),
        deliveries=hours.since(tx, "deliveries", since),
        webhooks=_webhooks(tx),
        budget=_budget(tx, rpm, share),
        hooks=all_hooks(tx),
    )


def under_way(tx: Transaction) -> list[Job]:
    """The newest jobs that have not ended, or whose results are being read."""
    found = []
    for state in (State.HYDRATING, State.WATCHING):
        chosen = select(jobs).where(jobs.c.state == state).order_by(jobs.c.tracked_at.desc()).limit(SHOWN)
        found += [Job.of(row) for row in tx.execute(chosen)]
    return sorted(found, key=lambda job: -job.tracked_at)[:SHOWN]


def _webhooks(tx: Transaction) -> Webhooks:
    lately = (
        select(jobs.c.told, jobs.c.noticed_at)
        .where(
            jobs.c.noticed_at > tx.now - _LATELY,
            jobs.c.status != "cancelled",  # of that none tells
            text("source <> 'webhook'"),  # spelt out, as the index has it
        )
        .order_by(jobs.c.noticed_at.desc())
        .limit(_LAST)
    )
    ends = tx.execute(lately).all()
    missed = [row.noticed_at for row in ends if not row.told]
    return Webhooks(len(ends), len(missed), sum(at > tx.now - _GRACE for at in missed))


def _budget(tx: Transaction, rpm: int | None, share: float) -> Budget:
    paused = select(pauses.c.name, pauses.c.reason).where(pauses.c.until > tx.now)
    return Budget(
        used=tx.execute(select(func.count()).select_from(grants).where(grants.c.frees_at > tx.now)).scalar_one(),
        allowed=max(1, int(budget.allowed(tx, rpm) * share)),
        paused={row.name: row.reason for row in tx.execute(paused)},
    )


def all_hooks(tx: Transaction) -> list[Hook]:
    """Every hook that was ever declared, those in use first."""
    d = hook_deliveries.c
    # Those of all hooks together: there are few, and they are in no index by their hook.
    given_up = select(d.hook).where(text("state = 'dead'")).order_by(d.created_at.desc()).limit(MANY).subquery()
    dead_of = {
        row.hook: row.dead for row in tx.execute(select(given_up.c.hook, func.count().label("dead")).group_by(given_up.c.hook))
    }
    found = []
    for row in tx.execute(select(hooks).order_by(hooks.c.retired, hooks.c.name)):
        of_it: tuple[Any, ...] = (d.hook == row.name, d.due_at.is_not(None))
        waits = _count(tx, hook_deliveries, *of_it)
        first = tx.execute(select(func.min(d.due_at)).where(*of_it)).scalar() if waits else None
        overdue = 0.0 if first is None else max(tx.now - first, 0.0)
        fares = {name: getattr(row, name) for name in ("failures", "failing_since", "paused_at", "paused_why", "probe_at")}
        said = {"name": row.name, "kind": row.kind, "target": row.target, "events": json.loads(row.events)}
        counts = {"waiting": waits, "overdue": overdue, "dead": dead_of.get(row.name, 0)}
        found.append(Hook(**said, **counts, **fares, state=state_of(row)))
    return found


def waiting(tx: Transaction, hook: str) -> list[DeliveryRow]:
    """What waits to be brought to a hook, the first due first."""
    d = hook_deliveries.c
    return _rows(tx, _OF_HOOK.where(d.hook == hook, d.due_at.is_not(None)).order_by(d.due_at).limit(LISTED))


def dead(tx: Transaction, hook: str) -> list[DeliveryRow]:
    """What was given up, the newest first."""
    d = hook_deliveries.c
    # Of all hooks together, as above.
    newest = select(d.event_id, d.hook).where(text("state = 'dead'")).order_by(d.created_at.desc()).limit(MANY)
    given_up = [row.event_id for row in tx.execute(newest) if row.hook == hook][:LISTED]
    # By their ids, and put in order here: to join or to order them, SQLite would walk along all that ever went to the hook.
    rows = _rows(tx, _OF_HOOK.where(d.hook == hook, d.event_id.in_(given_up))) if given_up else []
    return sorted(rows, key=lambda row: -row.created_at)


def latest(tx: Transaction, hook: str) -> list[DeliveryRow]:
    """What went to a hook or is to go there, the newest first."""
    d = hook_deliveries.c
    return _rows(tx, _OF_HOOK.where(d.hook == hook).order_by(d.created_at.desc()).limit(LISTED))


def _rows(tx: Transaction, chosen: Select[Any]) -> list[DeliveryRow]:
    return [DeliveryRow(*row) for row in tx.execute(chosen)]


_OF_HOOK = select(*((events if name == "type" else hook_deliveries).c[name] for name in DeliveryRow.__slots__)).join_from(
    hook_deliveries, events, events.c.id == hook_deliveries.c.event_id
)


def _count(tx: Transaction, table: FromClause, *which: ColumnElement[bool] | TextClause) -> int:
    some = select(text("1")).select_from(table).where(*which).limit(MANY + 1).subquery()
    return tx.execute(select(func.count()).select_from(some)).scalar_one()
