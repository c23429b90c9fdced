"""Commands as hooks of the installed server: a script that fails, hangs and works; the server that ends while it runs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from system_kit import Served, delivery, knowing, start_job, until

from receiver.sandbox import BackgroundSandbox

QUICK: dict[str, Any] = {"seed": 1, "job_seconds": 0.1, "queue_seconds": 0.05}

INDEX = """
import json, os, sys, time
from pathlib import Path

event = json.load(sys.stdin)
with open(3) as results:
    urls = [json.loads(line)["url"] for line in results]
job, attempt = os.environ["RECEIVER_JOB_ID"], os.environ["RECEIVER_ATTEMPT"]
run = {"id": event["id"], "job": job, "attempt": attempt, "urls": urls, "pid": os.getpid()}
with open("runs", "a") as runs:
    runs.write(json.dumps(run) + "\\n")
what = Path("what").read_text()
if what == "fail":
    sys.exit("the index is down")
if what == "hang":
    time.sleep(3600)
"""


def runs(folder: Path) -> list[dict[str, Any]]:
    path = folder / "runs"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_script_that_fails_and_hangs_gets_the_same_event_until_it_takes_it(tmp_path: Path) -> None:
    """It fails, and is run again; it hangs, and ends with the server; the next server's run is taken. Nothing comes after that."""
    (tmp_path / "index.py").write_text(INDEX)
    (tmp_path / "what").write_text("fail")
    hooks = [
        {"name": "index", "exec": ["python3", "index.py"]},
        {"name": "missing", "exec": ["no-such-program"]},
    ]
    with BackgroundSandbox(**QUICK) as reader:
        settings = knowing(reader, RECEIVER_HOOKS=json.dumps(hooks))
        with Served(tmp_path, settings=settings) as server:
            job = start_job(reader, 150)
            reader.settled()
            assert server.post(delivery(job)).status == 202
            assert server.logged("hook_failed", 20, hook="index")["hint"] == "exit code 1: the index is down"
            hint = "cannot run 'no-such-program': No such file or directory"
            assert server.logged("hook_failed", hook="missing")["hint"] == hint
            (tmp_path / "what").write_text("hang")
            until(lambda: len(runs(tmp_path)) == 2)
            assert not ended(runs(tmp_path)[1]["pid"])
        until(lambda: ended(runs(tmp_path)[1]["pid"]), 1)
        (tmp_path / "what").write_text("work")
        with Served(tmp_path, settings=settings) as again:
            assert again.logged("delivered", 20, hook="index")["event_id"] == runs(tmp_path)[0]["id"]
            until(lambda: again.rows("SELECT 1 FROM hook_deliveries WHERE hook = 'index' AND state = 'delivered'"))
    assert len(runs(tmp_path)) == 3
    assert {run["id"] for run in runs(tmp_path)} == {runs(tmp_path)[0]["id"]}
    assert all(run["job"] == job and len(set(run["urls"])) == 150 for run in runs(tmp_path))
    assert [run["attempt"] for run in runs(tmp_path)][:2] == ["1", "2"]


@pytest.mark.slow
def test_a_server_that_is_killed_while_a_script_runs_has_the_event_handled_again(tmp_path: Path) -> None:
    (tmp_path / "index.py").write_text(INDEX)
    (tmp_path / "what").write_text("hang")
    with BackgroundSandbox(**QUICK) as reader:
        settings = knowing(reader, RECEIVER_HOOKS=json.dumps([{"name": "index", "exec": ["python3", "index.py"]}]))
        server = Served(tmp_path, settings=settings)
        job = start_job(reader, 3)
        reader.settled()
        assert server.post(delivery(job)).status == 202
        until(lambda: runs(tmp_path))
        server.kill()
        os.kill(runs(tmp_path)[0]["pid"], signal.SIGKILL)
        (tmp_path / "what").write_text("work")
        with Served(tmp_path, settings=settings) as again:
            assert again.logged("delivered", 20, hook="index")["event_id"] == runs(tmp_path)[0]["id"]
    assert [run["id"] for run in runs(tmp_path)] == [runs(tmp_path)[0]["id"]] * 2
