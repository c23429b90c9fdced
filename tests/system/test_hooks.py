"""Events on their way down: to URLs over real sockets and to Python handlers, at least once, under one id, until they are dead."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from reconcile_kit import Hourglass, Rows, Told, World, _identity, world
from sqlalchemy import select
from standardwebhooks import Webhook, WebhookVerificationError
from system_kit import Served, delivery, downstream, knowing, start_job, until

from receiver.core.delivering import Persistence
from receiver.hooks.event import Event, Handler, Results
from receiver.hooks.python import PythonTarget
from receiver.packing import unpack
from receiver.sandbox import BackgroundSandbox
from receiver.store.tables import hook_attempts, hook_deliveries
from tests.loopback import Asked, Line, Script, answering, resetting, serving, silent

pytestmark = pytest.mark.anyio

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
DAY = 24 * 3600.0
ATTEMPTS = Persistence().attempts
QUICK: dict[str, Any] = {"seed": 1, "job_seconds": 0.1, "queue_seconds": 0.05}


def by_hand(**more: Any) -> dict[str, Any]:
    """A world whose time a test turns."""
    return {**QUICK, "webhooks": False, "loops": False, "clock": Hourglass(10), **more}


def hook(url: str, name: str = "hook", **more: Any) -> dict[str, Any]:
    return {"name": name, "url": url, "secret": SECRET, **more}


def hooks(*those: dict[str, Any]) -> dict[str, Any]:
    return {"receiver_hooks": list(those)}


def ids(asked: list[Asked]) -> list[str]:
    return [each.headers["webhook-id"] for each in asked]


def job_of(asked: Asked) -> str:
    return str(json.loads(asked.body)["data"]["job"]["id"])


async def states(w: World, name: str = "hook") -> list[tuple[str, int]]:
    """State and attempts of each of the hook's deliveries."""
    d = hook_deliveries
    statement = select(d.c.state, d.c.attempts).where(d.c.hook == name).order_by(d.c.created_at)
    return [tuple(row) for row in await w.runtime.database.read(lambda tx: tx.execute(statement).all())]


async def ended(w: World, count: int = 3, **more: Any) -> str:
    """A job that we know of, ended at Reader: the next pass reads it."""
    job = await w.elsewhere(count, **more)
    await w.reader.settled()
    await w.receiver.track(job)
    return job


def handled_by(w: World, handler: Callable[[Event, Rows], None]) -> None:
    """Have this be the Python handler of all ends, instead of the world's own."""

    async def handle(event: Event, results: Results) -> None:
        handler(event, Counter([_identity(result) async for result in results]))

    call(w, handle)


def call(w: World, handler: Handler) -> None:
    lane = w.runtime.dispatcher.lanes["told"]
    lane.hook = replace(lane.hook, target=PythonTarget("told", handler, decode=unpack))


# What is sent


async def test_an_event_is_signed_so_that_the_standards_own_library_verifies_it(tmp_path: Path) -> None:
    async with serving(answering(204)) as there, world(tmp_path, **QUICK, settings=hooks(hook(there.url))) as w:
        job = await w.elsewhere(3, query="?sandbox=error")
        told = await w.event(job)
        await w.reader.until(lambda: bool(there.asked))
        (asked,) = there.asked
        payload = Webhook(SECRET).verify(asked.body, asked.headers)
        for other in ("whsec_" + "A" * 32, SECRET[:-4] + "AAAA"):
            with pytest.raises(WebhookVerificationError):
                Webhook(other).verify(asked.body, asked.headers)
        data = payload["data"]
        assert (payload["type"], asked.headers["webhook-id"]) == ("job.completed", told.event.id)
        assert (data["generation"], data["failedUrls"], data["discoveredBy"]) == (1, 1, "webhook")
        assert data["resultsUrl"] == f"/v1/jobs/{job}"
        assert data["job"] | {"status": "completed", "id": job, "total": 3} == data["job"]
        assert "results" not in data["job"]


async def test_a_hook_hears_of_what_it_asked_for_and_of_nothing_else(tmp_path: Path) -> None:
    async with (
        serving(answering(200)) as failures,
        serving(answering(200)) as all_ends,
        world(
            tmp_path,
            **by_hand(),
            settings=hooks(hook(failures.url, "failures", events=["job.failed"]), hook(all_ends.url, "all", secret=None)),
        ) as w,
    ):
        good = await ended(w)
        bad = await w.elsewhere(5)
        w.doom(bad, 2)
        await w.reader.settled()
        await w.receiver.track(bad)
        await w.rush(lambda: len(w.told) == 2)
        assert [(job_of(asked), json.loads(asked.body)["type"]) for asked in failures.asked] == [(bad, "job.failed")]
        assert {job_of(asked) for asked in all_ends.asked} == {good, bad}
        assert all("webhook-signature" not in asked.headers for asked in all_ends.asked)


