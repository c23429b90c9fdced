"""One tree of errors: whose fault it is, what to do, and which HTTP status says so.

Foreign exceptions (httpx, SQLAlchemy, msgspec) are turned into these where they enter; nothing outside an edge catches theirs.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

Fault = Literal["ours", "user", "sender", "reader", "hook", "database"]


class ReceiverError(Exception):
    """Anything this package raises on purpose. Its text is one line that says what to do."""

    fault: ClassVar[Fault] = "ours"
    status: ClassVar[int] = 500
    code: str = "internal_error"


class SettingsError(ReceiverError):
    """A setting is missing or wrong; the text lists every mistake found."""

    fault = "user"


class UsageError(ReceiverError):
    """The caller asked for something that cannot be done as asked."""

    fault = "user"
    status = 400
    code = "invalid_request"


class UnknownJobError(ReceiverError):
    """No such job is tracked here."""

    fault = "user"
    status = 404
    code = "not_found"


class UnknownHookError(UsageError):
    """No hook has this name."""

    @classmethod
    def of(cls, name: str, known: list[str]) -> Self:
        """What there is instead."""
        return cls(f"there is no hook {name!r} here: " + (f"there is {', '.join(known)}" if known else "none was declared yet"))


class ResultsPrunedError(ReceiverError):
    """The results were stored here, and retention has taken them away since."""

    fault = "user"
    status = 410
    code = "gone"

    @classmethod
    def of(cls, job_id: str) -> Self:
        """What to do about it, in one line."""
        return cls(
            f"the results of job {job_id} were pruned, as RECEIVER_RETENTION says: "
            f"`receiver track {job_id}` fetches them again while Reader keeps them"
        )


class SignatureError(ReceiverError):
    """A delivery failed authentication.

    `reason` is for logs and metrics alone: the sender gets the same answer whatever it was.
    """

    fault = "sender"
    status = 401
    code = "unauthorized"

    def __init__(self, reason: SignatureReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


SignatureReason = Literal["missing", "malformed", "duplicate_header", "mismatch", "stale", "future", "no_secret"]


class StoreError(ReceiverError):
    """The database did not take a write, or not in time: not known to be stored, try again."""

    fault = "database"
    status = 503
    code = "upstream_unavailable"


class StoreBusyError(StoreError):
    """More is waiting to be written than can be written in time."""


class RowRefusedError(StoreError):
    """The database will not have this row, now or later: a constraint forbids it, or a value it cannot hold."""


class LeaseLostError(ReceiverError):
    """Somebody else has taken this piece of work over; what we did of it is not written."""


class ReaderError(ReceiverError):
    """Reader's API did not give what was asked of it."""

    fault = "reader"
    status = 502
    code = "upstream_unavailable"


class ReaderUnavailableError(ReaderError):
    """A passing trouble: 5xx, a timeout, a reset, a body that is not what the API promises.

    `retry_after` is in seconds, where Reader named one.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ReaderPausedError(ReaderUnavailableError):
    """Requests to Reader are held back for now (a 429's Retry-After, a refused key, credits at an end, the budget)."""


class ReaderTooLargeError(ReaderError):
    """A response grew beyond the cap or dripped beyond the deadline; ask for less at once."""


class ReaderRefusedError(ReaderError):
    """Reader answered with an error that asking again will not change."""

    def __init__(self, message: str, *, code: str, status: int, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.http_status = status
        self.details = details or {}


class HookError(ReceiverError):
    """A hook did not take an event. `retry_after` is in seconds; `final` says that trying again is of no use.

    `answer` is the HTTP status, where there was one; `excerpt` the beginning of what it said. `again_in`: it wishes to have the
    event in so many seconds, which is no failure. `blamed`: whether it tells against the hook, rather than of the event.
    """

    fault = "hook"
    status = 502

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        final: bool = False,
        answer: int | None = None,
        excerpt: str = "",
        again_in: float | None = None,
        blamed: bool = True,
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.final = final
        self.answer = answer
        self.excerpt = excerpt
        self.again_in = again_in
        self.blamed = blamed
