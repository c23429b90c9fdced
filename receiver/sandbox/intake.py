"""What endpoints need of a request."""

from __future__ import annotations

from typing import Any

from starlette.requests import ClientDisconnect, Request

from receiver.sandbox.engine import Engine
from receiver.sandbox.problems import invalid
from receiver.sandbox.validation import MAX_BODY, parse


def engine_of(request: Request) -> Engine:
    """The sandbox this request came to."""
    engine: Engine = request.app.state.engine
    return engine


async def json_body(request: Request) -> dict[str, Any]:
    """The body as a JSON object. Raises `ApiError` invalid_request."""
    read = bytearray()
    try:
        async for chunk in request.stream():
            read += chunk
            if len(read) > MAX_BODY:
                raise invalid(("body", f"more than {MAX_BODY} bytes"))
    except ClientDisconnect:
        raise invalid(("body", "the client left before its end")) from None
    return parse(bytes(read))
