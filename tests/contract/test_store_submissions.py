"""Submissions: written down before the request leaves, sent again by one worker at a time until there is an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from databases import NOW, Store
from things import arrival

from receiver.errors import LeaseLostError, StoreError
from receiver.store import submissions
from receiver.store.submissions import Submission
from receiver.store.tables import submissions as table
from receiver.store.transaction import Transaction

BODY = '{"urls": ["https://example.com"]}'


def add(store: Store, name: str = "sub_1", *, lease: float = 600.0) -> Submission:
    return store.write(submissions.add, name, key=f"key of {name}", body=BODY, lease=lease, owner="w")


def claim(store: Store, *, lease: float = 600.0) -> Submission | None:
    return store.write(submissions.claim, owner="w", lease=lease)


def must_claim(store: Store) -> Submission:
    submission = claim(store)
    assert submission is not None
    return submission


def test_it_is_leased_to_who_wrote_it_down(store: Store) -> None:
    assert add(store) == Submission("sub_1", "key of sub_1", BODY, NOW, attempts=0, fence=0)
    assert claim(store) is None
    assert store.read(submissions.body_of, "sub_1") == BODY
    assert store.read(submissions.body_of, "sub_2") is None


def test_a_crash_before_the_answer_lets_another_worker_send_it(store: Store) -> None:
    """Under the same idempotency key."""
    add(store)
    store.advance(600)
    again = must_claim(store)
    assert (again.id, again.idempotency_key, again.body, again.fence) == ("sub_1", "key of sub_1", BODY, 1)


def test_one_key_is_one_submission(store: Store) -> None:
    add(store)
    with pytest.raises(StoreError):
        store.write(submissions.add, "sub_2", key="key of sub_1", body=BODY, lease=600, owner="w")
    assert len(store.rows(table)) == 1


def test_sent_is_for_good(store: Store) -> None:
    store.write(submissions.sent, add(store), job_id="job_1")
    store.advance(1e6)
    assert claim(store) is None
    row = store.row(table)
    assert (row["state"], row["job_id"], row["due_at"], row["lease_owner"]) == ("sent", "job_1", None, None)


def test_later_is_when_it_falls_due_again(store: Store) -> None:
    submission = add(store)
    for attempt in range(1, 4):
        store.write(submissions.later, submission, wait=30, trouble="it \x00 timed \ud800 out")
        assert claim(store) is None
        store.advance(30)
        submission = must_claim(store)
        assert submission.attempts == attempt
    assert store.row(table)["trouble"] == "it \ufffd timed ? out"


def test_refused_and_expired_end_it_visibly(store: Store) -> None:
    store.write(submissions.refused, add(store, "a"), trouble="url_blocked")
    store.write(submissions.expired, add(store, "b"))
    store.advance(1e6)
    assert claim(store) is None
    assert [(row["state"], row["due_at"]) for row in store.rows(table)] == [("refused", None), ("expired", None)]
    assert store.row(table, id="a")["trouble"] == "url_blocked"
    assert "submit it anew" in store.row(table, id="b")["trouble"]


def test_the_longest_due_goes_first(store: Store) -> None:
    for name, wait in {"b": 20, "c": 30, "a": 10}.items():
        store.write(submissions.later, add(store, name), wait=wait, trouble="no")
    store.advance(60)
    assert [must_claim(store).id for _ in range(3)] == ["a", "b", "c"]


FINISHES: dict[str, Callable[[Transaction, Submission], None]] = {
    "sent": lambda tx, s: submissions.sent(tx, s, job_id="job_2"),
    "later": lambda tx, s: submissions.later(tx, s, wait=1, trouble="stale"),
    "refused": lambda tx, s: submissions.refused(tx, s, trouble="stale"),
    "expired": submissions.expired,
}


@pytest.mark.parametrize("finish", FINISHES.values(), ids=FINISHES)
def test_a_stale_worker_writes_nothing(store: Store, finish: Callable[[Transaction, Submission], None]) -> None:
    stale = add(store)
    store.advance(600)
    must_claim(store)
    before = store.rows(table)
    with pytest.raises(LeaseLostError):
        store.write(finish, stale)
    assert store.rows(table) == before


@pytest.mark.parametrize("second", FINISHES.values(), ids=FINISHES)
@pytest.mark.parametrize("first", ["sent", "later", "refused", "expired"])
def test_a_submission_that_was_given_back_is_written_no_more(
    store: Store, first: str, second: Callable[[Transaction, Submission], None]
) -> None:
    submission = add(store)
    store.write(FINISHES[first], submission)
    before = store.rows(table)
    with pytest.raises(LeaseLostError):
        store.write(second, submission)
    assert store.rows(table) == before


def test_next_due_is_the_soonest_that_nobody_sends(store: Store) -> None:
    due: list[Any] = [store.read(submissions.next_due)]
    submission = add(store)
    due.append(store.read(submissions.next_due))
    store.write(submissions.later, submission, wait=30, trouble="no")
    due.append(store.read(submissions.next_due))
    add(store, "sub_2")
    store.advance(40)
    due.append(store.read(submissions.next_due))
    store.advance(600)
    due.append(store.read(submissions.next_due))
    assert due == [None, None, 30.0, -10.0, -640.0]


def test_what_waits_to_be_sent_is_none_of_the_jobs(store: Store) -> None:
    """Its job has no id yet; deliveries do not touch it."""
    add(store)
    before = store.rows(table)
    store.arrive(arrival())
    assert store.rows(table) == before
