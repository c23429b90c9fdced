"""A lease is kept while the work goes on, and the work ends when the lease does."""

from __future__ import annotations

import asyncio

import pytest

from receiver.errors import LeaseLostError, StoreError
from receiver.leases import lease_kept
from tests.clock import FakeClock

pytestmark = pytest.mark.anyio


class Renewals:
    """Counts them; from number `lost` on, the lease is somebody else's."""

    def __init__(self, *, lost: int | None = None, trouble: Exception | None = None) -> None:
        self.count = 0
        self.third = asyncio.Event()
        self._lost = lost
        self._trouble = trouble or LeaseLostError("another worker has taken it over")

    async def __call__(self) -> None:
        self.count += 1
        if self.count == 3:
            self.third.set()
        if self._lost is not None and self.count >= self._lost:
            raise self._trouble


async def test_it_is_renewed_three_times_within_its_length(clock: FakeClock) -> None:
    renew = Renewals()
    async with lease_kept(clock, 60, renew):
        await renew.third.wait()
    assert clock.naps[:3] == [20, 20, 20]


async def test_short_work_renews_nothing(clock: FakeClock) -> None:
    renew = Renewals()
    async with lease_kept(clock, 60, renew):
        pass
    assert renew.count == 0


async def test_after_the_work_it_is_renewed_no_more(clock: FakeClock) -> None:
    """A renewal that comes late would take a lease again that was given back."""
    renew = Renewals()
    async with lease_kept(clock, 60, renew):
        await renew.third.wait()
    count = renew.count
    for _ in range(5):
        await asyncio.sleep(0)
    assert renew.count == count


@pytest.mark.parametrize("trouble", [LeaseLostError("taken over"), StoreError("the disk is full")])
async def test_when_it_cannot_be_renewed_the_work_is_broken_off(clock: FakeClock, trouble: Exception) -> None:
    done = []

    async def work() -> None:
        async with lease_kept(clock, 60, Renewals(lost=2, trouble=trouble)):
            await asyncio.Event().wait()
            done.append("all of it")

    with pytest.raises(type(trouble)) as caught:
        await work()
    assert caught.value is trouble
    assert done == []


async def test_what_the_work_raises_comes_out_as_itself(clock: FakeClock) -> None:
    trouble = KeyError("job")
    with pytest.raises(KeyError) as caught:
        async with lease_kept(clock, 60, Renewals()):
            raise trouble
    assert caught.value is trouble


async def test_a_lost_lease_outweighs_what_breaking_off_led_to(clock: FakeClock) -> None:
    async def work() -> None:
        async with lease_kept(clock, 60, Renewals(lost=1)):
            try:
                await asyncio.Event().wait()
            finally:
                raise StoreError("and the clearing up failed")

    with pytest.raises(LeaseLostError):
        await work()


async def test_being_cancelled_is_being_cancelled(clock: FakeClock) -> None:
    renew = Renewals()

    async def work() -> None:
        async with lease_kept(clock, 60, renew):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await renew.third.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    count = renew.count
    await asyncio.sleep(0)
    assert renew.count == count
