"""The client against a Reader that misbehaves: what is raised, how often it is asked, who is held back, and every grant given back."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from receiver.errors import (
    ReaderError,
    ReaderPausedError,
    ReaderRefusedError,
    ReaderTooLargeError,
    ReaderUnavailableError,
    StoreError,
)
from receiver.reader import client as module
from receiver.reader.client import DEADLINE, SUBMIT_DEADLINE, ReaderClient
from receiver.reader.pages import Head, glimpse
from tests.clock import FakeClock
from tests.loopback import Asked, Line, Script, answering, resetting, serving, silent

pytestmark = pytest.mark.anyio

KEY = "rk_c4n4ry_in_the_mine"
ROWS = [b'{"url":"https://example.com/%d","markdown":"x"}' % n for n in range(3)]
PAGE = (
    b'{"success":true,"data":{"id":"job_1","status":"completed","completed":3,"total":3,"results":[%s]},'
    b'"pagination":{"total":3,"skip":0,"limit":100,"hasMore":false}}' % b",".join(ROWS)
)
CREDITS = json.dumps({"success": True, "data": {"balance": 5, "tier": "pro"}}).encode()


@dataclass
class Purse:
    """An allowance in memory. It insists that each grant comes back exactly once."""

    empty: bool = False
    out: set[object] = field(default_factory=set)
    granted: list[tuple[str, float]] = field(default_factory=list)
    tallies: list[str] = field(default_factory=list)
    pauses: list[tuple[str, float, str]] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)
    trouble: Exception | None = None
    given_back: asyncio.Event = field(default_factory=asyncio.Event)

    async def acquire(self, purpose: str, *, lasts: float) -> object:
        if self.empty:
            raise ReaderPausedError("the request budget of this minute is used up", retry_after=7.0)
        self.granted.append((purpose, lasts))
        self.out.add(grant := object())
        return grant

    async def release(self, grant: object, *, tally: str) -> None:
        await asyncio.sleep(0)
        self.out.remove(grant)  # a second time is a KeyError
        self.tallies.append(tally)
        self.given_back.set()
        if self.trouble is not None:
            raise self.trouble

    async def pause(self, name: str, *, seconds: float, reason: str) -> None:
        self.pauses.append((name, seconds, reason))

    async def learn_limit(self, rpm: int) -> None:
        self.limits.append(rpm)

    @property
    def paused(self) -> list[tuple[str, float]]:
        return [(name, seconds) for name, seconds, _ in self.pauses]


@pytest.fixture
def purse() -> Any:
    purse = Purse()
    yield purse
    assert not purse.out, "a grant was not given back"
    assert len(purse.tallies) == len(purse.granted)


@pytest.fixture
def asking(purse: Purse, clock: FakeClock) -> Any:
    @asynccontextmanager
    async def client(url: str, *, key: str = KEY, deadline: float = 5.0) -> AsyncIterator[ReaderClient]:
        async with ReaderClient(url, key, allowance=purse, clock=clock, deadline=deadline) as reader:
            yield reader

    return client


class Takers:
    """What `into` makes: a list of results for each attempt."""

    def __init__(self) -> None:
        self.attempts: list[list[bytes]] = []

    def __call__(self) -> Callable[[bytes], Awaitable[None]]:
        self.attempts.append(taken := [])

        async def take(result: bytes) -> None:
            glimpse(result)
            taken.append(result)

        return take


async def look(reader: ReaderClient, takers: Takers | None = None, **where: Any) -> Head:
    asked = {"skip": 0, "limit": 100, "purpose": "hydrate"} | where
    return await reader.page("job_1", **asked, into=takers or Takers())


async def failing(asking: Any, *scripts: Script, error: type[ReaderError], **options: Any) -> tuple[Any, int]:
    """The error that looking ends in, and how many requests it took."""
    async with serving(*scripts) as server, asking(server.url, **options) as reader:
        with pytest.raises(error) as caught:
            await look(reader)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    return caught.value, len(server.asked)


def problem(code: str, message: str = "so it is", **details: Any) -> bytes:
    return json.dumps({"success": False, "error": {"code": code, "message": message, "details": details}}).encode()


# -- what is asked -----------------------------------------------------------------------------------------------------------


async def test_a_page_is_asked_for_once_and_taken_raw(asking: Any, purse: Purse) -> None:
    takers = Takers()
    async with serving(answering(200, PAGE)) as server, asking(server.url) as reader:
        head = await look(reader, takers, skip=200, limit=50, purpose="probe")
    (asked,) = server.asked
    assert (asked.method, asked.target) == ("GET", "/v1/jobs/job_1?skip=200&limit=50")
    assert asked.headers["x-api-key"] == KEY
    assert (head.job.status, head.pagination.total) == ("completed", 3)
    assert takers.attempts == [ROWS]
    assert (purse.granted, purse.tallies) == ([("probe", 5.0)], ["look"])


async def test_a_job_is_submitted_under_one_idempotency_key_however_often_it_is_tried(
    asking: Any, purse: Purse, clock: FakeClock
) -> None:
    answer = json.dumps({"success": True, "data": {"id": "job_1", "status": "queued"}}).encode()
    async with serving(resetting, answering(500), answering(201, answer)) as server, asking(server.url) as reader:
        data = await reader.read(b'{"urls":["https://example.com"]}', idempotency_key="key-1")
    assert data == {"id": "job_1", "status": "queued"}
    assert [(a.method, a.target, a.body, a.headers["x-idempotency-key"]) for a in server.asked] == [
        ("POST", "/v1/read", b'{"urls":["https://example.com"]}', "key-1")
    ] * 3
    assert purse.granted == [("command", SUBMIT_DEADLINE)] * 3
    assert purse.tallies == ["submit"] * 3


@pytest.mark.parametrize(
    "data", [{"id": "wh_1", "secret": "s"}, {"webhook": {"id": "wh_1", "secret": "s"}}], ids=["bare", "named"]
)
async def test_a_new_webhook_is_found_in_its_answer_however_that_is_laid_out(asking: Any, data: dict[str, Any]) -> None:
    answer = json.dumps({"success": True, "data": data}).encode()
    async with serving(answering(201, answer)) as server, asking(server.url) as reader:
        assert await reader.create_webhook({"url": "https://a.example"}) == {"id": "wh_1", "secret": "s"}


async def test_a_webhook_that_is_gone_already_is_deleted_and_any_answer_will_do(asking: Any) -> None:
    gone = b'{"success": false, "error": {"code": "not_found", "message": "Webhook not found"}}'
    async with serving(answering(404, gone), answering(204, b""), answering(200, b"ok")) as server, asking(server.url) as reader:
        await reader.delete_webhook("wh_1")
        await reader.delete_webhook("wh_1")
        await reader.change_webhook("wh/1", {"active": True})
        assert server.asked[-1].target == "/v1/webhooks/wh%2F1"


async def test_a_webhooks_making_is_not_asked_for_twice(asking: Any) -> None:
    """No answer came, but it may be there; whoever asked finds out."""
    async with serving(answering(502, b"")) as server, asking(server.url) as reader:
        with pytest.raises(ReaderUnavailableError):
            await reader.create_webhook({"url": "https://a.example"})
        assert len(server.asked) == 1


async def test_credits_are_asked_for_with_the_lowest_claim(asking: Any, purse: Purse) -> None:
    async with serving(answering(200, CREDITS)) as server, asking(server.url) as reader:
        assert (await reader.credits())["tier"] == "pro"
    assert server.asked[0].target == "/v1/usage/credits"
    assert (purse.granted, purse.tallies) == ([("audit", 5.0)], ["other"])


async def test_a_grant_lasts_as_long_as_a_request_may_take(purse: Purse, clock: FakeClock) -> None:
    async with serving(answering(200, PAGE)) as server, ReaderClient(server.url, KEY, allowance=purse, clock=clock) as reader:
        await look(reader)
    assert purse.granted == [("hydrate", DEADLINE)]


async def test_without_a_grant_nothing_is_asked(asking: Any, purse: Purse, clock: FakeClock) -> None:
    purse.empty = True
    error, asked = await failing(asking, answering(200, PAGE), error=ReaderPausedError)
    assert (error.retry_after, asked, clock.naps) == (7.0, 0, [])


async def test_a_grant_is_given_back_when_the_headers_come_not_when_the_body_ends(asking: Any, purse: Purse) -> None:
    """Reader has counted the request by then; a page of 50 MB must not hold a slot while it is read."""
    out_at_headers = []

    async def slowly(line: Line, _: Asked) -> None:
        await line.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(PAGE))
        await purse.given_back.wait()
        out_at_headers.append(len(purse.out))
        await line.say(PAGE)

    async with serving(slowly) as server, asking(server.url) as reader:
        assert (await look(reader)).job.id == "job_1"
    assert out_at_headers == [0]


async def test_a_request_broken_off_by_us_gives_its_grant_back_once(asking: Any, purse: Purse) -> None:
    reached = asyncio.Event()

    async def never(line: Line, asked: Asked) -> None:
        reached.set()
        await silent(line, asked)

    async with serving(never) as server, asking(server.url) as reader:
        task = asyncio.create_task(look(reader))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert purse.tallies == ["look"]


async def test_a_request_broken_off_while_its_grant_is_given_back_does_so_once(asking: Any, purse: Purse) -> None:
    """The write may be under way: a second one would count the request twice."""
    begun, first = [], asyncio.Event()

    class Slow(Purse):
        async def release(self, grant: object, *, tally: str) -> None:
            begun.append(grant)
            first.set()
            if len(begun) == 1:
                await asyncio.Event().wait()

    slow, clock = Slow(), FakeClock()
    async with serving(answering(200, PAGE)) as server, ReaderClient(server.url, KEY, allowance=slow, clock=clock) as reader:
        task = asyncio.create_task(look(reader))
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(begun) == 1


async def test_a_store_that_fails_to_take_a_grant_back_is_told_as_such(asking: Any, purse: Purse) -> None:
    purse.trouble = StoreError("the disk is full")
    async with serving(answering(200, PAGE)) as server, asking(server.url) as reader:
        with pytest.raises(StoreError, match="the disk is full"):
            await look(reader)
    assert len(server.asked) == 1


# -- how it comes ------------------------------------------------------------------------------------------------------------


async def test_a_compressed_page_is_inflated(asking: Any) -> None:
    takers = Takers()
    async with serving(answering(200, gzip.compress(PAGE), content_encoding="gzip")) as server, asking(server.url) as reader:
        await look(reader, takers)
    assert server.asked[0].headers["accept-encoding"] == "gzip"
    assert takers.attempts == [ROWS]


@pytest.mark.parametrize("zipped", [True, False])
async def test_a_page_that_comes_byte_by_byte_is_the_same(asking: Any, zipped: bool) -> None:
    takers = Takers()
    body = gzip.compress(PAGE) if zipped else PAGE

    async def dripping(line: Line, _: Asked) -> None:
        await line.say(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n%s\r\n" % (b"content-encoding: gzip\r\n" if zipped else b"")
        )
        for byte in body:
            await line.say(b"1\r\n%c\r\n" % byte)
        await line.say(b"0\r\n\r\n")

    async with serving(dripping) as server, asking(server.url) as reader:
        await look(reader, takers)
    assert takers.attempts == [ROWS]


async def test_connections_are_used_again(asking: Any) -> None:
    """A compressed answer's end must be read, too."""
    peers = set()

    async def noted(line: Line, _: Asked) -> None:
        peers.add(line.peer)
        await line.answer(200, gzip.compress(PAGE), content_encoding="gzip")

    async with serving(noted) as server, asking(server.url) as reader:
        for _ in range(3):
            await look(reader)
    assert len(peers) == 1


