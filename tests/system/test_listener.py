"""The workspace stream: a third signal, that alone is enough, and beside a webhook costs nothing."""

from pathlib import Path

import pytest
from reconcile_kit import World, world

from tests.loopback import answering, serving

pytestmark = pytest.mark.anyio

LISTENING = {"receiver_listen": True}


def _streams(w: World) -> int:
    return sum(row["path"] == "/v1/events" and row["status"] == 200 for row in w.reader.ledger()["requests"])


async def _listening(w: World, times: int = 1) -> None:
    await w.reader.until(lambda: _streams(w) >= times)


@pytest.mark.slow
async def test_a_job_that_nobody_wrote_down_is_found_by_the_stream_alone(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.3, lose=1.0, settings=LISTENING) as w:
        await _listening(w)
        job = await w.elsewhere(250)
        told = await w.event(job)
        await w.whole(job)
        assert told.event.discovered_by == "stream"
        assert [look.skip for look in w.looks(job)] == [0, 100, 200]


async def test_stream_and_webhook_together_cost_one_reading(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.3, settings=LISTENING) as w:
        await _listening(w)
        jobs = [await w.elsewhere(150) for _ in range(5)]
        for job in jobs:
            await w.event(job)
        await w.reader.settled()
        last = await w.elsewhere(1)
        await w.event(last)
        assert [[look.skip for look in w.looks(job)] for job in jobs] == [[0, 100]] * 5
        assert {told.event.discovered_by for told in w.told} == {"webhook"}


@pytest.mark.slow
async def test_a_stream_that_breaks_is_followed_again(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.3, lose=1.0, settings=LISTENING, stream_cut={"rate": 1, "times": 1}) as w:
        await _listening(w)
        await w.elsewhere(1)
        await _listening(w, 2)
        job = await w.elsewhere(3)
        assert (await w.event(job)).event.discovered_by == "stream"


@pytest.mark.slow
async def test_a_retry_elsewhere_is_heard_of_without_its_webhook(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.3, lose=1.0, settings=LISTENING) as w:
        await _listening(w)
        job = await w.elsewhere(3, query="?sandbox=error-once")
        await w.event(job)
        w.clock.turn(120)
        await w.retry(job)
        count = 1
        while (await w.event(job, count)).event.generation != 2:
            count += 1  # the first one may be told again: its lease ended in the time that was turned
        assert {told.event.generation for told in w.told_of(job)} == {1, 2}


async def test_a_workspace_without_a_stream_is_asked_for_it_once_an_hour(tmp_path: Path) -> None:
    """However often its loop looks whether there is work: each time would be one request less for everything else."""
    refusal = answering(404, b'{"success": false, "error": {"code": "not_found", "message": "no such thing"}}')
    async with serving(refusal) as elsewhere:
        settings = {**LISTENING, "reader_base_url": elsewhere.url}
        async with world(tmp_path, seed=1, loops=False, settings=settings) as w:
            assert w.runtime.listener is not None
            for turn, asked in ((0.0, 1), (5.0, 1), (60.0, 1), (3600.0, 2), (5.0, 2)):
                w.clock.turn(turn)
                await w.runtime.listener.run_once()
                assert len(elsewhere.asked) == asked


async def test_without_the_setting_nobody_listens(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1) as w:
        await w.event(await w.elsewhere(1))
        assert _streams(w) == 0
