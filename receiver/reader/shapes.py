"""Reader's wire shapes and vocabulary, open to what the vendor adds.

Unknown fields are ignored here and kept where it matters: results travel as raw slices of what came, never re-serialised.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

import msgspec

# A job's states. The vendor may add some: what is not terminal is treated as still running.
QUEUED: Final = "queued"
PROCESSING: Final = "processing"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
TERMINAL: Final = frozenset({COMPLETED, FAILED, CANCELLED})

# Webhook events.
JOB_STARTED: Final = "job.started"
JOB_PAGE: Final = "job.page"
JOB_COMPLETED: Final = "job.completed"
JOB_FAILED: Final = "job.failed"
CREDIT_LOW: Final = "credit.low"
SESSION_CREATED: Final = "session.created"
SESSION_STOPPED: Final = "session.stopped"
JOB_EVENTS: Final = frozenset({JOB_STARTED, JOB_PAGE, JOB_COMPLETED, JOB_FAILED})
EVENTS: Final = JOB_EVENTS | {CREDIT_LOW, SESSION_CREATED, SESSION_STOPPED}

MAX_PAGE: Final = 100
"""Results per page, at most (`limit` 1..100)."""
MAX_URLS: Final = 1000
"""URLs per batch, at most."""

ERROR_STATUS: Final[dict[str, int]] = {
    "invalid_request": 400,
    "unauthenticated": 401,
    "insufficient_credits": 402,
    "url_blocked": 403,
    "not_found": 404,
    "conflict": 409,
    "rate_limited": 429,
    "concurrency_limited": 429,
    "internal_error": 500,
    "upstream_unavailable": 502,
    "scrape_timeout": 504,
}
"""Error code → HTTP status."""

RPM_BY_TIER: Final[dict[str, int]] = {"free": 10, "pro": 60, "business": 200, "enterprise": 1000}
ACTIVE_JOBS_BY_TIER: Final[dict[str, int]] = {"free": 2, "pro": 10, "business": 50, "enterprise": 200}


Count: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
"""A number that a database's integer column can hold: one beyond it is no count of anything."""


class Pagination(msgspec.Struct, rename="camel"):
    """The `pagination` member of a page."""

    total: Count
    skip: Count | None = None
    limit: Count | None = None
    has_more: bool | None = None
    next: str | None = None


class Job(msgspec.Struct, rename="camel"):
    """The `data` member of a job's page, without its results. A field that the vendor leaves out may as well come as null."""

    id: str
    status: str
    mode: str | None = None
    completed: Count | None = None
    total: Count | None = None
    credits_used: float | None = None
    error: Any = None
    started_at: str | None = None
    completed_at: str | None = None
    created_at: str | None = None

    @property
    def terminal(self) -> bool:
        """Whether it has ended (it may be retried, and end again)."""
        return self.status in TERMINAL


class ErrorBody(msgspec.Struct, rename="camel"):
    """The `error` member of a failure."""

    code: str = "internal_error"
    message: str = ""
    details: dict[str, Any] | None = None
    docs_url: str | None = None
