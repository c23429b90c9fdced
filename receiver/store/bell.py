"""A bell between replicas (PostgreSQL's NOTIFY): a hurry-up, and nothing but that.

What is due stands in the tables, and whoever hears nothing finds it at the next round. It rings apart from the transactions that
make work due, and a few times a second at most: within them it would line all commits up, each waiting for the other's disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress

import psycopg
import structlog
from psycopg import sql
from sqlalchemy import func, select

from receiver.clock import Clock
from receiver.core.backoff import backoff
from receiver.errors import StoreError
from receiver.store.engine import Database
from receiver.store.postgresql import Line

_QUIET = 0.25
"""Seconds between two rings of one replica, whatever happens meanwhile."""
_PROVED_WITHIN = 10.0
"""Seconds in which one that listens has heard itself. Behind a transaction pooler it never does: LISTEN belongs to a session."""
_STOPS_WITHIN = 1.0

log = structlog.get_logger("receiver.store")


class Bell:
    """See the module. `heard` is called with each name that another replica rang."""

    def __init__(self, database: Database, line: Line, clock: Clock, *, heard: Callable[[str], None]) -> None:
        self._database = database
        self._line = line
        self._clock = clock
        self._owner = clock.token(64)
        self._heard = heard
        self._wanted: set[str] = set()
        self._rung = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._failures = 0
        self._told = False
        self.hears = False
        """Whether it is known to hear others now."""

    def start(self, *, listens: bool) -> None:
        """Begin; with `listens`, on a connection of its own."""
        self._tasks = [asyncio.create_task(self._keep_ringing())]
        if listens:
            self._tasks.append(asyncio.create_task(self._keep_listening()))

    def ring(self, name: str) -> None:
        """Have the others hear `name`, soon. Costs next to nothing: deliveries are answered meanwhile."""
        self._wanted.add(name)
        self._rung.set()

    async def stop(self) -> None:
        """Ring what is still to be rung, if that can be done quickly."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOPS_WITHIN):
                await self._ring()

    async def _keep_ringing(self) -> None:
        while True:
            await self._rung.wait()
            await self._ring()
            await self._clock.sleep(_QUIET)

    async def _ring(self) -> None:
        self._rung.clear()
        names, self._wanted = self._wanted, set()
        if not names:
            return
        note = func.pg_notify(self._line.channel, " ".join([self._owner, *sorted(names)]))
        with suppress(StoreError):  # they find it by themselves, a little later
            await self._database.write(lambda tx: tx.execute(select(note)))

    async def _keep_listening(self) -> None:
        while True:
            patience = 60.0
            try:
                await self._listen()
            except TimeoutError:
                patience = 3600.0  # a pooler seldom goes away
                self._note_deaf("nothing is heard through this connection, as behind a transaction pooler")
            except (psycopg.Error, OSError) as error:
                self._note_deaf(str(error).splitlines()[0] if str(error) else type(error).__name__)
            self.hears = False
            self._failures += 1
            await self._clock.sleep(backoff(self._failures, base=0.5, cap=patience, chance=self._clock.chance()))

    async def _listen(self) -> None:
        """Until the connection ends. Raises `TimeoutError` if what we ring ourselves does not come back."""
        async with await self._line.connect() as connection:
            await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._line.channel)))
            self.ring("proof")  # over another connection: only one that truly listens hears it
            async with aclosing(connection.notifies(timeout=_PROVED_WITHIN)) as notes:
                async for note in notes:
                    if self._take(note):
                        break
                else:
                    await connection.execute("UNLISTEN *")  # else whoever gets this session next would listen
                    raise TimeoutError
            self._note_hearing()
            async for note in connection.notifies():
                self._take(note)

    def _take(self, note: psycopg.Notify) -> bool:
        """Pass on what another rang; whether it was ourselves."""
        owner, _, names = note.payload.partition(" ")
        if owner == self._owner:
            return True
        for name in names.split():
            self._heard(name)
        return False

    def _note_hearing(self) -> None:
        self.hears = True
        self._failures = 0
        if self._told:
            log.info("replicas_heard")
        self._told = False

    def _note_deaf(self, reason: str) -> None:
        """Told once, for as long as it lasts."""
        if not self._told:
            log.warning("replicas_not_heard", hint=f"{reason}; what other replicas make due is found within 5 s all the same")
        self._told = True