# When it does not arrive


async def test_after_failures_of_every_kind_it_arrives_under_the_same_id_with_growing_pauses(tmp_path: Path) -> None:
    """Answered with an error, redirected, reset, never answered, refused: sent again, signed afresh, otherwise the same."""
    times: list[float] = []

    def timed(script: Script) -> Script:
        async def say(line: Line, asked: Asked) -> None:
            times.append(w.clock.steady())
            await script(line, asked)

        return say

    bad = [answering(500), answering(302, location="http://127.0.0.1:1/"), resetting, silent, answering(400), answering(404)]
    async with (
        serving(*[timed(script) for script in (*bad, answering(200))]) as there,
        world(tmp_path, **by_hand(), settings=hooks(hook(there.url, timeout=1.0))) as w,
    ):
        job = await ended(w)
        await w.rush(lambda: len(there.asked) == len(bad) + 1)
        assert len(w.told_of(job)) == 1, "the neighbour needed one attempt"
        assert set(ids(there.asked)) == {w.told_of(job)[0].event.id}
        assert len({asked.body for asked in there.asked}) == 1
        assert await states(w) == [("delivered", len(bad) + 1)]
        pauses = [later - earlier for earlier, later in pairwise(times)]
        for number, pause in enumerate(pauses):
            assert pause >= 2.5 * 2**number, "the longer it fails, the longer the pause"
            assert pause < 5 * 2**number + 60, "but no longer than that"
        await w.rush(lambda: False, until=w.clock.steady() + DAY)
        assert len(there.asked) == len(bad) + 1, "and then no more"


async def test_a_hook_that_is_gone_is_left_alone_and_seen_to_be_back(tmp_path: Path) -> None:
    """Nothing more is sent to it but one delivery now and then; once that is taken, all that has waited."""
    back = False

    async def gone(line: Line, _: Asked) -> None:
        await line.answer(200 if back else 410)

    async with serving(gone) as there, world(tmp_path, **by_hand(), settings=hooks(hook(there.url))) as w:
        for _ in range(3):
            await ended(w)
        await w.rush(lambda: len(w.told) == 3)
        said = len(there.asked)
        await w.rush(lambda: False, until=w.clock.steady() + 3000)
        assert len(there.asked) == said
        await ended(w)
        await w.rush(lambda: len(there.asked) == said + 1)
        back = True
        await w.rush(lambda: len(there.asked) >= said + 5)
        assert {state for state, _ in await states(w)} == {"delivered"}
        assert len(set(ids(there.asked))) == 4


async def test_a_hook_that_says_when_to_come_back_is_not_asked_before(tmp_path: Path) -> None:
    times: list[float] = []

    async def busy(line: Line, _: Asked) -> None:
        times.append(w.clock.steady())
        await line.answer(503 if len(times) == 1 else 200, retry_after="900")

    async with serving(busy) as there, world(tmp_path, **by_hand(), settings=hooks(hook(there.url))) as w:
        await ended(w)
        await w.rush(lambda: len(times) == 2)
        assert times[1] - times[0] >= 900


@pytest.mark.slow
async def test_an_event_that_always_fails_is_dead_after_its_last_attempt_and_its_neighbours_go_on(tmp_path: Path) -> None:
    """Dead for one hook: the other hook has it, and so has the handler; other jobs' events go to the failing one all the same."""
    poison: set[str] = set()

    async def picky(line: Line, asked: Asked) -> None:
        await line.answer(500 if job_of(asked) in poison else 200)

    async with (
        serving(picky) as there,
        serving(answering(200)) as other,
        world(tmp_path, **by_hand(), settings=hooks(hook(there.url), hook(other.url, "other"))) as w,
    ):
        first = await ended(w)
        poison.add(first)
        began = w.clock.steady()
        await w.rush(lambda: bool(w.told_of(first)) and bool(other.asked))
        second = await ended(w)
        await w.rush(lambda: any(job_of(asked) == second for asked in there.asked))
        assert sum(job_of(asked) == first for asked in there.asked) < ATTEMPTS, "nobody waited for the failing one"
        await w.rush(lambda: False, until=began + 10 * DAY)
        tried = [asked for asked in there.asked if job_of(asked) == first]
        assert len(tried) == ATTEMPTS
        assert len(set(ids(tried))) == 1
        assert sorted(await states(w)) == [("dead", ATTEMPTS), ("delivered", 1)]
        assert Counter(job_of(asked) for asked in other.asked) == {first: 1, second: 1}
        assert [len(w.told_of(job)) for job in (first, second)] == [1, 1]


