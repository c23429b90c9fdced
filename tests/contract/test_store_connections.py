"""How PostgreSQL is connected to: within limits, also through what refuses them; and what is done about a connection that died."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from databases import Store
from sqlalchemy import text
from sqlalchemy.engine import make_url
from structlog.testing import capture_logs
from test_store_postgresql import break_connections
from things import tracked

from receiver.clock import SystemClock
from receiver.errors import StoreError
from receiver.store import jobs
from receiver.store.engine import Database
from receiver.store.postgresql import Options
from receiver.store.tables import jobs as jobs_table
from receiver.store.transaction import Transaction


def opened(url: str, options: Options | None = None) -> Database:
    return Database.open(url, SystemClock(), options=options or Options())


def setting(database: Database, name: str) -> str:
    return database.read_now(lambda tx: str(tx.execute(text(f"SHOW {name}")).scalar_one()))


# Limits.


def test_every_connection_has_limits(postgres: Store) -> None:
    """The server gives up a statement, a wait for a lock, and a transaction whose process froze."""
    with closing(opened(postgres.url)) as database:
        names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        assert [setting(database, name) for name in names] == ["30s", "5s", "10s"]


def test_no_statement_timeout_is_a_choice(postgres: Store) -> None:
    with closing(opened(postgres.url, Options(timeout=0))) as database, capture_logs() as logs:
        assert setting(database, "statement_timeout") == "0"
    assert logs == []


def test_what_the_url_says_wins(postgres: Store) -> None:
    url = make_url(postgres.url).update_query_dict({"options": "-c lock_timeout=1234", "application_name": "mine"})
    with closing(opened(url.render_as_string(hide_password=False))) as database:
        assert setting(database, "lock_timeout") == "1234ms"
        assert setting(database, "application_name") == "mine"
        assert setting(database, "statement_timeout") == "30s"


def test_a_wait_for_somebody_elses_lock_ends_before_a_sender_gives_up(postgres: Store) -> None:
    tracked(postgres)
    with psycopg.connect(postgres.url) as side, closing(opened(postgres.url, Options(timeout=0.2))) as database:
        side.execute("SELECT 1 FROM jobs FOR UPDATE")

        async def wait() -> None:
            await database.write(lambda tx: jobs.track(tx, "job_1", source="track"))

        with pytest.raises(StoreError, match=r"lock timeout|statement timeout"):
            asyncio.run(wait())


def test_a_process_makes_no_more_connections_than_its_pool_holds(postgres: Store) -> None:
    """However many read and write at once."""
    with closing(opened(postgres.url, Options(pool=2))) as database:

        async def scene() -> None:
            writes = [database.write(lambda tx, n=n: jobs.track(tx, f"job_{n}", source="track")) for n in range(20)]  # type: ignore[misc]
            reads = [database.read(jobs.listing) for _ in range(20)]
            await asyncio.gather(*writes, *reads)

        asyncio.run(scene())
        pool = database._engines.writing.pool
        assert pool.checkedin() == 2  # type: ignore[attr-defined]


@contextmanager
def pooler(url: str, folder: Path) -> Iterator[str]:
    """A way to the server that, as PgBouncer does, refuses a connection whose first packet asks for `options`."""
    query = make_url(url).query
    directory = query["host"]
    assert isinstance(directory, str)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / ".s.PGSQL.5432"))
    listening.listen()

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=attend, args=[listening.accept()[0]], daemon=True).start()

    def attend(client: socket.socket) -> None:
        with client, suppress(OSError):
            packet = client.recv(4096)
            if b"\0options\0" in packet:
                words = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
                client.sendall(b"E" + struct.pack("!I", len(words) + 4) + words)
                return
            with socket.socket(socket.AF_UNIX) as server:
                server.connect(f"{directory}/.s.PGSQL.5432")
                server.sendall(packet)
                back = threading.Thread(target=copy, args=[server, client], daemon=True)
                back.start()
                copy(client, server)
                back.join()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield make_url(url).update_query_dict({"host": str(folder)}).render_as_string(hide_password=False)
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_a_pooler_that_refuses_the_limits_is_used_without_them(postgres: Store, tmp_path: Path) -> None:
    """It says so once, and how to set them."""
    with pooler(postgres.url, tmp_path) as url, capture_logs() as logs, closing(opened(url)) as database:
        for _ in range(2):
            assert setting(database, "statement_timeout") == "0"
            database._engines.writing.dispose()
        assert database._engines.reading.connect().closed is False
    assert [log["event"] for log in logs] == ["database_limits_unset"]
    assert "ALTER ROLE" in logs[0]["hint"]


# Connections that died.


def test_a_connection_that_died_idle_costs_a_write_nothing_but_a_second_try(postgres: Store) -> None:
    """No round trip was spent on asking whether it lives. None of the others that died with it costs another try."""
    for _ in range(8):
        tracked(postgres)
    break_connections(postgres)
    tries: list[None] = []

    def work(tx: Transaction) -> None:
        tries.append(None)
        jobs.track(tx, "job_2", source="track")

    postgres.write(work)
    assert len(tries) == 2
    postgres.write(work)
    assert len(tries) == 3


def test_a_connection_that_broke_midway_is_replaced_and_the_work_done_once(postgres: Store) -> None:
    """The server undid what the first try had done."""
    broken: list[None] = []

    def work(tx: Transaction) -> None:
        jobs.track(tx, "job_1", source="track")
        if not broken:
            broken.append(None)
            break_connections(postgres)
        jobs.track(tx, "job_2", source="track")

    postgres.write(work)
    assert [row["id"] for row in postgres.rows(jobs_table)] == ["job_1", "job_2"]
    assert [row["cue"] for row in postgres.rows(jobs_table)] == [0, 0]


def test_work_whose_commit_may_have_happened_is_not_done_again(postgres: Store) -> None:
    """Not everything may be repeated: who asked is told, and knows what to do."""
    dialect = postgres.writing.dialect
    plain, tries = dialect.do_commit, [0]

    def broken(connection: psycopg.Connection) -> None:
        del dialect.do_commit  # once
        plain(connection)
        break_connections(postgres)
        connection.execute("SELECT 1")

    def work(tx: Transaction) -> None:
        tries[0] += 1
        jobs.track(tx, "job_1", source="track")

    dialect.do_commit = broken  # type: ignore[method-assign,assignment]
    with pytest.raises(StoreError):
        postgres.write(work)
    assert tries == [1]
    assert len(postgres.rows(jobs_table)) == 1
