"""How each query that runs often finds its rows: by an index that holds little more, however much is in the tables.

The statements are those that the store's own functions send, caught on their way. SQLite chooses without statistics; PostgreSQL is
given exact ones, and told to scan a table only where it has no other way: what it chooses must not go by how small the tables are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from databases import BACKENDS, NOW, Server, Store
from sqlalchemy import Table, event, text
from things import arrival

from receiver.clock import SystemClock
from receiver.core.delivery import keys_signed_before
from receiver.store import (
    arrivals,
    audits,
    budget,
    figures,
    history,
    hook_queue,
    inbox,
    jobs,
    lookup,
    outbox,
    overview,
    pruning,
    results,
    settlement,
    submissions,
    timeline,
)
from receiver.store.engine import Database
from receiver.store.tables import hook_deliveries, seen
from receiver.store.tables import jobs as jobs_table
from receiver.store.transaction import Transaction
from tests.benchmarks.growth import a_month, insert_rows

LARGE = (
    "deliveries",
    "history",
    "seen",
    "jobs",
    "outcomes",
    "events",
    "hook_deliveries",
    "hook_attempts",
    "results",
    "chunks",
    "submissions",
)
"""Tables of which no query may read all."""
DAY = 86400.0


@pytest.fixture(scope="module", params=BACKENDS)
def full(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A month of deliveries, and what came of them."""
    if request.param == "sqlite":
        with Store(f"sqlite:///{tmp_path_factory.mktemp('plans')}/receiver.db") as store:
            yield _filled(store)
    else:
        server: Server = request.getfixturevalue("postgresql")
        with server.empty() as url:
            Database.open(url, SystemClock(), migrate=True).close()
            with Store(url) as store:
                yield _filled(store)


def _filled(store: Store) -> Store:
    by_table: dict[Any, list[Any]] = {}
    for table, row in a_month(0, 5000, total=5000, until=NOW):
        by_table.setdefault(table, []).append(row)
    for n in range(2000):
        by_table[seen].append({"key": f"u{n:05}:", "first_at": NOW - n * 1000, "hits": 1, "digest": "x"})
    for n in range(50):
        common = {"idempotency_key": f"{n}", "body": "{}", "state": "sent", "created_at": NOW - n, "job_id": f"job_{n:08x}"}
        by_table.setdefault(submissions.submissions, []).append(common | {"id": f"sub_{n}"})
    store.write(lambda tx: [insert_rows(tx, table, rows) for table, rows in by_table.items()])
    # Some that are due, and one hook with far more waiting than another.
    store.write(jobs.cue, {f"due_{n}": 0.0 if n % 2 else None for n in range(100)}, by="webhook")
    for hook, number in (("index", 20), ("retired", 300)):
        store.write(outbox.declare, [outbox.Declaration(hook, "python", hook, ["job.failed"])], all_configured=False)
        for n in range(number):
            told = outbox.Event(f"evt_{hook}_{n}", f"{hook}_{n}", 1, "job.failed", NOW, "{}")
            store.write(outbox.publish, told)
    if store._side is not None:
        store._side.execute("ANALYZE")
    return store


class Explained:
    """What the database says of the statements sent meanwhile."""

    def __init__(self) -> None:
        self.plans: list[str] = []

    @property
    def plan(self) -> str:
        return "\n".join(self.plans)


class _UndoneError(Exception):
    """What was done only to be explained is undone."""


def explain(store: Store, work: Callable[[Transaction], Any]) -> str:
    """The plans of all that `work` asks, each as it was when it was asked."""
    explained = Explained()

    def run(tx: Transaction) -> None:
        if store.postgresql:
            tx.execute(text("SET LOCAL enable_seqscan = off"))
        with _explaining(tx, explained, store.postgresql):
            work(tx)
        raise _UndoneError

    with pytest.raises(_UndoneError):
        store.write(run)
    assert explained.plans, "nothing was asked"
    return explained.plan


