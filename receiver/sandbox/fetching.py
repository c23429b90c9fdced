"""Jobs whose pages are really fetched: their runs advance when pages come, and their texts lie in a file."""

from __future__ import annotations

import asyncio
import json
import math
import os
import tempfile
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import IO

from receiver.clock import Clock
from receiver.sandbox.fetch import Fetcher, FetchError
from receiver.sandbox.jobs import Job
from receiver.sandbox.markdown import Wanted, convert
from receiver.sandbox.rounds import Round


@dataclass(frozen=True, slots=True)
class FetchedText:
    """A page's texts: where they lie."""

    title: str
    digest: str
    spool: Spool
    begin: int
    middle: int
    end: int

    def markdown(self) -> bytes:
        """As the inside of a JSON string."""
        return self.spool.read(self.begin, self.middle)

    def html(self) -> bytes:
        """As the inside of a JSON string."""
        return self.spool.read(self.middle, self.end)

    def sha256(self) -> str:
        """Of the markdown."""
        return self.digest


class Spool:
    """A nameless file that only grows."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as its owner, who closes it
        self._end = 0

    def keep(self, title: str, markdown: str, html: str) -> FetchedText:
        """Write a page down."""
        one, two = (json.dumps(text)[1:-1].encode() for text in (markdown, html))
        begin = self._end
        self._file.write(one + two)
        self._file.flush()
        self._end += len(one) + len(two)
        digest = sha256(markdown.encode("utf-8", "surrogatepass")).hexdigest()
        return FetchedText(title, digest, self, begin, begin + len(one), self._end)

    def read(self, begin: int, end: int) -> bytes:
        """What lies there."""
        return os.pread(self._file.fileno(), end - begin, begin)

    def close(self) -> None:
        """Forget it all."""
        self._file.close()


class FetchRound(Round):
    """A run that is as far as its pages have come, in their order."""

    __slots__ = ("_came", "_reasons", "_texts")

    def __init__(self, plan: Round) -> None:
        super().__init__(
            plan.number, plan.pages, queued_at=plan.queued_at, queue=0, span=plan.span,
            errors=array("I"), fatal=None, seed=0, about="", untried=plan.untried, end=plan.end,
        )  # fmt: skip
        self._came = array("d")
        self._reasons: dict[int, str] = {}
        self._texts: dict[int, FetchedText] = {}

    def came(self, now: float, text: FetchedText | str) -> None:
        """The next page came, or, as a string, why it did not."""
        position = len(self._came)
        if isinstance(text, str):
            self.errors = array("I", [*self.errors, position])
            self._reasons[position] = text
        else:
            self._texts[self.pages[position]] = text
        self._came.append(now)

    @property
    def ends_at(self) -> float:
        if self.stopped_at is not None:
            return self.stopped_at
        return self._came[-1] if len(self._came) == len(self.pages) else math.inf

    def finish(self, position: int) -> float:
        return self._came[position] if position < len(self._came) else math.inf

    def done(self, now: float) -> int:
        return bisect_right(self._came, now if self.stopped_at is None else min(now, self.stopped_at))

    def reason(self, position: int) -> str | None:
        return self._reasons.get(position)

    def text(self, index: int) -> FetchedText | None:
        return self._texts.get(index)


class Reading:
    """Fetches for the whole sandbox. `advanced` is called with each page that came. `close` it after use."""

    def __init__(self, scope: str, clock: Clock, advanced: Callable[[Job, Round], None]) -> None:
        self._fetcher = Fetcher(scope)
        self._spool = Spool()
        self._clock = clock
        self._advanced = advanced
        self._under_way: set[asyncio.Task[None]] = set()

    async def read(self, url: str, wanted: Wanted, timeout_ms: int) -> tuple[str, FetchedText]:
        """(where it was found, its text) of one page. Raises `FetchError`."""
        page = await self._fetcher.get(url, timeout_ms / 1000)
        if page.content_type in {"text/plain", "text/markdown"}:
            text = page.body.decode(page.charset if page.charset in {"utf-8", "latin-1", "ascii"} else "utf-8", "replace")
            return page.url, self._spool.keep("", text, "")
        if page.content_type not in {"text/html", "application/xhtml+xml"}:
            raise FetchError(f"Not a page: {page.content_type}")
        try:
            found = await asyncio.to_thread(convert, page.body, page.charset, wanted)
        except (ValueError, LookupError, RecursionError) as exc:
            raise FetchError(f"Could not be read: {exc}") from exc
        return page.url, self._spool.keep(*found)

    def start(self, job: Job, run: FetchRound) -> None:
        """Read a run's pages, so many at once as the job asks for."""
        task = asyncio.get_running_loop().create_task(self._run(job, run))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def close(self) -> None:
        """Stop fetching, and forget what was."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._fetcher.close()
        self._spool.close()

    async def _run(self, job: Job, run: FetchRound) -> None:
        waiting = deque(run.pages)
        ahead: deque[asyncio.Task[FetchedText | str]] = deque()
        try:
            while waiting or ahead:
                while waiting and len(ahead) < job.request.lanes:
                    ahead.append(asyncio.create_task(self._page(job, waiting.popleft())))
                text = await ahead.popleft()
                if run.stopped_at is not None:
                    return
                run.came(self._clock.steady(), text)
                self._advanced(job, run)
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _page(self, job: Job, index: int) -> FetchedText | str:
        try:
            return (await self.read(job.url(index), job.request.wanted, job.request.timeout_ms))[1]
        except FetchError as exc:
            return str(exc)
