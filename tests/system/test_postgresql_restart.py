"""PostgreSQL goes away at once and comes back, under load: 503 meanwhile, and everything goes on by itself."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from databases import Server
from system_kit import SECRET, Hook, Load, Served, delivery, downstream, free_port, knowing, start_job, until

from receiver.sandbox import BackgroundSandbox

RECOVERS_WITHIN = 5.0
LEASE = 60.0
LEADING = "SELECT 1 FROM leases WHERE name = 'stream' AND until > extract(epoch FROM clock_timestamp()) + 10"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def postgresql() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as side:
        return side.execute(query.encode()).fetchall()


def acknowledged(load: Load, since: int) -> bool:
    return any(status == 202 for _, status in load.outcomes[since:])


def refused(load: Load, since: int) -> bool:
    return any(status == 503 for _, status in load.outcomes[since:])


def told_of(hook: Hook, jobs: list[str]) -> bool:
    return {json.loads(body)["data"]["job"]["id"] for _, body in list(hook.got)} >= set(jobs)


def streams(server: Served) -> int:
    return sum(line["event"] == "stream_open" for line in server.log)


def audits(reader: BackgroundSandbox) -> int:
    return sum(row["path"] == "/v1/webhooks" and row["method"] == "GET" for row in reader.ledger()["requests"])


def test_a_server_that_is_stopped_and_started_under_load(tmp_path: Path, postgresql: Server) -> None:
    """503 while it is away, 202 within 5 s of its return; what was acknowledged is stored; each loop goes on."""
    port = free_port()
    with (
        downstream() as hook,
        postgresql.migrated() as url,
        BackgroundSandbox(
            seed=1, job_seconds="1..8", rpm=100_000, webhook_url=f"http://127.0.0.1:{port}/hooks/reader", webhook_secret=SECRET
        ) as reader,
    ):
        settings = knowing(
            reader,
            READER_RPM="100000",
            RECEIVER_DATABASE_URL=url,
            RECEIVER_PUBLIC_URL=f"http://127.0.0.1:{port}",
            RECEIVER_HOOKS=json.dumps([{"name": "downstream", "url": hook.url}]),
        )
        with Served(tmp_path, port=port, settings=settings) as server:
            until(partial(streams, server))
            jobs = [start_job(reader, 130) for _ in range(6)]

            def alive() -> bytes:
                return delivery(random.choice(jobs), "job.page", at=time.time_ns())

            with Load(port, hands=4, make=alive) as load:
                for _ in range(2):
                    until(partial(acknowledged, load, len(load.outcomes)))
                    postgresql.halt()
                    until(partial(refused, load, len(load.outcomes)))
                    jobs += [start_job(reader, 130)]
                    postgresql.resume()
                    began = time.monotonic()
                    until(partial(acknowledged, load, len(load.outcomes)))
                    assert time.monotonic() - began < RECOVERS_WITHIN
            audited = audits(reader)
            assert load.statuses <= {202, 503}, "nobody was left without an answer"
            stored = {bytes(body) for (body,) in rows(url, "SELECT body FROM deliveries")}
            assert load.acknowledged - stored == set()

            # The reconciler and the dispatcher, also for what they were at when it went away: within its lease.
            jobs += [start_job(reader, 130)]
            until(partial(told_of, hook, jobs), within=LEASE + 30)
            until(lambda: not rows(url, "SELECT 1 FROM hook_deliveries WHERE state <> 'delivered'"), within=LEASE + 30)
            reader.settled()
            # The auditor, once an audit is due again; the listener, which renews its lead as long as it listens.
            rows(url, "UPDATE audits SET claimed_at = 0 RETURNING 1")
            until(lambda: audits(reader) > audited)
            until(lambda: rows(url, LEADING), within=60)
            truth = reader.ledger()["jobs"]
            assert server.process.poll() is None
            assert [line for line in server.lines if "Traceback" in line or '"exception"' in line] == []
        events = rows(url, "SELECT job_id, generation, type FROM events")
        assert sorted(events) == sorted((job, 1, "job.completed") for job in truth)
        results = Counter(rows(url, "SELECT job_id, url FROM results"))
        assert results == Counter((job, row["url"]) for job in truth for row in truth[job]["results"])
