"""Jobs as people look for them: a page of a list, one by its id, those that read some URL; and a page of a job's results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import select, text, tuple_

from receiver.core.lifecycle import State
from receiver.store.jobs import Job
from receiver.store.tables import MISSED, jobs, outcomes, results
from receiver.store.transaction import Transaction

PAGE = 25
_JOBS_SEARCHED, _RESULTS_SEARCHED = 100, 10_000
"""The newest jobs, and so many results of theirs, are looked through for a URL: it is in no index."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A job in a list. The rest is of its settled generation; `after_end`: seconds from its end at Reader to our noticing it."""

    job: Job
    results: int
    failed_urls: int
    after_end: float | None


@dataclass(frozen=True, slots=True)
class Jobs:
    """`after`: where the next page begins; None: this is the last. `searched`: how many jobs were looked through for a URL."""

    found: Sequence[Listed]
    after: tuple[float, str] | None
    searched: int | None = None


def page(tx: Transaction, *, which: str | None = None, after: tuple[float, str] | None = None) -> Jobs:
    """Newest first. `which`: Reader's status, our state, or `missed`: no webhook has told of its end."""
    chosen = select(jobs).order_by(jobs.c.tracked_at.desc(), jobs.c.id.desc()).limit(PAGE + 1)
    if which == "missed":
        chosen = chosen.where(text(MISSED))
    elif which in {State.WATCHING, State.HYDRATING, State.PARKED}:
        chosen = chosen.where(jobs.c.state == which)
    elif which is not None:
        chosen = chosen.where(jobs.c.status == which)
    if after is not None:
        # The time alone first: it is what the index is led by.
        chosen = chosen.where(jobs.c.tracked_at <= after[0], tuple_(jobs.c.tracked_at, jobs.c.id) < after)
    found = [Job.of(row) for row in tx.execute(chosen)]
    more = len(found) > PAGE
    shown = found[:PAGE]
    return Jobs(_listed(tx, shown), (shown[-1].tracked_at, shown[-1].id) if more else None)


def ended(tx: Transaction, *, limit: int) -> list[Listed]:
    """Those of the newest whose ends are stored."""
    chosen = select(jobs).where(jobs.c.state == State.SETTLED).order_by(jobs.c.tracked_at.desc()).limit(limit)
    return _listed(tx, [Job.of(row) for row in tx.execute(chosen)])


def search(tx: Transaction, words: str) -> Jobs:
    """The job of this id, or the newest ones with a result whose URL holds these words."""
    row = tx.execute(select(jobs).where(jobs.c.id == words)).one_or_none()
    if row is not None:
        return Jobs(_listed(tx, [Job.of(row)]), None)
    j, r = jobs.c, results.c
    recent = select(j.id, j.total).where(j.settled_generation > 0).order_by(j.tracked_at.desc()).limit(_JOBS_SEARCHED)
    searched, left = [], _RESULTS_SEARCHED
    for row in tx.execute(recent):
        searched.append(row.id)
        left -= max(row.total, 1)
        if left <= 0:
            break
    of_it = (r.job_id == j.id, r.generation == j.settled_generation, r.url.contains(words, autoescape=True))
    # In one statement: asked for each job apart, most of the time would go into asking.
    holds = select(r.position).where(*of_it).exists()
    chosen = select(jobs).where(j.id.in_(searched), holds).order_by(j.tracked_at.desc()).limit(PAGE)
    found = [Job.of(row) for row in tx.execute(chosen)] if searched else []
    return Jobs(_listed(tx, found), None, len(searched))


def _listed(tx: Transaction, found: Sequence[Job]) -> list[Listed]:
    o = outcomes.c
    # By the job alone: SQLite finds nothing by pairs, and a job has few generations.
    ids = [job.id for job in found if job.settled_generation]
    chosen = select(o.job_id, o.generation, o.results, o.failed_urls, o.ended_at, o.noticed_at).where(o.job_id.in_(ids))
    ends = {(row.job_id, row.generation): row for row in (tx.execute(chosen) if ids else ())}
    listed = []
    for job in found:
        end = ends.get((job.id, job.settled_generation))
        if end is None:
            listed.append(Listed(job, 0, 0, None))
        else:
            after = None if end.ended_at is None else max(end.noticed_at - end.ended_at, 0.0)
            listed.append(Listed(job, end.results, end.failed_urls, after))
    return listed


@dataclass(frozen=True, slots=True)
class Row:
    """A result, without its content. `length`: bytes of its JSON."""

    position: int
    url: str
    error: str | None
    length: int


After = tuple[Literal["failed", "read"], int]


def result_rows(tx: Transaction, job_id: str, generation: int, *, after: After | None = None) -> tuple[list[Row], After | None]:
    """A page of a generation's results, those with an error first; where the next one begins, None after the last."""
    kind, position = after or ("failed", -1)
    r = results.c
    columns = (r.position, r.url, r.error, r.length)
    of = select(*columns).where(r.job_id == job_id, r.generation == generation).order_by(r.position)
    rows: list[Row] = []
    if kind == "failed":
        failed = of.where(text("error IS NOT NULL"), r.position > position).limit(PAGE + 1)
        rows = [Row(*row) for row in tx.execute(failed)]
        position = -1
    if len(rows) <= PAGE:
        read = of.where(r.error.is_(None), r.position > position).limit(PAGE + 1 - len(rows))
        rows += [Row(*row) for row in tx.execute(read)]
    if len(rows) <= PAGE:
        return rows, None
    last = rows[PAGE - 1]
    return rows[:PAGE], ("read" if last.error is None else "failed", last.position)
