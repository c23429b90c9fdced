"""Each way in which Reader's API may misbehave: what we asked then, by the sandbox's ledger, and that no result is lost or doubled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from reconcile_kit import Hourglass, Look, Told, World, least, world

from receiver.errors import ReaderUnavailableError
from receiver.reconciler import BROKEN_PASSES

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

HOUR = 3600.0
PAUSE = 60.0
"""Seconds for which nobody asks after a key was refused, or credits ended."""


@asynccontextmanager
async def faulty(folder: Path, *, clock: Hourglass | None = None, **more: Any) -> AsyncIterator[World]:
    """A world whose webhooks all get lost, so that the test says when we hear of a job; its time is turned by the test."""
    options: dict[str, Any] = {"seed": 1, "job_seconds": 0.1, "queue_seconds": 0, "lose": 1.0, "loops": False}
    async with world(folder, clock=clock or Hourglass(10), **options | more) as w:
        yield w


async def ended(w: World, count: int = 250, **more: Any) -> str:
    """A job of somebody else's that has ended, of which a webhook has told us."""
    job = await w.elsewhere(count, **more)
    await w.reader.until(lambda: w.truth(job)["status"] == "completed")
    await w.deliver(job)
    return job


async def finished(w: World, job: str) -> Told:
    """Work until the job's event is out: its only one, and all its results as they truly are."""
    await w.rush(lambda: w.told_of(job))
    (told,) = w.told_of(job)
    assert told.rows == w.true_rows(job)
    await w.whole(job)
    return told


def good(w: World, job: str) -> list[tuple[int, int]]:
    """(skip, limit) of the looks that were answered as they should be."""
    return [(look.skip, look.limit) for look in w.looks(job) if look.status == 200 and look.fault is None]


def struck(w: World, job: str) -> list[Look]:
    return [look for look in w.looks(job) if look.fault is not None]


def pages(count: int) -> list[tuple[int, int]]:
    return [(100 * number, 100) for number in range(least(count))]


def trapped(w: World) -> list[dict[str, Any]]:
    """Requests that came where no request of ours may go."""
    return [row for row in w.reader.engine.ledger.lists(0)["requests"] if "trap" in row["path"] or row["fault"] == "trap"]


# 429


@pytest.mark.slow
async def test_after_a_429_that_asks_for_twelve_seconds_no_request_comes_for_twelve_seconds(tmp_path: Path) -> None:
    """Not for new jobs, not for those that are submitted, not from the next process either."""
    async with faulty(tmp_path, clock=Hourglass(), loops=True) as w:
        w.reader.faults["rate_limit"] = {"rate": 1, "times": 1, "value": 12, "match": "skip=100"}
        others = [await w.elsewhere(1) for _ in range(3)]
        jobs = [await ended(w, 150)]
        await w.reader.until(lambda: any(row["status"] == 429 for row in w.requests()))
        (at,) = [row["at"] for row in w.requests() if row["status"] == 429]
        await until_put_back(w, jobs[0])
        await w.stop()
        await w.start()
        for job in others:
            await w.deliver(job)
        jobs += others
        assert w.clock.steady() < at + 12, "else this proves nothing"
        jobs.append((await w.receiver.submit(w.urls(2))).id)  # it waits for its turn
        await w.receiver.track(jobs[-1])
        for job in jobs:
            await w.event(job, within=40)
            await w.whole(job)
        asked = w.requests()
        assert [row for row in asked if at < row["at"] < at + 12] == []
        assert len([row for row in asked if row["at"] > at]) >= 5


async def until_put_back(w: World, job: str) -> None:
    while (await w.receiver.job(job)).trouble is None:  # noqa: ASYNC110 - the store rings no bell for a test
        await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wish", "least_wait", "most_wait"), [("30", 30, 40), ("-5", 0.3, 30), ("1e3", 0.3, 30), ("99999999", HOUR, HOUR + 30)]
)
async def test_whatever_a_429_asks_for_is_kept_within_reason(
    tmp_path: Path, wish: str, least_wait: float, most_wait: float
) -> None:
    async with faulty(tmp_path) as w:
        w.reader.faults["rate_limit_odd"] = {"rate": 1, "times": 1, "value": wish, "match": "skip=100"}
        job = await ended(w)
        await finished(w, job)
        (refused,) = [look for look in w.looks(job) if look.status == 429]
        following = min(row["at"] for row in w.requests() if row["at"] > refused.at)
        assert least_wait <= following - refused.at < most_wait
        assert good(w, job) == pages(250), "what was read before it is not read again"


