"""What the system tests share: `receiver` as real processes, deliveries signed by other lines than ours, raw sockets."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import hmac
import itertools
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import httpx

from receiver.clock import SystemClock
from receiver.sandbox import BackgroundSandbox
from receiver.store.engine import Database

RECEIVER: Final = str(Path(sys.executable).with_name("receiver"))
"""The command as it was installed."""
SECRET: Final = "whsec-of-the-system-tests"
DRAIN_WITHIN: Final = 10.0
_STARTS_WITHIN: Final = 30.0

Settings = Mapping[str, str | None]
Headers = Mapping[str, str] | Iterable[tuple[str, str]]


# Processes


def environment(folder: Path, **settings: str | None) -> dict[str, str]:
    """A clean environment with `settings`; a database and a secret unless told otherwise. None leaves a setting out."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("READER_", "RECEIVER_", "SANDBOX_"))}
    ours: dict[str, str | None] = {
        "RECEIVER_DATABASE_URL": f"sqlite:///{folder / 'receiver.db'}",
        "RECEIVER_LOG": "json",
        "READER_WEBHOOK_SECRET": SECRET,
        "COLUMNS": "200",
    }
    return clean | {name: value for name, value in (ours | settings).items() if value is not None}


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """Its one line on stderr, and nothing but that."""
        lines = self.err.splitlines()
        assert len(lines) == 1, f"not one line: {self.err!r}"
        assert "Traceback" not in lines[0]
        return lines[0]

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Child:
    """A command that runs, in a fork of the nursery's process. As a context manager it lets go of it, not more."""

    def __init__(self, connection: socket.socket, out: Path, err: Path) -> None:
        self.out, self.err = out, err
        self._connection = connection
        self._answers = connection.makefile()
        self._pid = int(self._answers.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._connection.close()

    def wait(self, within: float | None = None) -> int:
        """Its exit code, once it has ended. Raises `TimeoutError`."""
        self._connection.settimeout(within)
        return int(self._answers.readline())

    def kill(self) -> None:
        """`kill -9`, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)


class Nursery:
    """Where commands come from: see nursery.py. One for a test session, started when first needed."""

    def __init__(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="receiver-nursery-"))
        self._numbers = itertools.count()
        self.path = str(self._home / "s")
        script = str(Path(__file__).with_name("nursery.py"))
        self._process = subprocess.Popen(
            [sys.executable, script, self.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(self._home)
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        atexit.register(self.close)

    def run(self, folder: Path, args: tuple[str, ...], settings: Settings, stdin: bytes, within: float) -> Done:
        with self.start(folder, args, settings, stdin) as child:
            try:
                code = child.wait(within)
            except TimeoutError:
                child.kill()
                raise AssertionError(f"{args} still runs after {within:g} s: {child.err.read_text()}") from None
            return Done(code, child.out.read_text(), child.err.read_text())

    def start(self, folder: Path, args: tuple[str, ...], settings: Settings, stdin: bytes = b"") -> Child:
        files = [self._home / f"{next(self._numbers)}.{name}" for name in ("in", "out", "err")]
        files[0].write_bytes(stdin)
        asked = {
            "args": args,
            "folder": str(folder),
            "environment": environment(folder, **settings),
            "files": [str(file) for file in files],
        }
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.path)
        connection.sendall(json.dumps(asked).encode() + b"\n")
        return Child(connection, files[1], files[2])

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        shutil.rmtree(self._home)


@functools.cache
def nursery() -> Nursery:
    return Nursery()


def command(
    folder: Path, *args: str, stdin: bytes = b"", within: float = 60.0, settings: Settings | None = None, **more: str | None
) -> Done:
    """Run `receiver ARGS` to its end, in `folder`."""
    return nursery().run(folder, args, {**(settings or {}), **more}, stdin, within)


@functools.cache
def migrated() -> Path:
    """A database as the first start leaves it, to be copied: it takes a while to make one."""
    home = tempfile.mkdtemp(prefix="receiver-template-")
    atexit.register(shutil.rmtree, home)
    path = Path(home, "receiver.db")
    Database.open(f"sqlite:///{path}", SystemClock()).close()
    return path


class Background:
    """A process whose JSON lines are read as they come. As a context manager it is stopped at the end: see `stop`."""

    def __init__(self, args: list[str], folder: Path, lines_from: str = "stderr", /, **settings: str | None) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            args,
            cwd=folder,
            env=environment(folder, **settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if lines_from == "stdout" else subprocess.DEVNULL,
            stderr=subprocess.PIPE if lines_from == "stderr" else subprocess.DEVNULL,
        )
        self._pipe: IO[bytes] = getattr(self.process, lines_from)
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self.process.poll() is None:
            self.stop()
        else:
            self.kill()

    @property
    def log(self) -> list[dict[str, Any]]:
        """Its log so far; a line that is no JSON object as `{"event": line}`."""
        with self._news:
            return [_parsed(line) for line in self.lines]

    def logged(self, event: str, within: float = 10.0, **fields: Any) -> dict[str, Any]:
        """Wait for a line of this event with these fields, whether it came already or not."""
        until_then = time.monotonic() + within
        seen = 0
        while True:
            with self._news:
                fresh, seen = self.lines[seen:], len(self.lines)
                for line in map(_parsed, fresh):
                    if line.get("event") == event and all(line.get(name) == value for name, value in fields.items()):
                        return line
                left = until_then - time.monotonic()
                if not fresh and (self._ended or not self._news.wait(max(left, 0.0))):
                    raise AssertionError(f"no {event} {fields or ''} in the log:\n" + "\n".join(self.lines[-30:]))

    def stop(self, number: int = signal.SIGTERM, within: float = DRAIN_WITHIN) -> float:
        """Ask it to end; it must, with exit code 0, in time. Returns how long it took."""
        began = time.monotonic()
        self.process.send_signal(number)
        try:
            code = self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running {within:g} s after the signal:\n" + "\n".join(self.lines[-30:])) from None
        took = time.monotonic() - began
        self._close()
        assert code == 0, f"exit code {code}:\n" + "\n".join(self.lines[-30:])
        return took

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        self._reading.join()
        self._pipe.close()

    def _read(self) -> None:
        for line in self._pipe:
            with self._news:
                self.lines.append(line.decode("utf-8", "replace").rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


class Served(Background):
    """`receiver serve`, listening."""

    def __init__(self, folder: Path, *args: str, port: int = 0, settings: Settings | None = None, **more: str | None) -> None:
        self.database = folder / "receiver.db"
        if not self.database.exists():
            shutil.copy(migrated(), self.database)
        super().__init__([RECEIVER, "serve", "--port", str(port), *args], folder, **{**(settings or {}), **more})
        try:
            self.url: str = self.logged("listening", _STARTS_WITHIN)["url"]
        except AssertionError:
            self.kill()
            raise
        self.port = int(self.url.rpartition(":")[2])

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """What stands in its database."""
        return rows(self.database, query, *parameters)

    def post(self, body: bytes, headers: Headers | None = None, **how: Any) -> Answer:
        """Post a delivery over a connection of its own; rightly signed unless `headers` are given."""
        with Wire(self.port) as wire:
            return wire.ask(request(body, signed(body) if headers is None else headers, **how))


def rows(database: Path, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Read an SQLite file beside whoever has it open."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(query, parameters).fetchall()


@contextlib.contextmanager
def held(database: Path) -> Iterator[None]:
    """SQLite's write lock, held by somebody else."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None, timeout=10)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def _parsed(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"event": line}


def until(condition: Callable[[], Any], within: float = 20.0, every: float = 0.02) -> Any:
    """Look again and again until the condition holds; what it said then."""
    end = time.monotonic() + within
    while not (said := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"did not come true within {within:g} s")
        time.sleep(every)
    return said


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


# Deliveries, signed with other lines than the product's

_numbers = itertools.count(1)


def delivery(job: str | None = None, event: str = "job.completed", **more: Any) -> bytes:
    """A body as Reader sends it. Without a job, for one that no other delivery is for."""
    return json.dumps({"event": event, "jobId": job or f"job_{next(_numbers)}", **more}).encode()


def signature(body: bytes, timestamp: str, secret: str = SECRET) -> str:
    """What Reader puts into X-Reader-Signature."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode("latin-1") + b"." + body, hashlib.sha256).hexdigest()


def signed(body: bytes, secret: str = SECRET, at: float | str | None = None, **changed: str | None) -> dict[str, str]:
    """Reader's headers for a body. `at`: the timestamp, as text if it is to be odd. `changed` by part: `signature=None` omits it."""
    timestamp = at if isinstance(at, str) else str(int(time.time() if at is None else at))
    parts: dict[str, str | None] = {
        "event": "job.completed",
        "delivery": f"{time.time_ns():x}-{next(_numbers)}",
        "timestamp": timestamp,
        "signature": signature(body, timestamp, secret),
    }
    return {f"X-Reader-{name.title()}": value for name, value in (parts | changed).items() if value is not None}


# HTTP, byte for byte


@dataclass(frozen=True)
class Answer:
    """A response as it came."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name.lower()), None)

    @property
    def undated(self) -> Answer:
        """Without the time of day, which is in every answer."""
        return Answer(self.status, tuple(pair for pair in self.headers if pair[0] != "date"), self.body)


def request(
    body: bytes = b"",
    headers: Headers = (),
    *,
    method: str = "POST",
    path: str = "/hooks/reader",
    length: int | None = None,
    json_type: bool = True,
) -> bytes:
    """A request's bytes. Header names and values go out as Latin-1, as they are. `length` -1: no Content-Length."""
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    if json_type:
        lines.append("Content-Type: application/json")
    if length != -1:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    lines += [f"{name}: {value}" for name, value in pairs]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class Wire:
    """One connection."""

    def __init__(self, port: int, within: float = 15.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=within)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.got = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, data: bytes) -> Answer:
        """Send, and read one answer."""
        self.send(data)
        return self.answer()

    def answer(self) -> Answer:
        """The next answer. Raises `EOFError` if the connection ends before the whole of it came."""
        while b"\r\n\r\n" not in self.got:
            self._more()
        head, _, self.got = self.got.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = tuple((name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines))
        length = int(dict(headers).get("content-length", 0))
        while len(self.got) < length:
            self._more()
        body, self.got = self.got[:length], self.got[length:]
        return Answer(int(status.split()[1]), headers, body)

    def at_end(self) -> bool:
        """Whether the server closes the connection without another byte."""
        try:
            return self.got == b"" and self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def _more(self) -> None:
        piece = self.socket.recv(65536)
        if not piece:
            raise EOFError(f"the connection ended after {self.got!r}")
        self.got += piece