# -- passing trouble ---------------------------------------------------------------------------------------------------------

TRANSIENT: dict[str, Script] = {
    "500": answering(500, problem("internal_error")),
    "502": answering(502, problem("upstream_unavailable")),
    "504": answering(504, problem("scrape_timeout")),
    "599 without a body": answering(503),
    "408": answering(408, problem("request_timeout")),
    "425": answering(425, problem("too_early")),
    "reset": resetting,
    "HTML for 200": answering(200, b"<html>maintenance</html>", content_type="text/html"),
    "HTML for 404": answering(404, b"<html>not here</html>", content_type="text/html"),
    "JSON for 404, but not Reader's": answering(404, b'{"detail":"Not Found"}'),
    "JSON for 400, but a list": answering(400, b"[1]"),
    "an error without a code": answering(400, b'{"error":"bad"}'),
    "nothing for 200": answering(200),
    "204": answering(204),
    "truncated JSON": answering(200, PAGE[:-20]),
    "truncated body": answering(200, PAGE[:-20], content_length=str(len(PAGE)), connection="close"),
    "success: false for 200": answering(200, b'{"success":false,"error":{"code":"internal_error","message":"x"}}'),
    "success: false beside a page": answering(200, PAGE.replace(b"true", b"false", 1)),
    "another shape": answering(200, b'{"success":true,"data":{"id":"job_1"}}'),
    "a broken result": answering(200, PAGE.replace(b'"markdown":"x"', b'"markdown":x')),
    "brotli unasked": answering(200, PAGE, content_encoding="br"),
    "two encodings": answering(200, PAGE, content_encoding="gzip, gzip"),
    "not gzip": answering(200, PAGE, content_encoding="gzip"),
    "truncated gzip": answering(200, gzip.compress(PAGE)[:-4], content_encoding="gzip"),
    "corrupt gzip": answering(200, gzip.compress(PAGE)[:-8] + b"\0" * 8, content_encoding="gzip"),
    "more after gzip's end": answering(200, gzip.compress(PAGE) + b"more", content_encoding="gzip"),
    "300": answering(300),
    "304": answering(304),
}


