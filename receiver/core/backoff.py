"""How long to wait before trying again."""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime

LONGEST_RETRY_AFTER = 3600.0
"""Seconds; a sender that asks for more is asked again after this."""
_SECONDS = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")  # float() would also read `1_0`, `inf` and digits of other scripts


def backoff(attempt: int, *, base: float, cap: float, chance: float) -> float:
    """Seconds to wait after failure number `attempt` (from 0): doubling from `base` up to `cap`, the upper half jittered.

    `chance` is a draw from [0, 1). The lower half is kept so that a retry is never at once.
    """
    whole: float = min(cap, base * 2.0 ** min(attempt, 60))
    return whole * (0.5 + chance / 2)


def retry_after(value: str | None, *, now: float) -> float | None:
    """The seconds a Retry-After header asks for (RFC 9110 §10.2.3: seconds, or a date), clamped; None if it says nothing.

    A date in the past or a negative number asks for no wait; garbage asks for nothing.
    """
    if value is None:
        return None
    text = value.strip()
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    else:
        try:
            date = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)
