"""Cues that come too seldom, too often, too early, or for jobs that nobody knows."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from reconcile_kit import Hourglass, World, least, world

from receiver.reconciler import KNOWN_LOOKS, LOOKS
from receiver.store import jobs as store_jobs

pytestmark = pytest.mark.anyio

DAY = 24 * 3600.0


async def test_jobs_whose_webhooks_are_all_lost_are_recovered(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.3, speed=10, lose=1.0) as w:
        jobs = [(await w.receiver.submit(w.urls(size))).id for size in (1, 101, 250)]
        await w.reader.settled()
        assert {row["status"] for job in jobs for row in w.deliveries(job)} == {None}
        w.turn(60)
        for job in jobs:
            told = await w.event(job)
            assert told.event.discovered_by == "poll"
            await w.whole(job)
        await w.reader.settled()
        assert [len(w.told_of(job)) for job in jobs] == [1, 1, 1]


async def test_an_endpoint_that_was_down_recovers_what_it_missed(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=10, speed=10) as w:
        job = (await w.receiver.submit(w.urls(150))).id
        await w.stop()
        await w.reader.settled()
        w.clock.turn(60)
        assert w.deliveries(job)
        assert all(row["status"] is None for row in w.deliveries(job)), "every attempt came while nobody listened"
        await w.start()
        await w.event(job)
        await w.whole(job)
        assert [look.limit for look in w.looks(job) if look.limit == 100] == [100] * least(150)


async def test_while_webhooks_arrive_waiting_costs_no_request(tmp_path: Path) -> None:
    """Ten of a minute each were told of; of the next one nothing is asked until it would be late."""
    async with world(tmp_path, seed=1, job_seconds=60, loops=False) as w:
        for count in (10, 1):
            jobs = [(await w.receiver.submit(w.urls(2))).id for _ in range(count)]
            w.clock.turn(62)
            await w.reader.settled()
            await w.runtime.tick(60)
            assert {told.event.job_id for told in w.told[-count:]} == set(jobs)
            assert all(told.event.discovered_by == "webhook" for told in w.told)
        assert [look.limit for look in w.looks()] == [100] * 11


async def test_when_webhooks_begin_to_get_lost_the_next_jobs_are_looked_at_soon_again(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=60, loops=False) as w:
        for _ in range(10):
            await w.receiver.submit(w.urls(2))
        w.clock.turn(62)
        await w.reader.settled()
        await w.runtime.tick(60)
        w.reader.faults["lose"] = 1
        first = []
        for _ in range(2):
            job, submitted_at = (await w.receiver.submit(w.urls(2))).id, w.clock.steady()
            await w.rush(lambda job=job: w.told_of(job))
            first.append(w.looks(job)[0].at - submitted_at)
        assert [told.event.discovered_by for told in w.told] == ["webhook"] * 10 + ["poll"] * 2
        assert first[0] > 70, "none of the last jobs took longer, and webhooks told of all of them"
        assert first[1] < 10


async def test_a_webhook_that_the_poll_overtook_is_not_taken_for_lost(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=1, lose=1.0, loops=False) as w:
        job = (await w.receiver.submit(w.urls(2))).id
        await w.rush(lambda: w.told_of(job))
        outlooks = []
        for _ in range(2):
            outlooks.append(await w.runtime.database.read(lambda tx: store_jobs.outlook(tx, budget=1, stream_up=False)))
            await w.deliver(job)
            await w.runtime.tick(60)
        assert [(outlook.ended, outlook.told) for outlook in outlooks] == [(1, 0), (1, 1)]


@pytest.mark.slow
async def test_a_thousand_page_events_cost_no_request(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=60, lose=1.0) as w:
        job = await w.elsewhere(250)
        await asyncio.gather(*[w.deliver(job, "job.page", times=125) for _ in range(8)])
        assert len(w.looks(job)) <= 1, "the first look at a job that nobody had looked at"
        asked = len(w.looks(job))
        w.clock.turn(60)
        await w.deliver(job)
        await w.event(job)
        await asyncio.gather(*[w.deliver(job, "job.page", times=25) for _ in range(8)])
        skips = [look.skip for look in w.looks(job)[asked:]]
        assert skips[-3:] == [0, 100, 200]
        assert skips[:-3] in ([], [0]), "nothing but a probe that fell due before Reader had ended the job"


async def test_a_burst_of_ends_for_one_job_is_read_once_and_looked_at_once_more(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, lose=1.0, loops=False) as w:
        job = await w.elsewhere(250)
        await w.reader.until(lambda: w.truth(job)["status"] == "completed")
        await w.deliver(job, times=20)
        await w.rush(lambda: w.told_of(job))
        assert [look.skip for look in w.looks(job)] == [0, 100, 200]
        await w.deliver(job, times=20)
        await w.runtime.tick(60)
        assert [look.skip for look in w.looks(job)] == [0, 100, 200, 0]
        assert len(w.told_of(job)) == 1


# Jobs nobody knows


async def test_an_event_for_an_unknown_job_is_looked_up_a_few_times_and_then_parked(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, loops=False, clock=Hourglass(10)) as w:
        await w.deliver("job_of_nobody")
        await w.rush(lambda: False, until=w.clock.steady() + DAY)
        assert [look.status for look in w.looks("job_of_nobody")] == [404] * LOOKS
        job = await w.receiver.job("job_of_nobody")
        assert (job.state, "404" in (job.trouble or "")) == ("parked", True)
        assert w.told == []


async def test_a_parked_job_is_taken_out_by_a_later_cue(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, lose=1.0, loops=False, clock=Hourglass(10)) as w:
        w.reader.faults["unborn"] = {"rate": 1, "value": 10 * DAY}
        job = await w.elsewhere(101)
        await w.deliver(job)
        await w.rush(lambda: False, until=w.clock.steady() + DAY)
        assert (await w.receiver.job(job)).state == "parked"
        del w.reader.faults["unborn"]
        asked = len(w.looks(job))
        await w.deliver(job)
        await w.rush(lambda: w.told_of(job))
        await w.whole(job)
        assert [(look.skip, look.limit) for look in w.looks(job)[asked:]] == [(0, 100), (100, 100)]


async def test_tracking_takes_a_parked_job_out_and_waiting_for_it_works(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, webhooks=False, loops=False, clock=Hourglass(10)) as w:
        w.reader.faults["unborn"] = {"rate": 1, "value": DAY}
        job = await w.elsewhere(2)
        await w.receiver.track(job)
        await w.rush(lambda: False, until=w.clock.steady() + 3600)
        assert (await w.receiver.job(job)).state == "parked"
        del w.reader.faults["unborn"]
        await w.stop()
        await w.start()
        await w.receiver.track(job)
        assert (await w.receiver.wait_for_job(job, timeout=20)).state == "settled"


async def test_a_job_that_reader_has_told_us_of_is_looked_for_longer(tmp_path: Path) -> None:
    """Reader's own hiccup must not make us lose a job that it was handed."""
    async with world(tmp_path, seed=1, job_seconds=60, webhooks=False, loops=False, clock=Hourglass(10)) as w:
        w.reader.faults["unborn"] = {"rate": 1, "value": 120}
        job = (await w.receiver.submit(w.urls(3))).id
        await w.rush(lambda: w.told_of(job))
        statuses = [look.status for look in w.looks(job)]
        assert LOOKS < statuses.count(404) < KNOWN_LOOKS
        await w.whole(job)


