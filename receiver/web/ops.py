"""What a platform asks: is it alive, is it ready, do a bounded pass of work; and the commands of a command line beside us."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.errors import ReceiverError, StoreError, UsageError
from receiver.store import budget, figures
from receiver.web.api import failure, guarded, read_json

if TYPE_CHECKING:
    from starlette.requests import Request

    from receiver.clock import Clock
    from receiver.settings import Settings
    from receiver.store.engine import Database
    from receiver.web.auth import Gate
    from receiver.web.keyring import Keyring

_READY_WITHIN = 3.0
_LONGEST_TICK = 900.0

Command = Callable[[dict[str, Any]], Awaitable[Any]]


class Ops:
    """`commands`: what may be asked for under `/internal/commands/NAME`, with a JSON object, answered by JSON."""

    def __init__(
        self,
        database: Callable[[], Database | None],
        *,
        gate: Gate,
        keyring: Keyring,
        settings: Settings,
        clock: Clock,
        tick: Callable[[float], Awaitable[dict[str, Any]]],
        commands: Mapping[str, Command],
    ) -> None:
        self._database = database
        self._gate = gate
        self._keyring = keyring
        self._settings = settings
        self._clock = clock
        self._tick = tick
        self._commands = commands

    def routes(self) -> list[Route]:
        """What it answers."""
        return [
            Route("/healthz", self.alive, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
            Route("/metrics", guarded(self._gate, self.metrics), methods=["GET"]),
            Route("/internal/tick", guarded(self._gate, self.tick), methods=["GET", "POST"]),
            Route("/internal/commands/{name}", guarded(self._gate, self.command), methods=["POST"]),
        ]

    async def alive(self, _: Request) -> Response:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """The schema is current (checked at start) and the database takes a write, now. Tells the accepted secrets in any case."""
        accepted = await self._keyring.told()
        try:
            store = self._database()
            if store is None:
                raise StoreError("the receiver is not started")
            async with asyncio.timeout(_READY_WITHIN):
                await store.write(lambda tx: budget.count(tx, "readiness checks"))
        except (ReceiverError, TimeoutError) as error:
            hint = str(error) or f"the database did not take a write within {_READY_WITHIN:g} s"
            return JSONResponse({"status": "unavailable", "reason": hint, **accepted}, status_code=503)
        return JSONResponse({"status": "ok", **accepted})

    async def metrics(self, _: Request) -> Response:
        """Figures of all replicas, for Prometheus."""
        from receiver.web import metrics  # noqa: PLC0415 - only who is scraped needs its library

        store = self._database()
        if store is None:
            raise StoreError("the receiver is not started")
        found = await store.read(lambda tx: figures.read(tx, rpm=self._settings.rpm))
        here = metrics.Here(share=self._settings.receiver_rpm_share, wall=self._clock.wall())
        return Response(metrics.render(found, here), media_type=metrics.CONTENT_TYPE)

    async def tick(self, request: Request) -> Response:
        """One bounded pass; `?budget=SECONDS`."""
        try:
            seconds = float(request.query_params.get("budget", "20"))
        except ValueError:
            seconds = -1.0
        if not 0 < seconds <= _LONGEST_TICK:
            raise UsageError(f"budget must be seconds, more than 0 and at most {_LONGEST_TICK:g}")
        return JSONResponse(await self._tick(seconds))

    async def command(self, request: Request) -> Response:
        """What a changing command asks of the process that holds the SQLite file."""
        command = self._commands.get(request.path_params["name"])
        if command is None:
            return failure(UsageError(f"no such command: {', '.join(sorted(self._commands))} are known"))
        return JSONResponse({"success": True, "data": await command(await read_json(request))})
