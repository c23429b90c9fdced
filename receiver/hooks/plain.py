"""Handlers that are plain functions: each call runs in a thread of its own, and reads its results with a plain `for`."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from dataclasses import replace
from typing import Any, Generic, TypeVar

from receiver.hooks.event import Connection, Event, Handler, Reading, Result, Results, Source

T = TypeVar("T")


class Call:
    """One call of a plain function, in a thread, and the event loop that does its waiting."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.over = False
        """Whether nobody waits for this call any more."""

    def wait(self, what: Coroutine[Any, Any, T]) -> T:
        """Its outcome. Called in the thread."""
        if self.over:
            what.close()
            raise RuntimeError("this call was given up: its event will be handled again")
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()

    def in_loop(self) -> bool:
        """Whether this is the event loop's thread: that of a coroutine which a plain function returned."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False


class PlainResults(Generic[T]):
    """Results for a thread, fetched by the event loop. Also what it was, for a plain wrapper of an async function."""

    def __init__(self, results: AsyncIterator[T], call: Call) -> None:
        self._results = results
        self._call = call

    def __iter__(self) -> PlainResults[T]:
        return self

    def __next__(self) -> T:
        found = self._call.wait(self._next())
        if not found:
            raise StopIteration
        return found[0]

    def __aiter__(self) -> AsyncIterator[T]:
        return self._results

    async def _next(self) -> tuple[T] | None:
        async for each in self._results:
            return (each,)
        return None


class _InThread:
    """What belongs to an event, for a thread. See `Source`."""

    def __init__(self, source: Source, call: Call) -> None:
        self._source = source
        self._call = call

    def one_by_one(self) -> Reading[Result]:
        return Reading(self._source.one_by_one().__aiter__, lambda results: PlainResults(results, self._call))

    def in_batches(self, most: int) -> Reading[list[Result]]:
        return Reading(self._source.in_batches(most).__aiter__, lambda results: PlainResults(results, self._call))

    def commit(self, function: Callable[[Connection], object]) -> Awaitable[None]:
        if self._call.in_loop():
            return self._source.commit(function)

        async def commit() -> None:
            await self._source.commit(function)

        self._call.wait(commit())
        return _Done()


class _Done:
    """To be awaited or not: it is done."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


def in_thread(function: Callable[..., Any]) -> Handler:
    """A handler that calls `function`.

    Not in the loop's pool of threads: that is waited for when the process ends, which a function that hangs would prevent.
    """

    async def handler(event: Event, results: Results) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        context = contextvars.copy_context()
        call = Call(loop)
        plain = PlainResults(results, call)
        theirs = event if event.source is None else replace(event, source=_InThread(event.source, call))
        answer: Any = None
        failure: BaseException | None = None

        def run() -> None:
            nonlocal answer, failure
            try:
                answer = context.run(function, theirs, plain)
            except BaseException as error:  # noqa: BLE001 - raised where the call is waited for
                failure = error
            with suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=run, name=f"handler of {event.id}", daemon=True).start()
        try:
            await ended.wait()
        finally:
            call.over = True
        if failure is not None:
            raise failure
        if inspect.isawaitable(answer):
            await answer

    return handler
