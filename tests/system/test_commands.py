"""The commands, each a process of its own: beside a running server on its SQLite file, and by themselves where none runs."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
from system_kit import (
    RECEIVER,
    SECRET,
    Background,
    Done,
    Served,
    command,
    delivery,
    environment,
    free_port,
    knowing,
    rows,
    signature,
    signed,
    start_job,
    until,
)

from receiver.sandbox import BackgroundSandbox

ANY_PACE = "100000"


@dataclass
class Desk:
    """A folder with a database, a Reader, and perhaps a server: where somebody types commands."""

    folder: Path
    reader: BackgroundSandbox
    server: Served | None = None

    def run(self, *args: str, stdin: bytes = b"", **settings: str | None) -> Done:
        return command(self.folder, *args, stdin=stdin, settings={**knowing(self.reader, READER_RPM=ANY_PACE), **settings})

    def done(self, *args: str, stdin: bytes = b"", **settings: str | None) -> str:
        """Its output. It must succeed and complain of nothing."""
        ended = self.run(*args, stdin=stdin, **settings)
        assert (ended.code, ended.err) == (0, "")
        return ended.out

    def tick(self, budget: str = "30") -> dict[str, Any]:
        """A pass of work: its summary. What it did besides is in its log, on stderr."""
        ended = self.run("tick", "--budget", budget)
        assert ended.code == 0, ended.err
        told: dict[str, Any] = ended.json
        return told

    def begin(self, *args: str) -> Background:
        """The command, without waiting for its end."""
        return Background([RECEIVER, *args], self.folder, **knowing(self.reader, READER_RPM=ANY_PACE))

    def state(self, job: str) -> str:
        return str(rows(self.folder / "receiver.db", "SELECT state FROM jobs WHERE id = ?", job)[0][0])

    def settled(self, pages: int) -> str:
        """A job that somebody else started, read by us."""
        assert self.server is not None
        job = start_job(self.reader, pages)
        assert httpx.post(f"{self.server.url}/v1/jobs", json={"id": job}, trust_env=False).is_success
        until(lambda: self.state(job) == "settled")
        return job

    @cached_property
    def job(self) -> str:
        """One of 120 results, read by us."""
        return self.settled(120)

    def truth(self) -> dict[str, Any]:
        jobs: dict[str, Any] = self.reader.ledger()["jobs"]
        return jobs


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Beside a running server."""
    folder, port = tmp_path_factory.mktemp("desk"), free_port()
    with (
        BackgroundSandbox(seed=1, job_seconds=0.1, queue_seconds=0.05) as reader,
        Served(
            folder,
            port=port,
            settings=knowing(reader, READER_RPM=ANY_PACE, RECEIVER_PUBLIC_URL=f"http://127.0.0.1:{port}"),
        ) as server,
    ):
        yield Desk(folder, reader, server)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Desk]:
    """Where no server runs, and there is no database yet."""
    with BackgroundSandbox(seed=1, job_seconds=0.1, queue_seconds=0.05) as reader:
        yield Desk(tmp_path, reader)


def urls(prefix: str, count: int) -> list[str]:
    return [f"https://{prefix}.example/{number}" for number in range(count)]


# submit


def submitted(desk: Desk, job: str) -> list[str]:
    """The URLs that Reader got, once the job is done and read by whoever works here."""
    until(lambda: desk.state(job) == "settled")
    return sorted(row["url"] for row in desk.truth()[job]["results"])


def test_submit_hands_urls_to_reader_and_the_server_sees_them_through(desk: Desk) -> None:
    job, status = desk.done("submit", *urls("by-hand", 3)).split()
    assert status in {"queued", "processing", "completed", "unknown"}
    assert submitted(desk, job) == urls("by-hand", 3)
    assert desk.server is not None
    desk.server.logged("job_submitted", job=job)


def test_submit_takes_urls_from_a_file_without_its_comments_and_blank_lines(desk: Desk) -> None:
    one, two, three = urls("by-file", 3)
    (desk.folder / "urls.txt").write_text(f"# what we read\n{one}\n\n  {two}  \n#{three}\n")
    job = desk.done("submit", "--file", "urls.txt", three).split()[0]
    assert submitted(desk, job) == [one, two, three]


