"""What the tests of reconciliation share: a receiver and the sandbox Reader on real sockets, and the ledger to judge by."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import parse_qs

import httpx
import pytest
import uvicorn
from sqlalchemy import select

from receiver import Receiver
from receiver.clock import SystemClock
from receiver.errors import ReceiverError
from receiver.hooks.event import Event, Results
from receiver.runtime import Runtime
from receiver.sandbox import Sandbox
from receiver.sandbox.ledger import job_row, true_results
from receiver.sandbox.pulse import Pulse
from receiver.sandbox.signing import signature
from receiver.settings import Settings
from receiver.store.engine import Database
from receiver.store.tables import jobs as jobs_table
from receiver.store.tables import results as results_table
from receiver.views import JobView

SECRET: Final = "whsec-of-the-reconciling-tests"
_ENDS: Final = ("job.completed", "job.failed", "job.cancelled")
_MOST_TICKS: Final = 2000

Rows = Counter[tuple[str, str | None, str | None]]
"""Results as (url, error, sha256 of the markdown), and how often each is there."""


class Hourglass(SystemClock):
    """The machine's time, running `pace` times as fast, that a test can turn on; who sleeps until then wakes up."""

    def __init__(self, pace: float = 1.0) -> None:
        super().__init__()
        self._pace = pace
        self._began = super().steady()
        self._turned = 0.0
        self._turns = Pulse()

    def steady(self) -> float:
        return self._began + (super().steady() - self._began) * self._pace + self._turned

    def wall(self) -> float:
        return self.steady()

    def monotonic(self) -> float:
        return self.steady()

    async def sleep(self, seconds: float) -> None:
        until = self.steady() + seconds
        while (left := until - self.steady()) > 0:
            try:
                async with asyncio.timeout(left / self._pace):
                    await self._turns.next()
            except TimeoutError:
                continue

    def turn(self, seconds: float) -> None:
        """So much time has passed."""
        self._turned += max(seconds, 0.0)
        self._turns.beat()


@dataclass(frozen=True, slots=True)
class Look:
    """One GET of a job, as the sandbox saw it."""

    at: float
    skip: int
    limit: int
    status: int | None
    fault: str | None


@dataclass(frozen=True, slots=True)
class Told:
    """A downstream event as a handler got it, and the results it could read."""

    event: Event
    rows: Rows


