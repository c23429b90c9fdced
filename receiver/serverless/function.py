"""What the functions of all platforms have in common: a delivery costs one durable insert, and the rest is opened when asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import structlog

from receiver.clock import SystemClock
from receiver.errors import ReceiverError
from receiver.ingest import Ingest
from receiver.settings import Settings, load
from receiver.store.engine import Database
from receiver.web.keyring import Keyring
from receiver.web.webhook import UNAVAILABLE, WEBHOOK, WebhookEndpoint, send_answer

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from receiver.app import Receiver

log = structlog.get_logger("receiver.serverless")


class Function:
    """Answers requests, in one event loop. `build` makes the Receiver, with handlers of yours if you like; deliveries need none."""

    def __init__(self, build: Callable[[Settings], Receiver] | None = None) -> None:
        self._build = build
        self._clock = SystemClock()
        self._ingest: Ingest | None = None
        self._connecting = asyncio.Lock()

    def _load(self) -> Settings:
        """Where the platform has the settings."""
        return load()

    @cached_property
    def _settings(self) -> Settings:
        """Asked for again where that failed: a secret may be made after the function."""
        return self._load()

    @cached_property
    def _endpoint(self) -> WebhookEndpoint:
        return WebhookEndpoint.of(self._settings, lambda: self._ingest, keyring=self._keyring, clock=self._clock)

    @cached_property
    def _keyring(self) -> Keyring:
        return Keyring(self._settings.secrets)

    @cached_property
    def _receiver(self) -> Receiver:
        from receiver.app import Receiver  # noqa: PLC0415 - twice as much to load as a delivery needs

        receiver = (self._build or Receiver)(self._settings)
        receiver.keyring = self._keyring  # `/readyz` tells of the deliveries that came past it
        return receiver

    def _running(self) -> AbstractAsyncContextManager[Any]:
        """The receiver, open as long as this is."""
        return self._receiver.running(loops=False)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["path"] == WEBHOOK:
                await self._take(scope, receive, send)
            else:
                async with self._running():
                    await self._receiver.app(scope, receive, send)
        except ReceiverError as error:
            log.error("unavailable", hint=str(error))  # noqa: TRY400 - one line
            await send_answer(send, UNAVAILABLE)

    async def _take(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A delivery. Its connection stays open for the next one; what died while we were frozen is replaced."""
        endpoint = self._endpoint
        async with self._connecting:
            if self._ingest is None:
                database = await asyncio.to_thread(Database.of, self._settings, self._clock)
                self._ingest = Ingest(database, self._clock, on_cue=_nobody_waits)
        await endpoint(scope, receive, send)


def _nobody_waits() -> None:
    """No loop of ours runs here."""
