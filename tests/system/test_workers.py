"""`serve --workers N`: several processes on one port, over a real PostgreSQL; each replaced when it dies, all gone when told to."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from databases import Server
from system_kit import Load, Served, command, delivery, until

WORKERS = 3


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def url(postgresql: Server) -> Iterator[str]:
    with postgresql.migrated() as url:
        yield url


class Several(Served):
    """`receiver serve --workers 3`, all of them listening."""

    def __init__(self, folder: Path, url: str, *args: str, **settings: str | None) -> None:
        super().__init__(folder, "--workers", str(WORKERS), *args, RECEIVER_DATABASE_URL=url, **settings)
        self.url_of_database = url
        for number in range(1, WORKERS + 1):
            self.logged("listening", worker=number)

    @property
    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def stored(self) -> set[bytes]:
        with psycopg.connect(self.url_of_database) as connection:
            return {body for (body,) in connection.execute("SELECT body FROM deliveries").fetchall()}


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@pytest.mark.slow
def test_each_worker_takes_what_comes_to_the_one_port(tmp_path: Path, url: str) -> None:
    with Several(tmp_path, url) as server:
        for alone in server.workers:
            others = [worker for worker in server.workers if worker != alone]
            for worker in others:
                worker.suspend()
                until(lambda worker=worker: worker.status() == psutil.STATUS_STOPPED)
            assert server.post(delivery()).status == 202
            for worker in others:
                worker.resume()
        deliveries = [line for line in server.log if line["event"] == "delivery"]
        assert sorted(line["worker"] for line in deliveries) == [1, 2, 3]


@pytest.mark.slow
def test_a_term_under_load_drains_all_of_them_within_ten_seconds(tmp_path: Path, url: str) -> None:
    server = Several(tmp_path, url)
    workers = server.workers
    assert len(workers) == WORKERS
    with Load(server.port, hands=24) as load:
        until(lambda: len(load.acknowledged) > 500)
        server.stop()
    assert gone(workers)
    assert load.partial == []
    assert load.acknowledged - server.stored() == set()
    assert load.statuses <= {202, 503, None}
    assert Counter(line["worker"] for line in server.log if line["event"] == "stopped") == {1: 1, 2: 1, 3: 1}
    assert [line for line in server.lines if "Traceback" in line] == []


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_nothing_acknowledged_is_lost(tmp_path: Path, url: str) -> None:
    with Several(tmp_path, url) as server:
        with Load(server.port, hands=8) as load:
            for _ in range(4):
                seen = len(load.acknowledged)
                until(lambda seen=seen: len(load.acknowledged) > seen + 50)
                before = server.workers
                before[0].kill()
                until(lambda victim=before[0]: gone([victim]))
                until(lambda: len(server.workers) == WORKERS)
        for victim in server.workers:  # all at once: those that come after them serve on the same socket
            victim.kill()
        assert server.post(delivery()).status == 202
        assert server.logged("worker_ended", code=-signal.SIGKILL)["level"] == "warning"
        assert load.acknowledged - server.stored() == set()


@pytest.mark.slow
def test_ctrl_c_ends_all_of_them_cleanly(tmp_path: Path, url: str) -> None:
    """A terminal sends it to every process at once."""
    server = Several(tmp_path, url)
    workers = server.workers
    for process in workers:
        process.send_signal(signal.SIGINT)
    server.stop(signal.SIGINT)
    assert gone(workers)
    assert Counter(line["worker"] for line in server.log if line["event"] == "stopped") == {1: 1, 2: 1, 3: 1}
    assert [line for line in server.log if "Traceback" in str(line) or line["event"] == "worker_ended"] == []


@pytest.mark.slow
def test_workers_do_not_outlive_the_one_that_watches(tmp_path: Path, url: str) -> None:
    server = Several(tmp_path, url)
    workers = server.workers
    server.kill()
    until(lambda: gone(workers))


@pytest.mark.slow
def test_each_worker_serves_the_receiver_of_a_module(tmp_path: Path, url: str) -> None:
    """Loaded in each of them, and not before: what it opens when it is loaded is no two processes' at once."""
    (tmp_path / "app.py").write_text(
        "import os, sys\nfrom receiver import Receiver\n"
        'print(\'{"event": "loaded", "pid": %d}\' % os.getpid(), file=sys.stderr, flush=True)\nreceiver = Receiver()\n'
    )
    with Several(tmp_path, url, "app:receiver") as server:
        assert server.post(delivery()).status == 202
        # The first to be ready answers already while the others load.
        until(
            lambda: {line["pid"] for line in server.log if line["event"] == "loaded"} == {worker.pid for worker in server.workers}
        )


def test_on_sqlite_more_than_one_is_refused_with_a_reason(tmp_path: Path) -> None:
    done = command(tmp_path, "serve", "--port", "0", "--workers", "2")
    assert done.code == 2
    for told in ("--workers 2", "PostgreSQL", "SQLite", "RECEIVER_DATABASE_URL"):
        assert told in done.complaint


def test_what_is_wrong_with_the_first_worker_is_told_once_and_ends_it_all(tmp_path: Path) -> None:
    several = ("serve", "--port", "0", "--workers", "4")
    for args, settings, code, told in (
        (several, {"RECEIVER_DATABASE_URL": "postgresql://a:b@127.0.0.1:1/c"}, 2, "refused"),
        ((*several, "nowhere:receiver"), {"RECEIVER_DATABASE_URL": "postgresql://a:b@127.0.0.1:1/c"}, 2, "MODULE:RECEIVER"),
        (several, {"READER_WEBHOOK_SECRET": None}, 2, "READER_WEBHOOK_SECRET"),
    ):
        done = command(tmp_path, *args, settings=settings)
        assert done.code == code
        assert told in done.complaint
