"""What there is to see of hooks: which there are and how they fare, what went to them or waits, and each attempt at it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, func, select, text

from receiver.store.tables import events, hook_attempts, hook_deliveries, hooks
from receiver.store.transaction import Transaction

STATES = ("pending", "delivered", "dead")


@dataclass(frozen=True, slots=True)
class HookRow:
    """A hook that somebody has declared. Times are Unix seconds."""

    name: str
    kind: str
    """`python`, `http`, `command` or `broker`."""
    target: str
    """Where it leads, without secrets."""
    events: tuple[str, ...]
    state: str
    """`running`, `failing`, `paused`, or `retired`: no longer in the settings."""
    failures: int
    """Attempts that failed since the last one that did not."""
    failing_since: float | None
    paused_at: float | None
    paused_why: str | None
    probe_at: float | None
    """When one delivery is let through to a paused hook; None: it was paused by command."""
    pending: int
    dead: int
    last_delivered_at: float | None
    """Of its newest deliveries."""


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """An event and one hook that wanted it."""

    event_id: str
    hook: str
    job_id: str
    generation: int
    type: str
    state: str
    """`pending`, `delivered` or `dead`."""
    attempts: int
    created_at: float
    due_at: float | None
    delivered_at: float | None
    last_status: int | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt at a delivery. `answer`: the first 1 KB of what the hook said."""

    event_id: str
    hook: str
    number: int
    at: float
    seconds: float
    outcome: str
    """`delivered`, `failed`, `later` (put off, as a handler wished) or `dead`."""
    status: int | None
    error: str | None
    answer: str | None


def all_hooks(tx: Transaction) -> list[HookRow]:
    """Every hook that is declared, or was and still has something to deliver, by name."""
    d = hook_deliveries
    pending = _counts(tx, d.c.due_at.is_not(None))
    dead = _counts(tx, text("state = 'dead'"))
    rows = tx.execute(select(hooks).order_by(hooks.c.name)).all()
    return [_hook(tx, row, pending, dead) for row in rows if not row.retired or pending.get(row.name) or dead.get(row.name)]


def find_hook(tx: Transaction, name: str) -> HookRow | None:
    """One of them."""
    row = tx.execute(select(hooks).where(hooks.c.name == name)).one_or_none()
    if row is None:
        return None
    d = hook_deliveries
    return _hook(tx, row, _counts(tx, d.c.due_at.is_not(None)), _counts(tx, text("state = 'dead'")))


def _counts(tx: Transaction, which: Any) -> dict[str, int]:
    d = hook_deliveries
    return {hook: count for hook, count in tx.execute(select(d.c.hook, func.count()).where(which).group_by(d.c.hook))}  # noqa: C416 - rows are not tuples to the checker


def _hook(tx: Transaction, row: Row[Any], pending: dict[str, int], dead: dict[str, int]) -> HookRow:
    d = hook_deliveries
    newest = select(d.c.delivered_at).where(d.c.hook == row.name).order_by(d.c.created_at.desc()).limit(20).subquery()
    return HookRow(
        name=row.name,
        kind=row.kind,
        target=row.target,
        events=tuple(json.loads(row.events)),
        state=state_of(row),
        failures=row.failures,
        failing_since=row.failing_since,
        paused_at=row.paused_at,
        paused_why=row.paused_why,
        probe_at=row.probe_at,
        pending=pending.get(row.name, 0),
        dead=dead.get(row.name, 0),
        last_delivered_at=tx.execute(select(func.max(newest.c.delivered_at))).scalar(),
    )


def state_of(row: Row[Any]) -> str:
    """Of a row of `hooks`, as `HookRow` has it."""
    if row.retired:
        return "retired"
    if row.paused_at is not None:
        return "paused"
    return "failing" if row.failures else "running"


def deliveries(
    tx: Transaction, *, hook: str | None = None, event: str | None = None, state: str | None = None, limit: int = 50
) -> list[DeliveryRow]:
    """The newest first: of a hook, of an event, or of both. `state`: one of `STATES`."""
    d = hook_deliveries
    columns = [(events if name == "type" else d).c[name] for name in DeliveryRow.__slots__]
    statement: Select[Any] = select(*columns).join(events, events.c.id == d.c.event_id)
    for column, wanted in ((d.c.hook, hook), (d.c.event_id, event), (d.c.state, state)):
        if wanted is not None:
            statement = statement.where(column == wanted)
    return [DeliveryRow(*row) for row in tx.execute(statement.order_by(d.c.created_at.desc()).limit(limit))]


def attempts(tx: Transaction, of: Sequence[DeliveryRow]) -> dict[tuple[str, str], list[AttemptRow]]:
    """The last attempts at these deliveries, oldest first, by event id and hook."""
    a = hook_attempts
    found: dict[tuple[str, str], list[AttemptRow]] = {}
    columns = [a.c[name] for name in AttemptRow.__slots__]
    ids = sorted({row.event_id for row in of})
    for start in range(0, len(ids), 500):
        chosen = select(*columns).where(a.c.event_id.in_(ids[start : start + 500])).order_by(a.c.id)
        for row in tx.execute(chosen):
            found.setdefault((row.event_id, row.hook), []).append(AttemptRow(*row))
    return {(row.event_id, row.hook): found.get((row.event_id, row.hook), []) for row in of}
