"""`receiver tick`, as cron starts it, on PostgreSQL: it ends in time, and what it breaks off is there for the next one at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from databases import Server
from system_kit import Done, command, downstream, knowing, start_job

from receiver.sandbox import BackgroundSandbox

JOBS, PAGES = 50, 2
REQUESTS = JOBS * PAGES

pytestmark = pytest.mark.slow


@dataclass
class Desk:
    """A database, a Reader with so many ended jobs, all of them due, and nobody who works."""

    folder: Path
    url: str
    reader: BackgroundSandbox
    jobs: list[str]

    def tick(self, budget: float, **settings: str | None) -> Done:
        known = knowing(self.reader, READER_RPM="100000", RECEIVER_DATABASE_URL=self.url)
        return command(self.folder, "tick", "--budget", f"{budget:g}", settings={**known, **settings})

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as side:
            return side.execute(query.encode()).fetchall()

    def count(self, query: str) -> int:
        return int(self.rows(f"SELECT count(*) FROM {query}")[0][0])

    @property
    def settled(self) -> int:
        return self.count("jobs WHERE state = 'settled'")

    @property
    def looks(self) -> int:
        """Requests for whole pages: mere looks whether a job has ended ask for less."""
        return sum("limit=100" in row["query"] for row in self.reader.ledger()["requests"])


@pytest.fixture
def desk(tmp_path: Path, postgresql: Server) -> Iterator[Desk]:
    with BackgroundSandbox(seed=1, rpm=1_000_000, active_jobs=JOBS, job_seconds=0, queue_seconds=0) as reader:
        jobs = [start_job(reader, PAGES * 100) for _ in range(JOBS)]
        reader.settled()
        with postgresql.migrated() as url:
            with psycopg.connect(url, autocommit=True) as side, side.cursor() as cursor:
                due = "extract(epoch FROM clock_timestamp())"
                insert = (
                    f"INSERT INTO jobs (id, state, source, tracked_at, due_at) VALUES (%s, 'watching', 'track', {due}, {due})"
                )
                cursor.executemany(insert, [(job,) for job in jobs])
            yield Desk(tmp_path, url, reader, jobs)


def test_fifty_jobs_in_passes_that_are_too_short(desk: Desk) -> None:
    """Each ends in time, keeps what it did and lets go of the rest; the next one goes on from there, at once."""
    desk.reader.faults["latency"] = 0.4
    before, passes = 0, 0
    while desk.settled < JOBS:
        began = time.monotonic()
        done = desk.tick(2)
        took, told = time.monotonic() - began, done.json
        passes += 1
        assert done.code == 0
        assert took < 2 + 5, "seconds, of which some are Python's start"
        assert told["seconds"] < 2 + 1.5
        assert desk.count("jobs WHERE lease_until IS NOT NULL") == 0
        assert desk.settled > before
        assert told["more"] is (desk.settled < JOBS)
        before = desk.settled
    assert passes > 2, "else this tested nothing"
    assert desk.count("results") == REQUESTS * 100
    # A page that is stored is not asked for again: what was on its way when a pass ended is all that is lost. Of each job that
    # was under way then, that is a page or the one after it.
    assert desk.looks <= REQUESTS + 8 * PAGES * passes


def test_two_passes_at_once_share_the_work(desk: Desk) -> None:
    desk.reader.faults["latency"] = 0.1
    with ThreadPoolExecutor(2) as pool:
        both = [done.json["done"] for done in pool.map(desk.tick, (60, 60))]
    assert sum(both) == JOBS
    assert min(both) >= JOBS / 5
    assert desk.settled == JOBS
    assert desk.count("results") == REQUESTS * 100
    assert desk.looks == REQUESTS


def test_an_event_whose_delivery_is_broken_off_is_sent_by_the_next_pass(desk: Desk) -> None:
    """Under the same id, at once, and not counted as an attempt that failed."""
    hung: list[None] = []

    def hang(handler: Any) -> None:
        hung.append(None)
        handler.rfile.read(1)  # until it hangs up

    with downstream(hang) as hook:
        told = f'[{{"name": "index", "url": "{hook.url}", "timeout": 60, "concurrency": 1}}]'
        first = desk.tick(8, RECEIVER_HOOKS=told)
        assert (len(hung), first.json["more"]) == (1, True)
        assert desk.count("hook_deliveries WHERE lease_until IS NOT NULL") == 0
        desk.tick(60, RECEIVER_HOOKS=told)
    assert len(hook.got) == JOBS + 1
    assert len(set(hook.ids)) == JOBS
    assert desk.count("hook_deliveries WHERE state = 'delivered' AND attempts = 1") == JOBS
