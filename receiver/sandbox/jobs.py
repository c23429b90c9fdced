"""A job: what was asked, and its runs. Every question takes the time it is asked for."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from receiver.reader.shapes import CANCELLED, COMPLETED, FAILED, PROCESSING, QUEUED, TERMINAL
from receiver.sandbox.draws import between, draw, token
from receiver.sandbox.options import Options
from receiver.sandbox.pages import Text, page
from receiver.sandbox.rounds import Round
from receiver.sandbox.validation import ReadRequest

_ERRORS = (
    "Navigation timed out after {timeout} ms",
    "Origin answered 503 Service Unavailable",
    "net::ERR_CONNECTION_RESET",
    "Origin answered 404 Not Found",
)


@dataclass(frozen=True, slots=True)
class View:
    """A job at one moment. `gathered`: the indexes of the results there are, in the order submitted."""

    status: str
    completed: int
    total: int
    credits: int
    started_at: float | None
    completed_at: float | None
    error: str | None
    gathered: Sequence[int]

    @property
    def terminal(self) -> bool:
        """Whether it has ended."""
        return self.status in TERMINAL


class Job:
    """Times are Unix seconds. `rounds` grows by one with each retry."""

    __slots__ = ("_latest", "created_at", "id", "options", "request", "rounds")

    def __init__(self, job_id: str, request: ReadRequest, options: Options, now: float) -> None:
        self.id = job_id
        self.request = request
        self.options = options
        self.created_at = now
        self.rounds: list[Round] = []
        self._latest: dict[int, int] = {}
        self.run(range(request.count), now)

    @property
    def round(self) -> Round:
        """The latest run."""
        return self.rounds[-1]

    def run(self, pages: Sequence[int], now: float) -> Round:
        """Queue these pages, ascending, for one more run.

        A run that leaves pages unattempted ends as the one before it: completed is a job all of whose pages were attempted.
        """
        untried: Sequence[int] = range(self.request.count)
        end = COMPLETED
        if self.rounds:
            untried = array("I", self.round.never(now))
            end = self.status(now) if set(untried) - set(pages) else COMPLETED
            self.round.overtaken_at = now
        number = len(self.rounds) + 1
        seed, options, count = self.options.seed, self.options, len(pages)
        queue = options.queue_seconds * (0.5 + draw(seed, "queue", self.id, number))
        if options.job_seconds is not None:
            span = between(*options.job_seconds, seed, "span", self.id, number)
        else:
            waves = max(1.0, count / self.request.lanes)
            span = options.seconds_per_url * waves * (0.7 + 0.6 * draw(seed, "span", self.id, number))
        fatal = None
        if draw(seed, "failure", self.id, number) < options.job_failures:
            fatal = int(draw(seed, "fatal", self.id, number) * count)
        kept = pages if isinstance(pages, range) else array("I", pages)
        self.rounds.append(
            Round(
                number,
                kept,
                queued_at=now,
                queue=queue / options.speed,
                span=span / options.speed,
                errors=array("I", self._failures(pages, number)),
                fatal=fatal,
                seed=seed,
                about=self.id,
                untried=untried,
                end=end,
            )
        )
        if number > 1:
            self._latest.update(dict.fromkeys(pages, number - 1))
        return self.round

    def status(self, now: float) -> str:
        """Its state."""
        run = self.round
        if run.stopped_at is not None and now >= run.stopped_at:
            return CANCELLED
        if now < run.started_at:
            return QUEUED
        return PROCESSING if now < run.ends_at else self.status_of(run)

    @staticmethod
    def status_of(run: Round) -> str:
        """How a run ends, or ended."""
        if run.stopped_at is not None:
            return CANCELLED
        return run.end if run.fatal is None else FAILED

    def view(self, now: float) -> View:
        """All there is to say of it but its results."""
        run, status = self.round, self.status(now)
        gathered = self._gathered(now)
        ended = run.ends_at if status in TERMINAL else None
        started = run.started_at if status != QUEUED and run.started_at <= now else None
        if started is not None and ended is not None and started > ended:
            started = None  # cancelled while it was queued
        return View(
            status=status,
            completed=len(gathered),
            total=self._total(len(gathered), status),
            credits=sum(each.good(now) for each in self.rounds),
            started_at=started,
            completed_at=ended,
            error="The job was stopped by an internal error" if status == FAILED else None,
            gathered=gathered,
        )

    def url(self, index: int) -> str:
        """The URL of a page."""
        urls = self.request.urls
        if self.request.mode != "crawl":
            return urls[index]
        return urls[0] if index == 0 else f"{urls[0].rstrip('/')}/page-{index}"

    def outcome(self, index: int) -> tuple[str | None, float]:
        """(error or None, when it was done) of a page's latest attempt."""
        run = self.rounds[self._latest.get(index, 0)]
        position = run.position(index)
        assert position is not None
        error = run.reason(position)
        if error is None and run.failed(position):
            pick = draw(self.options.seed, "error", self.id, index, run.number)
            error = _ERRORS[int(pick * len(_ERRORS))].format(timeout=self.request.timeout_ms)
        return error, run.finish(position)

    def text(self, index: int) -> Text:
        """What a page says."""
        return self.rounds[self._latest.get(index, 0)].text(index) or page(self.options, self.url(index))

    def placed(self, gathered: Sequence[int], place: int, *, salt: str | None) -> int:
        """Which result stands at a place: the order submitted, or, with a salt, that salt's shuffle of it."""
        if salt is None or len(gathered) < 2:
            return gathered[place]
        count = len(gathered)
        step = 1 + int(draw(self.options.seed, "step", self.id, salt) * (count - 1))
        while math.gcd(step, count) != 1:
            step += 1
        shift = int(draw(self.options.seed, "shift", self.id, salt) * count)
        return gathered[(place * step + shift) % count]

    def _failures(self, pages: Sequence[int], number: int) -> list[int]:
        rate = self.options.page_errors if number == 1 else self.options.retry_errors
        marked = "sandbox=" in "".join(self.request.urls)
        if not rate and not marked:
            return []
        seed = self.options.seed
        return [
            position
            for position, index in enumerate(pages)
            if (rate and draw(seed, "page-error", self.id, index, number) < rate)
            or (marked and fails_by_name(self.url(index), number))
        ]

    def _gathered(self, now: float) -> Sequence[int]:
        run = self.round
        done = run.done(now)
        if run.number == 1:
            return range(done)
        waiting = {*run.pages[done:], *run.never(now)}
        everything = range(self.request.count)
        return [index for index in everything if index not in waiting] if waiting else everything

    def _total(self, done: int, status: str) -> int:
        if self.request.mode != "crawl" or len(self.rounds) > 1 or status == COMPLETED:
            return self.request.count
        # A crawl learns of its pages as it goes: each page done has told of a few more.
        return min(self.request.count, 1 + 4 * done)


def fails_by_name(url: str, number: int) -> bool:
    """URLs that say how they end: `?sandbox=error` always fails, `?sandbox=error-once` on the first run."""
    if "sandbox=error-once" in url:
        return number == 1
    return "sandbox=error" in url


def job_id(seed: int, request: ReadRequest, nth: int) -> str:
    """The id of the n-th job that asks for this: always the same, whatever is submitted beside it."""
    return "job_" + token(seed, 20, "job", request.fingerprint, nth)