@dataclass
class World:
    """A sandbox Reader, and a receiver beside it."""

    reader: Sandbox
    clock: Hourglass
    settings: dict[str, Any]
    api: httpx.AsyncClient
    """Somebody else in the same workspace."""
    listening: tuple[str, int] | None
    told: list[Told] = field(default_factory=list)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _news: Pulse = field(default_factory=Pulse)
    _receiver: Receiver | None = None
    _runtime: Runtime | None = None
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    # The receiver's life

    async def start(self, *, loops: bool = True, **settings: Any) -> None:
        """Start the receiver; `settings` are kept for later starts."""
        self.settings |= settings
        receiver = Receiver(Settings(**self.settings), clock=self.clock)

        @receiver.on(*_ENDS, name="told")
        async def told(event: Event, results: Results) -> None:
            rows = Counter([_identity(result) async for result in results])
            self.told.append(Told(event, rows))
            self._news.beat()

        self._runtime = await self._stack.enter_async_context(receiver.running(loops=loops))
        self._receiver = receiver
        if self.listening is not None:
            await self._stack.enter_async_context(_served(receiver, self.listening))

    async def stop(self) -> None:
        """Stop the receiver. Its database stays."""
        stack, self._stack = self._stack, AsyncExitStack()
        self._receiver = self._runtime = None
        await stack.aclose()

    @property
    def receiver(self) -> Receiver:
        assert self._receiver is not None
        return self._receiver

    @property
    def runtime(self) -> Runtime:
        assert self._runtime is not None
        return self._runtime

    # Jobs

    async def elsewhere(self, count: int, *, query: str = "", **more: Any) -> str:
        """Somebody else starts a batch job; nobody tells the receiver. `query`: of its first URL."""
        answer = await self.api.post("/v1/read", json={"urls": self.urls(count, query), **more})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["data"]["id"])

    def urls(self, count: int, query: str = "") -> list[str]:
        """So many URLs that no other job has; `query` on the first."""
        site = f"https://site-{next(self._numbers)}.example"
        return [f"{site}/{number}{query if number == 0 else ''}" for number in range(count)]

    async def cancel(self, job: str, *, after: int | None = None) -> None:
        """Somebody cancels a job; `after`: when exactly so many results are gathered, to which the time is turned."""
        if after is not None:
            run = self.reader.engine.workspace.jobs[job].round
            then = run.finish(after - 1) if after else run.started_at
            self.clock.turn(then - self.clock.steady() + 0.01)
        (await self.api.delete(f"/v1/jobs/{job}")).raise_for_status()

    def doom(self, job: str, after: int) -> None:
        """The job will fail when so many results are gathered."""
        self.reader.engine.workspace.jobs[job].round.fatal = after

    async def deliver(self, job: str, event: str = "job.completed", *, times: int = 1) -> None:
        """So many more webhooks for a job, no two alike, rightly signed by the sandbox's own lines; all are accepted."""
        assert self.listening is not None
        reader, writer = await asyncio.open_connection(*self.listening)
        try:
            for _ in range(times):
                body = json.dumps({"event": event, "jobId": job, "nonce": next(self._numbers)}).encode()
                timestamp = str(int(self.clock.wall()))
                head = (
                    f"POST /hooks/reader HTTP/1.1\r\nhost: {self.listening[0]}\r\ncontent-length: {len(body)}\r\n"
                    f"content-type: application/json\r\nx-reader-event: {event}\r\nx-reader-timestamp: {timestamp}\r\n"
                    f"x-reader-signature: {signature(SECRET, timestamp, body)}\r\n\r\n"
                )
                writer.write(head.encode() + body)
                answer = await reader.readuntil(b"}")
                assert answer.startswith(b"HTTP/1.1 202 "), answer
        finally:
            writer.close()
            await writer.wait_closed()

    async def retry(self, job: str) -> None:
        (await self.api.post(f"/v1/jobs/{job}/retry")).raise_for_status()

    # Time

    def turn(self, seconds: float) -> None:
        """So much time passes; the loops look at once whether that made anything due."""
        self.clock.turn(seconds)
        for name in ("reconciler", "submitter", "dispatcher"):
            self.runtime.wake(name)

    async def rush(self, done: Callable[[], Any], *, until: float | None = None) -> None:
        """Tick, and turn the clock to what is due next, until `done` (or, without a condition of its own, the time `until`)."""
        for _ in range(_MOST_TICKS):
            await self.runtime.tick(60 * 60)
            if done():
                return
            services = (self.runtime.reconciler, self.runtime.submitter, self.runtime.dispatcher)
            due = [wait for service in services if service is not None and (wait := await service.next_due()) is not None]
            wait = min(due, default=None)
            if until is not None and (wait is None or self.clock.steady() + wait > until):
                self.clock.turn(until - self.clock.steady())
                # A thread that was writing meanwhile looks as if it had stood still: the next delivery would be turned away.
                await self.runtime.database.write(lambda _: None)
                return
            assert wait is not None, f"nothing will ever be due; {self.looks()}"
            self.clock.turn(wait + 0.001)
        raise AssertionError(f"no end after {_MOST_TICKS} ticks")

    async def event(self, job: str, count: int = 1, *, within: float = 20.0) -> Told:
        """Wait for the job's `count`-th event."""
        async with asyncio.timeout(within):
            while len(self.told_of(job)) < count:
                await self._news.next()
        return self.told_of(job)[count - 1]

    async def parked(self, job: str, *, within: float = 20.0) -> JobView:
        """Wait until the job is parked."""
        with pytest.raises(ReceiverError, match="parked"):
            await self.receiver.wait_for_job(job, timeout=within)
        return await self.receiver.job(job)

    # What the ledger says

    def truth(self, job: str) -> dict[str, Any]:
        """The job's row."""
        now, true = self.reader.engine.now(), self.reader.engine.workspace.jobs[job]
        return job_row(true, now) | {"results": list(true_results(true, now))}

    def true_rows(self, job: str) -> Rows:
        """What a reader that misses nothing has of the job now."""
        return Counter((row["url"], row["error"], row["sha256"]) for row in self.truth(job)["results"])

    def requests(self, since: float = 0) -> list[dict[str, Any]]:
        """All requests with the receiver's key, none of which the sandbox's own endpoints answered."""
        return [row for row in self.reader.engine.ledger.lists(since)["requests"] if not row["path"].startswith("/sandbox")]

    def looks(self, job: str = "", since: float = 0) -> list[Look]:
        """Every GET of the job (of any job), oldest first."""
        return [
            Look(row["at"], int(query["skip"][0]), int(query["limit"][0]), row["status"], row["fault"])
            for row in self.requests(since)
            if row["method"] == "GET" and row["path"].startswith(f"/v1/jobs/{job}")
            for query in [parse_qs(row["query"])]
        ]

    def deliveries(self, job: str) -> list[dict[str, Any]]:
        return [row for row in self.reader.engine.ledger.lists(0)["deliveries"] if row["job"] == job]

    # What the receiver has

    def told_of(self, job: str) -> list[Told]:
        return [told for told in self.told if told.event.job_id == job]

    async def rows(self, job: str, generation: int | None = None) -> Rows:
        """What is stored, read as a program reads it."""
        return Counter([_identity(result) async for result in self.receiver.results(job, generation=generation)])

    async def whole(self, job: str) -> None:
        """Assert that what is stored is the ledger's truth, the status too."""
        assert await self.rows(job) == self.true_rows(job)
        assert (await self.receiver.job(job)).status == self.truth(job)["status"]

    async def pages_stored(self, job: str) -> int:
        """How many results of the newest generation are stored so far."""
        statement = select(results_table.c.position).join(
            jobs_table, (jobs_table.c.id == results_table.c.job_id) & (jobs_table.c.generation == results_table.c.generation)
        )
        found = await self.runtime.database.read(lambda tx: tx.execute(statement.where(jobs_table.c.id == job)).all())
        return len(found)


