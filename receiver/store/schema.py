"""The schema's version: checked at every start, moved on by Alembic."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, delete, inspect, text, update

from receiver.errors import SettingsError
from receiver.store.tables import hook_deliveries, jobs, leases, submissions
from receiver.store.transaction import Transaction

HEAD: Final = "0001"
"""The newest revision in `migrations/versions`."""
_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x536368656D61  # any number that is ours alone


def version(connection: Connection) -> str | None:
    """The revision the database is at; None if it is empty."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return revision


def migrate(connection: Connection) -> bool:
    """Bring the schema to `HEAD`, in one transaction; True if there was anything to do.

    Raises `SettingsError` for a schema newer than this release knows: going back could lose data.
    """
    with connection.begin():
        if connection.dialect.name == "postgresql":
            # Replicas that start together: one migrates, the others wait here and find it done.
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        current = version(connection)
        if current == HEAD:
            return False
        _refuse_newer(current)
        # Imported here: Alembic takes a while to load, and nearly every start finds nothing to migrate.
        from alembic import command  # noqa: PLC0415
        from alembic.config import Config  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return True


def check(connection: Connection) -> None:
    """Raises `SettingsError`, with the command that helps, unless the schema is at `HEAD`."""
    current = version(connection)
    connection.rollback()
    _refuse_newer(current)
    if current != HEAD:
        state = "has no tables yet" if current is None else f"is at version {current}, and this release needs {HEAD}"
        raise SettingsError(f"the database {state}: run `receiver migrate`")


def clear_leases(tx: Transaction) -> None:
    """Free all work, where whoever held it is known to be gone."""
    for table in (jobs, submissions, hook_deliveries):
        tx.execute(update(table).where(table.c.lease_until.is_not(None)).values(lease_owner=None, lease_until=None))
    tx.execute(delete(leases))


def _refuse_newer(current: str | None) -> None:
    if current is not None and current > HEAD:
        raise SettingsError(f"the database is at version {current}, newer than this release knows ({HEAD}): update receiver")
