"""Reading beside writing, on either database."""

from __future__ import annotations

import asyncio
import threading

import pytest
from databases import Store
from things import arrival, tracked

from receiver.clock import SystemClock
from receiver.errors import StoreError
from receiver.store import jobs
from receiver.store.engine import READERS, Database
from receiver.store.tables import jobs as jobs_table
from receiver.store.transaction import Transaction


def test_a_reader_does_not_wait_for_a_long_write(store: Store) -> None:
    """It sees what was there before."""
    tracked(store, "before")
    wrote, go = threading.Event(), threading.Event()

    def long_write(tx: Transaction) -> None:
        jobs.track(tx, "during", source="track")
        wrote.set()
        assert go.wait(30)

    async def scene() -> list[str]:
        writing = asyncio.ensure_future(store.database.write(long_write))
        await asyncio.get_running_loop().run_in_executor(None, wrote.wait, 10)
        seen, _ = await store.database.read(jobs.listing)
        go.set()
        await writing
        return [job.id for job in seen]

    assert store.run(scene()) == ["before"]
    assert len(store.rows(jobs_table)) == 2


def test_nobody_waits_for_another_who_asks_the_time(sqlite: Store) -> None:
    """On PostgreSQL it is a round trip, which may take its time."""
    asked, go = threading.Event(), threading.Event()

    def slowly() -> float:
        asked.set()
        assert go.wait(30)
        return 1.0

    with sqlite.writing.connect() as connection:
        slow, quick = Transaction(connection, slowly), Transaction(connection, lambda: 2.0)
        first = threading.Thread(target=lambda: slow.now)
        second = threading.Thread(target=lambda: quick.now)
        first.start()
        assert asked.wait(30)
        second.start()
        second.join(5)
        waited = second.is_alive()
        go.set()
        first.join()
        second.join()
    assert not waited


def test_a_write_does_not_wait_for_a_long_read(store: Store) -> None:
    reading, go = threading.Event(), threading.Event()

    def long_read(tx: Transaction) -> int:
        before = len(jobs.listing(tx)[0])
        reading.set()
        assert go.wait(30)
        return before

    async def scene() -> int:
        task = asyncio.ensure_future(store.database.read(long_read))
        await asyncio.get_running_loop().run_in_executor(None, reading.wait, 10)
        await store.database.write(lambda tx: jobs.track(tx, "job_1", source="track"))
        await store.database.arrive(arrival(job="job_2"))
        go.set()
        return await task

    assert store.run(scene()) == 0
    assert len(store.rows(jobs_table)) == 2


def test_several_read_at_the_same_time(store: Store) -> None:
    together = threading.Barrier(READERS)

    def read(tx: Transaction) -> int:
        jobs.listing(tx)
        return together.wait(30)

    async def scene() -> list[int]:
        return await asyncio.gather(*[store.database.read(read) for _ in range(READERS)])

    assert sorted(store.run(scene())) == list(range(READERS))


def test_more_may_want_to_read_than_can(store: Store) -> None:
    async def scene() -> list[int]:
        return await asyncio.gather(*[store.database.read(lambda tx: jobs.listing(tx)[1]) for _ in range(50)])

    assert store.run(scene()) == [0] * 50


def test_a_reader_writes_nothing(store: Store) -> None:
    """The database refuses, whatever the code tries."""
    tracked(store)
    for statement in (jobs_table.delete(), jobs_table.update().values(trouble="x")):
        with pytest.raises(StoreError, match=r"readonly|read-only"):
            store.read(lambda tx, s=statement: tx.execute(s))
    assert store.row(jobs_table)["trouble"] is None
    tracked(store, "and writers write on")


def test_who_only_reads_opens_beside_a_server(store: Store) -> None:
    """It takes no lock, and sees what is committed, also what is committed later."""
    with Database.open(store.url, SystemClock(), readonly=True) as beside:
        assert beside.lock is None
        assert beside.read_now(jobs.listing) == ([], 0)
        tracked(store)
        assert beside.read_now(lambda tx: jobs.listing(tx)[1]) == 1


def test_who_only_reads_needs_no_server(own: Store) -> None:
    tracked(own)
    own.database.close()
    with Database.open(own.url, SystemClock(), readonly=True) as alone:
        assert alone.read_now(lambda tx: jobs.listing(tx)[1]) == 1


def test_closing_twice_is_harmless(own: Store) -> None:
    own.database.close()
    own.database.close()


def test_closing_waits_for_readers(own: Store) -> None:
    reading, go = threading.Event(), threading.Event()

    def read(tx: Transaction) -> int:
        reading.set()
        assert go.wait(30)
        return jobs.listing(tx)[1]

    async def scene() -> int:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(own.database.read(read))
        await loop.run_in_executor(None, reading.wait, 10)
        closing = loop.run_in_executor(None, own.database.close)
        go.set()
        await closing
        return await task

    assert own.run(scene()) == 0
