"""Kafka: done once every replica that is in sync has it."""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import suppress
from threading import Event, Thread
from typing import Any, Final, TypeVar

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Producer

from receiver.broker_urls import Kafka
from receiver.clock import Clock
from receiver.errors import HookError
from receiver.hooks.brokers.broker import BrokerTarget, Message

_T = TypeVar("_T")

_POLL: Final = 0.2
"""Seconds that the thread waits for news before it looks whether it should end."""
_RECONNECT: Final = 2000
"""Milliseconds between two attempts to connect, at most."""
_AWAY: Final = 2
"""How often one trouble has to come for the broker to be away: a name may lead to several addresses, which are tried in turn."""
_NO_TOPIC: Final = {KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART}  # noqa: SLF001 - named so by the client
_ANEW: Final = _NO_TOPIC | {KafkaError._FATAL}  # noqa: SLF001 - after which a producer remembers rather than asks


class KafkaTarget(BrokerTarget):
    """Publishes to a topic, an event's job being the key: events of one job are in one partition, in order.

    The client connects by itself, to whichever of the brokers it needs, and sends nothing once its time is over. The producer is
    idempotent: what the client sends again within an attempt, because an acknowledgement was lost, is there once.
    """

    errors = (KafkaException, BufferError)

    def __init__(self, address: Kafka, *, timeout: float, clock: Clock) -> None:
        super().__init__(address, timeout=timeout, clock=clock)
        self._address = address
        self._line: _Line | None = None

    async def publish(self, message: Message) -> None:
        """See `BrokerTarget`."""
        topic = message.fill(self._address.topic)
        if self._line is None:
            self._line = _Line(_options(self._address, self.timeout))
        line = self._line
        error = await line.publish(topic, message)
        if error is None:
            return
        code = error.code()
        if (line.trouble or error.fatal() or code in _ANEW) and self._line is line:
            self._line = None  # the next attempt begins anew, and nobody calls meanwhile
            line.retire()
        if code == KafkaError._MSG_TIMED_OUT:  # noqa: SLF001 - named so by the client, as above
            raise TimeoutError
        if code in _NO_TOPIC:
            raise HookError(f"{self.server}: there is no topic {topic!r}: create it")
        raise HookError(f"{self.server}: {line.trouble or error.str()}")

    async def close(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.purge()
            line.retire()
            await line.ended


class _Line:
    """A producer, and the thread in which it tells what became of messages."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[KafkaError | None]] = set()
        self._troubles: list[str] = []
        self.trouble = ""
        """Why the brokers are away, if they are."""
        self._ending = Event()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._producer = Producer({**options, "error_cb": self._note})
        Thread(target=self._listen, name="receiver-kafka", daemon=True).start()

    async def publish(self, topic: str, message: Message) -> KafkaError | None:
        """What there is to say against it; None once it is acknowledged."""
        told: asyncio.Future[KafkaError | None] = self._loop.create_future()

        def tell(error: KafkaError | None, _: confluent_kafka.Message) -> None:
            self._in_loop(told, error)

        if not self._waiting:
            self._well()
        self._waiting.add(told)
        try:
            headers: dict[str, str | bytes | None] = {**message.headers}
            self._producer.produce(topic, message.body, message.job, headers=headers, on_delivery=tell)
            error = await told
        except KafkaException as raised:
            error = raised.args[0]
        finally:
            self._waiting.discard(told)
        if error is None:
            self._well()
        return error

    def purge(self) -> None:
        """Nothing that waits will be sent, or is waited for."""
        self._producer.purge()

    def retire(self) -> None:
        """End, as soon as it is known of every message what became of it."""
        self._ending.set()

    def _well(self) -> None:
        self._troubles.clear()
        self.trouble = ""

    # In the thread:

    def _listen(self) -> None:
        while len(self._producer) or not self._ending.is_set():
            try:
                self._producer.poll(_POLL)
            except KafkaException as raised:
                self._note(raised.args[0])
        self._producer.close()
        self._in_loop(self.ended, None)

    def _note(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 - says nothing of why
            return
        trouble = error.str() if error.fatal() else error.str().partition(": ")[2].partition(" (after ")[0]
        self._troubles.append(trouble)
        if error.fatal() or self._troubles.count(trouble) >= _AWAY:  # what waits fails now, rather than when its time is over
            self._troubles.clear()
            self.trouble = trouble
            self._producer.purge()

    def _in_loop(self, future: asyncio.Future[_T], result: _T) -> None:
        with suppress(RuntimeError):  # the loop has ended: nobody waits
            self._loop.call_soon_threadsafe(_settle, future, result)


def _settle(future: asyncio.Future[_T], result: _T) -> None:
    if not future.done():
        future.set_result(result)


def _options(address: Kafka, timeout: float) -> dict[str, Any]:
    """How long an attempt may take is how long the client may try."""
    milliseconds = max(1, round(timeout * 1000))
    server = address.server
    options: dict[str, Any] = {
        "bootstrap.servers": str(server),
        "client.id": "receiver",
        "acks": "all",
        "enable.idempotence": True,
        "linger.ms": 0,
        "message.timeout.ms": milliseconds,
        "topic.metadata.propagation.max.ms": milliseconds // 2,
        "socket.timeout.ms": max(1000, milliseconds),
        "socket.connection.setup.timeout.ms": max(1000, milliseconds),
        "socket.keepalive.enable": True,
        "reconnect.backoff.max.ms": _RECONNECT,
        "logger": logging.getLogger("confluent_kafka"),
        "log_level": 0,  # what goes wrong is told with the attempt it belongs to
        "security.protocol": "ssl" if server.tls else "plaintext",
    }
    if server.tls and (authorities := ssl.get_default_verify_paths().cafile):  # SSL_CERT_FILE, or what Python goes by
        options["ssl.ca.location"] = authorities
    if server.user is not None:
        options["security.protocol"] = "sasl_ssl" if server.tls else "sasl_plaintext"
        options |= {"sasl.mechanism": address.sasl, "sasl.username": server.user, "sasl.password": server.password}
    return options
