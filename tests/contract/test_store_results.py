"""Results: each one's JSON comes back byte for byte, whatever its size and wherever it was cut."""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import blake2b

import pytest
from databases import Store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from receiver.core.hydration import Row
from receiver.errors import StoreError
from receiver.packing import PagePacker
from receiver.store import results
from receiver.store.results import CHUNK, Stored
from receiver.store.tables import chunks
from receiver.store.tables import results as results_table

_CUT = 64
"""What a chunk is cut down to where hypothesis looks for the seams."""


def put_page(
    store: Store, page: int, contents: Sequence[bytes], *, job_id: str = "job_1", generation: int = 1, cut: int = CHUNK
) -> None:
    """A page as the reconciler stores it: its chunks one by one, then its rows."""
    data = b"".join(contents)
    for number in range(-(-len(data) // cut)):
        piece = results.compress(data[number * cut : (number + 1) * cut])
        store.write(results.put_chunks, job_id, generation, page, [(number, piece)])
    rows, start = [], 0
    for position, content in enumerate(contents, page):
        digest = blake2b(content, digest_size=16).digest()
        rows.append(Stored(position, page, f"https://example.com/{position}", None, digest, start, len(content)))
        start += len(content)
    store.write(results.put_rows, job_id, generation, rows)


def everything(store: Store, *, job_id: str = "job_1", generation: int = 1, skip: int = 0) -> list[bytes]:
    return store.read(results.read_slices, job_id, generation, skip=skip, limit=10_000)


def noise(size: int) -> bytes:
    """Does not shrink."""
    return os.urandom(size)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([1], id="one byte"),
        pytest.param([CHUNK], id="exactly a chunk"),
        pytest.param([CHUNK - 1, 2, CHUNK - 1], id="a byte on either side of a seam"),
        pytest.param([CHUNK, CHUNK], id="two, each exactly a chunk"),
        pytest.param([10, 3 * CHUNK + 7, 10], id="over four chunks"),
        pytest.param([2_000] * 300, id="many in a chunk"),
    ],
)
def test_results_come_back_byte_for_byte(store: Store, sizes: list[int]) -> None:
    contents = [noise(size) for size in sizes]
    put_page(store, 0, contents)
    assert everything(store) == contents


def test_the_packers_chunks_are_what_the_store_reads(store: Store) -> None:
    """What comes from the wire, through the packer, into the store, and out again."""
    packed = PagePacker(0)
    contents = [b'{"url": "https://example.com/%d", "markdown": "%s"}' % (n, b"x" * n * 30_000) for n in range(30)]

    async def pack() -> None:
        for content in contents:
            await packed.take(content)
        await packed.close()

    store.run(pack())
    for number, data in enumerate(packed.chunks):
        store.write(results.put_chunks, "job_1", 1, 0, [(number, data)])
    store.write(results.put_rows, "job_1", 1, packed.rows)
    assert len(packed.chunks) > 10
    assert everything(store) == contents


def test_a_page_without_results_is_nothing(store: Store) -> None:
    put_page(store, 0, [])
    assert everything(store) == []
    assert store.read(results.count, "job_1", 1) == (0, 0)
    assert store.read(results.read_rows, "job_1", 1) == []


def test_a_chunk_that_does_not_shrink_is_within_its_bound(store: Store) -> None:
    put_page(store, 0, [noise(CHUNK)])
    assert len(store.row(chunks)["data"]) < CHUNK + 1024


def test_several_pages_are_one_sequence(store: Store) -> None:
    """Whatever the size of each, in the order of their positions; read from anywhere, as far as asked."""
    contents = [b"%04d" % n * 1_000 for n in range(250)]
    for page in (200, 0, 100):  # not in the order in which they came
        put_page(store, page, contents[page : page + 100])
    assert everything(store) == contents
    assert everything(store, skip=95) == contents[95:]
    assert everything(store, skip=250) == []
    window = store.read(results.read_slices, "job_1", 1, skip=199, limit=2)
    assert window == contents[199:201]


@pytest.mark.parametrize(("max_bytes", "expected"), [(0, 1), (99, 1), (100, 1), (199, 1), (200, 2), (250, 2), (10_000, 5)])
def test_a_reading_stops_at_its_bound_in_bytes(store: Store, max_bytes: int, expected: int) -> None:
    """After the first result, which is given however big it is: else a reader would never get on."""
    contents = [b"%d" % n * 100 for n in range(5)]
    put_page(store, 0, contents)
    got = store.read(results.read_slices, "job_1", 1, skip=0, limit=100, max_bytes=max_bytes)
    assert got == contents[:expected]


def test_rows_are_counted_with_those_that_failed(store: Store) -> None:
    rows = [Stored(n, 0, "", "blocked" if n % 3 == 0 else None, b"", n, 1) for n in range(10)]
    store.write(results.put_rows, "job_1", 1, rows)
    assert store.read(results.count, "job_1", 1) == (10, 4)


