"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

TEST_EVENT: Final = "receiver.doctor"
"""Of our test delivery: it is about no job, so it is kept as ignored, and nothing else happens."""

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Line:
    """`fail`: it does not work as it should. `warn`: it may, and somebody ought to look. `hint`: what to do."""

    name: str
    status: Status
    message: str
    hint: str | None = None


def ok(name: str, message: str) -> Line:
    """All is well with it."""
    return Line(name, "ok", message)


def warn(name: str, message: str, hint: str) -> Line:
    """Somebody ought to look."""
    return Line(name, "warn", message, hint)


def fail(name: str, message: str, hint: str) -> Line:
    """It does not work."""
    return Line(name, "fail", message, hint)
