"""An event to a URL: signed so that others can verify it, and no answer, however bad, does more harm than a failed attempt."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from receiver.clock import Clock
from receiver.errors import HookError
from receiver.hooks import http
from receiver.hooks.http import ANSWER_CAP, HttpTarget
from receiver.hooks.target import EXCERPT, Answer, Delivery
from tests.clock import FakeClock
from tests.loopback import Asked, Line, Script, answering, resetting, serving, silent

pytestmark = pytest.mark.anyio

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PAYLOAD = json.dumps({"type": "job.completed", "timestamp": "2024-04-05T00:00:00.000Z", "data": {"note": "żółw — 亀"}})


async def nothing(_: int) -> AsyncIterator[list[bytes]]:
    return
    yield


DELIVERY = Delivery("evt_1", PAYLOAD, 1, nothing)


def target(url: str, *, secret: str | None = SECRET, timeout: float = 5.0, clock: Clock | None = None) -> HttpTarget:
    return HttpTarget(url, secrets=[] if secret is None else [secret], timeout=timeout, clock=clock or FakeClock())


async def post(url: str, **more: Any) -> Answer:
    async with target(url, **more) as there:
        return await there.deliver(DELIVERY)


async def failure(url: str, **more: Any) -> HookError:
    with pytest.raises(HookError) as caught:
        await post(url, **more)
    return caught.value


# -- what is sent ------------------------------------------------------------------------------------------------------------


async def test_it_is_signed_by_the_standard_webhooks_specification() -> None:
    """Verified by the specification's own library, which goes by this machine's time."""
    now = time.time()
    async with serving(answering(204)) as server:
        assert (await post(server.url, clock=FakeClock(now))).status == 204
    (asked,) = server.asked
    assert Webhook(SECRET).verify(asked.body, asked.headers) == json.loads(PAYLOAD)
    assert asked.headers["webhook-id"] == "evt_1"
    assert asked.headers["webhook-timestamp"] == str(int(now))
    for header, value in (("webhook-id", "evt_2"), ("webhook-timestamp", str(int(now) + 1))):
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(asked.body, asked.headers | {header: value})
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(asked.body + b" ", asked.headers)


async def test_the_body_is_the_payload_byte_for_byte_as_json() -> None:
    async with serving(answering(200)) as server:
        await post(f"{server.url}/in/?from=receiver")
    (asked,) = server.asked
    assert (asked.method, asked.target) == ("POST", "/in/?from=receiver")
    assert asked.body == PAYLOAD.encode()
    assert asked.headers["content-type"] == "application/json"


async def test_each_attempt_is_signed_afresh_under_the_same_id(clock: FakeClock) -> None:
    """A receiver with a replay window takes the tenth attempt as well as the first."""
    async with serving(answering(200)) as server:
        for _ in range(2):
            await post(server.url, clock=clock)
            clock.advance(3600)
    first, second = server.asked
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"]) == 3600
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]


async def test_without_a_secret_nothing_is_signed() -> None:
    async with serving(answering(200)) as server:
        await post(server.url, secret=None)
    assert "webhook-signature" not in server.asked[0].headers
    assert server.asked[0].headers["webhook-id"] == "evt_1"


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(answering(200)) as proxy, serving(answering(200)) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        await post(server.url)
    assert (len(proxy.asked), len(server.asked)) == (0, 1)


# -- what is answered --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_any_2xx_is_a_success(status: int) -> None:
    async with serving(answering(status)) as server:
        assert (await post(server.url)).status == status


@pytest.mark.parametrize("status", [400, 401, 404, 409, 410, 429, 500, 502, 503])
async def test_anything_else_is_a_failure_that_tells_its_status(status: int) -> None:
    async with serving(answering(status, b"sorry")) as server:
        error = await failure(server.url)
    assert (error.answer, error.retry_after, str(error), error.excerpt) == (status, None, f"answered {status}", "sorry")
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_a_failure_and_not_followed(status: int) -> None:
    """What is signed for one place must not wander to another."""
    async with serving(answering(200)) as elsewhere, serving(answering(status, location=elsewhere.url)) as server:
        error = await failure(server.url)
    assert error.answer == status
    assert elsewhere.asked == []


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("30", 30),
        ("Fri, 05 Apr 2024 00:02:00 GMT", 120),
        ("-5", 0),
        ("99999999", 3600),
        ("soon", None),
        ("", None),
    ],
)
async def test_a_503_may_say_when_to_come_back(header: str, seconds: float | None) -> None:
    async with serving(answering(503, retry_after=header)) as server:
        error = await failure(server.url)
    assert (error.answer, error.retry_after) == (503, seconds)


async def test_a_hook_that_never_answers_is_given_up_at_its_timeout() -> None:
    async with serving(silent) as server:
        error = await failure(server.url, timeout=0.05)
    assert str(error) == "no answer within 0.05 s"
    assert error.answer is None


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"], ids=["in its head", "in its body"])
async def test_an_answer_that_drips_is_cut_off_at_the_timeout(head: bytes) -> None:
    """A byte now and then keeps every timeout between bytes content; the whole exchange has one of its own."""
    drops = 0

    async def drip(line: Line, asked: Asked) -> None:
        nonlocal drops
        await line.say(head)
        for byte in b"HTTP/1.1 200 OK\r\n" if not head else b"x" * 1000:
            await line.say(bytes([byte]))
            drops += 1
            await asyncio.sleep(0.01)
        await line.hung_up()

    async with serving(drip) as server:
        error = await failure(server.url, timeout=0.2)
    assert str(error) == "no answer within 0.2 s"
    assert drops > 0


async def test_of_an_endless_answer_a_little_is_read_and_the_rest_hung_up_on() -> None:
    """Its status has said all there is to say."""
    sent = 0

    async def endless(line: Line, _: Asked) -> None:
        nonlocal sent
        await line.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            await line.say(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            sent += 4096

    async with serving(endless) as server:
        assert (await post(server.url)).status == 200
    assert sent >= ANSWER_CAP


@pytest.mark.parametrize("status", [200, 500])
async def test_the_beginning_of_the_answer_is_kept_whatever_it_is_made_of(status: int) -> None:
    said = b"\xff\x00 no room " + b"x" * 100_000
    async with serving(answering(status, said)) as server:
        kept = (await post(server.url)).excerpt if status == 200 else (await failure(server.url)).excerpt
    assert kept == said[:EXCERPT].decode("utf-8", "replace")


async def test_no_more_than_the_cap_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = http._read_a_little

    async def counted(answer: Any) -> bytes:
        class Counted:
            async def aiter_raw(self) -> AsyncIterator[bytes]:
                async for piece in answer.aiter_raw():
                    read.append(len(piece))
                    yield piece

        return await original(Counted())  # type: ignore[arg-type]  # all that is asked of it

    monkeypatch.setattr(http, "_read_a_little", counted)
    async with serving(answering(200, b"x" * (4 << 20))) as server:
        await post(server.url)
    assert ANSWER_CAP <= sum(read) < 2 * ANSWER_CAP


@pytest.mark.parametrize(
    "script",
    [
        resetting,
        answering(200, b"short", content_length="1000"),
    ],
    ids=["reset", "cut short"],
)
async def test_a_broken_connection_is_a_failure(script: Script) -> None:
    async def then_close(line: Line, asked: Asked) -> None:
        await script(line, asked)
        line.reset()

    async with serving(then_close) as server:
        error = await failure(server.url)
    assert error.answer is None
    assert error.fault == "hook"


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: http://[::1\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000,
        b"\x00\xff" * 100,
    ],
    ids=["another protocol", "no status", "length", "header", "chunk", "location", "huge header", "noise"],
)
async def test_what_is_not_http_is_a_failure(raw: bytes) -> None:
    async def noise(line: Line, _: Asked) -> None:
        await line.say(raw)
        line.hang_up()

    async with serving(noise) as server:
        assert await failure(server.url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "ftp://127.0.0.1/", "http://", "http://[::1", "nonsense"])
async def test_a_place_that_cannot_be_asked_is_a_failure(url: str) -> None:
    error = await failure(url)
    assert str(error)
    assert "\n" not in str(error)


async def test_after_a_failure_the_next_attempt_goes_out_as_ever() -> None:
    async with serving(resetting, answering(503), answering(200)) as server, target(server.url) as there:
        for _ in range(2):
            with pytest.raises(HookError):
                await there.deliver(DELIVERY)
        assert (await there.deliver(DELIVERY)).status == 200


async def test_cookies_are_not_carried_from_one_answer_to_the_next() -> None:
    async with serving(answering(200, set_cookie="session=1; Path=/")) as server, target(server.url) as there:
        for _ in range(2):
            await there.deliver(DELIVERY)
    assert all("cookie" not in asked.headers for asked in server.asked)
