"""When to look next at a job that has not ended.

A webhook (or the stream) usually tells first; looking is for what got lost. Looks cost the workspace's quota, so they go by what is
known: where a job's progress foretells its end, just after that; where nothing does, as often as a share of the budget allows; and
while others tell of every end, hardly ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Final

FIRST: Final = 5.0
"""Seconds after which a job nobody has looked at is looked at, unless others are known to tell of its end."""
LATE_LOOKS: Final = (3600.0, 6 * 3600.0, 24 * 3600.0)
"""Seconds after it settled at which a job is looked at again: it may have been retried elsewhere and the webhook lost."""
RECENT: Final = 20
"""How many of the last ends tell whether webhooks arrive."""

_SHORTEST, _LONGEST = 2.0, 3600.0
_SWEEP = 300.0
"""Seconds: a job is looked at as often as a plain sweep would, wherever the budget allows it and nobody tells."""
_QUIET = 600.0
"""Seconds until the first look at a job whose end others can be counted on to tell of."""
_ENOUGH, _NEARLY_ALL = 10, 0.95
"""So many ends, and this part of the last ones, must have been told by others before they are counted on."""
_SHARE = 0.45
"""The part of the budget that looks at all jobs together make do with: half would leave nothing for a look that came too early."""
_CALM = 15.0
"""Seconds: what foretells nothing is looked at no more often, however much budget there is (the vendor's advice for minutes)."""
_LAG = 3.0
"""Seconds to aim behind the foretold end: a look just before it costs a second one, and the webhook may be on its way."""
_GRACE = 30.0
"""Seconds that a webhook may take which is told again after a failure: Reader tries for 21."""


@dataclass(frozen=True, slots=True)
class Look:
    """In how many seconds to look; `expects_end` if the job has probably ended by then (so a full page is worth asking for)."""

    after: float
    expects_end: bool


@dataclass(frozen=True, slots=True)
class Outlook:
    """What all jobs have in common.

    `watched`: jobs that have not ended, as far as we know. Of the last `ended` jobs (`RECENT` at most, of those that webhooks tell
    of) `told` were told of by one, sooner or later, or by the stream while it is up; the one that took longest `lasted` so many
    seconds. `budget`: requests a minute that are ours, for all purposes.

    That the stream is up is not enough: it may be silent.
    """

    watched: int
    ended: int
    told: int
    lasted: float
    budget: float

    @property
    def telling(self) -> bool:
        """Whether others can be counted on to tell of an end."""
        return self.ended >= _ENOUGH and self.told >= _NEARLY_ALL * self.ended

    @property
    def fair(self) -> float:
        """Seconds between two looks at a job if all jobs are looked at equally often."""
        return max(self.watched, 1) * 60.0 / max(self.budget * _SHARE, 0.01)


@dataclass(frozen=True, slots=True)
class Earlier:
    """What the look before this one saw, so many seconds `ago`."""

    ago: float
    completed: int
    total: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is. `age`: seconds since it began, as far as we know. `still`: seconds since `completed` last changed."""

    age: float
    completed: int
    total: int
    still: float = 0.0
    earlier: Earlier | None = None


def first_look(outlook: Outlook) -> float:
    """Seconds from a job's beginning to the first look: once it lasts longer than any did lately, where others tell of its end."""
    if not outlook.telling:
        return FIRST
    return min(max(FIRST, 1.25 * outlook.lasted + _LAG), _QUIET)


def next_look(job: Progress, outlook: Outlook) -> Look:
    """When to look again at a job that was just seen running."""
    usual = _fending_for_ourselves(job, outlook)
    if not outlook.telling:
        return usual
    left = _left(job)
    wait = max(first_look(outlook), 3 * job.age) if left is None else max(1.25 * left + _GRACE, job.age)
    return Look(max(usual.after, _bounded(wait)), expects_end=left is not None)


def late_look(looks_done: int) -> float | None:
    """Seconds from settling to the next late look, or None after the last."""
    return LATE_LOOKS[looks_done] if looks_done < len(LATE_LOOKS) else None


def _fending_for_ourselves(job: Progress, outlook: Outlook) -> Look:
    shortest = max(_SHORTEST, outlook.fair / 10)
    calm = max(_CALM, outlook.fair)
    # A young job may be a short one: how late its end is noticed goes by how long it took.
    patience = min(max(job.age / 2, shortest), calm)
    # What stands still is left alone for longer and longer.
    standstill = max(min(job.still / 2, calm), min(job.still / 10, _SWEEP))
    left = _left(job)
    if left is None:
        return Look(_bounded(max(patience, standstill)), expects_end=False)
    trust = _trust(job)
    aim = max(1.05 * left + _LAG, shortest)
    if aim <= (2 * calm if trust else patience):
        return Look(_bounded(max(aim, standstill)), expects_end=aim >= standstill)
    # Half of the way at the most, and then see: of the end of a job that is broken off nothing foretells.
    halfway = min(left * trust / 2, _SWEEP)
    return Look(_bounded(max(patience, halfway, standstill)), expects_end=False)


def _left(job: Progress) -> float | None:
    """Seconds to the end as its progress foretells it; None if it does not."""
    before = job.earlier
    growing = before is not None and before.total > 0 and before.total != job.total  # a crawl still finds pages
    if growing or not 0 < job.completed <= job.total:
        return None
    rate = job.completed / max(job.age, 1.0)
    if before is not None and before.ago > 0 and not _trust(job):
        rate = max(rate, (job.completed - before.completed) / before.ago)  # rather too early than too late
    return (job.total - job.completed) / rate


def _trust(job: Progress) -> float:
    """How far the trend can be gone by: 0 where there is none, towards 1 the more has been counted and the steadier it grew."""
    before = job.earlier
    if before is None or job.completed <= 0:
        return 0.0
    expected = before.ago * job.completed / max(job.age, 1.0)
    off = abs(job.completed - before.completed - expected)
    return 1 - 1 / sqrt(job.completed) if off <= 1 + 0.3 * expected else 0.0


def _bounded(wait: float) -> float:
    return min(max(wait, _SHORTEST), _LONGEST)
