"""What the contract's tests put into a store."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from databases import NOW, Store

from receiver.core.delivering import Persistence
from receiver.core.delivery import Claims, understand
from receiver.core.lifecycle import State
from receiver.store import hook_queue, jobs, outbox, settlement
from receiver.store.inbox import Arrival


def body(job: str = "job_1", event: str = "job.completed", **more: Any) -> bytes:
    """As Reader writes it."""
    return json.dumps({"event": event, "jobId": job, **more}).encode()


def arrival(
    content: bytes | None = None,
    *,
    job: str = "job_1",
    event: str = "job.completed",
    id: str | None = "dlv_1",  # noqa: A002 - it is one
    at: float = NOW,
    signed: bool = True,
) -> Arrival:
    """A delivery, verified if `signed`, that came `at`."""
    claims = Claims(event=event, delivery_id=id, timestamp=str(int(at)), signature="…")
    content = body(job, event) if content is None else content
    return Arrival(understand(content, claims, signed=signed), at)


def tracked(store: Store, job_id: str = "job_1", *, wait: float = 0.0) -> jobs.Job:
    """A job that somebody tracks."""
    return store.write(jobs.track, job_id, source="track", wait=wait)


def claimed(store: Store, *, owner: str = "worker-1", lease: float = 60.0) -> jobs.Job:
    """The job whose turn it is, leased."""
    job = store.write(jobs.claim, owner=owner, lease=lease)
    assert job is not None
    return job


def hydrating(store: Store, job_id: str = "job_1", *, generation: int = 1) -> jobs.Job:
    """A leased job whose `generation` has opened and only waits to be settled."""
    tracked(store, job_id)
    job = claimed(store)
    assert job.id == job_id
    return opened(store, job, generation)


def opened(store: Store, job: jobs.Job, generation: int) -> jobs.Job:
    """The same job, hydrating."""
    changes: dict[str, Any] = {
        "state": State.HYDRATING,
        "status": "completed",
        "generation": generation,
        "mark": f"completed {generation}",
        "document": b"{}",
        "noticed_at": store.now,
        "discovered_by": "poll",
    }
    store.write(jobs.save, job, **changes)
    return replace(job, **changes)


def outcome(job: jobs.Job, *, status: str = "completed") -> settlement.Outcome:
    """What settling `job` records."""
    return settlement.Outcome(
        job_id=job.id,
        generation=job.generation,
        status=status,
        document=b'{"id": "job_1"}',
        results=2,
        failed_urls=1,
        verified=True,
        discovered_by="webhook",
        requests=1,
        ended_at=None,
        noticed_at=NOW,
        settled_at=NOW,
    )


def event(job_id: str = "job_1", generation: int = 1, *, type: str = "job.completed") -> outbox.Event:  # noqa: A002
    """What settling `job_id` tells."""
    return outbox.Event(f"evt_{job_id}_{generation}", job_id, generation, type, NOW, '{"type": "job.completed"}')


def settle(store: Store, job: jobs.Job) -> None:
    """Settle a hydrating job."""
    store.write(settlement.settle, job, outcome(job), event(job.id, job.generation))


def declare(store: Store, *names: str, types: tuple[str, ...] = ("job.completed", "job.failed", "job.cancelled")) -> None:
    """Make Python hooks known."""
    declared = [outbox.Declaration(name, "python", name, types) for name in names]
    store.write(outbox.declare, declared, all_configured=False)


def taken(store: Store, hook: str = "index", *, lease: float = 60.0, owner: str = "w") -> hook_queue.HookDelivery | None:
    """The hook's delivery whose turn it is, leased."""
    found = store.write(hook_queue.claim, hook=hook, most=1, owner=owner, lease=lease, probe=300.0)
    return found[0] if found else None


def attempt(delivery: hook_queue.HookDelivery, outcome: Any = "delivered", **more: Any) -> hook_queue.Attempt:
    """How it went."""
    return hook_queue.Attempt(delivery, outcome, at=NOW, seconds=0.25, **more)


def finish(store: Store, *attempts: hook_queue.Attempt, policy: Persistence | None = None) -> hook_queue.Finished:
    """Have it written."""
    return store.write(hook_queue.finish, attempts[0].delivery.hook, attempts, policy or Persistence())