async def test_a_settled_job_that_ran_again_and_then_vanished_keeps_its_results(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=30, lose=1.0, loops=False, clock=Hourglass(10)) as w:
        job = await w.elsewhere(3, query="?sandbox=error-once")
        await w.receiver.track(job)
        await w.rush(lambda: w.told_of(job))
        before = w.true_rows(job)
        await w.retry(job)
        await w.receiver.track(job)
        await w.runtime.tick(60)  # it is seen running
        w.reader.faults["unborn"] = {"rate": 1, "value": 10 * DAY}
        await w.rush(lambda: False, until=w.clock.steady() + DAY)
        assert (await w.receiver.job(job)).state == "parked"
        assert await w.rows(job) == before
        del w.reader.faults["unborn"]
        await w.deliver(job)
        await w.rush(lambda: len(w.told_of(job)) == 2)
        assert await w.rows(job, generation=1) == before
        await w.whole(job)


# Cues that come early


@pytest.mark.parametrize("fault", ["unborn", "early"])
async def test_a_webhook_before_the_api_knows_is_no_end_missed(tmp_path: Path, fault: str) -> None:
    """The API may lag behind its own webhooks: the job not to be read yet, or not ended yet."""
    async with world(tmp_path, seed=1, job_seconds=0.1, queue_seconds=0, speed=1, loops=False) as w:
        w.reader.faults[fault] = {"rate": 1, "value": 1.5}
        job = await w.elsewhere(101)
        await w.reader.until(lambda: bool(w.deliveries(job)))
        await w.rush(lambda: w.told_of(job))
        await w.whole(job)
        await w.rush(lambda: False, until=w.clock.steady() + 60)
        assert len(w.told_of(job)) == 1
        assert [look.skip for look in _good(w, job) if look.limit == 100][-2:] == [0, 100]


def _good(w: World, job: str) -> list[Any]:
    return [look for look in w.looks(job) if look.status == 200]
