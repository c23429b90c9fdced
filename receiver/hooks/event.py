"""What a Python handler gets: the event, and a way to every result of its generation."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

Result: TypeAlias = dict[str, Any]
"""One result, as Reader gave it: `url`, and any of `markdown`, `html`, `error`, `metadata`, …, and whatever the vendor adds."""

Results: TypeAlias = AsyncIterator[Result]
Handler: TypeAlias = Callable[["Event", Results], Awaitable[None]]
PlainHandler: TypeAlias = Callable[["Event", Iterator[Result]], None]


@dataclass(frozen=True, slots=True)
class Event:
    """A job has ended, and its results are stored.

    Handlers run at least once for it, and `id` is the same each time: use it to make what you do repeatable.
    """

    id: str
    type: str
    """`job.completed`, `job.failed` or `job.cancelled`; `job.stalled` of a job that still runs (it has no results yet)."""
    timestamp: str
    """When it was settled here: ISO 8601, UTC."""
    job: dict[str, Any]
    """The job as Reader showed it, without its results."""
    generation: int
    """1 when the job ended for the first time, 2 when it ended after a retry, and so on."""
    failed_urls: int
    """Results that carry an `error`."""
    discovered_by: str
    """`webhook`, `poll` or `stream`: what told us of the end first."""
    verified: bool
    """False if rows may have moved between two pages while they were read, which nothing could prove or refute."""
    attempt: int
    """1 for the first attempt to handle it, and so on."""

    @property
    def job_id(self) -> str:
        """The job's id."""
        return str(self.job["id"])

    @classmethod
    def of(cls, event_id: str, payload: str, *, attempt: int) -> Event:
        """From the payload that every hook gets."""
        body = json.loads(payload)
        data = body["data"]
        return cls(
            id=event_id,
            type=body["type"],
            timestamp=body["timestamp"],
            job=data["job"],
            generation=data["generation"],
            failed_urls=data.get("failedUrls", 0),
            discovered_by=data.get("discoveredBy", "poll"),
            verified=data.get("verified", True),
            attempt=attempt,
        )
