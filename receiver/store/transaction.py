"""One transaction, and the time by which it judges what is due."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

from sqlalchemy import Connection, Table, text
from sqlalchemy.dialects import postgresql, sqlite


def per_dialect(build: Callable[[Callable[[Table], Any]], Any]) -> Callable[[Transaction], Any]:
    """A statement built once for each dialect, for paths where building it costs more than running it.

    `build` gets the dialect's `insert`, which knows ON CONFLICT: the same words in both, but not in SQLAlchemy's common core.
    """

    @cache
    def built(postgresql_wanted: bool) -> Any:  # noqa: FBT001 - a cache's key
        return build(postgresql.insert if postgresql_wanted else sqlite.insert)

    return lambda tx: built(tx.is_postgresql)


class Transaction:
    """What the store's functions get: a connection in a transaction, and the database's clock.

    On PostgreSQL that clock is the server's, so that replicas need not agree on the time. SQLite has one process, whose steady
    clock serves: a leap of the wall clock then moves neither leases nor due times.
    """

    def __init__(self, connection: Connection, steady: Callable[[], float]) -> None:
        self.connection = connection
        self.execute = connection.execute
        self._steady = steady

    @cached_property
    def now(self) -> float:
        """Unix seconds on the database's clock, fixed at the first look."""
        if self.is_postgresql:
            return float(self.connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
        return self._steady()

    @property
    def is_postgresql(self) -> bool:
        """Whether this is PostgreSQL (else SQLite)."""
        return self.connection.dialect.name == "postgresql"

    def insert(self, table: Table) -> Any:
        """An INSERT that knows ON CONFLICT: the same words in both dialects, but not in SQLAlchemy's common core."""
        return postgresql.insert(table) if self.is_postgresql else sqlite.insert(table)
