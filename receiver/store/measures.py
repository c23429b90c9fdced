"""What was measured, added up where it happens: a scrape reads a few rows, however many ends there were and whatever was pruned since.

Rows of their own would be counted again at each scrape, and counts would fall when retention takes rows away.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import select

from receiver.store.tables import measures
from receiver.store.transaction import Transaction

BUCKETS = (1.0, 2.0, 5.0, 15.0, 60.0, 300.0, 3600.0)
"""Seconds: upper bounds of the delays that are told apart."""
ACK_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 8.0)
"""The same of answers to deliveries."""
BATCH_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Deliveries that shared a commit: their number stands where else seconds do."""
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
    """How many waited at most so long (`bounds`), how many there are, and all their seconds together."""

    bounds: Sequence[float]
    within: Sequence[int]
    count: int
    total: float


def delay(name: str, seconds: float, bounds: Sequence[float] = BUCKETS) -> Measure:
    """One wait. Where two machines' clocks disagree it may seem to have been less than none."""
    return Measure(name, bucket(seconds, bounds), seconds=max(seconds, 0.0))


def bucket(value: float, bounds: Sequence[float]) -> str:
    """The label of the smallest bound that it does not exceed."""
    place = bisect_left(bounds, value)
    return f"{bounds[place]:g}" if place < len(bounds) else _BEYOND


def together(found: Iterable[Measure]) -> list[Measure]:
    """Those of one kind as one: each is a statement."""
    sums: dict[tuple[str, str], Measure] = {}
    for each in found:
        before = sums.get((each.name, each.label), Measure(each.name, each.label, count=0))
        sums[each.name, each.label] = replace(before, count=before.count + each.count, seconds=before.seconds + each.seconds)
    return list(sums.values())


def note(tx: Transaction, *found: Measure) -> None:
    """Add them. Last in a transaction: everybody writes these rows, and whoever has written one keeps the others waiting."""
    # In one order everywhere, so that no two wait for each other in a ring.
    for each in sorted(found, key=lambda each: (each.name, each.label)):
        if not each.count:
            continue
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

    def delays(self, name: str, bounds: Sequence[float] = BUCKETS) -> Delays:
        """Of those noted by `delay`, with the same bounds."""
        counts = self.counts(name)
        within, so_far = [], 0
        for bound in bounds:
            so_far += counts.get(f"{bound:g}", 0)
            within.append(so_far)
        total = sum(each.seconds for (of, _), each in self._found.items() if of == name)
        return Delays(bounds, within, so_far + counts.get(_BEYOND, 0), total)
