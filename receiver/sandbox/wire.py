"""What is done to a connection itself, below HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Any

from starlette.types import Receive, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from receiver.sandbox.engine import Engine


def watched(transports: dict[tuple[str, int], asyncio.Transport]) -> type[asyncio.Protocol]:
    """The server's protocol, with each connection's transport noted: ASGI has no word for resetting one."""

    class Watched(HttpToolsProtocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if self.client is not None:
                transports[self.client] = transport

        def connection_lost(self, exc: Exception | None) -> None:
            if self.client is not None:
                transports.pop(self.client, None)
            super().connection_lost(exc)

    return Watched


async def hang_up(engine: Engine, scope: Scope, receive: Receive, *, reset: bool) -> None:
    """Close the connection where it stands: with a reset, or after what was written has left."""
    transport = engine.transports.get(tuple(scope["client"]))
    if transport is None:
        return
    if reset:
        held = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()
    # The server takes an answer that never comes for an error of ours, unless it has seen the peer leave.
    while (await receive())["type"] != "http.disconnect":
        pass


def gone(engine: Engine, scope: Scope) -> bool:
    """Whether the peer has left."""
    return tuple(scope["client"]) not in engine.transports
