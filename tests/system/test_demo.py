"""The demo, as a new user runs it: a process, with what it prints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest


def demo(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "receiver", "demo", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def adds_up(told: dict[str, Any]) -> bool:
    webhooks = told["webhooks"]
    return bool(webhooks["sent"] - webhooks["lost"] + webhooks["duplicated"] == webhooks["accepted"] + webhooks["duplicates"])


@pytest.mark.slow
def test_half_of_the_webhooks_lost_costs_nothing_but_a_few_looks() -> None:
    """Every result stored once, one event a job, hydrating at the lower bound, looks within theirs."""
    told = demo("--jobs", "20", "--pages", "250", "--loss", "0.5", "--seed", "7")
    assert told["ok"] is True
    assert told["recovered"] > 0
    assert (told["results"], told["events"]) == (5000, 20)
    assert adds_up(told)
    assert told["requests"]["hydrate"] == told["lower_bound"] == 60
    assert told["requests"]["total"] <= 2 * told["lower_bound"] + told["jobs"]
    assert told["forged"]["refused"] == told["forged"]["sent"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_with_every_webhook_lost_every_job_is_recovered(seed: int) -> None:
    told = demo("--jobs", "20", "--pages", "250", "--loss", "1", "--seed", str(seed))
    assert told["recovered"] == told["events"] == 20
    assert told["webhooks"]["accepted"] == 0
    assert told["requests"]["total"] <= 2 * told["lower_bound"] + told["jobs"]


@pytest.mark.slow
def test_more_jobs_than_may_run_at_once_are_submitted_as_there_is_room() -> None:
    told = demo("--jobs", "230", "--pages", "3", "--loss", "0.2")
    assert (told["results"], told["events"]) == (690, 230)


@pytest.mark.slow
def test_what_was_kept_tells_what_was_lost_and_how_it_was_recovered(tmp_path: Path) -> None:
    """By its dashboard, and by commands beside it; with a browser still looking it ends at once, and takes its files away."""
    command = [sys.executable, "-m", "receiver", "demo", "--keep", "--json", "--jobs", "3", "--pages", "5", "--loss", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as kept:
        assert kept.stdout is not None
        assert kept.stderr is not None
        assert json.loads(kept.stdout.readline())["recovered"] == 3
        said = [kept.stderr.readline() for _ in range(4)]
        dashboard = said[0].split()[1]
        database = said[2].partition("RECEIVER_DATABASE_URL=")[2].strip()
        with httpx.Client(trust_env=False) as browser:
            overview = browser.get(dashboard).text
            assert "3 of the last 3 ends" in overview
            assert overview.count("no webhook came") == 3
            assert browser.get(f"{dashboard}/jobs?which=missed").text.count("by our own look") == 3
            environment = {**os.environ, "RECEIVER_DATABASE_URL": database}
            submit = [sys.executable, "-m", "receiver", "submit", "https://example.com/1", "--watch"]
            done = subprocess.run(submit, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60, check=True)
            assert "completed" in done.stdout
            with browser.stream("GET", f"{dashboard}/live?topic=overview") as live:
                next(line for line in live.iter_lines() if line)
                kept.send_signal(signal.SIGINT)
                _, complaints = kept.communicate(timeout=10)
    assert (kept.returncode, complaints) == (0, "")
    assert not Path(database.removeprefix("sqlite:///")).parent.exists()
