"""How many signed deliveries a second the endpoint takes, against its peers, in the same run on the same cores.

`python -m tests.benchmarks.endpoint`: one server at a time on one core, the load on another, taking turns over several rounds;
medians, as ratios to a bare Starlette endpoint. Ours is whole: it verifies, dedupes, stores durably, makes the job due, logs, counts.
PostgreSQL's processes share the load's core. Express takes part where Node is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import track

from receiver.clock import SystemClock
from tests.benchmarks.load import Load
from tests.databases import Server

SECRET = "a-secret-for-the-benchmark"
SERVER_CORE, LOAD_CORE = "0", "1"
PEERS = Path(__file__).parent / "peers"
_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Contender:
    """A server to measure. `command` gets a port and an empty folder."""

    name: str
    durable: bool
    command: Callable[[int, Path], list[str]]
    environment: Callable[[Path], contextlib.AbstractContextManager[dict[str, str]]] = lambda _: contextlib.nullcontext({})


@dataclass(slots=True)
class Run:
    """A load, and microseconds of the server's CPU for each delivery of it."""

    load: Load
    cpu: float


@dataclass(slots=True)
class Field:
    """Who takes part, and what all of them got."""

    contenders: list[Contender]
    runs: dict[str, list[Run]] = field(default_factory=dict)


def _uvicorn(module: str, *, logs: bool = False) -> Callable[[int, Path], list[str]]:
    flags = ["--loop", "uvloop", "--http", "httptools", "--lifespan", "off"]
    if not logs:
        flags += ["--no-access-log", "--log-level", "warning"]
    return lambda port, _: [sys.executable, "-m", "uvicorn", f"tests.benchmarks.peers.{module}:app", "--port", str(port), *flags]


def _receiver(port: int, _: Path) -> list[str]:
    return [sys.executable, "-m", "receiver", "serve", "--port", str(port)]


def contenders(postgresql: Server, express: Path | None) -> list[Contender]:
    """All that can be measured on this machine."""
    found = [
        Contender("bare Starlette", False, _uvicorn("bare")),
        # As ours does: a line for each request.
        Contender("bare Starlette, with its access log", False, _uvicorn("bare", logs=True)),
        Contender(
            "receiver on SQLite",
            True,
            _receiver,
            lambda folder: contextlib.nullcontext({"RECEIVER_DATABASE_URL": f"sqlite:///{folder}/receiver.db"}),
        ),
        Contender("receiver on PostgreSQL", True, _receiver, lambda _: _migrated(postgresql)),
        Contender("the vendor's FastAPI sample", False, _uvicorn("sample")),
        Contender(
            "naive: a commit per delivery",
            True,
            _uvicorn("naive"),
            lambda folder: contextlib.nullcontext({"NAIVE_DATABASE": f"{folder}/naive.db"}),
        ),
    ]
    if express is not None:
        script = express / "sample.js"
        found.append(Contender("the vendor's Express sample", False, lambda port, _: ["node", str(script), str(port)]))
    return found


@contextlib.contextmanager
def _migrated(postgresql: Server) -> Iterator[dict[str, str]]:
    """A new database with our tables."""
    with postgresql.migrated() as url:
        yield {"RECEIVER_DATABASE_URL": url}


@contextlib.contextmanager
def _express() -> Iterator[Path | None]:
    """A folder with Express and its sample; None where there is no Node."""
    if shutil.which("npm") is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "express@4"], cwd=folder, check=True)
        shutil.copy(PEERS / "sample.js", folder)
        yield Path(folder)


def measure(contender: Contender, *, count: int, batch: int) -> Run:
    """Start it, warm it up, put the load on it, end it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    target = f"http://127.0.0.1:{port}/hooks/reader"
    with tempfile.TemporaryDirectory() as name, contender.environment(Path(name)) as environment:
        given = os.environ | {"READER_WEBHOOK_SECRET": SECRET, "RECEIVER_LOG": "json"} | environment
        with Path(name, "log").open("wb") as log:
            server = subprocess.Popen(
                ["taskset", "-c", SERVER_CORE, *contender.command(port, Path(name))], env=given, stdout=log, stderr=log
            )
            try:
                _answering(target)
                _load(target, count=max(count // 10, 100), batch=batch * 2 + 1)
                return _counted(server.pid, target, count=count, batch=batch * 2)
            finally:
                server.terminate()
                server.wait(20)


def _counted(pid: int, target: str, *, count: int, batch: int) -> Run:
    before = 0.0

    def begun() -> None:
        nonlocal before
        before = _cpu_seconds(pid)

    load = _load(target, count=count, batch=batch, begun=begun)
    return Run(load, (_cpu_seconds(pid) - before) / count * 1e6)


def _load(target: str, *, count: int, batch: int, begun: Callable[[], None] = lambda: None) -> Load:
    command = ["taskset", "-c", LOAD_CORE, sys.executable, "-m", "tests.benchmarks.load", target, SECRET, str(count), str(batch)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sender:
        assert sender.stdin is not None
        assert sender.stdout is not None
        sender.stdout.readline()
        begun()
        sender.stdin.write("\n")
        sender.stdin.flush()
        load = Load(**json.loads(sender.stdout.readline()))
    if any(not status.startswith("2") for status in load.statuses):
        raise RuntimeError(f"not all deliveries were taken: {load.statuses}")
    return load


def _answering(target: str) -> None:
    until = _CLOCK.monotonic() + 20
    while True:
        try:
            httpx.get(target, timeout=5)
        except httpx.TransportError:
            if _CLOCK.monotonic() > until:
                raise
        else:
            return


def _cpu_seconds(pid: int) -> float:
    """Of a process and its threads, by the kernel's count."""
    fields = re.sub(r"^.*\) ", "", Path(f"/proc/{pid}/stat").read_text()).split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def table(field: Field) -> str:
    """Medians, as ratios to the first contender."""
    rows = ["| server | durable | deliveries/s | × bare | p50 ms | p99 ms | CPU µs |", "|---|---|---|---|---|---|---|"]
    floor = statistics.median(run.load.rate for run in field.runs[field.contenders[0].name])
    for contender in field.contenders:
        runs = field.runs[contender.name]
        rate = statistics.median(run.load.rate for run in runs)
        p50, p99 = (statistics.median(getattr(run.load, name) for run in runs) for name in ("p50", "p99"))
        cpu = statistics.median(run.cpu for run in runs)
        durable = "yes" if contender.durable else "no"
        rows.append(f"| {contender.name} | {durable} | {rate:,.0f} | {rate / floor:.2f} | {p50:.1f} | {p99:.1f} | {cpu:.0f} |")
    return "\n".join(rows)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--count", type=int, default=20_000, help="deliveries in each run")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--only", default="", help="contenders whose name contains this, and the floor")
    chosen = arguments.parse_args()
    os.sched_setaffinity(0, {int(LOAD_CORE)})  # and with us PostgreSQL, which is started from here
    with contextlib.ExitStack() as stack:
        postgresql = Server(durable=True)
        stack.callback(postgresql.stop)
        express = stack.enter_context(_express())
        taking_part = [c for c in contenders(postgresql, express) if chosen.only in c.name or c.name == "bare Starlette"]
        field = Field(taking_part, {contender.name: [] for contender in taking_part})
        turns = [(number, contender) for number in range(chosen.rounds) for contender in taking_part]
        for turn, (_, contender) in enumerate(track(turns, "measuring", console=Console(stderr=True))):
            field.runs[contender.name].append(measure(contender, count=chosen.count, batch=turn))
    print(table(field))


if __name__ == "__main__":
    main()
