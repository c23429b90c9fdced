"""The request budget: never more than allowed in any sixty seconds, whoever asks, and whatever restarts in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from databases import NOW, Calendar, Store, in_threads, transact
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from receiver.store import budget
from receiver.store.budget import WINDOW, Denied, Granted, Purpose
from receiver.store.tables import grants, limits
from receiver.store.transaction import Transaction

LASTS = 30.0


def acquire(store: Store, purpose: Purpose = "hydrate", *, rpm: int | None = 10, share: float = 1.0) -> Granted | Denied:
    return store.write(budget.acquire, purpose, rpm=rpm, share=share, lasts=LASTS)


def granted(store: Store, purpose: Purpose = "hydrate", **options: Any) -> Granted:
    answer = acquire(store, purpose, **options)
    assert isinstance(answer, Granted), answer
    return answer


def spend(store: Store, purpose: Purpose = "hydrate", **options: Any) -> int:
    """Ask until refused; how many were granted."""
    count = 0
    while isinstance(acquire(store, purpose, **options), Granted):
        count += 1
    return count


# The window.


def test_no_more_than_the_budget_is_granted(store: Store) -> None:
    assert spend(store) == 10


@pytest.mark.parametrize(("rpm", "share", "expected"), [(10, 0.8, 8), (10, 0.01, 1), (1, 1.0, 1), (60, 0.5, 30)])
def test_our_share_is_a_part_of_the_limit_and_never_nothing(store: Store, rpm: int, share: float, expected: int) -> None:
    assert spend(store, rpm=rpm, share=share) == expected


def test_a_slot_is_free_again_a_window_after_its_answer(store: Store) -> None:
    """After the answer's headers, not after the grant: Reader counted the request somewhere in between."""
    first = granted(store, rpm=1)
    store.advance(20)
    store.write(budget.release, first, tally="hydrate")
    store.advance(WINDOW - 0.5)
    assert acquire(store, rpm=1) == Denied(0.5, None)
    store.advance(0.5)
    assert isinstance(acquire(store, rpm=1), Granted)


def test_a_slot_that_was_never_given_back_is_free_a_window_after_its_request_timed_out(store: Store) -> None:
    granted(store, rpm=1)
    assert acquire(store, rpm=1) == Denied(LASTS + WINDOW, None)
    store.advance(LASTS + WINDOW)
    assert isinstance(acquire(store, rpm=1), Granted)


def test_the_wait_is_until_enough_slots_are_free(store: Store) -> None:
    """Also where more are taken than the budget of a lesser purpose, or than a limit that has just been learned."""
    for _ in range(10):
        store.write(budget.release, granted(store), tally="hydrate")
        store.advance(1)
    assert acquire(store) == Denied(WINDOW - 10, None)
    assert acquire(store, "probe") == Denied(WINDOW - 8, None)
    store.write(budget.learn, "learned", rpm=1, seconds=3600)
    assert acquire(store) == Denied(WINDOW - 1, None)


def test_a_restart_does_not_reset_the_budget(store: Store) -> None:
    assert spend(store) == 10
    store.reopen()
    assert acquire(store) == Denied(LASTS + WINDOW, None)


def test_threads_and_replicas_share_one_budget(store: Store) -> None:
    """All at the same time: exactly the budget is granted, no more and no less."""
    replicas = [store.database] + [store.open() for _ in range(3 if store.postgresql else 0)]

    def worker(number: int) -> Callable[[], int]:
        database = replicas[number % len(replicas)]

        def work() -> int:
            got = 0
            for _ in range(10):
                answer = transact(database, lambda tx: budget.acquire(tx, "hydrate", rpm=25, share=1.0, lasts=LASTS))
                got += isinstance(answer, Granted)
            return got

        return work

    assert sum(in_threads([worker(n) for n in range(8)])) == 25
    assert len(store.rows(grants)) == 25


# Who may take how much of it.


def test_the_urgent_always_finds_room(store: Store) -> None:
    """Audits and probes leave a part of the budget alone; pages of results and commands may have it all."""
    assert [spend(store, purpose) for purpose in ("audit", "probe", "hydrate", "command")] == [5, 3, 2, 0]


def test_the_less_urgent_waits_when_the_urgent_has_taken_its_part(store: Store) -> None:
    for _ in range(8):
        granted(store)
    assert isinstance(acquire(store, "probe"), Denied)
    assert isinstance(acquire(store, "audit"), Denied)
    assert isinstance(acquire(store, "command"), Granted)


# Pauses.


def test_a_pause_stops_everything_and_says_why(store: Store) -> None:
    store.write(budget.pause, "rate_limited", seconds=12, reason="Reader said 429")
    for purpose in budget.SHARES:
        assert acquire(store, purpose) == Denied(12, "Reader said 429")
    store.advance(12)
    assert isinstance(acquire(store), Granted)


def test_the_longest_pause_is_told(store: Store) -> None:
    store.write(budget.pause, "a", seconds=5, reason="short")
    store.write(budget.pause, "b", seconds=50, reason="long")
    assert acquire(store) == Denied(50, "long")
    store.write(budget.resume, "b")
    assert acquire(store) == Denied(5, "short")


