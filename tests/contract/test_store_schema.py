"""The schema: what a migration makes is what the code believes; a start refuses one it does not know."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import alembic.op
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from databases import BACKENDS, LATER, Server, Store, add_of_a_later_release, in_threads, subprocess_of
from sqlalchemy import CheckConstraint, create_engine, inspect, text
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.pool import NullPool

from receiver.clock import SystemClock
from receiver.errors import SettingsError, StoreError
from receiver.store import schema
from receiver.store.engine import Database
from receiver.store.tables import metadata

T = TypeVar("T")


@pytest.fixture(params=BACKENDS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with nothing in it, of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/receiver.db"
    else:
        with request.getfixturevalue("postgresql").empty() as url:
            yield url


def look(url: str, work: Callable[[Connection], T]) -> T:
    """Do `work` on a connection that knows nothing of us."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg") if "postgresql" in url else url, poolclass=NullPool)
    with engine.begin() as connection:
        result = work(connection)
    engine.dispose()
    return result


def opened(url: str, **options: bool) -> None:
    """Open and close."""
    Database.open(url, SystemClock(), **options).close()


def describe(connection: Connection) -> set[str]:
    """All that an inspection shows of our tables, fact by fact."""
    inspector = inspect(connection)
    facts = set()
    for table in set(inspector.get_table_names()) - {"alembic_version"}:
        facts |= {f"{table}: column {column}" for column in inspector.get_columns(table)}
        facts |= {f"{table}: check {check}" for check in inspector.get_check_constraints(table)}
        for index in inspector.get_indexes(table):
            options = {name: str(value) for name, value in index.pop("dialect_options", {}).items()}
            facts.add(f"{table}: index {index} {options}")
        facts |= {f"{table}: unique {unique['column_names']}" for unique in inspector.get_unique_constraints(table)}
        facts |= {f"{table}: key {inspector.get_pk_constraint(table)['constrained_columns']}"}
        facts |= {f"{table}: options {inspector.get_table_options(table)}"}
    return facts | (_layout(connection) if connection.dialect.name == "postgresql" else set())


def _layout(connection: Connection) -> set[str]:
    """What an inspection leaves out: how PostgreSQL is to fill the pages, and what it compresses and compares how."""
    tables = "SELECT relname, reloptions FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    columns = "SELECT attrelid::regclass, attname, attstorage, attcollation::regcollation FROM pg_attribute WHERE attnum > 0 AND "
    ours = "attrelid IN (SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace)"
    rows = [*connection.execute(text(tables)), *connection.execute(text(columns + ours))]
    return {f"{row[0]}: layout {tuple(row)}" for row in rows if row[0] != "alembic_version"}


