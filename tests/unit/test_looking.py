"""Workers of one process look for work one after another, and not for what was just looked for in vain."""

from __future__ import annotations

import asyncio

import pytest

from receiver.looking import Looks

pytestmark = pytest.mark.anyio


class Work:
    """So much there is to do. Each look lasts until the others had their turn at the event loop."""

    def __init__(self, *there: int) -> None:
        self.there = list(there)
        self.looks = 0
        self.at_once = 0

    async def look(self) -> int | None:
        self.looks += 1
        self.at_once += 1
        assert self.at_once == 1
        for _ in range(20):
            await asyncio.sleep(0)
        self.at_once -= 1
        return self.there.pop() if self.there else None


async def test_of_eight_that_are_woken_for_one_job_two_look() -> None:
    """The one that finds it, and one that finds that this was all."""
    work = Work(1)
    looks = Looks(work.look)
    assert sorted(await asyncio.gather(*(looks() for _ in range(8))), key=str) == [1, *[None] * 7]
    assert work.looks == 2


async def test_as_many_as_there_is_work_for_get_some() -> None:
    work = Work(1, 2, 3)
    looks = Looks(work.look)
    assert {each for each in await asyncio.gather(*(looks() for _ in range(3))) if each} == {1, 2, 3}


async def test_who_asks_while_another_looks_in_vain_looks_again() -> None:
    """What came meanwhile may have been missed by that look."""
    work = Work()
    looks = Looks(work.look)
    first = asyncio.create_task(looks())
    await asyncio.sleep(0)
    assert work.looks == 1
    second = asyncio.create_task(looks())
    await asyncio.sleep(0)
    assert await first is None
    work.there.append(1)
    assert await second == 1


async def test_a_look_that_fails_leaves_the_others_to_theirs() -> None:
    answers: list[int | Exception] = [1, OSError()]

    async def look() -> int | None:
        found = answers.pop()
        if isinstance(found, Exception):
            raise found
        return found

    looks = Looks(look)
    assert [type(each) for each in await asyncio.gather(looks(), looks(), return_exceptions=True)] == [OSError, int]
