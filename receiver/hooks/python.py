"""A Python handler as a hook's target."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Self

import structlog

from receiver.errors import HookError, LeaseLostError, ResultsPrunedError, StoreError, UsageError
from receiver.hooks.event import Connection, Event, Handler, Later, Reading, Reject, Result, Results
from receiver.hooks.target import Answer, Delivery

_BATCH_BYTES = 16 << 20
_SOONEST, _LATEST = 0.05, 30 * 86400.0
"""Seconds, for a handler that wants an event later."""

log = structlog.get_logger("receiver.dispatcher")


class PythonTarget:
    """Calls it, in this process. `decode` makes a result of its JSON. `timeout`: seconds for a call; None: as long as it takes."""

    def __init__(self, name: str, handler: Handler, *, decode: Callable[[bytes], Result], timeout: float | None = None) -> None:
        self.place = name
        self._handler = handler
        self._decode = decode
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    async def deliver(self, delivery: Delivery) -> Answer:
        """See `Target`."""
        source = _Source(delivery, self._decode)
        event = Event.of(delivery.event_id, delivery.payload, attempt=delivery.attempt, source=source)
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                await self._handler(event, source.results())
        except (LeaseLostError, StoreError):
            raise
        except Reject as error:
            raise HookError(f"rejected: {error}".removesuffix(": "), final=True, blamed=False) from error
        except Later as error:
            raise HookError(str(error), again_in=min(max(error.seconds, _SOONEST), _LATEST)) from error
        except ResultsPrunedError as error:
            raise HookError(str(error), final=True, blamed=False) from error  # to try again would bring nothing back
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                raise HookError(f"it did not end within {self._timeout:g} s") from error
            # The traceback is the user's own; it goes to the log, and its last line to the delivery.
            log.exception("handler_failed", attempt=delivery.attempt)
            raise HookError(f"{type(error).__name__}: {error}".removesuffix(": ")) from error
        return Answer()


class _Source:
    """What belongs to one event. See `Source`."""

    def __init__(self, delivery: Delivery, decode: Callable[[bytes], Result]) -> None:
        self._delivery = delivery
        self._decode = decode

    async def results(self) -> Results:
        async for result in self._delivery.results():
            yield self._decode(result)

    async def batches(self, most: int) -> AsyncIterator[list[Result]]:
        gathered: list[Result] = []
        size = 0
        async for part in self._delivery.batches(min(most, 500)):
            for result in part:
                if gathered and size + len(result) > _BATCH_BYTES:
                    yield gathered
                    gathered, size = [], 0
                gathered.append(self._decode(result))
                size += len(result)
                if len(gathered) == most:
                    yield gathered
                    gathered, size = [], 0
        if gathered:
            yield gathered

    def one_by_one(self) -> Reading[Result]:
        return Reading(self.results, None)

    def in_batches(self, most: int) -> Reading[list[Result]]:
        return Reading(lambda: self.batches(most), None)

    def commit(self, function: Callable[[Connection], object]) -> Awaitable[None]:
        if self._delivery.commit is None:
            raise UsageError("there is nothing to commit with")
        return self._delivery.commit(function)