@contextmanager
def _explaining(tx: Transaction, explained: Explained, postgresql: bool) -> Iterator[None]:
    prefix = "EXPLAIN (FORMAT JSON) " if postgresql else "EXPLAIN QUERY PLAN "

    def before(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        if not re.match("(SELECT|INSERT|UPDATE|DELETE|WITH)", statement):
            return
        side = cursor.connection.cursor()
        side.execute(prefix + statement, parameters[0] if isinstance(parameters, list) else parameters)
        rows = side.fetchall()
        explained.plans += list(_nodes(rows[0][0][0]["Plan"])) if postgresql else [row[3] for row in rows]

    event.listen(tx.connection, "before_cursor_execute", before)
    try:
        yield
    finally:
        event.remove(tx.connection, "before_cursor_execute", before)


def _nodes(node: dict[str, Any]) -> Iterator[str]:
    """One line a node, in SQLite's words where it has some."""
    name, table = node["Node Type"], node.get("Relation Name", "")
    index = node.get("Index Name") or ", ".join(node.get("Conflict Arbiter Indexes", []))
    if name == "Seq Scan":
        yield f"SCAN {table}"
    elif name == "Sort":
        yield f"USE TEMP B-TREE FOR ORDER BY ({node['Sort Key']})"
    elif index:
        condition = node.get("Index Cond") or node.get("Recheck Cond", "")
        yield f"{'SEARCH' if condition else 'WALK'} {table} USING INDEX {index} {json.dumps(condition)}"
    for child in node.get("Plans", []):
        yield from _nodes(child)


def check(plan: str, *indexes: str) -> None:
    """By these indexes, and no large table whole."""
    whole = [line for line in plan.splitlines() if re.match(rf"SCAN ({'|'.join(LARGE)})( AS \w+)?$", line)]
    assert not whole, plan
    for index in indexes:
        assert re.search(rf"USING (COVERING )?INDEX {index}\b", plan), plan


def at_once(plan: str) -> None:
    """The first row found is the answer: none is sorted first."""
    assert "TEMP B-TREE" not in plan, plan


def test_a_large_table_read_whole_would_be_seen(full: Store) -> None:
    """Else the others here would prove nothing."""
    plan = explain(full, lambda tx: tx.execute(text("SELECT body FROM deliveries WHERE delivery_id = 'x'")).all())
    with pytest.raises(AssertionError):
        check(plan)


def test_a_claim_of_a_job_walks_to_the_first_that_is_due(full: Store) -> None:
    plan = explain(full, lambda tx: jobs.claim(tx, owner="w", lease=60))
    check(plan, "ix_jobs_cued", "ix_jobs_due_at")
    at_once(plan)


@pytest.mark.parametrize("table", [jobs_table, hook_deliveries], ids=str)
def test_what_is_written_all_the_time_is_in_no_index(table: Table) -> None:
    """On PostgreSQL an update that changes nothing an index holds stays on its page, and is cleaned up without a vacuum."""
    indexes = " ".join(f"{[*index.columns]} {index.dialect_options['postgresql']['where']}" for index in table.indexes)
    busy = {"lease_owner", "lease_until", "fence", "claimed_cue", "attempts", "requests", "heard", "looked_at", "result_total"}
    assert not [name for name in busy if re.search(rf"\b{name}\b", indexes)]
    assert table.dialect_options["postgresql"]["with"]["fillfactor"] < 100


def test_when_the_next_job_is_due(full: Store) -> None:
    plan = explain(full, jobs.next_due)
    check(plan, "ix_jobs_due_at")
    at_once(plan)


def test_a_claim_of_an_event_walks_past_no_other_hooks(full: Store) -> None:
    plan = explain(full, lambda tx: hook_queue.claim(tx, hook="index", most=8, owner="w", lease=60))
    check(plan, "ix_hook_deliveries_hook_due_at", "ix_hook_deliveries_job_id_generation")
    at_once(plan)


def test_when_the_next_event_is_due(full: Store) -> None:
    plan = explain(full, lambda tx: hook_queue.next_due(tx, hook="index"))
    check(plan, "ix_hook_deliveries_hook_due_at")
    at_once(plan)


def test_a_claim_of_a_submission(full: Store) -> None:
    plan = explain(full, lambda tx: submissions.claim(tx, owner="w", lease=60))
    check(plan, "ix_submissions_due_at")
    at_once(plan)


def test_taking_deliveries_in(full: Store) -> None:
    """Each key once; one that is known is found by the constraint that refuses it."""
    plan = explain(full, lambda tx: inbox.accept(tx, [arrival(id="new"), arrival(id="u", signed=False)]))
    check(plan, *(["seen_pkey", "jobs_pkey"] if full.postgresql else ["sqlite_autoindex_jobs_1"]))


def test_the_budget_looks_at_what_its_window_holds(full: Store) -> None:
    def ask(tx: Transaction) -> None:
        for _ in range(2):
            budget.acquire(tx, "audit", rpm=1, share=0.1, lasts=1)

    plan = explain(full, ask)
    check(plan, "ix_grants_frees_at")


@pytest.mark.parametrize(
    ("status", "index"),
    [(None, "ix_jobs_tracked_at"), ("completed", "ix_jobs_status_tracked_at"), ("settled", "ix_jobs_state_tracked_at")],
)
def test_a_page_of_the_listing_reads_its_own_rows(full: Store, status: str | None, index: str) -> None:
    """Newest first; rows of one moment, at most, are put in order."""
    plan = explain(full, lambda tx: jobs.listing(tx, status=status, skip=40, limit=20))
    check(plan, index)
    assert not re.search("TEMP B-TREE FOR ORDER BY$", plan, re.MULTILINE), plan


def test_one_job_and_its_results(full: Store) -> None:
    def read(tx: Transaction) -> None:
        jobs.get(tx, "job_00000001")
        settlement.get_outcome(tx, "job_00000001", 1)
        results.read_slices(tx, "job_00000001", 1, skip=0, limit=20)

    check(explain(full, read))


def test_the_outlook_counts_no_jobs_that_have_ended(full: Store) -> None:
    plan = explain(full, lambda tx: jobs.outlook(tx, budget=10, stream_up=False))
    check(plan, "ix_jobs_noticed_at", "ix_jobs_state_tracked_at")
    at_once(plan)


def test_the_figures_read_no_large_table(full: Store) -> None:
    plan = explain(full, figures.read)
    check(plan, "ix_jobs_state_tracked_at", "ix_jobs_missed", "ix_hook_deliveries_created_at")


def test_the_audit_counts_the_last_minutes(full: Store) -> None:
    check(explain(full, lambda tx: audits.arrived(tx, signed_since=NOW - 300)))


PRUNES: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "keys": (pruning.signed_keys, keys_signed_before(NOW - 20 * DAY)[0][0], ()),
    "unsigned keys": (pruning.unsigned_keys, None, ("ix_seen_first_at_key",)),
    "deliveries": (pruning.old_deliveries, 100, ()),
    "results": (pruning.old_results, (NOW - 29 * DAY, "", 0), ("ix_outcomes_kept", "ix_hook_deliveries_job_id_generation")),
    "events": (pruning.old_events, (NOW - 29 * DAY, ""), ("ix_events_created_at_id",)),
    "submissions": (pruning.old_submissions, (NOW - 20, ""), ("ix_submissions_created_at_id",)),
}


