"""What is told downstream: each event's words, under an id that follows from what it tells of."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from receiver.store.jobs import Job
from receiver.store.outbox import Event
from receiver.store.settlement import Outcome


def end(outcome: Outcome, reached_at: str) -> Event:
    """The one event of a generation. `reached_at`: what goes before our own paths to make them URLs."""
    data = {
        "job": json.loads(outcome.document),
        "generation": outcome.generation,
        "failedUrls": outcome.failed_urls,
        "discoveredBy": outcome.discovered_by,
        "verified": outcome.verified,
        "resultsUrl": f"{reached_at}/v1/jobs/{outcome.job_id}",
    }
    identity = f"{outcome.job_id}\n{outcome.generation}"
    at = outcome.settled_at
    return _sealed(identity, f"job.{outcome.status}", data, job_id=outcome.job_id, generation=outcome.generation, at=at)


def stall(job: Job, document: bytes, *, still: float, now: float) -> Event:
    """Told once, while the job still runs; should it get on and stall again, that is another one. `still`: seconds."""
    number, generation = job.stalls + 1, job.generation + 1
    data = {"job": json.loads(document), "generation": generation, "stalledSeconds": round(still)}
    identity = f"{job.id}\n{generation}\nstall {number}"
    return _sealed(identity, "job.stalled", data, job_id=job.id, generation=generation, at=now, number=number)


def test(now: float, token: str) -> tuple[str, str]:
    """The id and the words of an event that tells of nothing: to see whether a hook takes one."""
    data = {"job": {"id": "job_test", "status": "completed", "completed": 0, "total": 0}, "generation": 1, "failedUrls": 0}
    return f"evt_test_{token}", _words("hook.test", data, now)


def _sealed(identity: str, kind: str, data: dict[str, Any], *, job_id: str, generation: int, at: float, number: int = 0) -> Event:
    text = _words(kind, data, at)
    digest = sha256(identity.encode()).hexdigest()[:32]
    return Event(f"evt_{digest}", job_id, generation, kind, at, text, number)


def _words(kind: str, data: dict[str, Any], at: float) -> str:
    timestamp = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"type": kind, "timestamp": timestamp, "data": data}, ensure_ascii=True, separators=(",", ":"))
