"""What may be registered as a handler: what cannot be called as one is refused where it is written, not a day later."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from receiver.errors import UsageError
from receiver.hooks.event import Event, Result
from receiver.hooks.registry import Registry

pytestmark = pytest.mark.anyio

EVENT = Event("evt_1", "job.completed", "2026-01-01T00:00:00Z", {"id": "job_1"}, 1, 0, "poll", verified=True, attempt=1)
URLS = ["https://a.example/1", "https://a.example/2", "https://a.example/3"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def results() -> AsyncIterator[Result]:
    for url in URLS:
        await asyncio.sleep(0)
        yield {"url": url}


async def call(handler: Callable[..., Any]) -> None:
    registry = Registry()
    registry.on("job.completed", name="it")(handler)
    await registry["it"].handler(EVENT, results())


async def test_a_plain_function_runs_in_a_thread_and_reads_results_with_a_plain_for() -> None:
    seen: list[Any] = []
    context = contextvars.ContextVar("context", default="none")
    context.set("of the delivery")

    def handler(event: Event, results: Iterator[Result]) -> None:
        seen.append((event.id, threading.current_thread() is threading.main_thread(), context.get()))
        seen.extend(result["url"] for result in results)

    await call(handler)
    assert seen == [("evt_1", False, "of the delivery"), *URLS]


async def test_meanwhile_the_event_loop_goes_on() -> None:
    release = threading.Event()

    def handler(event: Event, results: Iterator[Result]) -> None:
        assert release.wait(10)

    running = asyncio.create_task(call(handler))
    await asyncio.sleep(0.05)
    assert not running.done()
    release.set()
    await running


async def test_what_a_plain_function_raises_is_raised() -> None:
    def handler(event: Event, results: Iterator[Result]) -> None:
        next(results)
        raise KeyError("its fault")

    with pytest.raises(KeyError, match="its fault"):
        await call(handler)


async def test_what_goes_wrong_with_the_results_is_raised_in_the_plain_function() -> None:
    async def broken() -> AsyncIterator[Result]:
        yield {"url": URLS[0]}
        raise ConnectionError("the store")

    seen: list[str] = []

    def handler(event: Event, results: Iterator[Result]) -> None:
        seen.extend(result["url"] for result in results)

    registry = Registry()
    registry.on("job.completed", name="it")(handler)
    with pytest.raises(ConnectionError, match="the store"):
        await registry["it"].handler(EVENT, broken())
    assert seen == URLS[:1]


async def test_a_plain_function_that_is_given_up_gets_no_more_results() -> None:
    """Its lease is lost, or the server stops: nobody can end a thread, but what it would do with the rest is another's now."""
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()
    seen: list[Any] = []

    def handler(event: Event, results: Iterator[Result]) -> None:
        seen.append(next(results)["url"])
        begun.set()
        release.wait(10)
        try:
            seen.append(next(results))
        except RuntimeError:
            seen.append("no more")
        ended.set()

    running = asyncio.create_task(call(handler))
    await asyncio.to_thread(begun.wait, 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    release.set()
    assert await asyncio.to_thread(ended.wait, 10)
    assert seen == [URLS[0], "no more"]


async def test_its_thread_does_not_keep_the_process_from_ending() -> None:
    daemons: list[bool] = []
    await call(lambda event, results: daemons.append(threading.current_thread().daemon))
    assert daemons == [True]


async def test_a_plain_wrapper_of_an_async_function_is_awaited() -> None:
    seen: list[str] = []

    async def inner(event: Event, results: AsyncIterator[Result]) -> None:
        seen.extend([result["url"] async for result in results])

    @functools.wraps(inner)
    def wrapper(*args: Any) -> Any:
        return inner(*args)

    await call(wrapper)
    assert seen == URLS


class Handlers:
    def __init__(self) -> None:
        self.seen: list[str] = []

    async def method(self, event: Event, results: AsyncIterator[Result]) -> None:
        self.seen.extend([result["url"] async for result in results])

    def plain(self, event: Event, results: Iterator[Result]) -> None:
        self.seen.extend(result["url"] for result in results)

    async def __call__(self, event: Event, results: AsyncIterator[Result]) -> None:
        await self.method(event, results)

    async def more(self, event: Event, results: AsyncIterator[Result], most: int = 10, *, name: str = "") -> None:
        await self.method(event, results)


@pytest.mark.parametrize("what", ["method", "plain", "__call__", "more", "itself", "partial"])
async def test_whatever_can_be_called_with_an_event_and_results_is_a_handler(what: str) -> None:
    handlers = Handlers()
    ways = {"itself": handlers, "partial": functools.partial(Handlers.method, handlers)}
    await call(ways.get(what) or getattr(handlers, what))
    assert handlers.seen == URLS


async def none() -> None: ...


async def one(event: Event) -> None: ...


async def three(event: Event, results: AsyncIterator[Result], more: int) -> None: ...


async def named(*, event: Event, results: AsyncIterator[Result]) -> None: ...


def plain_one(event: Event) -> None: ...


@pytest.mark.parametrize("handler", [one, plain_one, lambda event: None])
async def test_who_needs_no_results_takes_the_event_alone(handler: Callable[..., Any]) -> None:
    await call(handler)


@pytest.mark.parametrize("handler", [none, three, named, Handlers.method, lambda: None])
def test_a_handler_with_other_parameters_is_refused_where_it_is_written(handler: Callable[..., Any]) -> None:
    registry = Registry()
    with pytest.raises(UsageError, match=r"async def \S+\(event, results\)") as caught:
        registry.on("job.completed")(handler)
    assert handler.__qualname__ in str(caught.value)
    assert registry.all() == []


async def async_generator(event: Event, results: AsyncIterator[Result]) -> AsyncIterator[Result]:
    yield {}


def generator(event: Event, results: Iterator[Result]) -> Iterator[Result]:
    yield {}


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": -1.0}, {"concurrency": 0}])
def test_what_cannot_be_is_refused_where_it_is_written(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        Registry().on("job.completed", **options)


@pytest.mark.parametrize("handler", [async_generator, generator])
def test_a_generator_is_no_handler_for_nobody_would_run_it(handler: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="yield"):
        Registry().on("job.completed")(handler)


def test_what_is_decorated_stays_what_it_was() -> None:
    def handler(event: Event, results: Iterator[Result]) -> None: ...

    assert Registry().on("job.completed")(handler) is handler
