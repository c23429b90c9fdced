"""A started receiver: the open database, the client, the services, and the loops that repeat them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from receiver import tracing
from receiver.allowance import SharedAllowance
from receiver.auditor import Auditor
from receiver.core.addresses import AllowList
from receiver.core.delivering import Persistence
from receiver.core.retrying import Policy
from receiver.dispatcher import Dispatcher
from receiver.errors import ReaderError, SettingsError, StoreError
from receiver.hooks.configured import configured
from receiver.hooks.python import PythonTarget
from receiver.hooks.target import Hook
from receiver.ingest import Ingest
from receiver.listener import LEAD, Listener
from receiver.loops import Loop, Service, run_dry
from receiver.packing import unpack
from receiver.pruner import Pruner
from receiver.reader.client import ReaderClient
from receiver.reader.shapes import RPM_BY_TIER
from receiver.reconciler import Reconciler
from receiver.store import budget, jobs, leadership
from receiver.store.bell import Bell
from receiver.store.engine import Database
from receiver.submitter import Submitter
from receiver.tally import Tally

if TYPE_CHECKING:
    from receiver.clock import Clock
    from receiver.core.schedule import Outlook
    from receiver.hooks.registry import Registry
    from receiver.settings import Settings
    from receiver.store.transaction import Transaction

WORKERS = 8
"""Jobs reconciled at once by one process; in a bounded pass, also events of one hook delivered at once."""
DRAIN = 3.0
"""Seconds that work under way may take to finish when we are asked to stop."""
_ALONE = ("auditor", "listener", "pruner", "submitter", "tally")
"""Loops with one worker."""
_TIER_FOR = 24 * 3600.0
_TIER_WITHIN = 10.0

log = structlog.get_logger("receiver")


@dataclass(slots=True)
class Runtime:
    """What there is while it runs. Without an API key there is nobody to ask: deliveries are stored, and wait."""

    settings: Settings
    database: Database
    clock: Clock
    ingest: Ingest
    dispatcher: Dispatcher
    pruner: Pruner
    reconciler: Reconciler | None
    submitter: Submitter | None
    listener: Listener | None
    auditor: Auditor | None
    reader: ReaderClient | None
    settled: asyncio.Condition
    tally: Tally
    learning: asyncio.Lock = field(default_factory=asyncio.Lock)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it is to end: whoever follows something for as long as it lasts lets go."""
    loops: dict[str, list[Loop]] = field(default_factory=dict)
    """By what they are woken by: each hook has one of its own, and all of them are the dispatcher's."""
    bell: Bell | None = None
    telling: set[asyncio.Task[None]] = field(default_factory=set)

    def wake(self, name: str) -> None:
        """Have a loop look for work at once, here and at every other replica, wherever it runs."""
        self.wake_here(name)
        if self.bell is not None:
            self.bell.ring(name)

    def hear(self, name: str) -> None:
        """Another replica has work for this loop."""
        self.wake_here(name)
        if name == "dispatcher":  # a job was settled there
            self.tell_settled()

    def tell_settled(self) -> None:
        """Have whoever waits for a job look at it."""

        async def tell() -> None:
            async with self.settled:
                self.settled.notify_all()

        task = asyncio.create_task(tell())
        self.telling.add(task)
        task.add_done_callback(self.telling.discard)

    def wake_here(self, name: str) -> None:
        """Have loops look for work at once, if they run here."""
        for loop in self.loops.get(name, ()):
            loop.wake()

    async def quiesce(self) -> None:
        """Begin no more work by itself, and let go of what is under way. Done at the end anyway, if not before."""
        self.stopping.set()
        # Nobody waits for a stream to end.
        loops = [(0.0 if name == "listener" else DRAIN, loop) for name, loops in self.loops.items() for loop in loops]
        await asyncio.gather(*(loop.stop(within=within) for within, loop in loops))

    async def tick(self, seconds: float) -> dict[str, Any]:
        """One bounded pass over all that is due; what was done."""
        began = self.clock.monotonic()
        until = began + seconds
        await self.learn_tier()
        there = (self.submitter, self.auditor, self.reconciler, *self.dispatcher.lanes.values(), self.pruner, self.tally)
        services: list[Service] = [service for service in there if service is not None]
        done = await run_dry(services, workers=WORKERS, until=until, clock=self.clock)
        due = [await service.next_due() for service in services]
        left = any(wait is not None and wait <= 0 for wait in due)
        return {"done": done, "more": left, "seconds": round(self.clock.monotonic() - began, 3)}

    async def learn_tier(self) -> None:
        """Ask once a day what the workspace's tier allows, unless it is configured."""
        if self.reader is None or self.settings.rpm is not None:
            return
        async with self.learning:
            if not await self.database.read(budget.knows_tier):
                await self._ask_tier(self.reader)

    async def _ask_tier(self, reader: ReaderClient) -> None:
        try:
            async with asyncio.timeout(_TIER_WITHIN):
                tier = (await reader.credits()).get("tier")
        except (ReaderError, TimeoutError) as error:
            log.warning("tier_unknown", hint=f"{error}; going by the lowest limit, 10 requests a minute")
            return
        rpm = RPM_BY_TIER.get(str(tier).lower())
        if rpm is not None:
            await self.database.write(lambda tx: budget.learn(tx, "tier", rpm=rpm, seconds=_TIER_FOR))


