"""When our webhook at Reader was last audited, and what it had sent by then."""

from __future__ import annotations

from sqlalchemy import func, select, update

from receiver.core.audit import Sent
from receiver.store.tables import audits, seen
from receiver.store.transaction import Transaction

_WEBHOOKS = "webhooks"


def claim(tx: Transaction, *, every: float) -> bool:
    """Whether an audit is due; if so, it is the caller's to make."""
    statement = tx.insert(audits).values(name=_WEBHOOKS, claimed_at=tx.now)
    taken = statement.on_conflict_do_update(
        index_elements=[audits.c.name], set_={"claimed_at": tx.now}, where=audits.c.claimed_at <= tx.now - every
    ).returning(audits.c.name)
    return tx.execute(taken).first() is not None


def next_due(tx: Transaction, *, every: float) -> float:
    """Seconds until one is due (negative: it is)."""
    claimed = tx.execute(select(audits.c.claimed_at)).scalar()
    return 0.0 if claimed is None else claimed + every - tx.now


def last(tx: Transaction) -> tuple[Sent, float] | None:
    """What had been sent at the last one that came through, and when that was (Unix seconds, wall clock)."""
    row = tx.execute(select(audits).where(audits.c.at.is_not(None))).first()
    return None if row is None else (Sent(row.attempts, row.failed), row.at)


def note(tx: Transaction, sent: Sent, *, at: float) -> None:
    """Remember this one."""
    tx.execute(update(audits).values(at=at, attempts=sent.attempts, failed=sent.failed))


def arrived(tx: Transaction, *, signed_since: float) -> int:
    """Deliveries that came, those that came again included, signed at that time (Unix seconds) or later."""
    if tx.held is not None:
        tx.held.spill(tx)
    # Keys of signed deliveries are led by their timestamp, of ten digits for some centuries to come.
    chosen = select(func.coalesce(func.sum(seen.c.hits), 0)).where(seen.c.key >= f"s{int(signed_since)}", seen.c.key < "t")
    return int(tx.execute(chosen).scalar_one())