def test_a_pause_is_not_shortened_by_another_of_its_name(store: Store) -> None:
    store.write(budget.pause, "a", seconds=50, reason="first")
    store.write(budget.pause, "a", seconds=5, reason="second")
    assert acquire(store) == Denied(50, "first")
    store.write(budget.pause, "a", seconds=60, reason="third")
    assert acquire(store) == Denied(60, "third")


def test_a_pause_outlives_a_restart(store: Store) -> None:
    store.write(budget.pause, "a", seconds=50, reason="wait \x00\ud800")
    store.reopen()
    assert acquire(store) == Denied(50, "wait \ufffd?")


def test_a_paused_request_takes_no_slot(store: Store) -> None:
    store.write(budget.pause, "a", seconds=50, reason="wait")
    spend(store)
    store.write(budget.resume, "a")
    assert spend(store) == 10


# The limit.


def test_without_a_configured_limit_the_tier_tells(store: Store) -> None:
    """Ten until it is known; once told it stays the best guess, even when it is due to be asked for again."""
    assert store.read(budget.allowed, None) == 10
    store.write(budget.learn, "tier", rpm=60, seconds=86400)
    assert (store.read(budget.allowed, None), store.read(budget.knows_tier)) == (60, True)
    store.advance(86400)
    assert (store.read(budget.allowed, None), store.read(budget.knows_tier)) == (60, False)
    assert store.read(budget.allowed, 200) == 200


def test_a_learned_limit_lowers_and_expires(store: Store) -> None:
    store.write(budget.learn, "learned", rpm=5, seconds=3600)
    assert (store.read(budget.allowed, 60), store.read(budget.allowed, 3)) == (5, 3)
    store.advance(3600)
    assert store.read(budget.allowed, 60) == 60


@pytest.mark.parametrize(("rpm", "stored"), [(0, 1), (-5, 1), (2**40, 2**40)])
def test_a_limit_that_makes_no_sense_is_at_least_one(store: Store, rpm: int, stored: int) -> None:
    store.write(budget.learn, "learned", rpm=rpm, seconds=3600)
    assert store.row(limits)["rpm"] == stored
    assert store.read(budget.allowed, 60) == min(stored, 60)


# Counting.


def test_requests_are_counted_by_what_they_were_for(store: Store) -> None:
    for tally in ("hydrate", "probe", "hydrate"):
        store.write(budget.release, granted(store), tally=tally)
    store.write(budget.count, "hydrate")
    assert store.read(budget.counts) == {"hydrate": 3, "probe": 1}


# Any schedule.


@dataclass
class Reader:
    """What Reader's own sliding window saw. A request arrives somewhere between its grant and its answer."""

    arrivals: list[float] = field(default_factory=list)

    def most_in_a_window(self) -> int:
        return max((sum(start <= at < start + WINDOW for at in self.arrivals) for start in self.arrivals), default=0)


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(list(budget.SHARES)), st.integers(1, 12)),
        st.tuples(st.just("wait"), st.floats(0, 70), st.none()),
        st.tuples(st.just("answer"), st.floats(0, 1), st.integers(0, 20)),
        st.tuples(st.just("crash"), st.floats(0, 1), st.none()),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rpm=st.integers(1, 12), steps=_STEPS)
def test_no_window_ever_holds_more_than_the_budget(sqlite: Store, rpm: int, steps: list[tuple[str, Any, Any]]) -> None:
    """Any schedule of requests, answers, waits and crashes; and a minute of silence frees all of it."""
    clock, reader = Calendar(), Reader()
    flying: list[tuple[float, Granted]] = []
    with sqlite.writing.begin() as connection:

        def transaction() -> Transaction:
            return Transaction(connection, clock.steady)

        def ask(purpose: Purpose) -> bool:
            answer = budget.acquire(transaction(), purpose, rpm=rpm, share=1.0, lasts=LASTS)
            if isinstance(answer, Granted):
                flying.append((clock.now, answer))
            else:
                assert 0 < answer.wait <= LASTS + WINDOW
            return isinstance(answer, Granted)

        def arrive(number: int, share: float, latest: float) -> Granted:
            began, grant = flying.pop(number % len(flying))
            reader.arrivals.append(began + share * (min(latest, began + LASTS) - began))
            return grant

        for step, what, count in steps:
            if step == "ask":
                for _ in range(count):
                    ask(what)
            elif step == "wait":
                clock.now += what
                for number, (began, _) in reversed(list(enumerate(flying))):
                    if began + LASTS <= clock.now:  # it timed out; the worker that would have said so may be gone
                        arrive(number, 1.0, clock.now)
            elif step == "answer" and flying:
                budget.release(transaction(), arrive(count, what, clock.now), tally="hydrate")
            elif step == "crash":
                while flying:
                    arrive(0, what, clock.now + LASTS)
        while flying:
            arrive(0, 1.0, clock.now + LASTS)
        assert reader.most_in_a_window() <= rpm
        clock.now += LASTS + WINDOW
        assert [ask("hydrate") for _ in range(rpm + 1)] == [True] * rpm + [False]
        connection.rollback()


def test_the_window_slides(store: Store) -> None:
    """Ten requests a second apart are freed a second apart."""
    for _ in range(10):
        store.write(budget.release, granted(store), tally="hydrate")
        store.advance(1)
    store.advance(WINDOW - 10)
    for _ in range(10):
        assert spend(store) == 1
        store.advance(1)
    assert store.now == NOW + WINDOW + 10
