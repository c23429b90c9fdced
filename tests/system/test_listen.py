"""`listen`: an endpoint that nobody can reach from outside gets Reader's webhooks all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from system_kit import (
    RECEIVER,
    SECRET,
    Background,
    Hook,
    Served,
    command,
    downstream,
    free_port,
    knowing,
    signature,
    start_job,
    until,
)

from receiver.sandbox import BackgroundSandbox


@pytest.fixture
def reader() -> Iterator[BackgroundSandbox]:
    with BackgroundSandbox(seed=1, job_seconds=0.3, queue_seconds=0.05) as sandbox:
        yield sandbox


def listening(folder: Path, reader: BackgroundSandbox, url: str, *more: str, **settings: str | None) -> Background:
    """`listen`, as its stream is open."""
    args = [RECEIVER, "listen", "--json", "--forward-to", url, *more]
    process = Background(args, folder, "stdout", **knowing(reader, **settings))
    process.logged("stream_open")
    return process


def about(hook: Hook, job: str) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Headers and body of each call about a job."""
    return [(headers, json.loads(body)) for headers, body in list(hook.got) if json.loads(body)["jobId"] == job]


@pytest.mark.slow
def test_a_server_that_hears_nothing_else_gets_its_jobs_home_by_it(tmp_path: Path, reader: BackgroundSandbox) -> None:
    (tmp_path / "elsewhere").mkdir()
    settings = knowing(reader, RECEIVER_LISTEN="false")
    with Served(tmp_path, settings=settings) as server:
        with listening(tmp_path / "elsewhere", reader, f"{server.url}/hooks/reader") as forwarding:
            job = start_job(reader, 3)
            told = forwarding.logged("delivery", job=job, status=202)
            assert (told["event_name"], told["attempt"], told["trouble"]) == ("job.completed", 1, None)
            assert told["ms"] > 0
            until(lambda: server.rows("SELECT discovered_by FROM jobs WHERE state = 'settled'") == [("webhook",)])
        assert server.rows("SELECT job_id, delivery_id FROM deliveries") == [(job, told["delivery"])]
    assert not (tmp_path / "elsewhere" / "receiver.db").exists()


def test_what_it_posts_is_what_reader_posts(tmp_path: Path, reader: BackgroundSandbox) -> None:
    with downstream() as theirs, downstream() as ours, listening(tmp_path, reader, ours.url):
        httpx.post(
            f"{reader.url}/v1/webhooks",
            json={"url": theirs.url, "name": "x", "events": ["job.completed"], "secret": SECRET},
            headers={"x-api-key": reader.api_key},
            trust_env=False,
        ).raise_for_status()
        start_job(reader, 2)
        until(lambda: theirs.got and ours.got)
        (their_headers, their_body), (our_headers, our_body) = theirs.got[0], ours.got[0]
    assert list(their_headers) == list(our_headers)
    varying = {"host", "content-length", "x-reader-delivery", "x-reader-timestamp", "x-reader-signature"}
    for name in their_headers.keys() - varying:
        assert our_headers[name] == their_headers[name], name
    for headers, body in ((their_headers, their_body), (our_headers, our_body)):
        assert headers["x-reader-signature"] == signature(body, headers["x-reader-timestamp"])
    said = json.loads(our_body)
    assert said.items() >= {name: value for name, value in json.loads(their_body).items() if name != "timestamp"}.items()


@pytest.mark.slow
def test_an_endpoint_that_fails_is_tried_again_under_the_same_delivery_id(tmp_path: Path, reader: BackgroundSandbox) -> None:
    with downstream(500) as hook, listening(tmp_path, reader, hook.url) as forwarding:
        job = start_job(reader, 1)
        first = forwarding.logged("delivery", job=job, attempt=1)
        second = forwarding.logged("delivery", job=job, attempt=2)
    assert (first["status"], first["again_in"], second["status"], second["again_in"]) == (500, 1.0, 200, None)
    (one, body), (two, again) = hook.got
    assert body == again
    assert one["x-reader-delivery"] == two["x-reader-delivery"] == first["delivery"] == second["delivery"]
    assert two["x-reader-timestamp"] > one["x-reader-timestamp"], "signed afresh"
    assert two["x-reader-signature"] == signature(again, two["x-reader-timestamp"])


@pytest.mark.slow
def test_an_endpoint_that_is_not_there_is_given_up_after_three_attempts(tmp_path: Path, reader: BackgroundSandbox) -> None:
    with listening(tmp_path, reader, f"http://127.0.0.1:{free_port()}/") as forwarding:
        job = start_job(reader, 1)
        for number, pause in enumerate((1.0, 4.0, None), 1):
            told = forwarding.logged("delivery", job=job, attempt=number)
            assert (told["status"], told["again_in"]) == (None, pause)
            assert "is your server running there?" in told["trouble"]


