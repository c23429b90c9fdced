"""What a sandbox is asked to be for its whole life. What may change while it runs is a switch (faults.py)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from receiver.reader.shapes import ACTIVE_JOBS_BY_TIER, RPM_BY_TIER

_UNITS: Final = {"": 1, "B": 1, "KB": 1_000, "MB": 1_000_000, "KIB": 1 << 10, "MIB": 1 << 20}
_A_SIZE: Final = "a size such as 2000, 200KB or 1.5MB (B, KB, MB, KiB, MiB)"
_SIZE: Final = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*([A-Za-z]*)")

Range = tuple[float, float]


_WORDS: Final = {"tier": tuple(RPM_BY_TIER), "text": ("plain", "odd"), "fetch": ("off", "public", "loopback", "both")}
_CHECKS: Final[tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...]] = (
    (
        ("page_errors", "retry_errors", "job_failures", "huge_pages"),
        "a rate from 0 to 1",
        lambda given: 0 <= given <= 1,
    ),
    (("speed", "window", "ping"), "above 0", lambda given: given > 0),
    (("queue_seconds", "seconds_per_url", "credits"), "0 or more", lambda given: given >= 0),
    (("rpm", "active_jobs", "ledger_rows"), "1 or more", lambda given: given >= 1),
)


class OptionError(ValueError):
    """An option can't be had; the message says which, and what it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Sizes in bytes, times in Reader's seconds (divided by `speed`), rates from 0 to 1."""

    seed: int = 1
    tier: str = "enterprise"
    rpm: int | None = None
    """Requests per `window`; the tier's when None."""
    active_jobs: int | None = None
    """Jobs queued or processing at once; the tier's when None."""
    window: float = 60.0
    """The sliding window, in real seconds: clients count in those."""
    credits: int = 1_000_000
    speed: float = 1.0
    queue_seconds: float = 0.3
    seconds_per_url: float = 0.4
    job_seconds: Range | None = None
    """A job's whole run, however many URLs it has; by `seconds_per_url` when None."""
    page_size: Range = (2_000, 2_000)
    page_errors: float = 0.0
    retry_errors: float = 0.0
    """How often a URL that is tried again fails again."""
    job_failures: float = 0.0
    huge_pages: float = 0.0
    huge_size: float = 64_000_000
    text: Literal["plain", "odd"] = "plain"
    """`odd` pages hold NUL, a lone surrogate and what else JSON allows."""
    fetch: Literal["off", "public", "loopback", "both"] = "off"
    """Really GET each URL, from addresses of this kind only."""
    ping: float = 30.0
    """Real seconds between the comments that keep a stream open."""
    gzip: bool = False
    """Compress answers for clients that accept it."""
    ledger_rows: int = 1_000_000
    """Requests and deliveries remembered, each; older ones are forgotten (and counted)."""

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise OptionError(f"{name}: one of {', '.join(words)}, not {getattr(self, name)!r}")
        for names, takes, holds in _CHECKS:
            for name in names:
                value = getattr(self, name)
                if value is not None and not holds(value):
                    raise OptionError(f"{name}: {takes}, not {value!r}")

    @property
    def limit(self) -> int:
        """Requests per window."""
        return self.rpm or RPM_BY_TIER[self.tier]

    @property
    def max_active(self) -> int:
        """Active jobs at once."""
        return self.active_jobs or ACTIVE_JOBS_BY_TIER[self.tier]


def options(**given: Any) -> Options:
    """Options from what people write: `page_size="200KB"` or `"2KB..1MB"`, `job_seconds="2..30"` or `5`.

    Raises `OptionError`.
    """
    if "page_size" in given:
        given["page_size"] = _range("page_size", given["page_size"], size, f"{_A_SIZE}, or LOW..HIGH")
    if given.get("job_seconds") is not None:
        given["job_seconds"] = _range("job_seconds", given["job_seconds"], float, "seconds such as 5, or LOW..HIGH such as 2..30")
    if "huge_size" in given:
        given["huge_size"] = _number("huge_size", given["huge_size"], size, _A_SIZE, given["huge_size"])
    return Options(**given)


def size(text: Any) -> float:
    """Bytes: a number, or one with KB, MB, KiB or MiB. Raises `ValueError`."""
    if isinstance(text, int | float):
        return float(text)
    found = _SIZE.fullmatch(str(text).strip())
    if found is None or found[2].upper() not in _UNITS:
        raise ValueError(f"not a size: {text!r}")
    return float(found[1]) * _UNITS[found[2].upper()]


def _number(name: str, value: Any, read: Any, takes: str, given: Any) -> float:
    """`value`, a part of what was `given`, as a number."""
    try:
        number = float(read(value))
    except (TypeError, ValueError):
        raise OptionError(f"{name}: {takes}, not {given!r}") from None
    if not 0 <= number < 1e9:
        raise OptionError(f"{name}: from 0 to a billion, not {value!r}")
    return number


def _range(name: str, value: Any, read: Any, takes: str) -> Range:
    if isinstance(value, tuple | list):
        ends = list(value)
    elif isinstance(value, str) and ".." in value:
        ends = value.split("..", 1)
    else:
        ends = [value, value]
    if len(ends) != 2:
        raise OptionError(f"{name}: {takes}, not {value!r}")
    low, high = (_number(name, end, read, takes, value) for end in ends)
    if low > high:
        raise OptionError(f"{name}: LOW..HIGH with LOW not above HIGH, not {value!r}")
    return low, high