@pytest.mark.slow
def test_submit_takes_urls_from_standard_input(desk: Desk) -> None:
    job = desk.done("submit", "-f", "-", stdin="\n".join(urls("by-stdin", 2)).encode()).split()[0]
    assert submitted(desk, job) == urls("by-stdin", 2)


def test_submit_prints_the_job_as_json(desk: Desk) -> None:
    told = json.loads(desk.done("submit", "--json", *urls("as-json", 2)))
    assert told["id"] in desk.truth()
    assert "results" not in told


def test_submit_starts_a_crawl(desk: Desk) -> None:
    told = json.loads(desk.done("submit", "--crawl", "--watch", "--json", "https://crawled.example/"))
    assert (told["mode"], told["status"]) == ("crawl", "completed")


def test_submit_watches_until_the_results_are_stored(desk: Desk) -> None:
    job, status = desk.done("submit", "--watch", *urls("watched", 2)).split()
    assert (status, desk.state(job)) == ("completed", "settled")
    assert len(desk.done("results", job).splitlines()) == 2


def test_submit_says_what_reader_refuses_and_keeps_nothing_to_be_sent(desk: Desk) -> None:
    before = len(desk.truth())
    ended = desk.run("submit", "not a url")
    assert ended.code == 1
    assert "invalid_request" in ended.complaint
    assert len(desk.truth()) == before
    assert rows(desk.folder / "receiver.db", "SELECT 1 FROM submissions WHERE state = 'pending'") == []


# track, jobs, job


def test_track_makes_jobs_known_and_their_results_are_read(desk: Desk) -> None:
    jobs = [start_job(desk.reader, 2) for _ in range(2)]
    assert desk.done("track", *jobs).splitlines() == [f"{job} is tracked" for job in jobs]
    for job in jobs:
        until(lambda job=job: desk.state(job) == "settled")
        assert len(desk.done("results", job).splitlines()) == 2


@pytest.mark.slow
def test_track_prints_a_json_object_for_each_job(desk: Desk) -> None:
    jobs = [start_job(desk.reader, 1) for _ in range(2)]
    assert [json.loads(line)["id"] for line in desk.done("track", "--json", *jobs).splitlines()] == jobs


def test_jobs_lists_by_readers_status_and_by_ours(desk: Desk) -> None:
    ended = desk.job
    running = start_job(desk.reader, 1, batchConcurrency=1)
    desk.reader.faults = {"unborn": {"rate": 1, "match": running, "value": 3600}}
    desk.done("track", running)
    desk.reader.faults = {}

    def listed(*more: str) -> set[str]:
        told = json.loads(desk.done("jobs", "--json", "--limit", "1000", *more))
        assert told["total"] == len(told["jobs"])
        return {job["id"] for job in told["jobs"]}

    assert {ended, running} <= listed()
    assert ended in listed("--status", "completed")
    assert ended in listed("--status", "settled")
    assert ended not in listed("--status", "watching")
    assert desk.done("jobs", "--status", "failed") == "No jobs are failed.\n"


def test_jobs_shows_whole_ids_and_how_many_more_there_are(desk: Desk) -> None:
    assert desk.job
    newest = desk.settled(1)
    lines = desk.done("jobs", "--limit", "1", COLUMNS="20").splitlines()
    assert newest in " ".join(lines).split()
    assert desk.job not in " ".join(lines).split()
    assert "--limit shows" in " ".join(lines)


def test_job_tells_all_there_is_to_tell_of_one(desk: Desk) -> None:
    job = desk.job
    told = json.loads(desk.done("job", job, "--json"))
    assert told["id"] == job
    assert (told["status"], told["state"], told["generation"]) == ("completed", "settled", 1)
    assert (told["results"], told["failed_urls"], told["requests"], told["verified"]) == (120, 0, 2, True)
    assert told["ended_at"] <= told["noticed_at"] <= told["settled_at"]
    lines = [" ".join(line.split()) for line in desk.done("job", job).splitlines()]
    assert lines[0] == f"job {job}"
    assert any(line.startswith("settled") and "2 requests" in line for line in lines)


