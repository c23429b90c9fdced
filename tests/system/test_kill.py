"""`kill -9` of a server at work: what it acknowledged is stored, and every job still gives exactly one event."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from functools import partial
from pathlib import Path

import httpx
import pytest
from system_kit import SECRET, Hook, Load, Served, delivery, downstream, free_port, knowing, start_job, until

from receiver.sandbox import BackgroundSandbox

JOBS_A_CYCLE = 3
PAGES = 130
"""Two pages of results a job, so that it can be killed between them."""


class Deliveries:
    """Bodies for a load: signs of life of true jobs, some about no job, some that make no sense. No two alike."""

    def __init__(self, jobs: list[str]) -> None:
        self._jobs = jobs
        self._dice = random.Random(1)

    def __call__(self) -> bytes:
        kind = self._dice.random()
        if kind < 0.1:
            return delivery(random.choice(self._jobs), "job.completed", at=time.time_ns())
        if kind < 0.7:
            return delivery(random.choice(self._jobs), "job.page", at=time.time_ns())
        if kind < 0.9:
            return delivery("none", "credit.low", at=time.time_ns())
        return json.dumps({"nothing": "to be used", "at": time.time_ns()}).encode()


def reached(load: Load, count: int) -> bool:
    return len(load.acknowledged) >= count


def told_of(hook: Hook, count: int) -> bool:
    return len(set(hook.ids)) >= count


def survives(folder: Path, cycles: int) -> None:
    port = free_port()
    jobs: list[str] = []
    acknowledged: set[bytes] = set()
    dice = random.Random(cycles)
    with (
        downstream() as hook,
        BackgroundSandbox(
            seed=1,
            speed=10,
            job_seconds="5..25",
            rpm=100_000,
            webhook_url=f"http://127.0.0.1:{port}/hooks/reader",
            webhook_secret=SECRET,
            duplicate=0.3,
            reorder=0.3,
        ) as reader,
    ):
        hooks = json.dumps([{"name": "downstream", "url": hook.url}])
        settings = knowing(reader, READER_RPM="100000", RECEIVER_HOOKS=hooks)
        for cycle in range(cycles):
            server = Served(folder, port=port, settings=settings)
            for _ in range(JOBS_A_CYCLE):
                jobs.append(start_job(reader, PAGES))
                # Else nobody may ever hear of it: the stream's word and all three attempts of its webhook can meet nobody at home.
                assert httpx.post(f"{server.url}/v1/jobs", json={"id": jobs[-1]}, trust_env=False).is_success
            with Load(port, hands=4, make=Deliveries(jobs)) as load:
                # At the first answers, in the thick of it, or with some jobs done.
                until(partial(reached, load, dice.choice([1, 50, 300])))
                if cycle % 3 == 2:
                    until(partial(told_of, hook, len(jobs) // 2))
                time.sleep(dice.random() * 0.3)  # wherever it is then
                server.kill()
            acknowledged |= load.acknowledged
            stored = {body for (body,) in server.rows("SELECT body FROM deliveries")}
            assert acknowledged - stored == set(), f"lost in cycle {cycle}"
        with Served(folder, port=port, settings=settings) as server:
            until(partial(told_of, hook, len(jobs)), within=60)
            until(lambda: not server.rows("SELECT 1 FROM hook_deliveries WHERE state <> 'delivered'"), within=60)
            reader.settled()
        truth = reader.ledger()["jobs"]

    assert len(acknowledged) > 10 * cycles
    assert set(jobs) == set(truth)
    events = server.rows("SELECT id, job_id, generation, type FROM events")
    assert sorted(event[1:] for event in events) == sorted((job, 1, "job.completed") for job in jobs)
    # At least once each, as it says in the specification, and nothing but what is in the outbox.
    assert set(hook.ids) == {event[0] for event in events}
    told = {headers["webhook-id"]: json.loads(body)["data"]["job"]["id"] for headers, body in hook.got}
    assert Counter(told.values()) == Counter(jobs)
    results = server.rows("SELECT job_id, url FROM results WHERE generation = 1")
    assert Counter(results) == Counter((job, row["url"]) for job in jobs for row in truth[job]["results"])
    assert server.rows("PRAGMA integrity_check") == [("ok",)]


@pytest.mark.slow
def test_three_kills_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    survives(tmp_path, 3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    survives(tmp_path, 20)