def test_what_is_stored_of_a_pass_is_read_in_order(store: Store) -> None:
    put_page(store, 2, [b"c"])
    put_page(store, 0, [b"a", b"b"])
    digests = [blake2b(content, digest_size=16).digest() for content in (b"a", b"b", b"c")]
    expected = [(page, Row(f"https://example.com/{n}", digests[n])) for n, page in enumerate((0, 0, 2))]
    assert store.read(results.read_rows, "job_1", 1) == expected


def test_chunks_that_a_crash_left_are_overwritten(store: Store) -> None:
    """A page without rows was not stored; the next reading may bring other bytes, and fewer."""
    for number in range(4):
        store.write(results.put_chunks, "job_1", 1, 0, [(number, results.compress(noise(CHUNK)))])
    assert everything(store) == []
    contents = [noise(CHUNK), noise(10)]
    put_page(store, 0, contents)
    assert everything(store) == contents


def test_a_page_is_not_stored_twice(store: Store) -> None:
    """A second set of rows for it violates a constraint and changes nothing."""
    put_page(store, 0, [b"first"])
    with pytest.raises(StoreError):
        store.write(results.put_rows, "job_1", 1, [Stored(0, 0, "", None, b"", 0, 3)])
    assert everything(store) == [b"first"]


def test_generations_and_jobs_are_kept_apart(store: Store) -> None:
    put_page(store, 0, [b"one"])
    put_page(store, 0, [b"two"], generation=2)
    put_page(store, 0, [b"other"], job_id="job_2")
    while store.write(results.drop_some, "job_1", 2):
        pass
    assert everything(store) == [b"one"]
    assert everything(store, generation=2) == []
    assert everything(store, job_id="job_2") == [b"other"]


def test_a_generation_is_dropped_in_small_steps(store: Store) -> None:
    """Each a short transaction, until nothing is left."""
    with store.database._begin_write() as tx:  # at once: many chunks, none of them big
        tx.execute(
            chunks.insert(),
            [{"job_id": "job_1", "generation": 1, "page": n // 10, "number": n % 10, "data": b"x"} for n in range(150)],
        )
        rows = [Stored(n, n - n % 100, "", None, b"", 0, 1) for n in range(2_500)]
        results.put_rows(tx, "job_1", 1, rows)
    steps = []
    more = True
    while more:
        before = len(store.rows(chunks)), len(store.rows(results_table))
        more = store.write(results.drop_some, "job_1", 1)
        after = len(store.rows(chunks)), len(store.rows(results_table))
        steps.append((before[0] - after[0], before[1] - after[1]))
    assert max(of_chunks for of_chunks, _ in steps) <= 64
    assert max(of_rows for _, of_rows in steps) <= 1_000
    assert (sum(c for c, _ in steps), sum(r for _, r in steps)) == (150, 2_500)


def test_a_half_dropped_generation_shows_no_result_that_cannot_be_read(store: Store) -> None:
    """Rows go before the chunks they lie in."""
    put_page(store, 0, [noise(CHUNK)] * 70)
    more = True
    while more:
        more = store.write(results.drop_some, "job_1", 1)
        assert everything(store) == []
    assert store.rows(chunks) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(1, 200), max_size=6), max_size=4), st.integers(0, 30), st.integers(0, 500))
def test_any_cut_reads_back(sqlite_slices: Store, sizes: list[list[int]], skip: int, max_bytes: int) -> None:
    """Any sizes over any pages, read from any position in batches of any size."""
    contents = [[os.urandom(size) for size in page] for page in sizes]
    with sqlite_slices.database._begin_write() as tx:
        page_at = 0
        for page in contents:
            data = b"".join(page)
            for number in range(-(-len(data) // _CUT)):
                piece = results.compress(data[number * _CUT : (number + 1) * _CUT])
                results.put_chunks(tx, "job_1", 1, page_at, [(number, piece)])
            starts = [sum(map(len, page[:n])) for n in range(len(page))]
            rows = [Stored(page_at + n, page_at, "", None, b"", starts[n], len(content)) for n, content in enumerate(page)]
            results.put_rows(tx, "job_1", 1, rows)
            page_at += len(page)
        flat = [content for page in contents for content in page][skip:]
        got: list[bytes] = []
        while batch := results.read_slices(tx, "job_1", 1, skip=skip + len(got), limit=3, max_bytes=max_bytes):
            got += batch
        tx.connection.rollback()
    assert got == flat


@pytest.fixture
def sqlite_slices(sqlite: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Chunks so small that the seams are everywhere."""
    monkeypatch.setattr(results, "CHUNK", _CUT)
    return sqlite