@pytest.fixture
def hanging_up() -> Any:
    """A script, and then the end of the connection: some answers are only finished by that."""

    def closing(script: Script) -> Script:
        async def both(line: Line, asked: Asked) -> None:
            await script(line, asked)
            line.hang_up()

        return both

    return closing


@pytest.mark.parametrize("script", TRANSIENT.values(), ids=TRANSIENT.keys())
async def test_passing_trouble_is_tried_three_times_with_growing_waits(
    asking: Any, purse: Purse, clock: FakeClock, hanging_up: Any, script: Script
) -> None:
    """Never taken for progress, nor for a verdict about the job; and nobody else is held back for it."""
    _, asked = await failing(asking, hanging_up(script), error=ReaderUnavailableError)
    assert asked == 3
    assert clock.naps == [0.375, 0.75]
    assert purse.pauses == []


@pytest.mark.parametrize("script", TRANSIENT.values(), ids=TRANSIENT.keys())
async def test_what_came_before_the_trouble_is_not_mixed_with_what_comes_after(
    asking: Any, hanging_up: Any, script: Script
) -> None:
    takers = Takers()
    async with serving(hanging_up(script), answering(200, PAGE)) as server, asking(server.url) as reader:
        assert (await look(reader, takers)).job.status == "completed"
    assert len(server.asked) == len(takers.attempts) == 2
    assert takers.attempts[-1] == ROWS


