"""What one does about hooks at night: see what is wrong, mend it, and have everything delivered again. Each command is a process."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook
from system_kit import Done, Hook, Served, command, delivery, downstream, knowing, start_job, until

from receiver.cli.hooks import moment
from receiver.errors import UsageError
from receiver.sandbox import BackgroundSandbox

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
IMPATIENT = {"RECEIVER_HOOK_BACKOFF": "0.05"}


@dataclass
class Night:
    """A running server whose one hook is `there`, and somebody who types commands beside it."""

    folder: Path
    reader: BackgroundSandbox
    there: Hook
    server: Served

    def run(self, *args: str) -> Done:
        return command(self.folder, *args)

    def told(self, *args: str) -> Any:
        """What the command prints as JSON."""
        done = self.run(*args, "--json")
        assert done.code == 0, done.err
        return done.json

    def end(self) -> str:
        """A job ends, and its webhook comes."""
        job = start_job(self.reader, 3)
        self.reader.settled()
        assert self.server.post(delivery(job)).status == 202
        until(lambda: self.server.rows("SELECT 1 FROM events WHERE job_id = ?", job))
        return job

    def state(self) -> list[str]:
        return [state for (state,) in self.server.rows("SELECT state FROM hook_deliveries ORDER BY created_at")]


@contextmanager
def night(folder: Path, *statuses: int, **settings: str) -> Iterator[Night]:
    with BackgroundSandbox(seed=1, job_seconds=0.1, queue_seconds=0.05) as reader, downstream(*statuses) as there:
        hooks = json.dumps([{"name": "indexer", "url": there.url, "secret": SECRET}])
        with Served(folder, settings=knowing(reader, RECEIVER_HOOKS=hooks, **settings)) as server:
            yield Night(folder, reader, there, server)


@pytest.mark.slow
def test_what_waits_for_a_paused_hook_comes_when_it_is_resumed(tmp_path: Path) -> None:
    with night(tmp_path) as n:
        assert n.run("hooks", "pause", "indexer").code == 0
        n.end()
        (hook,) = n.told("hooks")["hooks"]
        assert (hook["state"], hook["paused_why"], hook["pending"]) == ("paused", "paused by command", 1)
        assert "receiver hooks resume indexer" in n.run("hooks", "list").out
        assert n.there.got == []
        assert n.told("hooks", "resume", "indexer")["state"] == "running"
        until(lambda: n.state() == ["delivered"])
        assert len(n.there.got) == 1


@pytest.mark.slow
def test_a_dead_event_says_what_was_tried_and_is_replayed_under_its_id(tmp_path: Path) -> None:
    with night(tmp_path, 500, 503, RECEIVER_HOOK_ATTEMPTS="2", **IMPATIENT) as n:
        job = n.end()
        until(lambda: n.state() == ["dead"])
        (dead,) = n.told("hooks", "deliveries", "indexer", "--state", "dead")["deliveries"]
        assert (dead["job_id"], dead["last_error"]) == (job, "answered 503")
        assert [(each["outcome"], each["status"], each["answer"]) for each in dead["log"]] == [
            ("failed", 500, "500: no room"),
            ("dead", 503, "503: no room"),
        ]
        assert "503: no room" in n.run("hooks", "deliveries", "--event", dead["event_id"]).out
        counted = {"events": 1, "deliveries": 1, "hooks": {"indexer": 1}}
        assert n.told("replay", "--dead", "--dry-run") == counted | {"dryRun": True}
        assert n.state() == ["dead"]
        assert n.told("replay", "--dead") == counted | {"dryRun": False}
        until(lambda: n.state() == ["delivered"])
        assert n.there.ids == [dead["event_id"]] * 3
        for which in (("--job", job), ("--event", dead["event_id"], "--hook", "indexer"), ("--since", "1h")):
            asked = len(n.there.got)
            assert n.told("replay", *which) == counted | {"dryRun": False}
            until(lambda asked=asked: len(n.there.got) == asked + 1)
            until(lambda: n.state() == ["delivered"])
        assert set(n.there.ids) == {dead["event_id"]}


def test_a_hook_is_tried_with_an_event_that_tells_of_nothing(tmp_path: Path) -> None:
    with night(tmp_path, 200, 500) as n:
        told = n.told("hooks", "test", "indexer")
        assert (told["ok"], told["status"]) == (True, 200)
        headers, body = n.there.got[0]
        assert Webhook(SECRET).verify(body, headers)["type"] == "hook.test"
        done = n.run("hooks", "test", "indexer")
        assert (done.code, "answered 500" in done.out, "no room" in done.out) == (1, True, True)
        assert n.state() == []


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("hooks", "pause", "nobody"), "there is indexer"),
        (("hooks", "test", "nobody"), "there is indexer"),
        (("hooks", "deliveries", "nobody"), "there is indexer"),
        (("hooks", "deliveries", "--state", "lost"), "pending, delivered, dead"),
        (("replay", "--dead", "--hook", "nobody"), "there is indexer"),
        (("replay", "--event", "evt_nosuch"), "no event evt_nosuch"),
        (("replay", "--job", "job_nosuch", "--dry-run"), "no event of job job_nosuch"),
        (("replay",), "exactly one of"),
        (("replay", "--dead", "--since", "1h"), "exactly one of"),
        (("replay", "--since", "yesterday"), "2026-01-31"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_is_one_line_that_says_what_to_do(night_without_end: Night, args: tuple[str, ...], complaint: str) -> None:
    done = night_without_end.run(*args)
    assert done.code == 2
    assert complaint in done.complaint


@pytest.fixture(scope="module")
def night_without_end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    with night(tmp_path_factory.mktemp("night")) as n:
        yield n


@pytest.mark.slow
def test_a_hook_that_keeps_failing_is_paused_and_comes_back_by_itself_when_it_is_mended(tmp_path: Path) -> None:
    settings = {"RECEIVER_HOOK_PAUSE_AFTER": "0.3", "RECEIVER_HOOK_PROBE": "0.5", "RECEIVER_HOOK_ATTEMPTS": "100", **IMPATIENT}
    with night(tmp_path, *[500] * 1000, **settings) as n:
        for _ in range(3):
            n.end()
        assert "times in a row: answered 500" in n.server.logged("hook_paused", 20)["hint"]
        (hook,) = n.told("hooks")["hooks"]
        assert (hook["state"], hook["pending"]) == ("paused", 3)
        asked = len(n.there.got)
        time.sleep(1.5)  # what it gets meanwhile is what is judged
        assert len(n.there.got) - asked <= 5, "one now and then"
        n.there.statuses.clear()
        n.server.logged("hook_resumed", 20)
        until(lambda: n.state() == ["delivered"] * 3)
        assert n.told("hooks")["hooks"][0]["state"] == "running"


def test_a_shell_without_the_hooks_settings_does_not_retire_them(tmp_path: Path) -> None:
    """Once the server is gone the command works by itself, and does not know of the hook."""
    with night(tmp_path) as n:
        n.end()
        until(lambda: n.state() == ["delivered"])
    assert command(tmp_path, "hooks", "pause", "indexer").code == 0
    (hook,) = command(tmp_path, "hooks", "--json").json["hooks"]
    assert hook["state"] == "paused"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90m", 1_000_000 - 5400),
        ("1970-01-02", 86400),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T00:00:10Z", 10),
        ("1234.5", 1234.5),
    ],
)
def test_a_time_is_understood_as_people_write_it(text: str, seconds: float) -> None:
    assert moment(text, 1_000_000) == seconds


@pytest.mark.parametrize("text", ["", "2x", "soon", "-", "2026-13-01"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        moment(text, 0)