def test_the_migrations_make_what_the_code_believes(empty_url: str) -> None:
    """By Alembic's comparison."""
    opened(empty_url, migrate=True)

    def differences(connection: Connection) -> Any:
        options = {"compare_type": True, "compare_server_default": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    assert look(empty_url, differences) == []


def test_the_migrations_make_what_the_tables_would_make(empty_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """By inspection of both: CHECK constraints too, partial indexes, and options of tables."""
    opened(empty_url, migrate=True)
    migrated = look(empty_url, describe)
    if empty_url.startswith("sqlite"):
        made_url = f"sqlite:///{tmp_path}/made.db"
        look(made_url, metadata.create_all)
        made = look(made_url, describe)
    else:
        with request.getfixturevalue("postgresql").empty() as made_url:
            look(made_url, metadata.create_all)
            made = look(made_url, describe)
    assert migrated == made
    assert {fact.split(":")[0] for fact in migrated} == set(metadata.tables)
    checks = [c for table in metadata.tables.values() for c in table.constraints if isinstance(c, CheckConstraint)]
    assert sum(": check " in fact for fact in migrated) == len(checks) > 0


def test_there_is_one_line_of_revisions_and_its_end_is_the_head() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


def test_migrating_again_changes_nothing(empty_url: str) -> None:
    opened(empty_url, migrate=True)
    before = look(empty_url, describe)
    opened(empty_url, migrate=True)
    assert look(empty_url, describe) == before


def test_sqlite_migrates_by_itself(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/receiver.db"
    opened(url)
    assert look(url, schema.version) == schema.HEAD


def test_postgresql_does_not_migrate_by_itself(postgresql: Server) -> None:
    """It says what to do, and leaves the database as it was."""
    with postgresql.empty() as url:
        with pytest.raises(SettingsError, match="has no tables yet: run `receiver migrate`"):
            opened(url)
        assert look(url, describe) == set()
        opened(url, migrate=True)
        opened(url)


def test_an_older_schema_names_the_command(store: Store) -> None:
    """Where it is not migrated at the start: on PostgreSQL, and for who only reads."""
    store.write(lambda tx: tx.execute(text("UPDATE alembic_version SET version_num = '0.9'")))
    try:
        with pytest.raises(SettingsError, match=f"at version 0.9, and this release needs {schema.HEAD}: run `receiver migrate`"):
            opened(store.url, readonly=not store.postgresql)
    finally:
        store.write(lambda tx: tx.execute(text("UPDATE alembic_version SET version_num = :head"), {"head": schema.HEAD}))


@pytest.mark.parametrize("options", [{}, {"readonly": True}, {"migrate": True}], ids=str)
def test_a_newer_schema_is_refused(empty_url: str, options: dict[str, bool]) -> None:
    """Going back could lose data. The refusal holds nothing: another release can open it at once."""
    opened(empty_url, migrate=True)
    look(empty_url, lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '2.1'")))
    for _ in range(2):
        with pytest.raises(SettingsError, match=r"at version 2\.1, newer than this release can work with"):
            opened(empty_url, **options)


@pytest.mark.parametrize("options", [{}, {"readonly": True}, {"migrate": True}], ids=str)
def test_a_version_that_is_none_of_ours_is_said_to_be(empty_url: str, options: dict[str, bool]) -> None:
    opened(empty_url, migrate=True)
    look(empty_url, lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = 'a1b2c3'")))
    with pytest.raises(SettingsError, match="'a1b2c3', which is none of receiver's: check RECEIVER_DATABASE_URL"):
        opened(empty_url, **options)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_release_works_with_a_later_version_of_its_era() -> None:
    """While replicas are updated one by one, and after going back: the whole contract holds where a later release has added things."""
    folder = Path(__file__).parent
    suites = [
        str(path) for path in folder.glob("test_store_*.py") if path.stem not in {"test_store_schema", "test_store_own_schema"}
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-m", "not slow", "-p", "no:cacheprovider", *suites]
    run = subprocess.run(command, env=os.environ | {LATER: "1"}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:]


@pytest.mark.parametrize("readonly", [True, False])
def test_a_later_version_is_left_as_it_is(empty_url: str, readonly: bool) -> None:
    opened(empty_url, migrate=True)
    add_of_a_later_release(empty_url)
    before = look(empty_url, describe), look(empty_url, schema.version)
    opened(empty_url, readonly=readonly)
    opened(empty_url, migrate=True)
    assert (look(empty_url, describe), look(empty_url, schema.version)) == before


def test_a_migration_that_fails_midway_leaves_nothing(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next one does it all."""
    with monkeypatch.context() as patch:

        def fail(*_: object, **__: object) -> None:
            raise sqlite3.OperationalError("power cut")

        patch.setattr(alembic.op, "create_index", fail)
        with pytest.raises(sqlite3.OperationalError, match="power cut"):
            opened(empty_url, migrate=True)
    assert look(empty_url, describe) == set()
    opened(empty_url, migrate=True)
    assert look(empty_url, schema.version) == schema.HEAD


_MIGRATE = """
import sys
from receiver.clock import SystemClock
from receiver.store.engine import Database
print("ready", flush=True)
sys.stdin.readline()
Database.open(sys.argv[1], SystemClock(), migrate=True).close()
"""


def test_replicas_may_migrate_at_the_same_time(postgresql: Server) -> None:
    """One does it; the others wait and find it done."""
    with postgresql.empty() as url, ExitStack() as stack:
        replicas = [stack.enter_context(subprocess_of(_MIGRATE, url)) for _ in range(2)]
        for replica in replicas:
            assert replica.stdout.readline() == "ready\n"
        for replica in replicas:
            replica.stdin.write("go\n")
            replica.stdin.flush()
        assert [replica.wait(30) for replica in replicas] == [0, 0]
        assert look(url, schema.version) == schema.HEAD


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_spelling_of_postgresql_is_accepted(postgres: Store, scheme: str) -> None:
    opened(postgres.url.replace("postgresql", scheme, 1))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "receiver.db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite://host/receiver.db",
        "mysql://u:hunter2@h/d",
        "://",
    ],
)
def test_a_url_that_names_no_database_of_ours(url: str) -> None:
    """The answer shows what would, and not what was given: it may hold a password."""
    with pytest.raises(SettingsError, match="use sqlite:///PATH or postgresql://") as caught:
        opened(url)
    assert "hunter2" not in str(caught.value)


def test_a_postgresql_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the database did not take it") as caught:
        opened(f"postgresql://user:hunter2@/db?host={tmp_path}")
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reader_of_nothing_is_told_what_to_do(tmp_path: Path) -> None:
    """And does not make a file by looking."""
    with pytest.raises(StoreError, match=r"there is no database at .*: start `receiver serve`"):
        opened(f"sqlite:///{tmp_path}/receiver.db", readonly=True)
    assert list(tmp_path.iterdir()) == []


def test_odd_paths_are_the_files_they_name(tmp_path: Path) -> None:
    odd = tmp_path / "a b%20?#é'.db"
    opened(f"sqlite:///{str(odd).replace('%', '%25').replace('?', '%3F').replace('#', '%23')}")
    assert odd.exists()


def test_receivers_that_start_at_once_in_threads_of_one_process_each_have_their_schema(tmp_path: Path) -> None:
    """Each in a file of its own, as in a test suite with several."""

    def start(number: int) -> str | None:
        with Database.open(f"sqlite:///{tmp_path}/{number}.db", SystemClock()) as database:
            found: str | None = database.read_now(lambda tx: schema.version(tx.connection))
            return found

    assert in_threads([partial(start, number) for number in range(4)]) == [schema.HEAD] * 4
