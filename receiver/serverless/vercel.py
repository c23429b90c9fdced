"""Vercel: an ASGI app that needs no lifespan, and no event loop that lasts: `app = Vercel()` is the whole function.

Vercel's runtime may call it in a new event loop for each request, several at once, and never tell of a start or an end. So all
that is open belongs to a loop of our own, in a thread. A delivery costs one durable insert on a connection that stays; whatever
else is asked for opens the rest, which is closed with the last request that needs it: between requests the process may be frozen,
and a frozen process must hold no lease and need no timer.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from receiver.logs import configure
from receiver.serverless import settle
from receiver.serverless.function import Function
from receiver.settings import Settings, load

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from receiver.app import Receiver

os.environ.setdefault("VERCEL", "1")  # whatever runs here, its disk goes with the process


class Vercel(Function):
    """The function. `build` makes the Receiver, with handlers of yours if you like; they run in the passes of `/internal/tick`.

    `CRON_SECRET`, which Vercel's cron sends as a bearer token, counts as one of `RECEIVER_API_KEYS`.
    """

    def __init__(self, build: Callable[[Settings], Receiver] | None = None) -> None:
        super().__init__(build)
        self._opening = asyncio.Lock()
        self._open: AbstractAsyncContextManager[Any] | None = None
        self._using = 0
        self._logs = False
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="receiver", daemon=True).start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, in whatever loop it comes."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        theirs = asyncio.get_running_loop()

        def there(what: Coroutine[Any, Any, Any]) -> asyncio.Future[Any]:
            return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(what, theirs))

        async def received() -> MutableMapping[str, Any]:
            message: MutableMapping[str, Any] = await there(_of(receive()))
            return message

        async def sent(message: MutableMapping[str, Any]) -> None:
            await there(_of(send(message)))

        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._answer(scope, received, sent), self._loop))

    def _load(self) -> Settings:
        settings = load()
        if cron := os.environ.get("CRON_SECRET"):
            return settings.model_copy(update={"receiver_api_keys": (*settings.receiver_api_keys, SecretStr(cron))})
        return settings

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._logs:  # not before the runtime has put something else in the place of stderr
            configure("json")
            self._logs = True
        await super()._answer(scope, receive, send)

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        """The receiver, started for all that are here at once."""
        async with self._opening:
            if not self._using:
                self._open = super()._running()
                await self._open.__aenter__()
            self._using += 1
        try:
            yield
        finally:
            async with self._opening:
                self._using -= 1
                if not self._using and self._open is not None:
                    await self._open.__aexit__(None, None, None)


async def _of(what: Any) -> Any:
    return await what


async def _live(receive: Receive, send: Send) -> None:
    """Nothing is done at the start, nor at the end."""
    while True:
        stage = (await receive())["type"].removeprefix("lifespan.")
        await send({"type": f"lifespan.{stage}.complete"})
        if stage == "shutdown":
            return


settle()
