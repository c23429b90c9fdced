"""`kill -9` around a retry by ourselves: Reader retries each job once, and each job's last end is told, once."""

from __future__ import annotations

import random
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from system_kit import Hook, Served, downstream, knowing, start_job, until

from receiver.sandbox import BackgroundSandbox

POLICY: dict[str, str | None] = {"RECEIVER_RETRY_FAILED": "1", "READER_RPM": "1000", "RECEIVER_RPM_SHARE": "1"}


def settings(reader: BackgroundSandbox, hook: Hook) -> dict[str, str | None]:
    return knowing(reader, **POLICY, RECEIVER_HOOKS=f'[{{"name": "downstream", "url": "{hook.url}"}}]')


def started(reader: BackgroundSandbox, server: Served) -> str:
    """A job of which one URL fails on the first run."""
    job = start_job(reader, urls=["https://site.example/1", f"https://site.example/{random.random()}?sandbox=error-once"])
    track(server, job)
    return job


def track(server: Served, job: str) -> None:
    assert httpx.post(f"{server.url}/v1/jobs", json={"id": job}, trust_env=False).is_success


def retried(reader: BackgroundSandbox) -> Counter[str]:
    """How often Reader took a retry, by job; its answer may have met nobody."""
    return Counter({job: row["generation"] - 1 for job, row in reader.ledger()["jobs"].items()})


def told(server: Served) -> list[tuple[Any, ...]]:
    return sorted(server.rows("SELECT job_id, generation, type FROM events"))


def all_told(server: Served, count: int) -> bool:
    return len(server.rows("SELECT 1 FROM hook_deliveries WHERE state = 'delivered'")) >= count


AT = {
    "before it is asked for": ({"out_of_credits": {"rate": 1, "match": "/retry"}}, "due"),
    "while Reader has not taken it": ({"latency": {"rate": 1, "times": 1, "value": 1, "match": "/retry"}}, "asked"),
    "while Reader answers": ({"drip": {"rate": 1, "times": 1, "value": 20, "match": "/retry"}}, "asked"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("faults", "at"), AT.values(), ids=AT)
def test_killed(tmp_path: Path, faults: dict[str, Any], at: str) -> None:
    with downstream() as hook, BackgroundSandbox(seed=1, job_seconds=0.5) as reader:
        reader.faults = faults
        with Served(tmp_path, settings=settings(reader, hook)) as server:
            job = started(reader, server)
            until(lambda: server.rows("SELECT 1 FROM jobs WHERE retry = ? AND (retry = 'asked' OR trouble > '')", at))
            assert server.rows("SELECT held FROM jobs") == [(1,)]
            server.kill()
        assert told(server) == []
        reader.faults = {}
        with Served(tmp_path, settings=settings(reader, hook)) as server:
            track(server, job)  # else a job that met a pause waits for a minute
            until(partial(all_told, server, 1))
            reader.settled()
            time.sleep(0.5)
        assert retried(reader) == {job: 1}
        assert told(server) == [(job, 2, "job.completed")]
        assert len(set(hook.ids)) == 1


@pytest.mark.slow
def test_killed_anywhere(tmp_path: Path) -> None:
    dice = random.Random(1)
    jobs: list[str] = []
    with downstream() as hook, BackgroundSandbox(seed=1, job_seconds=0.5) as reader:
        for _ in range(4):
            with Served(tmp_path, settings=settings(reader, hook)) as server:
                jobs += [started(reader, server) for _ in range(4)]
                until(partial(server.rows, "SELECT 1 FROM jobs WHERE id = ? AND settled_generation > 0", jobs[-1]))
                time.sleep(dice.random() * 0.2)
                server.kill()
        with Served(tmp_path, settings=settings(reader, hook)) as server:
            until(partial(all_told, server, len(jobs)), within=60)
            reader.settled()
        assert retried(reader) == Counter(dict.fromkeys(jobs, 1))
        assert told(server) == sorted((job, 2, "job.completed") for job in jobs)
        assert len(set(hook.ids)) == len(jobs)
