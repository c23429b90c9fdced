"""When to look next: seldom, but never so late that a lost webhook is felt for long."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import isfinite, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.core.schedule import (
    FIRST,
    LATE_LOOKS,
    RECENT,
    Earlier,
    Look,
    Outlook,
    Progress,
    first_look,
    late_look,
    next_look,
)

PRO = Outlook(watched=10, ended=0, told=0, lasted=0.0, budget=48.0)
"""A full workspace, every webhook lost."""
ALONE = replace(PRO, watched=1)
TOLD = replace(PRO, ended=RECENT, told=RECENT, lasted=1800.0)
"""The same; every end was told by a webhook."""

SECONDS = st.floats(0, 1e10)
COUNTS = st.integers(-(2**31), 2**31 - 1)
PROGRESS = st.builds(
    Progress,
    age=SECONDS,
    completed=st.integers(-2, 12_000) | COUNTS,
    total=st.integers(-2, 12_000) | COUNTS,
    still=SECONDS,
    earlier=st.none() | st.builds(Earlier, SECONDS, st.integers(-2, 12_000) | COUNTS, st.integers(-2, 12_000) | COUNTS),
)
OUTLOOKS = st.builds(
    lambda missed, **rest: Outlook(told=max(rest["ended"] - missed, 0), **rest),
    missed=st.integers(0, RECENT),
    watched=st.integers(0, 100_000),
    ended=st.integers(0, RECENT),
    lasted=SECONDS,
    budget=st.floats(0, 10_000),
)


def steady(age: float, duration: float, total: int, *, before: float) -> Progress:
    """A job that gets on evenly, looked at before at the age of `before`."""
    return Progress(age, int(total * age / duration), total, earlier=Earlier(age - before, int(total * before / duration), total))


# What holds for any job and any outlook.


@given(PROGRESS, OUTLOOKS)
def test_a_look_comes_between_two_seconds_and_an_hour(job: Progress, outlook: Outlook) -> None:
    """So a job all webhooks of which are lost is always found."""
    after = next_look(job, outlook).after
    assert isfinite(after)
    assert 2 <= after <= 3600
    assert FIRST <= first_look(outlook) <= 600


@given(PROGRESS, OUTLOOKS)
def test_the_end_is_expected_only_of_a_job_that_gets_on(job: Progress, outlook: Outlook) -> None:
    if next_look(job, outlook).expects_end:
        assert 0 < job.completed <= job.total


@given(PROGRESS, OUTLOOKS, st.integers(0, 1000))
def test_more_jobs_are_each_looked_at_no_sooner(job: Progress, outlook: Outlook, more: int) -> None:
    crowded = replace(outlook, watched=outlook.watched + more)
    assert next_look(job, crowded).after >= next_look(job, outlook).after


@given(PROGRESS, OUTLOOKS, st.floats(0, 1000))
def test_a_larger_budget_lets_nobody_wait_longer(job: Progress, outlook: Outlook, more: float) -> None:
    richer = replace(outlook, budget=outlook.budget + more)
    assert next_look(job, richer).after <= next_look(job, outlook).after


@given(PROGRESS, OUTLOOKS, SECONDS)
def test_what_stands_still_for_longer_is_looked_at_no_sooner(job: Progress, outlook: Outlook, longer: float) -> None:
    stiller = replace(job, still=job.still + longer)
    assert next_look(stiller, outlook).after >= next_look(job, outlook).after


@given(PROGRESS, OUTLOOKS)
def test_nobody_is_looked_at_sooner_because_others_tell(job: Progress, outlook: Outlook) -> None:
    silent = replace(outlook, told=0)
    assert next_look(job, outlook).after >= next_look(job, silent).after
    assert first_look(outlook) >= first_look(silent) == FIRST


# Where progress foretells the end.


@given(st.floats(60, 3600), st.integers(20, 1000), st.floats(0.6, 0.99))
def test_where_the_end_is_near_it_is_aimed_just_behind(duration: float, total: int, done: float) -> None:
    """A look just before the end costs a second one; one long after it is what nobody wants."""
    age = duration * done
    job = steady(age, duration, total, before=age / 2)
    look = next_look(job, PRO)
    left = (job.total - job.completed) * age / job.completed
    if look.expects_end:
        assert left < look.after <= 1.05 * left + 3.0001
    else:
        assert look.after <= max(left / 2, PRO.fair)


@given(st.floats(30, 7200), st.integers(100, 1000))
def test_a_steady_job_is_found_ended_within_seconds_with_few_looks(duration: float, total: int) -> None:
    """Every webhook lost: the looks grow with the logarithm of what it takes, until a sweep's would be more."""
    age, before, looks = FIRST, None, 0
    while age < duration:
        done = int(total * age / duration)
        job = Progress(age, done, total, earlier=before)
        look, looks = next_look(job, ALONE), looks + 1
        age, before = age + look.after, Earlier(look.after, done, total)
    assert age - duration <= 8 + duration / total
    assert looks <= 6 + 2.5 * log2(duration / FIRST) + duration / 300