@pytest.mark.parametrize("args", [("job",), ("results",)])
def test_a_job_that_is_not_tracked_is_one_line_that_says_how_to_track_it(desk: Desk, args: tuple[str, ...]) -> None:
    ended = desk.run(*args, "job_of_nobody")
    assert ended.code == 1
    assert "receiver track job_of_nobody" in ended.complaint


# results


def test_results_are_a_line_of_json_each_as_reader_gave_them(desk: Desk) -> None:
    job = desk.job
    printed = [json.loads(line) for line in desk.done("results", job).splitlines()]
    truth = desk.truth()[job]["results"]
    assert [row["url"] for row in printed] == [row["url"] for row in truth]
    assert all(row["markdown"] and row["metadata"]["statusCode"] == 200 for row in printed)


def test_results_as_csv_have_the_usual_fields_and_every_row(desk: Desk) -> None:
    job = desk.job
    as_json = [json.loads(line) for line in desk.done("results", job).splitlines()]
    table = list(csv.DictReader(io.StringIO(desk.done("results", job, "--format", "csv"))))
    assert [(row["url"], row["markdown"], row["statusCode"]) for row in table] == [
        (row["url"], row["markdown"], "200") for row in as_json
    ]
    assert json.loads(table[0]["metadata"]) == as_json[0]["metadata"]


def test_results_go_into_a_file_that_is_whole_or_as_it_was(desk: Desk) -> None:
    job = desk.job
    target = desk.folder / "pages.jsonl"
    target.write_text("of last week")
    assert desk.run("results", "job_of_nobody", "-o", str(target)).code == 1
    assert target.read_text() == "of last week"
    ended = desk.run("results", job, "-o", str(target))
    assert (ended.code, ended.out, ended.err) == (0, "", f"120 results in {target}\n")
    assert target.read_text() == desk.done("results", job)
    assert list(desk.folder.glob("*.partial")) == []


@pytest.mark.slow
def test_results_that_cannot_be_written_are_one_line_and_exit_code_2(desk: Desk) -> None:
    ended = desk.run("results", desk.job, "-o", "/nowhere/pages.jsonl")
    assert ended.code == 2
    assert "/nowhere/pages.jsonl" in ended.complaint


def test_results_of_an_earlier_end_stay_readable(desk: Desk) -> None:
    job = desk.job
    assert len(desk.done("results", job, "--generation", "1").splitlines()) == 120
    ended = desk.run("results", job, "--generation", "2")
    assert ended.code == 1
    assert job in ended.complaint


