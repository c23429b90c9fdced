"""The pruner: deletes what is kept no longer, in passes of many small transactions. One process prunes for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import structlog

from receiver.store import leadership, pruning

if TYPE_CHECKING:
    from receiver.clock import Clock
    from receiver.store.engine import Database
    from receiver.store.transaction import Transaction

LEAD = "pruning"
"""The lease whose holder prunes."""
EVERY = 60.0
"""Seconds from the last transaction of a pass to the next pass, whoever makes it; and for which the lease is held meanwhile."""
KEYS_FOR = 24 * 3600.0
"""Seconds for which dedupe keys are kept at least: far longer than anybody sends a delivery again. What came later still would be
looked into, and found to have been told."""
HOURS_FOR = 8 * 86400.0
"""Seconds for which the counts of each hour are kept: a week and what today shows of it."""
_SHARE = 4
"""One part of the time in so many is spent writing: the rest is left to others."""

Prune: TypeAlias = "Callable[[Transaction, float, Any], pruning.Part]"

log = structlog.get_logger("receiver.pruner")


@dataclass(frozen=True, slots=True)
class _Step:
    """One kind of thing to prune, and for how many seconds it is kept."""

    name: str
    kept: float
    prune: Prune


@dataclass(slots=True)
class _Pass:
    """Where the pass at hand is, and what it has deleted so far."""

    steps: Iterator[_Step]
    step: _Step | None = None
    after: Any = None
    rows: Counter[str] = field(default_factory=Counter)


class Pruner:
    """See the module. `retention`: seconds for which deliveries, results and events are kept; 0: for ever.

    Dedupe keys are of use for a day, and pruned then even so. `tolerance`: how far a delivery's timestamp may be off, in seconds.
    """

    def __init__(self, database: Database, clock: Clock, *, owner: str, retention: float, tolerance: float) -> None:
        self._database = database
        self._clock = clock
        self._owner = owner
        self._steps = _steps(retention, tolerance)
        self._pass: _Pass | None = None
        self._busy = False

    async def run_once(self) -> bool:
        """Delete one part; False if there is nothing to do for now."""
        if self._busy:  # a tick repeats each service by several workers: one of them is enough
            return False
        self._busy = True
        try:
            return await self._wait() <= 0 and await self._go_on()
        except BaseException:
            self._pass = None  # the next one finds what is left
            raise
        finally:
            self._busy = False

    async def next_due(self) -> float | None:
        """Seconds until the next part, or the next pass."""
        return await self._wait()

    async def _wait(self) -> float:
        if self._pass is not None:
            return 0.0
        return await self._database.read(lambda tx: leadership.next_free(tx, LEAD))

    async def _go_on(self) -> bool:
        """Go on with the pass, or begin one, until a part was deleted. False: it is over, or another process prunes by now."""
        at = self._pass or _Pass(iter(self._steps))
        while (step := at.step or next(at.steps, None)) is not None:
            began = self._clock.monotonic()
            part = await self._database.write(lambda tx, step=step: self._prune(tx, step, at.after))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            if part is None:
                break
            at.step, at.after = (None, None) if part.after is None else (step, part.after)
            self._pass = at
            if part.rows:
                at.rows[step.name] += part.rows
                await self._clock.sleep((_SHARE - 1) * (self._clock.monotonic() - began))
                return True
        self._pass = None
        if at.rows:
            log.info("pruned", **at.rows)
        return False

    def _prune(self, tx: Transaction, step: _Step, after: Any) -> pruning.Part | None:
        if not leadership.lead(tx, LEAD, owner=self._owner, seconds=EVERY):
            return None
        part = step.prune(tx, tx.now - step.kept, after)
        pruning.note(tx, step.name, part.rows)
        return part


def _steps(retention: float, tolerance: float) -> list[_Step]:
    keys_for = max(KEYS_FOR, tolerance)
    always = [
        _Step("grants", 0.0, pruning.old_grants),
        # By the time they were signed at, which may be that much before they came.
        _Step("keys", keys_for + tolerance, pruning.signed_keys),
        _Step("keys", keys_for, pruning.unsigned_keys),
        _Step("hours", HOURS_FOR, pruning.old_hours),
    ]
    if not retention:
        return always
    return [
        *always,
        _Step("deliveries", retention, pruning.old_deliveries),
        _Step("results", retention, pruning.old_results),
        _Step("events", retention, pruning.old_events),
        _Step("history", retention, pruning.old_history),
        _Step("submissions", max(retention, KEYS_FOR), pruning.old_submissions),
    ]
