"""What waits for a hook: claimed in its turn, and then delivered, put off or given up. Each hook has a queue of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, or_, select, update

from receiver.core.delivering import Persistence
from receiver.errors import LeaseLostError
from receiver.store import hook_health, measures
from receiver.store.outbox import Event
from receiver.store.tables import events, hook_attempts, hook_deliveries, hooks
from receiver.store.transaction import Transaction

KEPT = 50
"""Attempts that are kept of one delivery, the last ones: a handler may put an event off as often as it likes."""

_EVENT = [events.c[name] for name in Event.__slots__]


@dataclass(frozen=True, slots=True)
class HookDelivery:
    """An event on its way to one hook, leased to us. `attempts` counts those before this one."""

    event: Event
    hook: str
    attempts: int
    fence: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one attempt ended, and so what becomes of its delivery.

    `failed`: due again in `wait` seconds. `later`: likewise, as the hook wished, and not counted. `dead`: given up.
    """

    delivery: HookDelivery
    outcome: Literal["delivered", "failed", "dead", "later"]
    at: float
    """When it began: Unix seconds."""
    seconds: float
    wait: float = 0.0
    status: int | None = None
    error: str | None = None
    answer: str | None = None
    blamed: bool = True
    """Whether a failure tells against the hook: an event that it refuses for good does not."""
    gone: bool = False
    """It said that it is gone for good."""


@dataclass(frozen=True, slots=True)
class Finished:
    """`lost`: the event ids of attempts whose delivery somebody else has taken over: nothing was written of them."""

    lost: frozenset[str]
    change: hook_health.Change | None = None


def claim(tx: Transaction, *, hook: str, most: int, owner: str, lease: float, probe: float = 0.0) -> list[HookDelivery]:
    """Take the deliveries longest due, at most so many. While the hook is paused, none; when it is to be probed, one.

    A hook gets a job's events in the order of their generations: a later one waits while an earlier one is pending.
    `probe`: seconds until the next probe.
    """
    d = hook_deliveries
    columns = (d.c.attempts, d.c.fence, *_EVENT)
    waiting = select(*columns).join(events, events.c.id == d.c.event_id).with_for_update(skip_locked=True, of=d)
    ours = _due(tx, hook)
    paused = exists().where(hooks.c.name == hook, hooks.c.paused_at.is_not(None))
    found = tx.execute(waiting.where(*ours, ~paused).order_by(d.c.due_at).limit(most)).all()
    if not found and hook_health.is_to_be_probed(tx, hook):
        # The one tried least: others may wait because of what they are, and would tell nothing of the hook.
        found = tx.execute(waiting.where(*ours).order_by(d.c.attempts, d.c.due_at).limit(1)).all()
        if found and not hook_health.begin_probe(tx, hook, every=probe):
            return []
    if not found:
        return []
    claimed = [HookDelivery(Event(*row[2:]), hook, row.attempts, row.fence + 1) for row in found]
    tx.execute(
        update(d)
        .where(d.c.hook == hook, d.c.event_id.in_([each.event.id for each in claimed]))
        .values(lease_owner=owner, lease_until=tx.now + lease, fence=d.c.fence + 1)
    )
    return claimed


def _due(tx: Transaction, hook: str) -> list[ColumnElement[bool]]:
    d, earlier = hook_deliveries, hook_deliveries.alias()
    free = or_(d.c.lease_until.is_(None), d.c.lease_until <= tx.now)
    first = ~exists().where(
        earlier.c.job_id == d.c.job_id,
        earlier.c.hook == d.c.hook,
        earlier.c.generation < d.c.generation,
        earlier.c.due_at.is_not(None),
    )
    return [d.c.hook == hook, d.c.due_at <= tx.now, free, first]


def finish(tx: Transaction, hook: str, attempts: Sequence[Attempt], policy: Persistence) -> Finished:
    """Write how attempts of one hook ended, and how the hook fares by them."""
    kept, lost = [], set()
    for attempt in sorted(attempts, key=lambda attempt: attempt.delivery.event.id):
        try:
            _guarded(tx, attempt.delivery, _fate(tx, attempt))
        except LeaseLostError:
            lost.add(attempt.delivery.event.id)
        else:
            kept.append(attempt)
    _log(tx, kept)
    change = hook_health.note(tx, hook, _said(kept), policy)
    _measure(tx, kept)
    return Finished(frozenset(lost), change)


def _fate(tx: Transaction, attempt: Attempt) -> dict[str, Any]:
    counted = attempt.delivery.attempts + (attempt.outcome != "later")
    values: dict[str, Any] = {"attempts": counted, "last_status": attempt.status, "last_error": attempt.error}
    if attempt.outcome == "delivered":
        values |= {"state": "delivered", "due_at": None, "delivered_at": tx.now}
    elif attempt.outcome == "dead":
        values |= {"state": "dead", "due_at": None}
    else:
        values |= {"due_at": tx.now + attempt.wait}
    return values | {"lease_owner": None, "lease_until": None}


