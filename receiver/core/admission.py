"""Whether a delivery that comes now can be stored in time. If not, the honest answer is 503 at once: its sender comes again.

Only what was measured lately counts: how long a commit takes, how many deliveries wait for one, and for how long nothing has moved.
"""

from __future__ import annotations

PATIENCE = 4.0
"""Seconds that a delivery is expected to wait, at most. About half of what its sender has: an expectation is off by that much."""


def expected_wait(ahead: int, *, at_once: int, commit: float, stalled: float) -> float:
    """Seconds until it is stored, with `ahead` deliveries before it of which `at_once` share a commit.

    `commit`: seconds that one takes. `stalled`: since when nothing has begun or ended; as long again may pass before something does.
    """
    return stalled + (ahead // at_once + 1) * commit


def learnt(commit: float, took: float) -> float:
    """How long a commit takes, now that another one took so long. Three quick ones make up for a slow one."""
    return (commit + took) / 2
