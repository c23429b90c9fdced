"""The schema's version: checked at every start, moved on by Alembic.

A version is an era and a number, such as 1.4. Within an era a migration only adds what the releases before it do not notice: tables,
indexes, and columns that may be left out. So any release works with any later version of its own era, and replicas are updated one by
one while others serve. What they could not work with begins a new era.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Final

from sqlalchemy import Column, Connection, MetaData, Table, Text, delete, inspect, select, text, update
from sqlalchemy.schema import CreateSchema

from receiver.errors import SettingsError
from receiver.store.postgresql import lock_key
from receiver.store.tables import hook_deliveries, jobs, leases, submissions
from receiver.store.transaction import Transaction, schema_of

HEAD: Final = "1.1"
"""The newest revision in `migrations/versions`."""
_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x536368656D61  # any number that is ours alone
_versions = Table("alembic_version", MetaData(), Column("version_num", Text))


def version(connection: Connection) -> str | None:
    """The revision our tables are at; None if there are none."""
    if not inspect(connection).has_table(_versions.name, schema=schema_of(connection)):
        return None
    return connection.execute(select(_versions.c.version_num)).scalar_one_or_none()


def migrate(connection: Connection) -> bool:
    """Bring the schema to `HEAD`, in one transaction; True if there was anything to do.

    Raises `SettingsError` for a schema of an era that this release does not know: going back could lose data.
    """
    with connection.begin():
        if connection.dialect.name == "postgresql":
            _prepare_postgresql(connection)
        current = version(connection)
        if _is_enough(current):
            return False
        # Imported here: Alembic takes a while to load, and nearly every start finds nothing to migrate.
        from alembic import command  # noqa: PLC0415
        from alembic.config import Config  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        with _one_at_a_time:
            command.upgrade(config, "head")
    return True


_one_at_a_time: Final = Lock()
"""What Alembic is doing is one thing for a whole process: two receivers that start in two threads would get in each other's way."""


def _prepare_postgresql(connection: Connection) -> None:
    schema = schema_of(connection)
    # A large table takes its time. All that is set here ends with the transaction, so it works behind a pooler.
    for limit in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        connection.execute(text(f"SET LOCAL {limit} = 0"))
    # Replicas that start together: one migrates, the others wait here and find it done.
    connection.execute(text(f"SELECT pg_advisory_xact_lock({lock_key(_LOCK, schema)})"))
    if schema is not None:
        if not inspect(connection).has_schema(schema):  # IF NOT EXISTS asks for the right to make one even where it is there
            connection.execute(CreateSchema(schema))
        # What a migration says in plain SQL, and Alembic of its own table, names no schema.
        connection.execute(text(f'SET LOCAL search_path TO "{schema}"'))


def check(connection: Connection) -> None:
    """Raises `SettingsError`, with the command that helps, unless this release can work with the schema."""
    current = version(connection)
    connection.rollback()
    if not _is_enough(current):
        state = "has no tables yet" if current is None else f"is at version {current}, and this release needs {HEAD}"
        raise SettingsError(f"the database {state}: run `receiver migrate`")


def clear_leases(tx: Transaction) -> None:
    """Free all work, where whoever held it is known to be gone."""
    for table in (jobs, submissions, hook_deliveries):
        tx.execute(update(table).where(table.c.lease_until.is_not(None)).values(lease_owner=None, lease_until=None))
    tx.execute(delete(leases))


def _is_enough(current: str | None) -> bool:
    if current is None:
        return False
    (era, number), (ours, least) = _parsed(current), _parsed(HEAD)
    if era > ours:
        raise SettingsError(
            f"the database is at version {current}, newer than this release can work with ({HEAD}): update receiver"
        )
    return era == ours and number >= least


def _parsed(version: str) -> tuple[int, int]:
    era, _, number = version.partition(".")
    try:
        return int(era), int(number)
    except ValueError:
        raise SettingsError(
            f"the database is at version {version!r}, which is none of receiver's: check RECEIVER_DATABASE_URL"
        ) from None
