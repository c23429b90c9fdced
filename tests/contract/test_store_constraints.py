"""Rows that cannot be are refused by the database itself, whatever the code does."""

from __future__ import annotations

from typing import Any

import pytest
from databases import NOW, Store
from sqlalchemy import CheckConstraint, Table

from receiver.errors import StoreError
from receiver.store import tables

GOOD: dict[str, dict[str, Any]] = {
    "deliveries": {"received_at": NOW, "outcome": "accepted", "job_id": "job_1", "body": b"{}"},
    "seen": {"key": "k", "first_at": NOW, "digest": "x"},
    "submissions": {"id": "s", "idempotency_key": "k", "body": "{}", "state": "pending", "created_at": NOW, "due_at": NOW},
    "jobs": {"id": "job_1", "state": "watching", "source": "track", "tracked_at": NOW, "due_at": NOW},
    "results": {"job_id": "j", "generation": 1, "position": 5, "page": 0, "url": "", "digest": b"", "start": 0, "length": 1},
    "chunks": {"job_id": "j", "generation": 1, "page": 0, "number": 0, "data": b"x" * 1048576},
    "outcomes": {
        "job_id": "j",
        "generation": 1,
        "status": "completed",
        "document": b"{}",
        "results": 2,
        "failed_urls": 2,
        "verified": True,
        "discovered_by": "poll",
        "requests": 0,
        "noticed_at": NOW,
        "settled_at": NOW,
    },
    "events": {"id": "e", "job_id": "j", "generation": 1, "type": "job.failed", "created_at": NOW, "payload": "{}"},
    "hooks": {"name": "h", "kind": "http", "target": "https://example.com", "events": "[]", "declared_at": NOW},
    "hook_deliveries": {
        "event_id": "e",
        "hook": "h",
        "job_id": "j",
        "generation": 1,
        "state": "pending",
        "created_at": NOW,
        "due_at": NOW,
    },
    "history": {"job_id": "job_1", "number": 1, "what": "looked", "at": NOW, "last_at": NOW, "detail": "{}"},
    "hook_attempts": {"event_id": "e", "hook": "h", "number": 1, "at": NOW, "seconds": 0.0, "outcome": "failed"},
    "grants": {"purpose": "probe", "granted_at": NOW, "frees_at": NOW + 90},
    "tallies": {"name": "hydrate", "count": 1},
    "measures": {"name": "settled", "label": "5", "count": 1, "seconds": 3.5},
    "refusals": {"reason": "missing", "count": 1, "last_at": NOW},
    "hours": {"hour": 472222, "name": "ended", "label": "completed", "count": 1},
    "pauses": {"name": "p", "until": NOW, "reason": "why"},
    "audits": {"name": "webhooks", "claimed_at": NOW},
    "leases": {"name": "stream", "owner": "o", "until": NOW},
    "limits": {"name": "tier", "rpm": 1, "until": NOW},
}
"""One possible row a table, as near to the edge as may be."""

SETTLED = {"state": "settled", "generation": 1, "settled_generation": 1}

