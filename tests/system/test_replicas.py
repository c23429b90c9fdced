"""Several processes on one PostgreSQL: killed at random, or frozen past their leases; nothing is lost, nothing double."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx
import psycopg
import pytest
from databases import Server
from reconcile_kit import busiest
from system_kit import SECRET, Hook, Served, delivery, downstream, free_port, knowing, start_job, until

from receiver.sandbox import BackgroundSandbox

CHAOS = float(os.environ.get("RECEIVER_TEST_CHAOS_SECONDS", "30"))
"""How long processes are killed and started; the work must be done some time after that."""
SEED = int(os.environ.get("RECEIVER_TEST_CHAOS_SEED", "1"))
REPLICAS, AT_LEAST = 4, 2
RPM, SHARE = 160, 0.8
LEASE, PATIENCE = 60.0, 5.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(CHAOS + 8 * LEASE)]


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as side:
        return side.execute(query.encode()).fetchall()


def told_of(hook: Hook) -> set[str]:
    return {json.loads(body)["data"]["job"]["id"] for _, body in list(hook.got)}


def exact(url: str, hook: Hook, truth: dict[str, Any]) -> None:
    """What is stored and told is what truly happened: each job's end once, with all its results."""
    events = rows(url, "SELECT id, job_id, generation, type FROM events")
    assert sorted(event[1:] for event in events) == sorted((job, 1, "job.completed") for job in truth)
    assert set(hook.ids) == {event[0] for event in events}
    results = Counter(rows(url, "SELECT job_id, url FROM results"))
    assert results == Counter((job, row["url"]) for job in truth for row in truth[job]["results"])


class Fleet:
    """So many replicas at fixed ports, some of which may be dead."""

    def __init__(self, folder: Path, settings: dict[str, str | None]) -> None:
        self.ports = [free_port() for _ in range(REPLICAS)]
        self.alive: dict[int, Served] = {}
        self.lines: list[str] = []
        """What the dead have logged."""
        self._folder = folder
        self._settings = settings

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for port in list(self.alive):
            self.kill(port)

    def start(self, port: int) -> None:
        folder = self._folder / str(port)
        folder.mkdir(exist_ok=True)
        self.alive[port] = Served(folder, port=port, settings=self._settings)

    def kill(self, port: int) -> None:
        server = self.alive.pop(port)
        server.kill()
        self.lines += server.lines

    def wreck(self, dice: random.Random) -> None:
        """Kill one, or start one; most are up most of the time."""
        dead = [port for port in self.ports if port not in self.alive]
        if dead and (len(self.alive) <= AT_LEAST or dice.random() < 0.5):
            self.start(dice.choice(dead))
        else:
            self.kill(dice.choice(sorted(self.alive)))


class Watch:
    """Looks at the leases from moment to moment: for how long work lies there after the lease of who died with it has ended."""

    _LEASES = """
        SELECT id, lease_owner, lease_until, now FROM (
            SELECT id, lease_owner, lease_until FROM jobs UNION ALL SELECT event_id, lease_owner, lease_until FROM hook_deliveries
        ) AS work, (SELECT extract(epoch FROM clock_timestamp())::double precision AS now) AS clock WHERE lease_owner IS NOT NULL
    """

    def __init__(self, url: str) -> None:
        self.longest = 0.0
        self.taken_over = 0
        """How often somebody went on with what another had died with."""
        self.stall = 0.0
        """The longest that this thread itself was kept from looking: what a busy machine does to everybody."""
        self._url = url
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        held: dict[str, tuple[str, float]] = {}
        with psycopg.connect(self._url, autocommit=True) as side:
            last = time.monotonic()
            while not self._over.wait(0.05):
                found = side.execute(self._LEASES).fetchall()
                moment = time.monotonic()
                self.stall, last = max(self.stall, moment - last), moment
                for work, owner, until_then, now in found:
                    before, ended = held.get(work, (owner, now))
                    self.taken_over += before != owner and ended <= now
                    self.longest = max(self.longest, now - until_then)
                held = {work: (owner, until_then) for work, owner, until_then, _ in found}


def die_at_work(fleet: Fleet, reader: BackgroundSandbox, url: str) -> list[str]:
    """Kill all that live, while at least one of them is at work; the jobs that were begun for that."""
    reader.faults = {"latency": {"rate": 1, "value": 2, "match": "skip="}}
    jobs: list[str] = []
    while not rows(url, "SELECT 1 FROM jobs WHERE lease_owner IS NOT NULL") or fleet.alive:
        for port in fleet.ports[: 0 if fleet.alive else 1]:
            fleet.start(port)
        jobs.append(start_job(reader, 130))
        # Written down: its webhooks may find nobody at home.
        at = next(iter(fleet.alive.values())).url
        assert httpx.post(f"{at}/v1/jobs", json={"id": jobs[-1]}, trust_env=False).is_success
        until(lambda: rows(url, "SELECT 1 FROM jobs WHERE lease_owner IS NOT NULL"), within=LEASE)
        for port in list(fleet.alive):
            fleet.kill(port)
    return jobs