def test_a_reader_of_results_that_has_enough_is_no_failure(desk: Desk) -> None:
    """As with `| head -1`: more was to come than a pipe holds."""
    job = desk.job
    process = subprocess.Popen(
        [RECEIVER, "results", job],
        cwd=desk.folder,
        env=environment(desk.folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["url"]
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == 0


# sign, send


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_sign_prints_headers_with_which_a_body_is_accepted(desk: Desk, how: str) -> None:
    body = delivery(event="job.page")
    (desk.folder / "body.json").write_bytes(body)
    out = desk.done("sign", "body.json" if how == "file" else "-", "--event", "job.page", stdin=body)
    headers = dict(line.split(": ") for line in out.splitlines())
    assert list(headers) == ["X-Reader-Event", "X-Reader-Delivery", "X-Reader-Timestamp", "X-Reader-Signature"]
    assert headers["X-Reader-Event"] == "job.page"
    assert headers["X-Reader-Signature"] == signature(body, headers["X-Reader-Timestamp"])
    assert desk.server is not None
    assert desk.server.post(body, headers).json == {"outcome": "accepted"}


@pytest.mark.slow
def test_sign_prints_them_as_json_and_signs_with_the_first_of_several_secrets(desk: Desk) -> None:
    (desk.folder / "body.json").write_bytes(b"\x00\xff not even text\r\n")
    out = desk.done("sign", "body.json", "--json", READER_WEBHOOK_SECRET=f"{SECRET},the-one-that-retires")
    headers = json.loads(out)
    assert headers["X-Reader-Signature"] == signature(b"\x00\xff not even text\r\n", headers["X-Reader-Timestamp"])


def test_send_finds_the_server_on_its_database_and_is_accepted(desk: Desk) -> None:
    assert desk.done("send", "job.page", "--job", "job_sent") == '202 {"outcome": "accepted"}\n'
    assert desk.server is not None
    assert desk.server.rows("SELECT event FROM deliveries WHERE job_id = 'job_sent'") == [("job.page",)]


def test_send_takes_a_url_and_fails_where_it_is_refused(desk: Desk) -> None:
    assert desk.server is not None
    url = f"{desk.server.url}/hooks/reader"
    told = json.loads(desk.done("send", "job.page", "--job", "job_sent_json", "--url", url, "--json"))
    assert told == {"status": 202, "body": '{"outcome": "accepted"}'}
    refused = desk.run("send", "job.page", "--job", "job_x", "--url", url, READER_WEBHOOK_SECRET="of-somebody-else-entirely")
    assert (refused.code, refused.out) == (1, '401 {"error": "unauthorized"}\n')


# tick, migrate


def test_tick_beside_a_server_without_loops_has_it_do_the_pass(tmp_path: Path) -> None:
    """As cron would call it: the server only receives, the tick does the rest."""
    with BackgroundSandbox(seed=1, job_seconds=0.05, queue_seconds=0) as reader:
        settings = knowing(reader, READER_RPM=ANY_PACE, RECEIVER_LOOPS="false")
        with Served(tmp_path, settings=settings) as server:
            desk = Desk(tmp_path, reader, server)
            job = start_job(reader, 2)
            reader.settled()
            assert server.post(delivery(job)).status == 202
            assert desk.state(job) == "watching"
            told = desk.tick()
            assert (told["done"], told["more"]) == (1, False)
            assert desk.state(job) == "settled"


def test_migrate_beside_a_server_is_refused_and_does_it_no_harm(desk: Desk) -> None:
    ended = desk.run("migrate")
    assert ended.code == 2
    assert desk.server is not None
    assert str(desk.server.process.pid) in ended.complaint
    assert desk.server.post(delivery()).status == 202


def test_migrate_makes_a_database_and_may_run_again(alone: Desk) -> None:
    for _ in range(2):
        assert alone.done("migrate") == "the schema is current\n"
    assert alone.done("jobs").startswith("No jobs yet")


# Without a server


# retry, cancel, watch


def test_a_retried_job_ends_again_as_a_generation_of_its_own(desk: Desk) -> None:
    job = desk.done("submit", "--watch", "https://retried.example/?sandbox=error-once").split()[0]
    assert desk.done("retry", job) == f"{job} is retried\n"
    until(lambda: len(rows(desk.folder / "receiver.db", "SELECT 1 FROM outcomes WHERE job_id = ?", job)) == 2)
    assert json.loads(desk.done("job", job, "--json"))["generation"] == 2


def test_a_cancelled_job_is_read_as_far_as_it_came_and_cannot_be_cancelled_again(tmp_path: Path) -> None:
    with BackgroundSandbox(seed=1, job_seconds=3600, queue_seconds=0) as reader:
        desk = Desk(tmp_path, reader)
        job = desk.done("submit", *urls("cancelled", 5)).split()[0]
        assert desk.done("cancel", job) == f"{job} is cancelled\n"
        desk.tick()
        told = json.loads(desk.done("job", job, "--json"))
        assert (told["status"], told["state"]) == ("cancelled", "settled")
        ended = desk.run("cancel", job)
        assert ended.code == 1
        assert "conflict" in ended.complaint


def test_watch_follows_a_job_to_its_end(desk: Desk) -> None:
    job = start_job(desk.reader, 2)
    told = json.loads(desk.done("watch", job, "--json"))
    assert (told["id"], told["state"], told["results"]) == (job, "settled", 2)


def test_watch_does_not_wait_for_what_nobody_can_look_at(alone: Desk) -> None:
    ended = alone.run("watch", "job_1", READER_API_KEY=None)
    assert ended.code == 2
    assert "READER_API_KEY is not set" in ended.complaint


def test_without_a_server_watch_does_the_work_itself(alone: Desk) -> None:
    job = start_job(alone.reader, 2)
    assert job in alone.done("watch", job)
    assert alone.state(job) == "settled"


def test_without_a_server_a_job_is_submitted_and_ticks_bring_it_home(alone: Desk) -> None:
    job = alone.done("submit", *urls("alone", 3)).split()[0]
    assert alone.state(job) == "watching"
    assert json.loads(alone.done("jobs", "--json"))["total"] == 1
    alone.reader.settled()
    assert alone.tick()["done"] == 0, "it is not due yet"
    alone.done("track", job)  # now it is
    told = alone.tick()
    assert (told["done"], told["more"], alone.state(job)) == (1, False, "settled")
    assert len(alone.done("results", job).splitlines()) == 3


@pytest.mark.slow
def test_without_a_server_submit_can_watch_its_job_to_the_end(alone: Desk) -> None:
    told = json.loads(alone.done("submit", "--watch", "--json", *urls("alone", 2)))
    assert told["status"] == "completed"
    assert len(alone.done("results", told["id"]).splitlines()) == 2


@pytest.mark.slow
def test_without_a_server_track_is_remembered_for_the_next_one(alone: Desk) -> None:
    job = start_job(alone.reader, 2)
    assert alone.done("track", job) == f"{job} is tracked\n"
    with Served(alone.folder, settings=knowing(alone.reader, READER_RPM=ANY_PACE)):
        until(lambda: alone.state(job) == "settled")


@pytest.mark.slow
def test_send_without_a_server_is_one_line_and_exit_code_1(alone: Desk) -> None:
    assert alone.run("migrate").code == 0
    ended = alone.run("send", "job.page", "--job", "job_1", "--url", "http://127.0.0.1:1/hooks/reader")
    assert ended.code == 1
    assert "receiver serve" in ended.complaint


# What is written down before it leaves


@contextmanager
def before_it_is_sent(reader: BackgroundSandbox) -> Iterator[None]:
    """Reader has got a request for a job, and not begun to work on it."""
    reader.faults = {"latency": {"value": 3600, "match": "POST /v1/read"}}
    yield
    reader.until(lambda ledger: any(row["path"] == "/v1/read" for row in ledger["requests"]))


@contextmanager
def before_it_is_answered(reader: BackgroundSandbox) -> Iterator[None]:
    """Reader has started the job, and whoever asked has not heard of it."""
    reader.faults = {"drip": {"rate": 1, "value": 3600, "match": "POST /v1/read"}}
    yield
    reader.until(lambda ledger: bool(ledger["jobs"]))


WINDOWS = [before_it_is_sent, before_it_is_answered]


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: window.__name__)
def test_a_submit_that_is_killed_loses_nothing_and_starts_no_second_job(alone: Desk, window: Any) -> None:
    with window(alone.reader):
        process = alone.begin("submit", *urls("killed", 2))
    process.kill()
    ((key, state),) = rows(alone.folder / "receiver.db", "SELECT idempotency_key, state FROM submissions")
    assert state == "pending"
    alone.reader.faults = {}
    alone.tick()
    (job,) = alone.truth()
    assert rows(alone.folder / "receiver.db", "SELECT idempotency_key, state, job_id FROM submissions") == [(key, "sent", job)]
    assert submitted_once(alone, job)


@pytest.mark.slow
@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: window.__name__)
def test_a_server_that_is_killed_while_it_submits_for_us_sends_it_when_it_is_back(alone: Desk, window: Any) -> None:
    settings = knowing(alone.reader, READER_RPM=ANY_PACE)
    with ThreadPoolExecutor(1) as pool:
        server = Served(alone.folder, settings=settings)
        with window(alone.reader):
            asking = pool.submit(alone.run, "submit", *urls("killed", 2))
        server.kill()
        ended = asking.result()
    assert ended.code == 1
    assert server.url in ended.complaint
    alone.reader.faults = {}
    with Served(alone.folder, settings=settings):
        until(lambda: rows(alone.folder / "receiver.db", "SELECT 1 FROM jobs"))
    (job,) = alone.truth()
    assert submitted_once(alone, job)