@pytest.mark.parametrize("loops", [True, False], ids=["by the loops", "in a bounded pass"])
async def test_a_hook_that_hangs_holds_up_nobody_else(tmp_path: Path, loops: bool) -> None:
    """However many events it holds: a dozen are on their way to it, or wait for their turn, while the other gets each of them."""
    over = asyncio.Event()

    async def hang(line: Line, _: Asked) -> None:
        await over.wait()
        await line.answer(200)

    async with (
        serving(hang) as there,
        serving(answering(200)) as other,
        world(tmp_path, **QUICK, loops=loops, settings=hooks(hook(there.url, timeout=300), hook(other.url, "other"))) as w,
    ):
        for _ in range(12):
            await w.elsewhere(1)
        await w.reader.settled()
        ticking = None if loops else asyncio.create_task(w.runtime.tick(60))
        await w.reader.until(lambda: len(other.asked) == 12)
        assert await states(w) == [("pending", 0)] * 12
        over.set()
        if ticking is not None:
            await ticking


async def test_a_hook_that_is_taken_out_of_the_settings_gets_no_more_events_and_one_put_in_gets_the_next(tmp_path: Path) -> None:
    async with serving(answering(200)) as there, world(tmp_path, **by_hand(), settings=hooks(hook(there.url, "old"))) as w:
        first = await ended(w)
        await w.rush(lambda: len(there.asked) == 1 and w.told_of(first))
        await w.stop()
        await w.start(loops=False, **hooks(hook(there.url, "new")))
        second = await ended(w)
        await w.rush(lambda: len(there.asked) == 2 and w.told_of(second))
        await w.rush(lambda: False, until=w.clock.steady() + DAY)
        assert [job_of(asked) for asked in there.asked] == [first, second]


# Python handlers


async def test_a_handler_that_raises_gets_the_same_event_again_and_all_of_its_results(tmp_path: Path) -> None:
    calls: list[Told] = []

    def flaky(event: Event, rows: Rows) -> None:
        calls.append(Told(event, rows))
        if len(calls) < 3:
            raise ValueError("not yet")

    async with world(tmp_path, **by_hand()) as w:
        handled_by(w, flaky)
        job = await ended(w, 150)
        await w.rush(lambda: len(calls) == 3)
        assert len({told.event.id for told in calls}) == 1
        assert [told.event.attempt for told in calls] == [1, 2, 3]
        assert all(told.rows == w.true_rows(job) for told in calls)
        assert await states(w, "told") == [("delivered", 3)]
        await w.rush(lambda: False, until=w.clock.steady() + DAY)
        assert len(calls) == 3


@pytest.mark.slow
async def test_a_handler_that_always_raises_is_dead_in_the_end_and_others_events_are_not(tmp_path: Path) -> None:
    calls: Counter[str] = Counter()

    def picky(event: Event, rows: Rows) -> None:
        calls[event.job_id] += 1
        if event.job_id == poison:
            raise KeyError("its fault")

    async with world(tmp_path, **by_hand()) as w:
        handled_by(w, picky)
        poison = await ended(w)
        await w.rush(lambda: calls[poison])
        good = await ended(w)
        await w.rush(lambda: False, until=w.clock.steady() + 10 * DAY)
        assert calls == {poison: ATTEMPTS, good: 1}
        assert sorted(await states(w, "told")) == [("dead", ATTEMPTS), ("delivered", 1)]


async def test_a_handler_gets_its_own_events_results_though_the_job_has_ended_again_since(tmp_path: Path) -> None:
    """And the generations come in their order, though the first had to be tried twice."""
    calls: list[Told] = []

    def late(event: Event, rows: Rows) -> None:
        calls.append(Told(event, rows))
        if len(calls) == 1:
            raise ConnectionError("the index is down")

    async with world(tmp_path, **by_hand()) as w:
        handled_by(w, late)
        job = await ended(w, 101, query="?sandbox=error-once")
        before = w.true_rows(job)
        await w.runtime.tick(60)
        assert len(calls) == 1
        await w.retry(job)
        await w.reader.settled()
        await w.receiver.track(job)
        await w.rush(lambda: len(calls) == 3)
        assert [told.event.generation for told in calls] == [1, 1, 2]
        assert calls[0].event.id == calls[1].event.id != calls[2].event.id
        assert calls[0].rows == calls[1].rows == before
        assert calls[2].rows == w.true_rows(job) != before


