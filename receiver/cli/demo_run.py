"""The demo's run: a sandbox Reader and a receiver over real sockets, and an account of both that must agree."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import uvicorn

from receiver.app import Receiver
from receiver.clock import SystemClock
from receiver.errors import ReceiverError
from receiver.hooks.event import Event, Results
from receiver.runtime import Runtime
from receiver.sandbox import Happening, Sandbox
from receiver.settings import Settings
from receiver.store import budget
from receiver.views import JobView, listing, read_results

SECRET = "the-demo-signs-with-this"  # noqa: S105 - it guards nothing
_ACTIVE = 190
"""Jobs under way at once: a little below what the workspace's tier allows."""
_WITHIN = 600.0
_SPEED = 4
"""How much faster than Reader's its clock runs here: nobody need wait for the pauses between attempts that get lost anyway."""
_LONGEST = 7.0
"""Seconds a job takes at most; one of few pages is over sooner."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run."""

    jobs: int
    pages: int
    loss: float
    seed: int


@dataclass(slots=True)
class Report:
    """What came of it: the sandbox's account of what was, and ours of what was got."""

    plan: Plan
    webhooks: dict[str, int]
    forged: int
    refused: int
    recovered: int
    results: int
    events: int
    requests: dict[str, int]
    lower_bound: int
    seconds: float
    wrong: list[str]

    @property
    def ok(self) -> bool:
        """Every page of every job stored exactly once, one event a job, no forgery taken."""
        return not self.wrong

    def as_json(self) -> dict[str, Any]:
        """As `receiver demo --json` prints it."""
        return {
            "jobs": self.plan.jobs,
            "pages": self.plan.pages,
            "webhooks": self.webhooks,
            "forged": {"sent": self.forged, "refused": self.refused},
            "recovered": self.recovered,
            "results": self.results,
            "events": self.events,
            "requests": self.requests,
            "lower_bound": self.lower_bound,
            "seconds": round(self.seconds, 1),
            "ok": self.ok,
            **({"wrong": self.wrong} if self.wrong else {}),
        }


@dataclass(frozen=True, slots=True)
class Place:
    """Where what was run can be looked at while it is kept: the receiver's address, and its database's URL."""

    url: str
    database: str


class Onlooker(Protocol):
    """Is told what happens while it happens."""

    def happened(self, happening: Happening) -> None:
        """The sandbox did something."""
        ...

    def jobs(self, jobs: list[JobView], events: Counter[str], progress: dict[str, tuple[int, int]]) -> None:
        """How the receiver sees its jobs now, the downstream events so far by job, and how far each job truly is at Reader."""
        ...


Stay = Callable[[Report, Place], Awaitable[None]]


async def run(plan: Plan, onlooker: Onlooker, *, stay: Stay | None = None) -> Report:
    """Run it to the end, and keep everything running for as long as `stay` lasts.

    Raises `ReceiverError` if it does not end within ten minutes.
    """
    clock = SystemClock()
    began = clock.monotonic()
    with tempfile.TemporaryDirectory(prefix="receiver-demo-") as folder:
        async with Sandbox(seed=plan.seed, **conditions(plan)) as reader:
            reader.listen(onlooker.happened)
            listening = socket.create_server(("127.0.0.1", 0))
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as `serve` does
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            receiver = _receiver(reader, url, Path(folder))
            events: Counter[str] = Counter()

            @receiver.on("job.completed", "job.failed", "job.cancelled", name="demo")
            async def demo(event: Event, results: Results) -> None:
                async for _ in results:
                    pass
                events[event.job_id] += 1

            async with receiver.running() as runtime, _served(receiver, listening):
                if runtime.database.lock is not None:
                    runtime.database.lock.announce(url)  # commands that change something come here
                try:
                    async with asyncio.timeout(_WITHIN):
                        forged, refused = await _live(plan, receiver, runtime, reader, url, events, onlooker)
                except TimeoutError:
                    raise ReceiverError(f"the demo did not end within {_WITHIN:g} s: is this machine very busy?") from None
                report = await _account(plan, runtime, reader, events, forged, refused, clock.monotonic() - began)
                if stay is not None:
                    await stay(report, Place(url, receiver.settings.receiver_database_url))
                runtime.stopping.set()  # browsers that follow a page let go, so that the server can end
                return report


def conditions(plan: Plan) -> dict[str, Any]:
    """How Reader is in this run: its options and faults."""
    longest = min(_LONGEST, 0.5 + plan.pages / 20) * _SPEED
    return {
        "speed": _SPEED,
        "queue_seconds": 0.3 * _SPEED,
        "job_seconds": (longest * 3 / 7, longest),
        "page_errors": 0.02,
        "lose": plan.loss,
        "duplicate": 0.4,
        "reorder": 0.3,
    }


def _receiver(reader: Sandbox, url: str, folder: Path) -> Receiver:
    settings: dict[str, Any] = {
        "reader_webhook_secret": SECRET,
        "reader_api_key": reader.api_key,
        "reader_base_url": reader.url,
        "reader_rpm": "auto",
        "receiver_public_url": url,
        "receiver_database_url": f"sqlite:///{folder / 'receiver.db'}",
        "receiver_hooks": (),
        "receiver_listen": False,  # the worst case: no third signal either
    }
    return Receiver(Settings(**settings))


@asynccontextmanager
async def _served(receiver: Receiver, listening: socket.socket) -> AsyncIterator[None]:
    server = _Server(uvicorn.Config(receiver.app, lifespan="off", log_config=None, access_log=False, proxy_headers=False))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


