"""Reader's API over httpx: one method a call, retried where trying again may help, and never beyond the allowance.

The key goes to the configured origin and nowhere else: redirects and `pagination.next` are not followed. Bodies are read in pieces
up to a cap, inflated by ourselves, so that neither a drip nor a gzip bomb costs more than the cap.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Any, Literal, NoReturn, Protocol, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from receiver.clock import Clock
from receiver.core.backoff import backoff, retry_after
from receiver.errors import (
    ReaderError,
    ReaderPausedError,
    ReaderRefusedError,
    ReaderTooLargeError,
    ReaderUnavailableError,
)
from receiver.reader.pages import Head, PageCutter
from receiver.reader.shapes import ErrorBody
from receiver.reader.stream import News, news

Purpose = Literal["hydrate", "command", "probe", "audit"]

ATTEMPTS = 3
"""Requests for one call, at most. Beyond that whoever asked tries again in its own time."""
DEADLINE = 60.0
"""Seconds from a request's start to the end of its answer's body."""
SUBMIT_DEADLINE = 150.0
"""The same for `POST /v1/read`, which may answer only when a page was scraped (`timeoutMs` up to 120,000)."""
PAGE_CAP = 64 << 20
"""Bytes of one page, inflated."""
_SMALL_CAP = 4 << 20
_ERROR_CAP, _ERROR_PATIENCE = 1 << 20, 5.0
"""Bytes and seconds that an error's body may take to explain it."""
_MOST_RPM = 1_000_000
_SILENCE = 75.0
"""Seconds of silence after which a stream is taken for broken: it pings every 30."""
_PATIENCE = 3.0
"""Seconds of a Retry-After that are waited out on the spot; for more, the work is put back and falls due after it."""

T = TypeVar("T")


class Allowance(Protocol):
    """Says when a request may leave, and is told what came of it."""

    async def acquire(self, purpose: Purpose, *, lasts: float) -> Any:
        """Wait a little for a grant. Raises `ReaderPausedError` if none is to be had soon."""
        ...

    async def give_back(self, grant: Any) -> None:
        """The request is not sent after all."""
        ...

    async def release(self, grant: Any, *, tally: str) -> None:
        """The answer's headers came, or none will."""
        ...

    async def pause(self, name: str, *, seconds: float, reason: str) -> None:
        """Let nobody ask Reader anything for a while."""
        ...

    async def learn_limit(self, rpm: int) -> None:
        """A 429 told a limit."""
        ...


