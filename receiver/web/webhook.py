"""`POST /hooks/reader`: verify, store, then answer. A plain ASGI callable: this is the one hot path.

What the sender is told: 2xx, it is stored or was known; 401, one answer for whatever fails authentication; 503, it is not known
to be stored, send it again. Nothing is left to be done after the answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, get_args

import structlog

from receiver.core.delivery import Claims, read_headers, understand
from receiver.errors import SignatureError, StoreError
from receiver.store.inbox import OutcomeName

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from receiver.clock import Clock
    from receiver.core.signature import Verifier
    from receiver.ingest import Ingest

RETRY_AFTER: Final = b"2"
CROWD: Final = 2048
"""Deliveries at once, at most, each whole: who drips takes nobody's place. More would all be answered late, so those beyond are turned
away before any work is done for them."""

log = structlog.get_logger("receiver.webhook")


class WebhookEndpoint:
    """`ingest()` is None while the receiver is not started; `verifier` is None where only unsigned deliveries are taken."""

    def __init__(
        self,
        ingest: Callable[[], Ingest | None],
        *,
        verifier: Verifier | None,
        allow_unsigned: bool,
        tolerance: int,
        max_body: int,
        clock: Clock,
    ) -> None:
        self._ingest = ingest
        self._verifier = verifier
        self._allow_unsigned = allow_unsigned
        self._tolerance = tolerance
        self._max_body = max_body
        self._clock = clock
        self._refusals = _Refusals(clock)
        self._taking = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began = self._clock.monotonic()
        if scope["method"] != "POST":
            await _answer(send, 405, {"error": "method_not_allowed"}, (b"allow", b"POST"))
            return
        problem = self._refused_by_headers(scope)
        if problem is not None:
            # The body is not read, so the connection cannot be used again.
            await _answer(send, problem, {"error": _NAMES[problem]}, (b"connection", b"close"))
            return
        try:
            body = await self._read(scope, receive)
        except asyncio.CancelledError:  # by a server that is stopping and waits no longer
            await _unavailable(send)
            return
        except _RefusedError as error:
            await _answer(send, error.status, {"error": _NAMES[error.status]}, (b"connection", b"close"))
            return
        if body is not None and self._taking < CROWD:
            self._taking += 1
            try:
                await self._take(scope, body, send, began)
            finally:
                self._taking -= 1
        elif body is not None:
            await _unavailable(send)

    def _refused_by_headers(self, scope: Scope) -> int | None:
        for name, value in scope["headers"]:
            if name not in _WEIGHED:
                continue
            if name == b"content-length" and int(value) > self._max_body:
                return 413
            if name == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
                return 415
            if name == b"content-type" and not _is_json(value):
                return 415
        return None

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None if the client left before its end, or took too long: the connection sees to that (connections.py)."""
        pieces: list[bytes] = []
        size = 0
        while True:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            size += len(piece)
            if size > self._max_body:
                raise _RefusedError(413)
            pieces.append(piece)
            if not message.get("more_body", False):
                if size == 0 and any(name == b"upgrade" for name, _ in scope["headers"]):
                    # A server that does not know the protocol may keep the body to itself, as uvicorn with httptools does: that is
                    # no forgery, which a 401 would say.
                    raise _RefusedError(400)
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _take(self, scope: Scope, body: bytes, send: Send, began: float) -> None:
        try:
            claims = read_headers(scope["headers"])
            signed = self._authenticate(claims, body)
        except SignatureError as error:
            self._refusals.note(error)
            await _answer(send, 401, {"error": "unauthorized"})
            return
        delivery = understand(body, claims, signed=signed)
        ingest = self._ingest()
        try:
            if ingest is None:
                raise StoreError(
                    "the receiver is not started: an app mounted in another needs that one to have lifespan=receiver.lifespan"
                )
            outcome = await ingest.accept(delivery)
        except (StoreError, asyncio.CancelledError) as error:
            hint = str(error) or "not stored before the server had to stop"
            log.error("delivery_not_stored", delivery=delivery.delivery_id, job=delivery.job_id, hint=hint)  # noqa: TRY400 - one line
            await _unavailable(send)
            return
        milliseconds = round((self._clock.monotonic() - began) * 1000, 1)
        log.info(
            "delivery",
            outcome=outcome.name,
            delivery=delivery.delivery_id,
            job=delivery.job_id,
            event_name=delivery.event,
            reason=delivery.reason,
            ms=milliseconds,
        )
        if outcome.same_id:
            log.warning(
                "delivery_id_reused",
                delivery=delivery.delivery_id,
                hint="one delivery id came with two bodies: both are kept",
            )
        await _send(send, 202 if outcome.name == "accepted" else 200, _TAKEN[outcome.name])

    def _authenticate(self, claims: Claims, body: bytes) -> bool:
        """Whether it is signed; False where it is not and need not be. Raises `SignatureError`."""
        if self._verifier is not None and not (self._allow_unsigned and claims.signature is None):
            if claims.signature is None or claims.timestamp is None:
                raise SignatureError(
                    "missing",
                    _UNSIGNED if claims.delivery_id else "the signature or the timestamp is missing",
                )
            self._verifier.verify(
                body,
                timestamp=claims.timestamp,
                signature=claims.signature,
                now=self._clock.wall(),
                tolerance=self._tolerance,
            )
            return True
        if not self._allow_unsigned:
            raise SignatureError("no_secret", "READER_WEBHOOK_SECRET is not set, so nobody's signature can be checked")
        return False


_UNSIGNED: Final = (
    "looks like Reader's, but is not signed: a webhook set per job without a secret does this; give it the secret, "
    "or set RECEIVER_ALLOW_UNSIGNED=true to take it as a mere cue"
)


class _RefusedError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Refusals:
    """Tells the log of refused deliveries, by reason, at most once in ten seconds each: anybody can cause them."""

    _EVERY = 10.0

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told: dict[str, float] = {}
        self._untold: dict[str, int] = {}

    def note(self, error: SignatureError) -> None:
        reason = error.reason
        self._untold[reason] = self._untold.get(reason, 0) + 1
        now = self._clock.monotonic()
        if now - self._told.get(reason, -self._EVERY) < self._EVERY:
            return
        self._told[reason] = now
        count = self._untold.pop(reason)
        if reason in {"stale", "future"}:
            # Genuine by its signature: a replay is possible, but a clock that is off is likely, and loses every delivery.
            log.warning("clock_skew", reason=reason, count=count, hint=f"{error}: check this machine's clock")
        else:
            log.warning("delivery_refused", reason=reason, count=count, hint=str(error))


_WEIGHED: Final = frozenset({b"content-length", b"content-encoding", b"content-type"})
_NAMES: Final = {400: "upgrade_unsupported", 413: "too_large", 415: "unsupported_media_type"}


def _is_json(content_type: bytes) -> bool:
    kind = content_type.split(b";", 1)[0].strip().lower()
    return kind in {b"", b"application/json"} or (kind.startswith(b"application/") and kind.endswith(b"+json"))


async def _unavailable(send: Send) -> None:
    await _answer(send, 503, {"error": "unavailable"}, (b"retry-after", RETRY_AFTER))


async def _answer(send: Send, status: int, body: dict[str, str], *headers: tuple[bytes, bytes]) -> None:
    await _send(send, status, json.dumps(body).encode(), *headers)


async def _send(send: Send, status: int, payload: bytes, *headers: tuple[bytes, bytes]) -> None:
    fixed = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(payload))]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": payload})


_TAKEN: Final = {name: json.dumps({"outcome": name}).encode() for name in get_args(OutcomeName)}