def submitted_once(desk: Desk, job: str) -> bool:
    """Whether it is the one job there is, here and at Reader, of the URLs that were given."""
    assert [id_ for (id_,) in rows(desk.folder / "receiver.db", "SELECT id FROM jobs")] == [job] == list(desk.truth())
    desk.reader.settled()
    return [row["url"] for row in desk.truth()[job]["results"]] == urls("killed", 2)


@pytest.mark.slow
def test_a_submit_that_reader_cannot_take_now_says_so_and_is_sent_later(alone: Desk) -> None:
    alone.reader.faults = {"server_error": {"rate": 1, "value": 502, "match": "POST /v1/read"}}
    ended = alone.run("submit", *urls("killed", 2))
    assert ended.code == 1
    assert "written down" in ended.complaint
    assert alone.truth() == {}
    alone.reader.faults = {}

    def sent() -> bool:
        alone.tick()
        return bool(alone.truth())

    until(sent, every=0.3)
    assert submitted_once(alone, next(iter(alone.truth())))


@pytest.mark.slow
def test_who_may_not_ask_the_server_is_told_which_key_is_missing(tmp_path: Path) -> None:
    with BackgroundSandbox() as reader:
        settings = knowing(reader, READER_RPM=ANY_PACE)
        with Served(tmp_path, settings=settings, RECEIVER_API_KEYS="the-key-of-the-house"):
            refused = command(tmp_path, "track", "job_1", settings=settings)
            assert refused.code == 2
            assert "RECEIVER_API_KEYS" in refused.complaint
            allowed = command(tmp_path, "track", "job_1", settings=settings, RECEIVER_API_KEYS="the-key-of-the-house")
            assert (allowed.code, allowed.out) == (0, "job_1 is tracked\n")


