"""Many rows in one statement, where a row at a time would cost the driver, and the interpreter's lock, more than the database."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import (
    ColumnClause,
    CursorResult,
    Table,
    TableValuedAlias,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from receiver.store.postgresql import has_ended
from receiver.store.transaction import Transaction, schema_of

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
        _copy(tx, table, columns, rows)
    else:
        tx.connection.exec_driver_sql(_one_by_one(table, tuple(columns)), list(rows))


def insert_if_new(tx: Transaction, table: Table, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bool:
    """Insert rows, but all of them or none: whether none was there already, nor twice among them.

    PostgreSQL's: a third of what it takes to ask for each what became of it. It must be the first that a transaction does: else it
    would need a savepoint.
    """
    given = json.dumps([dict(zip(columns, row, strict=True)) for row in rows])
    done: CursorResult[Any] = tx.execute(_from_records(table, tuple(columns)), {"rows": given})
    if done.rowcount == len(rows):
        return True
    tx.connection.exec_driver_sql("ROLLBACK")  # the driver begins by itself
    return False


@cache
def _from_records(table: Table, columns: tuple[str, ...]) -> Any:
    named = [column(name, table.c[name].type) for name in columns]
    given = cast(bindparam("rows", type_=Text), postgresql.JSON)
    rows = func.json_to_recordset(given).table_valued(*named).render_derived(with_types=True)
    chosen = select(*(rows.c[name] for name in columns))
    statement = postgresql.insert(table).from_select(list(columns), chosen)
    statement = statement.on_conflict_do_nothing(index_elements=list(table.primary_key))
    return statement.execution_options(preserve_rowcount=True)


def _copy(tx: Transaction, table: Table, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """By COPY, a fifth of what parameters cost the driver: each of those it looks at in Python."""
    schema = schema_of(tx.connection)
    name = sql.Identifier(table.name) if schema is None else sql.Identifier(schema, table.name)
    into = sql.SQL("COPY {} ({}) FROM STDIN").format(name, sql.SQL(", ").join(map(sql.Identifier, columns)))
    raw: psycopg.Connection[Any] = tx.connection.connection.driver_connection  # type: ignore[assignment]  # SQLAlchemy's Any
    try:
        with raw.cursor() as cursor, cursor.copy(into) as copy:
            for row in rows:
                copy.write_row(row)
    except psycopg.Error as error:
        # As SQLAlchemy says it of what goes through its hands.
        lost = raw.broken or has_ended(error)
        if lost:
            tx.connection.invalidate(error)
        raise DBAPIError.instance("COPY", None, error, psycopg.Error, connection_invalidated=lost) from error


@cache
def _one_by_one(table: Table, columns: tuple[str, ...]) -> str:
    return f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 - names of ours
