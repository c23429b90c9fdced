"""The demo, as a new user runs it: a process, with what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

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
