"""What the workspace stream tells, as the webhooks that Reader sends for it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from receiver.reader.shapes import JOB_COMPLETED, JOB_FAILED, JOB_PAGE, JOB_STARTED, QUEUED
from receiver.reader.stream import News

_MOST: Final = 10_000
"""Jobs under way that are remembered; the longest known go first."""
_ENDS: Final = {"job:completed": JOB_COMPLETED, "job:failed": JOB_FAILED, "job:cancelled": None}
"""What the stream calls an end, and Reader's webhook for it. Progress may tell of one too: then this still comes."""


@dataclass(frozen=True, slots=True)
class Told:
    """One webhook. `facts`: what its body says besides the event, the time and the job."""

    event: str
    job_id: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Run:
    """A job under way: pages told of, and whether its start was."""

    pages: int
    started: bool


class Retelling:
    """Remembers the jobs under way, to know what is new. Of a job that was under way before, its start and first pages are not.

    `events`: those wanted.
    """

    def __init__(self, events: Collection[str]) -> None:
        self._events = frozenset(events)
        self._runs: dict[str, _Run] = {}
        self._found: set[str] = set()
        """Jobs whose end was found by asking: the stream may tell it once more."""

    @property
    def under_way(self) -> list[str]:
        """Jobs heard of whose end was not, newest first."""
        return list(reversed(self._runs))

    def forget(self, job_id: str) -> None:
        """Reader does not know it."""
        self._runs.pop(job_id, None)

    def hear(self, news: News) -> list[Told]:
        """What is new by it."""
        if news.event not in _ENDS:
            self._found.discard(news.job_id)
            return self._wanted(self._goes_on(news))
        if news.job_id in self._found:
            self._found.discard(news.job_id)
            return []
        return self._wanted(self._ended(news))

    def find(self, news: News) -> list[Told]:
        """The same of what was asked for: a job that the stream was not there to tell of."""
        told = self.hear(news)
        if news.event in _ENDS:
            self._found.add(news.job_id)
        return told

    def _wanted(self, told: Iterator[Told]) -> list[Told]:
        return [each for each in told if each.event in self._events]

    def _goes_on(self, news: News) -> Iterator[Told]:
        done = news.completed or 0
        run = self._runs.get(news.job_id)
        if run is None or news.status == QUEUED:
            if len(self._runs) >= _MOST:
                del self._runs[next(iter(self._runs))]
            run = self._runs[news.job_id] = _Run(done, started=done > 0 and news.status != QUEUED)
        if not run.started and news.status != QUEUED:
            run.started = True
            yield Told(JOB_STARTED, news.job_id, _facts(news))
        yield from self._pages(run, news)

    def _ended(self, news: News) -> Iterator[Told]:
        run = self._runs.pop(news.job_id, None)
        if run is not None:
            yield from self._pages(run, news)
        event = _ENDS[news.event]
        if event == JOB_FAILED:
            yield Told(event, news.job_id, {"status": "failed", **_facts(news), "error": news.error})
        elif event is not None:
            yield Told(event, news.job_id, {"status": "completed", **_facts(news)})

    def _pages(self, run: _Run, news: News) -> Iterator[Told]:
        done = news.completed or 0
        for page in range(run.pages + 1, done + 1):
            yield Told(JOB_PAGE, news.job_id, _facts(news) | {"completed": page})
        run.pages = max(run.pages, done)


def _facts(news: News) -> dict[str, Any]:
    said = {"status": news.status, "completed": news.completed, "total": news.total, "creditsUsed": news.credits}
    return {name: value for name, value in said.items() if value is not None}
