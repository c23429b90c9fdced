"""`POST /hooks/reader`: verify, store, then answer. This is the one hot path.

What the sender is told: 2xx, it is stored or was known; 401, one answer for whatever fails authentication; 503, it is not known
to be stored, send it again. Nothing is left to be done after the answer.

There are two ways in: as an ASGI app, for any server and any app that this one is mounted in; and, under `receiver serve`, straight
from the connection (connections_httptools.py), which takes a third of the time. Both call `weigh` once the headers are there, and
`take` with the body.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, get_args

import structlog

from receiver.core.delivery import Claims, Delivery, read_headers, understand
from receiver.core.signature import Verifier
from receiver.errors import SignatureError, StoreError
from receiver.store.inbox import Outcome, OutcomeName
from receiver.web.keyring import Keyring

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from receiver.clock import Clock
    from receiver.ingest import Ingest
    from receiver.settings import Settings

WEBHOOK: Final = "/hooks/reader"
"""The path."""
RETRY_AFTER: Final = b"2"
CROWD: Final = 2048
"""Deliveries at once, at most, each whole: who drips takes nobody's place. More would all be answered late, so those beyond are turned
away before any work is done for them."""

Headers = Sequence[tuple[bytes, bytes]]
"""As ASGI has them: names in lower case."""
Line = dict[str, Any]
"""What the log is to say of a delivery that is stored."""
_LONGEST_ID: Final = 128
"""Bytes of a request's id that a proxy gave it; a longer one is none."""

log = structlog.get_logger("receiver.webhook")


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a sender is told. There are a dozen of them, each made once. `closes`: the body was not read, so nothing can follow it."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    closes: bool


def _answer(status: int, body: dict[str, str], *headers: tuple[bytes, bytes], closes: bool = False) -> Answer:
    payload = json.dumps(body).encode()
    fixed = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(payload)))
    return Answer(status, payload, (*fixed, *headers), closes)


def _refused(status: int, why: str) -> Answer:
    return _answer(status, {"error": why}, (b"connection", b"close"), closes=True)


TAKEN: Final = {name: _answer(202 if name == "accepted" else 200, {"outcome": name}) for name in get_args(OutcomeName)}
UNAUTHORIZED: Final = _answer(401, {"error": "unauthorized"})
WRONG_METHOD: Final = _answer(405, {"error": "method_not_allowed"}, (b"allow", b"POST"))
NO_UPGRADE: Final = _refused(400, "upgrade_unsupported")
TOO_LARGE: Final = _refused(413, "too_large")
WRONG_MEDIA_TYPE: Final = _refused(415, "unsupported_media_type")
UNAVAILABLE: Final = _answer(503, {"error": "unavailable"}, (b"retry-after", RETRY_AFTER))


Count = Callable[[str, float | None], None]
"""Told what became of a delivery and, where it was stored, after how many seconds its sender knows."""


def _uncounted(_: str, __: float | None) -> None:
    """Where nobody is there to write the figures."""


Reply = Callable[[Answer, Line | None], None]


