"""Each fault of the sandbox against two receivers: the vendor's sample, and ours. One row per fault: what each got of the same story.

`pytest -m 'slow or not slow' -s tests/system/test_every_fault.py` prints the table.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import uvicorn

from receiver import Event, Receiver, Results, Settings
from receiver.packing import unpack
from receiver.sandbox import SWITCHES, Sandbox
from receiver.views import find, read_results
from tests.system.vendor_sample import VendorSample

pytestmark = pytest.mark.anyio

SECRET = "the-secret-of-both-of-them"
JOBS, PAGES = 5, 120
READS = "GET /v1/jobs"


@dataclass(frozen=True)
class Row:
    """A fault to run. `sample_loses`: whether the vendor's sample must be seen to lose something under it.

    `may_doubt`: ours may end with results it marks as unverified, where nobody could tell; never with wrong ones it vouches for.
    """

    name: str
    settings: dict[str, Any]
    sample_loses: bool = False
    may_doubt: bool = False
    pages: int = PAGES
    within: float = 60.0


def on_reads(rate: float, **more: Any) -> dict[str, Any]:
    """A fault of the API that strikes only who reads jobs: submitting them is not what is compared here."""
    return {"rate": rate, "match": READS, **more}


FAULTS = [
    Row("lose", {"lose": 0.6}, sample_loses=True),
    Row("lose every webhook", {"lose": 1}, sample_loses=True),
    Row("lose_attempts", {"lose_attempts": 0.7}, sample_loses=True),
    Row("duplicate", {"duplicate": {"rate": 1, "value": 3}}),
    Row("reorder", {"reorder": 1}),
    Row("delay", {"delay": 3}),
    Row("early", {"early": {"rate": 1, "value": 1}}, sample_loses=True),
    Row("wrong_secret", {"wrong_secret": 1}, sample_loses=True),
    Row("unsigned", {"unsigned": 1}, sample_loses=True),
    Row("stale_timestamp", {"stale_timestamp": 1}, sample_loses=True),
    Row("future_timestamp", {"future_timestamp": 1}),
    Row("corrupt_body", {"corrupt_body": 1}, sample_loses=True),
    Row("odd_body", {"odd_body": 1}, sample_loses=True),
    Row("unknown_event", {"unknown_event": 1}),
    Row("ghost", {"ghost": 1}),
    Row("latency", {"latency": {"value": 0.3, "match": READS}}),
    Row("rate_limit", {"rate_limit": on_reads(0.4, value=1)}),
    Row("rate_limit_bare", {"rate_limit_bare": on_reads(0.4)}),
    Row("rate_limit_date", {"rate_limit_date": on_reads(0.4)}),
    Row("rate_limit_odd", {"rate_limit_odd": on_reads(0.4, value="soon")}),
    Row("server_error", {"server_error": on_reads(0.4)}),
    Row("error_burst", {"error_burst": on_reads(1, times=JOBS, value=12)}, sample_loses=True),
    Row("unauthorized", {"unauthorized": on_reads(1, times=1)}, within=100),  # it stops asking for a minute, and rightly so
    Row("redirect", {"redirect": on_reads(0.4)}),
    Row("foreign_next", {"foreign_next": 1}),
    Row("html", {"html": on_reads(0.4)}),
    Row("false_success", {"false_success": on_reads(0.4)}),
    Row("truncate", {"truncate": on_reads(0.4)}),
    Row("cut", {"cut": on_reads(0.4)}),
    Row("reset", {"reset": on_reads(0.4)}),
    Row("drip", {"drip": on_reads(0.3, value=2)}),
    Row("gzip_bomb", {"gzip_bomb": on_reads(0.3, value=128)}),
    Row("unborn", {"unborn": {"rate": 1, "value": 1.5}}),
    Row("requeue", {"requeue": {"rate": 1, "times": JOBS}, "page_errors": 0.1}),
    Row("has_more_forever", {"has_more_forever": {"rate": 1, "times": JOBS}}),
    Row("has_more_early", {"has_more_early": 0.5}, sample_loses=True),
    Row("total_drift", {"total_drift": 0.3}),
    Row("shuffle", {"shuffle": 0.3}, sample_loses=True, may_doubt=True),
    Row("double", {"double": 0.3}, sample_loses=True),
]
# What a reading only shows under: jobs that fail, attempts that get lost.
UNDER: dict[str, dict[str, Any]] = {
    "ended_total": {"job_failures": 0.5},
    "ended_at": {"job_failures": 0.5},
    "attempts": {"lose_attempts": 0.7},
    "delivery_id": {"lose_attempts": 0.4},
    "signing": {"lose_attempts": 0.4},
}
READINGS = [
    Row(f"{name}={value}", {name: value, **UNDER.get(name, {})}, pages=90 if name == "order" else PAGES)
    for name in SWITCHES
    if SWITCHES[name].group == "choices" and name not in {"patch_secret", "replay_stream"}  # not about receiving
    for value in SWITCHES[name].values[1:]
]
QUICK = {"has_more_early"}
ROWS = [pytest.param(row, id=row.name, marks=[] if row.name in QUICK else [pytest.mark.slow]) for row in FAULTS + READINGS]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The sample's handler fails under many faults and says so at length; what is left is the table."""
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "disabled", True)
    with structlog.testing.capture_logs():
        yield


