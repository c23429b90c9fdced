"""The schedule at work in virtual time: a workspace that always runs as many jobs as its tier allows, and who watches them.

Nothing here decides when to look: that is `receiver.core.schedule`, or what it is compared with. What is simulated is the world
(jobs, webhooks, the request budget) and what the store would remember.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random
from statistics import median
from typing import Protocol

from receiver.core import schedule
from receiver.core.schedule import Earlier, Look, Outlook, Progress
from receiver.reader.shapes import ACTIVE_JOBS_BY_TIER, MAX_PAGE, RPM_BY_TIER
from receiver.store.budget import SHARES, WINDOW, Purpose
from tests.simulation.true_jobs import KINDS, TrueJob, draw

SHARE = 0.8
"""The part of the workspace's requests that is ours (`RECEIVER_RPM_SHARE`)."""
WARM = 3
"""So many jobs for each slot before those that count: by then it is known whether webhooks arrive."""
Happening = Callable[[float], None]
"""Something that takes place at a time."""
_ANSWER = 0.2
"""Seconds from a request to its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What to simulate.

    `lost`: the part of webhooks that never arrive. `spans`: the shortest and longest job, in seconds; `pages`: the smallest and
    largest. `active`: jobs at once, where that is not what the tier allows.
    """

    tier: str = "pro"
    lost: float = 1.0
    jobs: int = 1000
    spans: tuple[float, float] = (120.0, 1800.0)
    pages: tuple[int, int] = (20, 1000)
    kinds: dict[str, float] = field(default_factory=lambda: KINDS)
    active: int | None = None
    seed: int = 1

    @property
    def slots(self) -> int:
        """Jobs at once."""
        return self.active or ACTIVE_JOBS_BY_TIER[self.tier]

    @property
    def budget(self) -> float:
        """Requests a minute that are ours."""
        return RPM_BY_TIER[self.tier] * SHARE


@dataclass(slots=True)
class Watched:
    """A job, and what the store knows of it."""

    true: TrueJob
    noticed_at: float | None = None
    told: bool = False
    looked_at: float | None = None
    progressed_at: float | None = None
    completed: int = 0
    total: int = 0
    expects_end: bool = False
    looks: int = 0
    """Requests beyond those that reading its results takes."""


class Watcher(Protocol):
    """Who decides when to look."""

    @property
    def sparing(self) -> bool:
        """Whether it keeps within the budget."""
        ...

    def first(self, outlook: Outlook) -> float:
        """Seconds from a job's beginning to the first look."""
        ...

    def next(self, progress: Progress, outlook: Outlook) -> Look:
        """When to look again."""
        ...


class Ours:
    """The schedule."""

    sparing = True
    first = staticmethod(schedule.first_look)
    next = staticmethod(schedule.next_look)


@dataclass(frozen=True, slots=True)
class Every:
    """A look every so many seconds, come what may."""

    seconds: float
    sparing: bool
    """Keeps within the budget."""

    def first(self, outlook: Outlook) -> float:
        return self.seconds

    def next(self, progress: Progress, outlook: Outlook) -> Look:
        return Look(self.seconds, expects_end=False)


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it. Delays in seconds from a job's true end to our noticing."""

    world: World
    watched: list[Watched]
    busiest: int
    """The most requests in any minute."""

    def delays(self, kind: str | None = None) -> list[float]:
        return [w.noticed_at - w.true.ends_at for w in self.watched if w.noticed_at and kind in {None, w.true.kind}]

    @property
    def median(self) -> float:
        return median(self.delays())

    @property
    def p95(self) -> float:
        delays = sorted(self.delays())
        return delays[int(len(delays) * 0.95)]

    @property
    def looks(self) -> float:
        """Requests per job beyond those that submit it and read its results."""
        return sum(w.looks for w in self.watched) / len(self.watched)

    @property
    def spent(self) -> float:
        """The part of the budget that goes into these, as many jobs at once as there may be."""
        mean = sum(w.true.ends_at - w.true.created_at for w in self.watched) / len(self.watched)
        return self.looks * self.world.slots / (mean / 60 * self.world.budget)


def simulate(world: World, watcher: Watcher) -> Report:
    """Run all jobs to their ends, and until every end is noticed."""
    return _Simulation(world, watcher).run()


