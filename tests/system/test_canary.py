"""Secrets are put into every setting that takes one, and looked for in all that is said: logs, pages, metrics, tracebacks, output."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from system_kit import Done, Served, Settings, command, delivery, downstream, free_port, knowing, signed, start_job, until

from receiver.cli import COMMANDS
from receiver.sandbox import BackgroundSandbox

pytestmark = pytest.mark.slow

OLD, NEW = "canary-retiring-Xq7wsecret", "canary-signing-Kp3vsecret"
KEY, WRONG_KEY = "rdr_canary-reader-Zt5nkey", "rdr_canary-refused-Ub2mkey"
TOKEN = "canary-token-Jh8ctoken"
HOOK = base64.b64encode(b"canary-hook-Wd4ysecret-bytes").decode()
PASSWORD = "canary-password-Rf6k"
BEARER, QUERY, BROKER, ENV = "canary-bearer-Ng2t", "canary-query-Lx8p", "canary-broker-Sv5q", "canary-variable-Ty3h"
CANARIES = (OLD, NEW, KEY, WRONG_KEY, TOKEN, HOOK, PASSWORD, BEARER, QUERY, BROKER, ENV)

HANDLERS = """
from receiver import Receiver

receiver = Receiver()


@receiver.on("job.completed")
async def fails(event, results):
    secrets = [secret.get_secret_value() for secret in receiver.settings.reader_webhook_secret]
    raise RuntimeError(f"{receiver.settings!r} {receiver.settings} {len(secrets)}")
"""


def disguises(secret: str) -> Iterator[str]:
    """The secret, as it may be written down, and the parts of it that would give it away."""
    raw = secret.encode()
    yield secret
    yield secret[:-4]
    yield raw.hex()
    yield urllib.parse.quote(secret, safe="")
    yield base64.b64encode(raw).decode().rstrip("=")
    if secret == HOOK:
        yield base64.b64decode(secret).decode()


@dataclass
class Said:
    """Everything, by where it was said."""

    by: dict[str, str] = field(default_factory=dict)

    def note(self, where: str, text: str) -> None:
        self.by[f"{where} #{len(self.by)}"] = text

    def command(self, folder: Path, *args: str, settings: Settings, stdin: bytes = b"") -> Done:
        ended = command(folder, *args, settings=settings, stdin=stdin)
        self.note(" ".join(args), ended.out + ended.err)
        return ended

    def get(self, url: str, **how: Any) -> None:
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.request(how.pop("method", "GET"), url, trust_env=False, timeout=10, **how)
            self.note(url, f"{answer.status_code} {answer.headers} {answer.text}")

    def betrayals(self) -> list[tuple[str, str]]:
        return [
            (where, text[max(text.find(shape) - 80, 0) :][:200])
            for where, text in self.by.items()
            for secret in CANARIES
            for shape in disguises(secret)
            if shape in text
        ]


@contextlib.contextmanager
def quoting() -> Iterator[str]:
    """A Reader that refuses every request, and quotes all of it."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            self.close_connection = True
            if not self.raw_requestline or not self.parse_request():
                return
            said = {"success": False, "error": {"code": "unauthenticated", "message": f"no: {self.headers}"}}
            body = json.dumps(said).encode()
            self.send_response(401)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def secretive(reader: BackgroundSandbox, hook: str, **more: str | None) -> dict[str, str | None]:
    hooks: list[dict[str, Any]] = [
        {
            "name": "broken",
            "url": f"{hook}?key={QUERY}",
            "secret": f"whsec_{HOOK}",
            "headers": {"authorization": f"Bearer {BEARER}"},
        },
        {"name": "nowhere", "url": f"http://user:{BROKER}@127.0.0.1:1/{QUERY}"},
        {"name": "nats", "url": f"nats://user:{BROKER}@127.0.0.1:1/reader.{{type}}"},
        {"name": "redis", "url": f"redis://:{BROKER}@127.0.0.1:1/0?stream=reader"},
        {"name": "amqp", "url": f"amqp://user:{BROKER}@127.0.0.1:1/vhost?queue=reader"},
        {"name": "command", "exec": ["sh", "-c", "echo it failed >&2; exit 1"], "env": {"CANARY": ENV}},
    ]
    ours = {
        "READER_WEBHOOK_SECRET": f"{NEW},{OLD}",
        "READER_API_KEY": KEY,
        "RECEIVER_API_KEYS": f"{TOKEN},another-token-of-no-interest",
        "RECEIVER_HOOKS": json.dumps(hooks),
        "RECEIVER_PUBLIC_URL": "http://127.0.0.1:9",
        "READER_RPM": "100000",
    }
    return {**knowing(reader), **ours, **more}