async def test_draws_spread_the_retries(asking: Any, clock: FakeClock) -> None:
    clock.dice = 0.0
    await failing(asking, answering(500), error=ReaderUnavailableError)
    assert clock.naps == [0.25, 0.5]


async def test_a_server_that_is_not_there_is_passing_trouble(asking: Any, purse: Purse) -> None:
    async with serving(answering(200)) as server:
        url = server.url
    async with asking(url) as reader:
        with pytest.raises(ReaderUnavailableError):
            await look(reader)
    assert purse.tallies == ["look"] * 3


async def test_a_503_that_says_when_is_believed_and_not_waited_out_here(asking: Any, purse: Purse, clock: FakeClock) -> None:
    error, asked = await failing(asking, answering(503, retry_after="30"), error=ReaderUnavailableError)
    assert (error.retry_after, asked, clock.naps, purse.pauses) == (30, 1, [], [])


@pytest.mark.parametrize("header", ["0", "-5", "Thu, 01 Jan 1970 00:00:00 GMT", "soon", ""])
async def test_a_503_that_asks_for_no_wait_is_not_hammered(asking: Any, clock: FakeClock, header: str) -> None:
    error, asked = await failing(asking, answering(503, retry_after=header), error=ReaderUnavailableError)
    assert (error.retry_after, asked, clock.naps) == (None, 3, [0.375, 0.75])


