"""Failed URLs retried by ourselves: how often Reader was asked, by the sandbox's ledger, and what was told of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from reconcile_kit import Hourglass, World, least, world

from receiver.core.retrying import TRIES
from receiver.sandbox.problems import invalid
from receiver.sandbox.rounds import Round
from receiver.sandbox.state import Workspace
from receiver.store import jobs

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ONCE, ALWAYS = "?sandbox=error-once", "?sandbox=error"
BOTH = pytest.mark.parametrize("waits", [True, False], ids=["waiting", "at once"])
HOUR = 3600.0


@asynccontextmanager
async def retrying(
    folder: Path, most: int = 2, *, waits: bool = True, ceiling: int = 1000, settings: dict[str, Any] | None = None, **more: Any
) -> AsyncIterator[World]:
    """A world with the policy on, whose time the test turns; its webhooks get lost."""
    policy = {"receiver_retry_failed": most, "receiver_retry_waits": waits, "receiver_retry_credits": ceiling}
    options: dict[str, Any] = {"seed": 1, "job_seconds": 1, "webhooks": False, "loops": False, "clock": Hourglass(10)}
    async with world(folder, settings=policy | (settings or {}), **options | more) as w:
        yield w


async def tracked(w: World, count: int = 3, *, query: str = ONCE) -> str:
    job = await w.elsewhere(count, query=query)
    await w.receiver.track(job)
    return job


async def row(w: World, job: str) -> jobs.Job:
    found = await w.runtime.database.read(lambda tx: jobs.get(tx, job))
    assert found is not None
    return found


async def to_be_retried(w: World, **more: Any) -> str:
    """A job whose first end is settled, and whose retry is due: nobody has asked for it yet."""
    job = await tracked(w, **more)
    reconciler = w.runtime.reconciler
    assert reconciler is not None
    while (await row(w, job)).retry is None:
        w.clock.turn(max(await reconciler.next_due() or 0.0, 0.0) + 0.001)
        await reconciler.run_once()
    assert asked(w, job) == []
    return job


def asked(w: World, job: str) -> list[int | None]:
    """The answers to all requests for a retry."""
    return [request["status"] for request in w.requests() if request["path"] == f"/v1/jobs/{job}/retry"]


def generations(w: World, job: str) -> list[int]:
    return [told.event.generation for told in w.told_of(job)]


async def quiet(w: World) -> None:
    """Two days later nothing more has happened."""
    await w.rush(lambda: False, until=w.clock.steady() + 48 * HOUR)


# What is told


async def test_with_waiting_only_the_last_end_is_told(tmp_path: Path) -> None:
    async with retrying(tmp_path) as w:
        job = await tracked(w, 101)
        await w.rush(lambda: w.told_of(job))
        (told,) = w.told_of(job)
        assert (told.event.generation, told.event.failed_urls, told.rows) == (2, 0, w.true_rows(job))
        assert sum((await w.rows(job, generation=1)).values()) == 101, "the first end's results stay readable"
        await quiet(w)
        assert (asked(w, job), generations(w, job)) == ([200], [2])
        assert len([look for look in w.looks(job) if look.limit == 100]) <= 2 * least(101)
        await w.whole(job)


async def test_without_waiting_each_end_is_told_at_once(tmp_path: Path) -> None:
    async with retrying(tmp_path, waits=False) as w:
        job = await tracked(w)
        await w.rush(lambda: len(w.told_of(job)) == 2)
        await quiet(w)
        assert [(told.event.generation, told.event.failed_urls) for told in w.told_of(job)] == [(1, 1), (2, 0)]
        assert asked(w, job) == [200]
        await w.whole(job)


@BOTH
async def test_what_fails_always_is_retried_so_often_and_no_more(tmp_path: Path, waits: bool) -> None:
    async with retrying(tmp_path, 2, waits=waits) as w:
        job = await tracked(w, query=ALWAYS)
        await w.rush(lambda: 3 in generations(w, job))
        await quiet(w)
        assert asked(w, job) == [200, 200]
        assert generations(w, job) == ([3] if waits else [1, 2, 3])
        assert w.told_of(job)[-1].event.failed_urls == 1
        await w.whole(job)


async def test_nothing_is_retried_unless_it_is_switched_on(tmp_path: Path) -> None:
    async with retrying(tmp_path, 0) as w:
        job = await tracked(w)
        await w.rush(lambda: w.told_of(job))
        await quiet(w)
        assert (asked(w, job), generations(w, job)) == ([], [1])


async def test_whoever_waits_for_the_job_gets_its_last_end(tmp_path: Path) -> None:
    async with retrying(tmp_path) as w:
        job = await to_be_retried(w)
        waiting = asyncio.create_task(w.receiver.wait_for_job(job))
        await asyncio.sleep(0)
        assert (await w.receiver.job(job)).status == "processing"
        await w.rush(lambda: w.told_of(job))
        assert ((await waiting).generation, (await waiting).failed_urls) == (2, 0)


@pytest.mark.parametrize("lose", [0.0, 1.0])
async def test_with_loops_and_webhooks(tmp_path: Path, lose: float) -> None:
    async with retrying(tmp_path, webhooks=True, loops=True, lose=lose, clock=Hourglass(), job_seconds=0.2) as w:
        some = [await tracked(w) for _ in range(5)]
        for job in some:
            assert (await w.event(job, within=40)).event.generation == 2
            assert asked(w, job) == [200]
            await w.whole(job)


# What is not retried


@BOTH
async def test_failed_and_cancelled_jobs_are_not_retried(tmp_path: Path, waits: bool) -> None:
    async with retrying(tmp_path, waits=waits, job_seconds=100) as w:
        failed, cancelled = await tracked(w, 20), await tracked(w, 20)
        w.doom(failed, 10)
        await w.runtime.tick(60)
        await w.cancel(cancelled, after=10)
        await w.rush(lambda: len(w.told) == 2)
        await quiet(w)
        assert {told.event.type for told in w.told} == {"job.failed", "job.cancelled"}
        assert all(told.event.failed_urls for told in w.told), "else this proves nothing"
        assert asked(w, failed) == asked(w, cancelled) == []


@pytest.mark.parametrize(("ceiling", "answers"), [(1, [200]), (0, [])])
async def test_a_retry_that_would_cost_more_than_the_ceiling_is_not_made(
    tmp_path: Path, ceiling: int, answers: list[int]
) -> None:
    async with retrying(tmp_path, ceiling=ceiling) as w:
        job = await tracked(w)
        await w.rush(lambda: w.told_of(job))
        await quiet(w)
        assert asked(w, job) == answers
        assert generations(w, job) == [1 + len(answers)]


@pytest.mark.parametrize(("ceiling", "answers"), [(6, [200, 200]), (5, [200])])
async def test_what_retries_have_cost_counts(
    tmp_path: Path, ceiling: int, answers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page costs five credits here: the first retry reads one of two failed ones, and the other would cost at least one more."""
    good = Round.good
    monkeypatch.setattr(Round, "good", lambda self, now: 5 * good(self, now))
    async with retrying(tmp_path, ceiling=ceiling) as w:
        urls = [f"https://site.example/{number}{query}" for number, query in enumerate((ONCE, ALWAYS, ""))]
        answer = await w.api.post("/v1/read", json={"urls": urls})
        job = answer.json()["data"]["id"]
        await w.receiver.track(job)
        await w.rush(lambda: w.told_of(job))
        await quiet(w)
        assert asked(w, job) == answers
        assert generations(w, job) == [1 + len(answers)]
        assert w.told_of(job)[0].event.failed_urls == 1


