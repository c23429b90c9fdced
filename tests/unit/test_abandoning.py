"""Throwing a reading away: what it stored goes, what is settled stays."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from receiver.store import jobs, results, settlement
from receiver.store.engine import Database
from receiver.store.outbox import Event
from receiver.store.transaction import Transaction
from tests.clock import EPOCH, FakeClock

pytestmark = pytest.mark.anyio


@pytest.fixture
def database(tmp_path: Path, clock: FakeClock) -> Iterator[Database]:
    with Database.open(f"sqlite:///{tmp_path}/receiver.db", clock) as database:
        yield database


def store(tx: Transaction, generation: int) -> None:
    results.put_chunks(tx, "job_1", generation, 0, [(0, results.compress(b'{"url":"a"}'))])
    row = results.Stored(position=0, page=0, url="a", error=None, digest=sha256(b"a").digest(), start=0, length=11)
    results.put_rows(tx, "job_1", generation, [row])


def settle(tx: Transaction, generation: int) -> None:
    jobs.track(tx, "job_1", source="track")
    job = jobs.claim(tx, owner="us", lease=60)
    assert job is not None
    jobs.save(tx, job, generation=generation, mark="completed - 1", state="hydrating")
    told: dict[str, Any] = {"status": "completed", "document": b"{}", "results": 1, "failed_urls": 0, "verified": True}
    times: dict[str, Any] = {"ended_at": None, "noticed_at": EPOCH, "settled_at": EPOCH}
    outcome = settlement.Outcome("job_1", generation, discovered_by="poll", requests=1, **told, **times)
    settlement.settle(tx, job, outcome, Event(f"evt_{generation}", "job_1", generation, "job.completed", EPOCH, "{}"))


async def test_a_reading_thrown_away_leaves_nothing(database: Database) -> None:
    await database.write(lambda tx: store(tx, 1))
    assert not await database.write(lambda tx: results.drop_some(tx, "job_1", 1))
    assert await database.read(lambda tx: results.read_rows(tx, "job_1", 1)) == []
    assert await database.read(lambda tx: results.read_slices(tx, "job_1", 1, skip=0, limit=10)) == []


async def test_a_settled_generation_cannot_be_thrown_away(database: Database) -> None:
    """A job that ran again and was then lost sight of has no reading to throw away, only what its event's handlers read."""
    await database.write(lambda tx: (store(tx, 1), settle(tx, 1)))
    assert not await database.write(lambda tx: results.drop_some(tx, "job_1", 1))
    assert await database.read(lambda tx: results.read_slices(tx, "job_1", 1, skip=0, limit=10)) == [b'{"url":"a"}']