async def test_a_short_wish_is_waited_out_here(asking: Any, clock: FakeClock) -> None:
    async with serving(answering(503, retry_after="2"), answering(200, PAGE)) as server, asking(server.url) as reader:
        await look(reader)
    assert (len(server.asked), clock.naps) == (2, [2])


# -- limits ------------------------------------------------------------------------------------------------------------------

LIMITED = problem("rate_limited", limit=10, windowSeconds=60)


async def test_a_429_holds_everybody_back_for_as_long_as_it_says(asking: Any, purse: Purse, clock: FakeClock) -> None:
    error, asked = await failing(asking, answering(429, LIMITED, retry_after="12"), error=ReaderUnavailableError)
    assert (asked, clock.naps) == (1, [])
    assert error.retry_after == 12
    assert purse.paused == [("rate_limited", 12)]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("Fri, 05 Apr 2024 00:01:30 GMT", 90), ("99999999", 3600), ("12.5", 12.5)],
)
async def test_a_429_may_say_so_in_other_ways(asking: Any, purse: Purse, header: str, seconds: float) -> None:
    error, asked = await failing(asking, answering(429, LIMITED, retry_after=header), error=ReaderUnavailableError)
    assert (error.retry_after, asked, purse.paused) == (seconds, 1, [("rate_limited", seconds)])


async def test_a_429_may_say_so_in_its_details(asking: Any, purse: Purse) -> None:
    body = problem("rate_limited", retryAfterSeconds=40)
    for script in (answering(429, body), answering(429, body, retry_after="soon"), answering(429, body, retry_after="0")):
        await failing(asking, script, error=ReaderUnavailableError)
    assert purse.paused == [("rate_limited", 40)] * 3


@pytest.mark.parametrize("header", [None, "0", "-1", "nan", "Thu, 01 Jan 1970 00:00:00 GMT", "garbage"])
async def test_a_429_without_a_wish_gets_a_jittered_wait(asking: Any, purse: Purse, clock: FakeClock, header: str | None) -> None:
    """Also one whose date is past: a clock that is off must not make us hammer."""
    script = answering(429, LIMITED) if header is None else answering(429, LIMITED, retry_after=header)
    _, asked = await failing(asking, script, error=ReaderUnavailableError)
    assert asked == 3
    assert purse.paused == [("rate_limited", 1.5)] * 3
    assert clock.naps == [1.5, 1.5]
    clock.dice = 0.0
    await failing(asking, script, error=ReaderUnavailableError)
    assert purse.paused[-1] == ("rate_limited", 1.0)


@pytest.mark.parametrize(
    ("details", "learned"),
    [
        ({"limit": 10}, [10]),
        ({"limit": 1}, [1]),
        ({"limit": 10**30}, []),
        ({"limit": 0}, []),
        ({"limit": -5}, []),
        ({"limit": True}, []),
        ({"limit": "10"}, []),
        ({}, []),
    ],
)
async def test_the_limit_that_a_429_tells_is_learned(
    asking: Any, purse: Purse, details: dict[str, Any], learned: list[int]
) -> None:
    await failing(asking, answering(429, problem("rate_limited", **details), retry_after="12"), error=ReaderUnavailableError)
    assert purse.limits == learned


