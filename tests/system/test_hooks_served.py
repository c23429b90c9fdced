"""Hooks of a server as people start it, whose counterpart fails in all the ways there are; and then it is mended."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from standardwebhooks import Webhook
from system_kit import Misdeed, Served, command, delivery, downstream, knowing, start_job, until

from receiver.sandbox import BackgroundSandbox

pytestmark = pytest.mark.slow

SECRET, NEXT = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_bmV3IHNlY3JldCBvZiBvdXJz"


@contextmanager
def serving(folder: Path, hooks: list[dict[str, Any]], *args: str, **settings: str) -> Iterator[tuple[Served, BackgroundSandbox]]:
    ours = {"RECEIVER_HOOK_BACKOFF": "0.05", "RECEIVER_HOOKS": json.dumps(hooks), "PYTHONDONTWRITEBYTECODE": "1"}
    with (
        BackgroundSandbox(seed=1, job_seconds=0.05, queue_seconds=0.01, rpm=10_000, active_jobs=1000) as reader,
        Served(folder, *args, settings=knowing(reader, READER_RPM="10000", **(ours | settings))) as server,
    ):
        yield server, reader


def end(server: Served, reader: BackgroundSandbox, count: int = 1) -> list[str]:
    """So many jobs end, and their webhooks come."""
    jobs = [start_job(reader, 3) for _ in range(count)]
    reader.settled()
    for job in jobs:
        assert server.post(delivery(job)).status == 202
    return jobs


def delivered(server: Served, hook: str, count: int = 1) -> bool:
    states = server.rows("SELECT state FROM hook_deliveries WHERE hook = ?", hook)
    return [state for (state,) in states] == ["delivered"] * count


def too_late(there: BaseHTTPRequestHandler) -> None:
    time.sleep(1.5)  # it has done its work by then
    there.send_response(200)
    there.end_headers()


def dripping(there: BaseHTTPRequestHandler) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100:
        there.wfile.write(bytes([byte]))
        there.wfile.flush()
        time.sleep(0.05)


def endless(there: BaseHTTPRequestHandler) -> None:
    there.send_response(500)
    there.end_headers()
    while True:
        there.wfile.write(b"x" * 65536)


def busy(there: BaseHTTPRequestHandler) -> None:
    there.send_response(503)
    there.send_header("retry-after", "2")
    there.send_header("content-length", "0")
    there.end_headers()


def elsewhere(there: BaseHTTPRequestHandler) -> None:
    there.send_response(307)
    there.send_header("location", "/elsewhere")
    there.send_header("content-length", "0")
    there.end_headers()


def broken(there: BaseHTTPRequestHandler) -> None:
    there.connection.close()


MISDEEDS: list[Misdeed | int] = [too_late, dripping, endless, elsewhere, broken, 400, 500]


@pytest.mark.parametrize("misdeed", MISDEEDS, ids=lambda each: getattr(each, "__name__", str(each)))
def test_whatever_it_does_it_gets_the_same_event_again(tmp_path: Path, misdeed: Misdeed | int) -> None:
    proxy = {"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1", "NO_PROXY": "", "no_proxy": ""}
    with downstream(misdeed) as there:
        hook = {"name": "hook", "url": there.url, "secret": SECRET, "timeout": 1}
        with serving(tmp_path, [hook], **proxy) as (server, reader):
            (job,) = end(server, reader)
            until(lambda: delivered(server, "hook"))
        assert len(there.got) == 2
        assert len(set(there.ids)) == 1
        for headers, body in there.got:
            assert Webhook(SECRET).verify(body, headers)["data"]["job"]["id"] == job


def test_retry_after_is_waited_for(tmp_path: Path) -> None:
    with downstream(busy) as there, serving(tmp_path, [{"name": "hook", "url": there.url}]) as (server, reader):
        end(server, reader)
        until(lambda: delivered(server, "hook"))
        (failed, done) = server.rows("SELECT at FROM hook_attempts ORDER BY id")
        assert done[0] - failed[0] >= 2


def test_one_that_is_gone_is_paused_until_it_is_resumed(tmp_path: Path) -> None:
    with downstream(410) as there, serving(tmp_path, [{"name": "hook", "url": there.url}]) as (server, reader):
        end(server, reader)
        assert "410" in server.logged("hook_paused", 20)["hint"]
        end(server, reader, 2)
        until(lambda: len(server.rows("SELECT 1 FROM events")) == 3)
        (hook,) = command(tmp_path, "hooks", "--json").json["hooks"]
        assert (hook["state"], hook["pending"]) == ("paused", 3)
        assert len(there.got) == 1
        assert command(tmp_path, "hooks", "resume", "hook").code == 0
        until(lambda: delivered(server, "hook", 3))


def test_one_that_hangs_holds_up_nobody(tmp_path: Path) -> None:
    over = Event()

    def hanging(_: BaseHTTPRequestHandler) -> None:
        over.wait(60)

    with downstream(*[hanging] * 100) as bad, downstream() as good:
        hooks = [{"name": "bad", "url": bad.url, "timeout": 300}, {"name": "good", "url": good.url}]
        with serving(tmp_path, hooks) as (server, reader):
            end(server, reader, 20)
            until(lambda: delivered(server, "good", 20))
            assert server.rows("SELECT 1 FROM hook_attempts WHERE hook = 'bad'") == []
            bad.statuses.clear()
            over.set()


def test_nothing_goes_to_a_clouds_metadata_whatever_the_settings_say(tmp_path: Path) -> None:
    hooks = [{"name": "hook", "url": "http://169.254.169.254/latest/meta-data/"}]
    with serving(tmp_path, hooks, RECEIVER_HOOK_ATTEMPTS="2") as (server, reader):
        end(server, reader)
        assert "nothing is sent to 169.254.169.254" in server.logged("dead_letter", 20)["hint"]
        done = command(tmp_path, "hooks", "deliveries", "hook", "--json")
        assert "link-local" in done.json["deliveries"][0]["last_error"]


def test_cloudevents_under_two_secrets_with_headers_of_ones_own(tmp_path: Path) -> None:
    with downstream(500) as there:
        hook = {
            "name": "hook",
            "url": there.url,
            "secret": [NEXT, SECRET],
            "headers": {"authorization": "Bearer token"},
            "format": "cloudevents",
        }
        with serving(tmp_path, [hook]) as (server, reader):
            (job,) = end(server, reader)
            until(lambda: delivered(server, "hook"))
        for headers, body in there.got:
            told = from_http_event(HTTPMessage(headers=headers, body=body))
            assert (told.get_type(), told.get_subject(), told.get_id()) == ("job.completed", job, headers["webhook-id"])
            assert headers["authorization"] == "Bearer token"
            for secret in (SECRET, NEXT):
                Webhook(secret).verify(body, headers)


APP = """
import threading
from receiver import Receiver

