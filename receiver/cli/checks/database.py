"""The database: is it there, is its schema this release's, does it take writes; and what it tells of how things went."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sqlalchemy import func, or_, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from receiver.cli.checks import disk
from receiver.cli.checks.line import TEST_EVENT, Line, fail, ok, warn
from receiver.cli.common import reading
from receiver.clock import Clock
from receiver.errors import ReceiverError, SettingsError
from receiver.settings import Settings
from receiver.store import budget, figures, refusals
from receiver.store.budget import Denied
from receiver.store.engine import Database
from receiver.store.figures import Figures
from receiver.store.refusals import Refused
from receiver.store.tables import deliveries, hook_deliveries, hooks, jobs
from receiver.store.transaction import Transaction

_LOOKED_AT: Final = 200
_ENDS: Final = 20
_TIMES: Final = 15
_SLOW: Final = 0.1
_WRITE_WITHIN: Final = 10.0


@dataclass(frozen=True, slots=True)
class HookState:
    """How a hook fares, as stored. `dead`: events that it will not get any more."""

    name: str
    kind: str
    paused: str | None
    failures: int
    dead: int


@dataclass(frozen=True, slots=True)
class Past:
    """What the database tells, read at one moment.

    `arrived`: of the newest deliveries, how many there are of each outcome; `told`: of each of the newest ends of jobs, newest
    first, whether a webhook told of it. `allowed`: requests a minute.
    """

    figures: Figures
    pauses: dict[str, Denied]
    allowed: int
    now: float
    refused: list[Refused] = field(default_factory=list)
    arrived: dict[str, int] = field(default_factory=dict)
    last_arrival: float | None = None
    told: list[bool] = field(default_factory=list)
    hooks: list[HookState] = field(default_factory=list)


Known = Callable[[], Awaitable[Past | None]]
"""Waits until it is known what the database tells; None if that cannot be read."""


async def look(settings: Settings, clock: Clock) -> tuple[list[Line], Past | None]:
    """The lines, and what the database tells if it can be read."""
    try:
        url = make_url(settings.receiver_database_url)
    except (ArgumentError, ValueError):
        url = None
    if url is not None and url.drivername == "sqlite" and url.database:
        return await asyncio.to_thread(_sqlite, settings, Path(url.database), clock)
    lines, past = await asyncio.to_thread(_read, settings)
    if past is not None:
        lines.append(await _commits(settings, clock))
    return lines, past


def _sqlite(settings: Settings, given: Path, clock: Clock) -> tuple[list[Line], Past | None]:
    path = given.absolute()
    try:
        there = path.exists()
    except OSError as error:
        return [fail("database", f"cannot read {path} ({error.strerror})", _CHOOSE)], None
    if there:
        lines, past = _read(settings, f"SQLite at {path}")
    else:
        lines, past = [ok("database", f"SQLite at {path}: it is not there yet, `receiver serve` makes it")], None
    return [*lines, *disk.look(path, clock)], past


_CHOOSE: Final = "see RECEIVER_DATABASE_URL"


def _read(settings: Settings, name: str | None = None) -> tuple[list[Line], Past | None]:
    try:
        with reading(settings) as database:
            name = name or database.read_now(_version)
            past = database.read_now(lambda tx: _past(tx, settings.rpm))
    except SettingsError as error:
        if str(error).startswith("RECEIVER_"):
            return [fail("database", str(error), _CHOOSE)], None
        # It was opened, or nobody could tell its version.
        said, _, do = str(error).partition(": ")
        return [ok("database", "it answers"), fail("schema", said, do or _CHOOSE)], None
    except ReceiverError as error:
        return [fail("database", str(error), "start it, or correct RECEIVER_DATABASE_URL; until then, deliveries get 503")], None
    return [ok("database", name), ok("schema", "it is this release's")], past


def _version(tx: Transaction) -> str:
    return f"PostgreSQL {tx.execute(text('SHOW server_version')).scalar_one()}"


async def _commits(settings: Settings, clock: Clock) -> Line:
    """PostgreSQL takes writes beside whoever else is there: what `/readyz` writes, some times over."""
    took = []
    try:
        async with asyncio.timeout(_WRITE_WITHIN):
            database = await asyncio.to_thread(Database.of, settings, clock)
            try:
                for _ in range(_TIMES):
                    began = clock.monotonic()
                    await database.write(lambda tx: budget.count(tx, "readiness checks"))
                    took.append(clock.monotonic() - began)
            finally:
                await asyncio.to_thread(database.close)
    except (ReceiverError, TimeoutError) as error:
        why = str(error) or f"it took no write within {_WRITE_WITHIN:g} s"
        return fail("writing", why, "is it a replica that only reads, is its disk full, may our role write?")
    median = statistics.median(took)
    told = f"a commit takes {median * 1000:.1f} ms (at worst {max(took) * 1000:.1f} ms)"
    if median > _SLOW:
        return warn("writing", told, "no acknowledgement is sooner than that: put the server nearer to the database")
    return ok("writing", told)


def _past(tx: Transaction, rpm: int | None) -> Past:
    genuine = or_(deliveries.c.event.is_(None), deliveries.c.event != TEST_EVENT)
    newest = select(deliveries.c.outcome, deliveries.c.received_at).where(genuine).order_by(deliveries.c.id.desc())
    arrived = tx.execute(newest.limit(_LOOKED_AT)).all()
    outcomes = [row.outcome for row in arrived]
    ends = (
        select(jobs.c.told)
        .where(jobs.c.noticed_at.is_not(None), jobs.c.source != "webhook", jobs.c.status != "cancelled")
        .order_by(jobs.c.noticed_at.desc())
        .limit(_ENDS)
    )
    return Past(
        figures=figures.read(tx),
        pauses=budget.pauses_now(tx),
        allowed=budget.allowed(tx, rpm),
        now=tx.now,
        refused=refusals.known(tx),
        arrived={name: outcomes.count(name) for name in dict.fromkeys(outcomes)},
        last_arrival=arrived[0].received_at if arrived else None,
        told=list(tx.execute(ends).scalars()),
        hooks=list(_hooks(tx)),
    )


def _hooks(tx: Transaction) -> Iterator[HookState]:
    dead = select(hook_deliveries.c.hook, func.count()).where(text("state = 'dead'")).group_by(hook_deliveries.c.hook)
    counts = {name: count for name, count in tx.execute(dead)}  # noqa: C416 - rows are not tuples to the checker
    for row in tx.execute(select(hooks).where(~hooks.c.retired).order_by(hooks.c.name)):
        yield HookState(row.name, row.kind, row.paused_why, row.failures, counts.get(row.name, 0))