IMPOSSIBLE: list[tuple[str, str, dict[str, Any]]] = [
    ("deliveries", "outcome_known", {"outcome": "duplicate"}),
    ("deliveries", "accepted_names_a_job", {"job_id": None}),
    ("deliveries", "quarantined_says_why", {"outcome": "quarantined"}),
    ("deliveries", "quarantined_says_why", {"reason": "but accepted"}),
    ("seen", "hits_positive", {"hits": 0}),
    ("submissions", "state_known", {"state": "lost", "due_at": None}),
    ("submissions", "sent_has_a_job", {"state": "sent", "due_at": None}),
    ("submissions", "sent_has_a_job", {"job_id": "job_1"}),
    ("submissions", "pending_is_due", {"due_at": None}),
    ("submissions", "pending_is_due", {"state": "refused"}),
    ("submissions", "lease_is_whole", {"lease_owner": "w"}),
    ("submissions", "lease_is_whole", {"lease_until": NOW}),
    ("jobs", "state_known", {"state": "lost"}),
    ("jobs", "source_known", {"source": "rumour"}),
    ("jobs", "discovered_by_known", {"discovered_by": "rumour"}),
    ("jobs", "settled_is_opened", {"settled_generation": 1}),
    ("jobs", "settled_is_opened", {"settled_generation": -1}),
    ("jobs", "hydrating_has_a_generation", {"state": "hydrating", "mark": "m"}),
    ("jobs", "hydrating_has_a_generation", {"state": "hydrating", "mark": "m", "generation": 1, "settled_generation": 1}),
    ("jobs", "hydrating_has_a_generation", {"state": "hydrating", "generation": 1}),
    ("jobs", "settled_is_newest", {"state": "settled", "generation": 2, "settled_generation": 1}),
    ("jobs", "settled_is_newest", {"state": "settled"}),
    ("jobs", "unsettled_is_due", {"due_at": None}),
    ("jobs", "unsettled_is_due", {"due_at": None, "state": "hydrating", "mark": "m", "generation": 1}),
    ("jobs", "page_limit_in_range", {"page_limit": 0}),
    ("jobs", "page_limit_in_range", {"page_limit": 101}),
    ("jobs", "retry_known", {"retry": "perhaps", **SETTLED}),
    ("jobs", "retry_is_due", {"retry": "due"}),
    ("jobs", "retry_is_due", {"retry": "due", **SETTLED, "due_at": None}),
    ("jobs", "held_is_due", {"held": True}),
    ("jobs", "held_is_due", {"held": True, **SETTLED}),
    ("jobs", "held_is_due", {"held": True, **SETTLED, "state": "parked", "due_at": None}),
    ("jobs", "lease_is_whole", {"lease_owner": "w"}),
    ("jobs", "lease_is_whole", {"lease_until": NOW}),
    ("results", "position_on_page", {"page": 6}),
    ("results", "position_on_page", {"page": -1}),
    ("results", "slice_not_empty", {"length": 0}),
    ("results", "slice_not_empty", {"start": -1}),
    ("chunks", "at_most_a_mebibyte", {"data": b"x" * 1048577}),
    ("outcomes", "status_known", {"status": "processing"}),
    ("outcomes", "discovered_by_known", {"discovered_by": "rumour"}),
    ("outcomes", "failed_within_results", {"failed_urls": 3}),
    ("outcomes", "failed_within_results", {"failed_urls": -1}),
    ("outcomes", "generation_positive", {"generation": 0}),
    ("outcomes", "swept_was_pruned", {"swept": True}),
    ("events", "type_known", {"type": "job.exploded"}),
    ("events", "stalled_says_which", {"stall": 1}),
    ("hooks", "kind_known", {"kind": "fax"}),
    ("hooks", "failing_since_the_first", {"failures": 1}),
    ("hooks", "failing_since_the_first", {"failing_since": NOW}),
    ("hooks", "paused_says_why", {"paused_at": NOW}),
    ("hooks", "paused_says_why", {"paused_why": "why"}),
    ("hooks", "probed_is_paused", {"probe_at": NOW}),
    ("hook_attempts", "outcome_known", {"outcome": "lost"}),
    ("hook_attempts", "was_made", {"number": 0}),
    ("hook_attempts", "was_made", {"seconds": -0.1}),
    ("hook_deliveries", "state_known", {"state": "lost", "due_at": None}),
    ("hook_deliveries", "pending_is_due", {"due_at": None}),
    ("hook_deliveries", "pending_is_due", {"state": "dead"}),
    ("hook_deliveries", "delivered_says_when", {"state": "delivered", "due_at": None}),
    ("hook_deliveries", "delivered_says_when", {"delivered_at": NOW}),
    ("hook_deliveries", "lease_is_whole", {"lease_owner": "w"}),
    ("hook_deliveries", "lease_is_whole", {"lease_until": NOW}),
    ("grants", "purpose_known", {"purpose": "fun"}),
    ("audits", "name_known", {"name": "jobs"}),
    ("history", "what_known", {"what": "rumoured"}),
    ("history", "counts_from_one", {"count": 0}),
    ("history", "counts_from_one", {"number": 0}),
    ("limits", "name_known", {"name": "wish"}),
    ("limits", "rpm_positive", {"rpm": 0}),
]


def table(name: str) -> Table:
    return tables.metadata.tables[name]


def test_the_possible_rows_are_taken(store: Store) -> None:
    """So that what refuses the others is what is impossible in them."""
    for name, row in GOOD.items():
        store.put(table(name), row)
    assert set(GOOD) == set(tables.metadata.tables)


@pytest.mark.parametrize(("name", "constraint", "change"), IMPOSSIBLE, ids=lambda value: str(value)[:60])
def test_an_impossible_row_is_refused(store: Store, name: str, constraint: str, change: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match=f"ck_{name}_{constraint}"):
        store.put(table(name), GOOD[name] | change)


def test_every_constraint_is_listed() -> None:
    stated = {
        f"ck_{name}_{constraint.name}".replace(f"ck_{name}_ck_{name}_", f"ck_{name}_")
        for name, each in tables.metadata.tables.items()
        for constraint in each.constraints
        if isinstance(constraint, CheckConstraint)
    }
    assert stated == {f"ck_{name}_{constraint}" for name, constraint, _ in IMPOSSIBLE}


def test_what_a_row_must_say_it_says(store: Store) -> None:
    for name, row in GOOD.items():
        for column in table(name).columns:
            if not column.nullable and column.name in row:
                with pytest.raises(StoreError, match=r"NOT NULL|null value"):
                    store.put(table(name), row | {column.name: None})


UNIQUE: list[tuple[str, dict[str, Any]]] = [
    ("seen", {"first_at": NOW + 1}),
    ("submissions", {"idempotency_key": "another"}),
    ("submissions", {"id": "another"}),
    ("jobs", {"source": "webhook"}),
    ("results", {"url": "another"}),
    ("chunks", {"data": b"another"}),
    ("outcomes", {"status": "failed"}),
    ("events", {"id": "another"}),
    ("events", {"generation": 2}),
    ("hooks", {"kind": "python"}),
    ("hook_deliveries", {"generation": 2}),
]


@pytest.mark.parametrize(("name", "change"), UNIQUE, ids=lambda value: str(value)[:60])
def test_what_is_one_is_not_written_twice(store: Store, name: str, change: dict[str, Any]) -> None:
    store.put(table(name), GOOD[name])
    with pytest.raises(StoreError, match=r"UNIQUE|unique"):
        store.put(table(name), GOOD[name] | change)