async def test_too_many_active_jobs_hold_nobody_else_back(asking: Any, purse: Purse, clock: FakeClock) -> None:
    body = problem("concurrency_limited", active=10, max=10)
    error, asked = await failing(asking, answering(429, body), error=ReaderUnavailableError)
    assert (error.retry_after, asked, purse.pauses, purse.limits) == (None, 3, [], [])
    assert clock.naps == [0.375, 0.75]


# -- what concerns everybody -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "name"),
    [
        (401, problem("unauthenticated"), "unauthenticated"),
        (401, b"<html>", "unauthenticated"),
        (403, problem("forbidden"), "unauthenticated"),
        (403, b"", "unauthenticated"),
        (402, problem("insufficient_credits", required=5), "insufficient_credits"),
        (402, b"", "insufficient_credits"),
    ],
)
async def test_a_refused_key_and_spent_credits_pause_everything_for_a_minute(
    asking: Any, purse: Purse, clock: FakeClock, status: int, body: bytes, name: str
) -> None:
    error, asked = await failing(asking, answering(status, body), error=ReaderPausedError)
    assert (error.retry_after, asked, clock.naps) == (60, 1, [])
    assert purse.paused == [(name, 60)]


async def test_the_pause_says_what_to_do_and_never_the_key(asking: Any, purse: Purse) -> None:
    """Even where Reader's own words quote it."""
    await failing(asking, answering(401, problem("unauthenticated", f"no such key:\n {KEY}")), error=ReaderPausedError)
    ((_, _, reason),) = purse.pauses
    assert "Set READER_API_KEY to a key that works" in reason
    assert KEY not in reason
    assert "\n" not in reason


# An error's body may be as bad as any other: its status has been heard by then, and counts.
UNREADABLE: dict[str, Script] = {
    "truncated": answering(429, LIMITED, content_length="9999", connection="close", retry_after="12"),
    "brotli unasked": answering(429, LIMITED, content_encoding="br", retry_after="12"),
    "not gzip": answering(429, LIMITED, content_encoding="gzip", retry_after="12"),
    "a gzip bomb": answering(429, gzip.compress(b"\0" * (8 << 20)), content_encoding="gzip", retry_after="12"),
    "huge": answering(429, b"x" * (8 << 20), retry_after="12"),
    "HTML": answering(429, b"<html>slow down</html>", retry_after="12"),
    "nested": answering(429, b"[" * 10_000, retry_after="12"),
    "not UTF-8": answering(429, b'{"error":{"message":"\xff"}}', retry_after="12"),
    "odd details": answering(429, b'{"error":{"code":"rate_limited","details":[1]}}', retry_after="12"),
}


