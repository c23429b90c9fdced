"""All the parts of one sandbox, wired together. The HTTP side (app.py, gate.py) asks it."""

from __future__ import annotations

import asyncio
from typing import Any

from receiver.clock import Clock
from receiver.sandbox.agenda import Agenda
from receiver.sandbox.courier import Courier
from receiver.sandbox.director import Director
from receiver.sandbox.draws import token
from receiver.sandbox.faults import Faults
from receiver.sandbox.fetching import FetchRound, Reading
from receiver.sandbox.jobs import Job
from receiver.sandbox.ledger import Ledger, job_row, true_results
from receiver.sandbox.options import Options
from receiver.sandbox.state import Workspace


class Engine:
    """Made inside a running loop. `url` is set once the socket is bound."""

    def __init__(self, options: Options, *, api_key: str | None, secret: str | None, faults: Faults, clock: Clock) -> None:
        self.options = options
        self.clock = clock
        self.url = ""
        self.api_key = api_key or "rdr_sandbox_" + token(options.seed, 24, "api key")
        self.secret = secret or "whsec_sandbox_" + token(options.seed, 24, "secret")
        self.faults = faults
        self.closing = asyncio.Event()
        self.ledger = Ledger(options.ledger_rows)
        self.agenda = Agenda()
        self.workspace = Workspace(options)
        self.courier = Courier(options, faults, self.ledger, self.agenda, clock)
        self.director = Director(self.workspace, self.courier, self.ledger, self.agenda, clock)
        self.reading: Reading | None = None
        if options.fetch != "off":
            self.reading = Reading(options.fetch, clock, self.director.advanced)
        self.reads: dict[str, int] = {}
        """How often a job was read while a fault counted it."""
        self.transports: dict[tuple[str, int], asyncio.Transport] = {}
        """The connections there are, by the peer's address: to reset one for real."""

    @property
    def key(self) -> str:
        """The key that is accepted now."""
        return self.faults.choice("rotate_key") or self.api_key

    @property
    def trap(self) -> str:
        """Another origin for the same socket: who follows a link there with the key tells it a stranger."""
        return self.url.replace("127.0.0.1", "localhost") + "/sandbox/trap"

    def now(self) -> float:
        """Unix seconds that never jump."""
        return self.clock.steady()

    def settled(self) -> bool:
        """Whether every job has ended and every delivery is through or given up."""
        return not self.courier.unsettled and not self.director.open

    def queued(self, job: Job) -> None:
        """A job was queued, for the first time or again: see it through."""
        if self.reading is not None:
            run = FetchRound(job.round)
            job.rounds[-1] = run
            self.reading.start(job, run)
        self.director.queued(job)

    def requeue(self, job: Job) -> None:
        """What the fault of that name does: what failed, or one page drawn, is queued again unasked."""
        now = self.now()
        pages = sorted(job.round.errored(now) + job.round.never(now))
        self.workspace.requeue(job, pages or [0], now)
        self.queued(job)

    def report(self, since: float = 0) -> dict[str, Any]:
        """The ledger."""
        now = self.now()
        jobs = {job.id: job_row(job, now) | {"results": list(true_results(job, now))} for job in self.workspace.jobs.values()}
        return {"jobs": jobs, **self.ledger.lists(since)}

    async def close(self) -> None:
        """Drop what is due and under way."""
        self.agenda.close()
        await self.courier.close()
        if self.reading is not None:
            await self.reading.close()

    async def closed_within(self, seconds: float) -> bool:
        """Wait so long, or until the sandbox closes; whether it does."""
        if self.closing.is_set():
            return True
        try:
            async with asyncio.timeout(seconds):
                await self.closing.wait()
        except TimeoutError:
            return False
        return True
