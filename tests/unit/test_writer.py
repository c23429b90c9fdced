"""What the event loop sees of the writer's threads while they move."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest

from receiver.store import writer
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
    own: Writer[int, int]

    def now() -> float:
        nonlocal waking
        if waking and threading.current_thread().name.startswith("writer"):
            waking = False
            refused.append(own._is_overloaded())
        return hours

    own = Writer(begin, group, threads=1, now=now)
    assert await own.arrive(1) == 1
    while not own._idle:  # noqa: ASYNC110 - a thread goes to rest, and tells nobody
        await asyncio.sleep(0)
    hours, waking = 3 * 3600.0, True
    assert await own.arrive(2) == 2
    assert refused == [False]
    assert await asyncio.to_thread(own.stop, within=5)


@pytest.mark.parametrize("come_back", [True, False])
async def test_a_group_waits_for_those_who_were_answered_just_now(monkeypatch: pytest.MonkeyPatch, come_back: bool) -> None:
    """Who sends the next one at once is written together with those who came meanwhile: but nobody waits for who stays away."""
    monkeypatch.setattr(writer, "_PAUSE", 10.0 if come_back else 0.001)
    entered, go = threading.Event(), threading.Event()
    sizes: list[int] = []

    def held(_: Transaction, arrivals: Sequence[Any]) -> list[Any]:
        sizes.append(len(arrivals))
        entered.set()
        assert go.wait(10)
        return list(arrivals)

    own: Writer[int, int] = Writer(begin, held, threads=1, now=lambda: 0.0)

    async def sender() -> None:
        for n in range(2 if come_back else 1):
            await own.arrive(n)

    senders = [asyncio.create_task(sender()) for _ in range(2)]
    await asyncio.to_thread(entered.wait, 10)
    meanwhile = [own.arrive(n) for n in range(3)]
    go.set()
    await asyncio.gather(*senders, *meanwhile)
    assert sizes == ([2, 5] if come_back else [2, 3])
    assert await asyncio.to_thread(own.stop, within=5)