@pytest.mark.parametrize("script", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_a_429_counts_whatever_its_body_is(asking: Any, purse: Purse, hanging_up: Any, script: Script) -> None:
    _, asked = await failing(asking, hanging_up(script), error=ReaderUnavailableError)
    assert (asked, purse.paused) == (1, [("rate_limited", 12)])


async def test_a_429_whose_body_never_comes_counts_soon(asking: Any, purse: Purse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ERROR_PATIENCE", 0.05)

    async def headers_only(line: Line, _: Asked) -> None:
        await line.say(b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 12\r\ncontent-length: 10\r\n\r\n")
        await line.hung_up()

    _, asked = await failing(asking, headers_only, error=ReaderUnavailableError)
    assert (asked, purse.paused) == (1, [("rate_limited", 12)])


# -- verdicts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "invalid_request"),
        (403, "url_blocked"),
        (404, "not_found"),
        (409, "conflict"),
        (410, "gone"),
        (422, "never_heard_of"),
    ],
)
async def test_a_verdict_is_told_with_its_code_and_not_asked_for_again(asking: Any, purse: Purse, status: int, code: str) -> None:
    error, asked = await failing(asking, answering(status, problem(code, status="completed")), error=ReaderRefusedError)
    assert (error.code, error.http_status, error.details) == (code, status, {"status": "completed"})
    assert (asked, purse.pauses) == (1, [])


async def test_a_verdict_may_be_long_about_it(asking: Any) -> None:
    """A thousand URLs, each with what is wrong about it."""
    issues = [{"path": ["urls", n], "message": f"https://example.com/{'x' * 200} cannot be read"} for n in range(1000)]
    error, asked = await failing(asking, answering(400, problem("invalid_request", issues=issues)), error=ReaderRefusedError)
    assert (len(error.details["issues"]), asked) == (1000, 1)


async def test_readers_words_are_told_in_one_line_of_bounded_length(asking: Any) -> None:
    error, _ = await failing(asking, answering(404, problem("not_found", "a\n" * 30_000)), error=ReaderRefusedError)
    assert str(error).startswith("Reader says 404 not_found: a a a")
    assert len(str(error)) < 600


# -- where the key goes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_the_key_stays_with_its_origin(asking: Any, status: int) -> None:
    async with serving(answering(200, PAGE)) as elsewhere:
        there = f"{elsewhere.url}/v1/jobs/job_1"
        error, asked = await failing(asking, answering(status, location=there), error=ReaderUnavailableError)
        assert elsewhere.asked == []
    assert "redirect" in str(error)
    assert asked == 3


async def test_not_even_to_another_place_of_the_same_origin(asking: Any) -> None:
    async with serving(answering(302, location="/v2/jobs/job_1"), answering(200, PAGE)) as server, asking(server.url) as reader:
        await look(reader)
    assert [asked.target.partition("?")[0] for asked in server.asked] == ["/v1/jobs/job_1"] * 2


async def test_the_next_page_is_asked_for_by_position_not_by_what_next_says(asking: Any) -> None:
    async with serving(answering(200, PAGE)) as elsewhere:
        body = PAGE.replace(b'"hasMore":false', b'"hasMore":true,"next":"%s/v1/jobs/job_1?skip=3"' % elsewhere.url.encode())
        async with serving(answering(200, body)) as server, asking(server.url) as reader:
            await look(reader)
            await look(reader, skip=3)
        assert elsewhere.asked == []
    assert [asked.target for asked in server.asked] == ["/v1/jobs/job_1?skip=0&limit=100", "/v1/jobs/job_1?skip=3&limit=100"]


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch, asking: Any) -> None:
    async with serving(answering(200, PAGE)) as proxy, serving(answering(200, PAGE)) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        async with asking(server.url) as reader:
            await look(reader)
    assert (len(proxy.asked), len(server.asked)) == (0, 1)


async def test_cookies_are_not_carried_from_one_answer_to_the_next(asking: Any) -> None:
    async with serving(answering(200, PAGE, set_cookie="session=1; Path=/")) as server, asking(server.url) as reader:
        await look(reader)
        await look(reader)
    assert all("cookie" not in asked.headers for asked in server.asked)


# -- too much, too slow ------------------------------------------------------------------------------------------------------


def bomb(size: int) -> bytes:
    """`size` zeros inside one result of a page, compressed to a thousandth."""
    squeeze = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    parts = [squeeze.compress(b'{"data":{"results":[{"markdown":"')]
    parts += [squeeze.compress(b"0" * (1 << 20)) for _ in range(size >> 20)]
    return b"".join([*parts, squeeze.compress(b'"}]}}'), squeeze.flush()])


