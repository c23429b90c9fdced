"""What the pages show: each is one short read, and a template."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import msgspec

from receiver.core.delivery import JOB_ID
from receiver.errors import UnknownJobError, UsageError
from receiver.packing import unpack
from receiver.store import arrivals, hours, jobs, lookup, overview, results, settlement, timeline
from receiver.views import find
from receiver.web.dashboard import safe
from receiver.web.dashboard.chart import draw
from receiver.web.dashboard.download import download, formats

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from receiver.clock import Clock
    from receiver.settings import Settings
    from receiver.store.engine import Database
    from receiver.store.transaction import Transaction
    from receiver.web.dashboard.access import Visitor
    from receiver.web.dashboard.render import Templates

FILTERS: Final = {
    "": "All",
    "watching": "Under way",
    "hydrating": "Reading",
    "completed": "Completed",
    "failed": "Failed",
    "cancelled": "Cancelled",
    "parked": "Parked",
    "missed": "No webhook",
}
_SHARED = 0.8
"""Seconds for which one reading of the overview serves all who ask for it."""
_SAID: Final = {
    "look": "Reader is asked how it stands.",
    "retry": "Reader is asked to read its failed URLs again.",
    "cancel": "Reader is asked to cancel it. What it has read by then is kept.",
    "replay": "Its events are delivered once more, under the ids that they had.",
}


class Pages:
    """`store()` is the database. `version` is set by who compares what is shown."""

    version: Callable[[Transaction, str], str]

    def __init__(self, store: Callable[[], Database], templates: Templates, settings: Settings, clock: Clock) -> None:
        self._store = store
        self._templates = templates
        self._settings = settings
        self._clock = clock
        self._seen: tuple[float, overview.Overview, str] | None = None

    def topic(self, name: str) -> str:
        """`name`, if it is something to follow. Raises `UsageError`."""
        kind, _, which = name.partition(":")
        known = kind in {"overview", "jobs", "deliveries", "hooks", "job"}
        if not known or (kind == "job") != bool(JOB_ID.fullmatch(which)):
            raise UsageError("topic must be overview, jobs, deliveries, hooks or job:ID")
        return name

    def look(self, tx: Transaction, topic: str) -> Any:
        """What is to be seen of a topic, but for the time."""
        kind, _, which = topic.partition(":")
        if kind == "deliveries":
            return arrivals.newest(tx, limit=1), hours.since(tx, "deliveries", int(tx.now // hours.HOUR))
        if kind == "hooks":
            return [replace(hook, overdue=0.0) for hook in overview.all_hooks(tx)]
        if kind == "jobs":
            return _flight(overview.under_way(tx)), hours.since(tx, "ended", int(tx.now // hours.HOUR))
        if kind != "job":
            seen = self._overview(tx)
            flight = _flight(seen.in_flight)
            fares = [replace(hook, overdue=0.0) for hook in seen.hooks]
            lately = [(each.job.id, each.job.status, each.job.told, each.results) for each in seen.lately]
            return flight, lately, seen.counts, seen.ended, seen.deliveries, seen.webhooks, seen.budget, fares
        job = jobs.get(tx, which)
        if job is None:
            return None
        told = [
            (m.what, m.at, m.last_at, m.count, m.detail.get("attempts"), m.detail.get("state"))
            for m in timeline.written(tx, which)
        ]
        return job.state, job.status, job.completed, job.heard, job.total, job.settled_generation, job.held, job.trouble, told

    def _overview(self, tx: Transaction) -> overview.Overview:
        return overview.read(tx, rpm=self._settings.rpm, share=self._settings.receiver_rpm_share)

    async def overview(self, request: Request, visitor: Visitor) -> Response:
        """Everything at one look."""
        now = self._clock.monotonic()
        if self._seen is None or now - self._seen[0] > _SHARED:

            def work(tx: Transaction) -> tuple[overview.Overview, str]:
                return self._overview(tx), self.version(tx, "overview")

            seen, version = await self._store().read(work)
            self._seen = (now, seen, version)
        _, seen, version = self._seen
        ended: dict[str, int] = {}
        for counts in seen.ended.values():
            for status, count in counts.items():
                ended[status] = ended.get(status, 0) + count
        return self._templates.page(
            request,
            "overview",
            visitor,
            live=f"overview {version}",
            seen=seen,
            now=seen.now,
            ended=ended,
            chart=draw(seen.deliveries, last=int(seen.now // hours.HOUR)),
            settings=self._settings,
            many=overview.MANY,
        )

    async def jobs(self, request: Request, visitor: Visitor) -> Response:
        """A page of the list: `?which=` a status or state, `?q=` an id or a part of a URL, `?after=` where it begins."""
        query = request.query_params
        which, words = query.get("which", ""), query.get("q", "").strip()
        if which not in FILTERS:
            raise UsageError(f"which must be one of {', '.join(filter(None, FILTERS))}")

        def work(tx: Transaction) -> tuple[lookup.Jobs, float, str]:
            place = _place(query.get("after"))
            found = lookup.search(tx, words) if words else lookup.page(tx, which=which or None, after=place)
            return found, tx.now, self.version(tx, "jobs")

        found, now, version = await self._store().read(work)
        values: dict[str, Any] = {
            "found": found,
            "now": now,
            "which": which,
            "words": words,
            "filters": FILTERS,
            "paged": "after" in query,
        }
        return self._templates.page(request, "jobs", visitor, live=f"jobs {version}", **values)

    async def job(self, request: Request, visitor: Visitor) -> Response:
        """One job: its story, its results."""
        query, job_id = request.query_params, _job_id(request)
        wanted = query.get("generation", "")
        if wanted and not (wanted.isascii() and wanted.isdigit() and len(wanted) < 10):
            raise UsageError("generation must be a whole number")

        def work(tx: Transaction) -> dict[str, Any]:
            view = find(tx, job_id)
            job = jobs.get(tx, job_id)
            generation = int(wanted or view.generation)
            outcome = settlement.get_outcome(tx, job_id, generation) if generation else None
            if wanted and outcome is None:
                raise UnknownJobError(f"job {job_id} has no generation {wanted} that is stored")
            rows, after = lookup.result_rows(tx, job_id, generation, after=_row(query.get("after"))) if outcome else ([], None)
            return {
                "view": view,
                "job": job,
                "outcome": outcome,
                "generation": generation,
                "rows": rows,
                "after": after,
                "story": timeline.read(tx, job_id),
                "now": tx.now,
                "version": self.version(tx, f"job:{job_id}"),
            }

        values = await self._store().read(work)
        live = f"job:{job_id} {values.pop('version')}"
        values["formats"] = formats()
        values |= {"said": _SAID.get(query.get("done", "")), "paged": "after" in query}
        return self._templates.page(request, "job", visitor, live=live, **values)

    async def download(self, request: Request, _: Visitor) -> Response:
        """Its results as a file: `?format=`, `?generation=`."""
        query, job_id = request.query_params, _job_id(request)
        view = await self._store().read(lambda tx: find(tx, job_id))
        wanted = query.get("generation", "")
        generation = int(wanted) if wanted.isascii() and wanted.isdigit() and len(wanted) < 10 else view.generation
        return await download(self._store(), job_id, generation, query.get("format", "jsonl"))

    async def result(self, request: Request, visitor: Visitor) -> Response:
        """One result: what Reader made of a URL."""
        job_id, position = _job_id(request), request.path_params["position"]
        wanted = request.query_params.get("generation", "")

        def work(tx: Transaction) -> tuple[int, list[bytes]]:
            view = find(tx, job_id)
            generation = int(wanted) if wanted.isascii() and wanted.isdigit() and len(wanted) < 10 else view.generation
            return generation, results.read_slices(tx, job_id, generation, skip=position, limit=1)

        generation, found = await self._store().read(work)
        if not found:
            raise UnknownJobError(f"job {job_id} has no result {position + 1}")
        value = unpack(found[0])
        markdown = value.get("markdown")
        url = value.get("finalUrl") or value.get("url")
        shown = safe.render(markdown, base=url if isinstance(url, str) else "") if isinstance(markdown, str) else None
        others = {name: each for name, each in value.items() if name not in {"markdown", "html", "url", "error"}}
        return self._templates.page(
            request,
            "result",
            visitor,
            job_id=job_id,
            generation=generation,
            position=position,
            url=str(value.get("url") or ""),
            error=_text(value.get("error")),
            shown=shown,
            cut=isinstance(markdown, str) and len(markdown) > safe.MOST,
            markdown=markdown[: safe.MOST] if isinstance(markdown, str) else None,
            others=_pretty(others),
            size=len(found[0]),
        )


def _flight(found: Sequence[jobs.Job]) -> list[tuple[Any, ...]]:
    return [(job.id, job.state, job.status, job.completed, job.heard, job.trouble) for job in found]


def _job_id(request: Request) -> str:
    job_id: str = request.path_params["job_id"]
    if not JOB_ID.fullmatch(job_id):
        raise UnknownJobError("that is no job's id")
    return job_id


def _place(text: str | None) -> tuple[float, str] | None:
    """Where a page of jobs begins, as `TIME_ID`; the first one for anything else."""
    at, _, job_id = (text or "").partition("_")
    try:
        return (float(at), job_id) if JOB_ID.fullmatch(job_id) else None
    except ValueError:
        return None


def _row(text: str | None) -> lookup.After | None:
    """Where a page of results begins, as `KIND_POSITION`; the first one for anything else."""
    kind, _, position = (text or "").partition("_")
    if kind in {"failed", "read"} and position.isascii() and position.isdigit() and len(position) < 10:
        return cast("Literal['failed', 'read']", kind), int(position)
    return None


def _text(value: Any) -> str | None:
    if value is None or value is False:
        return None
    return value if isinstance(value, str) else json.dumps(value)


def _pretty(value: Any) -> str:
    text = msgspec.json.format(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"), indent=2).decode()
    return text if len(text) <= safe.MOST else text[: safe.MOST] + "…"
