"""The dispatcher: brings events from the outbox to their hooks, at least once, until they are delivered or given up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING

import structlog

from receiver.core.backoff import backoff
from receiver.errors import HookError, LeaseLostError, ResultsPrunedError, StoreError
from receiver.hooks.event import Event, Result
from receiver.leases import lease_kept
from receiver.packing import unpack
from receiver.store import outbox, results

if TYPE_CHECKING:
    from receiver.clock import Clock
    from receiver.hooks.http import HttpHook, HttpSender
    from receiver.hooks.registry import PythonHook, Registry
    from receiver.store.engine import Database

LEASE = 60.0
ATTEMPTS = 16
"""Over about a day: 5 s doubling to 6 h. After the last one a delivery is dead, and visible as such."""
_BASE, _CAP = 5.0, 6 * 3600.0
_BATCH = 50
_BATCH_BYTES = 4 << 20
"""Results are read in short transactions of about this much, however slowly a handler takes them."""

log = structlog.get_logger("receiver.dispatcher")


class Dispatcher:
    """Serves the hooks this process knows: its Python handlers, and the configured URLs."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        owner: str,
        handlers: Registry,
        urls: Mapping[str, HttpHook],
        sender: HttpSender,
    ) -> None:
        self._database = database
        self._clock = clock
        self._owner = owner
        self._handlers = handlers
        self._urls = urls
        self._sender = sender

    @property
    def names(self) -> list[str]:
        """The hooks this process can serve."""
        return [hook.name for hook in self._handlers.all()] + list(self._urls)

    async def declare(self) -> None:
        """Make the hooks known, so that events settled from now on, here or elsewhere, are kept for them."""
        declared = [outbox.Declaration(h.name, "python", h.name, h.events) for h in self._handlers.all()]
        declared += [outbox.Declaration(h.name, "http", h.url, h.events) for h in self._urls.values()]
        await self._database.write(lambda tx: outbox.declare(tx, declared, all_http=True))

    async def run_once(self) -> bool:
        """Deliver the one longest due; False if none is."""
        names = self.names
        if not names:
            return False
        delivery = await self._database.write(lambda tx: outbox.claim(tx, names=names, owner=self._owner, lease=LEASE))
        if delivery is None:
            return False
        with structlog.contextvars.bound_contextvars(event_id=delivery.event.id, hook=delivery.hook):
            try:
                async with lease_kept(self._clock, LEASE, lambda: self._hold(delivery)):
                    await self._deliver(delivery)
            except LeaseLostError as error:
                log.warning("lease_lost", hint=str(error))
            except StoreError as error:
                log.error("store_failed", hint=str(error))  # noqa: TRY400 - the hint is the whole story
        return True

    async def next_due(self) -> float | None:
        """Seconds until there is something to do; None: not until an event comes."""
        names = self.names
        return await self._database.read(lambda tx: outbox.next_due(tx, names=names))

    async def _deliver(self, delivery: outbox.HookDelivery) -> None:
        try:
            if delivery.hook in self._handlers:
                await self._call(self._handlers[delivery.hook], delivery)
                status = None
            else:
                hook = self._urls[delivery.hook]
                status = await self._sender.send(hook, event_id=delivery.event.id, payload=delivery.event.payload)
        except HookError as error:
            await self._failed(delivery, error)
        else:
            await self._database.write(lambda tx: outbox.delivered(tx, delivery, status=status))
            log.info("delivered", attempt=delivery.attempts + 1, status=status)

    async def _call(self, hook: PythonHook, delivery: outbox.HookDelivery) -> None:
        event = Event.of(delivery.event.id, delivery.event.payload, attempt=delivery.attempts + 1)
        try:
            await hook.handler(event, self._results(delivery.event))
        except (LeaseLostError, StoreError):
            raise
        except ResultsPrunedError as error:
            raise HookError(str(error), final=True) from error  # to try again would bring nothing back
        except Exception as error:
            # The traceback is the user's own; it goes to the log, and its last line to the delivery.
            log.exception("handler_failed", attempt=delivery.attempts + 1)
            raise HookError(f"{type(error).__name__}: {error}") from error

    async def _results(self, event: outbox.Event) -> AsyncIterator[Result]:
        position = 0
        while True:
            at = position
            batch = await self._database.read(
                lambda tx, at=at: results.read_slices(  # type: ignore[misc]  # mypy cannot infer a lambda with a default
                    tx, event.job_id, event.generation, skip=at, limit=_BATCH, max_bytes=_BATCH_BYTES
                )
            )
            if not batch:
                return
            for slice_ in batch:
                yield unpack(slice_)
            position += len(batch)

    async def _failed(self, delivery: outbox.HookDelivery, error: HookError) -> None:
        text, status = str(error), error.answer
        if error.final or delivery.attempts + 1 >= ATTEMPTS:
            await self._database.write(lambda tx: outbox.dead(tx, delivery, error=text, status=status))
            log.error("dead_letter", attempts=delivery.attempts + 1, hint=text)
            return
        wait = backoff(delivery.attempts, base=_BASE, cap=_CAP, chance=self._clock.chance())
        wait = max(wait, error.retry_after or 0.0)
        await self._database.write(lambda tx: outbox.later(tx, delivery, wait=wait, error=text, status=status))
        log.warning("hook_failed", attempt=delivery.attempts + 1, again_in=round(wait, 1), hint=text)

    async def _hold(self, delivery: outbox.HookDelivery) -> None:
        await self._database.write(lambda tx: outbox.hold(tx, delivery, lease=LEASE))