class _Server(uvicorn.Server):
    """Leaves signals to the command it runs in."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _live(
    plan: Plan, receiver: Receiver, runtime: Runtime, reader: Sandbox, url: str, events: Counter[str], onlooker: Onlooker
) -> tuple[int, int]:
    submitting = asyncio.create_task(_submit(plan, receiver, runtime))
    forging = asyncio.create_task(_forge(url))
    while True:
        jobs, total = await runtime.database.read(lambda tx: listing(tx, status=None, skip=0, limit=plan.jobs))
        onlooker.jobs(jobs, events, reader.progress())
        if total == plan.jobs and all(job.state == "settled" for job in jobs) and len(events) == plan.jobs:
            break
        if submitting.done() and submitting.exception() is not None:
            break
        await asyncio.sleep(0.15)
    await submitting
    # The last copies of duplicated webhooks may still be on their way.
    await reader.settled()
    return await forging


async def _submit(plan: Plan, receiver: Receiver, runtime: Runtime) -> None:
    for number in range(plan.jobs):
        while (await runtime.database.read(lambda tx: listing(tx, status="watching", skip=0, limit=1)))[1] >= _ACTIVE:
            await asyncio.sleep(0.2)
        await receiver.submit([f"https://shop-{number + 1}.example/item/{page + 1}" for page in range(plan.pages)])


async def _forge(url: str) -> tuple[int, int]:
    """What somebody would try who knows the address but not the secret."""
    body = json.dumps({"event": "job.completed", "jobId": "job_of_somebody_else"}).encode()
    now = str(int(SystemClock().wall()))
    guessed = hashlib.sha256(body).hexdigest()
    empty = hashlib.sha256(b"").hexdigest()
    attempts: list[dict[str, str]] = [
        {},
        {"x-reader-timestamp": now},
        {"x-reader-timestamp": now, "x-reader-signature": f"sha256={guessed}"},
        {"x-reader-timestamp": now, "x-reader-signature": f"sha256={empty}"},
        {"x-reader-timestamp": now, "x-reader-signature": "sha256="},
        {"x-reader-timestamp": "9" * 20, "x-reader-signature": f"sha256={guessed}"},
    ]
    refused = 0
    async with httpx.AsyncClient(trust_env=False) as client:
        for headers in attempts:
            answer = await client.post(
                f"{url}/hooks/reader", content=body, headers={"content-type": "application/json"} | headers
            )
            refused += answer.status_code == 401
    return len(attempts), refused


async def _account(
    plan: Plan, runtime: Runtime, reader: Sandbox, events: Counter[str], forged: int, refused: int, seconds: float
) -> Report:
    truth = reader.ledger()
    jobs, _ = await runtime.database.read(lambda tx: listing(tx, status=None, skip=0, limit=plan.jobs))
    tallies = await runtime.database.read(budget.counts)
    wrong = [f"{job_id} is known to one side only" for job_id in truth["jobs"].keys() ^ {job.id for job in jobs}]
    for job in jobs:
        stored = Counter(
            [_identity(json.loads(result)) async for result in read_results(runtime.database, job.id, job.generation)]
        )
        true = Counter((row["url"], row["error"], row["sha256"]) for row in truth["jobs"].get(job.id, {"results": []})["results"])
        if stored != true:
            wrong.append(f"{job.id}: {sum((stored - true).values())} results too many, {sum((true - stored).values())} missing")
        if events[job.id] != 1:
            wrong.append(f"{job.id}: {events[job.id]} events")
    if refused != forged:
        wrong.append(f"{forged - refused} forged deliveries were not refused")
    faults = {job_id: [row for row in truth["deliveries"] if row["job"] == job_id] for job_id in truth["jobs"]}
    copies = sum(row["fault"] == "duplicate" for row in truth["deliveries"])
    lost = sum(row["status"] is None for row in truth["deliveries"])
    answers = Counter(row["status"] for row in truth["deliveries"])
    received = {"accepted": answers[202], "duplicates": answers[200]}
    requests = _requests(truth["requests"], tallies)
    return Report(
        plan=plan,
        webhooks={"sent": len(truth["deliveries"]) - copies, "lost": lost, "duplicated": copies, **received},
        forged=forged,
        refused=refused,
        recovered=sum(bool(rows) and all(row["status"] is None for row in rows) for rows in faults.values()),
        results=sum(job.results for job in jobs),
        events=sum(events.values()),
        requests=requests,
        lower_bound=sum(max(1, -(-len(job["results"]) // 100)) for job in truth["jobs"].values()),
        seconds=seconds,
        wrong=wrong,
    )


def _identity(result: dict[str, Any]) -> tuple[Any, Any, Any]:
    markdown = result.get("markdown")
    digest = None if markdown is None or result.get("error") else hashlib.sha256(markdown.encode()).hexdigest()
    return result["url"], result.get("error"), digest


def _requests(rows: list[dict[str, Any]], tallies: dict[str, int]) -> dict[str, int]:
    """Counted by Reader's side; only which looks hydrated is known to ours alone."""
    looks = sum(row["method"] == "GET" and row["path"].startswith("/v1/jobs/") for row in rows)
    submits = sum(row["path"] == "/v1/read" for row in rows)
    hydrating = tallies.get("hydrate", 0)
    return {
        "hydrate": hydrating,
        "probe": looks - hydrating,
        "submit": submits,
        "other": len(rows) - looks - submits,
        "total": len(rows),
    }
