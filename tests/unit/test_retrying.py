"""Retrying by ourselves: when it is wanted, and what comes next."""

from __future__ import annotations

import pytest

from receiver.core.retrying import Do, Policy, Retry, step

TWO = Policy(2, 100)

WANTED = {
    "a completed one with a failed URL": (TWO, "completed", 1, 0, 0.0, True),
    "nothing failed": (TWO, "completed", 0, 0, 0.0, False),
    "a failed job": (TWO, "failed", 1, 0, 0.0, False),
    "a cancelled job": (TWO, "cancelled", 1, 0, 0.0, False),
    "one retry left": (TWO, "completed", 1, 1, 0.0, True),
    "none left": (TWO, "completed", 1, 2, 0.0, False),
    "more than allowed by now": (Policy(1), "completed", 1, 2, 0.0, False),
    "switched off": (Policy(), "completed", 1, 0, 0.0, False),
    "just within the ceiling": (TWO, "completed", 100, 0, 0.0, True),
    "just beyond it": (TWO, "completed", 101, 0, 0.0, False),
    "within it with what was spent": (TWO, "completed", 40, 1, 60.0, True),
    "beyond it with what was spent": (TWO, "completed", 40, 1, 60.5, False),
    "a ceiling of nothing": (Policy(2, 0), "completed", 1, 0, 0.0, False),
}


@pytest.mark.parametrize(("policy", "status", "failed", "retries", "spent", "wanted"), WANTED.values(), ids=WANTED)
def test_a_retry_is_wanted(policy: Policy, status: str, failed: int, retries: int, spent: float, wanted: bool) -> None:
    assert policy.wants(status=status, failed=failed, retries=retries, spent=spent) is wanted


# (how far it is, whether the job was just seen with the same end, whether somebody says that it has another) → what to do
STEPS = {
    (Retry.DUE, False, False): Do.ASK,
    (Retry.DUE, False, True): Do.LOOK,
    (Retry.DUE, True, False): Do.ASK,
    (Retry.DUE, True, True): Do.ASK,
    (Retry.ASKED, False, False): Do.LOOK,
    (Retry.ASKED, False, True): Do.LOOK,
    (Retry.ASKED, True, False): Do.ASK,
    (Retry.ASKED, True, True): Do.ASK,
    (Retry.REFUSED, False, False): Do.LOOK,
    (Retry.REFUSED, False, True): Do.LOOK,
    (Retry.REFUSED, True, False): Do.GIVE_UP,
    (Retry.REFUSED, True, True): Do.GIVE_UP,
}


@pytest.mark.parametrize("at", STEPS, ids=lambda at: f"{at[0]}{' looked' * at[1]}{' cued' * at[2]}")
def test_what_comes_next(at: tuple[Retry, bool, bool]) -> None:
    retry, looked, cued = at
    assert step(retry, looked=looked, cued=cued) is STEPS[at]


def test_every_case_has_an_answer() -> None:
    assert set(STEPS) == {(retry, looked, cued) for retry in Retry for looked in (False, True) for cued in (False, True)}
