"""Reader's workspace stream (SSE): what happens to jobs, as it happens. A third signal, and like a webhook only a cue to look."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import httpx
import msgspec
from httpx_sse import EventSource, SSEError

from receiver.errors import ReaderTooLargeError, ReaderUnavailableError
from receiver.reader.shapes import TERMINAL, Count

EVENT_CAP: Final = 1 << 20
"""Bytes of one event."""
_ENDS: Final = frozenset({"job:completed", "job:failed", "job:cancelled"})


@dataclass(frozen=True, slots=True)
class News:
    """Something happened to a job: it goes on, or it has `ended`. The id is as foreign as it came. `completed`: results gathered.

    `event` is the stream's name for it, and the rest as it was told, where it was.
    """

    job_id: str
    ended: bool
    completed: int | None = None
    event: str = ""
    total: Any = None
    status: str | None = None
    error: Any = None
    credits: Any = None


class _Told(msgspec.Struct, rename="camel"):
    job_id: str
    status: str | None = None
    completed: Count | None = None
    total: Any = None
    error: Any = None
    credits_used: Any = None


async def news(answer: httpx.Response) -> AsyncIterator[News]:
    """What the stream tells, until it ends. What it tells of other things than jobs, or in other shapes, is passed over.

    Raises `ReaderUnavailableError` if it is no stream, `ReaderTooLargeError` for an event beyond the cap.
    """
    counted = _Counted(answer)
    try:
        async for event in EventSource(httpx.Response(200, headers=answer.headers, stream=counted)).aiter_sse():
            counted.size = 0
            try:
                told = msgspec.json.decode(event.data, type=_Told)
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                continue
            if event.event.startswith("job:"):
                yield _news(event.event, told)
    except (SSEError, httpx.DecodingError) as error:
        raise ReaderUnavailableError(f"Reader's stream is not one: {error}") from error


def _news(event: str, told: _Told) -> News:
    return News(
        told.job_id,
        ended=event in _ENDS or told.status in TERMINAL,
        completed=told.completed,
        event=event,
        total=told.total,
        status=told.status,
        error=told.error,
        credits=told.credits_used,
    )


class _Counted(httpx.AsyncByteStream):
    """The stream's bytes; `size` of them since the last event. Pings count too: they would take a month to reach the cap."""

    def __init__(self, answer: httpx.Response) -> None:
        self._answer = answer
        self.size = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._answer.aiter_raw():
            self.size += len(piece)
            if self.size > EVENT_CAP:
                raise ReaderTooLargeError(f"an event of Reader's stream is larger than {EVENT_CAP} bytes")
            yield piece
