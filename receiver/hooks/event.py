"""What a Python handler gets: the event, a way to every result of its generation, and one to write along with its delivery."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, overload

from receiver.errors import UsageError

T = TypeVar("T")

Result: TypeAlias = dict[str, Any]
"""One result, as Reader gave it: `url`, and any of `markdown`, `html`, `error`, `metadata`, …, and whatever the vendor adds."""

Results: TypeAlias = AsyncIterator[Result]
Handler: TypeAlias = Callable[["Event", Results], Awaitable[None]]
PlainHandler: TypeAlias = Callable[["Event", Iterator[Result]], None]
EventHandler: TypeAlias = Callable[["Event"], Awaitable[None]] | Callable[["Event"], None]


class Reject(Exception):  # noqa: N818 - a verdict on the event, not an error of the handler's
    """Raise it in a handler for an event that it will never take: it is dead at once, and no failure of the hook's."""


class Later(Exception):  # noqa: N818 - likewise
    """Raise it in a handler for an event that it will take in so many seconds: that counts neither as an attempt nor as a failure."""

    def __init__(self, seconds: float, why: str = "") -> None:
        if not (math.isfinite(seconds) and seconds >= 0):
            raise UsageError(f"Later takes seconds from now, not {seconds!r}")
        super().__init__(why or f"asked for again in {seconds:g} s")
        self.seconds = float(seconds)


class Connection(Protocol):
    """What `event.commit` gives to its function: a connection in the transaction that ends the delivery."""

    def execute(self, statement: Any, parameters: Any = None) -> Any:
        """Run SQL: text, with `:name` and a dict, or with the driver's own marks (`?` of SQLite, `%s` of PostgreSQL) and a tuple.

        Or a statement of SQLAlchemy's. Answers with a result to iterate over, `fetchone`, `fetchall`, `scalar`, `rowcount`, ….
        """
        ...

    def executemany(self, statement: Any, parameters: Any) -> Any:
        """The same for each of many parameters."""
        ...

    @property
    def sqlalchemy(self) -> Any:
        """SQLAlchemy's `Connection`, such as for `Session(bind=connection.sqlalchemy)`."""
        ...


class Reading(Generic[T]):
    """Results as they are read from the store. Each iteration begins anew: `async for`, or a plain `for` in a plain handler."""

    def __init__(self, begin: Callable[[], AsyncIterator[T]], plain: Callable[[AsyncIterator[T]], Iterator[T]] | None) -> None:
        self._begin = begin
        self._plain = plain

    def __aiter__(self) -> AsyncIterator[T]:
        return self._begin()

    def __iter__(self) -> Iterator[T]:
        if self._plain is None:
            raise TypeError("an async handler reads its results with `async for`")
        return self._plain(self._begin())


class Source(Protocol):
    """Where an event's handler finds what belongs to the event."""

    def one_by_one(self) -> Reading[Result]: ...

    def in_batches(self, most: int) -> Reading[list[Result]]: ...

    def commit(self, function: Callable[[Connection], object]) -> Awaitable[None]: ...


@dataclass(frozen=True, slots=True)
class Event:
    """A job has ended, and its results are stored.

    Handlers run at least once for it, and `id` is the same each time: use it to make what you do repeatable.
    """

    id: str
    type: str
    """`job.completed`, `job.failed` or `job.cancelled`; `job.stalled` of a job that still runs (it has no results yet)."""
    timestamp: str
    """When it was settled here: ISO 8601, UTC."""
    job: dict[str, Any]
    """The job as Reader showed it, without its results."""
    generation: int
    """1 when the job ended for the first time, 2 when it ended after a retry, and so on."""
    failed_urls: int
    """Results that carry an `error`."""
    discovered_by: str
    """`webhook`, `poll` or `stream`: what told us of the end first."""
    verified: bool
    """False if rows may have moved between two pages while they were read, which nothing could prove or refute."""
    attempt: int
    """1 for the first attempt to handle it, and so on."""
    source: Source | None = field(default=None, repr=False, compare=False)
    """Where its results are read from; None of an event that somebody made up."""

    @property
    def job_id(self) -> str:
        """The job's id."""
        return str(self.job["id"])

    @overload
    def results(self) -> Reading[Result]: ...

    @overload
    def results(self, *, batch: int) -> Reading[list[Result]]: ...

    def results(self, *, batch: int | None = None) -> Reading[Result] | Reading[list[Result]]:
        """Every result of the event's own generation, one by one, or in lists of `batch` (the last one is what is left).

        A list whose results are large is shorter: it holds 16 MiB of JSON at the most, or a single one.
        """
        if batch is None:
            return self._source.one_by_one()
        if batch < 1:
            raise UsageError(f"a batch has at least one result, not {batch}")
        return self._source.in_batches(batch)

    def commit(self, function: Callable[[Connection], object]) -> Awaitable[None]:
        """Run `function(connection)`, short and plain, in the very transaction that marks this delivery as done: once, or not at all.

        It must end within a second, for others wait to write meanwhile; it may run again if the database breaks it off, and only the
        last run counts. In an async handler `await` this; in a plain one the call itself returns when it is committed. After it the
        event is done, whatever the handler does then. What `function` raises is raised here, and nothing of it is written.

        Raises `UsageError` if it is committed already, `LeaseLostError` if somebody else handles the event by now, `TimeoutError`
        after a second, `StoreError` if it is not known to be written: then the event comes again, unless it was.
        """
        return self._source.commit(function)

    @property
    def _source(self) -> Source:
        if self.source is None:
            raise UsageError("this event was not delivered by a receiver: it has no results and nothing to commit with")
        return self.source

    @classmethod
    def of(cls, event_id: str, payload: str, *, attempt: int, source: Source | None = None) -> Event:
        """From the payload that every hook gets."""
        body = json.loads(payload)
        data = body["data"]
        return cls(
            id=event_id,
            type=body["type"],
            timestamp=body["timestamp"],
            job=data["job"],
            generation=data["generation"],
            failed_urls=data.get("failedUrls", 0),
            discovered_by=data.get("discoveredBy", "poll"),
            verified=data.get("verified", True),
            attempt=attempt,
            source=source,
        )
