"""The sandbox as something to run: in a test, in a demo, or as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self

import uvicorn

from receiver.clock import Clock, SystemClock
from receiver.sandbox.app import build
from receiver.sandbox.engine import Engine
from receiver.sandbox.faults import Faults
from receiver.sandbox.ledger import Happening
from receiver.sandbox.markdown import require
from receiver.sandbox.options import OptionError
from receiver.sandbox.options import options as read_options
from receiver.sandbox.switches import SWITCHES
from receiver.sandbox.validation import MAX_SECRET, MIN_SECRET, secret_issue, web_url_issue, webhook_fields
from receiver.sandbox.webhooks import Hook
from receiver.sandbox.wire import watched

_ROUNDS: Final = 3
_LAST_PORT: Final = 65535
_GOODBYE: Final = 2
"""Seconds that answers under way get when the sandbox closes."""

_ELSEWHERE: Final = 0.05
"""Seconds between two looks at a condition that may depend on what happens outside the sandbox."""
_TICK: Final = 1.0
"""Seconds between two looks at the clock for the Date header."""


class Sandbox:
    """Reader on a loopback socket, for as long as the context lasts.

    Keywords are options (options.py: `seed`, `speed`, `rpm`, `page_errors`, …)
    and switches (switches.py: `lose`, `order`, …).
    `port` 0 takes a free one. `api_key` and `secret` (also `webhook_secret`) are made from the seed unless given.
    `webhook_url` registers a webhook for job.completed and job.failed, signed with `secret`.
    Raises `OptionError` or `FaultError` for what can't be had; entering it, `OSError` when the port is taken.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        api_key: str | None = None,
        secret: str | None = None,
        webhook_secret: str | None = None,
        webhook_url: str | None = None,
        clock: Clock | None = None,
        **settings: Any,
    ) -> None:
        self._address = (host, port)
        self._identity = {"api_key": api_key, "secret": _secret(secret, webhook_secret)}
        if not 0 <= port <= _LAST_PORT:
            raise OptionError(f"port: from 0 to {_LAST_PORT}, not {port!r}")
        if webhook_url is not None and (issue := web_url_issue(webhook_url)):
            raise OptionError(f"webhook_url: {issue}")
        self._webhook_url = webhook_url
        self._clock = clock
        switched = {name: settings.pop(name) for name in list(settings) if name in SWITCHES}
        self._options = read_options(**settings)
        if self._options.fetch != "off":
            require()
        self._faults = Faults(self._options.seed)
        self._faults.replace(switched)
        self._engine: Engine | None = None
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Bind, and serve in the running loop."""
        bound = _bind(*self._address)
        host, port = bound.getsockname()[:2]
        clock = self._clock or SystemClock()
        engine = Engine(self._options, **self._identity, faults=self._faults, clock=clock)
        engine.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        config = uvicorn.Config(
            build(engine),
            http=watched(engine.transports),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        self._engine, self._server = engine, _Server(config, engine.transports)
        self._serving = asyncio.create_task(self._server.serve([bound]))
        await self._server.ready.wait()
        if self._webhook_url is not None:
            self.register(self._webhook_url)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        """End the streams, close the connections, drop what was still to be delivered. The ledger stays."""
        assert self._server is not None
        assert self._serving is not None
        self.engine.closing.set()
        self.engine.director.close()
        await self.engine.close()
        self._server.leave.set()
        await self._serving

    @property
    def engine(self) -> Engine:
        """The parts inside, for tests of the sandbox itself. Raises `RuntimeError` before it was entered."""
        if self._engine is None:
            raise RuntimeError("the sandbox is not running: use it as `async with Sandbox() as reader:`")
        return self._engine

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        return self.engine.url

    @property
    def api_key(self) -> str:
        """The key it accepts."""
        return self.engine.key

    @property
    def secret(self) -> str:
        """The secret of webhooks made by `register` (others bring their own)."""
        return self.engine.secret

    @property
    def faults(self) -> Faults:
        """The switches: `reader.faults["lose"] = 0.5`, `del reader.faults["lose"]`, `.clear()`."""
        return self._faults

    @faults.setter
    def faults(self, settings: dict[str, Any]) -> None:
        self._faults.replace(settings)

    def ledger(self, since: float = 0) -> dict[str, Any]:
        """What truly happened, as `GET /sandbox/ledger` tells it."""
        return self.engine.report(since)

    def progress(self) -> dict[str, tuple[int, int]]:
        """How far each job truly is now: (completed, total). Cheap, unlike the ledger."""
        now = self.engine.now()
        views = {job_id: job.view(now) for job_id, job in self.engine.workspace.jobs.items()}
        return {job_id: (view.completed, view.total) for job_id, view in views.items()}

    def listen(self, listener: Callable[[Happening], None]) -> Callable[[], None]:
        """Be called with each request, delivery and change of a job; returns what to call to stop it."""
        return self.engine.ledger.listen(listener)

    def register(self, url: str, *events: str, secret: str | None = "", name: str = "sandbox") -> Hook:
        """Register a webhook as POST /v1/webhooks does; `secret` None: unsigned, empty: the sandbox's own.

        Raises `ApiError` as that does.
        """
        fields = {
            "url": url,
            "name": name,
            "events": list(events or ("job.completed", "job.failed")),
            "secret": self.secret if secret == "" else secret,
        }
        return self.engine.workspace.hooks.create(webhook_fields(fields, whole=True), self.engine.now())

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds; it is looked at again after each thing that happens here, and now and then."""
        while not condition():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ELSEWHERE):
                    await self.engine.ledger.pulse.next()

    async def settled(self) -> None:
        """Return once every job has ended and every delivery is through or given up."""
        await self.engine.ledger.pulse.until(self.engine.settled)


def _secret(secret: str | None, webhook_secret: str | None) -> str | None:
    """The one that is given, if Reader would take it. Raises `OptionError`."""
    if secret is not None and webhook_secret is not None:
        raise OptionError("secret: give it once, as secret or as webhook_secret")
    given = webhook_secret if secret is None else secret
    if given is not None and secret_issue(given):
        raise OptionError(f"secret: {MIN_SECRET} to {MAX_SECRET} characters, not {len(given)}")
    return given


class _Server(uvicorn.Server):
    """A server without a hand on the process: it says when it is ready, and leaves signals to who runs it."""

    def __init__(self, config: uvicorn.Config, transports: dict[tuple[str, int], asyncio.Transport]) -> None:
        super().__init__(config)
        self.transports = transports
        self.ready = asyncio.Event()
        self.leave = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        """Until it is to leave. The server's own looks ten times a second whether it should; an idle sandbox wakes up once."""
        while not self.leave.is_set():
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK):
                    await self.leave.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, let answers under way end, close. The server's own sleeps between two looks: tests are many."""
        for listening in (*self.servers, *(sockets or ())):
            listening.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if self.server_state.tasks:
            await asyncio.wait(set(self.server_state.tasks), timeout=_GOODBYE)
        for transport in list(self.transports.values()):
            transport.abort()
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)  # a connection is told in the loop's next round that it is lost

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, for asyncio switches Nagle's delay off only where it is told: it costs 40 ms an answer.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(2048)
    except OSError:
        bound.close()
        raise
    bound.setblocking(False)
    return bound
