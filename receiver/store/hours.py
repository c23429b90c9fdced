"""Counts of each hour, added up as things happen: a chart reads some hundred rows, however much there was."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select

from receiver.store.tables import hours
from receiver.store.transaction import Transaction

HOUR = 3600


def note(tx: Transaction, name: str, counts: Mapping[str, int]) -> None:
    """Add to this hour's, by label. Last in a transaction but for `measures.note`: everybody writes these rows."""
    hour = int(tx.now // HOUR)
    # In one order everywhere, so that no two wait for each other in a ring.
    for label in sorted(counts):
        if counts[label]:
            statement = tx.insert(hours).values(hour=hour, name=name, label=label, count=counts[label])
            added = {"count": hours.c.count + counts[label]}
            tx.execute(statement.on_conflict_do_update(index_elements=list(hours.primary_key), set_=added))


def since(tx: Transaction, name: str, hour: int) -> dict[int, dict[str, int]]:
    """By hour and label, from `hour` (hours since the epoch) on; hours in which nothing happened are left out."""
    h = hours.c
    found: dict[int, dict[str, int]] = {}
    for of, label, count in tx.execute(select(h.hour, h.label, h.count).where(h.hour >= hour, h.name == name).order_by(h.hour)):
        found.setdefault(of, {})[label] = count
    return found
