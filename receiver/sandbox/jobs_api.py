"""POST /v1/read and the jobs it starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from receiver.sandbox.answers import Pieces, ok
from receiver.sandbox.draws import draw
from receiver.sandbox.engine import Engine
from receiver.sandbox.fetch import FetchError
from receiver.sandbox.intake import engine_of, json_body
from receiver.sandbox.listing import chunks, listing
from receiver.sandbox.pages import Text, page
from receiver.sandbox.problems import ApiError, invalid
from receiver.sandbox.render import job_fields, scrape
from receiver.sandbox.streams import EventStream, JobStream, workspace_stream
from receiver.sandbox.validation import ReadRequest, page_query, read_request
from receiver.sandbox.visit import visit_of

_LONGEST_KEY: Final = 255


async def read(request: Request) -> Response:
    """One page at once, or a job. The first answer to an idempotency key is the only one for 24 hours."""
    engine = engine_of(request)
    wanted = read_request(await json_body(request))
    key = request.headers.get("x-idempotency-key", "")
    if len(key) > _LONGEST_KEY:
        raise invalid(("x-idempotency-key", f"at most {_LONGEST_KEY} characters"))
    known: Callable[[], Response] | None = engine.workspace.remembered(key, engine.now()) if key else None
    if known is None:
        known = await _scrape(engine, wanted) if wanted.mode == "scrape" else _start(engine, wanted)
        if key:
            engine.workspace.remember(key, known, engine.now())
    return known()


def _start(engine: Engine, wanted: ReadRequest) -> Callable[[], Response]:
    job = engine.workspace.submit(wanted, engine.now())
    engine.queued(job)
    before, after = job_fields(job, job.view(job.created_at), engine.faults)
    return lambda: ok({**before, **after}, 201)


async def _scrape(engine: Engine, wanted: ReadRequest) -> Callable[[], Response]:
    at = engine.now()
    good = engine.workspace.scrape(wanted, at)
    seconds = engine.options.seconds_per_url * (0.5 + draw(engine.options.seed, "scrape", wanted.fingerprint))
    found = wanted.urls[0]
    text: Text = page(engine.options, found)
    if not good:
        raise ApiError("upstream_unavailable", "The page could not be read", {"url": found})
    if engine.reading is None:
        await engine.closed_within(seconds / engine.options.speed)
    else:
        try:
            found, text = await engine.reading.read(found, wanted.wanted, wanted.timeout_ms)
        except FetchError as exc:
            raise ApiError("upstream_unavailable", f"The page could not be read: {exc}", {"url": found}) from exc
        seconds = engine.now() - at
    return lambda: Pieces(scrape(wanted, found, text, at, seconds, engine.faults))


async def job(request: Request) -> Response:
    """A job and one page of its results."""
    engine = engine_of(request)
    skip, limit = page_query(request.scope["query_string"])
    found = engine.workspace.job(request.path_params["id"])
    told = listing(engine, found, skip, limit)
    for name in told.faults:
        visit_of(request.scope).note(name)
    return Pieces(chunks(engine, found, told))


async def cancel(request: Request) -> Response:
    """Stop a job; what it has gathered stays."""
    engine = engine_of(request)
    stopped = engine.workspace.cancel(request.path_params["id"], engine.now())
    engine.director.cancelled(stopped)
    return ok({"id": stopped.id, "status": "cancelled"})


async def retry(request: Request) -> Response:
    """Queue again what failed."""
    engine = engine_of(request)
    unfinished = engine.faults.choice("retry_queues") == "unfinished"
    again, count = engine.workspace.retry(request.path_params["id"], engine.now(), unfinished=unfinished)
    engine.queued(again)
    return ok({"id": again.id, "status": "queued", "retrying": count})


async def stream(request: Request) -> Response:
    """One job's events."""
    engine = engine_of(request)
    watched = JobStream(engine, engine.workspace.job(request.path_params["id"]))
    return EventStream(watched.chunks(), engine)


async def events(request: Request) -> Response:
    """The workspace's events."""
    engine = engine_of(request)
    return EventStream(workspace_stream(engine), engine)
