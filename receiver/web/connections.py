"""How uvicorn holds our connections: its two HTTP protocols, each with what senders of deliveries need beyond it.

* An offer to upgrade (to HTTP/2, to a websocket) is ignored, as RFC 9110, 7.8 has it: some HTTP clients make one with their every
  first request. With httptools, uvicorn shows the app an empty body then, and no genuine delivery would be.
* A client that has sent its request and shut its side of the connection is answered; uvicorn hangs up on it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class _HalfClosed:
    """Answers a request that is here whole before it closes."""

    cycle: Any

    def eof_received(self) -> bool:
        if self.cycle is None or self.cycle.more_body or self.cycle.response_complete:
            return False
        self.cycle.keep_alive = False  # nothing more can come: the connection ends with this answer
        return True


class H11(_HalfClosed, H11Protocol):  # type: ignore[misc]  # theirs returns None
    """The parser in Python. It ignores an offer by itself."""


def http_protocol() -> type[asyncio.Protocol]:
    """The quicker of the two, where it is installed."""
    try:
        import httptools  # noqa: PLC0415 - it is there or not
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: PLC0415
    except ImportError:
        return H11

    class HttpTools(_HalfClosed, HttpToolsProtocol):  # type: ignore[misc]  # theirs returns None
        """The parser in C. It stops behind the head of a request with an offer: that head is read again, without it."""

        def data_received(self, data: bytes) -> None:
            self._unset_keepalive_if_required()
            try:
                while data:
                    data = self._feed(data)
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")

        def _feed(self, data: bytes) -> bytes:
            """What is left to feed."""
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if not self._should_upgrade():
                    self.cycle.keep_alive = False  # a tunnel, which the app is about to refuse
                    return b""
                version = self.parser.get_http_version().encode()
                head = [b"%b %b HTTP/%b" % (self.scope["method"].encode(), self.url, version)]
                head += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                return b"\r\n".join([*head, b"", data[offer.args[0] :]])
            return b""

        def _should_upgrade(self) -> bool:
            # Asked at each offer, and at CONNECT. With yes, uvicorn does not give the request to the app yet.
            return bool(self.scope["method"] != "CONNECT")

    return HttpTools
