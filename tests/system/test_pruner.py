"""Retention as its users see it: what is old goes by itself, who asks for it is told so, and can have it again."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from reconcile_kit import World, world
from sqlalchemy import Table, func, select

from receiver.errors import ResultsPrunedError
from receiver.pruner import EVERY, KEYS_FOR, Pruner
from receiver.store import budget
from receiver.store.pruning import ROWS
from receiver.store.tables import deliveries, events, hook_deliveries, outcomes, results, seen, submissions

pytestmark = pytest.mark.anyio

DAY = 86400.0


async def count(w: World, table: Table) -> int:
    return await w.runtime.database.read(lambda tx: tx.execute(select(func.count()).select_from(table)).scalar_one())


async def ended(w: World, size: int = 3) -> str:
    """A job of ours that has ended, by webhook, and was told of."""
    job = (await w.receiver.submit(w.urls(size))).id
    await w.reader.settled()
    await w.rush(lambda: w.told_of(job))
    return job


async def later(w: World, seconds: float) -> None:
    """So much later, all is done that is due."""
    w.clock.turn(seconds)
    for _ in range(2):
        await w.runtime.tick(60)


def ask(w: World, path: str) -> httpx.Response:
    assert w.listening is not None
    return httpx.get(f"http://127.0.0.1:{w.listening[1]}{path}", trust_env=False)


async def asked(w: World, path: str) -> httpx.Response:
    return await asyncio.to_thread(ask, w, path)


async def test_after_retention_only_tombstones_are_left(tmp_path: Path) -> None:
    """The job and how it ended; neither what was sent, nor what was read, nor what was told."""
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False, settings={"receiver_retention": "30d"}) as w:
        job = await ended(w)
        await later(w, 29 * DAY)
        assert await count(w, results) == 3
        await later(w, 2 * DAY)
        for table in (deliveries, seen, results, events, hook_deliveries, submissions):
            assert await count(w, table) == 0, table.name
        found = await w.receiver.job(job)
        assert (found.status, found.results, found.pruned_at is not None) == ("completed", 3, True)


async def test_without_retention_only_dedupe_keys_go(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False) as w:
        job = await ended(w)
        await later(w, KEYS_FOR - 600)
        assert await count(w, seen) > 0
        await later(w, 2 * DAY)
        assert (await count(w, seen), await count(w, deliveries), await count(w, events)) == (0, 1, 1)
        await w.whole(job)


async def test_a_late_webhook_after_retention_tells_nothing_again(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False, settings={"receiver_retention": "1d"}) as w:
        job = await ended(w)
        await later(w, 9 * DAY)
        assert await count(w, events) == 0
        looks = len(w.looks(job))
        await w.deliver(job)
        await later(w, 60)
        assert len(w.looks(job)) == looks + 1
        assert (len(w.told_of(job)), await count(w, events), await count(w, results)) == (1, 0, 0)


async def test_who_asks_for_pruned_results_is_told_what_to_do(tmp_path: Path) -> None:
    """And the job is still listed, with what is known of it."""
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False, settings={"receiver_retention": "12h"}) as w:
        job = await ended(w)
        await later(w, 2 * DAY)
        answer = await asked(w, f"/v1/jobs/{job}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (410, "gone")
        assert f"`receiver track {job}` fetches them again" in answer.json()["error"]["message"]
        (listed,) = (await asked(w, "/v1/jobs?status=completed")).json()["data"]
        assert (listed["id"], listed["receiver"]["pruned"]) == (job, True)
        with pytest.raises(ResultsPrunedError, match="RECEIVER_RETENTION"):
            await w.rows(job)


@pytest.mark.slow
async def test_a_command_that_wants_pruned_results_fails_in_one_line(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False, settings={"receiver_retention": "12h"}) as w:
        job = await ended(w)
        await later(w, 2 * DAY)
        command = [sys.executable, "-m", "receiver", "results", job]
        environment = os.environ | {"RECEIVER_DATABASE_URL": w.settings["receiver_database_url"]}
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=pipe, stderr=pipe)
        out, err = await process.communicate()
        assert (process.returncode, out, err.count(b"\n")) == (1, b"", 1)
        assert f"receiver track {job}".encode() in err


@pytest.mark.slow
async def test_tracking_a_pruned_job_fetches_its_results_and_tells_nothing(tmp_path: Path) -> None:
    """With the least requests, and they stay for another span of retention."""
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False, settings={"receiver_retention": "12h"}) as w:
        job = await ended(w, 150)
        await later(w, 2 * DAY)
        looks = len(w.looks(job))
        await w.receiver.track(job)
        await later(w, 1)
        await w.whole(job)
        assert [look.limit for look in w.looks(job)[looks:]] == [100, 100]
        assert len(w.told_of(job)) == 1
        assert (await asked(w, f"/v1/jobs/{job}")).json()["pagination"]["total"] == 150
        await later(w, 11 * 3600)
        assert await count(w, results) == 150
        await later(w, 3600)
        assert (await count(w, results), len(w.looks(job))) == (0, looks + 2)


async def test_a_job_that_reader_has_forgotten_stays_a_tombstone(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False, settings={"receiver_retention": "12h"}) as w:
        job = await ended(w)
        await later(w, 2 * DAY)
        del w.reader.engine.workspace.jobs[job]
        await w.receiver.track(job)
        await later(w, 1)
        found = await w.receiver.job(job)
        assert (found.state, found.status, found.results, found.pruned_at is not None) == ("settled", "completed", 3, True)
        assert found.trouble


@pytest.mark.slow
async def test_a_crash_while_pruned_results_are_fetched_again(tmp_path: Path) -> None:
    """The next process goes on: they are whole, once, and nothing is told."""
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False, settings={"receiver_retention": "12h"}) as w:
        job = await ended(w, 250)
        await later(w, 2 * DAY)
        w.reader.faults = {"server_error": {"rate": 1, "match": "skip=100"}}
        await w.receiver.track(job)
        await w.runtime.tick(60)
        assert (await w.receiver.job(job)).state == "hydrating"
        await w.stop()
        w.reader.faults = {}
        await w.start(loops=False)
        await later(w, 1200)
        await w.whole(job)
        assert len(w.told_of(job)) == 1


async def test_a_handler_of_a_pruned_event_is_not_called_for_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A replay that comes too late fails, and says why."""
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False, settings={"receiver_retention": "12h"}) as w:
        job = await ended(w)
        replayed: dict[str, Any] = {"state": "pending", "delivered_at": None, "attempts": 0}

        def prune_and_replay(tx: Any) -> None:
            tx.execute(outcomes.update().values(pruned_at=tx.now))
            tx.execute(hook_deliveries.update().values(**replayed, due_at=tx.now))

        await w.runtime.database.write(prune_and_replay)
        await w.runtime.tick(60)
        row = await w.runtime.database.read(lambda tx: tx.execute(select(hook_deliveries)).one())
        assert (row.state, row.attempts) == ("dead", 1)
        assert f"receiver track {job}" in row.last_error
        assert len(w.told_of(job)) == 1


