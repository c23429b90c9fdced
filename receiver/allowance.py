"""The request budget as the API client sees it: waits a little for its turn, on the shared log of grants."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

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


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request that waits for its turn, and for how long it may run."""

    lasts: float
    grant: budget.Granted | None = None


class SharedAllowance:
    """`rpm`: the configured limit, None to go by the workspace's tier. `share`: the part of it that is ours.

    Requests that wait at the same moment share a transaction, as those do that end: a page costs less than two commits then.
    """

    def __init__(self, database: Database, clock: Clock, *, rpm: int | None, share: float) -> None:
        self._database = database
        self._clock = clock
        self._rpm = rpm
        self._share = share
        # First come, first served: pages asked for at once are granted in their order, so none is fetched that a later denial of
        # an earlier one makes useless.
        self._waiting: dict[budget.Purpose, deque[_Waiting]] = {purpose: deque() for purpose in budget.SHARES}
        self._granting: dict[budget.Purpose, asyncio.Lock] = {purpose: asyncio.Lock() for purpose in budget.SHARES}
        self._ended: list[tuple[budget.Granted, str]] = []
        self._releasing = asyncio.Lock()

    async def acquire(self, purpose: budget.Purpose, *, lasts: float) -> budget.Granted:
        """Raises `ReaderPausedError`, saying for how long, if there is no turn soon enough."""
        until = self._clock.monotonic() + (COMMAND_PATIENCE if purpose == "command" else PATIENCE)
        mine, waiting = _Waiting(lasts), self._waiting[purpose]
        waiting.append(mine)
        try:
            async with self._granting[purpose]:
                while mine.grant is None:
                    denied = await self._grant(purpose, waiting)
                    if mine in waiting and denied is not None:
                        if self._clock.monotonic() + denied.wait > until:
                            reason = denied.paused or "the request budget of this minute is used up"
                            raise ReaderPausedError(reason, retry_after=denied.wait)
                        await self._clock.sleep(max(denied.wait, 0.01))
            return mine.grant
        finally:
            if mine in waiting:
                waiting.remove(mine)

    async def _grant(self, purpose: budget.Purpose, waiting: deque[_Waiting]) -> budget.Denied | None:
        """Grant as many of those who wait as the budget allows, in their order; what the next one was told."""
        asked = list(waiting)

        def work(tx: Transaction) -> list[budget.Granted | budget.Denied]:
            answers: list[budget.Granted | budget.Denied] = []
            for one in asked:
                answers.append(budget.acquire(tx, purpose, rpm=self._rpm, share=self._share, lasts=one.lasts))
                if isinstance(answers[-1], budget.Denied):
                    break
            return answers

        for one, answer in zip(asked, await self._database.write(work), strict=False):
            if isinstance(answer, budget.Denied):
                return answer
            if one in waiting:
                one.grant = answer
                waiting.remove(one)
            else:  # it was broken off meanwhile
                await self.give_back(answer)
        return None

    def per_minute(self, tx: Transaction) -> float:
        """Requests a minute that are ours."""
        return budget.allowed(tx, self._rpm) * self._share

    async def give_back(self, grant: budget.Granted) -> None:
        """Free the slot: no request is sent."""
        await self._database.write(lambda tx: budget.give_back(tx, grant))

    async def release(self, grant: budget.Granted, *, tally: str) -> None:
        """Free the slot a window from now."""
        self._ended.append((grant, tally))
        async with self._releasing:
            ended, self._ended = self._ended, []
            if ended:
                await self._database.write(lambda tx: _release(tx, ended))

    async def pause(self, name: str, *, seconds: float, reason: str) -> None:
        """Hold every replica back. Said once for as long as the trouble lasts, however many meet it."""
        if await self._database.write(lambda tx: budget.pause(tx, name, seconds=seconds, reason=reason)):
            log.warning("reader_paused", cause=name, seconds=round(seconds, 1), hint=reason)

    async def learn_limit(self, rpm: int) -> None:
        """Believe it for an hour."""
        await self._database.write(lambda tx: budget.learn(tx, "learned", rpm=rpm, seconds=_LEARNED_FOR))


def _release(tx: Transaction, ended: list[tuple[budget.Granted, str]]) -> None:
    for grant, tally in ended:
        budget.release(tx, grant, tally=tally)