def test_only_wanted_events_are_told_and_pages_one_by_one(tmp_path: Path) -> None:
    with (
        BackgroundSandbox(seed=1, job_seconds=1, queue_seconds=0.05) as reader,
        downstream() as hook,
        listening(tmp_path, reader, hook.url, "--events", "job.started,job.page"),
    ):
        job = start_job(reader, 3)
        until(lambda: len(about(hook, job)) == 4)
    told = sorted((body["event"], body["completed"]) for _, body in about(hook, job))
    assert told == [("job.page", 1), ("job.page", 2), ("job.page", 3), ("job.started", 0)]
    assert len({headers["x-reader-delivery"] for headers, _ in about(hook, job)}) == 4


@pytest.mark.slow
def test_what_ended_while_the_stream_was_away_is_told_once(tmp_path: Path, reader: BackgroundSandbox) -> None:
    with downstream() as hook, listening(tmp_path, reader, hook.url) as forwarding:
        reader.faults = {"stream_cut": {"rate": 1, "times": 1}}
        job = start_job(reader, 1)  # its start breaks the stream, and it ends before the stream is back
        assert forwarding.logged("stream_ended")["again_in"] >= 0.5
        forwarding.logged("delivery", job=job, status=200)
        assert [body["event"] for _, body in about(hook, job)] == ["job.completed"]
        later = start_job(reader, 1)
        forwarding.logged("delivery", job=later, status=200)
        assert len(hook.got) == 2


@pytest.mark.slow
def test_a_failed_job_says_why(tmp_path: Path) -> None:
    with (
        BackgroundSandbox(seed=1, job_seconds=0.1, queue_seconds=0.05, job_failures=1) as reader,
        downstream() as hook,
        listening(tmp_path, reader, hook.url) as forwarding,
    ):
        job = start_job(reader, 2)
        forwarding.logged("delivery", job=job)
        ((headers, body),) = about(hook, job)
    assert headers["x-reader-event"] == body["event"] == "job.failed"
    assert body["error"]


@pytest.mark.slow
def test_a_refusal_of_the_signature_names_the_secret(tmp_path: Path, reader: BackgroundSandbox) -> None:
    with downstream(401) as hook, listening(tmp_path, reader, hook.url) as forwarding:
        told = forwarding.logged("delivery", job=start_job(reader, 1))
        assert "READER_WEBHOOK_SECRET" in told["trouble"]


def test_people_get_a_line_for_each_delivery(tmp_path: Path, reader: BackgroundSandbox) -> None:
    with downstream() as hook:
        args = [RECEIVER, "listen", "--forward-to", hook.url.removeprefix("http://")]
        with Background(args, tmp_path, "stdout", **knowing(reader, COLUMNS="60")) as forwarding:
            until(lambda: any("the stream is open" in line for line in forwarding.lines))
            job = start_job(reader, 1)
            line = until(lambda: next((line for line in forwarding.lines if job in line), None))
    assert "job.completed" in line
    assert "  200  " in line
    assert " ms  " in line


@pytest.mark.parametrize(
    ("args", "settings", "says"),
    [
        ((), {"READER_API_KEY": "of-somebody-else"}, "READER_API_KEY"),
        ((), {"READER_API_KEY": None}, "READER_API_KEY is not set"),
        ((), {"READER_WEBHOOK_SECRET": None}, "READER_WEBHOOK_SECRET is not set"),
        (("--events", "job.finished"), {}, "job.completed, job.failed, job.page, job.started"),
        (("--events", "job.failed,credit.low"), {}, "does not tell of credit.low"),
        (("--forward-to", "ftp://localhost/"), {}, "--forward-to"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(
    tmp_path: Path, reader: BackgroundSandbox, args: tuple[str, ...], settings: dict[str, str | None], says: str
) -> None:
    ended = command(
        tmp_path, "listen", "--json", "--forward-to", "http://127.0.0.1:1/", *args, settings=knowing(reader, **settings)
    )
    assert ended.code == 2
    assert says in ended.complaint


def test_a_reader_that_is_not_there_is_told_and_tried_again(tmp_path: Path, reader: BackgroundSandbox) -> None:
    args = [RECEIVER, "listen", "--json", "--forward-to", "http://127.0.0.1:1/"]
    nowhere = f"http://127.0.0.1:{free_port()}"
    with Background(args, tmp_path, "stdout", **knowing(reader, READER_BASE_URL=nowhere)) as forwarding:
        assert "could not be asked" in forwarding.logged("stream_ended")["hint"]
