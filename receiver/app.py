"""The composition root: a `Receiver` is the ASGI app, the handlers, and the calls a program makes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from receiver import views
from receiver.clock import Clock, SystemClock
from receiver.core.delivery import JOB_ID
from receiver.core.signature import Verifier
from receiver.errors import (
    ReaderRefusedError,
    ReaderTooLargeError,
    ReaderUnavailableError,
    ReceiverError,
    SettingsError,
    UnknownJobError,
    UsageError,
)
from receiver.hooks.event import Result
from receiver.hooks.registry import Given, Registry
from receiver.runtime import Runtime, started
from receiver.settings import EventType, Settings, load
from receiver.store import jobs
from receiver.submitter import Request
from receiver.views import JobView
from receiver.web.api import Api, broken, unrouted
from receiver.web.auth import Gate
from receiver.web.ops import Ops
from receiver.web.webhook import WebhookEndpoint

if TYPE_CHECKING:
    from receiver.reader.client import ReaderClient


WEBHOOK = "/hooks/reader"


class _App(Starlette):
    """Takes deliveries on a short way: past routing and error pages, which cost more than all that the endpoint does."""

    def __init__(self, endpoint: ASGIApp, **options: Any) -> None:
        super().__init__(**options)
        self._endpoint = endpoint

    def build_middleware_stack(self) -> ASGIApp:
        whole, endpoint = super().build_middleware_stack(), self._endpoint
        if self.user_middleware:
            return whole  # it is meant for deliveries too

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
        self._clock = clock or SystemClock()
        self._handlers = Registry()
        self._runtime: Runtime | None = None
        self._own: AbstractAsyncContextManager[Runtime] | None = None

    def on(self, *events: EventType, name: str | None = None) -> Callable[[Given], Given]:
        """Register a function `(event, results)` for one or more event types: an async one, or a plain one, which runs in a thread.

        It runs at least once for each event; if it raises, it runs again later, for about a day. `results` iterates over every
        result of the event's own generation. `name` identifies it across restarts and replicas; by default its module and name do.
        """
        return self._handlers.on(*events, name=name)

    @cached_property
    def app(self) -> Starlette:
        """The ASGI app. Raises `SettingsError` if there is no secret to verify with.

        Mounted in another app, its own lifespan does not run: give that app `lifespan=receiver.lifespan`.
        """
        settings, gate = (
            self.settings,
            Gate([key.get_secret_value() for key in self.settings.receiver_api_keys]),
        )
        settings.require_secret()
        endpoint = WebhookEndpoint(
            lambda: self._runtime.ingest if self._runtime else None,
            verifier=Verifier(settings.secrets) if settings.secrets else None,
            allow_unsigned=settings.receiver_allow_unsigned,
            tolerance=settings.receiver_tolerance,
            max_body=settings.receiver_max_body,
            clock=self._clock,
        )
        api = Api(lambda: self._runtime.database if self._runtime else None, gate=gate, track=self._track)
        ops = Ops(
            lambda: self._runtime.database if self._runtime else None,
            gate=gate,
            tick=self._tick,
            commands={
                "submit": self._submit_command,
                "track": _on_job(self.track),
                "cancel": _on_job(self.cancel),
                "retry": _on_job(self.retry),
            },
        )
        app = _App(
            endpoint,
            routes=[Route(WEBHOOK, endpoint), *api.routes(), *ops.routes()],
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
    async def running(self, *, loops: bool = True, migrate: bool = False) -> AsyncIterator[Runtime]:
        """Started; with `loops`, reconciling and dispatching by itself. Nested, the outermost one counts.

        Raises `SettingsError`, `StoreError`, or `LockHeldError` if another process has the SQLite file.
        """
        if self._runtime is not None:
            yield self._runtime
            return
        async with started(self.settings, self._handlers, self._clock, loops=loops, migrate=migrate) as runtime:
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
        return await self._change(job_id, lambda reader: reader.cancel(job_id))

    async def retry(self, job_id: str) -> JobView:
        """Have Reader read a job's failed URLs again: its next end is a generation of its own, with an event of its own.

        Raises `ReaderRefusedError` if none failed, it has not ended or is unknown, `ReaderUnavailableError` if no answer came: it
        may be retried all the same.
        """
        return await self._change(job_id, lambda reader: reader.retry(job_id))

    async def job(self, job_id: str) -> JobView:
        """A job as it stands here. Raises `UnknownJobError`."""
        return await self._running.database.read(lambda tx: views.find(tx, job_id))

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

    async def _change(self, job_id: str, ask: Callable[[ReaderClient], Awaitable[Any]]) -> JobView:
        """Ask Reader for a change of a job, and look at what became of it."""
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
            await self._track(job_id)  # it ended before we knew
            raise
        except ReaderUnavailableError:
            await self._track(job_id)
            raise
        except ReaderTooLargeError as error:
            await self._track(job_id)
            raise ReaderUnavailableError(str(error)) from error
        return await self.track(job_id)

    async def _track(self, job_id: str) -> bool:
        _check(job_id)
        runtime = self._running
        new = bool(await runtime.database.read(lambda tx: jobs.unknown(tx, [job_id])))
        await runtime.database.write(lambda tx: jobs.track(tx, job_id, source="track"))
        runtime.wake("reconciler")
        return new

    async def _tick(self, seconds: float) -> dict[str, Any]:
        return await self._running.tick(seconds)

    async def _submit_command(self, body: dict[str, Any]) -> Any:
        job = await self.submit(body.get("urls") or [], crawl=bool(body.get("crawl")), options=body.get("options"))
        return job.document


def _on_job(change: Callable[[str], Awaitable[JobView]]) -> Callable[[dict[str, Any]], Awaitable[Any]]:
    """A command that names one job, and answers with it."""

    async def command(body: dict[str, Any]) -> Any:
        return (await change(str(body.get("id")))).document

    return command


def _check(job_id: str) -> None:
    if not JOB_ID.fullmatch(job_id):
        raise UsageError(f"{job_id!r} is not a job id: 1 to 128 of A-Z a-z 0-9 _ -")
