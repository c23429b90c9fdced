"""A job as large as they come, read into the file that the endpoint writes to."""

from __future__ import annotations

import pytest

from tests.benchmarks.acks_while_hydrating import measure


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.anyio
async def test_a_gigabyte_is_hydrated_in_little_memory_while_deliveries_are_taken() -> None:
    """10,000 results of 100 KB: all stored, every delivery meanwhile answered 202, memory within 150 MiB above idle."""
    found = await measure(pages=10_000, page_size="100KB", idle=50)
    assert found.results == 10_000
    assert found.grown < 150
    assert found.busy
