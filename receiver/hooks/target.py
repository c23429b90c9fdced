"""What brings an event to one hook: a handler, a URL, or whatever else keeps these few promises."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

EXCERPT: Final = 1024
"""Bytes of an answer that are kept, for people to see why it failed."""
_BATCH = 50

Kind = Literal["python", "http", "command", "broker"]
"""What a hook is, for people to see."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt to bring an event to one hook."""

    event_id: str
    """The same each time."""
    payload: str
    """The event as JSON: the body every hook gets, always the same."""
    attempt: int
    """1 for the first."""
    batches: Callable[[int], AsyncIterator[list[bytes]]]
    """Begins to read the results of the event's own generation, in lists of at most so many: each one's JSON as Reader gave it.

    Raises `ResultsPrunedError` where they are kept no longer, `StoreError` if they cannot be read now.
    """

    commit: Callable[[Callable[[Any], object]], Awaitable[None]] | None = None
    """Runs a function with a connection, in the transaction that marks this delivery as done."""

    async def results(self) -> AsyncIterator[bytes]:
        """The same, one by one. JSON as it came may hold line breaks between its tokens."""
        async for batch in self.batches(_BATCH):
            for result in batch:
                yield result


@dataclass(frozen=True, slots=True)
class Answer:
    """What a hook said as it took an event: an HTTP status, if that is what it speaks, and the beginning of its words."""

    status: int | None = None
    excerpt: str = ""


class Target(AbstractAsyncContextManager["Target"], Protocol):
    """Entered when the process starts, left when it ends.

    Entering must not ask anything of the other side, which may be down just then: that is for the first delivery to find out.
    """

    @property
    def place(self) -> str:
        """Where it leads, for people to see: no secrets in it."""
        ...

    async def deliver(self, delivery: Delivery) -> Answer:
        """Return once the other side has taken the event. Keep to a time limit; many may run at once.

        Raises `HookError` where it did not. `StoreError`, `LeaseLostError` and cancellation are none of its business: let them pass.
        """
        ...


@dataclass(frozen=True, slots=True)
class Hook:
    """Who wants to hear of `events`, and how it is told."""

    name: str
    kind: Kind
    events: tuple[str, ...]
    target: Target
    slots: int = 8
    """How many events may be on their way to it at the same time, from one process."""


def excerpt(answer: bytes) -> str:
    """The beginning of an answer, as text."""
    return answer[:EXCERPT].decode("utf-8", "replace")