class ReaderClient:
    """Use as an async context manager."""

    def __init__(self, base_url: str, api_key: str, *, allowance: Allowance, clock: Clock, deadline: float = DEADLINE) -> None:
        self._allowance = allowance
        self._clock = clock
        self._deadline = deadline
        self._key = api_key
        self._held_until, self._held_for = 0.0, ""
        self.ahead: float | None = None
        """Seconds by which our clock was ahead of Reader's at its newest answer, which tells it in whole seconds."""
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers={"x-api-key": api_key, "user-agent": "receiver/0.1", "accept-encoding": "gzip"},
            timeout=httpx.Timeout(30.0, connect=10.0),
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=16),
            follow_redirects=False,
            trust_env=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none: a jar that grows ends in refused requests
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._http.aclose()

    async def page(
        self,
        job_id: str,
        *,
        skip: int,
        limit: int,
        purpose: Purpose,
        into: Callable[[], Callable[[bytes], Awaitable[None]]],
    ) -> Head:
        """One page of a job. `into()` is called for each attempt and returns what takes its results, raw, as they come.

        The request is released as `look`; whoever made it knows what it turned out to be.
        """

        async def attempt() -> Head:
            take = into()
            cutter = PageCutter()
            params = {"skip": skip, "limit": limit}
            async with self._answer("GET", f"/v1/jobs/{job_id}", purpose=purpose, tally="look", params=params) as answer:
                async for piece in _pieces(answer, PAGE_CAP):
                    for result in cutter.feed(piece):
                        await take(result)
            return cutter.finish()

        return await self._retrying(attempt)

    def roomy(self, size: int, seconds: float) -> bool:
        """Whether a page twice as large as one of `size` bytes, taken in `seconds`, would be let through."""
        return 2 * size <= PAGE_CAP and 2 * seconds <= self._deadline

    async def read(self, body: bytes, *, idempotency_key: str) -> dict[str, Any]:
        """`POST /v1/read`: the `data` of its answer (a job's id, status and mode, or a scraped page)."""
        headers = {"content-type": "application/json", "x-idempotency-key": idempotency_key}
        return await self._call(
            "POST",
            "/v1/read",
            purpose="command",
            tally="submit",
            content=body,
            headers=headers,
            lasts=SUBMIT_DEADLINE,
            read=_data,
        )

    async def credits(self) -> dict[str, Any]:
        """`GET /v1/usage/credits`: `balance`, `limit`, `used`, `tier`, `resetAt`."""
        return await self._call("GET", "/v1/usage/credits", purpose="audit", tally="other", read=_data)

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """`DELETE /v1/jobs/{id}`. Raises `ReaderRefusedError` with code `conflict` if it has ended."""
        return await self._call("DELETE", f"/v1/jobs/{job_id}", purpose="command", tally="other", read=_data, once=True)

    async def retry(self, job_id: str, *, purpose: Purpose = "command") -> dict[str, Any]:
        """`POST /v1/jobs/{id}/retry`: its failed URLs again. Raises `ReaderRefusedError`, code `invalid_request`, if none failed."""
        return await self._call("POST", f"/v1/jobs/{job_id}/retry", purpose=purpose, tally="other", read=_data, once=True)

    async def webhooks(self) -> list[Any]:
        """`GET /v1/webhooks`: the workspace's webhooks; Reader keeps ten at most."""
        return await self._call("GET", "/v1/webhooks", purpose="audit", tally="audit", read=_rows, params={"limit": 100})

    async def create_webhook(self, fields: dict[str, Any]) -> dict[str, Any]:
        """`POST /v1/webhooks`: the new one, with its `secret`, which is told this once.

        Not sent again: where no answer came it may be there all the same. Raises `ReaderRefusedError`, code `conflict`, at ten.
        """
        return await self._call(
            "POST", "/v1/webhooks", purpose="command", tally="other", read=_row, once=True, **_json_body(fields)
        )

    async def change_webhook(self, webhook_id: str, fields: dict[str, Any]) -> None:
        """`PATCH /v1/webhooks/{id}`. Raises `ReaderRefusedError` for what cannot be changed, or code `not_found`."""
        path = f"/v1/webhooks/{quote(webhook_id, safe='')}"
        await self._call("PATCH", path, purpose="command", tally="other", read=_nothing, **_json_body(fields))

    async def delete_webhook(self, webhook_id: str) -> None:
        """`DELETE /v1/webhooks/{id}`. One that is gone already is deleted."""
        try:
            path = f"/v1/webhooks/{quote(webhook_id, safe='')}"
            await self._call("DELETE", path, purpose="command", tally="other", read=_nothing)
        except ReaderRefusedError as error:
            if error.code != "not_found":
                raise

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[News]]:
        """`GET /v1/events`: what happens in the workspace. One request, however long it lives; not retried."""
        headers = {"accept": "text/event-stream", "accept-encoding": "identity"}
        options: dict[str, Any] = {"headers": headers, "silence": _SILENCE}
        async with self._answer("GET", "/v1/events", purpose="probe", tally="stream", **options) as answer:
            yield news(answer)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        purpose: Purpose,
        tally: str,
        lasts: float | None = None,
        read: Callable[[bytes], T],
        once: bool = False,
        **options: Any,
    ) -> T:
        """`once`: not sent again, because it may have been done although no answer came."""

        async def attempt() -> T:
            async with self._answer(method, path, purpose=purpose, tally=tally, lasts=lasts, **options) as answer:
                body = b"".join([piece async for piece in _pieces(answer, _SMALL_CAP)])
            return read(body)

        return await (attempt() if once else self._retrying(attempt))

    async def _retrying(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Up to `ATTEMPTS` times, as long as the trouble is a passing one and Reader does not ask for a long pause."""
        retrying = AsyncRetrying(
            retry=retry_if_exception(_worth_retrying),
            stop=stop_after_attempt(ATTEMPTS),
            wait=self._wait,
            sleep=self._clock.sleep,
            reraise=True,
        )
        return await retrying(attempt)

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, ReaderUnavailableError) else None
        return backoff(state.attempt_number - 1, base=0.5, cap=8.0, chance=self._clock.chance()) if asked is None else asked

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        *,
        purpose: Purpose,
        tally: str,
        lasts: float | None = None,
        silence: float | None = None,
        **options: Any,
    ) -> AsyncIterator[httpx.Response]:
        """One request: granted, sent, its headers awaited and judged. Foreign exceptions end here.

        `lasts`: seconds until its body must have ended; with `silence` it need not end, but may not be still for so long.
        """
        seconds = lasts or self._deadline
        grant = await self._allowance.acquire(purpose, lasts=seconds)
        if (wait := self._held_until - self._clock.monotonic()) > 0:
            # Granted before all were told to wait.
            await self._allowance.give_back(grant)
            raise ReaderPausedError(self._held_for, retry_after=wait)
        released = False
        timeout = httpx.Timeout(seconds, connect=10.0, read=silence or seconds)
        try:
            async with (
                asyncio.timeout(seconds) as deadline,
                self._http.stream(method, path, timeout=timeout, **options) as answer,
            ):
                # At most once: broken off midway it may be done all the same, and else the slot frees itself in the end.
                released = True
                self._note_date(answer.headers.get("date"))
                await self._allowance.release(grant, tally=tally)
                if answer.status_code >= 300:
                    await self._refuse(answer)
                if silence is not None:
                    deadline.reschedule(None)
                yield answer
        except TimeoutError as error:
            if released:
                raise ReaderTooLargeError(f"Reader's answer was not complete after {seconds:g} s") from error
            raise ReaderUnavailableError(f"Reader did not answer within {seconds:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, zlib.error) as error:
            raise ReaderUnavailableError(f"Reader could not be asked: {type(error).__name__} {error}".rstrip()) from error
        finally:
            if not released:
                await self._allowance.release(grant, tally=tally)

    def _note_date(self, date: str | None) -> None:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            self.ahead = self._clock.wall() - parsedate_to_datetime(date or "").timestamp()

    async def _refuse(self, answer: httpx.Response) -> NoReturn:
        """Turn an error answer into one exception, and hold everybody back where it concerns everybody."""
        status = answer.status_code
        if status < 400:
            raise ReaderUnavailableError(f"Reader redirects ({status}), which is not followed: the key stays with its origin")
        error = await _explanation(answer)
        code = error.code if error else ""
        words = error.message if error else "not its usual answer"
        message = self._line(f"Reader says {status} {code or 'without a code'}: {words}")
        details = (error.details if error else None) or {}
        wishes = (answer.headers.get("retry-after"), str(details.get("retryAfterSeconds")))
        # To ask for no wait is to ask for nothing: a date that is past, for one, is more likely a clock that is off.
        wait = next((wish for text in wishes if (wish := retry_after(text, now=self._clock.wall()))), None)
        if code == "concurrency_limited":
            raise ReaderUnavailableError(message, retry_after=wait)
        if status == 429:
            if type(limit := details.get("limit")) is int and 0 < limit < _MOST_RPM:
                await self._allowance.learn_limit(limit)
            wait = backoff(1, base=1.0, cap=8.0, chance=self._clock.chance()) if wait is None else wait
            self._held_until, self._held_for = self._clock.monotonic() + wait, message
            await self._allowance.pause("rate_limited", seconds=wait, reason=message)
            raise ReaderUnavailableError(message, retry_after=wait)
        if status == 401 or (status == 403 and code != "url_blocked"):
            message = f"{message}. Set READER_API_KEY to a key that works"
            await self._allowance.pause("unauthenticated", seconds=60.0, reason=message)
            raise ReaderPausedError(message, retry_after=60.0)
        if status == 402:
            await self._allowance.pause("insufficient_credits", seconds=60.0, reason=message)
            raise ReaderPausedError(message, retry_after=60.0)
        if status >= 500 or status in {408, 425} or error is None:
            raise ReaderUnavailableError(message, retry_after=wait)
        raise ReaderRefusedError(message, code=code, status=status, details=details)

    def _line(self, text: str) -> str:
        """Reader's words as one line, and without the key should they quote it."""
        return " ".join(text.replace(self._key, "[key]").split())[:500]


def _worth_retrying(error: BaseException) -> bool:
    if isinstance(error, ReaderPausedError) or not isinstance(error, ReaderUnavailableError):
        return False
    return error.retry_after is None or error.retry_after <= _PATIENCE


def _data(body: bytes) -> dict[str, Any]:
    data = _member(body)
    if not isinstance(data, dict):
        raise ReaderUnavailableError("Reader's answer is not its envelope")
    return data


def _rows(body: bytes) -> list[Any]:
    data = _member(body)
    if isinstance(data, dict):
        # What the vendor names the list inside is not documented.
        data = next((value for value in data.values() if isinstance(value, list)), None)
    if not isinstance(data, list):
        raise ReaderUnavailableError("Reader's answer is not its envelope")
    return data


def _row(body: bytes) -> dict[str, Any]:
    data = _data(body)
    if "id" in data:
        return data
    # Perhaps under a name of its own, as a list may be.
    return next((value for value in data.values() if isinstance(value, dict)), data)


def _nothing(_: bytes) -> None:
    """The status has said it all."""


def _json_body(value: Any) -> dict[str, Any]:
    return {"content": msgspec.json.encode(value), "headers": {"content-type": "application/json"}}


def _member(body: bytes) -> Any:
    """The `data` of a success."""
    try:
        envelope = msgspec.json.decode(body, type=dict[str, Any])
        data = envelope["data"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError) as error:
        raise ReaderUnavailableError(f"Reader's answer is not its envelope: {error}") from error
    if envelope.get("success") is False:
        raise ReaderUnavailableError("Reader's answer is not its envelope")
    return data


def _error(body: bytes) -> ErrorBody | None:
    try:
        return msgspec.convert(msgspec.json.decode(body)["error"], ErrorBody)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, TypeError, IndexError):
        return None


