"""`receiver doctor`, typed in every situation in which somebody may need it: it says what is wrong, what to do, and no secret."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from databases import Server
from system_kit import SECRET, Done, Served, command, delivery, downstream, free_port, knowing, migrated, signed, start_job, until

from receiver.core.fingerprint import HEADER, fingerprint
from receiver.sandbox import BackgroundSandbox

KEYS = "a-token-for-v1-and-metrics"


@dataclass
class Report:
    """What it said."""

    done: Done

    @property
    def lines(self) -> dict[str, dict[str, Any]]:
        return {line["name"]: line for line in self.done.json["checks"]}

    def named(self, status: str) -> set[str]:
        return {name for name, line in self.lines.items() if line["status"] == status}

    def told(self, name: str) -> str:
        line = self.lines[name]
        return f"{line['status']}: {line['message']} → {line['hint']}"


@dataclass
class Clinic:
    """A Reader, a server that is set up as it should be, and somebody who asks what is wrong."""

    folder: Path
    reader: BackgroundSandbox
    server: Served
    settings: dict[str, str | None]

    def report(self, **settings: str | None) -> Report:
        return look(self.folder, **{**self.settings, **settings})


def look(folder: Path, **settings: str | None) -> Report:
    ended = command(folder, "doctor", "--json", settings=settings)
    assert ended.err == ""
    report = Report(ended)
    assert ended.code == (1 if report.named("fail") else 0)
    assert ended.json["ok"] == (ended.code == 0)
    assert all(line["hint"] for line in report.lines.values() if line["status"] != "ok"), "what is wrong comes with what to do"
    for name in ("READER_API_KEY", "READER_WEBHOOK_SECRET", "RECEIVER_API_KEYS"):
        if value := settings.get(name, SECRET if name == "READER_WEBHOOK_SECRET" else None):
            assert value not in ended.out
    return report


@contextmanager
def opened(folder: Path) -> Iterator[Clinic]:
    port = free_port()
    with BackgroundSandbox(seed=1, job_seconds=0.1, queue_seconds=0.05) as reader:
        settings = knowing(reader, RECEIVER_PUBLIC_URL=f"http://127.0.0.1:{port}", RECEIVER_API_KEYS=KEYS)
        reader.register(f"http://127.0.0.1:{port}/hooks/reader", secret=SECRET)
        with Served(folder, port=port, settings=settings) as server:
            yield Clinic(folder, reader, server, settings)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    """For whoever leaves it as it was."""
    with opened(tmp_path_factory.mktemp("clinic")) as shared:
        yield shared


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Clinic]:
    """To do things to."""
    with opened(tmp_path) as mine:
        yield mine


def hooks_at(reader: BackgroundSandbox, method: str, path: str = "", **body: Any) -> Any:
    """Ask Reader's webhooks API."""
    answer = httpx.request(
        method, f"{reader.url}/v1/webhooks{path}", json=body or None, headers={"x-api-key": reader.api_key}, trust_env=False
    )
    return answer.json()["data"]


# At the beginning, and where all is well


def test_where_nothing_is_set_yet_it_says_what_comes_first_and_leaves_nothing_behind(tmp_path: Path) -> None:
    unset = dict.fromkeys(("READER_WEBHOOK_SECRET", "RECEIVER_DATABASE_URL"))
    report = look(tmp_path, **unset)
    assert report.named("fail") == {"api_key", "secret"}
    assert report.named("warn") == {"public_url", "server"}
    assert "`receiver webhook register` makes one" in report.told("secret")
    assert "`receiver serve` makes it" in report.told("database")
    assert not list(tmp_path.iterdir())
    words = command(tmp_path, "doctor", settings=unset)
    assert words.code == 1
    assert words.out.rstrip().endswith("2 things fail, and there are 2 warnings. Begin at the top.")


