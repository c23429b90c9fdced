"""Results are made on demand and forgotten: the sandbox stays small, whatever it serves."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sandbox_kit import urls

pytestmark = [pytest.mark.slow, pytest.mark.anyio]

MIB = 1 << 20


@contextmanager
def sandbox(*flags: str) -> Iterator[tuple[httpx.AsyncClient, int]]:
    """A client of a sandbox in a process of its own, and that process's id."""
    command = [sys.executable, "-m", "receiver", "sandbox", "--port", "0", "--json", "--api-key", "rdr_key", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = json.loads(process.stdout.readline())["url"]
            yield httpx.AsyncClient(base_url=url, headers={"x-api-key": "rdr_key"}, timeout=60, trust_env=False), process.pid
        finally:
            process.kill()


def peak(pid: int) -> int:
    """The most memory the process has ever held, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


async def drain(api: httpx.AsyncClient, path: str) -> tuple[int, bytes]:
    """Read an answer without keeping it: how much it was, and its last bytes."""
    size, last = 0, b""
    async with api.stream("GET", path) as answer:
        assert answer.status_code == 200
        async for piece in answer.aiter_raw():
            size += len(piece)
            last = (last + piece)[-2000:]
    return size, last


async def test_two_hundred_jobs_and_fifty_streams_fit_in_300_mib() -> None:
    with sandbox("--quiet", "--job-seconds", "8", "--queue-seconds", "3", "--rpm", "100000") as (api, pid):
        async with api:
            jobs = []
            for number in range(200):
                answer = await api.post(
                    "/v1/read", json={"urls": urls(1000, f"https://{number}.example/with/a/path/of/some/length")}
                )
                jobs.append(answer.json()["data"]["id"])
            streams = [f"/v1/jobs/{job}/stream" for job in jobs[:50]]
            ends = await asyncio.gather(*(drain(api, path) for path in streams))
            assert all(b'"completed":1000' in last and b"event: done" in last for _, last in ends)
            assert (await api.get("/v1/queue/status")).json()["data"]["activeJobs"] < 200
            size, _ = await drain(api, "/sandbox/ledger")
            assert size > 20_000_000
        assert peak(pid) < 300 * MIB


async def test_ten_thousand_results_of_200_kb_leave_no_trace() -> None:
    with sandbox("--quiet", "--page-size", "200KB", "--job-seconds", "0", "--rpm", "100000") as (api, pid):
        async with api:
            started = await api.post("/v1/read", json={"url": "https://example.com", "maxPages": 10_000})
            job = started.json()["data"]["id"]
            while b'"status":"completed"' not in (await api.get(f"/v1/jobs/{job}?limit=1")).content[:200]:
                pass
            await drain(api, f"/v1/jobs/{job}?skip=0&limit=100")
            before = peak(pid)
            total = 0
            for skip in range(0, 10_000, 100):
                size, _ = await drain(api, f"/v1/jobs/{job}?skip={skip}&limit=100")
                total += size
            assert total > 2_000_000_000
            assert peak(pid) - before < 20 * MIB
            await drain(api, "/sandbox/ledger")
            assert peak(pid) - before < 20 * MIB
