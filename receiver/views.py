"""What readers see of a job: Reader's own shape, answered from the local store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec

from receiver.core.lifecycle import State
from receiver.errors import UnknownJobError
from receiver.packing import unpack
from receiver.reader.shapes import PROCESSING, TERMINAL
from receiver.store import jobs, results, settlement
from receiver.store.engine import Database
from receiver.store.transaction import Transaction

_BATCH_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as it stands here. Terminal only once its results are stored and told: until then an ended job shows as processing."""

    id: str
    status: str
    state: str
    """`watching`, `hydrating`, `settled` or `parked`."""
    completed: int
    total: int
    generation: int
    """The settled generation whose results are shown; 0: none yet."""
    results: int
    failed_urls: int
    discovered_by: str | None
    told: bool
    """Whether a webhook told of its newest end, sooner or later."""
    verified: bool | None
    requests: int
    ended_at: float | None
    noticed_at: float | None
    settled_at: float | None
    pruned_at: float | None
    """When retention took its results away; None: they are here, or there were none."""
    tracked_at: float
    trouble: str | None
    held: bool
    """Its end is not told yet: the failed URLs are to be retried first, or are being retried."""
    document: dict[str, Any]
    """The job as Reader showed it, without its results."""

    @property
    def ended(self) -> bool:
        """Whether its end is stored and told."""
        return self.state == "settled" and not self.held


def view(tx: Transaction, job: jobs.Job) -> JobView:
    """Read what is needed to show `job`."""
    outcome = settlement.get_outcome(tx, job.id, job.settled_generation) if job.settled_generation else None
    settled = job.state is State.SETTLED and outcome is not None and not job.held
    raw = outcome.document if settled and outcome is not None else job.document
    document: dict[str, Any] = msgspec.json.decode(raw) if raw is not None else {"id": job.id}
    status = job.status if settled or job.status not in TERMINAL else PROCESSING
    document["status"] = status
    return JobView(
        id=job.id,
        status=status,
        state=job.state,
        completed=max(job.completed, job.heard or 0),
        total=job.total,
        generation=job.settled_generation,
        results=outcome.results if outcome else 0,
        failed_urls=outcome.failed_urls if outcome else 0,
        discovered_by=outcome.discovered_by if outcome else job.discovered_by,
        told=job.told,
        verified=outcome.verified if outcome else None,
        requests=outcome.requests if outcome else job.requests,
        ended_at=outcome.ended_at if outcome else None,
        noticed_at=outcome.noticed_at if outcome else job.noticed_at,
        settled_at=outcome.settled_at if outcome else None,
        pruned_at=outcome.pruned_at if outcome and outcome.results else None,
        tracked_at=job.tracked_at,
        trouble=job.trouble,
        held=job.held,
        document=document,
    )


def find(tx: Transaction, job_id: str) -> JobView:
    """One job. Raises `UnknownJobError`."""
    job = jobs.get(tx, job_id)
    if job is None:
        raise UnknownJobError(f"no job {job_id} is tracked here: `receiver track {job_id}` makes it known")
    return view(tx, job)


def listing(tx: Transaction, *, status: str | None, skip: int, limit: int) -> tuple[list[JobView], int]:
    """Jobs, newest first, and how many there are."""
    found, total = jobs.listing(tx, status=status, skip=skip, limit=limit)
    return [view(tx, job) for job in found], total


async def read_results(
    database: Database, job_id: str, generation: int, *, skip: int = 0, limit: int | None = None
) -> AsyncIterator[bytes]:
    """Each result's JSON, exactly as it came, in short transactions. Raises `ResultsPrunedError` where they are kept no longer."""
    position, left = skip, limit
    while left is None or left > 0:

        def work(tx: Transaction, at: int = position, most: int | None = left) -> list[bytes]:
            return results.read_slices(tx, job_id, generation, skip=at, limit=min(100, most or 100), max_bytes=_BATCH_BYTES)

        batch = await database.read(work)
        if not batch:
            return
        for result in batch:
            yield result
        position += len(batch)
        left = None if left is None else left - len(batch)


async def decoded_results(database: Database, job_id: str, generation: int) -> AsyncIterator[dict[str, Any]]:
    """Each result as a dict."""
    async for result in read_results(database, job_id, generation):
        yield unpack(result)
