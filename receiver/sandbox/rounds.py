"""One run of a job over some of its pages, as a formula of time: nothing ticks, who asks is told.

Position p of n is done at `started_at + span * (p + pace(p)) / n`, its pace drawn from (0, 1]; the last is 1.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from receiver.reader.shapes import COMPLETED
from receiver.sandbox.draws import draw
from receiver.sandbox.pages import Text

SHORTEST: Final = 0.005
"""Real seconds a run takes at least, so that two ends of a job never carry the same millisecond."""


class Round:
    """The `number`-th run.

    `pages`: the indexes it attempts, ascending. `errors`: the positions among them that fail, ascending.
    `fatal`: the job itself fails when so many pages are done.
    `untried`: the indexes, ascending, that no run before this one has attempted, whether this one does or not.
    `end`: how it ends when nothing stops it.
    """

    __slots__ = (
        "_about",
        "_read",
        "_seed",
        "end",
        "errors",
        "fatal",
        "number",
        "overtaken_at",
        "pages",
        "queued_at",
        "span",
        "started_at",
        "stopped_at",
        "untried",
        "whole_read",
    )

    def __init__(
        self,
        number: int,
        pages: Sequence[int],
        *,
        queued_at: float,
        queue: float,
        span: float,
        errors: Sequence[int],
        fatal: int | None,
        seed: int,
        about: str,
        untried: Sequence[int] = (),
        end: str = COMPLETED,
    ) -> None:
        self.number = number
        self.pages = pages
        self.queued_at = queued_at
        self.started_at = queued_at + queue
        self.span = max(span, SHORTEST)
        self.errors = errors
        self.fatal = fatal
        self.untried = untried
        self.end = end
        self.stopped_at: float | None = None
        self.overtaken_at: float | None = None
        self.whole_read = False
        self._seed = seed
        self._about = about
        self._read: list[tuple[int, int]] = []

    @property
    def ends_at(self) -> float:
        """When it ends, or ended."""
        if self.stopped_at is not None:
            return self.stopped_at
        return self.finish(len(self.pages) - 1 if self.fatal is None else self.fatal)

    def finish(self, position: int) -> float:
        """When this position is done, if nobody stops it."""
        return self.started_at + self.span * (position + self._pace(position)) / len(self.pages)

    def done(self, now: float) -> int:
        """How many positions are done."""
        most = len(self.pages) if self.fatal is None else self.fatal
        if self.stopped_at is not None:
            now = min(now, self.stopped_at)
        elif now >= self.ends_at:
            return most
        if now < self.started_at:
            return 0
        share = (now - self.started_at) / self.span * len(self.pages)
        whole = int(share)
        if whole < len(self.pages) and share - whole >= self._pace(whole):
            whole += 1
        return min(whole, most)

    def good(self, now: float) -> int:
        """How many positions are done without an error."""
        done = self.done(now)
        return done - bisect_left(self.errors, done)

    def failed(self, position: int) -> bool:
        """Whether this position fails."""
        at = bisect_left(self.errors, position)
        return at < len(self.errors) and self.errors[at] == position

    def reason(self, position: int) -> str | None:  # noqa: ARG002 - for runs that know more
        """Why this position failed, where that is known."""
        return None

    def text(self, index: int) -> Text | None:  # noqa: ARG002 - for runs that know more
        """What this page says, where it is not made up."""
        return None

    def position(self, index: int) -> int | None:
        """Where a page stands in this run; None if it is not in it."""
        at = bisect_left(self.pages, index)
        return at if at < len(self.pages) and self.pages[at] == index else None

    def never(self, now: float) -> list[int]:
        """The pages that were never attempted, in no run, ascending."""
        if not self.untried:
            return []
        attempted = set(self.pages[: self.done(now)])
        return [index for index in self.untried if index not in attempted]

    def errored(self, now: float) -> list[int]:
        """The pages of this run that failed, or wait for another attempt after one that did, ascending."""
        done, untried = self.done(now), set(self.untried)
        failed = [self.pages[position] for position in self.errors if position < done]
        return failed + [index for index in self.pages[done:] if index not in untried]

    def note_read(self, skip: int, count: int, total: int) -> None:
        """Somebody was truly told rows `skip` to `skip + count` of `total`, after the end."""
        merged: list[tuple[int, int]] = []
        for start, end in sorted([*self._read, (skip, skip + count)]):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            elif start < end:
                merged.append((start, end))
        self._read = merged
        self.whole_read = self.whole_read or total == 0 or merged == [(0, total)]

    def _pace(self, position: int) -> float:
        if position >= len(self.pages) - 1:
            return 1.0
        return 1.0 - draw(self._seed, "pace", self._about, self.number, position)