async def _explanation(answer: httpx.Response) -> ErrorBody | None:
    """What an error answer says of itself; None if that cannot be read, or not in time: its status counts all the same."""
    try:
        async with asyncio.timeout(_ERROR_PATIENCE):
            return _error(b"".join([piece async for piece in _pieces(answer, _ERROR_CAP)]))
    except (TimeoutError, ReaderError, httpx.HTTPError, zlib.error):
        return None


async def _pieces(answer: httpx.Response, cap: int) -> AsyncIterator[bytes]:
    """The body as it comes, inflated; `ReaderTooLargeError` beyond `cap` bytes, whatever its Content-Length says."""
    encoding = answer.headers.get("content-encoding", "identity").lower()
    if encoding not in {"identity", "gzip", "x-gzip"}:
        raise ReaderUnavailableError(f"Reader answered in an encoding it was not asked for: {encoding}")
    inflate = None if encoding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 16)
    size = 0
    async for piece in answer.aiter_raw():
        rest = piece
        while rest:
            plain, rest = (rest, b"") if inflate is None else (inflate.decompress(rest, 65536), inflate.unconsumed_tail)
            size += len(plain)
            if size > cap:
                raise ReaderTooLargeError(f"Reader's answer is larger than {cap} bytes")
            yield plain
        if inflate is not None and inflate.unused_data:
            raise ReaderUnavailableError("Reader's answer goes on after its end")
    if inflate is not None and not inflate.eof:
        raise ReaderUnavailableError("Reader's answer ended midway")
