"""Dedupe keys on SQLite: held in memory while they are new, and written to `seen` many at once, in their order.

A key is random within its second, so written one by one each would change a page of the index of its own: most of what a commit of
deliveries would write. Here is one process (it holds the file's lock), so memory will do for the newest. Nothing can be lost with it:
the deliveries themselves are in the database, and what is held is exactly the keys of the newest of them, to be read again at a start.

Used only by the thread that writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from sqlalchemy import column, func, select, text

from receiver.core.delivery import id_keys
from receiver.store.tables import deliveries, seen
from receiver.store.transaction import Transaction

MOST: Final = 1 << 16
"""Keys held; a delivery has two or three. Some 14 MB."""
_AT_ONCE: Final = 4096
"""Keys in one statement."""
_ROWS: Final = 1024


Key = tuple[str, float, str]
"""A row of `seen`: the key, when it came first (Unix seconds, wall clock), and the digest of the body it came with."""


class HeldKeys:
    """The keys of one database. What a transaction holds or writes counts once `settle` says that it was committed."""

    def __init__(self) -> None:
        self._held: dict[str, Key] = {}
        self._staged: dict[str, Key] = {}
        self._spilt = False
        self._ends: dict[str, str] = {}
        """By kind, beyond the last key that `seen` may have: keys are led by time, so what is beyond need not be looked for."""

    def recall(self, tx: Transaction) -> None:
        """Hold what is not in `seen`: at a start, the keys of the newest deliveries before it."""
        self._held.clear()
        kind = func.substr(seen.c.key, 1, 1)
        for (last,) in tx.execute(select(func.max(seen.c.key)).group_by(kind)):
            self._mark(last)
        d = deliveries.c
        before = None
        while len(self._held) < MOST:
            newest = select(d.id, d.key, d.delivery_id, d.signed_at, d.received_at, seen.c.key.label("known"))
            newest = newest.join_from(deliveries, seen, seen.c.key == d.key, isouter=True).where(d.key.is_not(None))
            if before is not None:
                newest = newest.where(d.id < before)
            rows = tx.execute(newest.order_by(d.id.desc()).limit(_ROWS)).all()
            for row in rows:
                if row.known is not None:
                    return
                digest = row.key.split(":")[1]
                keys = (row.key, *id_keys(row.delivery_id, row.signed_at))
                self._held.update((key, (key, row.received_at, digest)) for key in keys)
            if len(rows) < _ROWS:
                return
            before = rows[-1].id

    def hold_if_new(self, tx: Transaction, keys: Sequence[Key]) -> bool:
        """Hold them all, or none: whether none was there already, nor twice among them."""
        fresh = {key[0]: key for key in keys}
        if len(fresh) < len(keys) or not self._held.keys().isdisjoint(fresh):
            return False
        ends = self._ends
        doubtful = [key for key in fresh if key < ends.get(key[0], "")] if ends else []
        if doubtful and tx.execute(_KNOWN, {"keys": json.dumps(doubtful)}).first() is not None:
            return False
        if len(self._held) >= MOST:
            self.spill(tx)
        self._staged.update(fresh)
        return True

    def spill(self, tx: Transaction) -> None:
        """Write what is held to `seen`, in its order."""
        held = sorted(self._held.values())
        self._spilt = bool(held)
        for begin in range(0, len(held), _AT_ONCE):
            tx.execute(_WRITE, {"keys": json.dumps(held[begin : begin + _AT_ONCE])})

    def written(self, keys: Sequence[str]) -> None:
        """`seen` has these: they need to be looked for from now on."""
        for key in keys:
            self._mark(key)

    def settle(self, *, committed: bool) -> None:
        """A transaction has ended."""
        if committed:
            if self._spilt:
                for key in self._held:
                    self._mark(key)
                self._held.clear()
            self._held.update(self._staged)
        self._spilt = False
        self._staged.clear()

    def forget(self) -> None:
        """Begin anew, for a database that was emptied."""
        self._held.clear()
        self._ends.clear()

    def _mark(self, key: str) -> None:
        kind, end = key[0], f"{key.partition(':')[0]};"  # which comes after the colon
        if end > self._ends.get(kind, ""):
            self._ends[kind] = end


_KNOWN: Final = select(seen.c.key).where(seen.c.key.in_(select(column("value")).select_from(text("json_each(:keys)")))).limit(1)
_WRITE: Final = text(
    "INSERT INTO seen (key, first_at, digest) "
    "SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]') FROM json_each(:keys) "
    "WHERE true ON CONFLICT DO NOTHING"
)
