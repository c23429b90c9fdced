"""Answers as they are sent: whole when they are small, a piece at a time when they are not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_PIECE: Final = 1 << 18
"""Bytes gathered before they are sent: results of a few hundred bytes are not worth a chunk each."""


def ok(data: Any, status: int = 200, **more: Any) -> Response:
    """`{"success": true, "data": …}` and whatever stands beside it."""
    content = msgspec.json.encode({"success": True, "data": data, **more})
    return Response(content, status, media_type="application/json")


def paginated(rows: list[Any], total: int, skip: int, limit: int) -> Response:
    """A list with its `pagination`."""
    pagination = {"total": total, "skip": skip, "limit": limit, "hasMore": skip + limit < total}
    return ok(rows, pagination=pagination)


class Pieces(Response):
    """JSON made while it is sent: two pieces in memory, at most. A short one goes whole, with its length."""

    media_type = "application/json"

    def __init__(self, chunks: Iterator[bytes], *, piece: int = _PIECE) -> None:
        super().__init__(None)
        self._chunks = chunks
        self._piece = piece
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send it."""
        pieces = _gathered(self._chunks, self._piece)
        first = next(pieces, b"")
        following = next(pieces, None)
        if following is None:
            self.headers["content-length"] = str(len(first))
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while following is not None:
            await send({"type": "http.response.body", "body": first, "more_body": True})
            await asyncio.sleep(0)  # a fast client must not keep the loop to itself
            first, following = following, next(pieces, None)
        await send({"type": "http.response.body", "body": first})


def _gathered(chunks: Iterator[bytes], piece: int) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size >= piece:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
