"""Who follows a page, and goes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from receiver.clock import SystemClock
from receiver.store.engine import Database
from receiver.web.dashboard.live import Live


@pytest.mark.anyio
async def test_a_viewer_who_goes_while_waiting_leaves_nothing_that_waits(tmp_path: Path) -> None:
    """A task that is forgotten while it waits would be complained of in the log, for each tab that is closed."""
    database = Database.open(f"sqlite:///{tmp_path}/receiver.db", SystemClock(), migrate=True)
    live = Live(lambda _, topic: topic, SystemClock())
    shown = asyncio.Event()

    async def view() -> None:
        async for piece in live.follow(database, "jobs", until=asyncio.Event()):
            if b"version" in piece:
                shown.set()

    before = asyncio.all_tasks()
    viewer = asyncio.create_task(view())
    await shown.wait()
    await asyncio.sleep(0)  # it waits for the next one by now
    polling = live._poller
    viewer.cancel()
    await asyncio.wait({viewer})
    await asyncio.sleep(0)
    left = asyncio.all_tasks() - before - {polling}
    assert polling is not None
    polling.cancel()
    database.close()
    assert left == set()