@asynccontextmanager
async def started(
    settings: Settings, handlers: Registry, clock: Clock, *, loops: bool, migrate: bool = False, declares: bool = True
) -> AsyncIterator[Runtime]:
    """Open everything; close it in the opposite order. Raises `SettingsError`, `StoreError` or `LockHeldError`."""
    async with AsyncExitStack() as stack:
        stack.enter_context(tracing.started(clock))
        database = await asyncio.to_thread(Database.of, settings, clock, migrate=migrate)
        stack.push_async_callback(asyncio.to_thread, database.close)
        runtime = await _build(settings, handlers, clock, database, stack)
        if declares:
            await runtime.dispatcher.declare()
        if database.line is not None:
            runtime.bell = Bell(database, database.line, clock, heard=runtime.hear)
            stack.push_async_callback(runtime.bell.stop)
            runtime.bell.start(listens=loops)
        if loops:
            for name, service in _services(runtime).items():
                runtime.loops[name] = [Loop(name, service, clock, workers=1 if name in _ALONE else WORKERS)]
            lanes = runtime.dispatcher.lanes.values()
            runtime.loops["dispatcher"] = [Loop(lane.hook.name, lane, clock, workers=lane.hook.slots) for lane in lanes]
            stack.push_async_callback(runtime.quiesce)
            for loops_of in runtime.loops.values():
                for loop in loops_of:
                    loop.start()
            learning = asyncio.create_task(_keep_learning(runtime))
            stack.push_async_callback(_cancelled, learning)
        yield runtime