async def test_a_429_with_a_date_is_waited_out_midway(tmp_path: Path) -> None:
    async with faulty(tmp_path) as w:
        w.reader.faults["rate_limit_date"] = {"rate": 1, "times": 1, "value": 60, "match": "skip=200"}
        job = await ended(w)
        await finished(w, job)
        (refused,) = [look for look in w.looks(job) if look.status == 429]
        assert min(row["at"] for row in w.requests() if row["at"] > refused.at) - refused.at >= 59
        assert good(w, job) == pages(250)


# Answers that are none

NO_ANSWERS: dict[str, dict[str, Any]] = {
    "server_error": {"value": 500},
    "error_burst": {"value": 4},
    "html": {},
    "false_success": {},
    "truncate": {},
    "cut": {},
    "reset": {},
}


@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=pytest.mark.slow) if f in {"error_burst", "cut", "html"} else f for f in NO_ANSWERS]
)
@pytest.mark.parametrize("page", [pytest.param(0, marks=pytest.mark.slow), 100, pytest.param(200, marks=pytest.mark.slow)])
async def test_an_answer_that_is_none_is_asked_for_again_and_nothing_else_is(tmp_path: Path, fault: str, page: int) -> None:
    """Never taken for progress: no page is skipped for it, and none that came is asked for twice."""
    times = 1 if fault == "error_burst" else 4
    async with faulty(tmp_path) as w:
        w.reader.faults[fault] = {"rate": 1, "times": times, "match": f"skip={page}&", **NO_ANSWERS[fault]}
        job = await ended(w)
        told = await finished(w, job)
        assert told.event.verified
        assert [look.skip for look in struck(w, job)] == [page] * 4
        assert good(w, job) == pages(250)
        await w.rush(lambda: False, until=w.clock.steady() + 600)
        assert len(w.told_of(job)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["server_error", "html", "false_success", "truncate", "reset", "redirect"])
async def test_an_api_that_is_down_for_an_hour_is_asked_seldom_and_read_when_it_is_back(tmp_path: Path, fault: str) -> None:
    async with faulty(tmp_path) as w:
        job = await ended(w, 150)
        w.reader.faults[fault] = 1
        began = w.clock.steady()
        await w.rush(lambda: False, until=began + HOUR)
        asked = len(w.looks(job))
        assert 5 < asked < 60
        assert len(w.looks(job, since=began + HOUR / 2)) < asked / 2, "the longer it lasts, the more seldom"
        assert w.told == []
        assert await w.rows(job) == {}
        trouble = (await w.receiver.job(job)).trouble
        assert trouble, "whoever looks is told what is wrong"
        w.reader.faults.replace({"lose": 1.0})
        await finished(w, job)
        assert good(w, job) == pages(150)
        assert (await w.receiver.job(job)).trouble is None
        assert trapped(w) == []


# Pages that contradict themselves


@pytest.mark.parametrize("fault", ["has_more_forever", "has_more_early"])
@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 100, pytest.param(250, marks=pytest.mark.slow)])
async def test_a_has_more_that_lies_costs_nothing_and_misleads_nobody(tmp_path: Path, fault: str, count: int) -> None:
    async with faulty(tmp_path) as w:
        w.reader.faults[fault] = 1
        told = await finished(w, job := await ended(w, count))
        assert told.event.verified
        assert [(look.skip, look.limit) for look in w.looks(job)] == pages(count)