class Load:
    """Deliveries over several connections at once for as long as the context lasts, each with what became of it."""

    def __init__(self, port: int, *, hands: int = 8, make: Callable[[], bytes] = delivery) -> None:
        self._port = port
        self._make = make
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(hands)]
        self.outcomes: list[tuple[bytes, int | None]] = []
        """(body, status of its answer); None: the connection ended without a byte of one."""
        self.partial: list[bytes] = []
        """Bodies whose answers broke off in the middle."""

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    @property
    def acknowledged(self) -> set[bytes]:
        """The bodies that were answered 2xx."""
        return {body for body, status in list(self.outcomes) if status is not None and 200 <= status < 300}

    @property
    def statuses(self) -> set[int | None]:
        return {status for _, status in list(self.outcomes)}

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                wire = Wire(self._port)
            except OSError:  # nobody listens there for now
                self._stopping.wait(0.02)
                continue
            with wire:
                self._use(wire)

    def _use(self, wire: Wire) -> None:
        while not self._stopping.is_set():
            body = self._make()
            status = None
            try:
                status = wire.ask(request(body, signed(body))).status
            except (OSError, EOFError):
                if wire.got:
                    self.partial.append(body)
            self.outcomes.append((body, status))
            if status is None:
                return


# Reader, emulated, and something downstream


