"""How fast one large job is read, against the official client's `get_all_job_results`, in the same run.

`python -m tests.benchmarks.hydrating`: a sandbox without a quota that takes 100 ms for each answer; then, taking turns, the official
client reading all pages into memory, and a receiver reading and storing them durably. Each in a process of its own, for its memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import uvloop
from reader_py import ReaderClient

from receiver import Receiver, Settings
from receiver.clock import SystemClock
from receiver.sandbox import BackgroundSandbox

RPM = 100_000
_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Run:
    """One reading: seconds it took, MiB of memory it grew by at the most, results it got."""

    seconds: float
    grown: float
    results: int


def official(url: str, key: str, job: str) -> Run:
    with ReaderClient(key, base_url=url) as client:
        began, base = _CLOCK.monotonic(), _memory("VmRSS")
        results = len(client.get_all_job_results(job))
        return Run(_CLOCK.monotonic() - began, _memory("VmHWM") - base, results)


def ours(url: str, key: str, job: str) -> Run:
    async def read() -> Run:
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings(
                reader_webhook_secret="a-secret-for-the-benchmark",
                reader_api_key=key,
                reader_base_url=url,
                reader_rpm=RPM,
                receiver_listen=False,
                receiver_database_url=f"sqlite:///{folder}/receiver.db",
            )
            async with Receiver(settings) as receiver:
                began, base = _CLOCK.monotonic(), _memory("VmRSS")
                await receiver.track(job)
                await receiver.wait_for_job(job, timeout=600)
                seconds, grown = _CLOCK.monotonic() - began, _memory("VmHWM") - base
                return Run(seconds, grown, [1 async for _ in receiver.results(job)].count(1))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as `receiver serve` does
        return runner.run(read())


CONTENDERS = {"official": official, "ours": ours}


def _memory(field: str) -> float:
    """MiB, as the kernel counts them: `VmRSS` now, `VmHWM` at the most since the process began."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


def measure(*, pages: int, page_size: str, rounds: int) -> dict[str, list[Run]]:
    """Every contender, `rounds` times, taking turns."""
    runs: dict[str, list[Run]] = {name: [] for name in CONTENDERS}
    with BackgroundSandbox(seed=1, speed=1000, rpm=RPM, page_size=page_size, latency={"rate": 1, "value": 0.1}) as reader:
        with ReaderClient(reader.api_key, base_url=reader.url) as client:
            job = client.read(url="https://example.com/", max_pages=pages, max_depth=10).data.id
        reader.settled(600)
        for _ in range(rounds):
            for name, taken in runs.items():
                command = [sys.executable, "-m", __spec__.name, "--contender", name, reader.url, reader.api_key, job]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
                taken.append(Run(**json.loads(done.stdout.splitlines()[-1])))
    return runs


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pages", type=int, default=10_000)
    arguments.add_argument("--page-size", default="20KB")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments.add_argument("target", nargs="*", help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.contender:
        run = CONTENDERS[chosen.contender](*chosen.target)
        print(json.dumps({"seconds": run.seconds, "grown": run.grown, "results": run.results}))
        return
    found = measure(pages=chosen.pages, page_size=chosen.page_size, rounds=chosen.rounds)
    assert len({run.results for runs in found.values() for run in runs}) == 1
    middle = {
        name: (statistics.median(run.seconds for run in runs), statistics.median(run.grown for run in runs))
        for name, runs in found.items()
    }
    print("| who | seconds | MiB grown |\n|---|---|---|")
    for name, (seconds, grown) in middle.items():
        print(f"| {name} | {seconds:.1f} | {grown:.0f} |")
    (theirs, held), (mine, kept) = middle["official"], middle["ours"]
    print(
        f"\n{chosen.pages:,} results of {chosen.page_size}: {theirs / mine:.1f} × as fast, with {kept / held:.2f} of the memory"
    )


if __name__ == "__main__":
    main()
