"""Everything that happened to a job, in the order in which it happened: put together from what is stored, for people to read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import select

from receiver.core.timestamps import unix
from receiver.store import arrivals, history, jobs
from receiver.store.settlement import Outcome, outcomes_of
from receiver.store.tables import events, hook_attempts, hook_deliveries, submissions
from receiver.store.transaction import Transaction

_ORDER: Final = (
    "submitted",
    "tracked",
    "created",
    "started",
    "asked",
    "ended",
    "webhook",
    "heard",
    "looked",
    "noticed",
    "page",
    "settled",
    "event",
    "hook",
    "attempt",
)
"""What comes first of what happened at the same instant."""
_GENERATIONS = 5
"""The newest, near whose ends webhooks are looked for."""
_ATTEMPTS = 200
"""The newest, of all hooks together."""
_STRAGGLES = 3600.0
"""Seconds after its last moment in which a webhook about a settled job may still come."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened, `count` times from `at` to `last_at` (Unix seconds).

    `what`, and what `detail` then tells: those of `history`, and
    `submitted` (`urls`, `attempts`), `tracked` (`source`), `created` and `started` at Reader, `ended` there (`status`),
    `webhook` (an `Arrived`, as a dict), `settled` (`status`, `results`, `failed`, `requests`, `verified`, `by`, `told`;
    `after_end`: seconds until it was noticed, `took`: from there), `pruned`, `event` (`id`, `type`),
    `attempt` (`hook`, `number`, `outcome`, `status`, `error`; `took`: its seconds), and where those are not kept
    `hook` (`event`, `hook`, `state`, `attempts`, `status`, `error`, `due_at`; `took`: seconds since the event).
    """

    at: float
    what: str
    generation: int | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    last_at: float | None = None
    count: int = 1


@dataclass(frozen=True, slots=True)
class Timeline:
    """`whole`: False where too many deliveries came in the job's time to look through all of them for its own."""

    moments: Sequence[Moment]
    whole: bool


def read(tx: Transaction, job_id: str) -> Timeline:
    """All of a job's; nothing of a job that is not known. A few short queries, however much is stored."""
    job = jobs.get(tx, job_id)
    if job is None:
        return Timeline([], whole=True)
    settled = outcomes_of(tx, job_id)
    written = history.of_job(tx, job_id)
    came, whole = _webhooks(tx, job, settled)
    found = [
        *_began(tx, job),
        *(Moment(e.at, e.what, e.generation, e.detail, last_at=e.last_at, count=e.count) for e in written),
        *came,
        *_at_reader(job, settled),
        *_ends(job, settled, {e.generation for e in written if e.what == "noticed"}),
        *_told(tx, job_id),
    ]
    return Timeline(sorted(found, key=_place), whole)


def written(tx: Transaction, job_id: str) -> list[Moment]:
    """What has been written of it so far and what became of its events: two looks that tell whether the whole has changed."""
    entries = history.of_job(tx, job_id)
    return [*(Moment(e.at, e.what, e.generation, e.detail, e.last_at, e.count) for e in entries), *_told(tx, job_id)]


def _place(moment: Moment) -> tuple[float, int]:
    return moment.at, _ORDER.index(moment.what) if moment.what in _ORDER else len(_ORDER)


def _began(tx: Transaction, job: jobs.Job) -> Iterator[Moment]:
    if job.submission_id is not None:
        s = submissions.c
        row = tx.execute(select(s.created_at, s.attempts, s.body).where(s.id == job.submission_id)).first()
        if row is not None:
            urls = json.loads(row.body).get("urls")
            count = len(urls) if isinstance(urls, list) else None
            yield Moment(row.created_at, "submitted", detail={"urls": count, "attempts": row.attempts + 1})
    yield Moment(job.tracked_at, "tracked", detail={"source": job.source})


def _at_reader(job: jobs.Job, settled: Sequence[Outcome]) -> Iterator[Moment]:
    """What Reader itself says of it, each thing once."""
    told: set[tuple[str, float]] = set()
    for document in (*(outcome.document for outcome in settled), job.document):
        said = json.loads(document) if document else {}
        for name, what in (("createdAt", "created"), ("startedAt", "started")):
            at = unix(said.get(name))
            if at is not None and (what, at) not in told:
                told.add((what, at))
                yield Moment(at, what)


def _ends(job: jobs.Job, settled: Sequence[Outcome], noticed: set[int | None]) -> Iterator[Moment]:
    for outcome in settled:
        of = outcome.generation
        after_end = None
        if outcome.ended_at is not None:
            after_end = max(outcome.noticed_at - outcome.ended_at, 0.0)
            yield Moment(outcome.ended_at, "ended", of, {"status": outcome.status})
        if of not in noticed:  # its history is not kept any more
            yield Moment(outcome.noticed_at, "noticed", of, {"status": outcome.status, "by": outcome.discovered_by})
        detail = {
            "status": outcome.status,
            "results": outcome.results,
            "failed": outcome.failed_urls,
            "requests": outcome.requests,
            "verified": outcome.verified,
            "by": outcome.discovered_by,
            "told": job.told if of == job.generation else None,
            "after_end": after_end,
            "took": max(outcome.settled_at - outcome.noticed_at, 0.0),
        }
        yield Moment(outcome.settled_at, "settled", of, detail)
        if outcome.pruned_at is not None and outcome.results:
            yield Moment(outcome.pruned_at, "pruned", of)


def _webhooks(tx: Transaction, job: jobs.Job, settled: Sequence[Outcome]) -> tuple[list[Moment], bool]:
    moments = [job.tracked_at, *(outcome.noticed_at for outcome in settled[-_GENERATIONS:])]
    until = max([*moments, *(outcome.settled_at for outcome in settled)]) + _STRAGGLES
    if job.state != "settled":
        until = tx.now
        moments.append(job.noticed_at or job.looked_at or job.tracked_at)
    came = arrivals.of_job(tx, job.id, moments, until=until)
    names = ("id", "outcome", "reason", "event", "delivery_id", "signed_at", "times")
    told = [Moment(a.received_at, "webhook", detail={name: getattr(a, name) for name in names}) for a in came.found]
    return told, came.whole


def _told(tx: Transaction, job_id: str) -> Iterator[Moment]:
    """Events, and what became of them at each hook."""
    e, d = events.c, hook_deliveries.c
    published = {row.id: row for row in tx.execute(select(e.id, e.generation, e.type, e.created_at).where(e.job_id == job_id))}
    for row in published.values():
        yield Moment(row.created_at, "event", row.generation, {"id": row.id, "type": row.type})
    if not published:
        return
    a = hook_attempts.c
    known = set()
    for row in tx.execute(select(hook_attempts).where(a.event_id.in_(published)).order_by(a.id.desc()).limit(_ATTEMPTS)):
        known.add((row.event_id, row.hook))
        names = {"hook": row.hook, "number": row.number, "outcome": row.outcome, "status": row.status, "error": row.error}
        yield Moment(row.at, "attempt", published[row.event_id].generation, names | {"took": row.seconds})
    for row in tx.execute(select(hook_deliveries).where(d.event_id.in_(published))):
        if (row.event_id, row.hook) in known:
            continue
        began = row.created_at
        at = row.delivered_at if row.delivered_at is not None else began
        yield Moment(
            at,
            "hook",
            row.generation,
            {
                "event": row.event_id,
                "hook": row.hook,
                "state": row.state,
                "attempts": row.attempts,
                "status": row.last_status,
                "error": row.last_error,
                "due_at": row.due_at,
                "took": max(at - began, 0.0) if row.delivered_at is not None else None,
            },
        )
