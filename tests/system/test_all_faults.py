"""Two hundred jobs while every fault of the sandbox is on at once: what is stored, told and asked, by the sandbox's ledger."""

from __future__ import annotations

import asyncio
import copy
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import pytest
import structlog
from reconcile_kit import Hourglass, Look, Rows, World, busiest, least, world

from receiver.errors import ReaderUnavailableError
from receiver.sandbox.agenda import Agenda
from receiver.sandbox.ledger import job_row, true_results
from receiver.sandbox.switches import SWITCHES

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(600)]

JOBS, RESULTS = 200, 500
RPM = 60
PACE = 15
"""Fast enough for pauses and drips to pass, slow enough for a busy machine to keep its leases; what nobody waits for is skipped."""
DEADLINE = 5.0
"""Real seconds for an answer, instead of 60: so much less does one cost that drips."""

WEBHOOKS: Final[dict[str, Any]] = {
    "lose": 0.1,
    "lose_attempts": 0.15,
    "duplicate": 0.1,
    "reorder": 0.2,
    "delay": {"rate": 0.1, "value": 60},
    "early": {"rate": 0.2, "value": 900},
    "wrong_secret": 0.05,
    "unsigned": 0.05,
    "stale_timestamp": 0.05,
    "future_timestamp": 0.05,
    "corrupt_body": 0.05,
    "odd_body": 0.05,
    "unknown_event": 0.05,
    "ghost": 0.05,
}
API: Final[dict[str, Any]] = {
    "latency": {"rate": 0.02, "value": 0.02},
    "rate_limit": {"rate": 0.01, "value": 3},
    "rate_limit_bare": 0.01,
    "rate_limit_date": {"rate": 0.01, "value": 5},
    "rate_limit_odd": 0.01,
    "server_error": 0.02,
    "error_burst": 0.01,
    "unauthorized": 0.004,
    "out_of_credits": 0.03,
    "redirect": 0.01,
    "foreign_next": 0.05,
    "html": 0.01,
    "false_success": 0.01,
    "truncate": 0.01,
    "cut": 0.01,
    "reset": 0.01,
    "drip": {"rate": 1, "after": 300, "times": 2, "value": 600, "match": "limit=100"},
    "gzip_bomb": {"rate": 0.005, "value": 80},
    "unborn": {"rate": 0.1, "value": 90},
    "requeue": 0.01,
    "has_more_forever": 0.1,
    "has_more_early": 0.03,
    "total_drift": 0.01,
    "shuffle": 0.03,
    "double": 0.01,
}
ELSEWHERE: Final = {"rotate_key": "a key is replaced by a person", "stream_cut": "no stream", "stream_deaf": "no stream"}
"""Faults that are not on, and why."""
SPOILS = frozenset({"html", "false_success", "truncate", "cut", "reset", "drip", "gzip_bomb"})
"""What makes an answer with status 200 one that is none."""
SHRINKS = frozenset({"drip", "gzip_bomb"})
MISLEADS = SHRINKS | {"total_drift", "has_more_forever"}
"""What has other pages asked for: smaller ones, or one past the end."""
BREAKS = frozenset({"requeue", "total_drift", "shuffle", "double"})
"""What makes a whole pass one that has to be begun again."""