# Refusals


@BOTH
async def test_a_refused_retry_is_asked_for_once_and_the_end_is_told_after_all(
    tmp_path: Path, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Workspace, wanted: str, now: float, **_: bool) -> None:
        raise invalid(("id", "the job has no failed URLs"))

    monkeypatch.setattr(Workspace, "retry", refuse)
    async with retrying(tmp_path, waits=waits) as w:
        job = await tracked(w)
        await w.rush(lambda: w.told_of(job))
        view = await w.receiver.job(job)
        assert (view.ended, view.status) == (True, "completed")
        await quiet(w)
        assert (asked(w, job), generations(w, job)) == ([400], [1])
        assert w.told_of(job)[0].rows == w.true_rows(job)


@BOTH
async def test_somebody_else_was_quicker_and_the_job_runs(tmp_path: Path, waits: bool) -> None:
    async with retrying(tmp_path, waits=waits, job_seconds=60) as w:
        job = await to_be_retried(w)
        await w.retry(job)
        await w.rush(lambda: 2 in generations(w, job))
        await quiet(w)
        assert asked(w, job) == [200, 409], "theirs and ours"
        assert generations(w, job) == ([2] if waits else [1, 2])
        await w.whole(job)


@BOTH
async def test_somebody_else_was_quicker_and_the_job_has_ended_again(tmp_path: Path, waits: bool) -> None:
    async with retrying(tmp_path, waits=waits) as w:
        job = await to_be_retried(w)
        await w.retry(job)
        w.clock.turn(60)
        await w.rush(lambda: 2 in generations(w, job))
        await quiet(w)
        assert asked(w, job) == [200, 400], "theirs and ours"
        assert generations(w, job) == ([2] if waits else [1, 2])
        await w.whole(job)


async def test_somebody_else_was_quicker_and_the_look_at_it_fails_at_first(tmp_path: Path) -> None:
    """That Reader refused is remembered, and still says nothing of why."""
    async with retrying(tmp_path, job_seconds=60) as w:
        job = await to_be_retried(w)
        await w.retry(job)
        w.reader.faults["server_error"] = {"rate": 1, "times": 3, "match": "GET /v1/jobs"}
        await w.runtime.tick(60)
        assert (await row(w, job)).retry == "refused", "else this proves nothing"
        await w.rush(lambda: w.told_of(job))
        await quiet(w)
        assert (asked(w, job), generations(w, job)) == ([200, 409], [2])
        await w.whole(job)


