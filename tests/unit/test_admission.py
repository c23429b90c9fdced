"""Who is let in to wait for a commit: who is expected to get one in time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.core.admission import expected_wait, learnt

SECONDS = st.floats(0, 100)
AHEAD = st.integers(0, 10_000)


@pytest.mark.parametrize(
    ("ahead", "commit", "stalled", "seconds"),
    [
        (0, 0.0, 0.0, 0.0),
        (0, 1.0, 0.0, 1.0),
        (255, 1.0, 0.0, 1.0),
        (256, 1.0, 0.0, 2.0),
        (1024, 0.002, 0.0, 0.01),
        (0, 0.002, 3.0, 3.002),
        (600, 2.0, 0.5, 6.5),
    ],
)
def test_one_waits_for_the_commits_before_its_own_and_as_long_again_as_nothing_has_moved(
    ahead: int, commit: float, stalled: float, seconds: float
) -> None:
    assert expected_wait(ahead, at_once=256, commit=commit, stalled=stalled) == pytest.approx(seconds)


@given(AHEAD, AHEAD, SECONDS, SECONDS)
def test_who_comes_later_never_waits_less(ahead: int, more: int, commit: float, stalled: float) -> None:
    first = expected_wait(ahead, at_once=256, commit=commit, stalled=stalled)
    assert expected_wait(ahead + more, at_once=256, commit=commit, stalled=stalled) >= first


@given(SECONDS, SECONDS)
def test_what_is_learnt_lies_between_what_was_known_and_what_was_seen(commit: float, took: float) -> None:
    assert min(commit, took) <= learnt(commit, took) <= max(commit, took)


def test_a_few_quick_commits_make_up_for_a_slow_one() -> None:
    commit = learnt(0.002, 8.0)
    for _ in range(3):
        commit = learnt(commit, 0.002)
    assert commit < 1.0
