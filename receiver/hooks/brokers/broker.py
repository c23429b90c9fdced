"""What all brokers have in common: what a message says, and that nothing but an acknowledgement counts."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Self

from receiver.broker_urls import TYPE, Address
from receiver.clock import Clock
from receiver.errors import HookError
from receiver.hooks.target import Answer, Delivery


@dataclass(frozen=True, slots=True)
class Message:
    """An event on its way to a broker."""

    id: str
    type: str
    job: str
    sent_at: int
    """Unix seconds, of this attempt."""
    body: bytes
    """The payload every hook gets."""

    @property
    def headers(self) -> dict[str, str]:
        """By the names that HTTP hooks give them, where they have them."""
        return {
            "webhook-id": self.id,
            "webhook-timestamp": str(self.sent_at),
            "event-type": self.type,
            "content-type": "application/json",
        }

    def fill(self, pattern: str) -> str:
        """A subject, a key or a topic with this event's type put in."""
        return pattern.replace(TYPE, self.type)


class BrokerTarget(ABC):
    """Publishes events. It connects when there is something to publish, and again whenever the connection was lost.

    `timeout`: seconds for connecting, publishing and the acknowledgement together.
    """

    errors: ClassVar[tuple[type[Exception], ...]]
    """What the client raises when the broker is away, or will not have it."""

    def __init__(self, address: Address, *, timeout: float, clock: Clock) -> None:
        self.place = str(address)
        self.server = str(address.server)
        self.timeout = timeout
        self._clock = clock

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            async with asyncio.timeout(1.0):
                await self.close()
        except TimeoutError:
            pass
        except self.errors:
            pass  # it is away: there is nobody to take leave of

    async def deliver(self, delivery: Delivery) -> Answer:
        """Publish it, and wait for the acknowledgement. See `Target`."""
        event = json.loads(delivery.payload)
        job = event["data"]["job"]["id"]
        message = Message(delivery.event_id, event["type"], job, int(self._clock.wall()), delivery.payload.encode())
        try:
            async with asyncio.timeout(self.timeout):
                await self.publish(message)
        except TimeoutError as error:
            raise HookError(f"no acknowledgement from {self.server} within {self.timeout:g} s") from error
        except self.errors as error:
            raise HookError(f"{self.server}: {str(error) or type(error).__name__}") from error
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            # Not us: clients cancel what waits on a connection that is lost.
            raise HookError(f"{self.server}: the connection was lost") from None
        return Answer()

    @abstractmethod
    async def publish(self, message: Message) -> None:
        """Return once the broker has acknowledged it. Raises `HookError`, `TimeoutError` or one of `errors`."""

    @abstractmethod
    async def close(self) -> None:
        """Hang up, if there is a connection."""
