"""Results on their way to the store: cut into chunks, and each found again byte for byte."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from receiver import packing
from receiver.core.hydration import Page
from receiver.errors import ReaderUnavailableError
from receiver.packing import PagePacker
from receiver.reader.pages import Head
from receiver.reader.shapes import Job, Pagination

pytestmark = pytest.mark.anyio

CHUNK = 64
SIZES = st.lists(st.integers(0, 200), max_size=12)


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "CHUNK", CHUNK)
        yield patch


def result(n: int, size: int = 0, **more: object) -> bytes:
    return json.dumps({"url": f"https://example.com/{n}", "markdown": "x" * size, **more}).encode()


async def packed(results: Sequence[bytes], *, skip: int = 0) -> PagePacker:
    packer = PagePacker(skip)
    for item in results:
        await packer.take(item)
    await packer.close()
    return packer


@given(SIZES, st.integers(0, 500))
async def test_each_result_is_found_again_where_its_row_says(sizes: list[int], skip: int) -> None:
    results = [result(n, size) for n, size in enumerate(sizes)]
    packer = await packed(results, skip=skip)
    laid = b"".join(zstandard.decompress(chunk) for chunk in packer.chunks)
    assert laid == b"".join(results)
    assert [laid[row.start : row.start + row.length] for row in packer.rows] == results
    assert [row.position for row in packer.rows] == list(range(skip, skip + len(results)))
    assert {row.page for row in packer.rows} <= {skip}


@given(SIZES)
async def test_every_chunk_but_the_last_is_full(sizes: list[int]) -> None:
    """So that a position tells its chunk."""
    chunks = [len(zstandard.decompress(chunk)) for chunk in (await packed([result(0, size) for size in sizes])).chunks]
    assert all(size == CHUNK for size in chunks[:-1])
    assert all(0 < size <= CHUNK for size in chunks)


async def test_a_page_is_judged_by_its_rows_and_what_its_envelope_told() -> None:
    packer = await packed([result(0), result(1, error="timeout")], skip=200)
    page = packer.page(Head(Job("job_1", "completed", completed=2), Pagination(202, has_more=True), b"{}"), limit=50)
    assert page == Page(skip=200, limit=50, total=202, has_more=True, rows=page.rows, gathered=2)
    assert [row.url for row in page.rows] == ["https://example.com/0", "https://example.com/1"]
    assert [row.error for row in packer.rows] == [None, "timeout"]


async def test_results_are_told_apart_by_every_byte() -> None:
    """White space too: what is the same on two pages must be the very same."""
    packer = await packed([b'{"url":"a"}', b'{"url":"a"}', b'{"url": "a"}'])
    first, same, other = (row.digest for row in packer.rows)
    assert first == same != other


async def test_what_is_not_json_is_not_taken() -> None:
    packer = PagePacker(0)
    with pytest.raises(ReaderUnavailableError):
        await packer.take(b'{"url":')
    assert (packer.rows, packer.chunks) == ([], [])
