"""The official client, sync and async: every method, every error."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import reader_py
from reader_py import AsyncReaderClient, ReaderClient
from sandbox_kit import urls

from receiver.sandbox import BackgroundSandbox

QUICK = {"queue_seconds": 0, "seconds_per_url": 0.001}


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client polls every two seconds and backs off for seconds: here it is a hundredth of that. What it wanted is kept."""
    wanted: list[float] = []

    def sleep(seconds: float) -> None:
        wanted.append(seconds)
        time.sleep(seconds / 100)

    async def asleep(seconds: float) -> None:
        wanted.append(seconds)
        await asyncio.sleep(seconds / 100)

    monkeypatch.setattr("reader_py.client.time", SimpleNamespace(time=time.time, sleep=sleep))
    monkeypatch.setattr("reader_py.async_client.asyncio", SimpleNamespace(sleep=asleep))
    return wanted


@contextmanager
def connected(**settings: Any) -> Iterator[tuple[BackgroundSandbox, ReaderClient]]:
    retries = settings.pop("max_retries", 0)
    with BackgroundSandbox(**QUICK | settings) as reader, ReaderClient(reader.api_key, reader.url, max_retries=retries) as client:
        yield reader, client


@asynccontextmanager
async def aconnected(**settings: Any) -> AsyncIterator[tuple[BackgroundSandbox, AsyncReaderClient]]:
    with BackgroundSandbox(**QUICK | settings) as reader:
        async with AsyncReaderClient(reader.api_key, reader.url, max_retries=0) as client:
            yield reader, client


def started(reader: BackgroundSandbox, count: int, **more: Any) -> str:
    """A job's id: the client has no way to start one without waiting for its end."""
    answer = httpx.post(f"{reader.url}/v1/read", json={"urls": urls(count), **more}, headers={"x-api-key": reader.api_key})
    return str(answer.json()["data"]["id"])


def test_read_a_page_a_batch_and_a_crawl() -> None:
    with connected() as (_, client):
        page = client.read(url="https://example.com", formats=["markdown", "html"])
        assert page.kind == "scrape"
        assert page.data.markdown
        assert page.data.html
        many = client.read(urls=urls(250))
        assert many.kind == "job"
        assert (many.data.status, many.data.completed, len(many.data.results)) == ("completed", 250, 250)
        crawl = client.read(url="https://example.com", max_depth=2, max_pages=30)
        assert (crawl.data.mode, len(crawl.data.results)) == ("crawl", 30)


def test_a_job_from_its_stream_to_its_last_page() -> None:
    with connected(job_seconds=0.2) as (reader, client):
        job = started(reader, 250)
        events = list(client.stream(job))
        assert events[0].type == "progress"
        assert events[-1].type == "done"
        assert (events[-1].status, events[-1].completed) == ("completed", 250)
        assert [event.data.url for event in events if event.type == "page"] == urls(250)
        assert client.wait_for_job(job).completed == 250
        assert [page.url for page in client.get_all_job_results(job)] == urls(250)
        shown, more = client.get_job(job, skip=200, limit=100)
        assert (len(shown.results), more) == (50, False)


def test_cancel_once_and_retry_what_failed() -> None:
    with connected(job_seconds=3600) as (reader, client):
        job = started(reader, 10)
        client.cancel_job(job)
        with pytest.raises(reader_py.ConflictError) as conflict:
            client.cancel_job(job)
        assert conflict.value.details == {"status": "cancelled"}
    with connected(page_errors=1) as (reader, client):
        job = started(reader, 10)
        reader.settled()
        assert all(page.error for page in client.get_all_job_results(job))
        assert client.retry_job(job) == {"id": job, "status": "queued", "retrying": 10}
        assert not any(page.error for page in client.wait_for_job(job).results)
        with pytest.raises(reader_py.InvalidRequestError):
            client.retry_job(job)


def test_usage_queue_and_sessions() -> None:
    with connected(tier="pro", credits=500) as (_, client):
        assert (client.get_credits().balance, client.get_credits().tier) == (500, "pro")
        assert client.get_queue_status().max_concurrency == 10
        session = client.sessions.create(max_duration_ms=60_000)
        assert client.sessions.get(session.session_id) == session
        assert client.sessions.list() == [session]
        assert client.sessions.stop(session.session_id).status == "stopped"


