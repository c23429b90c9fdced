"""`receiver webhook register`, `list`, `delete`, typed beside a real Reader's API."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from system_kit import RECEIVER, SECRET, Done, Served, command, environment, free_port, knowing, start_job, until

from receiver.sandbox import BackgroundSandbox

URL = "https://hooks.example.com/hooks/reader"


@pytest.fixture
def reader() -> Iterator[BackgroundSandbox]:
    with BackgroundSandbox(seed=1, job_seconds=0.1, queue_seconds=0.05) as running:
        yield running


def run(reader: BackgroundSandbox, folder: Path, *args: str, **settings: str | None) -> Done:
    given = {"READER_WEBHOOK_SECRET": None, "RECEIVER_PUBLIC_URL": "https://hooks.example.com", **settings}
    return command(folder, "webhook", *args, settings=knowing(reader, **given))


def there(reader: BackgroundSandbox) -> list[dict[str, Any]]:
    answer = httpx.get(f"{reader.url}/v1/webhooks", headers={"x-api-key": reader.api_key}, trust_env=False)
    rows: list[dict[str, Any]] = answer.json()["data"]
    return rows


@pytest.mark.slow
def test_a_registered_webhook_is_accepted_by_a_server_that_was_given_what_was_printed(
    reader: BackgroundSandbox, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/hooks/reader"
    ended = run(reader, tmp_path, "register", "--url", url)
    assert (ended.code, ended.err) == (0, "")
    (secret,) = re.findall(r"READER_WEBHOOK_SECRET=([0-9a-f]{64})$", ended.out, re.MULTILINE)
    (row,) = there(reader)
    assert (row["url"], row["events"], row["active"]) == (url, ["job.completed", "job.failed"], True)
    with Served(tmp_path, port=port, settings=knowing(reader, READER_WEBHOOK_SECRET=secret)) as server:
        job = start_job(reader, 1)
        reader.settled()
        assert [each["status"] for each in reader.ledger()["deliveries"]] == [202]
        until(lambda: server.rows("SELECT 1 FROM outcomes WHERE job_id = ? AND discovered_by = 'webhook'", job))
        shown = httpx.get(f"{server.url}/readyz", trust_env=False).json()
        carried = row["headers"]["X-Receiver-Webhook"]
        assert shown == {"status": "ok", "secrets": [carried], "webhooks": {carried: carried}}


def test_registered_again_it_stays_one_and_shows_no_secret(reader: BackgroundSandbox, tmp_path: Path) -> None:
    first = run(reader, tmp_path, "register", "--json")
    again = run(reader, tmp_path, "register", "--json")
    assert (again.code, again.json["created"], again.json["secret"]) == (0, False, None)
    assert "webhook rotate" in again.json["hint"]
    assert first.json["id"] == again.json["id"]
    assert first.json["secret"] not in again.out
    assert len(there(reader)) == 1


def test_one_that_is_switched_off_or_not_told_of_all_ends_is_mended(reader: BackgroundSandbox, tmp_path: Path) -> None:
    reader.register(URL, "job.page", "job.completed")
    (row,) = there(reader)
    httpx.patch(f"{reader.url}/v1/webhooks/{row['id']}", json={"active": False}, headers={"x-api-key": reader.api_key})
    ended = run(reader, tmp_path, "register")
    assert ended.code == 0
    assert "is active again and is told of job.failed now" in ended.out
    (row,) = there(reader)
    assert (row["active"], row["events"]) == (True, ["job.completed", "job.failed", "job.page"])


def test_a_secret_that_is_set_already_is_never_shown(reader: BackgroundSandbox, tmp_path: Path) -> None:
    ended = run(reader, tmp_path, "register", "--configured-secret", READER_WEBHOOK_SECRET=SECRET)
    assert ended.code == 0
    assert SECRET not in ended.out
    beside = run(reader, tmp_path, "register", "--url", "https://other.example", READER_WEBHOOK_SECRET=SECRET)
    assert SECRET not in beside.out
    assert ",<its present value>" in beside.out


def test_a_secret_in_a_file_is_for_nobody_elses_eyes(reader: BackgroundSandbox, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    ended = run(reader, tmp_path, "register", "--secret-file", str(file))
    assert ended.code == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().strip() not in ended.out
    other = run(reader, tmp_path, "register", "--url", "https://other.example", "--secret-file", str(file))
    assert other.code == 2
    assert "--secret-file" in other.complaint
    assert len(there(reader)) == 1


def test_a_webhook_whose_making_was_not_answered_is_found_and_its_secret_not_lost(
    reader: BackgroundSandbox, tmp_path: Path
) -> None:
    reader.faults["reset"] = {"rate": 1, "times": 1, "match": "POST /v1/webhooks"}
    ended = run(reader, tmp_path, "register", "--json")
    assert (ended.code, ended.json["created"]) == (0, True)
    assert len(ended.json["secret"]) == 64
    assert len(there(reader)) == 1


def test_ten_are_all_that_reader_keeps(reader: BackgroundSandbox, tmp_path: Path) -> None:
    for number in range(10):
        reader.register(f"https://{number}.example/")
    ended = run(reader, tmp_path, "register")
    assert ended.code == 1
    assert "at most 10" in ended.complaint


def test_the_list_tells_how_deliveries_fare_and_no_secret(reader: BackgroundSandbox, tmp_path: Path) -> None:
    reader.register(f"http://127.0.0.1:{1}/hooks/reader")
    reader.faults["attempts"] = "3"
    reader.faults["lose"] = 1
    start_job(reader, 1)
    reader.until(lambda ledger: bool(ledger["deliveries"]))
    ended = run(reader, tmp_path, "list", "--json")
    (row,) = ended.json["webhooks"]
    assert row["deliveryStats"]["totalAttempts"] >= 1
    assert reader.secret not in ended.out
    table = run(reader, tmp_path, "list").out
    assert row["id"] in table
    assert "no answer" in table


def test_a_webhook_is_deleted_by_id_or_url_once_that_is_confirmed(reader: BackgroundSandbox, tmp_path: Path) -> None:
    reader.register(URL)
    reader.register("https://other.example/")
    (first, _) = there(reader)
    unasked = run(reader, tmp_path, "delete", first["id"])
    assert unasked.code == 2
    assert "--yes" in unasked.complaint
    assert run(reader, tmp_path, "delete", first["id"], "--yes", "--json").json == {"deleted": [first["id"]]}
    assert "other.example" in run(reader, tmp_path, "delete", "wh_unknown", "--yes").complaint
    assert _answered(reader, tmp_path, b"n\n", "delete", "https://other.example") == 130
    assert [row["url"] for row in there(reader)] == ["https://other.example/"]


def _answered(reader: BackgroundSandbox, folder: Path, answer: bytes, *args: str) -> int:
    """The exit code of a command on a terminal at which somebody types."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [RECEIVER, "webhook", *args],
        cwd=folder,
        env=environment(folder, **knowing(reader)),
        stdin=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.write(ours, answer)
    code = child.wait(30)
    os.close(ours)
    os.close(theirs)
    return code