def test_where_all_is_well_it_says_so_and_its_own_delivery_has_no_effect(own: Clinic) -> None:
    start_job(own.reader, 1)
    own.reader.settled()
    until(lambda: own.server.rows("SELECT 1 FROM events"))
    before = own.server.rows("SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM events)")
    report = own.report()
    assert report.named("fail") == set(), report.done.out
    assert report.named("warn") <= {"disk_kind", "disk"}
    looked_at = {
        "settings",
        "api_key",
        "public_url",
        "secret",
        "database",
        "schema",
        "writing",
        "disk",
        "reader",
        "clock",
        "credits",
    }
    assert looked_at | {"webhook", "deliveries", "budget", "server", "reachable", "test_delivery", "hooks", "arrivals"} <= set(
        report.lines
    )
    assert own.server.rows("SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM events)") == before
    assert own.server.rows("SELECT outcome, job_id FROM deliveries WHERE event = 'receiver.doctor'") == [("ignored", None)]
    assert "no delivery" not in report.told("arrivals")
    asked = [(row["method"], row["path"]) for row in own.reader.ledger()["requests"] if row["path"] != "/v1/read"]
    assert asked[-2:] == [("GET", "/v1/usage/credits"), ("GET", "/v1/webhooks")], "two requests, and no more"
    words = command(own.folder, "doctor", settings=own.settings)
    assert words.code == 0
    assert "Nothing fails" in words.out


# What fails


def test_wrong_settings_are_told_one_by_one(tmp_path: Path) -> None:
    report = Report(command(tmp_path, "doctor", "--json", READER_WEBHOOK_SECRET="short", READER_RPM="many"))
    assert report.done.code == 1
    assert [line["name"] for line in report.done.json["checks"]] == ["settings", "settings"]
    assert "READER_RPM" in report.done.out
    assert "short" not in report.done.out.replace("too short", "")


@pytest.mark.parametrize(
    "database", ["postgresql://u:a-password-of-ours@127.0.0.1:1/x", "postgresql://u:a-password-of-ours@[::1/x"]
)
def test_a_database_that_is_not_to_be_had_is_told_and_all_else_is_looked_at(clinic: Clinic, database: str) -> None:
    report = clinic.report(RECEIVER_DATABASE_URL=database)
    assert report.named("fail") == {"database"}
    assert "a-password-of-ours" not in report.done.out
    assert {"reader", "webhook", "test_delivery"} <= report.named("ok")


def test_a_file_that_is_no_database_is_told(clinic: Clinic) -> None:
    (clinic.folder / "other.db").write_bytes(b"something else\n" * 100)
    report = clinic.report(RECEIVER_DATABASE_URL=f"sqlite:///{clinic.folder}/other.db")
    assert report.named("fail") == {"database"}


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    report = look(tmp_path, RECEIVER_DATABASE_URL=f"sqlite:///{tmp_path}/nowhere/receiver.db")
    assert "there is no folder" in report.told("writing")


def test_a_wrong_key_is_told(clinic: Clinic) -> None:
    report = clinic.report(READER_API_KEY="a-wrong-key-of-ours")
    assert report.named("fail") == {"reader"}
    assert "401" in report.told("reader")
    assert "set READER_API_KEY to a key that works" in report.told("reader")
    assert "clock" in report.named("ok"), "a refusal has a date too"


def test_a_reader_that_is_down_is_told(clinic: Clinic) -> None:
    report = clinic.report(READER_BASE_URL="http://127.0.0.1:1")
    assert report.named("fail") == {"reader"}
    assert "READER_BASE_URL" in report.told("reader")
    assert "test_delivery" in report.named("ok")


def test_credits_at_an_end_are_told(tmp_path: Path) -> None:
    with BackgroundSandbox(credits=0) as reader:
        report = look(tmp_path, **knowing(reader))
        assert "none are left until 2" in report.told("credits")
        assert "credits" in report.named("fail")


