"""Handlers that are plain functions: each call runs in a thread of its own, and reads its results with a plain `for`."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from receiver.hooks.event import Event, Handler, Result, Results


class PlainResults:
    """Results for a thread, fetched by the event loop. Also what it was, for a plain wrapper of an async function."""

    def __init__(self, results: Results, loop: asyncio.AbstractEventLoop) -> None:
        self._results = results
        self._loop = loop
        self.over = False
        """Whether nobody waits for this call any more."""

    def __iter__(self) -> PlainResults:
        return self

    def __next__(self) -> Result:
        if self.over:
            raise RuntimeError("this call was given up: its event will be handled again")
        found = asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()
        if found is None:
            raise StopIteration
        return found

    def __aiter__(self) -> AsyncIterator[Result]:
        return self._results

    async def _next(self) -> Result | None:
        return await anext(self._results, None)


def in_thread(function: Callable[..., Any]) -> Handler:
    """A handler that calls `function`.

    Not in the loop's pool of threads: that is waited for when the process ends, which a function that hangs would prevent.
    """

    async def handler(event: Event, results: Results) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        context = contextvars.copy_context()
        plain = PlainResults(results, loop)
        answer: Any = None
        failure: BaseException | None = None

        def run() -> None:
            nonlocal answer, failure
            try:
                answer = context.run(function, event, plain)
            except BaseException as error:  # noqa: BLE001 - raised where the call is waited for
                failure = error
            with suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=run, name=f"handler of {event.id}", daemon=True).start()
        try:
            await ended.wait()
        finally:
            plain.over = True
        if failure is not None:
            raise failure
        if inspect.isawaitable(answer):
            await answer

    return handler
