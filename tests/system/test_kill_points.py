"""`kill -9` at a hundred random points while a job's pages are read: what was stored is not asked for again, nothing is lost."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import pytest
from system_kit import Child, downstream, environment, knowing, migrated, nursery, start_job

from receiver import Receiver, Settings
from receiver.reconciler import AHEAD
from receiver.sandbox import BackgroundSandbox
from receiver.sandbox.ledger import Happening
from receiver.store import jobs as jobs_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KILLS: Final = 100
PAGES: Final = 10
RESULTS: Final = 100 * PAGES - 30
LONGEST: Final = 0.1
"""Seconds from a request to the kill, at most: about as long as a page takes from there until it is stored."""
STUCK: Final = 60.0


class Bell:
    """Rings at each request that Reader answers, and when a process has ended."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.requests = 0
        self.ended = False

    def heard(self, happening: Happening) -> None:
        with self._changed:
            self.requests += happening.kind == "request"
            self._changed.notify_all()

    def watch(self, child: Child) -> threading.Thread:
        """Ring when this one has ended."""

        def wait() -> None:
            child.wait()
            with self._changed:
                self.ended = True
                self._changed.notify_all()

        self.ended = False
        thread = threading.Thread(target=wait)
        thread.start()
        return thread

    def wait(self, condition: Callable[[], bool], within: float) -> bool:
        with self._changed:
            return self._changed.wait_for(condition, within)


class Stage:
    """A receiver's folder, whose passes are processes that may be killed; `stored` and `asked` judge them."""

    def __init__(self, folder: Path, reader: BackgroundSandbox, bell: Bell, **settings: str | None) -> None:
        self._folder, self._bell = folder, bell
        self._reader = reader
        self._settings = knowing(reader, READER_RPM="100000", **settings)
        self._dice = random.Random(1)
        shutil.copy(migrated(), folder / "receiver.db")

    def know(self, job: str) -> None:
        """Have it tracked; nobody has looked at it yet."""

        async def track() -> None:
            async with self._receiver().running(loops=False) as runtime:
                await runtime.database.write(lambda tx: jobs_store.track(tx, job, source="track"))

        asyncio.run(track())

    def read(self, job: str) -> Counter[tuple[str, str | None, str]]:
        """Its results as a program reads them: (url, error, sha256 of the markdown)."""

        async def read() -> Counter[tuple[str, str | None, str]]:
            receiver = self._receiver()
            async with receiver.running(loops=False):
                return Counter([identity(result) async for result in receiver.results(job)])

        return asyncio.run(read())

    def _receiver(self) -> Receiver:
        names = environment(self._folder, **self._settings)
        given: dict[str, Any] = {
            name.lower(): value for name, value in names.items() if name.startswith(("READER_", "RECEIVER_"))
        }
        return Receiver(Settings(**given | {"receiver_hooks": ()}))

    def work(self, *, killed: bool) -> None:
        """A pass over what is due: to its end, or to a random point of it."""
        begun = self._bell.requests
        with nursery().start(self._folder, ("tick", "--budget", "60"), self._settings) as child:
            ending = self._bell.watch(child)
            if killed:
                # So many requests into it, and then any moment of what follows.
                after, wait = self._dice.randint(1, PAGES // 2), self._dice.random() * LONGEST
                self._bell.wait(lambda: self._bell.requests >= begun + after or self._bell.ended, STUCK)
                self._bell.wait(lambda: self._bell.ended, wait)
                child.kill()
            ended = self._bell.wait(lambda: self._bell.ended, STUCK)
            if not ended:
                child.kill()
            ending.join()
            assert ended, child.err.read_text()

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        # Not read-only: the first to open a database whose writer was killed has to bring its log in order.
        with closing(sqlite3.connect(self._folder / "receiver.db")) as connection:
            return connection.execute(query, parameters).fetchall()

    def state(self, job: str) -> str:
        ((state,),) = self.rows("SELECT state FROM jobs WHERE id = ?", job)
        return str(state)

    def stored(self, job: str) -> set[int]:
        """Where the pages begin that are stored."""
        return {page for (page,) in self.rows("SELECT DISTINCT page FROM results WHERE job_id = ?", job)}

    def asked(self, job: str) -> list[int]:
        """The pages that were asked for so far, in their order; not what only looked whether the job has ended."""
        lists = self._reader._call(lambda: self._reader._sandbox.engine.ledger.lists(0))
        queries = [parse_qs(row["query"]) for row in lists["requests"] if row["path"] == f"/v1/jobs/{job}"]
        return [int(query["skip"][0]) for query in queries if query["limit"] != ["1"]]


def identity(result: dict[str, Any]) -> tuple[str, str | None, str]:
    return result["url"], result.get("error"), hashlib.sha256(result["markdown"].encode()).hexdigest()


def test_a_hundred_kills_while_pages_are_read_cost_no_stored_page_and_no_result(tmp_path: Path) -> None:
    bell = Bell()
    kills = Counter[int]()
    """How many of them found so many pages stored."""
    with (
        downstream() as hook,
        BackgroundSandbox(seed=1, job_seconds=0, queue_seconds=0, rpm=100_000, page_size="1KB..20KB", latency=0.01) as reader,
    ):
        reader._call(lambda: reader._sandbox.listen(bell.heard))
        stage = Stage(tmp_path, reader, bell, RECEIVER_HOOKS=json.dumps([{"name": "downstream", "url": hook.url}]))
        jobs: list[str] = []
        while kills.total() < KILLS:
            jobs.append(job := start_job(reader, RESULTS))
            stage.know(job)
            refetched = 0
            while stage.state(job) != "settled":
                before, stored = stage.asked(job), stage.stored(job)
                stage.work(killed=kills.total() < KILLS)
                asked = stage.asked(job)[len(before) :]
                assert not stored & set(asked), "a stored page was asked for again"
                assert len(set(asked)) == len(asked), "a page was asked for twice by one process"
                assert stored <= stage.stored(job), "a stored page was thrown away"
                refetched += len(set(asked) & set(before))
                if stage.state(job) == "hydrating":
                    kills[len(stage.stored(job))] += 1
                    assert len(set(stage.asked(job)) - stage.stored(job)) <= AHEAD + 1, "no more under way than may be"
            assert set(stage.asked(job)) == {100 * page for page in range(PAGES)}
        stage.work(killed=False)  # whatever was not told yet
        truth = reader.ledger()["jobs"]

    assert len(kills) > PAGES / 2, "they came all along the way"
    for job in jobs:
        assert stage.read(job) == Counter((row["url"], row["error"], row["sha256"]) for row in truth[job]["results"])
    assert stage.rows("SELECT DISTINCT generation FROM results") == [(1,)]
    events = stage.rows("SELECT job_id, generation, type FROM events")
    assert sorted(events) == sorted((job, 1, "job.completed") for job in jobs)
    assert set(hook.ids) == {event for (event,) in stage.rows("SELECT id FROM events")}
    assert stage.rows("PRAGMA integrity_check") == [("ok",)]
