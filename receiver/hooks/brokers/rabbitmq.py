"""RabbitMQ: done once it has confirmed that every queue the message is for has it, and at least one is."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime

import aio_pika
from aio_pika import DeliveryMode
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
from aio_pika.connection import make_url
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelNotFoundEntity, DeliveryError, InvalidFrameError, PublishError

from receiver.broker_urls import Amqp
from receiver.clock import Clock
from receiver.errors import HookError
from receiver.hooks.brokers.broker import BrokerTarget, Message

_HEARTBEAT = 10
"""Seconds of silence after which the other side is asked whether it still lives."""


class _Line:
    """A connection, and what was opened over it."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel, exchange: AbstractExchange) -> None:
        self.connection = connection
        self.channel = channel
        self.exchange = exchange

    @property
    def is_open(self) -> bool:
        """As far as is known: what lay idle may have died meanwhile."""
        return self.connection.connected.is_set() and not self.channel.is_closed


class RabbitTarget(BrokerTarget):
    """Publishes persistent messages to an exchange that is there, with publisher confirms and mandatory routing."""

    errors = CONNECTION_EXCEPTIONS

    def __init__(self, address: Amqp, *, timeout: float, clock: Clock) -> None:
        super().__init__(address, timeout=timeout, clock=clock)
        self._address = address
        self._line: _Line | None = None
        self._opening = asyncio.Lock()

    async def publish(self, message: Message) -> None:
        """See `BrokerTarget`."""
        if (line := self._line) is not None and line.is_open:
            try:
                await self._publish(line.exchange, message)
            except self.errors:
                pass  # at once, over a new one
            else:
                return
        async with self._opening:
            if self._line is None or self._line is line:
                await self.close()
                self._line = await self._opened()
            line = self._line
        await self._publish(line.exchange, message)

    async def close(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            with suppress(*self.errors):  # it was lost already
                await line.connection.close()

    async def _publish(self, exchange: AbstractExchange, message: Message) -> None:
        key = message.fill(self._address.routing_key)
        headers = message.headers
        outgoing = aio_pika.Message(
            message.body,
            message_id=message.id,
            type=message.type,
            timestamp=datetime.fromtimestamp(message.sent_at, UTC),
            content_type=headers.pop("content-type"),
            delivery_mode=DeliveryMode.PERSISTENT,
            app_id="receiver",
            headers=dict(headers),
        )
        try:
            await exchange.publish(outgoing, key, mandatory=True)
        except PublishError as error:
            raise HookError(f"{self.server}: {self._unrouted(key)}") from error
        except DeliveryError as error:
            raise HookError(f"{self.server}: it did not take the message (a queue may be full)") from error

    async def _opened(self) -> _Line:
        connection = await self._connect()
        try:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            return _Line(connection, channel, await self._found(channel))
        except BaseException:
            await connection.close()
            raise

    async def _connect(self) -> AbstractConnection:
        server = self._address.server
        url = make_url(
            host=server.host,
            port=server.port,
            login="guest" if server.user is None else server.user,
            password="guest" if server.password is None else server.password,
            virtualhost=self._address.vhost,
            ssl=server.tls,
            heartbeat=_HEARTBEAT,
        )
        connection = aio_pika.Connection(url, client_properties={"connection_name": "receiver"})
        try:
            await connection.connect()
        except BaseException as error:
            await connection.close()  # or it would want to be, when it is collected
            if isinstance(error, InvalidFrameError):  # the broker hangs up at this point, and says why where nobody looks
                raise HookError(f"{self.server}: there is no vhost {self._address.vhost!r} for this user") from error
            raise
        return connection

    async def _found(self, channel: AbstractChannel) -> AbstractExchange:
        name = self._address.exchange
        if not name:
            return channel.default_exchange
        try:
            return await channel.get_exchange(name, ensure=True)
        except ChannelNotFoundEntity as error:
            raise HookError(f"{self.server}: there is no exchange {name!r}: declare it") from error

    def _unrouted(self, key: str) -> str:
        if not self._address.exchange:
            return f"there is no queue {key!r}: declare it"
        return f"no queue is bound to the exchange {self._address.exchange!r} for {key!r}: bind one"