@contextmanager
def _place(folder: Path) -> Iterator[Path]:
    """Where the database is: in memory if there is such a place, for what a disk promises is not tested here."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield folder
        return
    with TemporaryDirectory(prefix="receiver-test-", dir=memory) as place:
        yield Path(place)


@asynccontextmanager
async def world(
    folder: Path,
    *,
    webhooks: bool = True,
    loops: bool = True,
    clock: Hourglass | None = None,
    shared_clock: bool = True,
    settings: dict[str, Any] | None = None,
    events: Iterable[str] = ("job.completed", "job.failed"),
    **sandbox: Any,
) -> AsyncIterator[World]:
    """A sandbox with these options and switches, a webhook registered (if `webhooks`), a receiver started."""
    clock = clock or Hourglass()
    async with AsyncExitStack() as stack:
        database = stack.enter_context(_place(folder)) / "receiver.db"
        database.write_bytes(_migrated())
        reader = await stack.enter_async_context(Sandbox(clock=clock if shared_clock else None, **sandbox))
        api = httpx.AsyncClient(
            base_url=reader.url, headers={"x-api-key": reader.api_key}, trust_env=False, verify=False, timeout=20
        )
        await stack.enter_async_context(api)
        listening = None
        if webhooks:
            with socket.create_server(("127.0.0.1", 0)) as free:
                listening = free.getsockname()[:2]
            reader.register(f"http://127.0.0.1:{listening[1]}/hooks/reader", *events, secret=SECRET)
        ours = {
            "reader_webhook_secret": SECRET,
            "reader_api_key": reader.api_key,
            "reader_base_url": reader.url,
            "reader_rpm": 1000,
            "receiver_rpm_share": 1.0,
            "receiver_database_url": f"sqlite:///{database}",
            "receiver_hooks": (),
            "receiver_listen": False,
        }
        made = World(reader, clock, ours | (settings or {}), api, listening)
        stack.push_async_callback(made.stop)
        await made.start(loops=loops)
        yield made


def busiest(rows: Iterable[dict[str, Any]], window: float = 60.0) -> int:
    """The most of these requests in any window of so many seconds."""
    times = sorted(row["at"] for row in rows)
    return max((sum(at <= later < at + window for later in times) for at in times), default=0)


def least(count: int) -> int:
    """The fewest requests that so many results can be read with."""
    return max(1, -(-count // 100))


def _identity(result: dict[str, Any]) -> tuple[str, str | None, str | None]:
    markdown = result.get("markdown")
    digest = None if markdown is None else hashlib.sha256(markdown.encode("utf-8", "surrogatepass")).hexdigest()
    return result["url"], result.get("error"), digest


@cache
def _migrated() -> bytes:
    """An empty database: cheaper to copy than to migrate for each test."""
    with TemporaryDirectory() as folder:
        Database.open(f"sqlite:///{folder}/receiver.db", SystemClock()).close()
        return Path(folder, "receiver.db").read_bytes()


@asynccontextmanager
async def _served(receiver: Receiver, address: tuple[str, int]) -> AsyncIterator[None]:
    with socket.create_server(address) as listening:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = _Server(uvicorn.Config(receiver.app, lifespan="off", log_config=None, access_log=False, proxy_headers=False))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield
        finally:
            server.should_exit = True
            await serving


class _Server(uvicorn.Server):
    """Leaves signals to the process it runs in."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