class WebhookEndpoint:
    """`ingest()` is None while the receiver is not started; `verifier` is None where only unsigned deliveries are taken.

    `keyring` is told which secret signed, `count` what became of each: an outcome, `unavailable`, or `refused` and why.
    """

    def __init__(
        self,
        ingest: Callable[[], Ingest | None],
        *,
        verifier: Verifier | None,
        keyring: Keyring,
        allow_unsigned: bool,
        tolerance: int,
        max_body: int,
        clock: Clock,
        count: Count = _uncounted,
    ) -> None:
        self._ingest = ingest
        self._verifier = verifier
        self._keyring = keyring
        self._allow_unsigned = allow_unsigned
        self._tolerance = tolerance
        self.max_body = max_body
        self.clock = clock
        self._count = count
        self._refusals = _Refusals(clock)
        self._unread = _Unread(clock)
        self._taking = 0
        self._process = f"req_{clock.token()[-12:]}_"
        self._requests = itertools.count(1)

    @classmethod
    def of(
        cls,
        settings: Settings,
        ingest: Callable[[], Ingest | None],
        *,
        keyring: Keyring,
        clock: Clock,
        count: Count = _uncounted,
    ) -> Self:
        """The one that is configured. Raises `SettingsError` if there is no secret to verify with."""
        settings.require_secret()
        return cls(
            ingest,
            verifier=Verifier(settings.secrets) if settings.secrets else None,
            keyring=keyring,
            allow_unsigned=settings.receiver_allow_unsigned,
            tolerance=settings.receiver_tolerance,
            max_body=settings.receiver_max_body,
            clock=clock,
            count=count,
        )

    def weigh(self, headers: Headers) -> Answer | None:
        """Why a request with these headers is refused before its body is read; None if it is not."""
        refused = self._weighed(headers)
        if refused is not None:
            self._count("refused too_large" if refused is TOO_LARGE else "refused media_type", None)
        return refused

    def _weighed(self, headers: Headers) -> Answer | None:
        for name, value in headers:
            if name not in _WEIGHED:
                continue
            if name == b"content-length" and int(value) > self.max_body:
                return TOO_LARGE
            if name == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
                return WRONG_MEDIA_TYPE
            if name == b"content-type" and not _is_json(value):
                return WRONG_MEDIA_TYPE
        return None

    def take(self, headers: Headers, body: bytes, reply: Reply, *, began: float) -> None:
        """Have a delivery stored. `reply` is called once, now or when it is durable.

        `began`: when its headers were there, by the monotonic clock.
        """
        if self._taking >= CROWD:
            self._count("unavailable", None)
            reply(UNAVAILABLE, None)
            return
        try:
            claims = read_headers(headers)
            signed = self._authenticate(claims, body)
        except SignatureError as error:
            self._note(error)
            self._count(f"refused {error.reason}", None)
            reply(UNAUTHORIZED, None)
            return
        delivery = understand(body, claims, signed=signed)
        self._taking += 1

        def told(outcome: Outcome | None, error: Exception | None) -> None:
            self._taking -= 1
            if outcome is None:
                log.error("delivery_not_stored", delivery=delivery.delivery_id, job=delivery.job_id, hint=str(error))
                self._count("unavailable", None)
                reply(UNAVAILABLE, None)
                return
            seconds = self.clock.monotonic() - began
            self._count(outcome.name, seconds)
            if outcome.same_id:
                log.warning(
                    "delivery_id_reused",
                    delivery=delivery.delivery_id,
                    hint="one delivery id came with two bodies: both are kept",
                )
            if self._unread.count or outcome.name == "quarantined":
                self._unread.note(outcome.name, signed=signed)
            reply(TAKEN[outcome.name], self._line(headers, delivery, outcome, seconds))

        ingest = self._ingest()
        try:
            if ingest is None:
                raise StoreError(
                    "the receiver is not started: an app mounted in another needs that one to have lifespan=receiver.lifespan"
                )
            ingest.take(delivery, told)
        except StoreError as error:
            told(None, error)

    def _line(self, headers: Headers, delivery: Delivery, outcome: Outcome, seconds: float) -> Line:
        told = {"delivery": delivery.delivery_id, "job": delivery.job_id, "event_name": delivery.event, "reason": delivery.reason}
        line: Line = {"outcome": outcome.name, "request": self._request(headers)}
        for name, value in told.items():
            if value is not None:
                line[name] = value
        line["ms"] = round(seconds * 1000, 1)
        line["event"] = "delivery"
        return line

    def _request(self, headers: Headers) -> str:
        """The request's id: the one that a proxy before us gave it, to be found in its log too; else one of ours."""
        for name, value in headers:
            if name == b"x-request-id" and 0 < len(value) <= _LONGEST_ID:
                return value.decode("ascii", "backslashreplace")
        return f"{self._process}{next(self._requests):x}"

    def _note(self, error: SignatureError) -> None:
        """For the log, and as often for the database, by why: Reader's own, by their looks, apart from others without a signature."""
        count, ingest = self._refusals.note(error), self._ingest()
        if count and ingest is not None:
            ingest.refused("unsigned" if str(error) == _UNSIGNED else error.reason, count)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began = self.clock.monotonic()
        headers: Headers = scope["headers"]
        refused = self.weigh(headers) if scope["method"] == "POST" else WRONG_METHOD
        if refused is not None:
            await send_answer(send, refused)
            return
        try:
            body = await self._read(headers, receive)
            if body is None:
                return
            answer = body if isinstance(body, Answer) else await self._taken(headers, body, began)
        except asyncio.CancelledError:  # by a server that is stopping and waits no longer
            answer = UNAVAILABLE
        await send_answer(send, answer)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | Answer | None:
        """The body, or why it is refused; None if the client left before its end, or took too long: the connection sees to that."""
        pieces: list[bytes] = []
        size = 0
        while True:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            size += len(piece)
            if size > self.max_body:
                return TOO_LARGE
            pieces.append(piece)
            if not message.get("more_body", False):
                if size == 0 and any(name == b"upgrade" for name, _ in headers):
                    # A server that does not know the protocol may keep the body to itself, as uvicorn with httptools does: that is
                    # no forgery, which a 401 would say.
                    return NO_UPGRADE
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _taken(self, headers: Headers, body: bytes, began: float) -> Answer:
        told: asyncio.Future[tuple[Answer, Line | None]] = asyncio.get_running_loop().create_future()

        def reply(answer: Answer, line: Line | None) -> None:
            if not told.done():
                told.set_result((answer, line))

        self.take(headers, body, reply, began=began)
        answer, line = await told
        if line is not None:
            log.info(**line)
        return answer

    def _authenticate(self, claims: Claims, body: bytes) -> bool:
        """Whether it is signed; False where it is not and need not be. Raises `SignatureError`."""
        if self._verifier is not None and not (self._allow_unsigned and claims.signature is None):
            if claims.signature is None or claims.timestamp is None:
                raise SignatureError(
                    "missing",
                    _UNSIGNED if claims.delivery_id else "the signature or the timestamp is missing",
                )
            which = self._verifier.verify(
                body,
                timestamp=claims.timestamp,
                signature=claims.signature,
                now=self.clock.wall(),
                tolerance=self._tolerance,
            )
            if claims.webhook is not None:
                self._keyring.signed(claims.webhook, which)
            return True
        if not self._allow_unsigned:
            raise SignatureError("no_secret", "READER_WEBHOOK_SECRET is not set, so nobody's signature can be checked")
        return False


