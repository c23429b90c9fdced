"""Replaying: events go to their hooks once more, under the id they had, and are told what they told then."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, or_, select, text, true, tuple_, update

from receiver.store.tables import events, hook_deliveries, hooks
from receiver.store.transaction import Transaction

ROWS = 500
"""Events looked at in one transaction."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What to replay: exactly one of the first four. `since`: Unix seconds. `hook`: for this one alone."""

    event: str | None = None
    job: str | None = None
    dead: bool = False
    since: float | None = None
    hook: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """What one transaction has made due, by hook. `after`: where the next one begins; None: this was the last."""

    events: frozenset[str]
    hooks: Counter[str] = field(default_factory=Counter)
    after: Any = None


def replay(tx: Transaction, chosen: Selection, *, until: float, after: Any = None, dry_run: bool = False) -> Part:
    """Make due what is chosen and was there `until` then, a part at a time.

    A hook that has no delivery of an event gets one if it wants the event's type: it may have been declared since. What somebody
    is at work on is left to them, and retired hooks get nothing.
    """
    wanting = {
        row.name: json.loads(row.events)
        for row in tx.execute(select(hooks.c.name, hooks.c.events).where(~hooks.c.retired))
        if chosen.hook in {None, row.name}
    }
    if chosen.dead:
        return _dead(tx, wanting, until, after, dry_run=dry_run)
    return _events(tx, chosen, wanting, until, after, dry_run=dry_run)


def exists(tx: Transaction, chosen: Selection) -> bool:
    """Whether there is any event that is chosen, wanted by a hook or not."""
    return tx.execute(select(events.c.id).where(_which(chosen)).limit(1)).first() is not None


def _events(
    tx: Transaction, chosen: Selection, wanting: dict[str, list[str]], until: float, after: Any, *, dry_run: bool
) -> Part:
    place = (events.c.created_at, events.c.id)
    beyond = true() if after is None else tuple_(*place) > tuple_(*after)
    of = _which(chosen)
    columns = (events.c.id, events.c.job_id, events.c.generation, events.c.type, events.c.created_at)
    found = tx.execute(select(*columns).where(of, events.c.created_at <= until, beyond).order_by(*place).limit(ROWS)).all()
    d = hook_deliveries
    held = and_(d.c.lease_until.is_not(None), d.c.lease_until > tx.now)
    of_these = d.c.event_id.in_([event.id for event in found])
    known = {
        (row.event_id, row.hook): row.held
        for row in tx.execute(select(d.c.event_id, d.c.hook, held.label("held")).where(of_these))
    }
    again: dict[str, list[str]] = {}
    new: list[dict[str, Any]] = []
    for event in found:
        for hook, types in wanting.items():
            if event.type not in types or known.get((event.id, hook)):
                continue
            again.setdefault(hook, []).append(event.id)
            if (event.id, hook) not in known:
                new.append(_row(tx, event, hook))
    if not dry_run:
        if new:
            statement = tx.insert(hook_deliveries).on_conflict_do_nothing()
            tx.execute(statement, new)
        for hook, ids in sorted(again.items()):
            _make_due(tx, hook, ids)
    hit = frozenset(id_ for ids in again.values() for id_ in ids)
    last = found[-1] if len(found) == ROWS else None
    return Part(hit, Counter({hook: len(ids) for hook, ids in again.items()}), last and (last.created_at, last.id))


def _which(chosen: Selection) -> ColumnElement[bool]:
    if chosen.event is not None:
        return events.c.id == chosen.event
    if chosen.job is not None:
        return events.c.job_id == chosen.job
    return events.c.created_at >= (chosen.since or 0.0)


def _row(tx: Transaction, event: Any, hook: str) -> dict[str, Any]:
    common = {"event_id": event.id, "job_id": event.job_id, "generation": event.generation}
    return common | {"hook": hook, "state": "pending", "created_at": tx.now, "due_at": tx.now}


def _dead(tx: Transaction, wanting: Iterable[str], until: float, after: Any, *, dry_run: bool) -> Part:
    d = hook_deliveries
    place = (d.c.created_at, d.c.event_id, d.c.hook)
    # Onwards always: what is dead again at once is not taken up a second time.
    beyond = true() if after is None else tuple_(*place) > tuple_(*after)
    statement: Select[Any] = select(*place).where(text("state = 'dead'"), d.c.hook.in_(sorted(wanting)), beyond)
    found = tx.execute(statement.where(d.c.created_at <= until).order_by(*place).limit(ROWS)).all()
    by_hook: dict[str, list[str]] = {}
    for row in found:
        by_hook.setdefault(row.hook, []).append(row.event_id)
    if not dry_run:
        for hook, ids in sorted(by_hook.items()):
            _make_due(tx, hook, ids)
    counted = Counter({hook: len(ids) for hook, ids in by_hook.items()})
    return Part(frozenset(row.event_id for row in found), counted, tuple(found[-1]) if len(found) == ROWS else None)


def _make_due(tx: Transaction, hook: str, ids: list[str]) -> None:
    d = hook_deliveries
    free = or_(d.c.lease_until.is_(None), d.c.lease_until <= tx.now)
    fresh = {
        "state": "pending",
        "attempts": 0,
        "due_at": tx.now,
        "delivered_at": None,
        "last_status": None,
        "last_error": None,
        "lease_owner": None,
        "lease_until": None,
        "fence": d.c.fence + 1,  # whoever had it and froze writes nothing more of it
    }
    tx.execute(update(d).where(d.c.hook == hook, d.c.event_id.in_(sorted(ids)), free).values(fresh))
