"""The listener: follows Reader's workspace stream, and makes the jobs due that it tells of.

It needs no webhook and no probe to learn of an end within a second, and it is the only place where jobs become known that nobody
wrote down. One process listens for all. What is missed while nobody listens is not told again: the schedule finds it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import structlog

from receiver.core.backoff import backoff
from receiver.core.delivery import JOB_ID
from receiver.errors import LeaseLostError, ReaderError, ReaderRefusedError, ReaderUnavailableError
from receiver.leases import lease_kept
from receiver.store import history, jobs, leadership

if TYPE_CHECKING:
    from collections.abc import Callable

    from receiver.clock import Clock
    from receiver.reader.client import ReaderClient
    from receiver.reader.stream import News
    from receiver.store.engine import Database
    from receiver.store.transaction import Transaction

LEAD = leadership.STREAM
"""The lease whose holder listens; held only while the stream is open."""
LEASE = 30.0
"""Seconds."""
_OTHER_LEADS = 5.0
"""Seconds after which one that does not listen looks whether the one that does is still there."""
_REFUSED = 3600.0
"""Seconds until a stream that this workspace does not have is asked for again."""
SWEEP = 60.0
"""Seconds within which every job under way is looked at after the stream has ended."""
_SECOND, _MOST = 1.0, 10_000
"""How often progress of one job is taken in, and of how many jobs that is remembered."""
_STEADY = 60.0
"""Seconds that a stream lived after which its end is no trouble, and the next attempt the first."""

log = structlog.get_logger("receiver.listener")


class Listener:
    """See the module. `on_cue` is called after a commit that made a job due."""

    def __init__(self, database: Database, reader: ReaderClient, clock: Clock, *, owner: str, on_cue: Callable[[], None]) -> None:
        self._database = database
        self._reader = reader
        self._clock = clock
        self._owner = owner
        self._on_cue = on_cue
        self._failures = 0
        self._rests_until = -math.inf
        self._opened = False
        self._heard: dict[str, float] = {}

    async def run_once(self) -> bool:
        """Listen until the stream ends, if nobody else does. False: then rest for a while."""
        if self._rest() > 0:
            return False  # a loop asks more often, in case that work has come
        if not await self._lead():
            self._rest_for(_OTHER_LEADS)
            return False
        await self._sweep()  # where the database did not take it when the last stream ended
        began = self._clock.monotonic()
        try:
            async with lease_kept(self._clock, LEASE, self._keep):
                await self._listen()
            reason = "Reader closed it"
        except (ReaderError, LeaseLostError) as error:
            reason = str(error)
            rest = self._after(error, lived=self._clock.monotonic() - began)
        else:
            rest = self._after(None, lived=self._clock.monotonic() - began)
        finally:
            await self._database.write(lambda tx: leadership.resign(tx, LEAD, owner=self._owner))
        self._rest_for(rest)
        await self._sweep()
        log.warning("stream_ended", again_in=round(rest, 1), hint=reason)
        return False

    async def next_due(self) -> float | None:
        """Seconds until the next attempt to listen."""
        return max(self._rest(), 0.0)

    def _rest(self) -> float:
        """Seconds left of it."""
        return self._rests_until - self._clock.monotonic()

    def _rest_for(self, seconds: float) -> None:
        self._rests_until = self._clock.monotonic() + seconds

    async def _sweep(self) -> None:
        """Ends may be missed once a stream is over, and the schedule had counted on being told of them."""
        if self._opened:
            await self._database.write(lambda tx: jobs.sweep(tx, within=SWEEP))
            self._opened = False

    async def _listen(self) -> None:
        async with self._reader.events() as news:
            self._opened = True
            log.info("stream_open")
            async for told in news:
                if JOB_ID.fullmatch(told.job_id) and (told.ended or self._is_news(told.job_id)):
                    await self._take(told)

    async def _take(self, told: News) -> None:
        def work(tx: Transaction) -> bool:
            is_cue = jobs.overheard(tx, told.job_id, ended=told.ended, completed=told.completed)
            if is_cue:
                history.note(tx, told.job_id, "heard", ended=told.ended)
            return is_cue

        if await self._database.write(work):
            self._on_cue()

    def _is_news(self, job_id: str) -> bool:
        """Whether nothing was heard of it this second: a job tells of each page it reads."""
        now = self._clock.monotonic()
        if now < self._heard.get(job_id, 0.0) + _SECOND:
            return False
        if len(self._heard) >= _MOST:
            self._heard.clear()
        self._heard[job_id] = now
        return True

    async def _lead(self) -> bool:
        return await self._database.write(lambda tx: leadership.lead(tx, LEAD, owner=self._owner, seconds=LEASE))

    async def _keep(self) -> None:
        if not await self._lead():
            raise LeaseLostError("another process listens to the stream by now")

    def _after(self, error: Exception | None, *, lived: float) -> float:
        if isinstance(error, ReaderRefusedError):
            return _REFUSED
        asked = error.retry_after if isinstance(error, ReaderUnavailableError) else None
        self._failures = 0 if lived >= _STEADY else self._failures + 1
        own = backoff(self._failures, base=1.0, cap=120.0, chance=self._clock.chance())
        return max(own, asked or 0.0)
