"""A job's ends: each told once, whatever was told of it, in whatever order, or not at all."""

import json
from pathlib import Path

import pytest
from reconcile_kit import Hourglass, Look, World, least, world
from sqlalchemy import select

from receiver.store import timeline
from receiver.store.tables import events
from receiver.telling import tell

pytestmark = pytest.mark.anyio

SIZES = (1, 2, 99, 100, 101, 250)
HOUR = 3600.0


# The order of events, and who is believed


async def test_the_order_of_events_does_not_matter(tmp_path: Path) -> None:
    events = ("job.started", "job.page", "job.completed")
    async with world(tmp_path, seed=3, job_seconds=0.3, speed=2, reorder={"rate": 0.6, "value": 2}, events=events) as w:
        jobs = [await w.elsewhere(3) for _ in range(8)]
        for job in jobs:
            await w.event(job)
        await w.reader.settled()
        orders = [[row["event"] for row in w.deliveries(job)] for job in jobs]
        assert any(order.index("job.completed") < order.index("job.started") for order in orders)
        for job in jobs:
            await w.whole(job)
            assert len(w.told_of(job)) == 1


async def test_the_api_decides_whatever_a_webhook_says(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1) as w:
        job = await w.elsewhere(3)
        await w.event(job)
        before = len(w.looks(job))
        await w.deliver(job, "job.failed")
        await w.reader.until(lambda: len(w.looks(job)) > before)
        running = await w.elsewhere(3, query="?slow")
        await w.deliver(running, "job.failed")
        told = await w.event(running)
        assert told.event.type == "job.completed"
        assert [told.event.type for told in w.told_of(job)] == ["job.completed"]


async def test_two_events_in_one_second_are_one_end(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.05, lose=1.0) as w:
        job = await w.elsewhere(3)
        await w.reader.until(lambda: w.truth(job)["status"] == "completed")
        await w.deliver(job, "job.completed")
        await w.deliver(job, "job.failed")
        await w.event(job)
        again = await w.elsewhere(1)
        await w.reader.until(lambda: w.truth(again)["status"] == "completed")
        await w.deliver(again)
        await w.event(again)  # what the first job's two cues brought is over by now
        assert len(w.told_of(job)) == 1


async def test_what_happened_to_a_job_can_be_read_afterwards(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, settings={"receiver_listen": False}, loops=False) as w:
        job = await w.elsewhere(150)
        await w.reader.until(lambda: w.deliveries(job))
        await w.rush(lambda: w.told_of(job))
        story = await w.runtime.database.read(lambda tx: timeline.read(tx, job))
        told = [moment.what for moment in story.moments]
        assert story.whole
        assert told.count("page") == 2
        assert [what for what in told if what in {"started", "ended", "webhook", "noticed", "settled", "event", "attempt"}] == [
            "started",
            "ended",
            "webhook",
            "noticed",
            "settled",
            "event",
            "attempt",
        ]
        assert all(tell(moment) for moment in story.moments)


async def test_an_event_names_where_the_world_reads_the_results(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, settings={"receiver_public_url": "https://hooks.example.com/"}) as w:
        job = await w.elsewhere(3)
        await w.event(job)
        payload = await w.runtime.database.read(lambda tx: tx.execute(select(events.c.payload)).scalar_one())
        assert json.loads(payload)["data"]["resultsUrl"] == f"https://hooks.example.com/v1/jobs/{job}"


# Ending again


async def test_completed_then_retried_then_completed_is_two_generations(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1) as w:
        job = await w.elsewhere(101, query="?sandbox=error-once")
        first = await w.event(job)
        before = w.true_rows(job)
        await w.retry(job)
        second = await w.event(job, 2)
        await w.reader.settled()
        assert (first.event.generation, first.event.failed_urls, first.rows) == (1, 1, before)
        assert (second.event.generation, second.event.failed_urls, second.rows) == (2, 0, w.true_rows(job))
        assert len(w.told_of(job)) == 2
        assert await w.rows(job, generation=1) == before, "an event's own generation stays readable"
        await w.whole(job)
        assert len(w.looks(job)) == 2 * least(101)


