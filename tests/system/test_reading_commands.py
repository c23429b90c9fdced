"""Commands that only read: beside a running server, after it was killed, on an empty database, and where there is none."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pyarrow.parquet
import pytest
from system_kit import (
    RECEIVER,
    Done,
    Served,
    command,
    delivery,
    environment,
    knowing,
    migrated,
    signed,
    start_job,
    until,
)

from receiver.sandbox import BackgroundSandbox


@dataclass
class Scene:
    """A database with one job of 120 results, and four deliveries, one of which came again. Its server runs, or was killed."""

    folder: Path
    job: str
    server: Served

    def run(self, *args: str, **settings: str | None) -> Done:
        return command(self.folder, *args, settings={"READER_WEBHOOK_SECRET": None, **settings})

    def out(self, *args: str, **settings: str | None) -> str:
        """What it prints. It must succeed and complain of nothing."""
        ended = self.run(*args, **settings)
        assert (ended.code, ended.err) == (0, "")
        return ended.out


@pytest.fixture(scope="module", params=["served", pytest.param("killed", marks=pytest.mark.slow)])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    with BackgroundSandbox(seed=1, job_seconds=0.1, queue_seconds=0.02) as reader:
        server = Served(folder, settings=knowing(reader, READER_RPM="100000", RECEIVER_LISTEN="false"))
        job = start_job(reader, 120)
        reader.settled()
        ended = delivery(job)
        assert server.post(ended).status == 202
        assert server.post(ended, signed(ended, at=1 + int(time.time()), delivery="again")).status == 202
        assert server.post(ended, signed(ended, at=2 + int(time.time()), delivery="again")).json == {"outcome": "duplicate"}
        assert server.post(b"[1,2]").json == {"outcome": "quarantined"}
        assert server.post(delivery("job_x", event="job.\x1b[31mred")).status == 200
        until(lambda: server.rows("SELECT 1 FROM jobs WHERE state = 'settled'"))
        if request.param == "killed":
            server.kill()
        yield Scene(folder, job, server)
        if request.param == "served":
            server.stop()


def test_jobs(scene: Scene) -> None:
    told = json.loads(scene.out("jobs", "--json"))
    assert [(job["id"], job["results"]) for job in told["jobs"]] == [(scene.job, 120)]
    assert f" {scene.job}  completed " in scene.out("jobs")


def test_job_is_told_as_a_timeline(scene: Scene) -> None:
    told = json.loads(scene.out("job", scene.job, "--json"))
    assert told["id"] == scene.job
    assert told["timeline_whole"] is True
    what = [moment["what"] for moment in told["timeline"]]
    for earlier, later in (
        ("created", "webhook"),
        ("webhook", "noticed"),
        ("noticed", "page"),
        ("page", "settled"),
        ("settled", "event"),
    ):
        assert what.index(earlier) < what.index(later)
    lines = scene.out("job", scene.job).splitlines()
    for moment in told["timeline"]:
        assert any(moment["text"] in line for line in lines), moment
    assert re.search(r"^\s*\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ", "\n".join(lines), re.MULTILINE)


def test_deliveries(scene: Scene) -> None:
    told = json.loads(scene.out("deliveries", "--json"))
    rows = told["deliveries"]
    assert [(row["number"], row["outcome"]) for row in rows] == [
        (4, "ignored"),
        (3, "quarantined"),
        (2, "accepted"),
        (1, "accepted"),
    ]
    assert told["more"] is False
    assert "\x1b" not in scene.out("deliveries"), "a terminal would obey it"


@pytest.mark.parametrize(
    ("args", "numbers"),
    [
        (("--outcome", "quarantined"), [3]),
        (("--outcome", "accepted"), [2, 1]),
        (("--outcome", "duplicate"), [2]),
        (("--before", "3"), [2, 1]),
        (("--limit", "2"), [4, 3]),
        (("--outcome", "accepted", "--limit", "1"), [2]),
    ],
)
def test_deliveries_are_chosen(scene: Scene, args: tuple[str, ...], numbers: list[int]) -> None:
    told = json.loads(scene.out("deliveries", "--json", *args))
    assert [row["number"] for row in told["deliveries"]] == numbers
    assert told["more"] is ("--limit" in args)


def test_a_delivery_is_shown_as_it_came(scene: Scene) -> None:
    told = json.loads(scene.out("deliveries", "2", "--json"))
    assert told["headers"]["X-Reader-Delivery"] == "again"
    assert json.loads(told["body"])["jobId"] == scene.job
    assert told["times"] == 2
    assert scene.out("deliveries", "3", "--body") == "[1,2]"
    shown = scene.out("deliveries", "3")
    assert "quarantined: the top level is not an object" in shown
    assert shown.endswith("\n[1,2]\n")


def test_a_delivery_that_is_not_there_is_one_line_and_exit_code_1(scene: Scene) -> None:
    ended = scene.run("deliveries", "99")
    assert (ended.code, ended.out) == (1, "")
    assert "receiver deliveries" in ended.complaint


@pytest.mark.parametrize(
    ("args", "says"),
    [(("--outcome", "refused"), "/metrics"), (("--curl",), "NUMBER"), (("2", "--curl"), "READER_WEBHOOK_SECRET")],
)
def test_what_deliveries_cannot_tell_is_one_line_and_exit_code_2(scene: Scene, args: tuple[str, ...], says: str) -> None:
    ended = scene.run("deliveries", *args)
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.complaint


def test_results_in_every_form(scene: Scene) -> None:
    lines = [json.loads(line) for line in scene.out("results", scene.job).splitlines()]
    for name in ("pages.parquet", "pages.csv", "pages.jsonl"):
        ended = scene.run("results", scene.job, "-o", name)
        assert (ended.code, ended.err) == (0, f"120 results in {name}\n")
    table = pyarrow.parquet.read_table(scene.folder / "pages.parquet").to_pylist()
    assert [json.loads(row["json"]) for row in table] == lines
    assert [(row["url"], row["markdown"], row["statusCode"]) for row in table] == [
        (line["url"], line["markdown"], 200) for line in lines
    ]
    assert [json.loads(line) for line in (scene.folder / "pages.jsonl").read_text().splitlines()] == lines
    assert (scene.folder / "pages.csv").read_text().startswith("url,")


def test_parquet_goes_through_a_pipe(scene: Scene) -> None:
    ended = subprocess.run(
        [RECEIVER, "results", scene.job, "--format", "parquet"], env=environment(scene.folder), capture_output=True, check=True
    )
    assert pyarrow.parquet.read_table(io.BytesIO(ended.stdout)).num_rows == 120


def test_without_its_library_parquet_says_what_to_install(scene: Scene) -> None:
    code = "import sys; sys.modules['pyarrow'] = None; sys.argv[0] = 'receiver'; from receiver.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "results", scene.job, "-o", "none.parquet"],
        cwd=scene.folder,
        env=environment(scene.folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr == "receiver: --format parquet needs pyarrow: pip install 'reader-receiver[parquet]'\n"
    assert not list(scene.folder.glob("none*"))


def test_a_word_is_completed_to_a_job(scene: Scene) -> None:
    asked = {"_RECEIVER_COMPLETE": "complete_bash", "COMP_WORDS": f"receiver results {scene.job[:6]}", "COMP_CWORD": "2"}
    ended = subprocess.run([RECEIVER], env=environment(scene.folder) | asked, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [scene.job]
    assert ended.stderr == ""


# On a terminal


def on_a_terminal(folder: Path, *args: str, **settings: str | None) -> str:
    """All that somebody who sits there is shown."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [RECEIVER, *args],
            cwd=folder,
            env=environment(folder, **settings) | {"TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        shown = b""
        while select.select([ours], [], [], 30)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # nobody has its other end any more
                break
        assert process.wait(10) == 0, shown
        return shown.decode()
    finally:
        os.close(ours)


@pytest.mark.slow
def test_watch_shows_a_bar_that_moves(tmp_path: Path) -> None:
    with BackgroundSandbox(seed=1, job_seconds=6, queue_seconds=0.02) as reader:
        settings = knowing(reader, READER_RPM="100000")
        with Served(tmp_path, settings=settings) as server:
            job = start_job(reader, 40)
            assert httpx.post(f"{server.url}/v1/jobs", json={"id": job}, trust_env=False).is_success
            shown = on_a_terminal(tmp_path, "watch", job, **settings)
    stages = [int(done) for done in re.findall(r"(\d+)/40", shown)]
    assert len(set(stages)) > 2
    assert stages == sorted(stages)
    assert "settled: 40 results" in shown


# Copied as curl


def test_a_delivery_copied_as_curl_is_a_delivery_again(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    bodies = [delivery("job_1", note="it's $HOME & `so` \\ on"), '{"event": "job.pagé"}'.encode()]
    with Served(tmp_path, READER_API_KEY=None) as server:
        for body in bodies:
            assert server.post(body).status in {200, 202}
        for number in (1, 2):
            line = command(tmp_path, "deliveries", str(number), "--curl").out
            path = f"{Path(RECEIVER).parent}:{os.environ['PATH']}"
            answer = subprocess.run(
                ["sh", "-c", line], env=environment(tmp_path) | {"PATH": path}, capture_output=True, text=True, check=True
            )
            assert answer.stdout.startswith("HTTP/1.1 200 OK")
            assert '"duplicate"' in answer.stdout


# Nothing there


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("jobs",), "No jobs yet: `receiver submit URL…` starts one, `receiver track ID` adopts one.\n"),
        (("jobs", "--json"), '{"jobs": [], "total": 0}\n'),
        (("deliveries",), "No deliveries yet. `receiver send job.completed --job ID` sends one to try.\n"),
        (("deliveries", "--outcome", "quarantined"), "No deliveries are quarantined.\n"),
        (("deliveries", "--json"), '{"deliveries": [], "more": false}\n'),
    ],
)
def test_an_empty_database_is_nothing_to_complain_of(tmp_path: Path, args: tuple[str, ...], says: str) -> None:
    shutil.copy(migrated(), tmp_path / "receiver.db")
    ended = command(tmp_path, *args, settings={"READER_WEBHOOK_SECRET": None})
    assert (ended.code, ended.out, ended.err) == (0, says, "")


READING = [
    ("jobs",),
    ("job", "job_1"),
    ("deliveries",),
    ("deliveries", "1"),
    ("results", "job_1"),
    ("results", "job_1", "-o", "x.csv"),
]


@pytest.mark.parametrize("args", READING[1:2] + READING[3:], ids=" ".join)
def test_what_an_empty_database_lacks_is_one_line_and_exit_code_1(tmp_path: Path, args: tuple[str, ...]) -> None:
    shutil.copy(migrated(), tmp_path / "receiver.db")
    ended = command(tmp_path, *args)
    assert (ended.code, ended.out) == (1, "")
    assert "`receiver " in ended.complaint


@pytest.mark.parametrize("args", READING, ids=" ".join)
def test_without_a_database_it_is_one_line_that_says_how_to_get_one(tmp_path: Path, args: tuple[str, ...]) -> None:
    ended = command(tmp_path, *args)
    assert (ended.code, ended.out) == (1, "")
    assert "receiver serve" in ended.complaint
    assert not (tmp_path / "receiver.db").exists()
