"""The request budget, shared by all who use this database and exact over a sliding window.

A log of grants, not a bucket that leaks: a bucket lets through twice the rate in some windows. Reader counts a request when it
arrives, which is somewhere between its grant and its answer's headers; so a slot is free again a window after the headers came.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import bindparam, delete, func, select, update

from receiver.store import measures
from receiver.store.tables import grants, limits, pauses, tallies
from receiver.store.transaction import Transaction, per_dialect

Purpose = Literal["hydrate", "command", "probe", "audit"]

WINDOW = 60.0
"""Seconds; Reader's limits are per sliding minute."""
SHARES: dict[Purpose, float] = {"hydrate": 1.0, "command": 1.0, "probe": 0.8, "audit": 0.5}
"""The part of the budget that may be in use for a grant of each purpose, so that the urgent always finds room."""
_GOES_ON = 60.0
"""Seconds after its end within which a pause that begins anew is the same trouble."""
_LOCK = 0x52656164  # any number that is ours alone


@dataclass(frozen=True, slots=True)
class Granted:
    """A request may leave now. Give it back with `release`."""

    id: int


@dataclass(frozen=True, slots=True)
class Denied:
    """None may, for `wait` seconds; `paused` says why if that is not only the budget."""

    wait: float
    paused: str | None


def acquire(tx: Transaction, purpose: Purpose, *, rpm: int | None, share: float, lasts: float) -> Granted | Denied:
    """Ask for one request. `rpm`: the configured limit (None: what the tier tells); `lasts` bounds how long the request runs."""
    tx.alone(_LOCK)  # counting and inserting must be one step between replicas
    now = {"now": tx.now}
    pause = tx.execute(_PAUSE, now).first()
    if pause is not None:
        return Denied(pause.until - tx.now, pause.reason)
    tx.execute(_FREE, now)
    budget = max(1, int(allowed(tx, rpm) * share * SHARES[purpose]))
    used = tx.execute(_USED).scalar_one()
    if used >= budget:
        frees = select(grants.c.frees_at).order_by(grants.c.frees_at).offset(used - budget).limit(1)
        return Denied(tx.execute(frees).scalar_one() - tx.now, None)
    values = {"purpose": purpose, "granted_at": tx.now, "frees_at": tx.now + lasts + WINDOW}
    return Granted(tx.execute(_GRANT, values).scalar_one())


# Built once: this runs for every request, and building them costs more than running them.
_PAUSE = select(pauses.c.until, pauses.c.reason).where(pauses.c.until > bindparam("now")).order_by(pauses.c.until.desc()).limit(1)
_FREE = delete(grants).where(grants.c.frees_at <= bindparam("now"))
_USED = select(func.count()).select_from(grants)
_GRANT = grants.insert().returning(grants.c.id)
_LIMITS = select(limits.c.name, limits.c.rpm, limits.c.until)
_RELEASE = update(grants).where(grants.c.id == bindparam("grant")).values(frees_at=bindparam("at"))


def give_back(tx: Transaction, granted: Granted) -> None:
    """The request is not sent: the slot is free."""
    tx.execute(delete(grants).where(grants.c.id == granted.id))


def release(tx: Transaction, granted: Granted, *, tally: str) -> None:
    """The answer's headers came, or the request failed: the slot is free a window from now. Counts it as `tally`."""
    tx.execute(_RELEASE, {"grant": granted.id, "at": tx.now + WINDOW})
    count(tx, tally)


def count(tx: Transaction, name: str, number: int = 1) -> None:
    """Add to a tally."""
    if number:
        tx.execute(_count(tx), {"name": name, "count": number})


@per_dialect
def _count(insert: Any) -> Any:
    statement = insert(tallies)
    added = {"count": tallies.c.count + statement.excluded.count}
    return statement.on_conflict_do_update(index_elements=[tallies.c.name], set_=added)


def counts(tx: Transaction) -> dict[str, int]:
    """All tallies."""
    return {name: number for name, number in tx.execute(select(tallies))}  # noqa: C416 - rows are not tuples to the checker


def pause(tx: Transaction, name: str, *, seconds: float, reason: str) -> bool:
    """Let no request leave for `seconds`; a pause of the same name that lasts longer stays. False if it is one that goes on."""
    ended = select(pauses.c.until).where(pauses.c.name == name, pauses.c.until > tx.now - _GOES_ON)
    new = tx.execute(ended).first() is None
    values = {"until": tx.now + seconds, "reason": reason}
    statement = tx.insert(pauses).values(name=name, **values)
    tx.execute(
        statement.on_conflict_do_update(index_elements=[pauses.c.name], set_=values, where=pauses.c.until < values["until"])
    )
    measures.note(tx, measures.Measure("held back", name))
    return new


def pauses_now(tx: Transaction) -> dict[str, Denied]:
    """Why nobody may ask Reader anything, and for how long, by name."""
    return {row.name: Denied(row.until - tx.now, row.reason) for row in tx.execute(select(pauses).where(pauses.c.until > tx.now))}


def resume(tx: Transaction, name: str) -> None:
    """End a pause."""
    tx.execute(delete(pauses).where(pauses.c.name == name))


def learn(tx: Transaction, name: Literal["tier", "learned"], *, rpm: int, seconds: float) -> None:
    """Remember a limit for `seconds`."""
    values = {"rpm": max(1, rpm), "until": tx.now + seconds}
    statement = tx.insert(limits).values(name=name, **values)
    tx.execute(statement.on_conflict_do_update(index_elements=[limits.c.name], set_=values))


def knows_tier(tx: Transaction) -> bool:
    """Whether the tier's limit is known and fresh."""
    return tx.execute(select(limits.c.name).where(limits.c.name == "tier", limits.c.until > tx.now)).first() is not None


def allowed(tx: Transaction, rpm: int | None) -> int:
    """Requests a minute the workspace has: as configured or by its tier, and no more than a 429 has taught lately."""
    known = {name: (number, until) for name, number, until in tx.execute(_LIMITS)}
    # A tier once told is a better guess than the lowest one, even when it is due to be asked for again.
    base = rpm or known.get("tier", (10, 0.0))[0]
    learned, until = known.get("learned", (base, 0.0))
    return min(base, learned) if until > tx.now else base