def test_a_delivery_by_hand_counts_as_one_of_readers(desk: Desk) -> None:
    """What `send` sends is what Reader would send: a cue that brings the job home."""
    job = start_job(desk.reader, 2)
    desk.reader.settled()
    desk.done("send", "job.completed", "--job", job)
    until(lambda: desk.state(job) == "settled")
    assert desk.server is not None
    body = desk.server.rows("SELECT body FROM deliveries WHERE job_id = ?", job)[0][0]
    assert desk.server.post(body, signed(body)).json["outcome"] in {"accepted", "duplicate"}


def test_jobs_in_a_pipe_are_whole_and_on_a_narrow_terminal_columns_go_before_words(desk: Desk) -> None:
    job = desk.job
    assert "completed" in desk.done("jobs", COLUMNS=None)
    narrow = desk.done("jobs", COLUMNS="40")
    assert job in narrow
    assert "completed" in narrow
    assert "…" not in narrow


@pytest.mark.slow
def test_a_job_that_did_not_complete_is_exit_code_1_for_who_watches_it(tmp_path: Path) -> None:
    with BackgroundSandbox(seed=1, job_seconds=0.1, job_failures=1) as reader:
        desk = Desk(tmp_path, reader)
        ended = desk.run("submit", "--watch", "--json", *urls("failed", 2))
    assert (ended.code, ended.json["status"]) == (1, "failed")


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_status_that_no_job_has_and_nobody_knows_is_wrong_usage(desk: Desk, more: tuple[str, ...]) -> None:
    ended = desk.run("jobs", "--status", "finished", *more)
    assert ended.code == 2
    assert "completed" in ended.complaint


def test_a_submitted_job_is_shown_as_reader_answered(alone: Desk) -> None:
    assert json.loads(alone.done("submit", "--json", *urls("answered", 2)))["status"] in {"queued", "processing"}
