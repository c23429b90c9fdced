"""What the dashboard's pages make the database do, counted and not timed: as much with a hundred times more in the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from databases import NOW, Store

from receiver.store import arrivals, lookup, outbox, overview, timeline
from receiver.store.tables import hook_deliveries, results
from receiver.store.transaction import Transaction
from tests.benchmarks.growth import OF_A_JOB, a_month, insert_rows

pytestmark = pytest.mark.slow

FEW, MANY = 1_500, 150_000
"""Deliveries: of as many jobs as pages and searches show or look through, and of a hundred times as many."""
STEP = 100
"""Of SQLite's virtual machine, so many instructions are counted as one."""

PAGES: dict[str, Callable[[Transaction, str], Any]] = {
    "overview": lambda tx, _: overview.read(tx, rpm=100, share=0.8),
    "jobs": lambda tx, _: lookup.page(tx),
    "jobs of a status": lambda tx, _: lookup.page(tx, which="completed"),
    "jobs of no such status": lambda tx, _: lookup.page(tx, which="failed"),
    "jobs without a webhook": lambda tx, _: lookup.page(tx, which="missed"),
    "older jobs": lambda tx, _: lookup.page(tx, after=(NOW - 3 * 3600, "job_x")),
    "a job by its id": lookup.search,
    "jobs by a part of a URL": lambda tx, _: lookup.search(tx, "in-no-url"),
    "a job's story": timeline.read,
    "a job's results": lambda tx, job: lookup.result_rows(tx, job, 1),
    "deliveries": lambda tx, _: arrivals.newest(tx, limit=25),
    "deliveries set aside": lambda tx, _: arrivals.newest(tx, outcome="quarantined", limit=25),
    "hooks": lambda tx, _: overview.all_hooks(tx),
    "what went to a hook": lambda tx, _: overview.latest(tx, "index"),
    "what was given up": lambda tx, _: overview.dead(tx, "index"),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Store]]:
    folder = tmp_path_factory.mktemp("costs")
    with _filled(folder / "few.db", FEW) as few, _filled(folder / "many.db", MANY) as many:
        yield few, many


def _filled(path: Path, size: int) -> Store:
    """The last jobs of a month that ends now, at the same pace."""
    store = Store(f"sqlite:///{path}")
    by_table: dict[Any, list[Any]] = {}
    for table, row in a_month(MANY - size, MANY, total=MANY, until=NOW):
        by_table.setdefault(table, []).append(row)
    read = {"generation": 1, "page": 0, "digest": b"", "length": 1, "url": "https://shop.example/a-page"}
    for job in range(MANY // OF_A_JOB - FEW // OF_A_JOB, MANY // OF_A_JOB):
        by_table.setdefault(results, []).extend(
            read | {"job_id": f"job_{job:08x}", "position": n, "start": n} for n in range(100)
        )
    for row in by_table[hook_deliveries][-5:]:
        row.update(state="dead", attempts=16, delivered_at=None)
    store.write(lambda tx: [insert_rows(tx, table, rows) for table, rows in by_table.items()])
    store.write(outbox.declare, [outbox.Declaration("index", "python", "index", ["job.failed"])], all_configured=False)
    return store


def steps(store: Store, page: Callable[[Transaction, str], Any], job: str) -> int:
    """How many of the machine's instructions it takes to read it."""
    taken = 0

    def one() -> int:
        nonlocal taken
        taken += 1
        return 0

    def work(tx: Transaction) -> None:
        driver: Any = tx.connection.connection.driver_connection
        driver.set_progress_handler(one, STEP)
        try:
            page(tx, job)
        finally:
            driver.set_progress_handler(None, STEP)

    store.database.read_now(work)
    return taken


@pytest.mark.parametrize("name", PAGES)
def test_a_page_costs_as_much_however_much_is_stored(both: tuple[Store, Store], name: str) -> None:
    job = f"job_{MANY // OF_A_JOB - 20:08x}"
    few, many = (steps(store, PAGES[name], job) for store in both)
    assert many <= 1.5 * few + 20, f"{many} against {few}"


def test_a_count_of_all_would_be_seen(both: tuple[Store, Store]) -> None:
    """Else the others here would prove nothing."""
    few, many = (steps(store, lambda tx, _: _all(tx), "") for store in both)
    assert many > 20 * few


def _all(tx: Transaction) -> None:
    tx.execute(lookup.jobs.select().where(lookup.jobs.c.requests > 1e9)).all()