@pytest.mark.slow
async def test_a_handler_may_leave_its_results_unread_or_read_them_by_half(tmp_path: Path) -> None:
    read: list[int] = []

    async def hasty(event: Event, results: Results) -> None:
        count = 0
        async for _ in results:
            count += 1
            if count == 60:
                break
        read.append(count)

    async with world(tmp_path, **by_hand()) as w:
        call(w, hasty)
        await ended(w, 150)
        await w.rush(lambda: bool(read))
        assert read == [60]
        assert await states(w, "told") == [("delivered", 1)]


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
async def test_a_commit_that_is_not_awaited_is_a_failure_that_says_so(tmp_path: Path) -> None:
    """Else the event would pass for done, with nothing written."""
    written: list[str] = []

    async def forgetful(event: Event, _: Results) -> None:
        committing = event.commit(lambda connection: written.append(str(connection)))
        if event.attempt > 1:
            await committing

    async with world(tmp_path, **by_hand()) as w:
        call(w, forgetful)
        await ended(w)
        await w.rush(lambda: bool(written))
        assert await states(w, "told") == [("delivered", 2)]
        log = hook_attempts.c
        found = await w.runtime.database.read(lambda tx: tx.execute(select(log.error).order_by(log.id)).scalars().all())
        assert found[0] == "its commit() failed: it was not awaited: write `await event.commit(…)`"


APP = """
import asyncio, json, sys
from pathlib import Path
from receiver import Receiver

receiver = Receiver()

@receiver.on("job.completed")
async def index(event, results):
    urls = [result["url"] async for result in results]
    told = {"event": "handling", "id": event.id, "attempt": event.attempt, "urls": urls}
    print(json.dumps(told), file=sys.stderr, flush=True)
    if not Path("go").exists():
        await asyncio.sleep(3600)
    print(json.dumps({"event": "handled", "id": event.id}), file=sys.stderr, flush=True)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_handles_an_event_handles_it_again(tmp_path: Path) -> None:
    """At least once: the handler of the next process gets the same event, and the URL that had it already does not."""
    (tmp_path / "app.py").write_text(APP)
    with BackgroundSandbox(**QUICK) as reader, downstream() as there:
        settings = knowing(reader, RECEIVER_HOOKS=json.dumps([hook(there.url)]), PYTHONDONTWRITEBYTECODE="1")
        server = Served(tmp_path, "app:receiver", settings=settings)
        job = start_job(reader, 3)
        reader.settled()
        assert server.post(delivery(job)).status == 202
        first = server.logged("handling", 20)
        until(lambda: server.rows("SELECT 1 FROM hook_deliveries WHERE hook = 'hook' AND state = 'delivered'"))
        server.kill()
        (tmp_path / "go").touch()
        with Served(tmp_path, "app:receiver", settings=settings) as again:
            assert again.logged("handling", 20)["urls"] == first["urls"]
            assert again.logged("handled", 20)["id"] == first["id"]
            until(lambda: not again.rows("SELECT 1 FROM hook_deliveries WHERE state <> 'delivered'"))
        assert there.ids == [first["id"]]


@pytest.mark.slow
def test_a_real_server_tries_again_by_itself_until_the_hook_takes_it(tmp_path: Path) -> None:
    """All together, in real time: a process, its loops, a hook that refuses at first."""
    with BackgroundSandbox(**QUICK) as reader, downstream(500) as there:
        with Served(tmp_path, settings=knowing(reader, RECEIVER_HOOKS=json.dumps([hook(there.url)]))) as server:
            job = start_job(reader, 3)
            reader.settled()
            assert server.post(delivery(job)).status == 202
            until(lambda: len(there.got) == 2)
            assert server.logged("hook_failed")["hint"] == "answered 500"
            server.logged("delivered", attempt=2)
        for headers, body in there.got:
            assert Webhook(SECRET).verify(body, headers)["data"]["job"]["id"] == job
        assert len(set(there.ids)) == 1


@pytest.mark.slow
async def test_unrelated_events_are_delivered_at_the_same_time(tmp_path: Path) -> None:
    """One slow answer after another would make the last of many wait for long."""
    arrived = asyncio.Semaphore(0)
    all_here = asyncio.Event()

    async def together(line: Line, _: Asked) -> None:
        arrived.release()
        await all_here.wait()
        await line.answer(200)

    async with serving(together) as there, world(tmp_path, **QUICK, settings=hooks(hook(there.url))) as w:
        for _ in range(4):
            await w.elsewhere(1)
        async with asyncio.timeout(20):
            for _ in range(4):
                await arrived.acquire()
        all_here.set()
        await w.reader.until(lambda: len(w.told) == 4)
