"""NATS JetStream: done once the stream has it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import nats.errors
from nats.aio.client import Client
from nats.js.errors import APIError, NoStreamResponseError

from receiver.broker_urls import Nats
from receiver.clock import Clock
from receiver.errors import HookError
from receiver.hooks.brokers.broker import BrokerTarget, Message

_PING = 10
"""Seconds between two looks whether the other side still lives: two that go unanswered end the connection."""
_GOODBYE = 0.2
"""Seconds."""


class NatsTarget(BrokerTarget):
    """Publishes to a subject, which a stream must have. The stream drops by itself what it gets twice within its window."""

    errors = (nats.errors.Error, OSError)

    def __init__(self, address: Nats, *, timeout: float, clock: Clock) -> None:
        super().__init__(address, timeout=timeout, clock=clock)
        self._address = address
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._lost = asyncio.Event()
        """Set once the connection has ended."""
        self._troubles: list[Exception] = []

    async def publish(self, message: Message) -> None:
        """See `BrokerTarget`."""
        client = await self._connected()
        subject = message.fill(self._address.subject)
        headers = {**message.headers, "Nats-Msg-Id": message.id}
        publishing = asyncio.ensure_future(
            client.jetstream().publish(subject, message.body, timeout=self.timeout, stream=self._address.stream, headers=headers)
        )
        losing = asyncio.ensure_future(self._lost.wait())  # the client itself goes on waiting when its connection has ended
        try:
            await asyncio.wait({publishing, losing}, return_when=asyncio.FIRST_COMPLETED)
            if not publishing.done():
                raise HookError(f"{self.server}: the connection was lost")
            publishing.result()
        except NoStreamResponseError as error:
            raise HookError(f"{self.server}: no JetStream stream takes the subject {subject!r}: add it to one") from error
        except APIError as error:
            raise HookError(f"{self.server}: {error.description} (for the subject {subject!r})") from error
        finally:
            publishing.cancel()
            losing.cancel()
            await asyncio.gather(publishing, losing, return_exceptions=True)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def _connected(self) -> Client:
        async with self._connecting:
            if self._client is None or not self._client.is_connected:
                self._client = await self._connect()
            return self._client

    async def _connect(self) -> Client:
        # It does not connect again by itself: the next attempt does. Until then what waits had rather fail than be kept in memory.
        server = self._address.server
        token = server.user if server.password is None else None
        self._troubles.clear()
        lost = asyncio.Event()

        async def lose() -> None:
            lost.set()

        client = Client()
        try:
            await client.connect(
                f"nats://{server}",
                name="receiver",
                user=server.user if token is None else None,
                password=server.password,
                token=token,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=max(1, round(self.timeout)),
                ping_interval=_PING,
                error_cb=self._note,
                closed_cb=lose,
            )
        except BaseException as error:
            with suppress(TimeoutError):  # after a failed handshake it waits for ever, for what is closed by then
                async with asyncio.timeout(_GOODBYE):
                    await client.close()
            if isinstance(error, nats.errors.NoServersError):
                raise HookError(f"{self.server}: {self._troubles[-1] if self._troubles else error}") from error
            raise
        self._lost = lost
        return client

    async def _note(self, error: Exception) -> None:
        self._troubles[:] = [error]
