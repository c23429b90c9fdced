"""`/v1`: Reader's own shapes, answered from the local store, so that its clients can read here without spending its quota."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import structlog
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from receiver.clock import SystemClock
from receiver.core.delivery import JOB_ID
from receiver.core.lifecycle import State
from receiver.errors import ReceiverError, ResultsPrunedError, StoreError, UsageError
from receiver.reader.shapes import CANCELLED, COMPLETED, FAILED, MAX_PAGE, PROCESSING, QUEUED
from receiver.views import JobView, find, listing, read_results

if TYPE_CHECKING:
    from starlette.requests import Request

    from receiver.store.engine import Database
    from receiver.web.auth import Gate

Endpoint = Callable[["Request"], Awaitable[Response]]

_DOCS: Final = "https://reader.dev/docs/errors#"
_STATUSES: Final = (QUEUED, PROCESSING, COMPLETED, FAILED, CANCELLED, *State)

log = structlog.get_logger("receiver.web")


class Api:
    """`database()` is None while the receiver is not started; `track` makes a job known."""

    def __init__(self, database: Callable[[], Database | None], *, gate: Gate, track: Callable[[str], Awaitable[bool]]) -> None:
        self._database = database
        self._gate = gate
        self._track = track

    def routes(self) -> list[Route]:
        """What it answers."""
        return [
            Route("/v1/jobs", guarded(self._gate, self.jobs), methods=["GET", "POST"]),
            Route("/v1/jobs/{job_id}", guarded(self._gate, self.get_job), methods=["GET"]),
        ]

    async def jobs(self, request: Request) -> Response:
        """One route for both, so that another method is told of both."""
        return await (self.track_job(request) if request.method == "POST" else self.list_jobs(request))

    async def list_jobs(self, request: Request) -> Response:
        """Jobs, newest first; `?status=` is Reader's status or our state."""
        skip, limit = _paging(request)
        status = request.query_params.get("status")
        if status is not None and status not in _STATUSES:
            raise UsageError(f"status must be one of {', '.join(_STATUSES)}")
        found, total = await self._store().read(lambda tx: listing(tx, status=status, skip=skip, limit=limit))
        return JSONResponse(
            {
                "success": True,
                "data": [_document(job) for job in found],
                "pagination": {
                    "total": total,
                    "skip": skip,
                    "limit": limit,
                    "hasMore": skip + len(found) < total,
                },
            }
        )

    async def get_job(self, request: Request) -> Response:
        """A job and a page of its results, streamed: a page can be tens of megabytes. 410 once they are pruned."""
        skip, limit = _paging(request)
        job_id = _job_id(request.path_params["job_id"])
        store = self._store()
        job = await store.read(lambda tx: find(tx, job_id))
        if job.pruned_at is not None:
            raise ResultsPrunedError.of(job_id)
        shown = min(limit, max(job.results - skip, 0))
        pagination: dict[str, Any] = {
            "total": job.results,
            "skip": skip,
            "limit": limit,
            "hasMore": skip + shown < job.results,
        }
        if pagination["hasMore"]:
            pagination["next"] = str(request.url.include_query_params(skip=skip + limit, limit=limit))

        async def body() -> AsyncIterator[bytes]:
            document = {name: value for name, value in _document(job).items() if name != "results"}
            yield b'{"success":true,"data":' + json.dumps(document).encode()[:-1] + b',"results":['
            comma = b""
            async for result in read_results(store, job_id, job.generation, skip=skip, limit=shown):
                yield comma + result
                comma = b","
            yield b']},"pagination":' + json.dumps(pagination).encode() + b"}"

        return StreamingResponse(body(), media_type="application/json")

    async def track_job(self, request: Request) -> Response:
        """Make a job known and look at it now: 201 if it was new, 200 if not."""
        body = await read_json(request)
        job_id = _job_id(body.get("id"))
        new = await self._track(job_id)
        job = await self._store().read(lambda tx: find(tx, job_id))
        return JSONResponse({"success": True, "data": _document(job)}, status_code=201 if new else 200)

    def _store(self) -> Database:
        store = self._database()
        if store is None:
            raise StoreError("the receiver is not started")
        return store


def guarded(gate: Gate, endpoint: Endpoint) -> Endpoint:
    """`endpoint` for those whom `gate` lets in; our errors become Reader's envelope, and the answer has a request id."""

    async def answer(request: Request) -> Response:
        try:
            gate.check(request)
            response = await endpoint(request)
        except ReceiverError as error:
            return failure(error)
        except asyncio.CancelledError:  # by a server that is stopping and waits no longer
            return failure(StoreError("the server is stopping"))
        response.headers.setdefault("x-request-id", _request_id())
        return response

    return answer


def failure(error: ReceiverError) -> Response:
    """An error in Reader's envelope, with its codes."""
    headers = {"retry-after": "2"} if error.status == 503 else {}
    return _envelope(error.status, error.code, str(error), headers)


async def unrouted(_: Request, error: Exception) -> Response:
    """What the router has nothing for: no such path, or not this method."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return _envelope(405, "invalid_request", f"only {allowed} can be asked for here", {"allow": allowed})
    return _envelope(404, "not_found", "nothing is here", {})


async def broken(request: Request, _: Exception) -> Response:
    """A defect of ours. Its traceback is logged by the server."""
    response = _envelope(500, "internal_error", "something failed here: the log says what", {})
    log.error("request_failed", path=request.url.path, request_id=response.headers["x-request-id"])
    return response


def _envelope(status: int, code: str, message: str, headers: dict[str, str]) -> Response:
    body: dict[str, Any] = {"code": code, "message": message}
    if code == "invalid_request":
        body["details"] = {"issues": [{"message": message}]}
    body["docsUrl"] = _DOCS + code
    headers = {"x-request-id": _request_id(), **headers}
    return JSONResponse({"success": False, "error": body}, status_code=status, headers=headers)


def _request_id() -> str:
    return f"req_{SystemClock().token()}"


async def read_json(request: Request) -> dict[str, Any]:
    """The body, a JSON object. Raises `UsageError`."""
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise UsageError("the body must be a JSON object")
    return body


def _document(job: JobView) -> dict[str, Any]:
    """Reader's shape, with what it would show missing filled in, and what we know beyond it under `receiver`."""
    # A job that nobody has looked at yet: Reader has no word for it, and its clients know only Reader's.
    status = QUEUED if job.status == "unknown" else job.status
    known = {
        "id": job.id,
        "completed": job.completed,
        "total": job.total,
        "results": [],
    }
    ours = {
        "state": job.state,
        "generation": job.generation,
        "failedUrls": job.failed_urls,
        "discoveredBy": job.discovered_by,
        "verified": job.verified,
        "trouble": job.trouble,
        "held": job.held,
        "pruned": job.pruned_at is not None,
    }
    return {"mode": "batch", "creditsUsed": 0, "error": None} | known | job.document | {"status": status, "receiver": ours}


def _job_id(value: Any) -> str:
    if not isinstance(value, str) or not JOB_ID.fullmatch(value):
        raise UsageError("id must be a job id: 1 to 128 of A-Z a-z 0-9 _ -")
    return value


def _paging(request: Request) -> tuple[int, int]:
    return _number(request, "skip", 0, 0, 2**31 - 1), _number(request, "limit", 20, 1, MAX_PAGE)


def _number(request: Request, name: str, default: int, least: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 10 or not least <= int(text) <= most:
        raise UsageError(f"{name} must be a whole number from {least} to {most}")
    return int(text)