_UNSIGNED: Final = (
    "looks like Reader's, but is not signed: a webhook set per job without a secret does this; give it the secret, "
    "or set RECEIVER_ALLOW_UNSIGNED=true to take it as a mere cue"
)


class _Refusals:
    """Tells the log of refused deliveries, by reason, at most once in ten seconds each: anybody can cause them."""

    _EVERY = 10.0

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told: dict[str, float] = {}
        self._untold: dict[str, int] = {}

    def note(self, error: SignatureError) -> int:
        """How many it was the time to tell of."""
        reason = error.reason
        self._untold[reason] = self._untold.get(reason, 0) + 1
        now = self._clock.monotonic()
        if now - self._told.get(reason, -self._EVERY) < self._EVERY:
            return 0
        self._told[reason] = now
        count = self._untold.pop(reason)
        if reason in {"stale", "future"}:
            # Genuine by its signature: a replay is possible, but a clock that is off is likely, and loses every delivery.
            log.warning("clock_skew", reason=reason, count=count, hint=f"{error}: check this machine's clock")
        else:
            log.warning("delivery_refused", reason=reason, count=count, hint=str(error))
        return count


class _Unread:
    """Raises an alarm when nothing that comes can be read any more: whoever sends it has changed what it looks like."""

    _MANY = 3
    _EVERY = 600.0

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told: float | None = None
        self.count = 0
        """Deliveries that were quarantined since the last one that was read."""

    def note(self, outcome: OutcomeName, *, signed: bool) -> None:
        if outcome == "accepted":
            if self._told is not None:
                log.info("deliveries_readable", hint="`receiver deliveries --reprocess` takes in those that were not")
            self.count, self._told = 0, None
        elif outcome == "quarantined" and signed:  # what nobody signed may be anybody's
            self.count += 1
            now = self._clock.monotonic()
            if self.count >= self._MANY and (self._told is None or now - self._told >= self._EVERY):
                self._told = now
                hint = (
                    "nothing that comes from Reader can be read: it may have changed what it sends; update receiver, then run "
                    "`receiver deliveries --reprocess`. The poller finds the ends of jobs meanwhile"
                )
                log.error("deliveries_unreadable", count=self.count, hint=hint)


_WEIGHED: Final = frozenset({b"content-length", b"content-encoding", b"content-type"})


def _is_json(content_type: bytes) -> bool:
    kind = content_type.split(b";", 1)[0].strip().lower()
    return kind in {b"", b"application/json"} or (kind.startswith(b"application/") and kind.endswith(b"+json"))


async def send_answer(send: Send, answer: Answer) -> None:
    """By ASGI."""
    await send({"type": "http.response.start", "status": answer.status, "headers": list(answer.headers)})
    await send({"type": "http.response.body", "body": answer.body})
