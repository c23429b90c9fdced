"""A connection whose requests are read by the parser in C."""

from __future__ import annotations

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from receiver.web.connections import Bounded, HalfClosed


class HttpTools(HalfClosed, Bounded, HttpToolsProtocol):  # type: ignore[misc]  # theirs returns None
    """Their parser stops behind the head of a request with an offer: that head is read again, without it."""

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

    def _is_awaited(self) -> bool:
        # With a pipeline, `cycle` is the request that came last, and not the one being answered.
        return not self.pipeline and super()._is_awaited()

    def _has_begun(self) -> bool:
        return getattr(self.cycle, "scope", None) is not self.scope  # which a request has from its first byte on