@pytest.mark.parametrize("fault", ["has_more_forever", "has_more_early"])
@pytest.mark.parametrize("ended_total", ["submitted", "gathered"])
async def test_a_failed_jobs_has_more_may_lie_too(tmp_path: Path, fault: str, ended_total: str) -> None:
    async with faulty(tmp_path, ended_total=ended_total) as w:
        w.reader.faults[fault] = 1
        job = await w.elsewhere(300)
        w.doom(job, 150)
        await w.reader.until(lambda: w.truth(job)["status"] == "failed")
        await w.deliver(job)
        told = await finished(w, job)
        assert (told.event.type, sum(told.rows.values())) == ("job.failed", 150)
        assert len(w.looks(job)) <= least(150) + 1


async def test_a_total_that_drifts_for_once_has_the_pages_read_anew(tmp_path: Path) -> None:
    async with faulty(tmp_path) as w:
        w.reader.faults["total_drift"] = {"rate": 1, "times": 1, "after": 1}
        told = await finished(w, job := await ended(w))
        assert told.event.verified
        assert good(w, job)[-3:] == pages(250)


async def test_a_total_that_always_drifts_is_never_taken_for_whole_and_the_job_is_parked(tmp_path: Path) -> None:
    async with faulty(tmp_path) as w:
        w.reader.faults["total_drift"] = 1
        job = await ended(w)
        await w.rush(lambda: False, until=w.clock.steady() + 24 * HOUR)
        assert w.told == []
        assert await w.rows(job) == {}
        shown = await w.receiver.job(job)
        assert (shown.state, "total" in (shown.trouble or "")) == ("parked", True)
        assert BROKEN_PASSES <= len(w.looks(job)) <= BROKEN_PASSES * (least(250) + 1)
        w.reader.faults.replace({"lose": 1.0})
        await w.deliver(job)
        await finished(w, job)


async def test_a_result_that_stands_twice_on_its_page_is_not_stored_twice(tmp_path: Path) -> None:
    async with faulty(tmp_path) as w:
        w.reader.faults["double"] = {"rate": 1, "times": 2}
        told = await finished(w, job := await ended(w, 150))
        assert told.event.verified
        assert good(w, job)[-2:] == pages(150)


async def test_a_failed_jobs_result_that_stands_twice_on_its_last_page_is_not_stored_twice(tmp_path: Path) -> None:
    """Its total counts what was submitted, so that it is one row too many is told only by how many the job has gathered."""
    async with faulty(tmp_path) as w:
        w.reader.faults["double"] = {"rate": 1, "times": 1, "after": 1}
        job = await w.elsewhere(300)
        w.doom(job, 150)
        await w.reader.until(lambda: w.truth(job)["status"] == "failed")
        await w.deliver(job)
        told = await finished(w, job)
        assert told.event.verified


@pytest.mark.parametrize("known", [True, False], ids=["urls known", "urls unknown"])
async def test_rows_that_moved_between_two_pages_for_once_are_read_again(tmp_path: Path, known: bool) -> None:
    """Where we submitted the URLs, they must be the ones read; else a result seen on two pages gives it away."""
    async with faulty(tmp_path) as w:
        w.reader.faults["shuffle"] = {"rate": 1, "times": 1, "after": 1}
        job = await handed_in(w, 250) if known else await ended(w)
        told = await finished(w, job)
        assert told.event.verified
        assert good(w, job)[-3:] == pages(250)
        assert len(struck(w, job)) == 1


@pytest.mark.parametrize("known", [True, False], ids=["urls known", "urls unknown"])
async def test_rows_that_keep_moving_are_settled_as_unverified_and_never_as_whole(tmp_path: Path, known: bool) -> None:
    async with faulty(tmp_path) as w:
        w.reader.faults["shuffle"] = 1
        job = await handed_in(w, 250) if known else await ended(w)
        await w.rush(lambda: w.told_of(job))
        (told,) = w.told_of(job)
        assert told.rows != w.true_rows(job), "the fault was there to be seen"
        assert not told.event.verified
        assert (await w.receiver.job(job)).verified is False
        full = [look for look in w.looks(job) if look.limit == 100]
        assert len(full) <= 2 * least(250), "read once more, not for ever"


async def handed_in(w: World, count: int) -> str:
    """A job that we submitted, that has ended, and of which a webhook has told us."""
    job = (await w.receiver.submit(w.urls(count))).id
    await w.reader.until(lambda: w.truth(job)["status"] == "completed")
    await w.deliver(job)
    return job


