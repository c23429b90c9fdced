"""Loops are boring: they repeat, they wait, they survive a defect, and they stop well."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from receiver.errors import StoreError
from receiver.loops import Loop, run_dry
from tests.clock import FakeClock

pytestmark = pytest.mark.anyio


class Units:
    """A service with so many units of work to do. `begun` counts those begun, `idle` says that it had none."""

    def __init__(self, units: int = 0, *, each: Callable[[], object] = lambda: None) -> None:
        self.units = units
        self.done = 0
        self.looks = 0
        self.begun = asyncio.Semaphore(0)
        self.idle = asyncio.Event()
        self._each = each

    async def run_once(self) -> bool:
        self.looks += 1
        await asyncio.sleep(0)
        if self.units == 0:
            self.idle.set()
            return False
        self.units -= 1
        self.begun.release()
        trouble = self._each()
        if isinstance(trouble, Exception):
            raise trouble
        if isinstance(trouble, asyncio.Event):
            await trouble.wait()
        self.done += 1
        return True

    async def next_due(self) -> float | None:
        return None


async def drained(service: Units) -> None:
    service.idle.clear()
    async with asyncio.timeout(5):
        await service.idle.wait()


# -- the resident loop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 4])
async def test_what_is_there_to_do_is_done_without_waiting(clock: FakeClock, workers: int) -> None:
    service = Units(50)
    loop = Loop("units", service, clock, workers=workers)
    loop.start()
    await drained(service)
    await loop.stop(within=5)
    assert service.done == 50


async def test_waking_it_has_it_look_at_once(clock: FakeClock) -> None:
    service = Units()
    loop = Loop("units", service, clock, workers=1)
    loop.start()
    for total in range(1, 4):
        await drained(service)
        service.units = 1
        loop.wake()
        await drained(service)
        assert service.done == total
    await loop.stop(within=5)


async def test_woken_for_nothing_it_goes_back_to_sleep(clock: FakeClock) -> None:
    service = Units()
    loop = Loop("units", service, clock, workers=1)
    loop.start()
    await drained(service)
    loop.wake()
    await drained(service)
    looks = service.looks
    for _ in range(100):
        await asyncio.sleep(0)
    assert service.looks == looks
    await loop.stop(within=5)


async def test_a_wake_while_it_works_is_not_lost(clock: FakeClock) -> None:
    """What fell due just after it looked is found without a nap of seconds."""
    gate = asyncio.Event()
    service = Units(1, each=lambda: gate)
    loop = Loop("units", service, clock, workers=1)
    loop.start()
    await service.begun.acquire()
    service.units = 1
    loop.wake()
    gate.set()
    await drained(service)
    assert service.done == 2
    await loop.stop(within=5)


@pytest.mark.parametrize("trouble", [StoreError("the disk is full"), ZeroDivisionError("a defect")])
async def test_trouble_with_one_unit_does_not_end_the_loop(clock: FakeClock, trouble: Exception) -> None:
    troubles = iter([trouble])
    service = Units(2, each=lambda: next(troubles, None))
    loop = Loop("units", service, clock, workers=1)
    loop.start()
    await service.begun.acquire()
    loop.wake()
    await drained(service)
    await loop.stop(within=5)
    assert service.done == 1


async def test_stopping_lets_what_is_under_way_finish(clock: FakeClock) -> None:
    gate = asyncio.Event()
    service = Units(5, each=lambda: gate)
    loop = Loop("units", service, clock, workers=2)
    loop.start()
    for _ in range(2):
        await service.begun.acquire()
    stopping = asyncio.create_task(loop.stop(within=5))
    await asyncio.sleep(0)
    gate.set()
    await stopping
    assert (service.done, service.units) == (2, 3)


async def test_stopping_breaks_off_what_does_not_finish_in_time(clock: FakeClock) -> None:
    service = Units(1, each=asyncio.Event)
    loop = Loop("units", service, clock, workers=1)
    loop.start()
    await service.begun.acquire()
    await loop.stop(within=0.01)
    assert service.done == 0


async def test_stopping_what_naps_or_never_began_takes_no_time(clock: FakeClock) -> None:
    service = Units()
    loop = Loop("units", service, clock, workers=3)
    await loop.stop(within=60)
    loop = Loop("units", service, clock, workers=3)
    loop.start()
    await drained(service)
    async with asyncio.timeout(5):
        await loop.stop(within=60)


# -- one bounded pass --------------------------------------------------------------------------------------------------------


async def test_a_pass_does_all_there_is_and_counts_it(clock: FakeClock) -> None:
    services = [Units(7), Units(3), Units(0)]
    assert await run_dry(services, workers=2, until=clock.monotonic() + 60, clock=clock) == 10


async def test_a_pass_goes_round_again_for_what_one_service_made_due_for_another(clock: FakeClock) -> None:
    """The last one's work makes the first one's."""
    first = Units(0)
    last = Units(1, each=lambda: setattr(first, "units", first.units + 1))
    assert await run_dry([first, last], workers=1, until=clock.monotonic() + 60, clock=clock) == 2
    assert (first.done, last.done) == (1, 1)


async def test_a_pass_does_what_falls_due_for_one_while_another_hangs(clock: FakeClock) -> None:
    """It had looked already when there was nothing, and does not wait for the one that hangs to look again."""
    never, gate = asyncio.Event(), asyncio.Event()
    stuck, last, first = Units(1, each=lambda: never), Units(1, each=lambda: gate), Units(0)
    running = asyncio.create_task(run_dry([stuck, last, first], workers=2, until=clock.monotonic() + 60, clock=clock))
    await first.idle.wait()
    first.units = 1
    gate.set()
    async with asyncio.timeout(5):
        await first.begun.acquire()
    assert not running.done()
    never.set()
    assert await running == 3


async def test_a_pass_ends_when_its_time_is_up(clock: FakeClock) -> None:
    service = Units(1000, each=lambda: clock.advance(1))
    assert await run_dry([service], workers=1, until=clock.monotonic() + 10, clock=clock) == 10


async def test_a_pass_without_time_does_nothing(clock: FakeClock) -> None:
    service = Units(1)
    assert await run_dry([service], workers=1, until=clock.monotonic(), clock=clock) == 0
    assert service.units == 1


async def test_a_pass_breaks_off_what_is_under_way_when_its_time_is_up(clock: FakeClock) -> None:
    stuck, other = Units(1, each=asyncio.Event), Units(2)
    assert await run_dry([stuck, other], workers=1, until=clock.monotonic() + 0.05, clock=clock) == 2


async def test_expected_trouble_ends_one_workers_part_of_the_pass_only(clock: FakeClock) -> None:
    bad, good = Units(1, each=lambda: StoreError("the disk is full")), Units(5)
    assert await run_dry([bad, good], workers=1, until=clock.monotonic() + 60, clock=clock) == 5


async def test_a_defect_is_told_after_the_others_have_done_their_part(clock: FakeClock) -> None:
    bad, good = Units(1, each=lambda: ZeroDivisionError("a defect")), Units(5)
    with pytest.raises(ZeroDivisionError):
        await run_dry([bad, good], workers=1, until=clock.monotonic() + 60, clock=clock)
    assert good.done == 5
