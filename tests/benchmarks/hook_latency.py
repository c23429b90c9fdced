"""How long after a webhook its event is at the hook: a job of 100 results, read, stored, settled and told of.

`python -m tests.benchmarks.hook_latency`: a sandbox and a `receiver serve`, each a process of its own, on SQLite and on PostgreSQL.
What counts is what comes on top of Reader's own round trip, which is taken for each job just before its webhook.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import httpx

from receiver import sign
from receiver.clock import SystemClock
from tests.benchmarks.acks_while_hydrating import _free_port, _up, percentile
from tests.databases import Server

RESULTS = 100
_SECRET = "a-secret-for-the-benchmark"
_KEY = "a-key-for-the-benchmark"
_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Measured:
    """Milliseconds: from each webhook to its event at the hook, and of that what Reader's own answer takes."""

    told: list[float]
    trips: list[float]

    @property
    def ours(self) -> list[float]:
        """What we add."""
        return [told - trip for told, trip in zip(self.told, self.trips, strict=True)]


class _Hook(asyncio.Protocol):
    """A URL that answers 204, and says when it was asked."""

    def __init__(self) -> None:
        self.came = asyncio.Event()
        self.at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._left = b""

    def data_received(self, data: bytes) -> None:
        head, ended, body = (self._left + data).partition(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        if not ended or len(body) < length:
            self._left += data
            return
        self._left = b""
        self.at = _CLOCK.monotonic()
        self.came.set()
        self._transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")


async def measure(database: str, folder: Path, *, jobs: int) -> Measured:
    """One job after another, each from a webhook that comes when nothing else is going on."""
    hook = _Hook()
    listening = await asyncio.get_running_loop().create_server(lambda: hook, "127.0.0.1", 0)
    place = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
    told, trips = [], []
    limits = httpx.Limits(max_keepalive_connections=10)
    async with (
        _processes(folder, database, place) as (reader, url),
        httpx.AsyncClient(timeout=30, trust_env=False, headers={"x-api-key": _KEY}, limits=limits) as client,
    ):
        ids = []
        for number in range(jobs + 5):
            urls = [f"https://site-{number}.example/{page}" for page in range(RESULTS)]
            ids.append((await client.post(f"{reader}/v1/read", json={"urls": urls})).json()["data"]["id"])
        await asyncio.sleep(2)  # by then they have ended
        for job in ids:
            began = _CLOCK.monotonic()
            answer = (await client.get(f"{reader}/v1/jobs/{job}?skip=0&limit=100")).json()
            trips.append((_CLOCK.monotonic() - began) * 1000)
            assert answer["data"]["status"] == "completed", "give it more time"
            hook.came.clear()
            body = json.dumps({"event": "job.completed", "jobId": job}).encode()
            timestamp = str(int(_CLOCK.wall()))
            signature = sign(body, timestamp=timestamp, secret=_SECRET)
            headers = {"content-type": "application/json", "x-reader-timestamp": timestamp, "x-reader-signature": signature}
            began = _CLOCK.monotonic()
            assert (await client.post(f"{url}/hooks/reader", content=body, headers=headers)).status_code == 202
            async with asyncio.timeout(30):
                await hook.came.wait()
            told.append((hook.at - began) * 1000)
            await asyncio.sleep(0.05)  # for what comes after it
    listening.close()
    return Measured(told[5:], trips[5:])


@asynccontextmanager
async def _processes(folder: Path, database: str, hook: str) -> AsyncIterator[tuple[str, str]]:
    reader, port = _free_port(), _free_port()
    receiver = [sys.executable, "-m", "receiver"]
    environment = os.environ | {
        "READER_WEBHOOK_SECRET": _SECRET,
        "READER_API_KEY": _KEY,
        "READER_BASE_URL": f"http://127.0.0.1:{reader}",
        "READER_RPM": "100000",
        "RECEIVER_LISTEN": "false",  # the webhook alone tells of the end
        "RECEIVER_DATABASE_URL": database,
        "RECEIVER_HOOKS": json.dumps([{"name": "benchmark", "url": hook}]),
    }
    sandbox = [*receiver, "sandbox", "--port", str(reader), "--api-key", _KEY, "--rpm", "100000", "--job-seconds", "0.1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    with (
        subprocess.Popen(sandbox, **quiet) as emulated,  # type: ignore[call-overload]
        subprocess.Popen([*receiver, "serve", "--port", str(port)], env=environment, **quiet) as server,  # type: ignore[call-overload]
    ):
        try:
            await _up(f"http://127.0.0.1:{port}/readyz")
            await _up(f"http://127.0.0.1:{reader}/sandbox/faults")
            yield f"http://127.0.0.1:{reader}", f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            emulated.terminate()


@contextmanager
def _databases(folder: Path) -> Iterator[dict[str, str]]:
    server = Server(durable=True)
    try:
        with server.migrated() as url:
            yield {"SQLite": f"sqlite:///{folder}/receiver.db", "PostgreSQL": url}
    finally:
        server.stop()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--jobs", type=int, default=100)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder, _databases(Path(folder)) as databases:
        print(f"| webhook to hook, {RESULTS} results, ms | p50 | p99 | Reader's round trip, p50 | ours, p50 |")
        print("|---|---|---|---|---|")
        for name, url in databases.items():
            found = asyncio.run(measure(url, Path(folder), jobs=chosen.jobs))
            p50, p99 = percentile(found.told, 0.5), percentile(found.told, 0.99)
            print(f"| {name} | {p50:.1f} | {p99:.1f} | {percentile(found.trips, 0.5):.1f} | {percentile(found.ours, 0.5):.1f} |")


if __name__ == "__main__":
    main()