Call = Callable[[Any], Any]
ERRORS: list[tuple[str, dict[str, Any], Call, dict[str, Any]]] = [
    ("InvalidRequestError", {}, lambda client: client.read(url="nowhere"), {}),
    ("UnauthenticatedError", {"rotate_key": "another"}, lambda client: client.get_credits(), {}),
    ("InsufficientCreditsError", {"credits": 3}, lambda client: client.read(urls=urls(4)), {"required": 4, "available": 3}),
    (
        "UrlBlockedError",
        {},
        lambda client: client.read(url="http://169.254.169.254/"),
        {"url": "http://169.254.169.254/", "reason": "link-local address"},
    ),
    ("NotFoundError", {}, lambda client: client.get_job("job_none"), {}),
    ("NotFoundError", {}, lambda client: client.sessions.get("ses_none"), {}),
    (
        "RateLimitedError",
        {"rate_limit": {"value": 7}},
        lambda client: client.get_credits(),
        {"retry_after_seconds": 7, "limit": 1000},
    ),
    ("RateLimitedError", {"rate_limit_bare": 1}, lambda client: client.get_credits(), {"retry_after_seconds": None}),
    ("InternalServerError", {"server_error": {"value": 500}}, lambda client: client.get_credits(), {}),
    ("UpstreamUnavailableError", {"server_error": {"value": 502}}, lambda client: client.get_credits(), {}),
    ("UpstreamUnavailableError", {"page_errors": 1}, lambda client: client.read(url="https://example.com"), {}),
    ("ScrapeTimeoutError", {"server_error": {"value": 504}}, lambda client: client.get_credits(), {}),
]


@pytest.mark.parametrize(("name", "settings", "call", "facts"), ERRORS)
def test_each_error_is_its_own_exception_with_its_facts(
    name: str, settings: dict[str, Any], call: Call, facts: dict[str, Any]
) -> None:
    with (
        BackgroundSandbox(api_key="the-first-key", **QUICK | settings) as reader,
        ReaderClient("the-first-key", reader.url, max_retries=0) as client,
        pytest.raises(reader_py.ReaderApiError) as raised,
    ):
        call(client)
    assert type(raised.value).__name__ == name
    assert raised.value.request_id.startswith("req_")
    assert {fact: getattr(raised.value, fact) for fact in facts} == facts


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "settings", "call", "facts"), ERRORS)
async def test_each_error_of_the_async_client_too(name: str, settings: dict[str, Any], call: Call, facts: dict[str, Any]) -> None:
    with BackgroundSandbox(api_key="the-first-key", **QUICK | settings) as reader:
        async with AsyncReaderClient("the-first-key", reader.url, max_retries=0) as client:
            with pytest.raises(reader_py.ReaderApiError) as raised:
                await call(client)
    assert type(raised.value).__name__ == name
    assert {fact: getattr(raised.value, fact) for fact in facts} == facts


def test_one_job_too_many_is_a_concurrency_limited_error() -> None:
    with connected(tier="free", queue_seconds=3600) as (reader, client):
        started(reader, 1)
        started(reader, 1)
        with pytest.raises(reader_py.ConcurrencyLimitedError) as raised:
            client.read(urls=urls(1))
        assert (raised.value.active, raised.value.max) == (2, 2)


def test_the_client_waits_as_it_is_told_and_comes_through(hurried: list[float]) -> None:
    with connected(rate_limit={"times": 1, "value": 3}, server_error={"times": 1, "after": 0}, max_retries=2) as (_, client):
        assert client.get_credits().balance == 1_000_000
    assert hurried[0] == 3
    assert len(hurried) == 2


def test_the_official_polling_meets_a_real_window() -> None:
    with connected(rpm=3, job_seconds=3600) as (_, client):
        with pytest.raises(reader_py.RateLimitedError) as raised:
            client.read(urls=urls(5))
        assert (raised.value.limit, raised.value.window_seconds) == (3, 60)
        assert 50 < raised.value.retry_after_seconds <= 60


@pytest.mark.anyio
async def test_the_async_client_in_every_method() -> None:
    async with aconnected(job_seconds=0.1, page_errors=0.5) as (reader, client):
        page = await client.read(url="https://example.com/?n=2")
        assert page.data.markdown
        many = await client.read(urls=urls(120))
        assert len(many.data.results) == 120
        job = many.data.id
        assert [event.type async for event in client.stream(job)][-1] == "done"
        failed = sum(bool(each.error) for each in await client.get_all_job_results(job))
        assert (await client.retry_job(job))["retrying"] == failed > 0
        assert (await client.wait_for_job(job)).status == "completed"
        with pytest.raises(reader_py.ConflictError):
            await client.cancel_job(job)
        assert (await client.get_job(job, limit=5))[1] is True
        assert (await client.get_credits()).used == 121
        session = await client.sessions.create()
        assert [each.session_id for each in await client.sessions.list()] == [session.session_id]
        assert (await client.sessions.get(session.session_id)).status == "active"
        assert (await client.sessions.stop(session.session_id)).credits_charged == 1
    async with aconnected(job_seconds=3600) as (reader, client):
        job = started(reader, 1)
        await client.cancel_job(job)
        assert (await client.get_job(job))[0].status == "cancelled"