def test_replicas_killed_and_started_at_random(tmp_path: Path, postgresql: Server) -> None:
    """Each delivery goes to all of them at once, some twice; results, events and requests are what one that lives would have."""
    dice = random.Random(SEED)
    with (
        downstream() as hook,
        postgresql.migrated() as url,
        BackgroundSandbox(seed=SEED, job_seconds="1..6", rpm=10_000, duplicate=0.3, reorder=0.3, active_jobs=10_000) as reader,
    ):
        settings = knowing(
            reader,
            READER_RPM=str(RPM),
            RECEIVER_RPM_SHARE=str(SHARE),
            RECEIVER_DATABASE_URL=url,
            RECEIVER_HOOKS=json.dumps([{"name": "downstream", "url": hook.url}]),
        )
        # Else nobody is ever killed in the midst of a job.
        reader.faults = {"latency": {"rate": 0.5, "value": 2, "match": "skip="}}
        with Fleet(tmp_path, settings) as fleet, Watch(url) as watch:
            for port in fleet.ports:
                reader.register(f"http://127.0.0.1:{port}/hooks/reader", "job.completed", "job.failed", secret=SECRET)
                fleet.start(port)
            jobs: list[str] = []
            over = time.monotonic() + CHAOS
            while time.monotonic() < over:
                jobs += [start_job(reader, 130) for _ in range(3)]
                time.sleep(dice.random())  # wherever they are then
                fleet.wreck(dice)
            jobs += die_at_work(fleet, reader, url)
            for port in fleet.ports:
                fleet.start(port)
            until(lambda: told_of(hook) >= set(jobs), within=3 * LEASE)
            # What was delivered by one that was killed before it could say so is delivered again when its lease has ended.
            until(lambda: not rows(url, "SELECT 1 FROM hook_deliveries WHERE state <> 'delivered'"), within=3 * LEASE)
            reader.settled()
        report = reader.ledger()
        exact(url, hook, report["jobs"])
        assert set(jobs) == set(report["jobs"])
        assert busiest(row for row in report["requests"] if row["path"].startswith("/v1/jobs/")) <= RPM * SHARE
        assert [line for line in fleet.lines if "Traceback" in line or '"exception"' in line] == []
        assert watch.taken_over > 0, "nobody died in the midst of anything"
        assert watch.longest < PATIENCE + watch.stall


@contextmanager
def ahead(url: str) -> Iterator[psycopg.Connection]:
    """The database's clock, which goes on from an offset: `UPDATE by_hand.ahead SET seconds = …`."""
    with psycopg.connect(url, autocommit=True) as side:
        side.execute("""
            CREATE SCHEMA by_hand;
            CREATE TABLE by_hand.ahead AS SELECT 0::double precision AS seconds;
            CREATE FUNCTION by_hand.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
                AS 'SELECT pg_catalog.clock_timestamp() + make_interval(secs => seconds) FROM by_hand.ahead';
        """)
        side.execute(f'ALTER DATABASE "{side.info.dbname}" SET search_path = public, by_hand, pg_catalog'.encode())
        yield side


def test_one_that_was_frozen_past_its_lease_writes_nothing(tmp_path: Path, postgresql: Server) -> None:
    """SIGSTOP between two pages; another takes the job over, and settles it; SIGCONT: refused and logged, nothing double."""
    with (
        ExitStack() as stack,
        downstream() as hook,
        postgresql.migrated() as url,
        BackgroundSandbox(seed=1, job_seconds=0.1) as reader,
        ahead(url) as clock,
    ):
        settings = knowing(
            reader,
            READER_RPM="1000",
            RECEIVER_DATABASE_URL=url,
            RECEIVER_LISTEN="false",
            RECEIVER_HOOKS=json.dumps([{"name": "downstream", "url": hook.url}]),
        )
        replicas = []
        for name in ("frozen", "other"):
            (tmp_path / name).mkdir()
            replicas.append(partial(Served, tmp_path / name, settings=settings))
        job = start_job(reader, 230)
        reader.settled()
        # Its first page is stored, and its second one on its way.
        reader.faults = {"latency": {"rate": 1, "times": 1, "value": 6, "match": "skip=100"}}
        frozen = stack.enter_context(replicas[0]())
        assert frozen.post(delivery(job)).status == 202
        reader.until(lambda ledger: any("skip=100" in row["query"] for row in ledger["requests"]))
        until(lambda: rows(url, "SELECT 1 FROM results"))
        frozen.process.send_signal(signal.SIGSTOP)
        try:
            clock.execute("UPDATE by_hand.ahead SET seconds = %s", [LEASE + 1])
            stack.enter_context(replicas[1]())
            until(lambda: told_of(hook) == {job}, within=60)
        finally:
            frozen.process.send_signal(signal.SIGCONT)
        lost = frozen.logged("lease_lost", within=60, job=job)
        assert "another worker has taken" in lost["hint"]
        until(lambda: not rows(url, "SELECT 1 FROM hook_deliveries WHERE state <> 'delivered'"))
        exact(url, hook, reader.ledger()["jobs"])
        assert len(hook.ids) == 1
