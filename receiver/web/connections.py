"""How uvicorn holds our connections: its two HTTP protocols, each with what senders of deliveries need beyond it.

* An offer to upgrade (to HTTP/2, to a websocket) is ignored, as RFC 9110, 7.8 has it: some HTTP clients make one with their every
  first request. With httptools, uvicorn shows the app an empty body then, and no genuine delivery would be.
* A client that has sent its request and shut its side of the connection is answered; uvicorn hangs up on it.
* A client that keeps us waiting for its request is hung up on; uvicorn waits for ever, unless the connection is idle after an answer.
* An answer to who has left is dropped; with uvloop, uvicorn takes it for a defect of the app's, and logs a traceback.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol


class Leavable:
    """A transport that drops what is written once it is closing, as asyncio's own do. uvloop's raise, until the protocol is told."""

    __slots__ = ("_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self.is_closing():
            self._transport.write(data)


class HalfClosed:
    """Answers a request that is here whole before it closes."""

    cycle: Any

    def eof_received(self) -> bool:
        if self.cycle is None or self.cycle.more_body or self.cycle.response_complete:
            return False
        self.cycle.keep_alive = False  # nothing more can come: the connection ends with this answer
        return True


class Bounded:
    """Waits for a request, from its first byte to its last, only so long: neither idling nor dripping holds a connection.

    Only the client's time counts. While an answer is made or read, however long that takes, nothing is awaited of it.

    One timer for each connection, never moved: it looks how things stand when it rings. So a request costs no more than the note of
    when its answer ended.
    """

    patience: ClassVar[float] = 8.0
    """Seconds, from the connection's start or the last answer's end. Nobody is to hold a connection for more than ten."""

    cycle: Any
    flow: Any
    loop: asyncio.AbstractEventLoop
    server_state: Any
    transport: asyncio.Transport | Leavable

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)  # type: ignore[misc]  # theirs, as in the methods below
        self.transport = Leavable(transport)
        self._awaited_since = self.loop.time()
        self._timer = self.loop.call_later(self.patience, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)  # type: ignore[misc]

    def on_response_complete(self) -> None:
        self._awaited_since = self.loop.time()
        super().on_response_complete()  # type: ignore[misc]

    def _look(self) -> None:
        if self.transport.is_closing():
            return  # it is gone once its client has read what was written
        now = self.loop.time()
        if not self._is_awaited():
            self._awaited_since = now  # if it is its turn before we look again, it has had no time of its own yet
        left = self._awaited_since + self.patience - now
        if left > 0:
            self._timer = self.loop.call_later(left, self._look)
        else:
            self._give_up()

    def _is_awaited(self) -> bool:
        """Whether it is the client's turn: to begin a request, or to go on with one that we are ready to read."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return True
        return bool(cycle.more_body) and not cycle.response_started and not self.flow.read_paused

    def _give_up(self) -> None:
        if self._has_begun() or (self.cycle is not None and not self.cycle.response_complete):
            lines = [b"HTTP/1.1 408 Request Timeout", *(b"%b: %b" % header for header in self.server_state.default_headers)]
            self.transport.write(b"\r\n".join([*lines, _TIMED_OUT]))
        self.transport.close()

    def _has_begun(self) -> bool:
        """Whether a part of a request's head is here."""
        raise NotImplementedError


_TIMED_OUT = b'content-type: application/json\r\ncontent-length: 20\r\nconnection: close\r\n\r\n{"error": "timeout"}'


class H11(HalfClosed, Bounded, H11Protocol):  # type: ignore[misc]  # theirs returns None
    """The parser in Python. It ignores an offer by itself."""

    def _has_begun(self) -> bool:
        return self.conn.trailing_data[0] != b""


def http_protocol() -> type[asyncio.Protocol]:
    """The quicker of the two, where it is installed."""
    try:
        from receiver.web.connections_httptools import HttpTools  # noqa: PLC0415 - httptools is there or not
    except ImportError:
        return H11
    return HttpTools