def knowing(reader: BackgroundSandbox, **more: str | None) -> dict[str, str | None]:
    """The settings of a receiver that may ask this Reader."""
    return {"READER_BASE_URL": reader.url, "READER_API_KEY": reader.api_key, **more}


def start_job(reader: BackgroundSandbox, pages: int = 3, **more: Any) -> str:
    """Hand Reader a job, as somebody else than us; its id."""
    number = next(_numbers)
    body = {"urls": [f"https://site-{number}.example/{page}" for page in range(pages)], **more}
    answer = httpx.post(f"{reader.url}/v1/read", json=body, headers={"x-api-key": reader.api_key}, trust_env=False)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["data"]["id"])


Misdeed = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Hook:
    """A URL for HTTP hooks, on a real socket: keeps what came, answers as told."""

    statuses: list[int | Misdeed] = field(default_factory=list)
    """What to answer, or to do instead, one after another; 200 once they are used up."""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""

    @property
    def ids(self) -> list[str]:
        """The `webhook-id` of each call."""
        return [headers["webhook-id"] for headers, _ in list(self.got)]


@contextlib.contextmanager
def downstream(*statuses: int | Misdeed) -> Iterator[Hook]:
    """Serve a `Hook`."""
    hook = Hook(list(statuses))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            hook.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            status = hook.statuses.pop(0) if hook.statuses else 200
            if not isinstance(status, int):
                status(self)
                self.close_connection = True
                return
            words = b"" if status < 300 else b"%d: no room" % status
            self.send_response(status)
            self.send_header("content-length", str(len(words)))
            self.end_headers()
            self.wfile.write(words)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # whoever called was killed

    with Server(("127.0.0.1", 0), Handler) as server:
        hook.url = f"http://127.0.0.1:{server.server_address[1]}/events"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hook
        finally:
            server.shutdown()
            thread.join()