receiver = Receiver()
calls = []


@receiver.on("job.completed", timeout=0.5)
def index(event):
    calls.append(event.id)
    if len(calls) == 1:
        threading.Event().wait(3600)
    if len(calls) == 2:
        raise ConnectionError("the index is down")
    assert [len(batch) for batch in event.results(batch=2)] == [2, 1]
"""


def test_a_handler_that_hangs_and_then_fails_is_called_again(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    with serving(tmp_path, [], "app:receiver") as (server, reader):
        end(server, reader)
        until(lambda: delivered(server, "app.index"))
        errors = [error for (error,) in server.rows("SELECT error FROM hook_attempts ORDER BY id")]
        assert errors == ["it did not end within 0.5 s", "ConnectionError: the index is down", None]


def test_hooks_are_where_somebody_looks(tmp_path: Path) -> None:
    """The same over /internal, for a program: list, deliveries, pause, resume, test, replay."""
    with downstream(500) as there, serving(tmp_path, [{"name": "hook", "url": there.url}]) as (server, reader):

        def ask(command: str, **body: Any) -> Any:
            answer = httpx.post(f"{server.url}/internal/commands/{command}", json=body, trust_env=False)
            return answer.status_code, answer.json().get("data")

        end(server, reader)
        until(lambda: delivered(server, "hook"))
        (went,) = ask("hook-deliveries", hook="hook", state="delivered")[1]["deliveries"]
        assert [(each["number"], each["status"], each["answer"]) for each in went["log"]] == [
            (1, 500, "500: no room"),
            (2, 200, None),
        ]
        assert ask("hook-deliveries", event=went["event_id"], limit=1)[1]["deliveries"] == [went]
        assert ask("hook-deliveries", hook="hook", state="dead")[1]["deliveries"] == []
        assert ask("hook-pause", name="hook")[1]["state"] == "paused"
        assert [(each["name"], each["state"]) for each in ask("hooks")[1]["hooks"]] == [("hook", "paused")]
        assert ask("replay", since=0.0) == (200, {"events": 1, "deliveries": 1, "hooks": {"hook": 1}})
        assert ask("hook-test", name="hook")[1]["ok"]
        assert ask("hook-resume", name="hook")[1]["state"] == "running"
        until(lambda: delivered(server, "hook"))
        assert len(there.got) == 4
        wrong: list[dict[str, Any]] = [{"hook": "nobody"}, {"state": "lost"}, {"limit": 0}, {"limit": "all"}, {"event": 1}]
        assert [ask("hook-deliveries", **body)[0] for body in wrong] == [400] * len(wrong)
        assert [ask("hook-pause", name="nobody")[0], ask("replay")[0], ask("replay", since="soon")[0]] == [400, 400, 400]
        unnamed = httpx.post(f"{server.url}/internal/commands/hook-pause", json={}, trust_env=False)
        assert (unnamed.status_code, "say which one" in unnamed.text) == (400, True)
