"""The request budget and the gate: what the sandbox's ledger says of when requests came."""

import asyncio
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from reconcile_kit import Hourglass, World, busiest, least, world

pytestmark = pytest.mark.anyio

HOUR = 3600.0
IN_FLIGHT = 1.0
"""Seconds within which a request that was granted before a 429 was understood arrives, on a machine that is busy."""


def _refused(w: World) -> list[float]:
    return [row["at"] for row in w.requests() if row["status"] == 429]


# 429


@pytest.mark.slow
async def test_while_a_429_lasts_no_request_comes_from_anywhere(tmp_path: Path) -> None:
    """Jobs that ended, a job that is tracked, jobs that are submitted, loops of every kind: all wait for its three seconds."""
    async with world(tmp_path, seed=1, job_seconds=0.1, queue_seconds=0.05) as w:
        jobs, running = [await w.elsewhere(150) for _ in range(6)], await w.elsewhere(1)
        w.reader.faults["rate_limit"] = {"rate": 1, "times": 1, "value": 3, "match": "skip=100"}
        await w.reader.until(lambda: bool(_refused(w)))
        await w.receiver.track(running)
        jobs += [running, (await w.receiver.submit(w.urls(2))).id]
        for job in jobs:
            await w.event(job)
            await w.whole(job)
        (at,) = _refused(w)
        assert [row for row in w.requests(since=at + IN_FLIGHT) if row["at"] < at + 3] == []
        assert len(w.requests(since=at + 3)) >= 3, "what was asked for meanwhile came after it"


async def test_a_429_that_names_a_date_is_waited_out(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, webhooks=False, loops=False, clock=Hourglass(10)) as w:
        job = await w.elsewhere(3)
        w.reader.faults["rate_limit_date"] = {"rate": 1, "times": 1, "value": 30}
        await w.receiver.track(job)
        await w.rush(lambda: w.told_of(job))
        (at,) = _refused(w)
        after = min(row["at"] for row in w.requests() if row["at"] > at)
        assert 29 <= after - at < 35, "a date has whole seconds"


@pytest.mark.parametrize(
    "wish", [None, *(pytest.param(w, marks=pytest.mark.slow) for w in ("-1", "soon", "Fri, 05 Apr 1996 00:00:00 GMT"))]
)
async def test_a_429_without_a_usable_wish_is_waited_for_longer_and_longer(tmp_path: Path, wish: str | None) -> None:
    fault: dict[str, Any] = {"rate_limit_bare": 1} if wish is None else {"rate_limit_odd": {"rate": 1, "value": wish}}
    async with world(tmp_path, seed=1, job_seconds=0.1, webhooks=False, loops=False, clock=Hourglass(20)) as w:
        job = await w.elsewhere(101)
        w.reader.faults = fault
        await w.receiver.track(job)
        began = w.clock.steady()
        await w.rush(lambda: False, until=began + HOUR)
        refused = _refused(w)
        assert all(later - earlier >= 0.3 for earlier, later in pairwise(refused))
        assert len(refused) < 60, "in an hour"
        assert len(w.requests(since=began + HOUR / 2)) < len(refused) / 2
        w.reader.faults.clear()
        await w.rush(lambda: w.told_of(job))
        await w.whole(job)


async def test_a_429_that_asks_for_ages_is_asked_again_within_the_hour(tmp_path: Path) -> None:
    fault = {"rate_limit_odd": {"rate": 1, "times": 1, "value": "99999999"}}
    async with world(tmp_path, seed=1, job_seconds=0.1, webhooks=False, loops=False, clock=Hourglass(20)) as w:
        job = await w.elsewhere(3)
        w.reader.faults = fault
        await w.receiver.track(job)
        began = w.clock.steady()
        await w.rush(lambda: w.told_of(job))
        assert HOUR - 60 < w.clock.steady() - began < HOUR + 60


# The budget


async def test_no_window_of_60_seconds_holds_more_than_the_budget(tmp_path: Path) -> None:
    async with world(
        tmp_path, seed=1, job_seconds=20, webhooks=False, loops=False, clock=Hourglass(20), rpm=12, settings={"reader_rpm": 12}
    ) as w:
        jobs = [(await w.receiver.submit(w.urls(size))).id for size in (250, 250, 101, 3)]
        await w.rush(lambda: len(w.told) == len(jobs))
        for job in jobs:
            await w.whole(job)
        assert busiest(w.requests()) <= 12
        assert busiest(w.requests()) > 6, "and it is used"
        assert _refused(w) == []
        full = [look for look in w.looks() if look.limit == 100]
        assert len(full) <= sum(map(least, (250, 250, 101, 3))) + len(jobs)


