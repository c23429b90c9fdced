"""GET /v1/jobs/{id}: one page of a job's results, and the lies the faults make of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from receiver.sandbox.engine import Engine
from receiver.sandbox.jobs import Job, View
from receiver.sandbox.problems import not_found
from receiver.sandbox.render import envelope, job_fields, result


@dataclass(slots=True)
class Listing:
    """One answer: the rows by index, its pagination, and the faults that shaped it."""

    view: View
    rows: list[int]
    pagination: dict[str, Any]
    faults: list[str] = field(default_factory=list)


def listing(engine: Engine, job: Job, skip: int, limit: int) -> Listing:
    """What one read of a job says. Raises `ApiError` not_found for a job that is not to be seen yet."""
    now = engine.now()
    struck: list[str] = []
    seen_at = _seen_at(engine, job, now, struck)
    view = job.view(seen_at)
    if view.terminal and skip > 0 and _overtaken(engine, job, struck):
        view = job.view(engine.now())
    order = engine.faults.choice("order")
    salt = None if order == "submitted" else "finished"
    if order == "unstable":
        salt = f"read {_count(engine, job)}"
    places = range(skip, min(skip + limit, len(view.gathered)))
    rows = [job.placed(view.gathered, place, salt=salt) for place in places]
    has_more = skip + limit < len(view.gathered)
    total = len(view.gathered) if _counts_gathered(engine, view) else view.total
    pagination: dict[str, Any] = {"total": total, "skip": skip, "limit": limit, "hasMore": has_more}
    told = Listing(view, rows, pagination, struck)
    _lie(engine, job, told)
    if told.pagination["hasMore"] and engine.faults.choice("next") == "present":
        told.pagination["next"] = _next(engine, job, skip + limit, limit, struck)
    elif engine.faults.choice("nulls") == "everywhere":
        told.pagination["next"] = None
    if view.terminal and not struck and order != "unstable":
        job.round.note_read(skip, len(rows), len(view.gathered))
    return told


def chunks(engine: Engine, job: Job, told: Listing) -> Iterator[bytes]:
    """The answer's bytes, a result at a time."""
    before, after = job_fields(job, told.view, engine.faults)
    rows = (result(job, index, engine.faults) for index in told.rows)
    return envelope(before, after, rows, told.pagination)


def _seen_at(engine: Engine, job: Job, now: float, struck: list[str]) -> float:
    """The moment whose truth is told: a while ago, when the API lags behind its own webhooks."""
    faults, speed, run = engine.faults, engine.options.speed, job.round
    unborn = faults.strikes("unborn", job.id, subject=job.id)
    if unborn is not None and now < job.created_at + unborn.number() / speed:
        raise not_found("Job")
    if run.ends_at <= now and run.stopped_at is None:
        early = faults.strikes("early", job.id, run.number, subject=job.id)
        if early is not None and now < run.ends_at + early.number() / speed:
            struck.append("early")
            return run.ends_at - 0.0005
    return now


def _overtaken(engine: Engine, job: Job, struck: list[str]) -> bool:
    """Between two pages: the fault looks at each read of an ended job but the first page's."""
    if engine.faults.next_strikes("requeue", job.id, subject=job.id) is None:
        return False
    struck.append("requeue")
    engine.requeue(job)
    return True


def _counts_gathered(engine: Engine, view: View) -> bool:
    return view.status in {"failed", "cancelled"} and engine.faults.choice("ended_total") == "gathered"


def _count(engine: Engine, job: Job) -> int:
    counts = engine.reads
    counts[job.id] = counts.get(job.id, 0) + 1
    return counts[job.id]


def _lie(engine: Engine, job: Job, told: Listing) -> None:
    def strikes(name: str) -> bool:
        hit = engine.faults.next_strikes(name, job.id, subject=job.id)
        if hit is not None:
            told.faults.append(name)
        return hit is not None

    gathered, rows, pagination = told.view.gathered, told.rows, told.pagination
    if not pagination["hasMore"] and strikes("has_more_forever"):
        pagination["hasMore"] = True
    elif pagination["hasMore"] and strikes("has_more_early"):
        pagination["hasMore"] = False
    if strikes("total_drift"):
        pagination["total"] += 1 + _count(engine, job) % 3
    if len(gathered) > len(rows) > 0 and strikes("shuffle"):
        stranger = gathered[pagination["skip"] - 1] if pagination["skip"] else gathered[-1]
        rows[0] = stranger
    if rows and strikes("double"):
        rows.append(rows[0])


def _next(engine: Engine, job: Job, skip: int, limit: int, struck: list[str]) -> str:
    base = engine.url
    foreign = engine.faults.next_strikes("foreign_next", job.id, subject=job.id)
    if foreign is not None:
        struck.append("foreign_next")
        base = str(foreign.value or engine.trap)
    return f"{base}/v1/jobs/{job.id}?skip={skip}&limit={limit}"
