"""How quick acknowledgements stay while a large job is read into the same SQLite file.

`python -m tests.benchmarks.acks_while_hydrating`: a sandbox and a `receiver serve`, each a process of its own; deliveries one after
another, first to an idle server, then while it hydrates. What counts is the ratio of the two, taken in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from receiver import sign
from receiver.clock import SystemClock

SECRET = "a-secret-for-the-benchmark"
_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Measured:
    """Latencies in milliseconds; `grown`: MiB of memory above idle, at the most."""

    results: int
    seconds: float
    grown: float
    idle: list[float]
    busy: list[float]

    @property
    def ratio(self) -> float:
        return percentile(self.busy, 0.99) / percentile(self.idle, 0.99)


def percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]


async def measure(*, pages: int, page_size: str, idle: int = 400) -> Measured:
    """Hydrate one job of `pages` results of `page_size` each."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            _processes(Path(folder), page_size) as (server, url),
            httpx.AsyncClient(timeout=30.0, trust_env=False) as client,
        ):
            numbers = itertools.count()
            await _deliveries(client, url, numbers, _times(idle // 2))  # warm
            before = await _deliveries(client, url, numbers, _times(idle))
            base, peak = server.memory_info().rss, 0
            crawl = {"urls": ["https://example.com/"], "crawl": True, "options": {"maxPages": pages, "maxDepth": 10}}
            told = (await client.post(f"{url}/internal/commands/submit", json=crawl)).json()
            began, job = _CLOCK.monotonic(), told["data"]["id"]
            total: int | None = None

            async def watch() -> None:
                nonlocal peak, total
                async with httpx.AsyncClient(timeout=30.0, trust_env=False) as other:
                    while total is None:
                        peak = max(peak, server.memory_info().rss)
                        page = (await other.get(f"{url}/v1/jobs/{job}?limit=1")).json()
                        if page["data"]["receiver"]["state"] == "settled":
                            total = page["pagination"]["total"]
                        await asyncio.sleep(0.2)

            async with asyncio.timeout(600):
                watching = asyncio.create_task(watch())
                during = await _deliveries(client, url, numbers, lambda: not watching.done())
                await watching
            assert total is not None
            return Measured(total, _CLOCK.monotonic() - began, (peak - base) / 2**20, before, during)


def _times(count: int) -> Callable[[], bool]:
    left = iter(range(count))
    return lambda: next(left, None) is not None


async def _deliveries(client: httpx.AsyncClient, url: str, numbers: Any, more: Callable[[], bool]) -> list[float]:
    taken: list[float] = []
    while more():
        body = json.dumps({"event": "job.page", "jobId": "job_of_the_benchmark", "n": next(numbers)}).encode()
        timestamp = str(int(_CLOCK.wall()))
        signature = sign(body, timestamp=timestamp, secret=SECRET)
        headers = {"content-type": "application/json", "x-reader-timestamp": timestamp, "x-reader-signature": signature}
        began = _CLOCK.monotonic()
        answer = await client.post(f"{url}/hooks/reader", content=body, headers=headers)
        taken.append((_CLOCK.monotonic() - began) * 1000)
        assert answer.status_code == 202, answer.text
        await asyncio.sleep(0.01)  # a rate that an idle server answers without queueing
    return taken


@asynccontextmanager
async def _processes(folder: Path, page_size: str) -> AsyncIterator[tuple[psutil.Process, str]]:
    reader, port = _free_port(), _free_port()
    receiver = [sys.executable, "-m", "receiver"]
    environment = os.environ | {
        "READER_WEBHOOK_SECRET": SECRET,
        "READER_API_KEY": "a-key-for-the-benchmark",
        "READER_BASE_URL": f"http://127.0.0.1:{reader}",
        "RECEIVER_DATABASE_URL": f"sqlite:///{folder / 'receiver.db'}",
    }
    sandbox = [
        "sandbox",
        "--port",
        str(reader),
        "--api-key",
        "a-key-for-the-benchmark",
        "--page-size",
        page_size,
        "--job-seconds",
        "1",
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with (
        subprocess.Popen([*receiver, *sandbox], **quiet) as emulated,  # type: ignore[call-overload]
        subprocess.Popen([*receiver, "serve", "--port", str(port)], env=environment, **quiet) as server,  # type: ignore[call-overload]
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            await _up(f"{url}/readyz")
            await _up(f"http://127.0.0.1:{reader}/sandbox/faults")
            yield psutil.Process(server.pid), url
        finally:
            server.terminate()
            emulated.terminate()


async def _up(url: str) -> None:
    async with asyncio.timeout(30), httpx.AsyncClient(trust_env=False) as client:
        while True:
            try:
                if (await client.get(url)).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.1)


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pages", type=int, default=10_000)
    arguments.add_argument("--page-size", default="100KB")
    chosen = arguments.parse_args()
    found = asyncio.run(measure(pages=chosen.pages, page_size=chosen.page_size))
    print("| acknowledgements | p50 ms | p99 ms |\n|---|---|---|")
    for name, values in (("idle", found.idle), ("while hydrating", found.busy)):
        print(f"| {name} | {percentile(values, 0.5):.1f} | {percentile(values, 0.99):.1f} |")
    print(
        f"\n{found.results:,} results of {chosen.page_size} in {found.seconds:.0f} s, "
        f"{found.grown:.0f} MiB above idle, p99 × {found.ratio:.1f}"
    )


if __name__ == "__main__":
    main()