# Where the key must not go


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    async with faulty(tmp_path) as w:
        w.reader.faults["redirect"] = {"rate": 1, "times": 4, "match": "GET /v1/jobs"}
        await finished(w, job := await ended(w))
        assert [look.status for look in struck(w, job)] == [302] * 4
        assert good(w, job) == pages(250)
        assert trapped(w) == []


async def test_a_redirected_submit_is_not_followed_and_sent_again_where_it_belongs(tmp_path: Path) -> None:
    async with faulty(tmp_path) as w:
        w.reader.faults["redirect"] = {"rate": 1, "times": 2, "match": "POST /v1/read"}
        job = (await w.receiver.submit(w.urls(2))).id
        assert list(w.reader.engine.workspace.jobs) == [job], "the redirected requests were done as well: one key, one job"
        assert trapped(w) == []


async def test_a_next_on_another_host_is_never_followed(tmp_path: Path) -> None:
    async with faulty(tmp_path) as w:
        w.reader.faults["foreign_next"] = 1
        job = await ended(w)
        await finished(w, job)
        assert [(look.skip, look.fault) for look in w.looks(job)] == [(0, "foreign_next"), (100, "foreign_next"), (200, None)]
        assert trapped(w) == []


# Keys and credits


async def test_a_401_midway_pauses_everything_and_a_new_key_resumes_where_it_stopped(tmp_path: Path) -> None:
    async with faulty(tmp_path) as w:
        job, other = await ended(w), await ended(w, 2)
        w.reader.faults["unauthorized"] = {"rate": 1, "times": 1, "match": "skip=100"}
        await w.runtime.tick(60)
        (refused,) = [row for row in w.requests() if row["status"] == 401]
        w.reader.faults["rotate_key"] = "rdr_the-new-one"
        await w.rush(lambda: False, until=refused["at"] + 10 * PAUSE)
        tried = [row["at"] for row in w.requests(since=refused["at"] + 5)]
        assert 1 <= len(tried) <= 12, "once a minute, by all jobs together"
        assert await w.pages_stored(job) == 100
        assert all(row["status"] == 401 for row in w.requests(since=refused["at"]))
        assert "unauthenticated" in str((await w.receiver.job(job)).trouble)
        await w.stop()
        await w.start(loops=False, reader_api_key="rdr_the-new-one")
        await finished(w, job)
        await finished(w, other)
        assert good(w, job) == pages(250), "page by page, none of them twice"


async def test_a_key_that_works_again_is_found_out_within_minutes_by_itself(tmp_path: Path) -> None:
    async with faulty(tmp_path) as w:
        job = await ended(w)
        w.reader.faults["rotate_key"] = "rdr_another"
        await w.rush(lambda: False, until=w.clock.steady() + 300)
        assert w.told == []
        del w.reader.faults["rotate_key"]
        back = w.clock.steady()
        await finished(w, job)
        assert w.clock.steady() - back < 2 * PAUSE
        assert good(w, job) == pages(250)


@pytest.mark.slow
async def test_while_a_key_is_refused_not_even_other_jobs_are_asked_for(tmp_path: Path) -> None:
    async with faulty(tmp_path) as w:
        jobs = [await ended(w, 1) for _ in range(12)]
        w.reader.faults["unauthorized"] = {"rate": 1, "times": 1}
        await w.runtime.tick(60)
        (at,) = [row["at"] for row in w.requests() if row["status"] == 401]
        for job in jobs:
            await finished(w, job)
        assert [row for row in w.requests(since=at + 20) if row["at"] < at + PAUSE] == []
        assert w.requests(since=at + PAUSE) != []


