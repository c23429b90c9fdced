"""How a hook fares: one that keeps failing is left alone, and probed now and then until it takes an event again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select, update

from receiver.core.delivering import GONE, Persistence
from receiver.store.tables import hook_deliveries, hooks
from receiver.store.transaction import Transaction

_BY_COMMAND = "paused by command"
_HURRIED = 5000
"""Deliveries that are made due at once when a hook is well again. What waits beyond them comes in its time."""


@dataclass(frozen=True, slots=True)
class Said:
    """What some attempts tell of a hook: whether one succeeded, and how many failed since then."""

    success: bool
    failures: int
    last: str
    """The last failure's words."""
    gone: bool


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a hook by it."""

    to: Literal["paused", "resumed"]
    why: str


def note(tx: Transaction, hook: str, said: Said, policy: Persistence) -> Change | None:
    """Take down how it fared. A change is one that was not so before."""
    change = None
    if said.success:
        change = _well(tx, hook)
    if said.failures:
        change = _failed(tx, hook, said, policy) or change
    return change


def _well(tx: Transaction, hook: str) -> Change | None:
    named = hooks.c.name == hook
    # Mostly there is nothing to write: every delivery of every replica would otherwise wait for this one row.
    tx.execute(update(hooks).where(named, hooks.c.failures > 0).values(failures=0, failing_since=None))
    probed = (named, hooks.c.probe_at.is_not(None))
    if tx.execute(update(hooks).where(*probed).values(_RUNNING)).rowcount == 0:
        return None
    _hurry(tx, hook)
    return Change("resumed", "it took an event again")


_RUNNING: dict[str, Any] = {"failures": 0, "failing_since": None, "paused_at": None, "paused_why": None, "probe_at": None}


def _failed(tx: Transaction, hook: str, said: Said, policy: Persistence) -> Change | None:
    row = tx.execute(select(hooks).where(hooks.c.name == hook).with_for_update()).one_or_none()
    if row is None:
        return None
    failures = row.failures + said.failures
    since = tx.now if row.failing_since is None else row.failing_since
    values: dict[str, Any] = {"failures": failures, "failing_since": since}
    change = None
    if said.gone or policy.pauses(failures, for_seconds=tx.now - since):
        probe_at = tx.now + policy.probe * (GONE if said.gone else 1)
        if row.paused_at is None:
            why = "it answered 410, gone" if said.gone else f"it failed {failures} times in a row: {said.last}"
            change = Change("paused", why)
            values |= {"paused_at": tx.now, "paused_why": why, "probe_at": probe_at}
        elif row.probe_at is not None:
            values["probe_at"] = probe_at
    tx.execute(update(hooks).where(hooks.c.name == hook).values(values))
    return change


def is_to_be_probed(tx: Transaction, hook: str) -> bool:
    """Whether it is paused, and one delivery may be let through."""
    return tx.execute(select(hooks.c.name).where(hooks.c.name == hook, hooks.c.probe_at <= tx.now)).first() is not None


def begin_probe(tx: Transaction, hook: str, *, every: float) -> bool:
    """Whether it is us who probe it: the next time is then `every` seconds away."""
    due = (hooks.c.name == hook, hooks.c.probe_at <= tx.now)
    return tx.execute(update(hooks).where(*due).values(probe_at=tx.now + every)).rowcount == 1


def pause(tx: Transaction, hook: str) -> bool:
    """Bring nothing to it until it is resumed by command; False: there is no such hook."""
    since = {"paused_at": tx.now, "paused_why": _BY_COMMAND, "probe_at": None}
    return tx.execute(update(hooks).where(hooks.c.name == hook).values(since)).rowcount == 1


def resume(tx: Transaction, hook: str) -> bool:
    """Bring it what waits, from now on; False: there is no such hook."""
    if tx.execute(update(hooks).where(hooks.c.name == hook).values(_RUNNING)).rowcount == 0:
        return False
    _hurry(tx, hook)
    return True


def _hurry(tx: Transaction, hook: str) -> None:
    """What was put off because the hook failed need not wait any longer."""
    d = hook_deliveries
    put_off = select(d.c.event_id).where(d.c.hook == hook, d.c.due_at > tx.now, d.c.lease_until.is_(None))
    soonest = put_off.order_by(d.c.due_at).limit(_HURRIED).with_for_update(skip_locked=True)
    tx.execute(update(d).where(d.c.hook == hook, d.c.event_id.in_(soonest)).values(due_at=tx.now))
