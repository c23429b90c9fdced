"""Faults that spoil an answer after what was asked for has been done."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import cache
from typing import Final

import msgspec
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from receiver.sandbox.engine import Engine
from receiver.sandbox.faults import Hit
from receiver.sandbox.visit import Visit
from receiver.sandbox.wire import gone, hang_up

_INSTEAD: Final = ("redirect", "html", "false_success", "gzip_bomb", "reset")
_WITH_IT: Final = ("truncate", "cut", "drip")
_DROPS: Final = 50
_MB: Final = 1_000_000
_PAGE: Final = "<!doctype html><title>502 Bad Gateway</title><h1>502 Bad Gateway</h1><hr>nginx"


def misdeed(engine: Engine, visit: Visit) -> Hit | None:
    """The first such fault that strikes, noted in the row. A stream is never held back to be spoilt whole."""
    endless = visit.row.path.endswith("/stream") or visit.row.path == "/v1/events"
    for name in _INSTEAD if endless else _INSTEAD + _WITH_IT:
        hit = visit.strikes(engine.faults, name)
        if hit is not None:
            return hit
    return None


async def spoil(hit: Hit, engine: Engine, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Do what was asked for, and answer as the fault has it."""
    if hit.name in _INSTEAD:
        if scope["method"] != "GET":
            await _collect(app, scope, receive)
        if hit.name == "reset":
            await hang_up(engine, scope, receive, reset=True)
        else:
            await _instead(hit, engine)(scope, receive, send)
        return
    start, body = await _collect(app, scope, receive)
    headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
    told = body[: len(body) // 2] if hit.name == "truncate" else body
    await send({**start, "headers": [*headers, (b"content-length", str(len(told)).encode())]})
    if hit.name == "truncate":
        await send({"type": "http.response.body", "body": told})
    elif hit.name == "cut":
        await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
        await hang_up(engine, scope, receive, reset=False)
    else:
        await _drip(hit.number(), body, engine, scope, send)


async def _drip(seconds: float, body: bytes, engine: Engine, scope: Scope, send: Send) -> None:
    size = max(1, -(-len(body) // _DROPS))
    for start in range(0, len(body), size):
        drop = body[start : start + size]
        await send({"type": "http.response.body", "body": drop, "more_body": start + size < len(body)})
        if gone(engine, scope):
            return
        if await engine.closed_within(seconds / _DROPS):
            seconds = 0


async def _collect(app: ASGIApp, scope: Scope, receive: Receive) -> tuple[Message, bytes]:
    start: Message = {}
    body: list[bytes] = []

    async def keep(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            body.append(message.get("body", b""))

    await app(scope, receive, keep)
    return start, b"".join(body)


def _instead(hit: Hit, engine: Engine) -> Response:
    if hit.name == "redirect":
        return RedirectResponse(str(hit.value or engine.trap), 302)
    if hit.name == "html":
        return HTMLResponse(_PAGE)
    if hit.name == "false_success":
        error = {
            "code": "internal_error",
            "message": "Something went wrong",
            "docsUrl": "https://reader.dev/docs/errors",
        }
        return Response(msgspec.json.encode({"success": False, "error": error}), media_type="application/json")
    return Response(
        bomb(max(1, min(int(hit.number()), 4096))),
        media_type="application/json",
        headers={"content-encoding": "gzip"},
    )


@cache
def _megabyte() -> bytes:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return squeezer.compress(b" " * _MB) + squeezer.flush(zlib.Z_FULL_FLUSH)


def bomb(megabytes: int) -> bytes:
    """Gzip of a JSON object behind so many megabytes of blanks: one deflated megabyte, again and again."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    last = b'{"success":true,"data":{}}'
    tail = squeezer.compress(last) + squeezer.flush(zlib.Z_FINISH)
    check = 0
    for piece in _blanks(megabytes):
        check = zlib.crc32(piece, check)
    size = megabytes * _MB + len(last)
    trailer = zlib.crc32(last, check).to_bytes(4, "little") + (size % (1 << 32)).to_bytes(4, "little")
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff" + _megabyte() * megabytes + tail + trailer


def _blanks(megabytes: int) -> Iterator[bytes]:
    blank = b" " * _MB
    for _ in range(megabytes):
        yield blank
