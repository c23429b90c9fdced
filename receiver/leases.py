"""Keeping a lease for as long as the work takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from receiver.clock import Clock


@asynccontextmanager
async def lease_kept(clock: Clock, seconds: float, renew: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Call `renew` three times within a lease of `seconds`; if it raises, the body is cancelled and that is raised."""

    async def renewing() -> None:
        while True:
            await clock.sleep(seconds / 3)
            await renew()

    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(renewing())
            yield
            task.cancel()
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
