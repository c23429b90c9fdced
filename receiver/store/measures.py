"""What was measured, added up where it happens: a scrape reads a few rows, however many ends there were and whatever was pruned since.

Rows of their own would be counted again at each scrape, and counts would fall when retention takes rows away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select

from receiver.store.tables import measures
from receiver.store.transaction import Transaction

BUCKETS = (1.0, 2.0, 5.0, 15.0, 60.0, 300.0, 3600.0)
"""Seconds: upper bounds of the delays that are told apart."""
_BEYOND = "inf"


@dataclass(frozen=True, slots=True)
class Measure:
    """So many of one kind, and all their seconds together."""

    name: str
    label: str
    count: int = 1
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Delays:
    """How many waited at most so long (`BUCKETS`), how many there are, and all their seconds together."""

    within: Sequence[int]
    count: int
    total: float


def delay(name: str, seconds: float) -> Measure:
    """One wait. Where two machines' clocks disagree it may seem to have been less than none."""
    bound = next((f"{bound:g}" for bound in BUCKETS if seconds <= bound), _BEYOND)
    return Measure(name, bound, seconds=max(seconds, 0.0))


def note(tx: Transaction, *found: Measure) -> None:
    """Add them. Last in a transaction: everybody writes these rows, and whoever has written one keeps the others waiting."""
    # In one order everywhere, so that no two wait for each other in a ring.
    for each in sorted(found, key=lambda each: (each.name, each.label)):
        statement = tx.insert(measures).values(name=each.name, label=each.label, count=each.count, seconds=each.seconds)
        added = {"count": measures.c.count + each.count, "seconds": measures.c.seconds + each.seconds}
        tx.execute(statement.on_conflict_do_update(index_elements=list(measures.primary_key), set_=added))


class Sums:
    """All there is, as of one transaction."""

    def __init__(self, tx: Transaction) -> None:
        self._found = {(row.name, row.label): Measure(*row) for row in tx.execute(select(measures))}

    def counts(self, name: str) -> dict[str, int]:
        """By label."""
        return {label: each.count for (of, label), each in self._found.items() if of == name}

    def delays(self, name: str) -> Delays:
        """Of those noted by `delay`."""
        counts = self.counts(name)
        within, so_far = [], 0
        for bound in BUCKETS:
            so_far += counts.get(f"{bound:g}", 0)
            within.append(so_far)
        total = sum(each.seconds for (of, _), each in self._found.items() if of == name)
        return Delays(within, so_far + counts.get(_BEYOND, 0), total)