@pytest.mark.slow
async def test_without_webhooks_ends_are_noticed_within_15_seconds_for_half_of_the_budget(tmp_path: Path) -> None:
    """What the simulation promises (tests/simulation), seen by Reader: ten jobs of 2 to 30 minutes on the Pro tier."""
    async with world(
        tmp_path,
        seed=1,
        job_seconds="120..1800",
        tier="pro",
        webhooks=False,
        loops=False,
        clock=Hourglass(),
        settings={"reader_rpm": 60, "receiver_rpm_share": 0.8},
    ) as w:
        began = w.clock.steady()
        jobs = [(await w.receiver.submit(w.urls(90))).id for _ in range(10)]
        await w.rush(lambda: len(w.told) == len(jobs))
        delays = [_after_the_end(w, job) for job in jobs]
        assert min(delays) >= 0
        assert median(delays) <= 15
        minutes = (w.clock.steady() - began) / 60
        assert len(w.looks()) - len(jobs) <= minutes * 24
        assert len(w.looks()) <= 15 * len(jobs)


def _after_the_end(w: World, job: str) -> float:
    """Seconds from the end of a job to the first look at it."""
    ends_at = w.reader.engine.workspace.jobs[job].round.ends_at
    return w.looks(job, since=ends_at)[0].at - ends_at


async def test_only_the_share_that_is_ours_is_used(tmp_path: Path) -> None:
    async with world(
        tmp_path,
        seed=1,
        job_seconds=1,
        webhooks=False,
        loops=False,
        clock=Hourglass(20),
        settings={"reader_rpm": 20, "receiver_rpm_share": 0.25},
    ) as w:
        job = (await w.receiver.submit(w.urls(900))).id
        await w.rush(lambda: w.told_of(job))
        await w.whole(job)
        assert busiest(w.requests()) <= 5


@pytest.mark.slow
async def test_restarting_in_a_loop_does_not_reset_the_budget(tmp_path: Path) -> None:
    async with world(
        tmp_path, seed=1, job_seconds=1, webhooks=False, loops=False, clock=Hourglass(), rpm=8, settings={"reader_rpm": 8}
    ) as w:
        jobs = [(await w.receiver.submit(w.urls(250))).id for _ in range(3)]
        w.clock.turn(70)
        began = w.clock.steady()
        for _ in range(16):
            await w.stop()
            w.clock.turn(1)
            await w.start()
            asked = len(w.requests())
            with suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    await w.reader.until(lambda asked=asked: len(w.requests()) > asked)
        assert 3 <= len(w.requests(since=began)) <= 8
        await w.stop()
        await w.start(loops=False)
        await w.rush(lambda: len(w.told) == len(jobs))
        for job in jobs:
            await w.whole(job)
        assert busiest(w.requests()) <= 8
        assert _refused(w) == []


async def test_a_lower_limit_told_by_a_429_is_kept_to(tmp_path: Path) -> None:
    """Somebody downgraded the workspace: Reader's word counts, not the setting."""
    async with world(
        tmp_path, seed=1, job_seconds=1, webhooks=False, loops=False, clock=Hourglass(20), rpm=10, settings={"reader_rpm": 1000}
    ) as w:
        jobs = [(await w.receiver.submit(w.urls(250))).id for _ in range(6)]
        w.clock.turn(60)
        await w.rush(lambda: len(w.told) == len(jobs))
        first = _refused(w)[0]
        learned = [row for row in w.requests(since=first + 2) if row["at"] < first + HOUR]
        assert busiest(learned) <= 10
        assert len(_refused(w)) <= 8, "at most what every worker had under way"


async def test_a_workspace_whose_tier_is_unknown_is_taken_for_the_lowest(tmp_path: Path) -> None:
    async with world(
        tmp_path,
        seed=1,
        job_seconds=1,
        webhooks=False,
        loops=False,
        clock=Hourglass(20),
        tier="free",
        active_jobs=5,
        settings={"reader_rpm": "auto"},
    ) as w:
        w.reader.faults["server_error"] = {"rate": 1, "match": "/v1/usage/credits"}
        jobs = [(await w.receiver.submit(w.urls(250))).id for _ in range(3)]
        await w.rush(lambda: len(w.told) == len(jobs))
        assert busiest(w.requests()) <= 10
        assert _refused(w) == []
