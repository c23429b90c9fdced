"""The sandbox's own endpoints: its switches, its ledger, the trap. The gate lets only this machine in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from receiver.sandbox.answers import Pieces, ok
from receiver.sandbox.engine import Engine
from receiver.sandbox.faults import FaultError
from receiver.sandbox.intake import engine_of, json_body
from receiver.sandbox.ledger import job_row, true_results
from receiver.sandbox.openapi import document
from receiver.sandbox.problems import invalid
from receiver.sandbox.render import encode
from receiver.sandbox.visit import visit_of

_PIECE: Final = 1 << 16
"""Bytes sent at a time: behind each result of large pages stands a hash that takes a while."""


async def get_faults(request: Request) -> Response:
    """Every switch and its setting."""
    return Response(encode(dict(engine_of(request).faults)), media_type="application/json")


async def set_faults(request: Request) -> Response:
    """Switch some; an empty object clears all."""
    engine = engine_of(request)
    try:
        engine.faults.merge(await json_body(request))
    except FaultError as exc:
        raise invalid(("faults", str(exc))) from exc
    engine.ledger.tell("faults", engine.now(), dict(engine.faults.active))
    return await get_faults(request)


async def get_ledger(request: Request) -> Response:
    """What truly happened; `since` cuts the two lists."""
    text = request.query_params.get("since", "0")
    try:
        since = float(text)
    except ValueError:
        since = math.nan
    if math.isnan(since):
        raise invalid(("since", "expected Unix seconds"))
    return Pieces(_ledger(engine_of(request), since), piece=_PIECE)


def _ledger(engine: Engine, since: float) -> Iterator[bytes]:
    """The answer, made while it is sent."""
    now = engine.now()
    lead = b'{"jobs":{'
    for job in list(engine.workspace.jobs.values()):
        yield lead + encode(job.id) + b":" + encode(job_row(job, now))[:-1] + b',"results":['
        lead = b","
        between = b""
        for row in true_results(job, now):
            yield between + encode(row)
            between = b","
        yield b"]}"
    lists: dict[str, Any] = engine.ledger.lists(since)
    yield (lead if lead != b"," else b"") + b"}," + encode(lists)[1:]


async def openapi(request: Request) -> Response:
    """What this API is, for machines."""
    return Response(encode(document(engine_of(request).url)), media_type="application/json")


async def trap(request: Request) -> Response:
    """Where redirects and foreign `next` links lead: who comes is written down with the key they brought."""
    engine = engine_of(request)
    row = visit_of(request.scope).row
    row.fault = "trap"
    engine.ledger.request(row)
    row.status = 200
    engine.ledger.answered(row)
    return ok({})
