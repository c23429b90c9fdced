"""The request budget as the API client sees it: waits a little for its turn, on the shared log of grants."""

from __future__ import annotations

import asyncio

import structlog

from receiver.clock import Clock
from receiver.errors import ReaderPausedError
from receiver.store import budget
from receiver.store.engine import Database
from receiver.store.transaction import Transaction

log = structlog.get_logger("receiver.allowance")

PATIENCE = 2.0
"""Seconds to wait for a grant on the spot; for longer waits the work is put back and falls due then."""
COMMAND_PATIENCE = 90.0
"""The same for what a person or a program waits for: longer than any window of the budget."""
_LEARNED_FOR = 3600.0


class SharedAllowance:
    """`rpm`: the configured limit, None to go by the workspace's tier. `share`: the part of it that is ours."""

    def __init__(self, database: Database, clock: Clock, *, rpm: int | None, share: float) -> None:
        self._database = database
        self._clock = clock
        self._rpm = rpm
        self._share = share
        # First come, first served: pages asked for at once are granted in their order, so none is fetched that a later denial of
        # an earlier one makes useless.
        self._queues: dict[budget.Purpose, asyncio.Lock] = {purpose: asyncio.Lock() for purpose in budget.SHARES}

    async def acquire(self, purpose: budget.Purpose, *, lasts: float) -> budget.Granted:
        """Raises `ReaderPausedError`, saying for how long, if there is no turn soon enough."""
        until = self._clock.monotonic() + (COMMAND_PATIENCE if purpose == "command" else PATIENCE)
        async with self._queues[purpose]:
            return await self._acquire(purpose, lasts=lasts, until=until)

    async def _acquire(self, purpose: budget.Purpose, *, lasts: float, until: float) -> budget.Granted:
        while True:
            answer = await self._database.write(
                lambda tx: budget.acquire(tx, purpose, rpm=self._rpm, share=self._share, lasts=lasts)
            )
            if isinstance(answer, budget.Granted):
                return answer
            if self._clock.monotonic() + answer.wait > until:
                reason = answer.paused or "the request budget of this minute is used up"
                raise ReaderPausedError(reason, retry_after=answer.wait)
            await self._clock.sleep(max(answer.wait, 0.01))

    def per_minute(self, tx: Transaction) -> float:
        """Requests a minute that are ours."""
        return budget.allowed(tx, self._rpm) * self._share

    async def give_back(self, grant: budget.Granted) -> None:
        """Free the slot: no request is sent."""
        await self._database.write(lambda tx: budget.give_back(tx, grant))

    async def release(self, grant: budget.Granted, *, tally: str) -> None:
        """Free the slot a window from now."""
        await self._database.write(lambda tx: budget.release(tx, grant, tally=tally))

    async def pause(self, name: str, *, seconds: float, reason: str) -> None:
        """Hold every replica back. Said once for as long as the trouble lasts, however many meet it."""
        if await self._database.write(lambda tx: budget.pause(tx, name, seconds=seconds, reason=reason)):
            log.warning("reader_paused", cause=name, seconds=round(seconds, 1), hint=reason)

    async def learn_limit(self, rpm: int) -> None:
        """Believe it for an hour."""
        await self._database.write(lambda tx: budget.learn(tx, "learned", rpm=rpm, seconds=_LEARNED_FOR))
