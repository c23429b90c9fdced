"""What the schedule promises, seen over thousands of jobs in virtual time."""

from __future__ import annotations

import pytest

from tests.simulation.simulator import Every, Ours, Report, World, simulate
from tests.simulation.true_jobs import KINDS


def ours(world: World) -> Report:
    """The schedule at work; whatever the world is, every job's end is noticed, and the budget kept in every minute."""
    found = simulate(world, Ours())
    assert len(found.delays()) == world.jobs
    assert min(found.delays()) >= 0
    assert found.busiest <= world.budget
    return found


@pytest.mark.parametrize("tier", ["free", "pro", "business", "enterprise"])
@pytest.mark.parametrize("seed", [1, 2])
def test_with_every_webhook_lost_half_of_the_jobs_are_noticed_within_15_seconds(tier: str, seed: int) -> None:
    """And no more than half of the budget goes into that."""
    found = ours(World(tier=tier, seed=seed))
    assert found.median <= 15
    assert found.p95 <= 75
    assert found.spent <= 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_it_holds_however_the_jobs_get_on(kind: str) -> None:
    found = ours(World(kinds={kind: 1.0}))
    assert found.median <= 15
    assert found.spent <= 0.5


def test_where_progress_foretells_the_end_few_looks_do() -> None:
    found = ours(World(kinds={"linear": 1.0}))
    assert found.median <= 10
    assert found.looks <= 10


@pytest.mark.parametrize("tier", ["free", "pro", "business", "enterprise"])
def test_with_every_webhook_arriving_a_job_costs_a_look_at_the_most(tier: str) -> None:
    found = ours(World(tier=tier, lost=0.0))
    assert found.looks <= 1
    assert found.median <= 2


def test_with_half_of_the_webhooks_lost_the_others_are_noticed_as_if_none_were() -> None:
    found = ours(World(lost=0.5))
    assert found.median <= 15
    assert found.p95 <= 60
    assert found.spent <= 0.5


@pytest.mark.parametrize("lost", [1.0, 0.5, 0.0])
def test_jobs_of_seconds_are_noticed_within_a_few(lost: float) -> None:
    found = ours(World(active=1, spans=(2.0, 10.0), pages=(1, 20), lost=lost))
    assert found.median <= 3
    assert found.p95 <= 8
    assert found.looks <= 3


def test_a_budget_that_is_too_small_for_its_jobs_is_shared_by_all_of_them() -> None:
    """Twenty at once on ten requests a minute, of which half are needed to submit and to read them."""
    found = ours(World(tier="free", active=20, pages=(1, 100)))
    assert found.median <= 200
    assert max(found.delays()) <= 900


def test_it_beats_a_sweep_by_far_and_polling_in_cost() -> None:
    world = World(jobs=200)
    found, sweep, polling = (simulate(world, watcher) for watcher in (Ours(), Every(300, sparing=True), Every(2, sparing=False)))
    assert found.median < sweep.median / 10
    assert found.p95 < sweep.p95 / 5
    assert found.looks < polling.looks / 20
    assert polling.busiest > world.budget / 0.8 > found.busiest, "polling exceeds the quota"


def test_the_same_seed_gives_the_same_account() -> None:
    world = World(jobs=100)
    assert simulate(world, Ours()).delays() == simulate(world, Ours()).delays()
    assert simulate(world, Ours()).delays() != simulate(World(jobs=100, seed=2), Ours()).delays()