@pytest.mark.parametrize(("off", "status"), [(400, "fail"), (-400, "fail"), (60, "warn")])
def test_a_clock_that_is_off_is_told_by_how_much(tmp_path: Path, off: int, status: str) -> None:
    with reader_whose_clock_is_off(off) as url:
        report = look(tmp_path, READER_BASE_URL=url, READER_API_KEY="any-key-at-all")
        told = report.told("clock")
        assert told.startswith(f"{status}: this machine's is ")
        assert ("behind" if off > 0 else "ahead of") in told
        assert str(abs(off))[:-1] in told or str(abs(off) - 1) in told


@contextmanager
def reader_whose_clock_is_off(seconds: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data: Any = [] if "webhooks" in self.path else {"balance": 5, "limit": 10, "tier": "pro"}
            body = json.dumps({"success": True, "data": data}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            import time

            return super().date_time_string(int(time.time() + seconds))

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
def test_a_webhook_that_is_not_as_it_should_be_is_told_with_the_command_that_helps(own: Clinic) -> None:
    (row,) = hooks_at(own.reader, "GET")
    path = f"/{row['id']}"
    for change, words in (
        ({"active": False}, "is switched off"),
        ({"active": True, "events": ["job.page"]}, "is not told of job.completed and job.failed"),
        ({"events": row["events"], "url": "https://old.example/hooks/reader"}, "but one to https://old.example/hooks/reader"),
        ({"url": row["url"], "headers": {HEADER: "00000000"}}, "signs for"),
    ):
        hooks_at(own.reader, "PATCH", path, **change)
        report = own.report()
        assert report.named("fail") == {"webhook"}
        assert words in report.told("webhook")
        assert "`receiver webhook" in report.lines["webhook"]["hint"]
    hooks_at(own.reader, "DELETE", path)
    assert "`receiver webhook register` makes one" in own.report().told("webhook")


@pytest.mark.slow
def test_deliveries_that_are_refused_are_told_from_both_sides(own: Clinic) -> None:
    """Reader signs with another secret than the server has: its figures tell, and so do ours."""
    (row,) = hooks_at(own.reader, "GET")
    hooks_at(own.reader, "PATCH", f"/{row['id']}", secret="another-secret-altogether")
    start_job(own.reader, 1)
    own.reader.until(lambda ledger: bool(ledger["deliveries"]))
    report = own.report()
    assert report.named("fail") == {"deliveries"}
    assert "was answered 401" in report.told("deliveries")
    assert "`receiver webhook rotate`" in report.told("deliveries")
    assert "1 delivery signed with a secret that is not ours" in report.told("refused")


def test_a_secret_that_is_another_here_than_at_the_server_is_told(clinic: Clinic) -> None:
    report = clinic.report(READER_WEBHOOK_SECRET="not-the-servers-secret")
    assert report.named("fail") == {"same_secret", "test_delivery"}
    assert fingerprint(SECRET) in report.told("same_secret")
    assert fingerprint("not-the-servers-secret") in report.told("same_secret")


@pytest.mark.slow
def test_a_server_that_is_down_or_elsewhere_is_told(own: Clinic) -> None:
    own.server.stop()
    assert own.report().named("fail") == {"reachable"}
    with downstream(404, 404) as somebody_else:
        url = somebody_else.url.removesuffix("/events")
        report = own.report(RECEIVER_PUBLIC_URL=url)
        assert {"reachable", "test_delivery", "webhook"} == report.named("fail")
        assert "not as a receiver does" in report.told("reachable")
        assert "must be what stands before /hooks/reader" in report.told("test_delivery")


def test_hooks_that_cannot_be_reached_are_told(clinic: Clinic) -> None:
    with downstream() as hook:
        hooks = [
            {"name": "here", "url": hook.url, "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"},
            {"name": "gone", "url": "http://127.0.0.1:1/a-path-nobody-should-know"},
            {"name": "nameless", "url": "https://nowhere.invalid/"},
            {"name": "program", "exec": ["cat"]},
            {"name": "missing", "exec": ["no-such-program"]},
        ]
        report = clinic.report(RECEIVER_HOOKS=json.dumps(hooks))
        assert report.named("fail") == {"hook:gone", "hook:nameless", "hook:missing"}
        assert {"hook:here", "hook:program"} <= report.named("ok")
        assert hook.got == [], "nothing is sent"
        assert "a-path-nobody-should-know" not in report.done.out
        assert "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" not in report.done.out


@pytest.mark.slow
def test_what_is_silent_is_waited_for_once(tmp_path: Path) -> None:
    """Reader, the public URL, the database and a hook take connections and say nothing: somebody sits there, and has his answer."""
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(4)]
        began = time.monotonic()
        report = look(
            tmp_path,
            READER_API_KEY="rdr_of_the_silent",
            READER_BASE_URL=f"http://127.0.0.1:{silent[0]}",
            RECEIVER_PUBLIC_URL=f"http://127.0.0.1:{silent[1]}",
            RECEIVER_DATABASE_URL=f"postgresql://127.0.0.1:{silent[2]}/receiver",
            RECEIVER_HOOKS=json.dumps([{"name": "mute", "url": f"https://127.0.0.1:{silent[3]}/"}]),
        )
        took = time.monotonic() - began
    assert report.named("fail") == {"database", "reader", "reachable", "hook:mute"}
    assert took < 10


# What somebody ought to know


def test_unsigned_deliveries_that_look_like_readers_are_told(own: Clinic) -> None:
    """A webhook set for one job, without a secret."""
    start_job(own.reader, 1, webhook={"url": f"{own.server.url}/hooks/reader"})
    own.reader.until(lambda ledger: any(row["status"] == 401 for row in ledger["deliveries"]))
    report = own.report()
    assert report.named("fail") == set()
    assert "1 delivery that looked like Reader's, but had no signature" in report.told("refused")
    assert "a webhook set for one job" in report.told("refused")


def test_bodies_that_nobody_can_read_are_told(own: Clinic) -> None:
    for number in range(3):
        body = b'{"now": "it is called otherwise", "n": %d}' % number
        assert own.server.post(body, signed(body)).status == 200
    report = own.report()
    assert report.named("fail") == {"arrivals"}
    assert "all 3 of the newest deliveries are quarantined" in report.told("arrivals")
    assert own.server.post(delivery("job_1")).status == 202
    assert "3 of the newest 4 are quarantined (75%)" in own.report().told("arrivals")


@pytest.mark.slow
def test_while_reader_has_us_wait_it_does_not_ask(own: Clinic) -> None:
    own.reader.faults["rate_limit"] = {"rate": 1, "times": 1, "value": 40}
    httpx.post(f"{own.server.url}/v1/jobs", json={"id": "job_1"}, headers={"x-api-key": KEYS}, trust_env=False)
    own.server.logged("reader_paused")
    asked = len(own.reader.ledger()["requests"])
    report = own.report()
    assert report.named("fail") == set()
    assert {"reader", "budget"} <= report.named("warn")
    assert len(own.reader.ledger()["requests"]) == asked


@pytest.mark.slow
def test_on_postgresql_it_tells_whether_the_schema_is_there_and_how_fast_a_commit_is(tmp_path: Path, postgresql: Server) -> None:
    with postgresql.empty() as url:
        report = look(tmp_path, RECEIVER_DATABASE_URL=url)
        assert "run `receiver migrate`" in report.told("schema")
        assert command(tmp_path, "migrate", RECEIVER_DATABASE_URL=url).code == 0
        report = look(tmp_path, RECEIVER_DATABASE_URL=url)
        assert {"database", "schema", "writing"} <= report.named("ok")
        assert "PostgreSQL" in report.told("database")
        assert "a commit takes" in report.told("writing")


def test_no_server_runs_and_the_database_is_only_read(tmp_path: Path) -> None:
    """So that one may be started meanwhile, and what is there stays as it is."""
    database = tmp_path / "receiver.db"
    database.write_bytes(migrated().read_bytes())
    before = database.read_bytes()
    report = look(tmp_path)
    assert {"database", "schema", "writing"} <= report.named("ok")
    assert database.read_bytes() == before
    assert not (tmp_path / "receiver.db.lock").exists()