class Calendar(Agenda):
    """The sandbox's agenda by the test's clock, which may be turned."""

    def __init__(self, clock: Hourglass) -> None:
        super().__init__()
        self._clock = clock
        self._calls: dict[asyncio.Task[None], float] = {}

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        async def run() -> None:
            await self._clock.sleep(max(seconds, 0.0) + 0.001)
            call()

        task = asyncio.create_task(run())
        self._calls[task] = self._clock.steady() + max(seconds, 0.0) + 0.001
        task.add_done_callback(self._calls.pop)

    def next_due(self) -> float | None:
        """Seconds until something is."""
        return min(self._calls.values(), default=float("inf")) - self._clock.steady() if self._calls else None

    def close(self) -> None:
        for task in self._calls:
            task.cancel()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of warnings, each of them deserved."""
    with structlog.testing.capture_logs():
        yield


SEEDS = [int(seed) for seed in os.environ.get("ALL_FAULTS_SEEDS", "1").split(",")]
"""Each takes a minute or two: `ALL_FAULTS_SEEDS=1,2,3 pytest -m slow tests/system/test_all_faults.py` runs more stories."""


def test_all_faults_there_are_are_on() -> None:
    assert {*WEBHOOKS, *API, *ELSEWHERE} == {name for name in SWITCHES if SWITCHES[name].group != "choices"}


@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_is_lost_doubled_or_wasted_while_all_faults_are_on(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Hourglass(PACE)
    calendar: list[Calendar] = []

    def agenda() -> Calendar:
        calendar.append(Calendar(clock))
        return calendar[0]

    monkeypatch.setattr("receiver.sandbox.engine.Agenda", agenda)
    async with world(
        tmp_path,
        loops=False,
        clock=clock,
        seed=seed,
        rpm=RPM,
        active_jobs=JOBS,
        job_seconds="20..300",
        page_errors=0.02,
        retry_errors=0.3,
        job_failures=0.1,
        page_size=200,
        nulls="absent",
        settings={"reader_rpm": RPM},
    ) as w:
        w.runtime.reader._deadline = DEADLINE  # type: ignore[union-attr]
        w.reader.faults.replace(dict(WEBHOOKS))
        others = []
        for number in range(JOBS // 2):
            if number % RPM == 0:
                clock.turn(61)  # they do not count among our requests, and were before them
            others.append(await w.elsewhere(RESULTS))
        clock.turn(61)
        began = clock.steady()
        w.reader.faults.merge(API)
        for job in others:
            await w.receiver.track(job)
        submitting = asyncio.gather(*(submit(w) for _ in range(JOBS - len(others))))
        await let_pass(w, calendar[0], lambda: submitting.done() and all_told(w))
        await submitting

        judge_budget(w, began)
        jobs = list(w.reader.engine.workspace.jobs)
        verified = [await judge_results(w, job) for job in jobs]
        tally = judge_all_requests(w)
        print(f"seed {seed}: {dict(tally)}, {verified.count(False)} unverified, {clock.steady() - began:.0f} s")  # noqa: T201
        judge_faults(w)


async def submit(w: World) -> None:
    """Hand in a job; if Reader does not take it now, it is written down and sent later."""
    with suppress(ReaderUnavailableError):
        await w.receiver.submit(w.urls(RESULTS))


def all_told(w: World) -> bool:
    """Whether each job there is has ended for good, and its last end was told; no webhook is under way."""
    jobs = w.reader.engine.workspace.jobs
    told = {(each.event.job_id, each.event.job["completedAt"]) for each in w.told}
    ends = {(job.id, job_row(job, w.clock.steady())["completedAt"]) for job in jobs.values()}
    return len(jobs) == JOBS and w.reader.engine.settled() and ends <= told


async def let_pass(w: World, calendar: Calendar, done: Callable[[], bool]) -> None:
    """Do what is due, then skip the time in which nothing is."""
    deliveries = w.reader.engine.courier._under_way
    while not done():
        await w.runtime.tick(3600)
        while deliveries:
            await asyncio.wait(set(deliveries))
        services = (w.runtime.reconciler, w.runtime.submitter, w.runtime.dispatcher)
        dues = [wait for service in services if service is not None and (wait := await service.next_due()) is not None]
        dues += [wait for wait in [calendar.next_due()] if wait is not None]
        assert dues, "nothing will ever be due"
        w.clock.turn(min(dues))
        await asyncio.sleep(0)


def judge_budget(w: World, began: float) -> None:
    """No window of 60 s holds more than the budget, though it is used up."""
    asked = w.requests(began)
    assert busiest(asked) <= RPM
    assert busiest(asked) > RPM * 0.9
    assert [row for row in asked if row["status"] == 429 and "rate_limit" not in str(row["fault"])] == []


async def judge_results(w: World, job: str) -> bool:
    """One event for each generation that was told, each with the truth of its own; False for one that is doubted."""
    true = job_row(w.reader.engine.workspace.jobs[job], w.clock.steady())
    ends = {end["completedAt"]: end["generation"] for end in true["generations"]}
    told = w.told_of(job)
    assert len({each.event.generation for each in told}) == len({each.event.id for each in told}) == len(told)
    numbers = [ends[each.event.job["completedAt"]] for each in told]
    assert sorted(set(numbers)) == numbers, "each end once, in their order"
    assert numbers[-1] == len(ends)
    for number, each in zip(numbers, told, strict=True):
        if each.event.verified:
            assert each.rows == rows_of(w, job, number)
    last = told[-1]
    assert await w.rows(job) == last.rows
    shown = await w.receiver.job(job)
    assert (shown.state, shown.status, shown.verified) == ("settled", true["status"], last.event.verified)
    return last.event.verified


def rows_of(w: World, job: str, generation: int) -> Rows:
    """The true results of one generation."""
    then = copy.copy(w.reader.engine.workspace.jobs[job])
    then.rounds = then.rounds[:generation]
    then._latest = {index: run.number - 1 for run in then.rounds[1:] for index in run.pages}
    return Counter((row["url"], row["error"], row["sha256"]) for row in true_results(then, then.round.ends_at))


def judge_all_requests(w: World) -> Counter[str]:
    """What was asked for, by what it was good for: no more than results need, but for what faults forced."""
    looks: dict[str, list[Look]] = {}
    for row in w.requests():
        if row["method"] == "GET":
            query = parse_qs(row["query"])
            look = Look(row["at"], int(query["skip"][0]), int(query["limit"][0]), row["status"], row["fault"])
            looks.setdefault(row["path"].removeprefix("/v1/jobs/"), []).append(look)
    cues = Counter(row["job"] for row in w.reader.engine.ledger.lists(0)["deliveries"] if row["status"] == 202)
    return sum((judge_requests(w, job, looks[job], cues[job]) for job in w.reader.engine.workspace.jobs), Counter[str]())


def judge_requests(w: World, job: str, looks: list[Look], cues: int) -> Counter[str]:
    """No page is asked for twice, but one that was behind a spoilt one, or whose pass was broken; nor the first for no cue."""
    counts = Counter[str]()
    for run in w.reader.engine.workspace.jobs[job].rounds:
        mine = [
            look
            for look in looks
            if look.limit > 1 and run.ends_at <= look.at < (run.overtaken_at or float("inf")) and "early" not in faults(look)
        ]
        broke = sum(bool(faults(look) & BREAKS) for look in mine)
        spoilt = [look for look in mine if look.status != 200 or faults(look) & SPOILS]
        good = [look for look in mine if look not in spoilt and not faults(look) & BREAKS]
        useful = Counter(look.skip for look in good)
        count = RESULTS if run.fatal is None else sum(rows_of(w, job, run.number).values())
        whole = {100 * page for page in range(least(count))}
        if run.number > 1 and good and good[0].skip > 0:
            useful[good[0].skip] -= 1  # asked for of the end before, which the fault had overtaken: it told of this one
        for skip, times in useful.items():
            # What was ahead of a spoilt page went with it; of one that was too large, the halves too, once whole ones do again.
            below = sum(1 + bool(faults(look) & SHRINKS) for look in spoilt if look.skip < skip)
            assert times <= 1 + broke + below + (cues if skip == 0 else 0), show(job, run.number, skip, mine)
            assert skip in whole or any(faults(look) & MISLEADS for look in mine), show(job, run.number, skip, mine)
        counts += Counter(least=least(count), useful=sum(useful.values()), broke=broke, spoilt=len(spoilt), runs=1)
    counts["probes"] = sum(look.limit == 1 for look in looks)
    return counts


def show(job: str, generation: int, skip: int, looks: list[Look]) -> str:
    lines = [f"{look.at:.2f} {look.skip}+{look.limit} {look.status} {look.fault}" for look in looks]
    return "\n".join([f"{job}, generation {generation}: why {skip}?", *lines])


def faults(look: Look) -> set[str]:
    return set((look.fault or "").split(","))


def judge_faults(w: World) -> None:
    """Each fault struck, so that this proves something."""
    lists = w.reader.engine.ledger.lists(0)
    struck = {name for row in lists["requests"] + lists["deliveries"] for name in str(row["fault"]).split(",")}
    silent = {"reorder", "delay", "unknown_event", "ghost", "unborn"}  # these the ledger does not note
    assert {*WEBHOOKS, *API} - struck <= silent