HOOKS = ("broken", "nowhere", "nats", "redis", "amqp", "command")
PAGES = (
    "/metrics",
    "/healthz",
    "/readyz",
    "/v1/jobs",
    "/v1/jobs/JOB",
    "/v1/jobs/none",
    "/nowhere",
    "/dashboard",
    "/dashboard/jobs/JOB",
    "/dashboard/deliveries",
    "/dashboard/deliveries/1",
    "/dashboard/hooks",
    *(f"/dashboard/hooks/one?name={name}" for name in HOOKS),
    "/internal/tick?budget=0.1",
    "/internal/commands/none",
)
TRIED = (
    "jobs",
    "jobs --json",
    "job JOB",
    "job JOB --json",
    "deliveries",
    "deliveries 1",
    "deliveries 1 --curl",
    "results JOB",
    "hooks list",
    "hooks list --json",
    *(f"hooks test {name}" for name in HOOKS),
    "webhook list",
    "doctor",
    "doctor --json",
    "sign body.json",
    "send job.page --job job_1",
    "tick --budget 1",
    "retry JOB",
    "cancel JOB",
    "replay --job JOB",
    "migrate",
    "submit https://x.example/ --json",
)
ELSEWHERE = ("demo", "sandbox", "listen", "watch", "serve", "track")
"""Commands that show nothing of the settings, or are tried in another way."""


def test_no_secret_is_ever_said(tmp_path: Path) -> None:
    said = Said()
    (tmp_path / "app.py").write_text(HANDLERS)
    (tmp_path / "body.json").write_bytes(delivery("job_signed"))
    with (
        BackgroundSandbox(seed=1, api_key=KEY, secret=NEW, job_seconds=0.1, queue_seconds=0.02) as reader,
        downstream(500) as hook,
    ):
        settings = secretive(reader, hook.url, RECEIVER_LOG="json")
        with Served(tmp_path, "app:receiver", settings=settings) as server:
            job = start_job(reader, 3)
            reader.settled()
            for secret in (NEW, OLD, "of-somebody-else-entirely"):
                server.post(delivery(job, by=secret[:3]), signed(delivery(job, by=secret[:3]), secret))
            server.post(b"not json", signed(b"not json", NEW))
            server.post(delivery(job), signed(delivery(job), NEW, at=1))
            server.post(delivery(job), {"X-Reader-Delivery": "unsigned"})
            until(lambda: server.rows("SELECT 1 FROM jobs WHERE state = 'settled'") and hook.got)
            server.logged("handler_failed")
            until(lambda: len(server.rows("SELECT DISTINCT hook FROM hook_attempts")) > len(HOOKS))
            reader.faults = {"unauthorized": {"rate": 1, "times": 2}}
            said.command(tmp_path, "track", "job_refused", settings=settings)
            server.logged("reader_paused")
            for path in PAGES:
                for headers in (
                    {},
                    {"x-api-key": TOKEN},
                    {"authorization": f"Bearer {TOKEN}x"},
                    {"x-api-key": TOKEN, "host": "x"},
                ):
                    said.get(server.url + path.replace("JOB", job), headers=headers)
            said.get(f"{server.url}/v1/jobs", method="POST", content=b"{", headers={"x-api-key": TOKEN})
            for line in TRIED:
                said.command(tmp_path, *(job if word == "JOB" else word for word in line.split()), settings=settings)
            for args in (["track", "job_x"], ["tick"]):
                said.command(tmp_path, *args, settings={**settings, "RECEIVER_API_KEYS": f"{TOKEN}-wrong"})
        said.note("the server", "\n".join(server.lines))
    assert "handler_failed" in "".join(said.by.values()), "what there is to look through is not nothing"
    assert said.betrayals() == []
    database = b"".join(file.read_bytes() for file in tmp_path.glob("receiver.db*"))
    for secret in (KEY, TOKEN, OLD, HOOK, BEARER, QUERY, BROKER, ENV):
        assert secret.encode() not in database


