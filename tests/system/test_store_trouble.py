"""A database that cannot take a write: the sender is told so in time, nothing is claimed that is not kept, and it passes by itself."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from databases import Server
from system_kit import Answer, Load, Served, Wire, delivery, downstream, held, knowing, request, signed, start_job, until

from receiver.sandbox import BackgroundSandbox

PATIENCE = 9.0
"""Seconds: Reader waits for ten."""


def ask(server: Served, path: str) -> Answer:
    with Wire(server.port) as wire:
        return wire.ask(request(method="GET", path=path))


def ready(server: Served) -> bool:
    return ask(server, "/readyz").status == 200


@dataclass(frozen=True)
class Sent:
    """A delivery that is sent again as it was."""

    body: bytes = field(default_factory=lambda: delivery(event="job.page", note="x" * 5000))
    headers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "headers", signed(self.body))

    def to(self, server: Served) -> Answer:
        return server.post(self.body, self.headers)

    def timed(self, server: Served) -> tuple[Answer, float]:
        began = time.monotonic()
        answer = self.to(server)
        return answer, time.monotonic() - began


def turned_away(answer: Answer) -> bool:
    return (answer.status, answer.header("retry-after"), answer.json) == (503, "2", {"error": "unavailable"})


def accept_again(server: Served, sent: list[Sent]) -> None:
    """What was turned away and is sent again is stored once, without a restart."""
    assert server.process.poll() is None
    until(lambda: ready(server))
    # 200: a write that nobody waited for any longer may have come through when the trouble was over.
    assert {each.to(server).status for each in sent} <= {200, 202}
    for each in sent:
        assert server.rows("SELECT count(*) FROM deliveries WHERE body = ?", each.body) == [(1,)]
    assert server.post(delivery()).status == 202
    assert server.rows("PRAGMA integrity_check") == [("ok",)]
    assert [line for line in server.lines if "Traceback" in line] == []


# A lock that somebody else holds


def survives_a_lock(folder: Path, seconds: float) -> None:
    """Deliveries while all that the server does of itself waits for the lock as well."""
    sent = [Sent() for _ in range(6)]
    with BackgroundSandbox(seed=1, job_seconds=600) as reader, Served(folder, settings=knowing(reader)) as server:
        assert server.post(delivery(start_job(reader, 300))).status == 202
        with held(server.database), ThreadPoolExecutor(8) as pool:
            until_then = time.monotonic() + seconds
            first = [pool.submit(each.timed, server) for each in sent]
            unready = pool.submit(timed_readiness, server)
            answers = [each.result() for each in first]
            while time.monotonic() < until_then:
                answers.append(sent[0].timed(server))
            assert ask(server, "/healthz").status == 200
            assert ask(server, "/v1/jobs").status == 200, "who only reads is not held up"
        assert all(turned_away(answer) for answer, _ in answers)
        assert max(took for _, took in answers) < PATIENCE
        assert unready.result() < PATIENCE
        server.logged("delivery_not_stored")
        accept_again(server, sent)


def timed_readiness(server: Served) -> float:
    began = time.monotonic()
    answer = ask(server, "/readyz")
    assert (answer.status, answer.json["status"]) == (503, "unavailable")
    return time.monotonic() - began


@pytest.mark.slow
def test_while_somebody_holds_the_lock_deliveries_get_503_in_time_and_then_are_taken(tmp_path: Path) -> None:
    survives_a_lock(tmp_path, 0)


@pytest.mark.slow
def test_a_lock_held_for_fifteen_seconds_is_got_over(tmp_path: Path) -> None:
    survives_a_lock(tmp_path, 15)


@pytest.mark.slow
def test_a_lock_held_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    with Served(tmp_path) as server, ThreadPoolExecutor(1) as pool:
        with held(server.database):
            posting = pool.submit(server.post, body := delivery())
            until(lambda: established(server))
            assert server.rows("SELECT 1 FROM deliveries WHERE body = ?", body) == []
        assert posting.result().status == 202


def established(server: Served) -> bool:
    """Whether somebody else than us has a connection to it."""
    import psutil

    return any(
        c.status == "ESTABLISHED" for c in psutil.Process(server.process.pid).net_connections() if c.laddr.port == server.port
    )


# A full disk


@contextmanager
def full_disk(server: Served) -> Iterator[None]:
    """No file that it writes may grow beyond what the write-ahead log has now."""
    size = server.database.with_name("receiver.db-wal").stat().st_size
    pid = server.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_deliveries_get_503_and_are_taken_when_there_is_room_again(tmp_path: Path) -> None:
    with Served(tmp_path) as server:
        kept = [delivery() for _ in range(3)]
        assert {server.post(body).status for body in kept} == {202}
        for _ in range(2):  # it may happen again
            sent = [Sent() for _ in range(4)]
            with full_disk(server):
                answers = [each.timed(server) for each in sent]
                assert not ready(server)
                assert ask(server, "/healthz").status == 200
                assert ask(server, "/v1/jobs").status == 200
            assert all(turned_away(answer) for answer, _ in answers)
            assert max(took for _, took in answers) < PATIENCE
            server.logged("delivery_not_stored")
            accept_again(server, sent)
        for body in kept:
            assert server.rows("SELECT count(*) FROM deliveries WHERE body = ?", body) == [(1,)]


def test_what_is_acknowledged_around_a_full_disk_is_stored_and_outlives_a_kill(tmp_path: Path) -> None:
    """Under a load of deliveries, with some commits failing and others not."""
    server = Served(tmp_path)
    with Load(server.port, hands=4) as load:
        until(lambda: len(load.acknowledged) > 50)
        with full_disk(server):
            until(lambda: 503 in load.statuses)
        seen = len(load.acknowledged)
        until(lambda: len(load.acknowledged) > seen + 50)
        server.kill()
    assert load.statuses <= {202, 503, None}
    stored = {body for (body,) in server.rows("SELECT body FROM deliveries")}
    assert load.acknowledged - stored == set()
    assert server.rows("PRAGMA integrity_check") == [("ok",)]


@pytest.mark.slow
def test_a_job_that_met_a_full_disk_midway_is_read_to_its_end_without_a_restart(tmp_path: Path) -> None:
    """Within what its lease lasts: what was under way when the disk filled up is given up, and claimed again then."""
    with BackgroundSandbox(seed=1, job_seconds=0.1, page_size="20KB") as reader, downstream() as hook:
        hooks = f'[{{"name": "hook", "url": "{hook.url}"}}]'
        with Served(tmp_path, settings=knowing(reader, READER_RPM="100000", RECEIVER_HOOKS=hooks)) as server:
            job = start_job(reader, 300)
            reader.settled()
            reader.faults = {"latency": {"value": 1, "match": "skip=100"}}
            assert server.post(delivery(job)).status == 202
            reader.until(lambda ledger: any("skip=100" in row["query"] for row in ledger["requests"]))
            with full_disk(server):
                server.logged("store_failed", 20)
            until(lambda: hook.got, within=90)
            assert server.rows("SELECT count(*) FROM results WHERE job_id = ?", job) == [(300,)]
            assert len(hook.ids) == 1


# A database that only reads


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def test_a_database_that_has_become_read_only_is_not_ready_and_recovers_when_it_is_not(
    tmp_path: Path, postgresql: Server
) -> None:
    """As after a failover, until the connections lead to the new primary."""
    with postgresql.migrated() as url, psycopg.connect(url, autocommit=True) as admin:

        def make(setting: str) -> None:
            name = admin.info.dbname
            admin.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {setting}')
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'receiver'")

        with Served(tmp_path, RECEIVER_DATABASE_URL=url) as server:
            sent = Sent()
            assert ready(server)
            make("on")
            until(lambda: not ready(server))
            answer, took = sent.timed(server)
            assert turned_away(answer)
            assert took < PATIENCE
            assert "read-only" in server.logged("delivery_not_stored")["hint"]
            assert ask(server, "/v1/jobs").status == 200
            make("off")
            until(lambda: ready(server))
            assert sent.to(server).status == 202
            assert admin.execute("SELECT body FROM deliveries").fetchall() == [(sent.body,)]