class _Simulation:
    def __init__(self, world: World, watcher: Watcher) -> None:
        self._world = world
        self._watcher = watcher
        self._dice = Random(world.seed)
        self._agenda: list[tuple[float, int, Happening]] = []
        self._numbers = count()
        self._watched: list[Watched] = []
        self._left = world.jobs + world.slots * WARM
        self._open = 0
        self._lately: deque[Watched] = deque(maxlen=schedule.RECENT)
        self._window: deque[float] = deque()
        self._busiest = 0

    def run(self) -> Report:
        for slot in range(self._world.slots):
            self._at(slot * self._world.spans[1] / self._world.slots, self._submit)
        while self._agenda:
            now, _, what = heappop(self._agenda)
            what(now)
        return Report(self._world, self._watched[self._world.slots * WARM :], self._busiest)

    def _at(self, when: float, what: Happening) -> None:
        heappush(self._agenda, (when, next(self._numbers), what))

    def _ask(self, purpose: Purpose, now: float, then: Happening) -> None:
        """A request, and what follows from it: now, or when its turn has come."""
        window = self._window
        while window and window[0] <= now:
            window.popleft()
        allowed = int(self._world.budget * SHARES[purpose])
        if self._watcher.sparing and len(window) >= allowed:
            self._at(window[len(window) - allowed], lambda now: self._ask(purpose, now, then))
            return
        window.append(now + _ANSWER + WINDOW)
        self._busiest = max(self._busiest, len(window))
        then(now)

    # The world

    def _submit(self, now: float) -> None:
        if self._left > 0:
            self._left -= 1
            self._ask("command", now, self._begin)

    def _begin(self, now: float) -> None:
        world = self._world
        true = draw(self._dice, now, world.spans, world.pages, world.kinds)
        job = Watched(true, total=0 if true.kind == "crawl" else true.pages)
        self._watched.append(job)
        self._open += 1
        self._at(true.ends_at, self._submit)
        if not true.cancelled and self._dice.random() >= world.lost:
            self._at(true.ends_at + self._dice.uniform(0.3, 2.0), lambda now: self._webhook(job, now))
        self._look_in(self._watcher.first(self._outlook()), job, now)

    def _webhook(self, job: Watched, now: float) -> None:
        job.told = True
        self._ask("hydrate", now, lambda now: self._cued(job, now))

    # Who watches

    def _cued(self, job: Watched, now: float) -> None:
        if job.noticed_at is None:
            self._noticed(job, now)
        else:
            job.looks += 1  # it might have been another end

    def _look_in(self, seconds: float, job: Watched, now: float) -> None:
        self._at(now + seconds, lambda now: self._due(job, now))

    def _due(self, job: Watched, now: float) -> None:
        if job.noticed_at is None:
            self._ask("probe", now, lambda now: self._look(job, now))

    def _look(self, job: Watched, now: float) -> None:
        if job.noticed_at is not None:
            return
        if now >= job.true.ends_at:
            job.looks += not job.expects_end  # else it brings the first page of results along
            self._noticed(job, now)
            return
        job.looks += 1
        look = self._watcher.next(self._seen(job, now), self._outlook())
        job.expects_end = look.expects_end
        self._look_in(look.after, job, now)

    def _seen(self, job: Watched, now: float) -> Progress:
        """What the look shows, and what was known; the store's part."""
        completed, total = job.true.completed(now), job.true.total(now)
        earlier = None if job.looked_at is None else Earlier(now - job.looked_at, job.completed, job.total)
        if job.progressed_at is None or completed != job.completed:
            job.progressed_at = now
        job.looked_at, job.completed, job.total = now, completed, total
        began = job.true.started_at if now >= job.true.started_at else job.true.created_at
        return Progress(now - began, completed, total, still=now - job.progressed_at, earlier=earlier)

    def _noticed(self, job: Watched, now: float) -> None:
        job.noticed_at = now
        self._open -= 1
        if not job.true.cancelled:
            self._lately.append(job)
        for _ in range((job.true.completed(now) - 1) // MAX_PAGE):
            self._ask("hydrate", now, lambda _: None)

    def _outlook(self) -> Outlook:
        lately = self._lately
        return Outlook(
            watched=self._open,
            budget=self._world.budget,
            ended=len(lately),
            told=sum(job.told for job in lately),
            lasted=max(((job.noticed_at or 0.0) - job.true.created_at for job in lately), default=0.0),
        )
