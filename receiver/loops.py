"""The resident loop: repeats a service's `run_once`, sleeps until there is something to do, and stops well."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import structlog

from receiver.errors import ReceiverError

if TYPE_CHECKING:
    from receiver.clock import Clock

_LONGEST_NAP = 5.0
"""Seconds: how late work can be found that another replica made due, with nobody to wake us."""
_SHORTEST_NAP = 0.05
_AFTER_TROUBLE = 1.0
_UNWIND = 0.4
"""Seconds for cancelled work to put away what it holds."""
_CANCELLATIONS = 3

log = structlog.get_logger("receiver.loops")


class Service(Protocol):
    """A unit of work at a time."""

    async def run_once(self) -> bool:
        """Do one; False if there was none to do."""
        ...

    async def next_due(self) -> float | None:
        """Seconds until there is one; None: not until somebody wakes us."""
        ...


class Loop:
    """Some workers repeating one service. `wake` tells that something fell due just now."""

    def __init__(self, name: str, service: Service, clock: Clock, *, workers: int) -> None:
        self._name = name
        self._service = service
        self._clock = clock
        self._workers = workers
        self._woken = asyncio.Event()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin. Needs a running event loop."""
        self._tasks = [asyncio.create_task(self._work(), name=f"{self._name}-{n}") for n in range(self._workers)]

    def wake(self) -> None:
        """Look for work at once."""
        self._woken.set()

    async def stop(self, *, within: float) -> None:
        """Let what is under way finish for `within` seconds, then break it off: it is made so that it can go on later."""
        self._stopping = True
        self._woken.set()
        if not self._tasks:
            return
        tasks, self._tasks = self._tasks, []  # asked again, it is done: what did not end by now does not soon
        _, late = await asyncio.wait(tasks, timeout=within)
        await _break_off(late)

    async def _work(self) -> None:
        while not self._stopping:
            try:
                worked = await self._service.run_once()
                nap = 0.0 if worked else await self._nap()
            except ReceiverError as error:
                log.warning("loop_trouble", loop=self._name, hint=str(error))
                nap = _AFTER_TROUBLE
            except Exception:
                # A defect in one unit of work must not end the loop that serves all others.
                log.exception("loop_trouble", loop=self._name)
                nap = _AFTER_TROUBLE
            if nap:
                await self._sleep(nap)
            else:
                self._woken.set()  # where one was due, more may be

    async def _nap(self) -> float:
        due = await self._service.next_due()
        return _LONGEST_NAP if due is None else min(max(due, _SHORTEST_NAP), _LONGEST_NAP)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return
        if not self._stopping:  # who is still at work is to find it set
            self._woken.clear()


async def run_dry(services: Sequence[Service], *, workers: int, until: float, clock: Clock) -> int:
    """Repeat `services` until nothing is due or the monotonic time `until` is reached; how many units were done.

    What is under way by then is broken off, and goes on from there in the next pass.
    """
    work = _Pass(until, clock, workers=workers * len(services))
    tasks = {asyncio.create_task(work.repeat(service)) for service in services for _ in range(workers)}
    try:
        ended, late = await asyncio.wait(tasks, timeout=max(until - clock.monotonic(), 0.0))
    except asyncio.CancelledError:
        await _break_off(tasks)
        raise
    await _break_off(late)
    for task in ended:
        error = task.exception()
        if isinstance(error, ReceiverError):
            log.warning("tick_trouble", hint=str(error))
        elif error is not None:
            raise error
    return work.done


class _Pass:
    """One bounded pass. Whoever finds nothing looks again once another has done something: it may have made work for all.

    So nobody waits for one that takes its time. It is over when all have looked in vain since the last that was done.
    """

    def __init__(self, until: float, clock: Clock, *, workers: int) -> None:
        self._until = until
        self._clock = clock
        self._looking = workers
        self._resting = 0
        self._news = asyncio.Event()
        self.done = 0

    async def repeat(self, service: Service) -> None:
        """What one worker does."""
        try:
            while self._clock.monotonic() < self._until:
                if await service.run_once():
                    self.done += 1
                    self._rouse()
                elif not await self._rest():
                    return
        finally:
            self._looking -= 1
            if not self._looking:
                self._news.set()

    async def _rest(self) -> bool:
        """Wait until there may be more to do; False if nobody is left who could make it."""
        news = self._news
        self._looking -= 1
        self._resting += 1
        if not self._looking:
            news.set()
        await news.wait()
        if self._news is news:
            self._looking += 1
            return False
        return True

    def _rouse(self) -> None:
        # They count as looking from now on: else the last one at work could believe that all the others are done.
        self._looking += self._resting
        self._resting = 0
        news, self._news = self._news, asyncio.Event()
        news.set()


async def _break_off(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel them, again if need be: what they put away as they end may itself wait for a database that does not answer."""
    left = tasks
    for _ in range(_CANCELLATIONS):
        if not left:
            break
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_UNWIND)
    for task in tasks - left:
        if not task.cancelled():
            task.exception()  # looked at: nobody needs to hear of it any more
