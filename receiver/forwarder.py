"""The forwarder: follows Reader's workspace stream, and posts what it tells to an endpoint as Reader's courier would.

For development: the endpoint needs no public address, and what it gets it verifies and answers as in earnest. It keeps nothing; what
ends while nobody follows the stream is asked for once it is followed again, for jobs that were heard of before.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Final

import httpx

from receiver.core import letter
from receiver.core.backoff import backoff
from receiver.core.delivery import JOB_ID
from receiver.errors import ReaderError, ReaderRefusedError, ReaderUnavailableError, ReceiverError
from receiver.reader.stream import News

if TYPE_CHECKING:
    from receiver.clock import Clock
    from receiver.reader.client import ReaderClient
    from receiver.reader.retelling import Retelling, Told

PAUSES: Final = (1.0, 4.0)
"""Reader's seconds between an attempt that failed and the next: three attempts in all."""
PATIENCE: Final = 10.0
"""Seconds that Reader waits for an answer."""
_LANES: Final = 32
"""Attempts under way at once."""
_WAITING: Final = 1000
"""Deliveries not through, at most; the stream is read no further until one is."""
_ASKED: Final = 20
"""Jobs asked for after the stream broke, at most: each costs a request of the workspace's quota."""
_READ: Final = 1 << 16
_REDIRECT: Final = "a redirect is not followed: give the URL that it leads to"
_HINTS: Final = {
    **dict.fromkeys((301, 302, 303, 307, 308), _REDIRECT),
    401: "not taken for authentic: does it verify with this READER_WEBHOOK_SECRET?",
    404: "nothing there: is the path right?",
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """One post. `status` is None where no answer came. `trouble`: what to think of it; `again_in`: seconds until the next attempt."""

    event: str
    job_id: str
    delivery: str
    number: int
    status: int | None
    ms: float
    trouble: str | None
    again_in: float | None

    @property
    def taken(self) -> bool:
        """Whether the endpoint took it: any 2xx says so."""
        return self.status is not None and 200 <= self.status < 300


class Forwarder:
    """Use as an async context manager. `on_open`: the stream is followed; `on_lost(why, again_in)`: it is not, for a while."""

    def __init__(
        self,
        reader: ReaderClient,
        retelling: Retelling,
        clock: Clock,
        *,
        url: str,
        secret: str,
        on_attempt: Callable[[Attempt], None],
        on_open: Callable[[], None],
        on_lost: Callable[[str, float], None],
    ) -> None:
        self._reader = reader
        self._retelling = retelling
        self._clock = clock
        self._url = url
        self._secret = secret
        self._on_attempt = on_attempt
        self._on_open = on_open
        self._on_lost = on_lost
        self._room = asyncio.Semaphore(_WAITING)
        self._lanes = asyncio.Semaphore(_LANES)
        self._failures = 0

    async def run(self) -> None:
        """Until cancelled. Raises `ReceiverError` if there is no stream to follow."""
        async with _client() as http, asyncio.TaskGroup() as deliveries:
            while True:
                await self._clock.sleep(await self.run_once(http, deliveries))

    async def run_once(self, http: httpx.AsyncClient, deliveries: asyncio.TaskGroup) -> float:
        """Follow the stream to its end. Returns seconds until it should be followed again."""

        async def tell(told: Iterable[Told]) -> None:
            for each in told:
                await self._room.acquire()
                deliveries.create_task(self._deliver(http, each))

        asked: float | None = None
        try:
            async with self._reader.events() as news:
                self._failures = 0
                self._on_open()
                await tell(await self._missed())
                async for heard in news:
                    if JOB_ID.fullmatch(heard.job_id):
                        await tell(self._retelling.hear(heard))
            why = "Reader closed it"
        except ReaderRefusedError as error:
            raise ReceiverError(f"this workspace has no event stream to follow: {error}") from error
        except ReaderError as error:
            why = str(error)
            asked = error.retry_after if isinstance(error, ReaderUnavailableError) else None
        wait = max(backoff(self._failures, base=1.0, cap=30.0, chance=self._clock.chance()), asked or 0.0)
        self._failures += 1
        self._on_lost(why, wait)
        return wait

    async def _missed(self) -> list[Told]:
        """What became of the jobs that were under way when the stream broke."""
        told: list[Told] = []
        for job_id in self._retelling.under_way[:_ASKED]:
            try:
                told += self._retelling.find(await self._look(job_id))
            except ReaderRefusedError:
                self._retelling.forget(job_id)
        return told

    async def _look(self, job_id: str) -> News:
        head = await self._reader.page(job_id, skip=0, limit=1, purpose="probe", into=lambda: _pass_over)
        job = head.job
        return News(
            job_id,
            ended=job.terminal,
            completed=job.completed,
            event=f"job:{job.status}" if job.terminal else "job:progress",
            total=job.total,
            status=job.status,
            error=job.error,
            credits=job.credits_used,
        )

    async def _deliver(self, http: httpx.AsyncClient, told: Told) -> None:
        """See one through, or give it up."""
        at = datetime.fromtimestamp(self._clock.wall(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        body = json.dumps({"event": told.event, "timestamp": at, "jobId": told.job_id, **told.facts}).encode()
        delivery = str(uuid.UUID(hex=self._clock.token(128), version=4))
        try:
            for number in range(1, len(PAUSES) + 2):
                again_in = PAUSES[number - 1] if number <= len(PAUSES) else None
                async with self._lanes:
                    attempt = await self._attempt(http, told, delivery, body, number, again_in)
                self._on_attempt(attempt)
                if attempt.again_in is None:
                    return
                await self._clock.sleep(attempt.again_in)
        finally:
            self._room.release()

    async def _attempt(
        self, http: httpx.AsyncClient, told: Told, delivery: str, body: bytes, number: int, again_in: float | None
    ) -> Attempt:
        # Signed afresh each time: what was signed minutes ago would be refused as a replay.
        headers = letter.headers(
            body, event=told.event, delivery=delivery, timestamp=int(self._clock.wall()), secret=self._secret
        )
        began = self._clock.monotonic()
        status, trouble = await _post(http, self._url, body, headers)
        ms = round((self._clock.monotonic() - began) * 1000, 1)
        taken = status is not None and 200 <= status < 300
        return Attempt(told.event, told.job_id, delivery, number, status, ms, trouble, None if taken else again_in)


async def _pass_over(_: bytes) -> None:
    """A result that nobody asked for."""


async def _post(http: httpx.AsyncClient, url: str, body: bytes, headers: dict[str, str]) -> tuple[int | None, str | None]:
    """The answer's status, if there was one, and what to think of it where it is no success."""
    try:
        async with asyncio.timeout(PATIENCE), http.stream("POST", url, content=body, headers=headers) as answer:
            read = 0
            async for piece in answer.aiter_raw():
                read += len(piece)
                if read > _READ:  # what it says at such length is nobody's business
                    break
            return answer.status_code, _HINTS.get(answer.status_code)
    except TimeoutError:
        return None, f"no answer within {PATIENCE:g} s"
    except httpx.ConnectError as error:
        return None, f"cannot connect ({error}): is your server running there?"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return None, f"{type(error).__name__}: {error}".rstrip(": ")


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(
        follow_redirects=False,
        trust_env=False,
        timeout=PATIENCE,
        limits=httpx.Limits(max_connections=_LANES, max_keepalive_connections=_LANES),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none: Reader keeps none either
    )
