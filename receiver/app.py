"""The composition root: a `Receiver` is the ASGI app, the handlers, and the calls a program makes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from receiver import hook_commands, views
from receiver.clock import Clock, SystemClock
from receiver.core.delivery import JOB_ID
from receiver.errors import (
    ReaderRefusedError,
    ReaderTooLargeError,
    ReaderUnavailableError,
    ReceiverError,
    SettingsError,
    UnknownHookError,
    UnknownJobError,
    UsageError,
)
from receiver.hook_commands import Replay, Trial
from receiver.hooks.event import Result
from receiver.hooks.registry import Given, Registry
from receiver.runtime import Runtime, started
from receiver.settings import EventType, Settings, load
from receiver.store import history, jobs
from receiver.store.hook_log import HookRow
from receiver.store.replay import Selection
from receiver.submitter import Request
from receiver.views import JobView
from receiver.web.api import Api, broken, unrouted
from receiver.web.auth import Gate
from receiver.web.dashboard.site import Dashboard
from receiver.web.keyring import Keyring
from receiver.web.ops import Ops
from receiver.web.webhook import WEBHOOK, WebhookEndpoint

if TYPE_CHECKING:
    from receiver.reader.client import ReaderClient
    from receiver.store.transaction import Transaction


class _App(Starlette):
    """Takes deliveries on a short way: past routing and error pages, which cost more than all that the endpoint does."""

    target = WEBHOOK.encode()

    def __init__(self, endpoint: WebhookEndpoint, **options: Any) -> None:
        super().__init__(**options)
        self._endpoint = endpoint

    @property
    def endpoint(self) -> WebhookEndpoint | None:
        """For a connection that knows the way there itself; None where there is middleware, which is meant for deliveries too."""
        return None if self.user_middleware else self._endpoint

    def build_middleware_stack(self) -> ASGIApp:
        whole, endpoint = super().build_middleware_stack(), self.endpoint
        if endpoint is None:
            return whole

        def either(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            is_delivery = scope["type"] == "http" and scope["path"] == scope.get("root_path", "") + WEBHOOK
            return (endpoint if is_delivery else whole)(scope, receive, send)

        return either


class Receiver:
    """The webhook endpoint for Reader's jobs, and what hangs on their ends.

    `app` is its ASGI app; its lifespan starts and stops everything. A script that serves nothing uses it as an async context
    manager instead. `settings` come from the environment and `receiver.toml` unless they are given.

    Raises `SettingsError` for settings that cannot be.
    """

    def __init__(self, settings: Settings | None = None, *, clock: Clock | None = None) -> None:
        self.settings = load() if settings is None else settings
        self.keyring = Keyring(self.settings.secrets)
        self._clock = clock or SystemClock()
        self._handlers = Registry()
        self._runtime: Runtime | None = None
        self._own: AbstractAsyncContextManager[Runtime] | None = None

    def on(
        self, *events: EventType, name: str | None = None, timeout: float | None = None, concurrency: int = 8
    ) -> Callable[[Given], Given]:
        """Register a function `(event, results)` for one or more event types: an async one, or a plain one, which runs in a thread.

        It runs at least once for each event; if it raises, it runs again later, for about a day. `results` iterates over every
        result of the event's own generation. `name` identifies it across restarts and replicas; by default its module and name do.

        A call that has not ended after `timeout` seconds is given up, and made again later; by default it may take as long as it
        likes. `concurrency`: how many events it may be called with at the same time, in one process.
        """
        return self._handlers.on(*events, name=name, timeout=timeout, concurrency=concurrency)

    @cached_property
    def app(self) -> Starlette:
        """The ASGI app. Raises `SettingsError` if there is no secret to verify with.

        Mounted in another app, its own lifespan does not run: give that app `lifespan=receiver.lifespan`.
        """
        gate = Gate([key.get_secret_value() for key in self.settings.receiver_api_keys])
        endpoint = WebhookEndpoint.of(
            self.settings,
            lambda: self._runtime.ingest if self._runtime else None,
            keyring=self.keyring,
            clock=self._clock,
            count=self._count,
        )
        api = Api(lambda: self._runtime.database if self._runtime else None, gate=gate, track=self._track)
        ops = Ops(
            lambda: self._runtime.database if self._runtime else None,
            gate=gate,
            keyring=self.keyring,
            settings=self.settings,
            clock=self._clock,
            tick=self._tick,
            commands={
                "submit": self._submit_command,
                "track": _on_job(self.track),
                "cancel": _on_job(self.cancel),
                "retry": _on_job(self.retry),
                "hooks": self._hooks_command,
                "hook-deliveries": self._hook_deliveries_command,
                "hook-pause": _on_hook(self.pause_hook),
                "hook-resume": _on_hook(self.resume_hook),
                "hook-test": _on_hook(self.test_hook),
                "replay": self._replay_command,
                "reprocess": self._reprocess_command,
            },
        )
        dashboard = Dashboard(
            lambda: self._runtime.database if self._runtime else None,
            settings=self.settings,
            gate=gate,
            clock=self._clock,
            acts={
                "look": self.track,
                "cancel": self.cancel,
                "retry": self.retry,
                "replay": lambda job: self.replay(job=job),
            },
            hook_acts={
                "pause": self.pause_hook,
                "resume": self.resume_hook,
                "replay": lambda hook: self.replay(dead=True, hook=hook),
            },
            stopping=lambda: self._runtime.stopping if self._runtime else None,
        )
        app = _App(
            endpoint,
            routes=[Route(WEBHOOK, endpoint), *api.routes(), *ops.routes(), *dashboard.routes()],
            lifespan=self.lifespan,
            exception_handlers={HTTPException: unrouted, Exception: broken},
        )
        app.router.redirect_slashes = False  # a redirect would lose the body, and looks like success to no sender
        return app

    @asynccontextmanager
    async def lifespan(self, _: Any = None) -> AsyncIterator[None]:
        """Start, and stop: the lifespan of `app`, or of an app that this one is mounted in."""
        async with self.running(loops=self.settings.receiver_loops):
            yield

    @asynccontextmanager
    async def running(self, *, loops: bool = True, migrate: bool = False, declares: bool = True) -> AsyncIterator[Runtime]:
        """Started; with `loops`, reconciling and dispatching by itself. Nested, the outermost one counts.

        Without `declares` the hooks of others are left as they are: a process that knows of none would have them retired.

        Raises `SettingsError`, `StoreError`, or `LockHeldError` if another process has the SQLite file.
        """
        if self._runtime is not None:
            yield self._runtime
            return
        async with started(
            self.settings, self._handlers, self._clock, loops=loops, migrate=migrate, declares=declares
        ) as runtime:
            self._runtime = runtime
            try:
                yield runtime
            finally:
                self._runtime = None

    async def __aenter__(self) -> Self:
        self._own = self.running()
        await self._own.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        own, self._own = self._own, None
        if own is not None:
            await own.__aexit__(kind, error, trace)

    async def submit(
        self, urls: Sequence[str] | str, *, crawl: bool = False, options: Mapping[str, Any] | None = None
    ) -> JobView:
        """Hand a batch of URLs, or a crawl from one, to Reader, and track the job.

        It is written down before the request leaves, so a crash in between loses nothing. `options` are further members of
        `POST /v1/read`, such as `formats` or `maxPages`.

        Raises `UsageError` or `ReaderRefusedError` if the job is not to be had, `ReaderUnavailableError` if it will be sent
        later.
        """
        runtime = self._running
        if runtime.submitter is None:
            self.settings.require_api_key()
        assert runtime.submitter is not None
        await runtime.learn_tier()  # else the first submits of a new workspace would wait for the lowest tier's turns
        request = Request([urls] if isinstance(urls, str) else list(urls), crawl=crawl, options=options)
        try:
            job = await runtime.submitter.submit(request)
        finally:
            runtime.wake("submitter")
        runtime.wake("reconciler")
        return await self.job(job.id)

    async def track(self, job_id: str) -> JobView:
        """Make a job known that was started elsewhere, and look at it now. Raises `UsageError` for what is no job id."""
        await self._track(job_id)
        return await self.job(job_id)

    async def cancel(self, job_id: str) -> JobView:
        """Have Reader cancel a job. What it has gathered by then is read, and its end told, as of any other.

        Raises `ReaderRefusedError` if it has ended already or is unknown, `ReaderUnavailableError` if no answer came: it may be
        cancelled all the same.
        """
        return await self._change("cancel", job_id, lambda reader: reader.cancel(job_id))

    async def retry(self, job_id: str) -> JobView:
        """Have Reader read a job's failed URLs again: its next end is a generation of its own, with an event of its own.

        Raises `ReaderRefusedError` if none failed, it has not ended or is unknown, `ReaderUnavailableError` if no answer came: it
        may be retried all the same.
        """
        return await self._change("retry", job_id, lambda reader: reader.retry(job_id))

    async def pause_hook(self, name: str) -> HookRow:
        """Bring nothing to a hook until it is resumed; its events wait. Raises `UsageError` if there is none."""
        return await hook_commands.pause(self._running.database, name)

    async def resume_hook(self, name: str) -> HookRow:
        """Bring a paused hook what has waited for it. Raises `UsageError` if there is none."""
        found = await hook_commands.resume(self._running.database, name)
        self._running.wake("dispatcher")
        return found

    async def test_hook(self, name: str) -> Trial:
        """Send a configured hook an event that tells of nothing, and see what it says. Raises `UsageError` for any other."""
        lanes = self._running.dispatcher.lanes
        if name not in lanes:
            raise UnknownHookError.of(name, sorted(lanes))
        return await hook_commands.test(lanes[name].hook, self._clock)

    async def replay(
        self,
        *,
        event: str | None = None,
        job: str | None = None,
        dead: bool = False,
        since: float | None = None,
        hook: str | None = None,
        dry_run: bool = False,
    ) -> Replay:
        """Have events delivered again, under the ids they had: one, those of a job, all that are dead, or all `since` (Unix seconds).

        `hook`: to this one alone. `dry_run`: only count. Raises `UsageError`.
        """
        runtime = self._running
        chosen = Selection(event, job, dead, since, hook)
        done = await hook_commands.replay(runtime.database, self._clock, chosen, dry_run=dry_run)
        if not dry_run:
            runtime.wake("dispatcher")
        return done

    async def job(self, job_id: str) -> JobView:
        """A job as it stands here. Raises `UnknownJobError`."""
        return await self._running.database.read(lambda tx: views.find(tx, job_id))

    async def reprocess(self) -> dict[str, int]:
        """Read the quarantined deliveries once more: how many are `accepted`, `ignored` or still `quarantined` now."""
        return await self._running.ingest.reprocess()

    async def wait_for_job(self, job_id: str, *, timeout: float | None = None) -> JobView:  # noqa: ASYNC109 - part of the interface, as in Reader's own client
        """Wait until a job has ended and all its results are stored: by webhook or by poll, whichever is first.

        Raises `TimeoutError` after `timeout` seconds, `ReceiverError` if the job is parked. An unknown job is tracked.
        """
        runtime = self._running
        try:
            await self.job(job_id)
        except UnknownJobError:
            await self._track(job_id)
        async with asyncio.timeout(timeout):
            while True:
                async with runtime.settled:
                    job = await self.job(job_id)
                    if job.ended:
                        return job
                    if job.state == "parked":
                        raise ReceiverError(f"job {job_id} is parked: {job.trouble}")
                    try:
                        # Not only when told: another replica may settle it.
                        async with asyncio.timeout(1.0):
                            await runtime.settled.wait()
                    except TimeoutError:
                        continue

    async def results(self, job_id: str, *, generation: int | None = None) -> AsyncIterator[Result]:
        """Every result of a job, from the store, in order. By default of its newest settled generation.

        Raises `UnknownJobError`, and `ResultsPrunedError` where they are kept no longer.
        """
        job = await self.job(job_id)
        async for result in views.decoded_results(self._running.database, job_id, generation or job.generation):
            yield result

    @property
    def _running(self) -> Runtime:
        if self._runtime is None:
            raise SettingsError("the receiver is not started: serve its app, or use `async with receiver:`")
        return self._runtime

    async def _change(self, name: str, job_id: str, ask: Callable[[ReaderClient], Awaitable[Any]]) -> JobView:
        """Ask Reader for a change of a job, named so in its history, and look at what became of it."""
        _check(job_id)
        runtime = self._running
        if runtime.reader is None:
            self.settings.require_api_key()
        assert runtime.reader is not None
        try:
            await ask(runtime.reader)
        except ReaderRefusedError as error:
            if error.code != "conflict":
                raise
            await self._track(job_id, name)  # it ended before we knew
            raise
        except ReaderUnavailableError:
            await self._track(job_id, name)
            raise
        except ReaderTooLargeError as error:
            await self._track(job_id, name)
            raise ReaderUnavailableError(str(error)) from error
        await self._track(job_id, name)
        return await self.job(job_id)

    async def _track(self, job_id: str, wish: str = "look") -> bool:
        _check(job_id)
        runtime = self._running

        def work(tx: Transaction) -> None:
            jobs.track(tx, job_id, source="track")
            history.note(tx, job_id, "asked", wish=wish)

        new = bool(await runtime.database.read(lambda tx: jobs.unknown(tx, [job_id])))
        await runtime.database.write(work)
        runtime.wake("reconciler")
        return new

    def _count(self, label: str, seconds: float | None) -> None:
        if self._runtime is not None:
            self._runtime.tally.note(label, seconds)

    async def _tick(self, seconds: float) -> dict[str, Any]:
        return await self._running.tick(seconds)

    async def _replay_command(self, body: dict[str, Any]) -> Any:
        names = ("event", "job", "dead", "since", "hook", "dry_run")
        try:
            chosen = msgspec.convert({name: body[name] for name in names if body.get(name) is not None}, _ReplayBody)
        except msgspec.ValidationError as error:
            raise UsageError(f"replay: {error}") from None
        return asdict(await self.replay(**msgspec.structs.asdict(chosen)))

    async def _hooks_command(self, _: dict[str, Any]) -> Any:
        return {"hooks": [asdict(row) for row in await hook_commands.listed(self._running.database)]}

    async def _hook_deliveries_command(self, body: dict[str, Any]) -> Any:
        try:
            chosen = msgspec.convert({name: value for name, value in body.items() if value is not None}, _DeliveriesBody)
        except msgspec.ValidationError as error:
            raise UsageError(f"hook-deliveries: {error}") from None
        found = await hook_commands.deliveries(self._running.database, **msgspec.structs.asdict(chosen))
        return {"deliveries": [asdict(each.delivery) | {"log": [asdict(row) for row in each.log]} for each in found]}

    async def _reprocess_command(self, _: dict[str, Any]) -> Any:
        return await self.reprocess()

    async def _submit_command(self, body: dict[str, Any]) -> Any:
        job = await self.submit(body.get("urls") or [], crawl=bool(body.get("crawl")), options=body.get("options"))
        return job.document


class _DeliveriesBody(msgspec.Struct):
    """Which deliveries may be asked for."""

    hook: str | None = None
    event: str | None = None
    state: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 20


class _ReplayBody(msgspec.Struct):
    """What may be asked to be replayed."""

    event: str | None = None
    job: str | None = None
    dead: bool = False
    since: float | None = None
    hook: str | None = None
    dry_run: bool = False


def _named(body: dict[str, Any], member: str) -> str:
    named = body.get(member)
    if not isinstance(named, str) or not named:
        raise UsageError(f'say which one, such as {{"{member}": "…"}}')
    return named


def _on_hook(do: Callable[[str], Awaitable[HookRow | Trial]]) -> Callable[[dict[str, Any]], Awaitable[Any]]:
    """A command that names one hook, and answers with what became of it."""

    async def command(body: dict[str, Any]) -> Any:
        return asdict(await do(_named(body, "name")))

    return command


def _on_job(change: Callable[[str], Awaitable[JobView]]) -> Callable[[dict[str, Any]], Awaitable[Any]]:
    """A command that names one job, and answers with it."""

    async def command(body: dict[str, Any]) -> Any:
        return (await change(_named(body, "id"))).document

    return command


def _check(job_id: str) -> None:
    if not JOB_ID.fullmatch(job_id):
        raise UsageError(f"{job_id!r} is not a job id: 1 to 128 of A-Z a-z 0-9 _ -")
