"""Reading all pages of an ended job: what to ask next, and when what was read is whole.

Reader pages by position and does not promise that the order holds between reads, nor that its `hasMore` is true. So a reading
is **whole** only if every page's envelope told the same end and total, and

* `completed`: there are exactly `total` rows;
* `failed`, `cancelled`: there are `total` rows, or two of three witnesses say that there is no more: a page is short, its
  `hasMore` is false, there are as many rows as the job tells that it has gathered (`total` may count what was submitted, and
  each of the three may be wrong alone).

A job of N results costs max(1, ceil(N/100)) requests this way, and never a request that cannot bring anything new. (One more where
a failed job's rows end with a full page and the other two disagree: only an empty page can tell then.)

Rows that moved between two pages show as one doubled and one missing. Where the submitted URLs are known, they must be the ones
read. Else the same (url, content) on two pages is suspicious. What is suspicious is read again, once; if it is so again, it is
settled and marked unverified: never silently whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import urlsplit, urlunsplit

PAGE = 100
"""Results per request, at most, by Reader's rules."""
_DEFAULT_PORT: Final = {"http": ":80", "https": ":443"}
_ESCAPE: Final = re.compile("%[0-9a-f]{2}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of one result: its URL, and a digest of its JSON."""

    url: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """One page as it came: where, how many were asked for, what its envelope said, what it held."""

    skip: int
    limit: int
    total: int
    has_more: bool
    rows: Sequence[Row]
    gathered: int | None = None
    """How many results the job says it has; None if it says nothing."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Go on: read from `skip`."""

    skip: int


@dataclass(frozen=True, slots=True)
class Whole:
    """All is read. `verified` is False where rows may have moved between pages unseen."""

    verified: bool


@dataclass(frozen=True, slots=True)
class Again:
    """Throw this pass away. A `suspicious` one is begun again once; a broken one after a pause."""

    reason: str
    kind: Literal["suspicious", "broken"]


Step = Ask | Whole | Again


@dataclass(slots=True)
class Reading:
    """One pass over the pages of one generation.

    `expected`: the submitted URLs, where known. `last_chance`: a pass was suspicious before.
    Rebuilt from what is stored, it goes on where a crash left it.
    """

    completed: bool
    expected: Iterable[str] | None = None
    last_chance: bool = False
    total: int | None = None
    count: int = 0
    _urls: Counter[str] = field(default_factory=Counter)
    _page_of: dict[tuple[str, bytes], int] = field(default_factory=dict)
    _doubled: bool = False
    _twice: bool = False

    def resume(self, *, total: int, rows: Iterable[tuple[int, Row]]) -> Ask | Whole | Again:
        """Take in rows already stored, as (skip of their page, row) in order; say what to ask next."""
        self.total = total
        for skip, row in rows:
            self._note(skip, row)
        return self._finish() if self.count == total else Ask(self.count)

    def add(self, page: Page) -> Step:  # noqa: C901, PLR0911 - a table of cases, each with its answer
        """Take in the next page (of the same end, by its envelope); say what follows."""
        if self.total is None:
            self.total = page.total
        if page.total != self.total:
            return Again(f"the total changed from {self.total} to {page.total}", "broken")
        if page.skip != self.count or len(page.rows) > page.limit:
            return Again(
                f"{len(page.rows)} rows at {page.skip}, where at most {page.limit} at {self.count} were asked for",
                "broken",
            )
        for row in page.rows:
            self._note(page.skip, row)
        if self.count > self.total or self.total < 0:
            return Again(f"{self.count} rows of a total of {self.total}", "broken")
        if self.count == self.total:
            return self._finish()
        if not self.completed and page.gathered is not None and self.count > page.gathered and self._twice:
            # A URL submitted twice is counted twice: this row was doubled.
            return self._suspicious("a result stood twice on its page")
        witnesses = (len(page.rows) < page.limit, not page.has_more, self.count == page.gathered)
        if not self.completed and sum(witnesses) >= 2:
            return self._finish()
        if not page.rows:
            if self.completed:
                return Again(f"the pages end after {self.count} of {self.total} rows", "broken")
            # Gathered rows have ended, yet there is said to be more: nothing can tell which is true.
            return Whole(verified=False)
        return Ask(self.count)

    def _note(self, skip: int, row: Row) -> None:
        self.count += 1
        self._urls[same_page(row.url)] += 1
        # Twice on one page is a URL submitted twice; on two pages it may be a row that moved.
        known = len(self._page_of)
        if self._page_of.setdefault((row.url, row.digest), skip) != skip:
            self._doubled = True
        elif len(self._page_of) == known:
            self._twice = True

    def _finish(self) -> Whole | Again:
        if self.expected is not None:
            submitted = Counter(same_page(url) for url in self.expected)
            trusted = self._urls == submitted if self.completed else self._urls <= submitted
            reason = "the URLs read are not the ones submitted"
        else:
            trusted = not self._doubled
            reason = "a result stood on two pages"
        return Whole(verified=True) if trusted else self._suspicious(reason)

    def _suspicious(self, reason: str) -> Whole | Again:
        return Whole(verified=False) if self.last_chance else Again(reason, "suspicious")


def same_page(url: str) -> str:
    """A URL in the form under which two spellings of it are equal (RFC 3986 §6.2.2.1, §6.2.3), without its fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    user, at, place = parts.netloc.rpartition("@")
    host = place.lower().removesuffix(_DEFAULT_PORT.get(parts.scheme, ":")).removesuffix(":")
    return _ESCAPE.sub(lambda e: e[0].upper(), urlunsplit((parts.scheme, user + at + host, parts.path or "/", parts.query, "")))
