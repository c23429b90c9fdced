"""Many rows in one statement, where a row at a time would cost the driver, and the interpreter's lock, more than the database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from sqlalchemy import ARRAY, ColumnClause, Table, TableValuedAlias, Text, bindparam, cast, func, literal_column, select
from sqlalchemy.dialects import postgresql

from receiver.store.transaction import Transaction

TRUE: ColumnClause[bool] = literal_column("true")
"""To say in `INSERT … SELECT … WHERE true ON CONFLICT …`: without a WHERE, SQLite takes ON for a join's."""


def members(name: str, insert: Callable[[Table], Any]) -> TableValuedAlias:
    """The members of the JSON object that is given as `name`, as rows of `key` and `value`, both text, in their order."""
    if insert is postgresql.insert:
        return func.json_each_text(cast(bindparam(name, type_=Text), postgresql.JSON)).table_valued("key", "value")
    return func.json_each(bindparam(name, type_=Text)).table_valued("key", "value")


def insert_rows(tx: Transaction, table: Table, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows whose values the drivers take as they are: none of them is looked at by SQLAlchemy."""
    if not rows:
        return
    if tx.is_postgresql:
        arrays = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
        tx.execute(_from_arrays(table, tuple(columns)), arrays)
    else:
        tx.connection.exec_driver_sql(_one_by_one(table, tuple(columns)), list(rows))


@cache
def _from_arrays(table: Table, columns: tuple[str, ...]) -> Any:
    arrays = [bindparam(name, type_=ARRAY(table.c[name].type)) for name in columns]
    rows = func.unnest(*arrays).table_valued(*columns).render_derived()
    return table.insert().from_select(list(columns), select(*(rows.c[name] for name in columns)))


@cache
def _one_by_one(table: Table, columns: tuple[str, ...]) -> str:
    return f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 - names of ours
