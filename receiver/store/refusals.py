"""Deliveries that failed authentication: counted by why, with when the last one came."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from receiver.store.tables import refusals
from receiver.store.transaction import Transaction


@dataclass(frozen=True, slots=True)
class Refused:
    """So many for one reason, the last one at that time (Unix seconds)."""

    reason: str
    count: int
    last_at: float


def note(tx: Transaction, reason: str, count: int) -> None:
    """Add to them."""
    statement = tx.insert(refusals).values(reason=reason, count=count, last_at=tx.now)
    more = {"count": refusals.c.count + statement.excluded.count, "last_at": statement.excluded.last_at}
    tx.execute(statement.on_conflict_do_update(index_elements=[refusals.c.reason], set_=more))


def known(tx: Transaction) -> list[Refused]:
    """All of them."""
    return [Refused(*row) for row in tx.execute(select(refusals).order_by(refusals.c.reason))]