def pruner(w: World, owner: str, retention: float = 12 * 3600.0) -> Pruner:
    return Pruner(w.runtime.database, w.clock, owner=owner, retention=retention, tolerance=300)


async def all_of(one: Pruner) -> int:
    done = 0
    while await one.run_once():
        done += 1
    return done


async def with_old_deliveries(w: World, parts: int) -> None:
    """So many that they go in so many parts."""
    old = {"received_at": w.clock.wall() - DAY, "outcome": "ignored", "body": b"{}"}
    await w.runtime.database.write(lambda tx: tx.execute(deliveries.insert(), [old] * (parts * ROWS)))


async def test_one_process_prunes_for_all(tmp_path: Path) -> None:
    """Whoever began a pass ends it; the next pass is anybody's, after a while; one who stopped midway is replaced."""
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False) as w:
        one, other = pruner(w, "one"), pruner(w, "other")
        await with_old_deliveries(w, 5)
        assert await one.run_once()
        assert await other.next_due() == pytest.approx(EVERY, abs=5)
        assert not await other.run_once()
        assert await one.run_once()
        w.clock.turn(EVERY)  # frozen meanwhile
        assert await other.run_once()
        assert not await one.run_once(), "it has lost the lead"
        assert await all_of(other) == 2
        assert await count(w, deliveries) == 0


async def test_a_pass_that_is_over_is_followed_by_a_rest(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False) as w:
        one = pruner(w, "one")
        await with_old_deliveries(w, 1)
        assert await all_of(one) == 1
        await with_old_deliveries(w, 1)
        assert not await one.run_once()
        assert await one.next_due() == pytest.approx(EVERY, abs=5)
        w.clock.turn(EVERY)
        assert await one.run_once()


async def test_many_at_once_in_one_process_prune_once(tmp_path: Path) -> None:
    """A tick repeats each service by several workers."""
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False) as w:
        one = pruner(w, "one")
        await with_old_deliveries(w, 5)
        assert sum(await asyncio.gather(*[one.run_once() for _ in range(8)])) == 1
        assert await count(w, deliveries) == 4 * ROWS


async def test_what_was_pruned_is_logged_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False, settings={"receiver_retention": "12h"}) as w:
        await ended(w)
        await w.runtime.database.write(lambda tx: budget.count(tx, "readiness checks"))
        capsys.readouterr()
        await later(w, 3 * DAY)
        logged = capsys.readouterr().out
        assert "pruned" in logged
        assert "results=3" in logged
        assert 'receiver_pruned_total{of="results"} 3.0' in (await asked(w, "/metrics")).text


@pytest.mark.slow
async def test_the_loop_prunes_by_itself(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, settings={"receiver_retention": "1s"}) as w:
        job = (await w.receiver.submit(w.urls(1))).id
        await w.event(job)
        async with asyncio.timeout(20):
            while (await w.receiver.job(job)).pruned_at is None:
                w.clock.turn(EVERY)
                w.runtime.wake("pruner")
                await asyncio.sleep(0.05)
