"""What is wrong at the start is one line that says what to do, and an exit code that says whose fault it is."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from system_kit import RECEIVER, SECRET, Background, Done, Served, command, environment

SERVE = ("serve", "--port", "0")


@dataclass(frozen=True)
class Wrong:
    """A command that cannot work: how it ends, and what its line must tell."""

    name: str
    tells: tuple[str, ...]
    args: tuple[str, ...] = SERVE
    code: int = 2
    settings: dict[str, str | None] = field(default_factory=dict)
    prepare: Callable[[Path], object] = bool


def _setting(name: str, value: str | None, *tells: str) -> Wrong:
    return Wrong(f"{name}={value}"[:60], tells or (name,), settings={name: value})


def _hooks(value: str, *tells: str) -> Wrong:
    return _setting("RECEIVER_HOOKS", value, "RECEIVER_HOOKS", *tells)


WRONG = [
    _setting("READER_WEBHOOK_SECRET", None, "READER_WEBHOOK_SECRET is not set", "16 to 256", "RECEIVER_ALLOW_UNSIGNED"),
    _setting("READER_WEBHOOK_SECRET", "", "READER_WEBHOOK_SECRET is not set"),
    _setting("READER_WEBHOOK_SECRET", "12345", "READER_WEBHOOK_SECRET", "16 to 256", "has 5"),
    _setting("READER_WEBHOOK_SECRET", f"{SECRET},short", "READER_WEBHOOK_SECRET[1]", "has 5"),
    _setting("READER_WEBHOOK_SECRET", "x" * 257, "has 257"),
    Wrong(
        "a secret's file that is not there",
        ("READER_WEBHOOK_SECRET_FILE", "/nowhere"),
        settings={"READER_WEBHOOK_SECRET": None, "READER_WEBHOOK_SECRET_FILE": "/nowhere"},
    ),
    _setting("RECEIVER_DATABASE_URL", "sqlite:////nowhere/at/all.db", "/nowhere/at", "RECEIVER_DATABASE_URL"),
    _setting("RECEIVER_DATABASE_URL", "sqlite:////proc/receiver.db", "/proc", "RECEIVER_DATABASE_URL"),
    _setting("RECEIVER_DATABASE_URL", "sqlite://", "RECEIVER_DATABASE_URL", "sqlite:///PATH"),
    _setting("RECEIVER_DATABASE_URL", "nonsense", "RECEIVER_DATABASE_URL", "sqlite:///PATH"),
    _setting("RECEIVER_DATABASE_URL", "mysql://a:hidden@b/c", "RECEIVER_DATABASE_URL", "mysql"),
    _setting("RECEIVER_DATABASE_URL", "postgresql://a:hidden@127.0.0.1:1/c", "RECEIVER_DATABASE_URL", "refused"),
    _setting("RECEIVER_DATABASE_URL", "postgresql://a:hidden@b:port/c", "RECEIVER_DATABASE_URL"),
    Wrong(
        "a database that is a folder",
        ("RECEIVER_DATABASE_URL",),
        prepare=lambda folder: (folder / "receiver.db").mkdir(),
    ),
    Wrong(
        "a database that is something else",
        ("not a database", "RECEIVER_DATABASE_URL"),
        prepare=lambda folder: (folder / "receiver.db").write_bytes(b"Dear diary, " * 100),
    ),
    _setting("READER_BASE_URL", "api.reader.dev"),
    _setting("READER_BASE_URL", "http://:80"),
    _setting("READER_BASE_URL", "http://reader dev"),
    _setting("READER_BASE_URL", "https://api.reader.dev:99999"),
    _setting("RECEIVER_PUBLIC_URL", "ftp://hooks.example.com"),
    _hooks("nonsense", "JSON list"),
    _hooks('{"name": "a", "url": "http://a"}', "JSON list"),
    _hooks('[{"name": "a"}]', "exactly one of url and exec"),
    _hooks('[{"name": "a", "exec": []}]', "[0].exec"),
    _hooks('[{"name": "a", "url": "nowhere"}]', "[0].url"),
    _setting("RECEIVER_HOOK_ALLOW", "10.0.0.1/8"),
    _hooks('[{"name": "a", "url": "http://a", "secret": "no base64!"}]', "[0].secret", "base64"),
    _hooks('[{"name": "a", "url": "http://a", "events": ["job.page"]}]', "job.completed"),
    _hooks('[{"name": "a", "url": "http://a"}, {"name": "a", "url": "http://b"}]', "same name"),
    Wrong(
        "several mistakes",
        ("READER_RPM", "RECEIVER_TOLERANCE", "RECEIVER_LOOPS"),
        settings={"READER_RPM": "fast", "RECEIVER_TOLERANCE": "-1", "RECEIVER_LOOPS": "perhaps"},
    ),
    Wrong(
        "a broken receiver.toml",
        ("receiver.toml",),
        prepare=lambda folder: (folder / "receiver.toml").write_text("reader_rpm = ["),
    ),
    Wrong("an address of another machine", ("192.0.2.1", "--host"), (*SERVE, "--host", "192.0.2.1"), code=1),
    Wrong("a host that is none", ("nowhere.invalid", "--host"), (*SERVE, "--host", "nowhere.invalid"), code=1),
    Wrong("no command", ("--help",), ()),
    Wrong("an unknown command", ("frobnicate", "--help"), ("frobnicate",)),
    Wrong("an unknown flag", ("--frobnicate", "receiver serve --help"), ("serve", "--frobnicate")),
    Wrong("a port that is none", ("--port", "65535"), ("serve", "--port", "65536")),
    Wrong(
        "a module with a slip in it",
        ("slip.py", "line 2", "SyntaxError"),
        (*SERVE, "slip:receiver"),
        prepare=lambda folder: (folder / "slip.py").write_text("x = 1\ndef f(:\n"),
    ),
    Wrong(
        "a module that imports one badly indented",
        ("slip.py", "line 2", "IndentationError"),
        (*SERVE, "app:receiver"),
        prepare=lambda folder: (
            (folder / "app.py").write_text("import slip"),
            (folder / "slip.py").write_text("x = 1\n  y = 2\n"),
        ),
    ),
    Wrong(
        "a handler of no parameter",
        ("index", "async def index(event, results)"),
        (*SERVE, "app:receiver"),
        prepare=lambda folder: (folder / "app.py").write_text(
            "from receiver import Receiver\nreceiver = Receiver()\n@receiver.on('job.failed')\nasync def index(): ...\n"
        ),
    ),
    Wrong("a module that is not there", ("nowhere", "MODULE:RECEIVER"), (*SERVE, "nowhere:receiver")),
    Wrong("a module without a receiver", ("json", "MODULE:RECEIVER"), (*SERVE, "json:loads")),
    Wrong("a module that cannot be", ("MODULE:RECEIVER",), (*SERVE, "..:receiver")),
    Wrong("too few arguments", ("JOB_ID",), ("job",)),
    Wrong("too many arguments", ("job_2",), ("job", "job_1", "job_2")),
    Wrong("a number that is none", ("--limit",), ("jobs", "--limit", "many")),
    Wrong("a format that is none", ("--format", "csv"), ("results", "job_1", "--format", "xml")),
    Wrong("nothing to submit", ("--file",), ("submit",), settings={"READER_API_KEY": "key"}),
    Wrong("a file that is not there", ("/nowhere",), ("submit", "--file", "/nowhere"), settings={"READER_API_KEY": "key"}),
    Wrong("nobody to submit to", ("READER_API_KEY",), ("submit", "https://example.com")),
    Wrong("no id", ("../x",), ("track", "../x")),
    Wrong("a tick without a key", ("READER_API_KEY",), ("tick",)),
    Wrong("a tick of no time", ("--budget",), ("tick", "--budget", "0")),
    Wrong(
        "signing without a secret", ("READER_WEBHOOK_SECRET",), ("sign", "/dev/null"), settings={"READER_WEBHOOK_SECRET": None}
    ),
    Wrong("signing nothing", ("/nowhere",), ("sign", "/nowhere")),
    Wrong("reading where nothing was written", ("receiver serve",), ("jobs",), code=1),
    Wrong(
        "sending where nobody listens",
        ("127.0.0.1:1",),
        ("send", "job.failed", "--job", "j", "--url", "http://127.0.0.1:1"),
        code=1,
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_what_is_wrong_is_one_line_that_says_what_to_do(tmp_path: Path, wrong: Wrong) -> None:
    wrong.prepare(tmp_path)
    done = command(tmp_path, *wrong.args, settings=wrong.settings)
    line = done.complaint
    assert done.code == wrong.code, line
    assert line.startswith("receiver: ")
    assert [told for told in wrong.tells if told not in line] == [], line
    assert "hidden" not in line
    assert len(line) < 500


@pytest.mark.parametrize(
    ("module", "last", "frames"),
    [
        ("def connect():\n    raise OSError('no route')\n\nconnect()\n", "OSError: no route", 2),
        ("import nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all'", 1),
        ("import helper\n", "ZeroDivisionError: division by zero", 2),
        ("try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise KeyError('x')\n", "KeyError: 'x'", 2),
        ("import ast\nast.literal_eval('1 +')\n", "SyntaxError: invalid syntax", None),
    ],
    ids=["raises", "imports nothing", "imports what raises", "raises while it handles", "parses something"],
)
@pytest.mark.parametrize("command_", [SERVE, ("tick",)], ids=["serve", "tick"])
def test_a_module_that_fails_shows_its_own_frames_and_one_line(
    tmp_path: Path, command_: tuple[str, ...], module: str, last: str, frames: int | None
) -> None:
    (tmp_path / "app.py").write_text(module)
    (tmp_path / "helper.py").write_text("1 / 0\n")
    done = command(tmp_path, *command_, "app:receiver", settings={"READER_API_KEY": "key"})
    *traceback, line = done.err.splitlines()
    assert done.code == 1
    assert line == f"receiver: the module app cannot be imported ({last.partition(':')[0]}): see the traceback above"
    assert traceback[0] == "Traceback (most recent call last):"
    assert traceback[-1] == last
    shown = [row for row in traceback if row.startswith("  File ")]
    assert "app.py" in shown[0]
    assert not any("/receiver/cli/" in row or "importlib" in row or "typer" in row for row in shown)
    assert frames is None or len(shown) == frames


def test_a_taken_port_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        done = command(tmp_path, "serve", "--port", port)
    assert done.code == 1
    assert port in done.complaint
    assert "--port" in done.complaint


@pytest.mark.slow
def test_a_read_only_database_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    with Served(tmp_path):
        pass
    for path in (tmp_path / "receiver.db", tmp_path / "receiver.db.lock"):
        path.chmod(0o444)
        done = _without_override(tmp_path, *SERVE)
        assert done.code == 2
        assert "RECEIVER_DATABASE_URL" in done.complaint
        path.chmod(0o644)


def _without_override(folder: Path, *args: str) -> Done:
    """Run it as a user whom file modes concern, even where the tests run as root."""
    libc = ctypes.CDLL(None, use_errno=True)

    def lose_override() -> None:
        if os.geteuid() == 0:
            assert libc.prctl(24, 1, 0, 0, 0) == 0  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE

    done = subprocess.run(
        [RECEIVER, *args],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        timeout=30,
        check=False,
        preexec_fn=lose_override,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_a_second_server_on_the_same_file_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with Served(tmp_path) as first:
        done = command(tmp_path, *SERVE)
        assert done.code == 2
        assert "PostgreSQL" in done.complaint
        assert str(first.process.pid) in done.complaint
        assert first.post(b'{"jobId": "job_1"}').status == 202


@pytest.mark.slow
def test_a_server_that_was_killed_leaves_no_lock_behind(tmp_path: Path) -> None:
    first = Served(tmp_path)
    first.kill()
    with Served(tmp_path) as second:
        assert second.post(b'{"jobId": "job_1"}').status == 202


@pytest.mark.slow
def test_a_signal_during_the_start_ends_it_as_one_later_does(tmp_path: Path) -> None:
    """Whenever it comes after the first sign of life, the exit code is 0."""
    for number in (signal.SIGTERM, signal.SIGINT):
        with Background([RECEIVER, *SERVE], tmp_path) as server:
            server.logged("no_api_key", 30)
            server.stop(number)
            server.logged("stopped")


@pytest.mark.slow
def test_two_that_start_at_once_on_a_new_file_end_up_as_one(tmp_path: Path) -> None:
    both = [Background([RECEIVER, *SERVE], tmp_path) for _ in range(2)]
    ended = threading.Event()

    def watch(server: Background) -> int:
        code = server.process.wait()
        ended.set()
        return code

    with ThreadPoolExecutor(2) as pool:
        codes = [pool.submit(watch, server) for server in both]
        assert ended.wait(30)
        (alive,) = [server for server in both if server.process.poll() is None]
        alive.logged("listening")
        alive.stop()
        for server in both:
            server.kill()
    assert sorted(code.result() for code in codes) == [0, 2]