def test_no_secret_is_said_where_nothing_works(tmp_path: Path) -> None:
    """A Reader that quotes requests, a database that refuses, settings that are wrong, a module that fails."""
    said = Said()
    (tmp_path / "app.py").write_text(HANDLERS + "\nraise ValueError(receiver.settings)\n")
    (tmp_path / "key").write_text(f"{KEY}\n{WRONG_KEY}")
    nowhere = f"postgresql://someone:{PASSWORD}@127.0.0.1:{free_port()}/none"
    with BackgroundSandbox(seed=1, api_key=KEY) as reader, quoting() as parrot:
        settings = secretive(reader, "http://127.0.0.1:1/")
        wrong: list[Settings] = [
            {"RECEIVER_DATABASE_URL": nowhere},
            {"RECEIVER_DATABASE_URL": nowhere.replace("127.0.0.1", "[::1")},
            {"RECEIVER_DATABASE_URL": nowhere.replace("postgresql", "mysql")},
            {"READER_WEBHOOK_SECRET": NEW[:8] + "," + OLD + "é" * 300},
            {"READER_API_KEY": f"{KEY} {WRONG_KEY}"},
            {"READER_API_KEY": None, "READER_API_KEY_FILE": str(tmp_path / "key")},
            {"RECEIVER_API_KEYS": f"{TOKEN} {TOKEN}"},
            {"RECEIVER_HOOKS": json.dumps([{"name": "a b", "url": "http://x", "secret": f"whsec_{HOOK}!"}])},
            {"RECEIVER_HOOKS": f'[{{"name": "a", "secret": "{HOOK}"'},
            {"READER_API_KEY": WRONG_KEY},
            {"READER_BASE_URL": parrot, "READER_API_KEY": WRONG_KEY},
            {"READER_BASE_URL": f"http://{PASSWORD}:{PASSWORD}@127.0.0.1:1"},
        ]
        for change in wrong:
            changed = {**settings, **change}
            tried = [["jobs"], ["track", "job_1"], ["migrate"], ["webhook", "list"], ["doctor"]]
            for args in tried + ([] if "READER_BASE_URL" in change or change.get("READER_API_KEY") == WRONG_KEY else [["serve"]]):
                said.command(tmp_path, *args, settings=changed)
            if "READER_API_KEY" in change and "READER_API_KEY_FILE" not in change:
                said.command(tmp_path, "listen", "--forward-to", "http://127.0.0.1:1/", settings=changed)
        said.command(tmp_path, "serve", "app", settings=settings)
        with Served(tmp_path, settings={**settings, "READER_BASE_URL": parrot}) as server:
            said.command(tmp_path, "track", "job_1", settings=settings)
            server.logged("reader_paused")
        said.note("the server", "\n".join(server.lines))
    text = "".join(said.by.values())
    assert "Traceback" in text, "the failing module's"
    assert "[key]" in text, "what the Reader quoted is told without the key"
    assert said.betrayals() == []


def test_every_command_is_listened_to() -> None:
    """One that is new is to be tried above."""
    assert {name for name, *_ in COMMANDS} == {line.split()[0] for line in TRIED} | set(ELSEWHERE)
