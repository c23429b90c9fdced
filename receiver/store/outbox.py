"""The outbox: events, and for each hook that wants one, its delivery. Written with what they tell of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import case, select, update

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
    """A hook somebody runs: Python code, or one that the settings name. `target`: where it leads, for people to see."""

    name: str
    kind: Literal["python", "http", "command", "broker"]
    target: str
    events: Sequence[str]


def declare(tx: Transaction, declared: Sequence[Declaration], *, all_configured: bool) -> None:
    """Make hooks known: events settled from now on fan out to them.

    With `all_configured` the list holds every hook of the settings: others declared before are retired (nothing is sent to them any
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
        # Who failed until we were stopped may have been mended since: one that is paused for it is probed at once.
        probe = case((hooks.c.probe_at.is_not(None), tx.now))
        tx.execute(statement.on_conflict_do_update(index_elements=[hooks.c.name], set_=values | {"probe_at": probe}))
    if all_configured:
        names = [hook.name for hook in declared if hook.kind != "python"]
        tx.execute(update(hooks).where(hooks.c.kind != "python", hooks.c.name.not_in(names)).values(retired=True))


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