@pytest.mark.parametrize("first", [True, False], ids=["from the beginning", "going on"])
@pytest.mark.parametrize("name", PRUNES)
def test_pruning_walks_along_an_index(full: Store, name: str, first: bool) -> None:
    function, after, indexes = PRUNES[name]
    before = NOW + DAY if name == "submissions" else NOW - 20 * DAY
    check(explain(full, lambda tx: function(tx, before, None if first else after)), *indexes)


def test_a_timeline_is_found_by_the_job_and_by_its_time(full: Store) -> None:
    plan = explain(full, lambda tx: timeline.read(tx, "job_00000100"))
    check(plan, "ix_history_job_id_number")
    assert "deliveries" in plan


@pytest.mark.parametrize("outcome", ["accepted", "quarantined"])
def test_deliveries_are_listed_from_the_newest_on(full: Store, outcome: str) -> None:
    plan = explain(full, lambda tx: arrivals.newest(tx, outcome=outcome, before=4000))
    at_once(plan)
    check(plan, *(["ix_deliveries_set_aside"] if outcome != "accepted" else []))


def test_the_overview_counts_by_indexes(full: Store) -> None:
    plan = explain(full, lambda tx: overview.read(tx, rpm=100, share=0.8))
    check(
        plan, "ix_jobs_state_tracked_at", "ix_jobs_noticed_at", "ix_hook_deliveries_hook_due_at", "ix_hook_deliveries_created_at"
    )


@pytest.mark.parametrize(
    ("which", "index"),
    [(None, "ix_jobs_tracked_at"), ("failed", "ix_jobs_status_tracked_at"), ("parked", "ix_jobs_state_tracked_at")],
)
def test_a_page_of_jobs_walks_from_where_it_begins(full: Store, which: str | None, index: str) -> None:
    check(explain(full, lambda tx: lookup.page(tx, which=which, after=(NOW - DAY, "job_1"))), index)


def test_a_page_of_jobs_without_a_webhook_walks_past_no_others(full: Store) -> None:
    """PostgreSQL chooses by how many it knows there are; where there are many, going by time alone is as good."""
    plan = explain(full, lambda tx: lookup.page(tx, which="missed", after=(NOW - DAY, "job_1")))
    check(plan, *([] if full.postgresql else ["ix_jobs_missed"]))


def test_a_search_looks_through_the_newest_jobs(full: Store) -> None:
    check(explain(full, lambda tx: lookup.search(tx, "https://")), "ix_jobs_tracked_at")


def test_a_page_of_results_begins_with_those_that_failed(full: Store) -> None:
    plan = explain(full, lambda tx: lookup.result_rows(tx, "job_00000100", 1))
    check(plan, "ix_results_failed")
    at_once(plan)


def test_the_history_of_a_job_is_written_by_its_newest(full: Store) -> None:
    plan = explain(full, lambda tx: history.note(tx, "job_00000100", "looked", completed=1, total=1, by="poll"))
    check(plan, "ix_history_job_id_number")


def test_pruning_walks_history_in_its_order(full: Store) -> None:
    check(explain(full, lambda tx: pruning.old_history(tx, NOW, 5)))


@pytest.mark.parametrize(
    ("listed", "index"),
    [
        (overview.waiting, "ix_hook_deliveries_hook_due_at"),
        (overview.dead, "ix_hook_deliveries_created_at"),
        (overview.latest, "ix_hook_deliveries_hook_created_at"),
    ],
    ids=["waiting", "dead", "latest"],
)
def test_what_goes_to_a_hook_is_listed_by_an_index(full: Store, listed: Callable[..., Any], index: str) -> None:
    check(explain(full, lambda tx: listed(tx, "index")), index)