async def test_a_job_queued_again_between_two_pages_is_read_anew_and_never_shown_mixed(tmp_path: Path) -> None:
    async with world(
        tmp_path, seed=1, job_seconds=0.1, requeue={"times": 1}, webhooks=False, loops=False, clock=Hourglass(10)
    ) as w:
        job = await w.elsewhere(250)
        await w.receiver.track(job)
        seen = []

        async def look() -> None:
            seen.append(await w.rows(job))

        while not w.told_of(job):
            await w.runtime.reconciler.run_once()  # type: ignore[union-attr]
            await look()
            await w.rush(lambda: True)
            w.clock.turn(1)
        assert [told.rows for told in w.told_of(job)] == [w.true_rows(job)]
        assert all(rows in ({}, w.true_rows(job)) for rows in seen)
        assert [end["observable"] for end in w.truth(job)["generations"]] == [False, True]
        await w.whole(job)


async def test_a_job_that_ended_again_between_two_pages_is_read_anew(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.05, queue_seconds=0) as w:
        w.reader.faults["server_error"] = {"times": 1, "match": "skip=100"}
        job = await w.elsewhere(150, query="?sandbox=error-once")
        await w.reader.until(lambda: any(look.status == 500 or (look.status or 0) > 500 for look in w.looks(job)))
        await w.retry(job)  # and it ends again before the page is asked for once more
        told = await w.event(job)
        await w.reader.settled()
        assert [told.rows for told in w.told_of(job)] == [w.true_rows(job)]
        assert told.event.failed_urls == 0
        await w.whole(job)


# Ends of which nobody tells


@pytest.mark.parametrize("ended_at", ["set", "null"])
@pytest.mark.parametrize("ended_total", ["submitted", "gathered"])
async def test_a_cancelled_job_is_noticed_by_polling_and_keeps_what_it_gathered(
    tmp_path: Path, ended_total: str, ended_at: str
) -> None:
    faults = {"ended_total": ended_total, "ended_at": ended_at}
    async with world(tmp_path, seed=1, job_seconds=300, loops=False, clock=Hourglass(10), **faults) as w:
        job = await w.elsewhere(250)
        await w.receiver.track(job)
        await w.rush(lambda: False, until=w.clock.steady() + 150)
        await w.cancel(job)
        cancelled = w.clock.steady()
        await w.rush(lambda: w.told_of(job))
        (told,) = w.told_of(job)
        assert told.event.type == "job.cancelled"
        assert told.event.verified
        assert 0 < len(w.true_rows(job)) < 250
        assert told.rows == w.true_rows(job)
        await w.whole(job)
        assert w.deliveries(job) == []
        assert w.looks(job, since=cancelled)[0].at - cancelled <= 310, "one poll interval"


@pytest.mark.parametrize("ended_at", ["set", "null"])
@pytest.mark.parametrize("ended_total", ["submitted", "gathered"])
async def test_a_failed_job_settles_with_what_it_gathered(tmp_path: Path, ended_total: str, ended_at: str) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.2, ended_total=ended_total, ended_at=ended_at) as w:
        job = await w.elsewhere(250)
        w.doom(job, 120)
        told = await w.event(job)
        assert told.event.type == "job.failed"
        assert told.event.verified
        assert (told.event.job["completedAt"] is None) == (ended_at == "null")
        assert sum(told.rows.values()) == 120
        await w.whole(job)


# What it costs


def _after_the_end(w: World, job: str) -> list[Look]:
    """The looks at the job once it had ended."""
    run = w.reader.engine.workspace.jobs[job].round
    return w.looks(job, since=run.ends_at)


async def test_hydrating_after_a_webhook_costs_exactly_a_request_per_hundred(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.2) as w:
        jobs = {await w.elsewhere(size): size for size in SIZES}
        for job, size in jobs.items():
            await w.event(job)
            assert [look.limit for look in w.looks(job)] == [100] * least(size), f"{size} results"


@pytest.mark.parametrize("ended_total", ["submitted", "gathered"])
async def test_hydrating_a_failed_job_after_a_webhook_costs_exactly_a_request_per_hundred(
    tmp_path: Path, ended_total: str
) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.2, ended_total=ended_total) as w:
        jobs = {await w.elsewhere(300): size for size in (0, *SIZES)}
        for job, size in jobs.items():
            w.doom(job, size)
        for job, size in jobs.items():
            told = await w.event(job)
            assert sum(told.rows.values()) == size
            assert told.event.verified
            assert [look.limit for look in w.looks(job)] == [100] * least(size), f"{size} results"