def _log(tx: Transaction, attempts: Sequence[Attempt]) -> None:
    rows = [
        {
            "event_id": each.delivery.event.id,
            "hook": each.delivery.hook,
            "number": each.delivery.attempts + 1,
            "at": each.at,
            "seconds": max(each.seconds, 0.0),
            "outcome": each.outcome,
            "status": each.status,
            "error": each.error,
            "answer": each.answer or None,
        }
        for each in attempts
    ]
    if rows:
        tx.execute(hook_attempts.insert(), rows)
    a = hook_attempts
    for each in attempts:
        if each.outcome == "later" or each.delivery.attempts >= KEPT:
            of = (a.c.event_id == each.delivery.event.id, a.c.hook == each.delivery.hook)
            newest = select(a.c.id).where(*of).order_by(a.c.id.desc()).limit(KEPT)
            tx.execute(delete(a).where(*of, a.c.id.not_in(newest)))


def _said(attempts: Sequence[Attempt]) -> hook_health.Said:
    """What these attempts, in the order in which they ended, tell of their hook."""
    ordered = sorted(attempts, key=lambda attempt: attempt.at + attempt.seconds)
    success, failures, last, gone = False, 0, "", False
    for attempt in ordered:
        if attempt.outcome == "delivered":
            success, failures, gone = True, 0, False
        elif attempt.outcome != "later" and attempt.blamed:
            failures, last, gone = failures + 1, attempt.error or "", gone or attempt.gone
    return hook_health.Said(success=success, failures=failures, last=last, gone=gone)


def _measure(tx: Transaction, attempts: Sequence[Attempt]) -> None:
    found = [measures.Measure("attempts", f"{attempt.outcome} {attempt.delivery.hook}") for attempt in attempts]
    for attempt in attempts:
        if attempt.outcome == "delivered":
            found.append(measures.Measure("taken", ""))
            if not attempt.delivery.event.stall:
                found.append(measures.delay("delivered", tx.now - attempt.delivery.event.created_at))
    measures.note(tx, *measures.together(found))


def hold(tx: Transaction, delivery: HookDelivery, *, lease: float) -> None:
    """Renew the lease. Raises `LeaseLostError`."""
    _guarded(tx, delivery, {"lease_until": tx.now + lease})


def check(tx: Transaction, delivery: HookDelivery) -> None:
    """Whether it is ours still, and stays so until the transaction ends. Raises `LeaseLostError`."""
    _guarded(tx, delivery, {"fence": delivery.fence})


def release(tx: Transaction, delivery: HookDelivery, *, begun: bool = False) -> None:
    """Give it back: untried, and due as it was; or `begun` and broken off, behind all that is due by now. Raises `LeaseLostError`."""
    values: dict[str, Any] = {"lease_owner": None, "lease_until": None}
    _guarded(tx, delivery, values | {"due_at": tx.now} if begun else values)


def _guarded(tx: Transaction, delivery: HookDelivery, values: Mapping[str, Any]) -> None:
    d = hook_deliveries
    # Leased still: once the lease was given back, a renewal that comes late must not take it again.
    held = and_(d.c.fence == delivery.fence, d.c.lease_owner.is_not(None))
    ours = and_(d.c.event_id == delivery.event.id, d.c.hook == delivery.hook, held)
    if tx.execute(update(d).where(ours).values(**values)).rowcount != 1:
        raise LeaseLostError(f"another worker has taken event {delivery.event.id} for {delivery.hook} over")


def next_due(tx: Transaction, *, hook: str) -> float | None:
    """Seconds until a delivery for the hook can be claimed, also from who may be dead; None if none will.

    Negative: one can be.
    """
    paused = tx.execute(select(hooks.c.paused_at, hooks.c.probe_at).where(hooks.c.name == hook)).first()
    probe_at = None
    if paused is not None and paused.paused_at is not None:
        if paused.probe_at is None:
            return None
        probe_at = float(paused.probe_at)
    looked_at = (tx.execute(_waiting(tx, hook)).scalar(), tx.execute(_leased(tx, hook)).scalar())
    soonest = [float(at) for at in looked_at if at is not None]
    if not soonest:
        return None
    at = min(soonest)
    return (at if probe_at is None else max(at, probe_at)) - tx.now


def _waiting(tx: Transaction, hook: str) -> Select[Any]:
    d = hook_deliveries
    free = or_(d.c.lease_until.is_(None), d.c.lease_until <= tx.now)
    return select(d.c.due_at).where(d.c.hook == hook, d.c.due_at.is_not(None), free).order_by(d.c.due_at).limit(1)


def _leased(tx: Transaction, hook: str) -> Select[Any]:
    d = hook_deliveries
    return select(func.min(d.c.lease_until)).where(d.c.hook == hook, d.c.due_at <= tx.now, d.c.lease_until > tx.now)