async def test_a_402_pauses_and_the_job_is_handed_in_once_when_there_are_credits_again(tmp_path: Path) -> None:
    async with faulty(tmp_path) as w:
        w.reader.faults["out_of_credits"] = 1
        with pytest.raises(ReaderUnavailableError, match=r"insufficient_credits.*written down"):
            await w.receiver.submit(w.urls(2))
        began = w.clock.steady()
        await w.rush(lambda: False, until=began + 30)
        assert [row["status"] for row in w.requests()] == [402]
        await w.rush(lambda: False, until=began + 10 * PAUSE)
        assert 2 < len(w.requests()) <= 12
        assert w.reader.engine.workspace.jobs == {}
        del w.reader.faults["out_of_credits"]
        await w.rush(lambda: len(w.told) == 1)
        (job,) = w.reader.engine.workspace.jobs
        await finished(w, job)


# Answers that are too much


async def test_an_answer_that_drips_is_cut_off_and_asked_for_in_halves(tmp_path: Path) -> None:
    async with faulty(tmp_path) as w:
        w.runtime.reader._deadline = 0.5  # type: ignore[union-attr]
        w.reader.faults["drip"] = {"rate": 1, "value": 600, "match": "limit=100"}
        await finished(w, job := await ended(w, 150))
        assert struck(w, job)[0] == w.looks(job)[0]
        assert all(look.limit == 100 for look in struck(w, job))
        first, second = w.looks(job)[:2]
        assert ((first.skip, first.limit), (second.skip, second.limit)) == ((0, 100), (0, 50))
        assert sorted({skip for skip, _ in good(w, job)}) == sorted(skip for skip, _ in good(w, job)), "no page twice"


async def test_a_result_that_cannot_be_had_even_alone_parks_its_job_visibly(tmp_path: Path) -> None:
    async with faulty(tmp_path) as w:
        w.runtime.reader._deadline = 0.1  # type: ignore[union-attr]
        job, other = await ended(w, 150), await ended(w, 2)
        w.reader.faults["drip"] = {"rate": 1, "value": 600, "match": f"/v1/jobs/{job}"}
        await w.rush(lambda: False, until=w.clock.steady() + HOUR)
        assert [look.limit for look in w.looks(job)][:7] == [100, 50, 25, 12, 6, 3, 1]
        assert len(w.looks(job)) < 15
        shown = await w.receiver.job(job)
        assert (shown.state, "not complete" in (shown.trouble or "")) == ("parked", True)
        await finished(w, other)
        w.reader.faults.replace({"lose": 1.0})
        await w.deliver(job)
        await finished(w, job)


async def test_after_an_answer_that_was_too_large_no_page_is_asked_for_in_halves_in_vain(tmp_path: Path) -> None:
    """As soon as one half came through, whole pages are asked for again: halves read ahead by then would be thrown away."""
    async with faulty(tmp_path) as w:
        job = await ended(w, 450)
        w.reader.faults["gzip_bomb"] = {"rate": 1, "times": 1, "value": 128, "match": "skip=100&"}
        await finished(w, job)
        read = good(w, job)
        assert read[read.index((100, 50)) :] == [(100, 50), (150, 100), (250, 100), (350, 100)]


async def test_a_gzip_bomb_is_cut_off_and_the_job_read_all_the_same(tmp_path: Path) -> None:
    async with faulty(tmp_path) as w:
        w.reader.faults["gzip_bomb"] = {"rate": 1, "times": 2, "value": 128, "match": "GET /v1/jobs"}
        await finished(w, job := await ended(w, 150))
        assert [look.limit for look in w.looks(job)][:3] == [100, 50, 25]
        assert len(struck(w, job)) == 2


@pytest.mark.parametrize("ask", ["submit", "cancel"])
async def test_a_gzip_bomb_for_an_answer_to_a_command_is_an_answer_that_did_not_come(tmp_path: Path, ask: str) -> None:
    """Who asked is told what any other failure would be told as, and what was asked for goes on."""
    async with faulty(tmp_path, job_seconds=600) as w:
        job = await w.elsewhere(2)
        w.reader.faults["gzip_bomb"] = {"rate": 1, "times": 1, "value": 8}
        with pytest.raises(ReaderUnavailableError, match="larger than"):
            await (w.receiver.submit(w.urls(2)) if ask == "submit" else w.receiver.cancel(job))
        del w.reader.faults["gzip_bomb"]
        if ask == "submit":
            await w.rush(lambda: len(w.told) == 1)
        else:
            await finished(w, job)