async def test_hydrating_after_a_probe_costs_exactly_a_request_per_hundred(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=60, webhooks=False, loops=False, clock=Hourglass(10)) as w:
        jobs = {await w.elsewhere(size): size for size in SIZES}
        for job in jobs:
            await w.receiver.track(job)
        await w.rush(lambda: len(w.told) == len(jobs))
        for job, size in jobs.items():
            await w.whole(job)
            _assert_least(_after_the_end(w, job), size)


@pytest.mark.parametrize("ended_total", ["submitted", "gathered"])
async def test_hydrating_a_cancelled_job_costs_exactly_a_request_per_hundred(tmp_path: Path, ended_total: str) -> None:
    async with world(
        tmp_path, seed=1, job_seconds=30000, webhooks=False, loops=False, clock=Hourglass(10), ended_total=ended_total
    ) as w:
        for size in (0, *SIZES):
            job = await w.elsewhere(300)
            await w.receiver.track(job)
            await w.runtime.tick(60)
            await w.cancel(job, after=size)
            await w.rush(lambda job=job: w.told_of(job))
            (told,) = w.told_of(job)
            assert sum(told.rows.values()) == size
            assert told.event.verified
            await w.whole(job)
            _assert_least(_after_the_end(w, job), size)


def _assert_least(looks: list[Look], size: int) -> None:
    """As many looks as the results need, and perhaps the probe that noticed the end."""
    probes = [look for look in looks if look.limit == 1]
    assert len(looks) - least(size) in {0, 1}, f"{size} results: {looks}"
    assert len(looks) == least(size) or len(probes) == 1, f"{size} results: {looks}"


# Late looks


async def test_a_settled_job_is_looked_at_after_1_6_and_24_hours_and_then_no_more(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=1, webhooks=False, loops=False, clock=Hourglass(10)) as w:
        job = await w.elsewhere(101)
        await w.receiver.track(job)
        await w.rush(lambda: w.told_of(job))
        settled = w.clock.steady()
        await w.rush(lambda: False, until=settled + 30 * 24 * HOUR)
        late = w.looks(job, since=settled)
        assert [round((look.at - settled) / HOUR, 1) for look in late] == [1, 6, 24]
        assert {look.limit for look in late} == {1}
        assert len(w.told) == 1


@pytest.mark.parametrize("hours", [1, 6, 24])
async def test_a_retry_elsewhere_whose_webhook_was_lost_is_found_by_a_late_look(tmp_path: Path, hours: int) -> None:
    async with world(tmp_path, seed=1, job_seconds=1, webhooks=False, loops=False, clock=Hourglass(10)) as w:
        job = await w.elsewhere(101, query="?sandbox=error-once")
        await w.receiver.track(job)
        await w.rush(lambda: w.told_of(job))
        settled = w.clock.steady()
        await w.rush(lambda: False, until=settled + hours * HOUR - 60)
        await w.retry(job)
        await w.rush(lambda: len(w.told_of(job)) == 2)
        assert w.clock.steady() < settled + hours * HOUR + 60
        first, second = w.told_of(job)
        assert (first.event.generation, second.event.generation) == (1, 2)
        assert second.rows == w.true_rows(job)
        assert second.event.failed_urls == 0


# Jobs that stand still


async def test_a_job_without_progress_is_told_of_once_and_looked_at_all_the_same(tmp_path: Path) -> None:
    settings = {"receiver_stalled_after": 600}
    async with world(tmp_path, seed=1, job_seconds=100_000, lose=1.0, loops=False, clock=Hourglass(), settings=settings) as w:
        job = await w.elsewhere(2)
        await w.receiver.track(job)
        for _ in range(12):
            await w.runtime.tick(5)
            w.clock.turn(300)
        stalls = await w.runtime.database.read(lambda tx: tx.execute(select(events.c.type, events.c.payload)).all())
        assert [kind for kind, _ in stalls] == ["job.stalled"]
        data = json.loads(stalls[0][1])["data"]
        assert (data["job"]["status"], data["generation"], data["stalledSeconds"] >= 600) == ("processing", 1, True)
        assert w.looks(job)[-1].at > w.clock.steady() - 4000
        w.clock.turn(100_000)
        await w.receiver.track(job)
        await w.rush(lambda: w.told_of(job))
        await w.whole(job)
