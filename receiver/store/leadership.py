"""What one process does for all of them: whoever has the lease leads, for as long as it renews it.

A row, not an advisory lock: that one outlives a process that is frozen, and breaks behind a pooler.
"""

from __future__ import annotations

from sqlalchemy import delete, or_, select

from receiver.store.tables import leases
from receiver.store.transaction import Transaction

STREAM = "stream"
"""Led by whoever follows Reader's workspace stream, while it is open."""


def lead(tx: Transaction, name: str, *, owner: str, seconds: float) -> bool:
    """Take the lead, or keep it; False if another has it."""
    statement = tx.insert(leases).values(name=name, owner=owner, until=tx.now + seconds)
    free = or_(leases.c.owner == owner, leases.c.until <= tx.now)
    new = {"owner": owner, "until": tx.now + seconds}
    taken = statement.on_conflict_do_update(index_elements=[leases.c.name], set_=new, where=free).returning(leases.c.name)
    return tx.execute(taken).first() is not None


def resign(tx: Transaction, name: str, *, owner: str) -> None:
    """Give the lead up, if it is ours."""
    tx.execute(delete(leases).where(leases.c.name == name, leases.c.owner == owner))


def next_free(tx: Transaction, name: str) -> float:
    """Seconds until anybody may take the lead whose holder does not renew it (negative: it is free)."""
    until = tx.execute(select(leases.c.until).where(leases.c.name == name)).scalar()
    return 0.0 if until is None else until - tx.now


def led(tx: Transaction, name: str) -> bool:
    """Whether anybody leads."""
    return tx.execute(select(leases.c.name).where(leases.c.name == name, leases.c.until > tx.now)).first() is not None