@pytest.mark.parametrize(
    ("args", "settings", "code", "told"),
    [
        (("list",), {"READER_API_KEY": None}, 2, "READER_API_KEY is not set"),
        (("list",), {"READER_API_KEY": "wrong_key_of_ours"}, 1, "Set READER_API_KEY to a key that works"),
        (("list",), {"READER_BASE_URL": "http://127.0.0.1:1"}, 1, "check the network and READER_BASE_URL"),
        (("register",), {"RECEIVER_PUBLIC_URL": None}, 2, "set it to where the world reaches the server, or give --url"),
        (("register", "--url", "hooks.example.com"), {}, 2, "--url must be a URL"),
        (("register", "--configured-secret"), {}, 2, "READER_WEBHOOK_SECRET is not set"),
        (("rotate",), {}, 1, "`receiver webhook register` makes one"),
    ],
)
def test_what_is_missing_is_told_in_one_line(
    reader: BackgroundSandbox, tmp_path: Path, args: tuple[str, ...], settings: dict[str, str | None], code: int, told: str
) -> None:
    ended = run(reader, tmp_path, *args, **settings)
    assert ended.code == code
    assert told in ended.complaint
    assert "wrong_key_of_ours" not in ended.err
    assert not (tmp_path / "receiver.db").exists(), "a webhook needs no database"


@pytest.mark.slow
def test_while_reader_has_us_wait_the_commands_wait_too(reader: BackgroundSandbox, tmp_path: Path) -> None:
    with Served(tmp_path, settings=knowing(reader)) as server:
        reader.faults["rate_limit"] = {"rate": 1, "times": 1, "value": 30}
        start = httpx.post(f"{server.url}/v1/jobs", json={"id": "job_1"}, trust_env=False)
        assert start.is_success
        server.logged("reader_paused")
        asked = len(reader.ledger()["requests"])
        ended = run(reader, tmp_path, "list")
        assert ended.code == 1
        assert "try again in" in ended.complaint
        assert len(reader.ledger()["requests"]) == asked
