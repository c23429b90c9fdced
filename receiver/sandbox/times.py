"""Times as the wire writes them."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime


def iso(at: float | None, *, precision: str = "millisecond") -> str | None:
    """Unix seconds as `2026-04-04T12:00:00.123Z`; to the second if asked."""
    if at is None:
        return None
    spec = "seconds" if precision == "second" else "milliseconds"
    return datetime.fromtimestamp(at, UTC).isoformat(timespec=spec).replace("+00:00", "Z")


def http_date(at: float) -> str:
    """Unix seconds as a Retry-After date."""
    return format_datetime(datetime.fromtimestamp(at, UTC), usegmt=True)


def next_month(at: float) -> str:
    """When the credits are reset: the first moment of the month after."""
    moment = datetime.fromtimestamp(at, UTC)
    first = datetime(moment.year + moment.month // 12, moment.month % 12 + 1, 1, tzinfo=UTC)
    return first.isoformat().replace("+00:00", "Z")