async def _build(settings: Settings, handlers: Registry, clock: Clock, database: Database, stack: AsyncExitStack) -> Runtime:
    owner = clock.token(64)
    hooks = _hooks(settings, handlers, clock)
    for hook in hooks:
        await stack.enter_async_context(hook.target)
    persistence = Persistence(
        settings.receiver_hook_attempts,
        settings.receiver_hook_backoff,
        settings.receiver_hook_pause_after,
        settings.receiver_hook_probe,
    )
    dispatcher = Dispatcher(database, clock, owner=owner, hooks=hooks, policy=persistence)
    stack.push_async_callback(dispatcher.close)
    settled = asyncio.Condition()
    reader, reconciler, submitter, listener, auditor = None, None, None, None, None
    runtime: Runtime

    def on_settled(_: str) -> None:
        runtime.wake("dispatcher")
        runtime.tell_settled()

    if settings.reader_api_key is not None:
        allowance = SharedAllowance(database, clock, rpm=settings.rpm, share=settings.receiver_rpm_share)
        key = settings.require_api_key()

        def outlook(tx: Transaction) -> Outlook:
            stream_up = settings.receiver_listen and leadership.led(tx, LEAD)
            return jobs.outlook(tx, budget=allowance.per_minute(tx), stream_up=stream_up)

        reader = await stack.enter_async_context(ReaderClient(settings.reader_base_url, key, allowance=allowance, clock=clock))
        reconciler = Reconciler(
            database,
            reader,
            clock,
            owner=owner,
            outlook=outlook,
            on_settled=on_settled,
            public_url=settings.receiver_public_url,
            stalled_after=settings.receiver_stalled_after,
            retrying=Policy(settings.receiver_retry_failed, settings.receiver_retry_credits, waits=settings.receiver_retry_waits),
        )
        submitter = Submitter(database, reader, clock, owner=owner, webhook=_webhook(settings), outlook=outlook)
        if settings.receiver_listen:
            listener = Listener(database, reader, clock, owner=owner, on_cue=lambda: runtime.wake("reconciler"))
        if settings.receiver_public_url is not None:
            auditor = Auditor(
                database, reader, clock, url=_endpoint(settings.receiver_public_url), on_cue=lambda: runtime.wake("reconciler")
            )
        # A pause for want of a working key or of credits: whoever starts us again may have seen to it.
        for name in ("unauthenticated", "insufficient_credits"):
            await database.write(lambda tx, name=name: budget.resume(tx, name))  # type: ignore[misc]
    tally = Tally(database, clock)
    stack.push_async_callback(tally.close)
    ingest = Ingest(database, clock, on_cue=lambda: runtime.wake("reconciler"))
    pruner = Pruner(database, clock, owner=owner, retention=settings.receiver_retention, tolerance=settings.receiver_tolerance)
    runtime = Runtime(
        settings, database, clock, ingest, dispatcher, pruner, reconciler, submitter, listener, auditor, reader, settled, tally
    )
    return runtime


def _hooks(settings: Settings, handlers: Registry, clock: Clock) -> list[Hook]:
    ours = [
        Hook(h.name, "python", h.events, PythonTarget(h.name, h.handler, decode=unpack, timeout=h.timeout), h.slots)
        for h in handlers.all()
    ]
    try:
        allowed = AllowList.of(settings.receiver_hook_allow)
    except ValueError as error:
        raise SettingsError(f"RECEIVER_HOOK_ALLOW: {error}") from None
    theirs = [configured(hook, clock, allowed=allowed) for hook in settings.receiver_hooks]
    if both := sorted({hook.name for hook in ours} & {hook.name for hook in theirs}):
        raise SettingsError(f"RECEIVER_HOOKS: {', '.join(both)} is also the name of a Python handler")
    return ours + theirs


def _webhook(settings: Settings) -> dict[str, Any] | None:
    """What to ask Reader to tell when a job ends, where it is known how to reach us."""
    if settings.receiver_public_url is None or not settings.secrets:
        return None
    url = _endpoint(settings.receiver_public_url)
    return {"url": url, "events": ["job.completed", "job.failed"], "secret": settings.secrets[0]}


def _endpoint(public_url: str) -> str:
    return f"{public_url}/hooks/reader"


def _services(runtime: Runtime) -> dict[str, Service]:
    named = {
        "listener": runtime.listener,
        "auditor": runtime.auditor,
        "submitter": runtime.submitter,
        "reconciler": runtime.reconciler,
        "pruner": runtime.pruner,
        "tally": runtime.tally,
    }
    return {name: service for name, service in named.items() if service is not None}


async def _keep_learning(runtime: Runtime) -> None:
    while True:
        try:
            await runtime.learn_tier()
        except StoreError as error:
            log.warning("tier_unknown", hint=str(error))
        await runtime.clock.sleep(3600.0)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
