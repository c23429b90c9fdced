"""The dispatcher: brings events from the outbox to their hooks, at least once, until they are delivered or given up.

Each hook has a lane of its own, with workers of its own: one that is slow, hangs or is dead takes nothing from another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from receiver import tracing
from receiver.attempting import Attempting
from receiver.core.delivering import Persistence
from receiver.desk import Desk
from receiver.errors import LeaseLostError, StoreError
from receiver.leases import lease_kept
from receiver.store import outbox

if TYPE_CHECKING:
    from receiver.clock import Clock
    from receiver.hooks.target import Hook
    from receiver.store.engine import Database
    from receiver.store.hook_health import Change
    from receiver.store.hook_queue import Attempt

LEASE = 60.0
_TRIES, _PATIENCE = 5, 0.5
"""Times we try to write how an attempt ended, and seconds between them: what is not written is done again."""

_CLOSE_WITHIN = 1.0

log = structlog.get_logger("receiver.dispatcher")


class Dispatcher:
    """The lanes of the hooks this process serves: its Python handlers, and the configured ones."""

    def __init__(
        self, database: Database, clock: Clock, *, owner: str, hooks: Iterable[Hook], policy: Persistence | None = None
    ) -> None:
        self._database = database
        served = {hook.name: hook for hook in hooks}
        self.lanes = {
            name: Lane(database, clock, hook, owner=owner, policy=policy or Persistence()) for name, hook in served.items()
        }

    async def declare(self) -> None:
        """Make the hooks known, so that events settled from now on, here or elsewhere, are kept for them."""
        hooks = [lane.hook for lane in self.lanes.values()]
        declared = [outbox.Declaration(h.name, h.kind, h.target.place, h.events) for h in hooks]
        await self._database.write(lambda tx: outbox.declare(tx, declared, all_configured=True))

    async def next_due(self) -> float | None:
        """Seconds until there is something to do on any lane; None: not until an event comes."""
        due = await asyncio.gather(*(lane.next_due() for lane in self.lanes.values()))
        return min((wait for wait in due if wait is not None), default=None)

    async def close(self) -> None:
        """Wait until what was done is written, but not for a database that does not answer: then it is done again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_WITHIN):
                await asyncio.gather(*(lane.close() for lane in self.lanes.values()))


class Lane:
    """What waits for one hook. `hook.slots` workers are of use."""

    def __init__(self, database: Database, clock: Clock, hook: Hook, *, owner: str, policy: Persistence) -> None:
        self.hook = hook
        self._database = database
        self._clock = clock
        self._policy = policy
        self._desk = Desk(database, hook.name, owner=owner, lease=LEASE, policy=policy, changed=self._changed)
        self._slots = asyncio.Semaphore(hook.slots)

    async def run_once(self) -> bool:
        """Deliver the one longest due; False if none is. Broken off, it gives it back."""
        async with self._slots:
            leased = await self._desk.claim()
            if leased is None:
                return False
            with (
                structlog.contextvars.bound_contextvars(event_id=leased.event.id, hook=leased.hook),
                tracing.span(
                    "hook", leased.event.job_id, hook=leased.hook, event=leased.event.id, attempt=leased.attempts + 1
                ) as told,
            ):
                attempting = Attempting(
                    self._database, self._clock, self.hook, leased, policy=self._policy, changed=self._changed
                )
                attempt = None
                try:
                    async with lease_kept(self._clock, LEASE, lambda: attempting.hold(lease=LEASE)):
                        attempt = await attempting.make()
                        told.update({"receiver.outcome": attempt.outcome, "receiver.status": attempt.status})
                        if not attempting.is_written:
                            await self._finish(attempt)
                    _tell(attempt)
                except LeaseLostError as error:
                    log.warning("lease_lost", hint=str(error))
                except StoreError as error:
                    log.error("store_failed", hint=str(error))  # noqa: TRY400 - the hint is the whole story
                except asyncio.CancelledError:
                    # How an attempt ended is written all the same. A plain function cannot be broken off: its thread goes on, and
                    # nobody else should begin with the event meanwhile, so the lease of our own handlers is left to run out.
                    if attempt is None and self.hook.kind != "python":
                        await self._desk.give_back(leased, begun=True)
                    raise
        return True

    async def next_due(self) -> float | None:
        """Seconds until there is something to do; None: not until an event comes."""
        return await self._desk.next_due()

    async def close(self) -> None:
        """Wait until what was done is written."""
        await self._desk.close()

    async def _finish(self, attempt: Attempt) -> None:
        for _ in range(_TRIES - 1):
            with suppress(StoreError):
                await self._desk.finish(attempt)
                return
            await self._clock.sleep(_PATIENCE)
        await self._desk.finish(attempt)

    def _changed(self, change: Change) -> None:
        if change.to == "paused":
            hint = f"{change.why}; it is probed now and then, and `receiver hooks resume {self.hook.name}` resumes it at once"
            log.error("hook_paused", hook=self.hook.name, hint=hint)
        else:
            log.info("hook_resumed", hook=self.hook.name, hint=change.why)


def _tell(attempt: Attempt) -> None:
    number = attempt.delivery.attempts + 1
    if attempt.outcome == "delivered":
        log.info("delivered", attempt=number, status=attempt.status, ms=round(attempt.seconds * 1000))
    elif attempt.outcome == "later":
        log.info("put_off", again_in=round(attempt.wait, 1), hint=attempt.error)
    elif attempt.outcome == "dead":
        log.error("dead_letter", attempts=number, hint=attempt.error)
    else:
        log.warning("hook_failed", attempt=number, again_in=round(attempt.wait, 1), hint=attempt.error)
