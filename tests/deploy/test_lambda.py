"""The Lambda handler under Lambda's own runtime client, with events as AWS sends them, on a real PostgreSQL."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psycopg
import pytest
from databases import Server
from deploy.lambda_kit import Environment, LambdaError, delivered, event, request
from system.system_kit import SECRET, command, delivery, downstream, knowing, signed, start_job, until

from receiver.sandbox import BackgroundSandbox

ACCEPTED = (202, {"outcome": "accepted"})
DUPLICATE = (200, {"outcome": "duplicate"})


@pytest.fixture
def lambda_(tmp_path: Path, postgresql_url: str) -> Iterator[Environment]:
    with Environment(tmp_path, RECEIVER_DATABASE_URL=postgresql_url) as environment:
        yield environment


@pytest.fixture(scope="module")
def reader() -> Iterator[BackgroundSandbox]:
    with BackgroundSandbox(seed=1, rpm=100_000, job_seconds="0..0.2") as reader:
        yield reader


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as side:
        return side.execute(query.encode()).fetchall()


def test_deliveries_as_every_gateway_hands_them_over(lambda_: Environment, postgresql_url: str) -> None:
    """A function URL's, plain and in base64, and an HTTP API's: each is stored before it is answered, and known the second time."""
    for name in ("function-url", "http-api"):
        for in_base64 in (False, True):
            body = delivery(note="zwölf ✓")
            sent = delivered(name, body, in_base64=in_base64)
            assert lambda_.asked(sent) == ACCEPTED
            assert lambda_.asked(sent) == DUPLICATE
            assert rows(postgresql_url, f"SELECT count(*) FROM deliveries WHERE body = '\\x{body.hex()}'") == [(1,)]


def test_what_is_refused(lambda_: Environment, postgresql_url: str) -> None:
    """Forged, unsigned, oversized, oddly encoded and misdirected requests get their status, and leave nothing behind."""
    body = delivery()
    forged = signed(body, secret="somebody-elses-secret")
    assert lambda_.asked(request("function-url", body, **forged)) == (401, {"error": "unauthorized"})
    assert lambda_.asked(request("function-url", body)) == (401, {"error": "unauthorized"})
    twice = signed(body) | {"X-Reader-Signature": ",".join([signed(body)["X-Reader-Signature"]] * 2)}
    assert lambda_.asked(request("function-url", body, **twice)) == (401, {"error": "unauthorized"})
    large = delivery(note="x" * (1 << 20))
    assert lambda_.asked(delivered("function-url", large)) == (413, {"error": "too_large"})
    unmeasured = delivered("function-url", large)
    del unmeasured["headers"]["content-length"]
    assert lambda_.asked(unmeasured) == (413, {"error": "too_large"})
    assert lambda_.asked(delivered("function-url", body) | {"headers": signed(body) | {"content-encoding": "gzip"}})[0] == 415
    assert lambda_.invoke(request("function-url", method="GET"))["headers"]["allow"] == "POST"
    assert lambda_.asked(request("function-url", body, path="/hooks/readers"))[0] == 404
    assert lambda_.asked(request("function-url", method="GET", path="/v1/jobs"))[0] == 401
    assert rows(postgresql_url, "SELECT count(*) FROM deliveries") == [(0,)]


@pytest.mark.slow
def test_readiness_is_asked_for_over_http(lambda_: Environment) -> None:
    status, told = lambda_.asked(request("function-url", method="GET", path="/readyz"))
    assert (status, told["status"]) == (200, "ok")


@pytest.mark.parametrize("name", [*(pytest.param(n, marks=pytest.mark.slow) for n in ("schedule", "scheduler")), "sqs"])
def test_a_pass_reads_what_is_due_and_tells_of_it(
    name: str, tmp_path: Path, postgresql_url: str, reader: BackgroundSandbox
) -> None:
    """By a rule, a schedule or a queue: when the invocation ends, the results are stored, downstream knows, and all is let go of."""
    connections = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    with downstream() as hook:
        settings = knowing(reader, READER_RPM="100000", RECEIVER_HOOKS=json.dumps([{"name": "downstream", "url": hook.url}]))
        with Environment(tmp_path, RECEIVER_DATABASE_URL=postgresql_url, **settings) as lambda_:
            job = start_job(reader, pages=150)
            reader.settled()
            assert lambda_.asked(delivered("function-url", delivery(job))) == ACCEPTED
            before = rows(postgresql_url, connections)
            done = lambda_.invoke(event(name))
            assert done["done"] >= 2
            assert not done["more"]
            assert rows(postgresql_url, "SELECT count(*) FROM results") == [(150,)]
            assert [json.loads(body)["data"]["job"]["id"] for _, body in hook.got] == [job]
            assert rows(postgresql_url, "SELECT count(*) FROM jobs WHERE lease_until IS NOT NULL") == [(0,)]
            # What a frozen process keeps open is the one connection that takes deliveries. The server takes a moment to notice.
            until(lambda: rows(postgresql_url, connections) == before)


def test_two_cold_starts_at_once_have_one_effect(tmp_path: Path, postgresql_url: str) -> None:
    body = delivery()
    sent = delivered("function-url", body)
    with (
        Environment(tmp_path / "one", RECEIVER_DATABASE_URL=postgresql_url) as one,
        Environment(tmp_path / "two", RECEIVER_DATABASE_URL=postgresql_url) as two,
        ThreadPoolExecutor(2) as pool,
    ):
        answers = list(pool.map(lambda environment: environment.asked(sent), (one, two)))
    assert sorted(answers, key=str) == sorted([ACCEPTED, DUPLICATE], key=str)
    assert rows(postgresql_url, "SELECT count(*), count(DISTINCT job_id) FROM deliveries WHERE outcome = 'accepted'") == [(1, 1)]
    assert rows(postgresql_url, "SELECT count(*) FROM jobs") == [(1,)]


@pytest.mark.slow
def test_an_accepted_delivery_pokes_the_queue_once(tmp_path: Path, postgresql_url: str) -> None:
    """A duplicate and a forgery do not; and a queue that fails changes no answer."""
    with (
        downstream(200, 503) as queue,
        Environment(
            tmp_path,
            RECEIVER_DATABASE_URL=postgresql_url,
            RECEIVER_POKE_QUEUE=f"{queue.url}/123456789012/receiver-poke",
            AWS_ENDPOINT_URL_SQS=queue.url,
        ) as lambda_,
    ):
        sent = delivered("function-url", body := delivery())
        assert lambda_.asked(sent) == ACCEPTED
        assert [headers["x-amz-target"] for headers, _ in queue.got] == ["AmazonSQS.SendMessage"]
        assert lambda_.asked(sent) == DUPLICATE
        assert lambda_.asked(request("function-url", body))[0] == 401
        assert len(queue.got) == 1
        assert lambda_.asked(delivered("function-url", delivery())) == ACCEPTED
        assert len(queue.got) == 2
        assert "next schedule" in lambda_.logged("poke_failed")["hint"]


@pytest.mark.slow
def test_a_pass_that_runs_out_of_the_functions_time_gives_back_what_it_had(
    tmp_path: Path, postgresql_url: str, reader: BackgroundSandbox
) -> None:
    """It ends before Lambda ends it, and the next one goes on at once. Neither pokes the queue, whatever is left to do."""
    jobs = [start_job(reader, pages=400) for _ in range(12)]
    reader.settled()
    with (
        downstream() as queue,
        Environment(
            tmp_path,
            RECEIVER_DATABASE_URL=postgresql_url,
            RECEIVER_POKE_QUEUE=f"{queue.url}/123456789012/receiver-poke",
            AWS_ENDPOINT_URL_SQS=queue.url,
            **knowing(reader, READER_RPM="100000"),
        ) as lambda_,
    ):
        for job in jobs:
            assert lambda_.asked(delivered("function-url", delivery(job))) == ACCEPTED
        poked = len(queue.got)
        reader.faults["latency"] = 0.7
        try:
            first = lambda_.invoke(event("schedule"), seconds=6.5)
            assert first["more"]
            assert first["seconds"] < 6.5 - 2
            assert rows(postgresql_url, "SELECT count(*) FROM jobs WHERE lease_until IS NOT NULL") == [(0,)]
            assert not lambda_.invoke(event("sqs"))["more"]
        finally:
            reader.faults.clear()
        assert rows(postgresql_url, "SELECT count(*) FROM results") == [(400 * len(jobs),)]
        assert len(queue.got) == poked


@pytest.mark.slow
def test_settings_from_a_secret_are_never_told(tmp_path: Path, postgresql_url: str) -> None:
    """READER_WEBHOOK_SECRET and the database's URL come from Secrets Manager; one that cannot be read is a 503, until it can."""
    held = json.dumps({"READER_WEBHOOK_SECRET": SECRET, "RECEIVER_DATABASE_URL": postgresql_url})
    answers = [(400, {"__type": "ResourceNotFoundException"}), (200, {"SecretString": "no json"}), (200, {"SecretString": held})]

    class Manager(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status, told = answers.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(told).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Manager) as manager:
        thread = Thread(target=manager.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        with Environment(
            tmp_path,
            READER_WEBHOOK_SECRET=None,
            RECEIVER_AWS_SECRET="receiver",
            AWS_ENDPOINT_URL_SECRETS_MANAGER=f"http://127.0.0.1:{manager.server_address[1]}",
        ) as lambda_:
            for _ in range(2):
                answer = lambda_.invoke(delivered("function-url", delivery()))
                assert (answer["statusCode"], answer["headers"]["retry-after"]) == (503, "2")
            assert lambda_.asked(delivered("function-url", delivery())) == ACCEPTED
            assert SECRET not in str(lambda_.log)
        manager.shutdown()
        thread.join()


@pytest.mark.slow
def test_the_schema_is_migrated_by_hand(tmp_path: Path, postgresql: Server) -> None:
    """Where only the function reaches the database. Until then deliveries get 503, and the log says what to do."""
    with postgresql.empty() as url, Environment(tmp_path, RECEIVER_DATABASE_URL=url) as lambda_:
        assert lambda_.asked(delivered("function-url", delivery()))[0] == 503
        assert "migrate" in lambda_.logged("unavailable")["hint"]
        assert lambda_.invoke({"receiver": "migrate"}) == {"schema": "current"}
        assert lambda_.asked(delivered("function-url", delivery())) == ACCEPTED


@pytest.mark.slow
def test_a_pass_that_cannot_be_made_is_an_error(lambda_: Environment) -> None:
    """Lambda counts it, and the alarm goes by that."""
    with pytest.raises(LambdaError, match="SettingsError: READER_API_KEY is not set"):
        lambda_.invoke(event("schedule"))
    with pytest.raises(LambdaError, match="UsageError: this is neither"):
        lambda_.invoke({"hello": "world"})


@pytest.mark.parametrize("mark", ["AWS_LAMBDA_FUNCTION_NAME", "K_SERVICE", "VERCEL"])
def test_sqlite_on_a_disk_that_goes_with_its_process_is_refused(mark: str, tmp_path: Path) -> None:
    done = command(tmp_path, "serve", "--port", "0", **{mark: "receiver"})
    assert done.code == 2
    assert all(word in done.complaint for word in ("SQLite", mark, "postgresql://"))


def test_a_delivery_waits_for_nothing_that_only_a_pass_needs() -> None:
    code = "import sys, receiver.serverless.aws; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    idle = {"httpx", "rich", "typer", "alembic", "zstandard", "botocore", "starlette", "receiver.reconciler", "receiver.app"}
    assert not idle & set(done.stdout.split())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_database_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    """503 and failed passes meanwhile; then the next invocation of the same process goes on, whatever died while it was frozen."""
    server = Server()
    try:
        with server.migrated() as url, Environment(tmp_path, RECEIVER_DATABASE_URL=url, READER_API_KEY="rdr_key") as lambda_:
            assert lambda_.asked(delivered("function-url", delivery())) == ACCEPTED
            server.halt()
            server.resume()
            assert lambda_.asked(delivered("function-url", delivery())) == ACCEPTED
            server.halt()
            answer = lambda_.invoke(delivered("function-url", delivery()))
            assert (answer["statusCode"], answer["headers"]["retry-after"]) == (503, "2")
            with pytest.raises(LambdaError, match="StoreError"):
                lambda_.invoke(event("schedule"))
            server.resume()
            assert lambda_.asked(delivered("function-url", delivery())) == ACCEPTED
    finally:
        server.stop()
