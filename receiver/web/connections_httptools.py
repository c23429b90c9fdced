"""A connection whose requests are read by the parser in C, and whose deliveries are taken on the shortest way there is.

uvicorn makes a scope, a task, an event and a dozen more objects for each request, and two calls for its answer: more than all that is
done for a delivery. So a plain delivery goes from here straight to the endpoint, and its answer straight to the socket. Whatever is
not so plain (another path or method, a query, a pipeline, an offer to upgrade, `Expect`) goes the way of all requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from receiver.logs import Lines
from receiver.web.connections import Bounded, HalfClosed
from receiver.web.webhook import TOO_LARGE, UNAVAILABLE, Answer, Line

if TYPE_CHECKING:
    from receiver.web.webhook import WebhookEndpoint

_lines = Lines("receiver.webhook")


class HttpTools(HalfClosed, Bounded, HttpToolsProtocol):  # type: ignore[misc]  # theirs returns None
    """Their parser stops behind the head of a request with an offer: that head is read again, without it."""

    _in_head = False

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._endpoint: WebhookEndpoint | None = getattr(self.app, "endpoint", None)
        self._target = getattr(self.app, "target", b"")

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

    def on_message_begin(self) -> None:
        self._in_head = True
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        self._in_head = False
        if not self._is_plain_delivery():
            # What they do where a request begins was left until now.
            url, headers, expects = self.url, self.headers, self.expect_100_continue
            super().on_message_begin()
            self.url, self.expect_100_continue = url, expects
            self.headers.extend(headers)
            super().on_headers_complete()
            return
        assert self._endpoint is not None
        exchange = self.cycle = Exchange(self, self.parser.should_keep_alive(), self._endpoint.clock.monotonic())
        refused = self._endpoint.weigh(self.headers)
        if refused is not None:
            exchange.reply(refused)

    def _is_plain_delivery(self) -> bool:
        return (
            self.url == self._target
            and (self.cycle is None or self.cycle.response_complete)
            and not self.pipeline
            and not self.expect_100_continue
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and not self.parser.should_upgrade()
        )

    def on_body(self, body: bytes) -> None:
        exchange = self.cycle
        if type(exchange) is not Exchange:
            super().on_body(body)
        elif exchange.is_open:
            exchange.body += body
            if len(exchange.body) > self._endpoint.max_body:  # type: ignore[union-attr]  # where there is an exchange, there is one
                exchange.reply(TOO_LARGE)

    def on_message_complete(self) -> None:
        exchange = self.cycle
        if type(exchange) is not Exchange:
            super().on_message_complete()
        elif exchange.is_open:
            exchange.more_body = False
            self._endpoint.take(self.headers, exchange.body, exchange.reply, began=exchange.began)  # type: ignore[union-attr]

    def answered(self) -> None:
        """An exchange is over. As theirs, but for the timer: nobody may idle for longer than `Bounded` allows anyway."""
        if self.pipeline or self.flow.read_paused:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self._awaited_since = self.loop.time()

    def give_up(self) -> None:
        """The server stops, and waits no longer for what this connection's delivery lacks."""
        if type(self.cycle) is Exchange and not self.cycle.response_complete:
            self.cycle.reply(UNAVAILABLE)

    def _should_upgrade(self) -> bool:
        # Asked at each offer, and at CONNECT. With yes, uvicorn does not give the request to the app yet.
        return bool(self.scope["method"] != "CONNECT")

    def _is_awaited(self) -> bool:
        # With a pipeline, `cycle` is the request that came last, and not the one being answered.
        return not self.pipeline and super()._is_awaited()

    def _has_begun(self) -> bool:
        return self._in_head


class Exchange:
    """A delivery and its answer: for uvicorn, and for `Bounded`, the cycle of a request like any other."""

    __slots__ = ("began", "body", "disconnected", "keep_alive", "more_body", "protocol", "response_complete", "response_started")

    class _Nobody:
        """Who else waits for a request's messages."""

        def set(self) -> None: ...

    message_event: ClassVar = _Nobody()

    def __init__(self, protocol: HttpTools, keep_alive: bool, began: float) -> None:  # noqa: FBT001 - thousands a second
        self.protocol = protocol
        self.keep_alive = keep_alive
        self.began = began
        self.body = b""
        self.more_body = True
        self.disconnected = False
        self.response_started = self.response_complete = False

    @property
    def is_open(self) -> bool:
        """Whether what comes is its body: it was not refused, and this is not the end of an offer to upgrade behind it."""
        return self.more_body and not self.response_complete

    def reply(self, answer: Answer, line: Line | None = None) -> None:
        """Answer, unless that was done, or nobody is there any more."""
        if line is not None:
            _lines.info(line)
        protocol = self.protocol
        if self.response_complete or self.disconnected:
            return
        self.response_started = self.response_complete = True
        closes = answer.closes or not self.keep_alive
        protocol.transport.write(_wire.bytes_of(answer, closes, protocol.server_state.default_headers))
        if closes:
            protocol.transport.close()
        protocol.answered()


class _Wire:
    """Answers as they go over the wire, each made once a second: when the date changes, which uvicorn keeps."""

    def __init__(self) -> None:
        self._dated: Any = None
        self._made: dict[tuple[Answer, bool], bytes] = {}

    def bytes_of(self, answer: Answer, closes: bool, dated: list[tuple[bytes, bytes]]) -> bytes:  # noqa: FBT001 - as above
        if dated is not self._dated:
            self._dated = dated
            self._made.clear()
        made = self._made.get((answer, closes))
        if made is None:
            headers = [*dated, *answer.headers]
            if closes and not answer.closes:
                headers.append((b"connection", b"close"))
            head = b"".join(b"%b: %b\r\n" % header for header in headers)
            made = self._made[answer, closes] = b"%b%b\r\n%b" % (STATUS_LINE[answer.status], head, answer.body)
        return made


_wire: Final = _Wire()
