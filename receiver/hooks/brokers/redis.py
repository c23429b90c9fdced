"""Redis streams: done once XADD has answered with the entry's id."""

from __future__ import annotations

from redis.asyncio import Redis as Client
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.typing import EncodableT, FieldT

from receiver.broker_urls import Redis
from receiver.clock import Clock
from receiver.hooks.brokers.broker import BrokerTarget, Message


class RedisTarget(BrokerTarget):
    """Adds entries to a stream: the fields are the headers that others have, and `payload`."""

    errors = (RedisError, OSError)

    def __init__(self, address: Redis, *, timeout: float, clock: Clock) -> None:
        super().__init__(address, timeout=timeout, clock=clock)
        self._address = address
        server = address.server
        self._client = Client(
            host=server.host,
            port=server.port,
            db=address.database,
            username=server.user or None,
            password=server.password,
            ssl=server.tls,
            socket_connect_timeout=timeout,
            socket_timeout=timeout,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 1),  # at once, over a new connection: one that lay idle may have died
            client_name="receiver",
        )

    async def publish(self, message: Message) -> None:
        """See `BrokerTarget`."""
        fields: dict[FieldT, EncodableT] = {"payload": message.body}
        fields.update(message.headers.items())
        await self._client.xadd(self._address.stream, fields, maxlen=self._address.maxlen, approximate=True)

    async def close(self) -> None:
        await self._client.aclose()