@pytest.mark.parametrize("row", ROWS)
async def test_ours_loses_nothing_whatever_the_sample_gets(row: Row, tmp_path: Path) -> None:
    sample, (ours, doubted) = await asyncio.gather(with_the_sample(row), with_ours(row, tmp_path))
    doubts = f" ({doubted} marked unverified)" if doubted else ""
    print(f"{row.name:<24} sample {sample}/{JOBS}   ours {ours}/{JOBS}{doubts}")  # noqa: T201 - the table
    assert ours + (doubted if row.may_doubt else 0) == JOBS
    assert (sample < JOBS) or not row.sample_loses


def sandbox(row: Row) -> Sandbox:
    return Sandbox(seed=11, job_seconds="0.5..2", webhook_secret=SECRET, **row.settings)


def identity(result: dict[str, Any]) -> tuple[Any, Any, Any]:
    markdown = result.get("markdown")
    return result["url"], result.get("error"), None if markdown is None else hashlib.sha256(markdown.encode()).hexdigest()


def truth(reader: Sandbox, job: str) -> Counter[tuple[Any, Any, Any]]:
    return Counter((row["url"], row["error"], row["sha256"]) for row in reader.ledger()["jobs"][job]["results"])


def urls(row: Row, number: int) -> list[str]:
    return [f"https://shop-{number}.example/item/{page}" for page in range(row.pages)]


async def with_the_sample(row: Row) -> int:
    """How many jobs the vendor's sample has whole, once no webhook is to come any more."""
    async with sandbox(row) as reader:
        sample = VendorSample(reader.url, reader.api_key, SECRET)
        async with served(sample.app) as url, httpx.AsyncClient(trust_env=False, verify=False) as client:
            reader.register(f"{url}/hooks/reader")
            for number in range(JOBS):
                headers = {"x-api-key": reader.api_key}
                await client.post(f"{reader.url}/v1/read", json={"urls": urls(row, number)}, headers=headers)
            await reader.settled()
        await sample.close()
        stored = {job: Counter(identity(page.model_dump()) for page in pages) for job, pages in sample.stored.items()}
        return sum(stored.get(job) == truth(reader, job) for job in reader.ledger()["jobs"])


async def with_ours(row: Row, folder: Path) -> tuple[int, int]:
    """How many jobs ours has whole, and how many not but marked as unverified. One event for each generation it settled."""
    async with sandbox(row) as reader:
        listening = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        settings: dict[str, Any] = {
            "reader_webhook_secret": SECRET,
            "reader_api_key": reader.api_key,
            "reader_base_url": reader.url,
            "receiver_public_url": url,
            "receiver_database_url": f"sqlite:///{folder / 'receiver.db'}",
        }
        receiver = Receiver(Settings(**settings))
        events: Counter[tuple[str, int]] = Counter()

        @receiver.on("job.completed", "job.failed", "job.cancelled")
        async def count(event: Event, results: Results) -> None:
            events[event.job_id, event.generation] += 1

        async with receiver.running() as runtime, served(receiver.app, listening):
            jobs = [(await receiver.submit(urls(row, number))).id for number in range(JOBS)]

            async def whole(job: str) -> bool:
                shown = await runtime.database.read(lambda tx: find(tx, job))
                if shown.state != "settled" or events[job, shown.generation] != 1:
                    return False
                slices = read_results(runtime.database, job, shown.generation)
                return Counter([identity(unpack(each)) async for each in slices]) == truth(reader, job)

            async def doubted(job: str) -> bool:
                shown = await runtime.database.read(lambda tx: find(tx, job))
                return shown.state == "settled" and shown.verified is False and not await whole(job)

            async def over() -> bool:
                return all([await whole(job) or (row.may_doubt and await doubted(job)) for job in jobs])

            await patiently(over, row.within)
            await reader.settled()
            got = sum([await whole(job) for job in jobs]), sum([await doubted(job) for job in jobs])
    assert set(events.values()) == {1}
    return got


async def patiently(condition: Callable[[], Awaitable[bool]], seconds: float) -> None:
    """Until it holds, or long enough: what is then missing is lost. The receiver has no bell to ring for a test."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.1)


@asynccontextmanager
async def served(app: Any, listening: socket.socket | None = None) -> AsyncIterator[str]:
    listening = listening or socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, proxy_headers=False)
    server = Embedded(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield url
    finally:
        server.should_exit = True
        await serving


class Embedded(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
