"""Jobs as they truly run, each a formula of time: what a look at one would show, and when it ends."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from random import Random

KINDS = {"linear": 0.45, "bursty": 0.2, "stalled": 0.15, "crawl": 0.2}
"""How jobs get on, and how many of them do so."""
BROKEN_OFF = 0.04
"""The part of jobs that end before their time: half of them failed, half cancelled (which no webhook tells)."""


@dataclass(frozen=True, slots=True)
class TrueJob:
    """One job. All times in seconds on the simulation's clock; `pages` are its URLs, done at `times` after `started_at`, ascending."""

    kind: str
    pages: int
    created_at: float
    started_at: float
    ends_at: float
    times: list[float]
    cancelled: bool

    def completed(self, now: float) -> int:
        return bisect_right(self.times, min(now, self.ends_at) - self.started_at)

    def total(self, now: float) -> int:
        """Of a crawl, the pages found so far: as it gets on, fewer and fewer that are not yet read."""
        done = self.completed(now)
        return self.pages if self.kind != "crawl" else min(self.pages, 1 + done + (self.pages - done) // 3)


def draw(dice: Random, created_at: float, spans: tuple[float, float], pages: tuple[int, int], kinds: dict[str, float]) -> TrueJob:
    """A job that is submitted at `created_at` and runs for some time within `spans`."""
    kind = dice.choices(list(kinds), list(kinds.values()))[0]
    count, span = dice.randint(*pages), dice.uniform(*spans)
    started_at = created_at + dice.uniform(0.2, 3.0)
    ticks = [dice.random() for _ in range(count)]
    if kind == "bursty":
        ticks = [dice.expovariate(1) if page % (max(count // 8, 1)) == 0 else 1e-3 for page in range(count)]
    elif kind == "stalled":
        # It stands still somewhere, as often as not over the last few pages.
        where = dice.randrange(count) if dice.random() < 0.5 else max(count - 1 - dice.randrange(5), 0)
        ticks[where] += count * dice.uniform(0.1, 0.6)
    whole = sum(ticks)
    times = [span * at / whole for at in accumulate(ticks)]
    broken = dice.random() < BROKEN_OFF
    ends_at = started_at + (span * dice.uniform(0.05, 0.95) if broken else times[-1])
    return TrueJob(kind, count, created_at, started_at, ends_at, times, cancelled=broken and dice.random() < 0.5)
