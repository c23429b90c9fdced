"""A handler called for a delivery: what it can read, what its verdicts mean, and that it may write along with its end."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from receiver import Later, Reject
from receiver.errors import HookError, ResultsPrunedError, UsageError
from receiver.hooks.event import Event, Result, Results
from receiver.hooks.python import PythonTarget
from receiver.hooks.registry import Registry
from receiver.hooks.target import Delivery

pytestmark = pytest.mark.anyio

PAYLOAD = json.dumps({"type": "job.completed", "timestamp": "t", "data": {"job": {"id": "job_1"}, "generation": 1}})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def delivery(count: int = 7, *, size: int = 10, part: int = 3, committed: list[Any] | None = None) -> Delivery:
    """Of so many results, which the store gives out in smaller parts than asked for."""

    async def batches(most: int) -> AsyncIterator[list[bytes]]:
        for start in range(0, count, min(part, most)):
            found = range(start, min(start + min(part, most), count))
            yield [json.dumps({"url": str(n), "markdown": "x" * size}).encode() for n in found]

    async def commit(function: Callable[[Any], object]) -> None:
        await asyncio.sleep(0)
        committed.append(function("connection"))  # type: ignore[union-attr]  # who commits gives one

    return Delivery("evt_1", PAYLOAD, 3, batches, commit)


async def call(handler: Callable[..., Any], given: Delivery | None = None, **options: Any) -> None:
    registry = Registry()
    registry.on("job.completed", name="it", **options)(handler)
    hook = registry["it"]
    async with PythonTarget("it", hook.handler, decode=json.loads, timeout=hook.timeout) as target:
        await target.deliver(given or delivery())


async def failure(handler: Callable[..., Any], given: Delivery | None = None, **options: Any) -> HookError:
    with pytest.raises(HookError) as caught:
        await call(handler, given, **options)
    return caught.value


# -- results -----------------------------------------------------------------------------------------------------------------


async def test_results_come_in_batches_of_the_size_that_was_asked_for() -> None:
    sizes: list[list[int]] = []

    async def handler(event: Event, results: Results) -> None:
        for most in (1, 2, 5, 500):
            got = [len(batch) async for batch in event.results(batch=most)]
            sizes.append(got)

    await call(handler)
    assert sizes == [[1] * 7, [2, 2, 2, 1], [5, 2], [7]]


async def test_a_plain_handler_reads_them_with_a_plain_for() -> None:
    seen: list[Any] = []

    def handler(event: Event, results: Iterator[Result]) -> None:
        seen.append([[result["url"] for result in batch] for batch in event.results(batch=4)])
        seen.append([result["url"] for result in event.results()])
        seen.append([result["url"] for result in results])

    await call(handler)
    assert seen == [[["0", "1", "2", "3"], ["4", "5", "6"]], list("0123456"), list("0123456")]


async def test_each_iteration_begins_anew() -> None:
    seen: list[int] = []

    async def handler(event: Event) -> None:
        reading = event.results()
        for _ in range(2):
            read = [result async for result in reading]
            seen.append(len(read))

    await call(handler)
    assert seen == [7, 7]


async def test_a_batch_of_large_results_is_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the batch that was asked for: memory is bounded."""
    monkeypatch.setattr("receiver.hooks.python._BATCH_BYTES", 1000)
    sizes: list[int] = []

    async def handler(event: Event) -> None:
        sizes.extend([len(batch) async for batch in event.results(batch=500)])

    await call(handler, delivery(7, size=400))
    assert sizes == [2, 2, 2, 1]


async def test_an_async_handler_that_forgets_async_is_told() -> None:
    async def handler(event: Event) -> None:
        for _ in event.results():
            pass

    assert "async for" in str(await failure(handler))


@pytest.mark.parametrize("batch", [0, -1])
async def test_a_batch_holds_something(batch: int) -> None:
    async def handler(event: Event) -> None:
        event.results(batch=batch)

    assert "at least one" in str(await failure(handler))


def test_an_event_that_somebody_made_up_says_that_it_has_no_results() -> None:
    event = Event.of("evt_1", PAYLOAD, attempt=1)
    with pytest.raises(UsageError, match="not delivered by a receiver"):
        event.results()


# -- verdicts ----------------------------------------------------------------------------------------------------------------


async def test_reject_is_final_and_no_fault_of_the_hooks() -> None:
    async def handler(event: Event) -> None:
        raise Reject("not one of ours")

    error = await failure(handler)
    assert (str(error), error.final, error.blamed, error.again_in) == ("rejected: not one of ours", True, False, None)


async def test_later_says_when_and_is_no_failure() -> None:
    def handler(event: Event) -> None:
        raise Later(90, "the index is being rebuilt")

    error = await failure(handler)
    assert (str(error), error.final, error.again_in) == ("the index is being rebuilt", False, 90.0)
    assert str(Later(5)) == "asked for again in 5 s"


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_later_takes_seconds_from_now(seconds: float) -> None:
    with pytest.raises(UsageError):
        Later(seconds)


async def test_any_other_exception_is_a_failure_in_its_words() -> None:
    async def handler(event: Event) -> None:
        raise KeyError("its fault")

    error = await failure(handler)
    assert (str(error), error.final, error.blamed) == ("KeyError: 'its fault'", False, True)


async def test_results_that_were_pruned_are_no_use_to_try_again() -> None:
    async def handler(event: Event) -> None:
        raise ResultsPrunedError.of("job_1")

    error = await failure(handler)
    assert (error.final, error.blamed) == (True, False)


async def test_an_async_handler_is_cancelled_at_its_timeout() -> None:
    cancelled = asyncio.Event()

    async def handler(event: Event) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    error = await failure(handler, timeout=0.05)
    assert str(error) == "it did not end within 0.05 s"
    assert cancelled.is_set()


async def test_a_plain_handler_is_given_up_at_its_timeout_and_commits_nothing_any_more() -> None:
    release, ended = threading.Event(), threading.Event()
    committed: list[Any] = []
    seen: list[str] = []

    def handler(event: Event) -> None:
        release.wait(10)
        try:
            event.commit(lambda connection: connection)
        except RuntimeError as error:
            seen.append(str(error))
        ended.set()

    assert "did not end within" in str(await failure(handler, delivery(committed=committed), timeout=0.05))
    release.set()
    await asyncio.to_thread(ended.wait, 10)
    assert (committed, seen) == ([], ["this call was given up: its event will be handled again"])


async def test_a_timeout_of_the_handlers_own_is_a_failure_like_any_other() -> None:
    async def handler(event: Event) -> None:
        raise TimeoutError("the index")

    assert str(await failure(handler, timeout=5)) == "TimeoutError: the index"


# -- commit ------------------------------------------------------------------------------------------------------------------


async def test_commit_runs_a_function_whichever_kind_the_handler_is() -> None:
    committed: list[Any] = []

    async def awaited(event: Event) -> None:
        await event.commit(lambda connection: f"awaited {connection}")

    def plain(event: Event) -> None:
        event.commit(lambda connection: f"plain {connection}")
        assert committed[-1] == "plain connection", "it is done when the call returns"

    def wrapper(event: Event, results: Any) -> Any:
        return awaited(event)

    for handler in (awaited, plain, wrapper):
        await call(handler, delivery(committed=committed))
    assert committed == ["awaited connection", "plain connection", "awaited connection"]
