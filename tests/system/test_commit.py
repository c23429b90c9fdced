"""`event.commit`: what a handler writes to its own table is there once for each event, however often its process is killed."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from databases import BACKENDS, Server
from system_kit import Served, delivery, knowing, start_job, until
from system_kit import rows as sqlite_rows

from receiver.sandbox import BackgroundSandbox

PAGES = 5
JOBS_A_CYCLE = 3

APP = """
import asyncio, random, time
from receiver import Later, Receiver, Reject

receiver = Receiver()


@receiver.on("job.completed")
async def index(event):
    pages = [{"event": event.id, "url": result["url"]} async for result in event.results()]
    await asyncio.sleep(random.random() / 20)

    def write(connection):
        connection.execute("CREATE TABLE IF NOT EXISTS my_pages (event TEXT, url TEXT)")
        for page in pages:
            connection.execute("INSERT INTO my_pages VALUES (:event, :url)", page)
            time.sleep(random.random() / 200)

    await event.commit(write)
    await asyncio.sleep(random.random() / 20)


@receiver.on("job.completed", concurrency=2)
def count(event):
    pages = sum(len(batch) for batch in event.results(batch=2))
    event.commit(lambda connection: connection.execute(
        "INSERT INTO my_counts VALUES (:event, :pages)", {"event": event.id, "pages": pages}))


asked = []


@receiver.on("job.completed", name="moody")
def moody(event):
    asked.append(event.id)
    if len(asked) == 1:
        raise Later(0.2, "not now")
    raise Reject("never")
"""


@dataclass
class Place:
    """A database, and how to look into it."""

    url: str
    rows: Callable[[str], list[tuple[Any, ...]]]
    execute: Callable[[str], Any]


@pytest.fixture(params=BACKENDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with _place(request, tmp_path) as made:
        made.execute("CREATE TABLE my_counts (event TEXT, pages INTEGER)")
        yield made


@contextmanager
def _place(request: pytest.FixtureRequest, folder: Path) -> Iterator[Place]:
    if request.param == "sqlite":
        import sqlite3

        from system_kit import migrated

        file = folder / "receiver.db"
        file.write_bytes(migrated().read_bytes())

        def execute(query: str) -> None:
            with sqlite3.connect(file) as side:
                side.execute(query)

        yield Place(f"sqlite:///{file}", lambda query: sqlite_rows(file, query), execute)
        return
    server: Server = request.getfixturevalue("postgresql")
    with server.migrated() as url, psycopg.connect(url, autocommit=True) as side:
        yield Place(url, lambda query: side.execute(query.encode()).fetchall(), lambda query: side.execute(query.encode()))


def serve(folder: Path, reader: BackgroundSandbox, place: Place) -> Served:
    return Served(
        folder,
        "app:receiver",
        settings=knowing(reader, READER_RPM="100000", RECEIVER_DATABASE_URL=place.url, PYTHONDONTWRITEBYTECODE="1"),
    )


def settled(place: Place, hook: str, count: int) -> bool:
    states = Counter(state for (state,) in place.rows(f"SELECT state FROM hook_deliveries WHERE hook = '{hook}'"))
    return states["delivered"] + states["dead"] == count and not states["pending"]


def survives(folder: Path, place: Place, cycles: int) -> None:
    (folder / "app.py").write_text(APP)
    dice = random.Random(cycles)
    jobs: list[str] = []
    torn = 0
    with BackgroundSandbox(seed=1, job_seconds=0.05, queue_seconds=0.01, rpm=100_000, active_jobs=10_000) as reader:
        for _ in range(cycles):
            server = serve(folder, reader, place)
            new = [start_job(reader, PAGES) for _ in range(JOBS_A_CYCLE)]
            reader.settled()
            for job in new:
                assert server.post(delivery(job)).status == 202
            jobs += new
            time.sleep(dice.random() * 0.4)  # wherever it is then
            server.kill()
            leased = place.rows("SELECT count(*) FROM hook_deliveries WHERE lease_owner IS NOT NULL AND state = 'pending'")
            torn += bool(leased[0][0])
        with serve(folder, reader, place):
            for hook in ("app.index", "app.count"):
                until(lambda hook=hook: settled(place, hook, len(jobs)), within=180)
    events = dict(place.rows("SELECT id, job_id FROM events"))
    assert Counter(events.values()) == Counter(jobs)
    written = Counter(place.rows("SELECT event, url FROM my_pages"))
    assert set(written.values()) == {1}, "written twice"
    assert Counter(event for event, _ in written) == dict.fromkeys(events, PAGES), "missing"
    assert Counter(place.rows("SELECT event, pages FROM my_counts")) == dict.fromkeys(((id_, PAGES) for id_ in events), 1)
    assert torn > cycles / 10, "nobody was killed in the midst of anything"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fifty_kills_write_nothing_twice_and_miss_nothing(tmp_path: Path, place: Place) -> None:
    survives(tmp_path, place, 50)


@pytest.mark.slow
def test_handlers_say_later_and_never_in_a_process_of_their_own(tmp_path: Path, place: Place) -> None:
    (tmp_path / "app.py").write_text(APP)
    with BackgroundSandbox(seed=1, job_seconds=0.05, queue_seconds=0.01) as reader, serve(tmp_path, reader, place) as server:
        job = start_job(reader, PAGES)
        reader.settled()
        assert server.post(delivery(job)).status == 202
        server.logged("put_off", 20, hint="not now")
        assert server.logged("dead_letter", 20, hook="moody")["hint"] == "rejected: never"
        (row,) = place.rows("SELECT state, attempts, last_error FROM hook_deliveries WHERE hook = 'moody'")
        assert row == ("dead", 1, "rejected: never"), "put off is not an attempt"
        for hook in ("app.index", "app.count"):
            until(lambda hook=hook: settled(place, hook, 1))
        assert len(place.rows("SELECT url FROM my_pages")) == PAGES
