"""The function for Vercel, under Vercel's own runtime and under an ordinary ASGI server, on a real PostgreSQL."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from databases import Server
from deploy.vercel_kit import DEPLOY, Instance, launcher, project
from system.system_kit import Background, delivery, downstream, free_port, knowing, signed, start_job, until

from receiver.sandbox import BackgroundSandbox

SECRET = {"READER_WEBHOOK_SECRET": "whsec-of-the-function-at-vercel"}
CRON = {"CRON_SECRET": "a-secret-of-vercels-cron"}

pytestmark = [pytest.mark.checks, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launcher(project(), tmp_path_factory.mktemp("vercel"))


@pytest.fixture(scope="module")
def reader() -> Iterator[BackgroundSandbox]:
    with BackgroundSandbox(seed=1, rpm=100_000, job_seconds="0..0.2") as reader:
        yield reader


def send(vercel: Instance, body: bytes, secret: str = SECRET["READER_WEBHOOK_SECRET"]) -> tuple[int, Any]:
    return vercel.ask("POST", "/hooks/reader", body=body, headers=signed(body, secret=secret))


def cron() -> tuple[str, dict[str, str]]:
    """What Vercel's cron asks for, by `vercel.json`, and with which header."""
    (said,) = json.loads((DEPLOY / "vercel.json").read_text())["crons"]
    return said["path"], {"authorization": f"Bearer {CRON['CRON_SECRET']}", "user-agent": "vercel-cron/1.0"}


def test_deliveries_are_stored_before_they_are_answered(runtime: Path, tmp_path: Path, postgresql_url: str) -> None:
    """Signed, duplicate, forged and oversized; and many at once, each in an event loop of its own, with one effect."""
    with Instance(runtime, tmp_path, RECEIVER_DATABASE_URL=postgresql_url, **SECRET) as vercel:
        body = delivery()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: send(vercel, body), range(8)))
        assert sorted(status for status, _ in answers) == [200] * 7 + [202]
        assert send(vercel, delivery(), secret="somebody-elses-secret") == (401, {"error": "unauthorized"})
        assert send(vercel, delivery(note="x" * (1 << 20)))[0] == 413
        assert vercel.ask("GET", "/hooks/reader")[0] == 405
        assert vercel.ask("GET", "/v1/jobs")[0] == 401
        with psycopg.connect(postgresql_url) as side:
            assert side.execute(
                "SELECT count(*), count(DISTINCT job_id) FROM deliveries WHERE outcome = 'accepted'"
            ).fetchone() == (1, 1)


def test_the_cron_makes_a_pass_and_nobody_else_may(
    runtime: Path, tmp_path: Path, postgresql_url: str, reader: BackgroundSandbox
) -> None:
    """What `vercel.json` names, by GET with the bearer secret; when it is answered, nothing is leased or left running."""
    with downstream() as hook:
        hooks = json.dumps([{"name": "downstream", "url": hook.url}])
        settings = knowing(reader, READER_RPM="100000", RECEIVER_HOOKS=hooks, RECEIVER_DATABASE_URL=postgresql_url)
        with Instance(runtime, tmp_path, **settings, **SECRET, **CRON) as vercel, psycopg.connect(postgresql_url) as side:
            side.autocommit = True
            job = start_job(reader, pages=150)
            reader.settled()
            assert send(vercel, delivery(job))[0] == 202
            connections = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            before = side.execute(connections).fetchone()
            path, header = cron()
            assert vercel.ask("GET", path)[0] == 401
            assert vercel.ask("GET", path, headers={"authorization": "Bearer another-secret"})[0] == 401
            with ThreadPoolExecutor(2) as pool:
                both = list(pool.map(lambda _: vercel.ask("GET", path, headers=header), range(2)))
            assert [status for status, _ in both] == [200, 200]
            assert side.execute("SELECT count(*) FROM results").fetchone() == (150,)
            assert [json.loads(body)["data"]["job"]["id"] for _, body in hook.got] == [job]
            assert side.execute("SELECT count(*) FROM jobs WHERE lease_until IS NOT NULL").fetchone() == (0,)
            until(lambda: side.execute(connections).fetchone() == before)


def test_a_database_that_goes_away_and_comes_back(runtime: Path, tmp_path: Path) -> None:
    """503 meanwhile, also from `/readyz`; then the same process goes on."""
    server = Server()
    try:
        with server.migrated() as url, Instance(runtime, tmp_path, RECEIVER_DATABASE_URL=url, **SECRET) as vercel:
            assert (send(vercel, delivery())[0], vercel.ask("GET", "/readyz")[0]) == (202, 200)
            server.halt()
            assert (send(vercel, delivery())[0], vercel.ask("GET", "/readyz")[0]) == (503, 503)
            server.resume()
            assert (send(vercel, delivery())[0], vercel.ask("GET", "/readyz")[0]) == (202, 200)
    finally:
        server.stop()


def test_one_that_starts_without_its_database_takes_deliveries_once_it_is_there(runtime: Path, tmp_path: Path) -> None:
    server = Server()
    try:
        with server.migrated() as url:
            server.halt()
            with Instance(runtime, tmp_path, RECEIVER_DATABASE_URL=url, **SECRET) as vercel:
                assert send(vercel, delivery())[0] == 503
                server.resume()
                assert send(vercel, delivery())[0] == 202
    finally:
        server.stop()


def test_sqlite_is_refused_with_the_reason(runtime: Path, tmp_path: Path) -> None:
    with Instance(runtime, tmp_path, RECEIVER_DATABASE_URL="sqlite:///receiver.db", **SECRET) as vercel:
        assert send(vercel, delivery())[0] == 503
        hint = vercel.hint()
        assert all(word in hint for word in ("SQLite", "Vercel", "postgresql://"))


def test_a_server_that_has_a_lifespan_and_one_loop_will_do_as_well(runtime: Path, tmp_path: Path, postgresql_url: str) -> None:
    """Vercel's later runtimes may be such."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--port",
        str(port),
        "--lifespan",
        "on",
        "--app-dir",
        str(runtime.parent / "api"),
        "index:app",
    ]
    with Background(command, tmp_path, RECEIVER_DATABASE_URL=postgresql_url, PYTHONPATH=str(runtime.parent), **SECRET) as server:
        until(lambda: any("startup complete" in line for line in server.lines))
        body = delivery()
        url = f"http://127.0.0.1:{port}"
        headers = signed(body, secret=SECRET["READER_WEBHOOK_SECRET"])
        assert httpx.post(f"{url}/hooks/reader", content=body, headers=headers, trust_env=False).status_code == 202
        assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
        server.kill()
