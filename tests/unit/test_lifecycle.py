"""A job's life: the table answers every question, and the drawing above it is of this table."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.core import lifecycle
from receiver.core.lifecycle import MOVES, Seen, State, compare, mark

ENDS = {Seen.SAME_END, Seen.NEW_END}


LOOKED_AT = set(State) - {State.PARKED}


def test_every_sight_in_every_state_that_is_looked_at_has_an_answer() -> None:
    assert set(MOVES) == {(state, seen) for state in LOOKED_AT for seen in Seen}


def test_a_generation_opens_only_on_an_end_and_is_then_read() -> None:
    for (_, seen), move in MOVES.items():
        if move.opens:
            assert seen in ENDS
            assert move.to is State.HYDRATING


def test_every_new_end_opens_a_generation() -> None:
    assert all(MOVES[state, Seen.NEW_END].opens for state in LOOKED_AT)


def test_an_end_after_a_live_sight_opens_one_even_with_the_mark_of_the_last() -> None:
    """`completedAt` may be null and the credits the same: that it ran in between is what counts."""
    assert MOVES[State.WATCHING, Seen.SAME_END].opens


def test_the_same_end_seen_again_opens_nothing() -> None:
    for state in (State.HYDRATING, State.SETTLED):
        assert not MOVES[state, Seen.SAME_END].opens


def test_a_live_job_is_watched_whatever_it_was() -> None:
    assert {MOVES[state, Seen.LIVE].to for state in LOOKED_AT} == {State.WATCHING}


def test_nothing_seen_settles_a_job() -> None:
    """Only a whole reading does."""
    assert {state for (state, _), move in MOVES.items() if move.to is State.SETTLED} == {State.SETTLED}


def test_a_settled_job_is_never_lost() -> None:
    """Reader forgets old jobs, or answers nonsense about them; what we have stays, and is not read again for it."""
    for seen in (Seen.MISSING, Seen.UNUSABLE, Seen.SAME_END):
        assert MOVES[State.SETTLED, seen] == lifecycle.Move(State.SETTLED)


def test_an_unsettled_job_that_cannot_be_read_is_parked() -> None:
    for state in (State.WATCHING, State.HYDRATING):
        for seen in (Seen.MISSING, Seen.UNUSABLE):
            assert MOVES[state, seen].to is State.PARKED


def test_pages_of_a_generation_that_is_over_are_abandoned() -> None:
    """Else a later reading would mix them with its own, or nobody would ever delete them."""
    assert MOVES[State.HYDRATING, Seen.NEW_END].abandons
    assert MOVES[State.HYDRATING, Seen.LIVE].abandons


def test_pages_are_abandoned_only_where_a_reading_may_be_under_way() -> None:
    assert {state for (state, _), move in MOVES.items() if move.abandons} <= {State.HYDRATING}


def test_pages_of_the_end_at_hand_are_kept() -> None:
    assert not any(MOVES[state, Seen.SAME_END].abandons for state in LOOKED_AT)


# -- naming what is seen -----------------------------------------------------------------------------------------------------

MARKS = st.none() | st.builds(
    mark, st.sampled_from(["completed", "failed"]), st.none() | st.just("2026-01-01"), st.integers(0, 3)
)


@given(MARKS, MARKS.filter(lambda value: value is not None))
def test_what_is_not_terminal_is_live_whatever_its_mark(known: str | None, seen: str) -> None:
    assert compare(known, False, seen) is Seen.LIVE


@given(MARKS, MARKS.filter(lambda value: value is not None))
def test_an_end_is_the_same_only_by_its_mark(known: str | None, seen: str) -> None:
    assert compare(known, True, seen) is (Seen.SAME_END if known == seen else Seen.NEW_END)


def test_the_first_end_of_a_job_is_a_new_one() -> None:
    assert compare(None, True, mark("completed", None, 0)) is Seen.NEW_END


STATUSES = st.sampled_from(["completed", "failed", "cancelled"])
TIMES = st.none() | st.sampled_from(["2026-04-04T12:00:00Z", "2026-04-04T12:00:01Z"])
CREDITS = st.integers(0, 10**12) | st.integers(0, 10**9).map(lambda n: n / 100)


@given(st.tuples(STATUSES, TIMES, CREDITS), st.tuples(STATUSES, TIMES, CREDITS))
def test_two_ends_have_one_mark_only_if_they_are_alike(
    one: tuple[str, str | None, float], other: tuple[str, str | None, float]
) -> None:
    assert (mark(*one) == mark(*other)) == (one == other)


@pytest.mark.parametrize(("one", "other"), [(1_234_567, 1_234_568), (1_000_000, 1_000_001), (123_456.78, 123_456.79)])
def test_a_job_that_cost_a_million_credits_shows_one_more(one: float, other: float) -> None:
    assert mark("completed", None, one) != mark("completed", None, other)


def test_a_whole_number_of_credits_has_one_mark() -> None:
    assert mark("completed", None, 45) == mark("completed", None, 45.0)


# -- the drawing -------------------------------------------------------------------------------------------------------------

MEANS = {
    "ended": ENDS,
    "ended anew": {Seen.NEW_END},
    "live": {Seen.LIVE},
    "missing": {Seen.MISSING},
    "unusable": {Seen.UNUSABLE},
    "whole": set(),  # nothing seen: the reading came to its end
    "cue": set(),  # nothing seen yet: somebody says that it is worth looking again
}
LEFT, RIGHT, UP, DOWN = (0, -1), (0, 1), (-1, 0), (1, 0)
ARMS = {"─": (LEFT, RIGHT), "│": (UP, DOWN), "└": (UP, RIGHT), "┘": (UP, LEFT), "┤": (UP, DOWN, LEFT), "┴": (LEFT, RIGHT, UP)}


def drawn() -> set[tuple[State, Seen, State]]:
    """The arrows of the module's drawing, traced from their heads back to the states they come from."""
    assert lifecycle.__doc__
    lines = [line for line in lifecycle.__doc__.splitlines() if re.search("[─│►▲]", line)]
    labels = {
        (y, x): label[0]
        for y, line in enumerate(lines)
        for label in re.finditer("(?<=─)[a-z][a-z, ]*(?=─)", line)
        for x in range(*label.span())
    }
    words = {(y, x): word[0] for y, line in enumerate(lines) for word in re.finditer("[a-z]+", line) for x in range(*word.span())}

    def back(at: tuple[int, int], way: tuple[int, int], label: str) -> set[tuple[str, str]]:
        """The (state, label) pairs from which lines lead to `at`, walking against the arrow."""
        at = (at[0] + way[0], at[1] + way[1])
        if at in labels:
            return back(at, way, labels[at])
        sign = lines[at[0]][at[1]]
        if sign in "►▲":
            return set()  # a line that branches: this is where its other branch leads
        if sign == " " or at in words:
            return {(words.get(at) or words[at[0] + way[0], at[1] + way[1]], label)}
        arms = [way] if sign == "┼" else [arm for arm in ARMS[sign] if arm != (-way[0], -way[1])]
        return set().union(*(back(at, arm, label) for arm in arms))

    arrows = set()
    for y, line in enumerate(lines):
        for x in (head.start() for head in re.finditer("[►▲]", line)):
            if line[x] == "►":
                targets = re.match(r" ([a-z]+(?:, [a-z]+)*)", line[x + 1 :])
                assert targets
                pairs = {(s, part, to) for s, label in back((y, x), LEFT, "") for part, to in _matched(label, targets[1])}
            else:
                above = next(words[up, x] for up in range(y, -1, -1) if (up, x) in words)
                pairs = {(s, part, above) for s, label in back((y, x), DOWN, "") for part in label.split(", ")}
            arrows |= {(State(s), seen, State(to)) for s, part, to in pairs for seen in MEANS[part]}
    return arrows


def _matched(label: str, targets: str) -> list[tuple[str, str]]:
    """`a, b ──► X, Y` is `a ──► X` and `b ──► Y`; `a, b ──► X` is two ways to one state, `a ──► X, Y` one way to either."""
    parts, states = label.split(", "), targets.split(", ")
    several = max(len(parts), len(states))
    return list(zip(parts * several if len(parts) == 1 else parts, states * several if len(states) == 1 else states, strict=True))


def test_the_drawing_shows_the_tables_changes_of_state_and_no_others() -> None:
    assert drawn() == {(state, seen, move.to) for (state, seen), move in MOVES.items() if move.to is not state}
