"""The store's contract: one suite, run on SQLite and on PostgreSQL."""

from databases import (  # noqa: F401 - fixtures are found by their names
    own,
    postgres,
    postgresql,
    postgresql_store,
    postgresql_url,
    sqlite,
    sqlite_store,
    sqlite_template,
    sqlite_url,
    store,
)