async def test_a_webhook_that_tells_of_somebody_elses_retry_is_looked_into_first(tmp_path: Path) -> None:
    async with retrying(tmp_path, webhooks=True, lose=1.0) as w:
        job = await to_be_retried(w)
        await w.retry(job)
        w.clock.turn(60)
        await w.deliver(job)
        await w.rush(lambda: w.told_of(job))
        await quiet(w)
        assert (asked(w, job), generations(w, job)) == ([200], [2]), "theirs alone"


# Troubles


@BOTH
@pytest.mark.parametrize("fault", ["reset", "html", "truncate"])
async def test_when_the_answer_is_lost_the_job_is_looked_at_and_not_retried_twice(
    tmp_path: Path, fault: str, waits: bool
) -> None:
    async with retrying(tmp_path, waits=waits) as w:
        w.reader.faults[fault] = {"rate": 1, "times": 1, "match": "/retry"}
        job = await tracked(w)
        await w.rush(lambda: 2 in generations(w, job))
        await quiet(w)
        assert len(asked(w, job)) == 1
        assert generations(w, job) == ([2] if waits else [1, 2])
        await w.whole(job)


async def test_when_reader_fails_the_retry_is_asked_for_again_after_a_look(tmp_path: Path) -> None:
    async with retrying(tmp_path) as w:
        w.reader.faults["server_error"] = {"rate": 1, "times": 2, "value": 502, "match": "/retry"}
        job = await tracked(w)
        await w.rush(lambda: w.told_of(job))
        assert (asked(w, job), generations(w, job)) == ([502, 502, 200], [2])
        paths = [request["path"].rpartition("/")[2] for request in w.requests()]
        first = paths.index("retry")
        assert paths[first : first + 5] == ["retry", job, "retry", job, "retry"]


@BOTH
async def test_a_retry_that_cannot_be_made_is_given_up_and_the_end_told(tmp_path: Path, waits: bool) -> None:
    async with retrying(tmp_path, waits=waits) as w:
        w.reader.faults["server_error"] = {"rate": 1, "match": "/retry"}
        job = await to_be_retried(w)
        began = w.clock.steady()
        await w.rush(lambda: False, until=began + HOUR / 2)
        assert generations(w, job) == [1]
        await quiet(w)
        assert len(asked(w, job)) == TRIES
        assert generations(w, job) == [1]


async def test_without_credits_everything_pauses_and_then_it_is_asked_for_again(tmp_path: Path) -> None:
    async with retrying(tmp_path) as w:
        w.reader.faults["out_of_credits"] = {"rate": 1, "times": 3, "match": "/retry"}
        job = await tracked(w)
        await w.rush(lambda: w.told_of(job))
        assert (asked(w, job), generations(w, job)) == ([402, 402, 402, 200], [2])
        paths = [request["path"] for request in w.requests()]
        first = paths.index(f"/v1/jobs/{job}/retry")
        assert paths[first : first + 4] == [f"/v1/jobs/{job}/retry"] * 4, "it was refused for want of credits: no look is needed"
        times = [request["at"] for request in w.requests()][first : first + 4]
        assert times[3] - times[0] >= 180
        assert not [request for request in w.requests() if times[0] < request["at"] < times[0] + 60]


async def test_a_job_that_reader_forgets_after_the_retry_is_told_as_it_was(tmp_path: Path) -> None:
    async with retrying(tmp_path) as w:
        job = await to_be_retried(w)
        before = w.true_rows(job)
        await w.runtime.tick(60)
        assert (asked(w, job), w.told_of(job)) == ([200], [])
        workspace = w.reader.engine.workspace
        kept = workspace.jobs.pop(job)
        await w.rush(lambda: w.told_of(job))
        assert (await w.receiver.job(job)).state == "parked"
        assert [(told.event.generation, told.rows) for told in w.told_of(job)] == [(1, before)]
        workspace.jobs[job] = kept  # it was a hiccup, longer than anybody could wait
        await w.receiver.track(job)
        await w.rush(lambda: len(w.told_of(job)) == 2)
        assert generations(w, job) == [1, 2]
        await w.whole(job)


# Interruptions


@BOTH
async def test_a_crash_between_settling_and_the_retry(tmp_path: Path, waits: bool) -> None:
    """Whatever process comes next goes on from what is stored; `test_retry_kill.py` truly kills one."""
    async with retrying(tmp_path, waits=waits) as w:
        job = await to_be_retried(w)
        await w.stop()
        await w.start(loops=False)
        await w.rush(lambda: 2 in generations(w, job))
        await quiet(w)
        assert asked(w, job) == [200]
        assert generations(w, job) == ([2] if waits else [1, 2])


async def test_switched_off_meanwhile_the_end_is_told_and_nothing_retried(tmp_path: Path) -> None:
    async with retrying(tmp_path) as w:
        job = await to_be_retried(w)
        await w.stop()
        await w.start(loops=False, receiver_retry_failed=0, receiver_retry_waits=False)
        await w.rush(lambda: w.told_of(job))
        await quiet(w)
        assert (asked(w, job), generations(w, job)) == ([], [1])
