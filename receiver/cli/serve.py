"""`serve`, `tick`, `migrate`: running it."""

from __future__ import annotations

import asyncio
import gc
import importlib
import resource
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from signal import SIGINT, SIGTERM
from types import ModuleType
from typing import Annotated

import structlog
import typer
import uvicorn

from receiver.app import Receiver
from receiver.cli.common import ask, emit
from receiver.cli.workers import Worker, supervise
from receiver.clock import SystemClock
from receiver.errors import ReceiverError, SettingsError, StoreError, UsageError
from receiver.logs import configure
from receiver.settings import Settings, load
from receiver.store.engine import Database
from receiver.store.lock import LockHeldError
from receiver.web.connections import http_protocol

log = structlog.get_logger("receiver")


def serve(
    target: Annotated[str | None, typer.Argument(metavar="[MODULE:RECEIVER]", help="Your module, and its Receiver.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="Processes that share the port. More than one needs PostgreSQL.")
    ] = 1,
) -> int:
    """Serve the webhook endpoint, reconcile and dispatch."""
    configure(load().receiver_log)
    with closing(_listen(host, port)) as listening:
        worker = supervise(workers, listening, SystemClock()) if workers > 1 else None
        if isinstance(worker, int):
            return worker  # the exit code of who watched
        receiver = _find(target)
        _check(receiver.settings, workers)
        _allow_files()
        config = uvicorn.Config(
            receiver.app,
            lifespan="off",  # started here, so that what is wrong is one line and not a traceback
            http=http_protocol(),
            ws="none",  # there is none here: a request that asks for one is a request like any other
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # who a peer is decides whether it may read without a key
            timeout_graceful_shutdown=3,
        )
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_serve(receiver, _Server(config), listening, worker))
    return 0


def _check(settings: Settings, workers: int) -> None:
    settings.require_secret()
    if workers > 1 and settings.receiver_database_url.startswith("sqlite"):
        raise SettingsError(
            f"--workers {workers} needs PostgreSQL, because only one process may write to an SQLite file: "
            "set RECEIVER_DATABASE_URL=postgresql://…, or leave --workers out"
        )


async def _serve(receiver: Receiver, server: _Server, listening: socket.socket, worker: Worker | None) -> None:
    address, port = listening.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(address, f"[{address}]" if ":" in address else address)  # noqa: S104 - compared, not bound
    url = f"http://{reachable}:{port}"
    server.end_when_told(worker)  # from here on, so that a signal during the start ends it well too
    try:
        running = receiver.running(loops=receiver.settings.receiver_loops)
        runtime = await running.__aenter__()
    except StoreError as error:
        raise SettingsError(str(error)) from error
    try:
        if runtime.database.lock is not None:
            runtime.database.lock.announce(url)
        if receiver.settings.reader_api_key is None:
            log.warning("no_api_key", hint="READER_API_KEY is not set: deliveries are stored, and their jobs wait")
        log.info("listening", url=url, webhook=f"{url}/hooks/reader")
        if worker is not None:
            worker.ready()
        server.beside, server.give_up = runtime.quiesce, runtime.ingest.give_up
        gc.freeze()  # what is here by now stays: no collection need walk over it while deliveries wait
        await server.serve(sockets=[listening])
    finally:
        await running.__aexit__(None, None, None)
    log.info("stopped")


class _Server(uvicorn.Server):
    """A server that ends by returning: uvicorn's own raises the signal again, before we have closed what we opened.

    `beside`: what else takes its time to end, while the last requests are answered. `give_up`: what is done of what then is not.
    """

    beside: Callable[[], Awaitable[None]]
    give_up: Callable[[], None]

    def end_when_told(self, worker: Worker | None) -> None:
        """By a signal; a worker by the one that watches alone, and by its end."""
        loop = asyncio.get_running_loop()
        for number in (SIGTERM, SIGINT) if worker is None else (SIGTERM,):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        if worker is not None:

            def alone() -> None:
                loop.remove_reader(worker.lifeline)
                self.handle_exit(SIGTERM, None)

            loop.add_reader(worker.lifeline, alone)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.gather(super().shutdown(sockets), self.beside())
        self.give_up()
        for connection in self.server_state.connections:
            if give_up := getattr(connection, "give_up", None):
                give_up()
        if self.server_state.tasks:  # cancelled by now, with a word to say to whoever waits
            await asyncio.wait(self.server_state.tasks, timeout=1)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _allow_files() -> None:
    """As many as we may have: each connection is one, and the customary first limit, 1,024, is an idle crowd's to use up."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError):  # macOS calls its limit infinite, and does not give that
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=2048)
        # uvloop does this by itself; without it, Nagle's delay would cost each answer 40 ms.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]
        raise ReceiverError(f"cannot listen on {host} port {port} ({why}): choose another with --host and --port") from error


def _find(target: str | None) -> Receiver:
    """The Receiver that `MODULE:NAME` names; without it, one with settings from the environment."""
    if target is None:
        return Receiver()
    module_name, _, name = target.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise UsageError(f"{module_name!r} is no name of a module: give MODULE:RECEIVER, such as app:receiver")
    module = _import(module_name)
    found = getattr(module, name or "receiver", None)
    if not isinstance(found, Receiver):
        raise UsageError(
            f"{module_name} has no Receiver named {name or 'receiver'!r}: give MODULE:RECEIVER, such as app:receiver"
        )
    return found


def _import(name: str) -> ModuleType:
    """The user's module. What it raises is theirs to see, without the way that led there through us."""
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ReceiverError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in {name, name.partition(".")[0]}:
            raise UsageError(f"there is no module {name!r} here: give MODULE:RECEIVER, such as app:receiver") from error
        if isinstance(error, SyntaxError) and error.filename is not None and Path(error.filename).is_file():
            where = f"{error.filename} line {error.lineno or 1}"
            raise UsageError(f"{where} cannot be read ({type(error).__name__}: {error.msg})") from error
        theirs = error.__traceback__
        while theirs is not None and theirs.tb_frame.f_code.co_filename.startswith(_NOT_THEIRS):
            theirs = theirs.tb_next
        traceback.print_exception(type(error), error, theirs)
        raise ReceiverError(f"the module {name} cannot be imported ({type(error).__name__}): see the traceback above") from error


_NOT_THEIRS = (__file__, importlib.__file__, "<frozen importlib.")


def tick(
    target: Annotated[str | None, typer.Argument(metavar="[MODULE:RECEIVER]", help="Your module, and its Receiver.")] = None,
    budget: Annotated[float, typer.Option(min=0.1, max=900, help="Seconds it may take.")] = 20.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, as it does anyway.")] = False,  # noqa: ARG001 - every command takes it
) -> None:
    """Reconcile and dispatch what is due, once, within a time; print a JSON summary. For cron and serverless.

    Where a server holds the SQLite file, it does the pass.
    """
    configure(load().receiver_log)
    receiver = _find(target)

    async def run() -> dict[str, object]:
        try:
            async with receiver.running(loops=False) as runtime:
                return await runtime.tick(budget)
        except LockHeldError as error:
            if error.holder.url is None:
                raise
            return await ask(receiver.settings, error.holder.url, f"tick?budget={budget:g}", {}, within=budget + 30)

    receiver.settings.require_api_key()
    emit(asyncio.run(run()))


def migrate() -> None:
    """Bring the database's schema to this release's."""
    Database.of(load(), SystemClock(), migrate=True).close()
    print("the schema is current")
