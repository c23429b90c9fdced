"""What waiting for jobs costs, and how late their ends are noticed: the schedule, a fixed sweep, and polling every two seconds.

`python -m tests.benchmarks.schedule`: jobs of 2 to 30 minutes in virtual time, as many at once as the tier allows; some of them
get on steadily, some in bursts, some stand still for a while, some are crawls. The same seed gives the same table.
"""

from __future__ import annotations

import argparse

from tests.simulation.simulator import Every, Ours, Watcher, World, simulate

WEBHOOKS = {1.0: "all lost", 0.5: "half lost", 0.0: "all arrive"}
OURS, SWEEP, POLLING = "Receiver", "a sweep every 5 minutes", "`wait_for_job`, every 2 s"
WATCHERS: dict[str, Watcher] = {OURS: Ours(), SWEEP: Every(300.0, sparing=True), POLLING: Every(2.0, sparing=False)}
ROWS = [
    ("pro", POLLING, 1.0),  # it listens to no webhook
    *[("pro", name, lost) for lost in WEBHOOKS for name in (SWEEP, OURS)],
    *[(tier, OURS, 1.0) for tier in ("free", "business", "enterprise")],
]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--jobs", type=int, default=2000)
    arguments.add_argument("--seed", type=int, default=1)
    chosen = arguments.parse_args()
    print("| tier, jobs at once | webhooks | who watches | requests per job | median delay | p95 delay | of the budget |")
    print("|---|---|---|---|---|---|---|")
    for tier, name, lost in ROWS:
        world = World(tier=tier, lost=lost, jobs=chosen.jobs, seed=chosen.seed)
        found = simulate(world, WATCHERS[name])
        webhooks = "not heard" if name == POLLING else WEBHOOKS[lost]
        measured = f"{found.looks:.1f} | {found.median:.1f} s | {found.p95:.0f} s | {found.spent:.0%}"
        print(f"| {tier}, {world.slots} | {webhooks} | {name} | {measured} |", flush=True)


if __name__ == "__main__":
    main()
