"""kill -9 at any moment: what was acknowledged is stored, and nothing is stored by halves."""

from __future__ import annotations

import random

import pytest
from databases import Process, Store, subprocess_of
from things import claimed, tracked

from receiver.store import pruning
from receiver.store.tables import deliveries, seen
from receiver.store.tables import jobs as jobs_table

_RECEIVER = """
import asyncio, sys
from sqlalchemy import event
from receiver.clock import SystemClock
from receiver.core.delivery import Claims, understand
from receiver.store.engine import Database
from receiver.store.inbox import Arrival

url, mode = sys.argv[1:]


def arrival(number):
    body = b'{"event": "job.completed", "jobId": "job_%d"}' % number
    claims = Claims(None, f"dlv_{number}", "1700000000", None)
    return Arrival(understand(body, claims, signed=True), 1700000000.0)


async def deliver(database, number):
    outcome = await database.arrive(arrival(number))
    sys.stdout.write(f"{outcome.name} {number}\\n")
    sys.stdout.flush()


async def main():
    with Database.open(url, SystemClock()) as database:
        if mode == "at commit":

            def stop(_):
                sys.stdout.write("written\\n")
                sys.stdout.flush()
                sys.stdin.read()

            event.listen(database._engines.writing, "commit", stop)
            await deliver(database, 0)
        number = 0
        while True:
            await asyncio.gather(*[deliver(database, n) for n in range(number, number + 20)])
            number += 20


asyncio.run(main())
"""


@pytest.fixture
def closed(own: Store) -> Store:
    """A store that is open nowhere, so that another process may have it."""
    own.database.close()
    return own


def killed(process: Process) -> list[str]:
    """What it had said by the time it was dead."""
    process.kill()
    said = process.stdout.read().splitlines()
    process.wait(30)
    return said


def test_killed_between_writing_and_commit(closed: Store) -> None:
    """Nothing is there, nobody had an answer, and the sender's next attempt is no duplicate."""
    with subprocess_of(_RECEIVER, closed.url, "at commit") as process:
        assert process.stdout.readline() == "written\n"
        assert killed(process) == []
    closed.reopen()
    for table in (deliveries, seen, jobs_table):
        assert closed.rows(table) == []
    closed.database.close()
    with subprocess_of(_RECEIVER, closed.url, "stream") as again:
        assert again.stdout.readline() == "accepted 0\n"


def _check(store: Store, acknowledged: set[str]) -> None:
    kept = [row["job_id"] for row in store.rows(deliveries)]
    assert len(kept) == len(set(kept)), "none twice"
    assert {f"job_{number}" for number in acknowledged} <= set(kept), "what was acknowledged is stored"
    assert {row["id"] for row in store.rows(jobs_table)} == set(kept), "each with its job"
    store.write(pruning.unsigned_keys, 0.0, None)  # it begins by writing what is held in memory
    assert {row["key"].split(":")[1] for row in store.rows(seen) if row["key"].startswith("d")} == {
        row["delivery_id"] for row in store.rows(deliveries)
    }, "and with its keys"


def _cycle(store: Store, lines: int) -> set[str]:
    """One life of a receiver, ended by kill -9 after it has acknowledged some."""
    with subprocess_of(_RECEIVER, store.url, "stream") as process:
        said = [process.stdout.readline().strip() for _ in range(lines)]
        said += killed(process)
    whole = [line.split() for line in said if line]
    return {number for outcome, number in (line for line in whole if len(line) == 2) if outcome in {"accepted", "duplicate"}}


def test_killed_right_after_a_commit(closed: Store) -> None:
    acknowledged = _cycle(closed, 60)
    closed.reopen()
    assert len(acknowledged) >= 60
    _check(closed, acknowledged)


@pytest.mark.slow
def test_killed_again_and_again(closed: Store) -> None:
    """Each life meets what the ones before have left: duplicates, and whatever came with the last breath."""
    chance = random.Random(7)
    acknowledged: set[str] = set()
    for _ in range(10):
        acknowledged |= _cycle(closed, chance.randrange(1, 400))
    closed.reopen()
    _check(closed, acknowledged)


_WORKER = """
import asyncio, sys
from receiver.clock import SystemClock
from receiver.store import jobs
from receiver.store.engine import Database


async def main():
    database = Database.open(sys.argv[1], SystemClock())
    job = await database.write(lambda tx: jobs.claim(tx, owner="doomed", lease=60.0))
    print(job.id, flush=True)
    sys.stdin.read()


asyncio.run(main())
"""


def test_a_killed_workers_job_goes_to_another(own: Store) -> None:
    """On SQLite at the next start: there is only one process. On PostgreSQL when its lease has run out."""
    tracked(own)
    own.database.close()
    with subprocess_of(_WORKER, own.url) as process:
        assert process.stdout.readline() == "job_1\n"
        killed(process)
    own.reopen()
    if own.postgresql:
        own.advance(60)
    assert claimed(own).fence == 2
