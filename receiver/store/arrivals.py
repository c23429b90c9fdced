"""Deliveries as people look at them: the newest, one of them, those of a job.

They are in no index by their job, which each of them would have to pay for before it is answered. But they lie in the order in
which they came, and a job's came about when something happened to it: those of its time are looked through, a few thousand at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import Row, Select, case, func, select, text

from receiver.core.delivery import key_by_id
from receiver.store.tables import deliveries, seen
from receiver.store.transaction import Transaction

LOOKED_THROUGH = 4000
"""Deliveries from a job's first moment on, and at each later one half as many."""
_AT_ONCE = 1000
_EARLY = 120.0
"""Seconds before a moment at which a delivery about it may have come; two clocks are compared."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A delivery that was stored. `times`: it came so often, the duplicates included."""

    id: int
    received_at: float
    outcome: str
    reason: str | None
    event: str | None
    job_id: str | None
    delivery_id: str | None
    signed_at: int | None
    size: int
    times: int


@dataclass(frozen=True, slots=True)
class OfJob:
    """`whole`: all that may have come about it were looked through."""

    found: Sequence[Arrived]
    whole: bool


def newest(tx: Transaction, *, outcome: str | None = None, before: int | None = None, limit: int = 50) -> list[Arrived]:
    """Newest first, from `before` (an id) on backwards."""
    chosen = _chosen().order_by(deliveries.c.id.desc()).limit(limit)
    if before is not None:
        chosen = chosen.where(deliveries.c.id < before)
    if outcome is not None:
        chosen = chosen.where(deliveries.c.outcome == outcome)
        if outcome != "accepted":
            chosen = chosen.where(text("outcome <> 'accepted'"))  # spelt out, as the index has it
    return _told(tx, tx.execute(chosen).all())


def repeated(tx: Transaction, *, before: int | None = None, limit: int = 50, among: int) -> list[Arrived]:
    """Those that came more than once, newest first: of the newest `among` before `before`, for no index leads to them."""
    found: list[Arrived] = []
    for _ in range(0, among, _AT_ONCE):
        page = newest(tx, before=before, limit=min(among, _AT_ONCE))
        found += [each for each in page if each.times > 1]
        if len(page) < _AT_ONCE or len(found) >= limit:
            break
        before = page[-1].id
    return found[:limit]


def get(tx: Transaction, delivery: int) -> tuple[Arrived, bytes] | None:
    """One, and its body."""
    row = tx.execute(_chosen().where(deliveries.c.id == delivery)).first()
    if row is None:
        return None
    body = tx.execute(select(deliveries.c.body).where(deliveries.c.id == delivery)).scalar_one()
    return _told(tx, [row])[0], bytes(body)


def of_job(tx: Transaction, job_id: str, moments: Sequence[float], *, until: float) -> OfJob:
    """Those of a job, oldest first. `moments`: when something happened to it; `until`: none is expected to have come later."""
    newest_id = tx.execute(select(func.max(deliveries.c.id))).scalar()
    if newest_id is None or not moments:
        return OfJob([], whole=True)
    first, *later = sorted(moments)
    ends_at = newest_id + 1 if until >= tx.now else _place(tx, until)
    begin = _place(tx, first - _EARLY)
    spans = [(begin, min(begin + LOOKED_THROUGH, ends_at))]
    for moment in later:
        if spans[-1][1] >= ends_at:
            break
        begin = max(_place(tx, moment - _EARLY), spans[-1][1])
        spans.append((begin, min(begin + LOOKED_THROUGH // 2, ends_at)))
    rows: list[Row[Any]] = []
    for begin, end in spans:
        within = (deliveries.c.id >= begin, deliveries.c.id < end, deliveries.c.job_id == job_id)
        rows += tx.execute(_chosen().where(*within).order_by(deliveries.c.id)).all()
    gaps = any(end < begin for (_, end), (begin, _) in pairwise(spans))
    return OfJob(_told(tx, rows), whole=spans[-1][1] >= ends_at and not gaps)


def _place(tx: Transaction, at: float) -> int:
    """The id of the first that came then or later, or one beyond the last: halved until it is found, in the database."""
    d = deliveries
    # Asked for apart: SQLite finds either end at once, and both together by reading all that lies between.
    low, high = (select(end(d.c.id)).scalar_subquery() for end in (func.min, func.max))
    ends = select(low.label("low"), (high + 1).label("high")).cte("halves", recursive=True)
    middle = (ends.c.low + ends.c.high) // 2
    came = select(d.c.received_at).where(d.c.id >= middle).order_by(d.c.id).limit(1).correlate(ends).scalar_subquery()
    halves = ends.union_all(
        select(case((came < at, middle + 1), else_=ends.c.low), case((came < at, ends.c.high), else_=middle)).where(
            ends.c.low < ends.c.high
        )
    )
    return int(tx.execute(select(func.max(halves.c.low))).scalar_one())


def _chosen() -> Select[Any]:
    d = deliveries.c
    columns = (d.id, d.received_at, d.outcome, d.reason, d.event, d.job_id, d.delivery_id, d.signed_at, d.key)
    return select(*columns, func.length(d.body).label("size"))


def _told(tx: Transaction, rows: Sequence[Row[Any]]) -> list[Arrived]:
    by_id = [key_by_id(row.delivery_id, row.signed_at) for row in rows]
    keys = {key for key in (*by_id, *(row.key for row in rows)) if key is not None}
    hits: dict[str, tuple[int, str]] = {}
    if keys:
        found = tx.execute(select(seen.c.key, seen.c.hits, seen.c.digest).where(seen.c.key.in_(keys)))
        hits = {key: (count, digest) for key, count, digest in found}
    told = []
    for row, id_key in zip(rows, by_id, strict=True):
        values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
        key = values.pop("key") or ""
        itself, _ = hits.get(key, (1, ""))
        again, digest = hits.get(id_key or "", (1, ""))
        # Each time it came under its id both count. The one of the id may be of another body that came under it first.
        told.append(Arrived(**values, times=max(itself, again if key.endswith(f":{digest}") else 1)))
    return told
