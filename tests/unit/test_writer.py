"""What the event loop sees of the writer's threads while they move."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest

from receiver.store.transaction import Transaction
from receiver.store.writer import Writer

pytestmark = pytest.mark.anyio


@contextmanager
def begin() -> Iterator[Transaction]:
    yield cast("Transaction", None)


def group(_: Transaction, arrivals: Sequence[Any]) -> list[Any]:
    return list(arrivals)


async def test_a_thread_that_wakes_after_hours_is_not_taken_for_one_that_stands_still() -> None:
    """Each time it looks at the clock while it wakes, a delivery that comes at that very moment is taken."""
    hours, waking = 0.0, False
    refused: list[bool] = []
    writer: Writer[int, int]

    def now() -> float:
        nonlocal waking
        if waking and threading.current_thread().name.startswith("writer"):
            waking = False
            refused.append(writer._is_overloaded())
        return hours

    writer = Writer(begin, group, threads=1, now=now)
    assert await writer.arrive(1) == 1
    while not writer._idle:  # noqa: ASYNC110 - a thread goes to rest, and tells nobody
        await asyncio.sleep(0)
    hours, waking = 3 * 3600.0, True
    assert await writer.arrive(2) == 2
    assert refused == [False]
    assert await asyncio.to_thread(writer.stop, within=5)
