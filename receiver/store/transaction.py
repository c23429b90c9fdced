"""One transaction, and the time by which it judges what is due."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Table, text
from sqlalchemy.dialects import postgresql, sqlite

from receiver.store.postgresql import lock_key

if TYPE_CHECKING:
    from receiver.store.held_keys import HeldKeys


def per_dialect(build: Callable[[Callable[[Table], Any]], Any]) -> Callable[[Transaction], Any]:
    """A statement built once for each dialect, for paths where building it costs more than running it.

    `build` gets the dialect's `insert`, which knows ON CONFLICT: the same words in both, but not in SQLAlchemy's common core.
    """

    @cache
    def built(postgresql_wanted: bool) -> Any:  # noqa: FBT001 - a cache's key
        return build(postgresql.insert if postgresql_wanted else sqlite.insert)

    return lambda tx: built(tx.is_postgresql)


def schema_of(connection: Connection) -> str | None:
    """The PostgreSQL schema our tables are in, if they have one of their own."""
    names = connection.get_execution_options().get("schema_translate_map") or {}
    return names.get(None)


class Transaction:
    """What the store's functions get: a connection in a transaction, and the database's clock.

    On PostgreSQL that clock is the server's, so that replicas need not agree on the time. SQLite has one process, whose steady
    clock serves: a leap of the wall clock then moves neither leases nor due times.
    """

    def __init__(self, connection: Connection, steady: Callable[[], float], held: HeldKeys | None = None) -> None:
        self.connection = connection
        self.held = held
        """Dedupe keys that are not in the database yet: on SQLite, in transactions that write."""
        self.execute = connection.execute
        self._steady = steady
        self._now: float | None = None

    @property
    def now(self) -> float:
        """Unix seconds on the database's clock, fixed at the first look."""
        # Not a cached_property: before Python 3.12 all of a class share one lock, and each would wait for every other's round trip
        # (for ever, behind a pooler that has no connection left for the one that is in it).
        if self._now is None:
            self._now = self._ask_now()
        return self._now

    def _ask_now(self) -> float:
        if self.is_postgresql:
            return float(self.connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
        return self._steady()

    @property
    def is_postgresql(self) -> bool:
        """Whether this is PostgreSQL (else SQLite)."""
        return self.connection.dialect.name == "postgresql"

    def alone(self, number: int) -> None:
        """Wait until no other replica holds this number, and hold it until the end: on SQLite there is no other."""
        if self.is_postgresql:
            # Transaction-scoped, so it works behind a pooler.
            self.connection.execute(text(f"SELECT pg_advisory_xact_lock({lock_key(number, schema_of(self.connection))})"))

    def insert(self, table: Table) -> Any:
        """An INSERT that knows ON CONFLICT: the same words in both dialects, but not in SQLAlchemy's common core."""
        return postgresql.insert(table) if self.is_postgresql else sqlite.insert(table)