def test_a_long_job_is_looked_at_halfway_and_at_least_as_often_as_by_a_sweep() -> None:
    job = steady(600, 6000, 1000, before=300)
    assert next_look(job, PRO) == Look(300, expects_end=False)
    assert 100 < next_look(steady(600, 900, 1000, before=300), PRO).after < 150


@pytest.mark.parametrize(
    "earlier",
    [
        None,
        Earlier(60, 10, 400),  # a crawl that goes on finding pages
        Earlier(60, 250, 500),  # nothing since
        Earlier(60, 20, 500),  # all at once
        Earlier(60, 300, 500),  # backwards: a retry
    ],
)
def test_a_trend_that_is_none_is_not_gone_by(earlier: Earlier | None) -> None:
    """It gets its share of the budget, like a job of which nothing is known."""
    assert next_look(Progress(600, 250, 500, earlier=earlier), PRO) == Look(PRO.fair, expects_end=False)


@pytest.mark.parametrize(("completed", "total"), [(0, 0), (0, 10), (-1, 10), (5, 0), (5, -1), (11, 10)])
def test_nonsense_and_no_progress_foretell_nothing(completed: int, total: int) -> None:
    assert next_look(Progress(8, completed, total), PRO) == Look(4, expects_end=False)


def test_a_job_that_stands_still_just_before_its_end_is_not_asked_for_full_pages_again_and_again() -> None:
    looks = [next_look(Progress(600, 499, 500, still=still, earlier=Earlier(5, 499, 500)), PRO) for still in (0, 20, 100, 2000)]
    assert [look.after for look in looks] == [pytest.approx(4.2, abs=0.1), 10, PRO.fair, 200]
    assert [look.expects_end for look in looks] == [True, False, False, False]


# Where it does not.


@given(st.floats(FIRST, 3600))
def test_a_short_job_is_noticed_within_half_its_time(duration: float) -> None:
    """A demo of jobs of seconds lives by that; and however long it takes, what is left over of the budget is its."""
    age = FIRST
    while age < duration:
        age += next_look(Progress(age, 0, 0), PRO).after
    assert age - duration <= min(max(duration / 2, 3), PRO.fair)


@pytest.mark.parametrize(("rpm", "jobs"), [(10, 2), (60, 10), (200, 50), (1000, 200)])
def test_what_foretells_nothing_shares_less_than_half_of_the_budget(rpm: int, jobs: int) -> None:
    outlook = replace(PRO, watched=jobs, budget=rpm * 0.8)
    look = next_look(Progress(600, 0, 0), outlook)
    assert jobs * 60 / look.after <= outlook.budget / 2


def test_a_lone_job_is_not_looked_at_as_often_as_it_might_be() -> None:
    assert ALONE.fair < 3
    assert next_look(Progress(600, 0, 0), ALONE).after == 15


# Where others tell.


@pytest.mark.parametrize(
    ("ended", "told", "telling"), [(0, 0, False), (9, 9, False), (10, 10, True), (19, 18, False), (20, 19, True), (20, 18, False)]
)
def test_webhooks_are_counted_on_once_nearly_all_of_many_came(ended: int, told: int, telling: bool) -> None:
    assert replace(PRO, ended=ended, told=told).telling is telling


@pytest.mark.parametrize(("lasted", "first"), [(0, 5), (1, 5), (20, 28), (3600, 600)])
def test_a_job_others_tell_of_is_first_looked_at_when_it_lasts_longer_than_any_did(lasted: float, first: float) -> None:
    """So one of a few seconds whose webhook is lost after all is still found within a few."""
    assert first_look(replace(TOLD, lasted=lasted)) == first


@given(st.floats(600, 1800), st.integers(20, 1000), st.floats(1, 30))
def test_a_steady_job_others_tell_of_is_looked_at_once(duration: float, total: int, webhook_after: float) -> None:
    age = first_look(TOLD)
    job = Progress(age, int(total * min(age / duration, 1)), total, earlier=Earlier(age, 0, total))
    assert age + next_look(job, TOLD).after >= duration + webhook_after - duration / total * 2


def test_what_others_tell_of_is_looked_at_ever_more_seldom() -> None:
    for job in (Progress(600, 0, 0), Progress(600, 499, 500, still=600)):
        assert 600 <= next_look(job, TOLD).after <= 1800
        assert next_look(replace(job, age=4000, still=4000), TOLD).after == 3600


# Late looks.


def test_late_looks_come_after_an_hour_six_hours_and_a_day_and_then_no_more() -> None:
    assert [late_look(done) for done in range(3)] == [3600, 6 * 3600, 24 * 3600] == list(LATE_LOOKS)
    assert late_look(3) is None
    assert late_look(100) is None


def test_late_looks_come_ever_later() -> None:
    assert all(earlier < later for earlier, later in pairwise(LATE_LOOKS))
