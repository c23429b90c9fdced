"""The outbox: events, and for each hook that wants one, its delivery. Written with what they tell of; at least once from there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Select, and_, exists, func, or_, select, update

from receiver.errors import LeaseLostError
from receiver.store import measures
from receiver.store.tables import events, hook_deliveries, hooks
from receiver.store.transaction import Transaction


@dataclass(frozen=True, slots=True)
class Event:
    """One end of a job, or a stall, to be told downstream. `payload` is the body every hook gets, as text, always the same."""

    id: str
    job_id: str
    generation: int
    type: str
    created_at: float
    payload: str
    stall: int = 0
    """Which stall of the job it tells of; 0 for an end."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """A hook somebody runs: Python code, or a URL."""

    name: str
    kind: Literal["python", "http"]
    target: str
    events: Sequence[str]


@dataclass(frozen=True, slots=True)
class HookDelivery:
    """An event on its way to one hook, leased to us. `attempts` counts those before this one."""

    event: Event
    hook: str
    attempts: int
    fence: int


def declare(tx: Transaction, declared: Sequence[Declaration], *, all_http: bool) -> None:
    """Make hooks known: events settled from now on fan out to them.

    With `all_http` the list holds every HTTP hook there is: others declared before are retired (nothing is sent to them any
    more, and what waits for them waits). Python handlers are never retired so: another process may run them.
    """
    for hook in declared:
        values = {
            "kind": hook.kind,
            "target": hook.target,
            "events": json.dumps(list(hook.events)),
            "retired": False,
        }
        statement = tx.insert(hooks).values(name=hook.name, declared_at=tx.now, **values)
        tx.execute(statement.on_conflict_do_update(index_elements=[hooks.c.name], set_=values))
    if all_http:
        names = [hook.name for hook in declared if hook.kind == "http"]
        tx.execute(update(hooks).where(hooks.c.kind == "http", hooks.c.name.not_in(names)).values(retired=True))


def publish(tx: Transaction, event: Event) -> None:
    """Write an event and its deliveries. A second one for the same generation violates a constraint."""
    tx.execute(
        events.insert().values(
            id=event.id,
            job_id=event.job_id,
            generation=event.generation,
            type=event.type,
            created_at=event.created_at,
            payload=event.payload,
            stall=event.stall,
        )
    )
    wanting = [
        name
        for name, types in tx.execute(select(hooks.c.name, hooks.c.events).where(~hooks.c.retired))
        if event.type in json.loads(types)
    ]
    if wanting:
        common = {"event_id": event.id, "job_id": event.job_id, "generation": event.generation}
        tx.execute(
            hook_deliveries.insert(),
            [common | {"hook": name, "state": "pending", "created_at": tx.now, "due_at": tx.now} for name in sorted(wanting)],
        )


def claim(tx: Transaction, *, names: Iterable[str], owner: str, lease: float) -> HookDelivery | None:
    """Take the delivery longest due among those for hooks in `names`; None if none is.

    A hook gets a job's events in the order of their generations: a later one waits while an earlier one is pending.
    """
    d = hook_deliveries
    # A walk for each hook, that ends at the first it finds: what waits for hooks of others, retired ones too, may be a lot.
    firsts = {hook: found for hook in sorted(names) if (found := tx.execute(_first_due(tx, hook)).first()) is not None}
    for hook in sorted(firsts, key=lambda hook: firsts[hook].due_at):
        due = tx.execute(_first_due(tx, hook).with_for_update(skip_locked=True)).first()
        if due is not None:
            break
    else:
        return None
    claimed = tx.execute(
        update(d)
        .where(d.c.event_id == due.event_id, d.c.hook == due.hook)
        .values(lease_owner=owner, lease_until=tx.now + lease, fence=d.c.fence + 1)
        .returning(d.c.hook, d.c.attempts, d.c.fence)
    ).one()
    event = tx.execute(select(events).where(events.c.id == due.event_id)).one()
    return HookDelivery(Event(**event._mapping), claimed.hook, claimed.attempts, claimed.fence)  # noqa: SLF001 - public by its name


def _first_due(tx: Transaction, hook: str) -> Select[Any]:
    d, earlier = hook_deliveries, hook_deliveries.alias()
    free = or_(d.c.lease_until.is_(None), d.c.lease_until <= tx.now)
    first = ~exists().where(
        earlier.c.job_id == d.c.job_id,
        earlier.c.hook == d.c.hook,
        earlier.c.generation < d.c.generation,
        earlier.c.due_at.is_not(None),
    )
    columns = (d.c.event_id, d.c.hook, d.c.due_at)
    return select(*columns).where(d.c.hook == hook, d.c.due_at <= tx.now, free, first).order_by(d.c.due_at).limit(1)


def delivered(tx: Transaction, delivery: HookDelivery, *, status: int | None) -> None:
    """Done. Raises `LeaseLostError`."""
    _finish(
        tx,
        delivery,
        {
            "state": "delivered",
            "due_at": None,
            "delivered_at": tx.now,
            "last_status": status,
            "last_error": None,
        },
    )
    taken = measures.Measure("taken", "")
    if delivery.event.stall:
        measures.note(tx, taken)
    else:
        measures.note(tx, taken, measures.delay("delivered", tx.now - delivery.event.created_at))


def later(tx: Transaction, delivery: HookDelivery, *, wait: float, error: str, status: int | None) -> None:
    """Due again in `wait` seconds. Raises `LeaseLostError`."""
    _finish(tx, delivery, {"due_at": tx.now + wait, "last_error": error, "last_status": status})


def dead(tx: Transaction, delivery: HookDelivery, *, error: str, status: int | None) -> None:
    """Given up, visibly. Raises `LeaseLostError`."""
    _finish(tx, delivery, {"state": "dead", "due_at": None, "last_error": error, "last_status": status})


def hold(tx: Transaction, delivery: HookDelivery, *, lease: float) -> None:
    """Renew the lease. Raises `LeaseLostError`."""
    _guarded(tx, delivery, {"lease_until": tx.now + lease})


def _finish(tx: Transaction, delivery: HookDelivery, values: Mapping[str, Any]) -> None:
    _guarded(tx, delivery, {**values, "attempts": delivery.attempts + 1, "lease_owner": None, "lease_until": None})


def _guarded(tx: Transaction, delivery: HookDelivery, values: Mapping[str, Any]) -> None:
    d = hook_deliveries
    # Leased still: once the lease was given back, a renewal that comes late must not take it again.
    held = and_(d.c.fence == delivery.fence, d.c.lease_owner.is_not(None))
    ours = and_(d.c.event_id == delivery.event.id, d.c.hook == delivery.hook, held)
    if tx.execute(update(d).where(ours).values(**values)).rowcount != 1:
        raise LeaseLostError(f"another worker has taken event {delivery.event.id} for {delivery.hook} over")


def next_due(tx: Transaction, *, names: Iterable[str]) -> float | None:
    """Seconds until a delivery for one of `names` can be claimed, also from who may be dead; None if none will.

    Negative: one can be.
    """
    d, ours = hook_deliveries, hook_deliveries.c.hook.in_(sorted(names))
    free = or_(d.c.lease_until.is_(None), d.c.lease_until <= tx.now)
    waiting = select(d.c.due_at).where(d.c.due_at.is_not(None), free).order_by(d.c.due_at).limit(1)
    soonest = [tx.execute(waiting.where(d.c.hook == hook)).scalar() for hook in sorted(names)]
    leased = select(func.min(d.c.lease_until)).where(d.c.due_at <= tx.now, d.c.lease_until > tx.now, ours)
    soonest.append(tx.execute(leased).scalar())
    return min((at - tx.now for at in soonest if at is not None), default=None)
