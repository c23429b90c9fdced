"""Retrying failed URLs by ourselves: whether a settled generation shall have a successor, and how far the asking for it has come.

    settled ──wanted──► due ──sent──► asked ──taken──► the job is watched, the next generation comes
                         ▲              │  │
                         └────paused────┘  └──refused──► refused

An answer that got lost leaves it at `asked`. What was asked for or refused is settled by a look at the job, never by asking again
blindly: if it runs, or has ended anew, the retry has happened, whoever made it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

TRIES: Final = 10
"""Requests in a row that brought no answer before a retry is given up: over a quarter of an hour."""


class Retry(StrEnum):
    """How far the retry of a settled generation has come."""

    DUE = "due"
    """To be asked for. Written with the outcome, in one transaction."""
    ASKED = "asked"
    """Written before the request leaves: Reader may have taken it, whatever became of us or of its answer."""
    REFUSED = "refused"
    """Reader will not, which may be because somebody else was quicker."""


class Do(StrEnum):
    """What to do next about a retry."""

    LOOK = "look"
    ASK = "ask"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Policy:
    """At most so many retries of a job by ourselves, and credits spent by its retries; `waits`: only the last end is told."""

    most: int = 0
    credits: float = 1000.0
    waits: bool = True

    def wants(self, *, status: str, failed: int, retries: int, spent: float) -> bool:
        """Whether to retry a generation with `failed` URLs after so many `retries`; `spent`: what those have cost."""
        return status == "completed" and failed > 0 and retries < self.most and spent + failed <= self.credits


def step(retry: Retry, *, looked: bool, cued: bool) -> Do:
    """What comes next. `looked`: the job was just seen to have the same end as ever; `cued`: somebody says it may have another."""
    if not looked:
        return Do.ASK if retry is Retry.DUE and not cued else Do.LOOK
    return Do.GIVE_UP if retry is Retry.REFUSED else Do.ASK