async def test_a_gzip_bomb_is_cut_off_at_the_cap(asking: Any, monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> None:
    """Not retried as it was: asked for in halves, by whoever asked."""
    monkeypatch.setattr(module, "PAGE_CAP", 1 << 20)
    inflated = 0
    feed = module.PageCutter.feed

    def counted(self: Any, piece: bytes) -> list[bytes]:
        nonlocal inflated
        inflated += len(piece)
        return feed(self, piece)

    monkeypatch.setattr(module.PageCutter, "feed", counted)
    error, asked = await failing(asking, answering(200, bomb(32 << 20), content_encoding="gzip"), error=ReaderTooLargeError)
    assert str(error) == "Reader's answer is larger than 1048576 bytes"
    assert (asked, clock.naps) == (1, [])
    assert (1 << 20) - 65536 < inflated <= 1 << 20, "it is inflated a little at a time, not all at once and then thrown away"


async def test_a_page_larger_than_the_cap_is_cut_off_whatever_its_length_says(
    asking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE_CAP", 1 << 20)

    async def endless(line: Line, _: Asked) -> None:
        await line.say(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\n{"data":"\r\n')
        while True:
            await line.say(b"10000\r\n" + b"x" * 65536 + b"\r\n")

    _, asked = await failing(asking, endless, error=ReaderTooLargeError)
    assert asked == 1


async def test_a_page_of_just_the_cap_is_taken(asking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE_CAP", len(PAGE))
    async with serving(answering(200, PAGE)) as server, asking(server.url) as reader:
        await look(reader)
    monkeypatch.setattr(module, "PAGE_CAP", len(PAGE) - 1)
    await failing(asking, answering(200, PAGE), error=ReaderTooLargeError)


async def test_an_answer_to_a_command_has_a_smaller_cap(asking: Any) -> None:
    body = b'{"data":{"x":"%s"}}' % (b"x" * (5 << 20))
    async with serving(answering(200, body)) as server, asking(server.url) as reader:
        with pytest.raises(ReaderTooLargeError):
            await reader.credits()
    assert len(server.asked) == 1


async def test_rubbish_after_gzips_end_is_not_gathered(asking: Any) -> None:
    """It inflates to nothing, so the cap never sees it."""
    said = 0

    async def endless(line: Line, _: Asked) -> None:
        nonlocal said
        await line.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-encoding: gzip\r\n\r\n")
        body = gzip.compress(PAGE)
        await line.say(b"%x\r\n%s\r\n" % (len(body), body))
        while True:
            await line.say(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            said += 1

    error, asked = await failing(asking, endless, error=ReaderUnavailableError)
    assert asked == 3
    assert said < 1000
    assert "goes on after its end" in str(error)


async def test_a_body_that_drips_is_cut_off_at_the_deadline_and_asked_for_in_halves(asking: Any, clock: FakeClock) -> None:
    async def dripping(line: Line, _: Asked) -> None:
        await line.say(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        for byte in PAGE:
            await line.say(bytes([byte]))
            await asyncio.sleep(0.01)

    error, asked = await failing(asking, dripping, error=ReaderTooLargeError, deadline=0.1)
    assert str(error) == "Reader's answer was not complete after 0.1 s"
    assert (asked, clock.naps) == (1, [])


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nx-drip: "], ids=["nothing", "half a head"])
async def test_headers_that_do_not_come_are_passing_trouble(asking: Any, head: bytes) -> None:
    async def stuck(line: Line, _: Asked) -> None:
        await line.say(head)
        await line.hung_up()

    error, asked = await failing(asking, stuck, error=ReaderUnavailableError, deadline=0.05)
    assert str(error) == "Reader did not answer within 0.05 s"
    assert asked == 3


# -- the envelope of a command -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"data":null}',
        b'{"data":[1]}',
        b'{"success":false,"data":{}}',
        b'{"data":{"x":"\xff"}}',
        b'{"data":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"data":{"x":1e999}}',
        b'{"data":{}} trailing',
    ],
    ids=lambda body: ascii(body)[:30],
)
async def test_an_answer_that_is_not_readers_envelope_is_passing_trouble(asking: Any, body: bytes) -> None:
    async with serving(answering(200, body)) as server, asking(server.url) as reader:
        with pytest.raises(ReaderUnavailableError):
            await reader.credits()
    assert len(server.asked) == 3
