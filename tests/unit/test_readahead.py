"""Pages asked for ahead come in their turn, and what turns out useless is broken off."""

from __future__ import annotations

import asyncio

import pytest

from receiver.readahead import ReadAhead

pytestmark = pytest.mark.anyio


class Pages:
    """Answers when told to; remembers what was asked, answered and broken off."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.broken: list[int] = []
        self.gate = asyncio.Event()

    async def ask(self, skip: int, limit: int) -> str:
        self.asked.append((skip, limit))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.broken.append(skip)
            raise
        if skip == 666:
            raise LookupError
        return f"{skip}+{limit}"


async def test_pages_begun_ahead_are_asked_for_once_and_come_in_turn() -> None:
    pages = Pages()
    ahead = ReadAhead(pages.ask)
    ahead.extend([100, 200], 100)
    ahead.extend([200, 300], 100)
    await asyncio.sleep(0)
    assert pages.asked == [(100, 100), (200, 100), (300, 100)]
    pages.gate.set()
    assert [await ahead.page(skip, 100) for skip in (100, 200, 300, 400)] == ["100+100", "200+100", "300+100", "400+100"]
    assert pages.asked == [(100, 100), (200, 100), (300, 100), (400, 100)]


async def test_another_page_than_the_next_breaks_off_what_was_begun() -> None:
    pages = Pages()
    ahead = ReadAhead(pages.ask)
    ahead.extend([100, 200], 100)
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(pages.gate.set)
    assert await ahead.page(100, 50) == "100+50"
    assert sorted(pages.broken) == [100, 200]


async def test_the_trouble_of_a_page_comes_with_its_turn() -> None:
    pages = Pages()
    pages.gate.set()
    ahead = ReadAhead(pages.ask)
    ahead.extend([100, 666], 1)
    assert await ahead.page(100, 1) == "100+1"
    with pytest.raises(LookupError):
        await ahead.page(666, 1)
    ahead.extend([666], 1)
    await asyncio.sleep(0)
    await ahead.drop()


async def test_what_is_behind_a_page_that_failed_is_broken_off_at_once_and_nothing_more_begun() -> None:
    """While the pages before it are still stored: else those behind it are fetched, thrown away and fetched again."""
    pages, refused = Pages(), asyncio.Event()

    async def ask(skip: int, limit: int) -> str:
        if skip == 200:
            await refused.wait()
            raise LookupError
        return await pages.ask(skip, limit)

    ahead = ReadAhead(ask)
    ahead.extend([100, 200, 300], 100)
    await asyncio.sleep(0)
    refused.set()
    for _ in range(5):
        await asyncio.sleep(0)
    ahead.extend([400], 100)
    pages.gate.set()
    assert await ahead.page(100, 100) == "100+100"
    with pytest.raises(LookupError):
        await ahead.page(200, 100)
    await ahead.drop()
    assert (pages.asked, pages.broken) == ([(100, 100), (300, 100)], [300])


async def test_pages_broken_off_behind_trouble_are_asked_for_anew_in_their_turn() -> None:
    pages = Pages()
    ahead = ReadAhead(pages.ask)
    trouble = asyncio.Event()

    async def ask(skip: int, limit: int) -> str:
        if skip == 100 and not trouble.is_set():
            trouble.set()
            raise LookupError
        return await pages.ask(skip, limit)

    ahead._ask = ask
    ahead.extend([100, 200, 300], 100)
    with pytest.raises(LookupError):
        await ahead.page(100, 100)
    await asyncio.sleep(0)
    assert sorted(pages.broken) == [200, 300]
    pages.gate.set()
    assert [await ahead.page(skip, 100) for skip in (100, 200, 300)] == ["100+100", "200+100", "300+100"]
    await ahead.drop()
