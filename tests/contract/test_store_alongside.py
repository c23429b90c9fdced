"""What a handler writes with the end of its delivery is written with it, or not at all; and nobody waits long for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from databases import Store, transact
from sqlalchemy import column, insert, select, table, text
from sqlalchemy.exc import ResourceClosedError
from things import attempt, declare, event, finish, taken

from receiver.core.delivering import Persistence
from receiver.errors import LeaseLostError, UsageError
from receiver.store import alongside, outbox
from receiver.store.alongside import TheirsError
from receiver.store.hook_queue import HookDelivery
from receiver.store.tables import hook_deliveries

MINE = table("my_pages", column("event"), column("url"))


@pytest.fixture
def leased(store: Store) -> Iterator[HookDelivery]:
    declare(store, "index")
    store.write(lambda tx: tx.execute(text("CREATE TABLE my_pages (event TEXT, url TEXT)")))
    store.write(outbox.publish, event())
    delivery = taken(store)
    assert delivery is not None
    yield delivery
    store.write(lambda tx: tx.execute(text("DROP TABLE my_pages")))


def commit(store: Store, delivery: HookDelivery, function: Callable[[Any], object]) -> None:
    # Through the writer that all share, as a handler does.
    transact(store.database, lambda tx: alongside.commit(tx, attempt(delivery), function, Persistence()))


def mine(store: Store) -> list[tuple[Any, ...]]:
    return store.read(lambda tx: [tuple(row) for row in tx.execute(select(MINE.c.event, MINE.c.url).order_by(MINE.c.url))])


def state(store: Store) -> str:
    return str(store.row(hook_deliveries, hook="index")["state"])


def test_it_is_written_together_with_the_deliverys_end(store: Store, leased: HookDelivery) -> None:
    def write(connection: Any) -> None:
        mark = "%s" if store.postgresql else "?"
        connection.execute(f"INSERT INTO my_pages VALUES ({mark}, {mark})", ("e", "1"))
        connection.execute(f"INSERT INTO my_pages VALUES ({mark}, {mark})", ["e", "2"])
        connection.execute("INSERT INTO my_pages VALUES (:event, :url)", {"event": "e", "url": "3"})
        connection.execute(insert(MINE), [{"event": "e", "url": "4"}])
        connection.executemany("INSERT INTO my_pages VALUES (:event, :url)", [{"event": "e", "url": n} for n in "56"])
        connection.executemany(f"INSERT INTO my_pages VALUES ({mark}, {mark})", [("e", "7"), ["e", "8"]])
        connection.executemany("INSERT INTO my_pages VALUES (:event, :url)", [])
        connection.sqlalchemy.execute(insert(MINE).values(event="e", url="9"))
        assert connection.execute("SELECT count(*) FROM my_pages").scalar() == 9
        assert [row[0] for row in connection.execute("SELECT url FROM my_pages WHERE url < '3' ORDER BY url")] == ["1", "2"]
        assert connection.execute("UPDATE my_pages SET event = 'f' WHERE url = '9'").rowcount == 1

    commit(store, leased, write)
    assert mine(store) == [("e", str(n)) for n in range(1, 9)] + [("f", "9")]
    assert state(store) == "delivered"


def test_what_it_raises_undoes_all_of_it(store: Store, leased: HookDelivery) -> None:
    def write(connection: Any) -> None:
        connection.execute("INSERT INTO my_pages VALUES ('e', '1')")
        raise KeyError("its own")

    with pytest.raises(TheirsError) as caught:
        commit(store, leased, write)
    assert isinstance(caught.value.cause, KeyError)
    assert (mine(store), state(store)) == ([], "pending")
    commit(store, leased, lambda connection: connection.execute("INSERT INTO my_pages VALUES ('e', '2')"))
    assert (mine(store), state(store)) == ([("e", "2")], "delivered")


def test_a_row_that_its_own_table_refuses_is_its_own_trouble(store: Store, leased: HookDelivery) -> None:
    """Not the store's, which would be tried again as if a disk were full."""
    store.write(lambda tx: tx.execute(text("CREATE UNIQUE INDEX my_urls ON my_pages (url)")))
    with pytest.raises(TheirsError) as caught:
        commit(store, leased, lambda connection: connection.execute("INSERT INTO my_pages VALUES ('e', '1'), ('e', '1')"))
    assert type(caught.value.cause).__name__ == "IntegrityError"


@pytest.mark.parametrize("kind", ["taken over", "done"])
def test_who_does_not_hold_it_any_more_writes_nothing_and_is_not_even_run(store: Store, leased: HookDelivery, kind: str) -> None:
    if kind == "taken over":
        store.advance(61)
        assert taken(store) is not None
    else:
        finish(store, attempt(leased))
    ran: list[Any] = []
    with pytest.raises(LeaseLostError):
        commit(store, leased, ran.append)
    assert (ran, mine(store)) == ([], [])


def test_one_that_does_not_end_is_given_up_and_can_write_nothing_later(
    store: Store, leased: HookDelivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alongside, "WITHIN", 0.2)
    release, ended = threading.Event(), threading.Event()
    refused: list[str] = []

    def write(connection: Any) -> None:
        connection.execute("INSERT INTO my_pages VALUES ('e', '1')")
        release.wait(10)
        for late in (connection.execute, connection.sqlalchemy.exec_driver_sql):
            try:
                late("INSERT INTO my_pages VALUES ('e', '2')")
            except (RuntimeError, ResourceClosedError) as error:
                refused.append(type(error).__name__)
        ended.set()

    began = time.monotonic()
    with pytest.raises(TimeoutError, match="nothing of it is written"):
        commit(store, leased, write)
    assert time.monotonic() - began < 2
    store.write(lambda tx: tx.execute(text("INSERT INTO my_pages VALUES ('another', '3')")))
    release.set()
    assert ended.wait(10)
    assert refused == ["RuntimeError", "ResourceClosedError"]
    assert (mine(store), state(store)) == ([("another", "3")], "pending")


def test_a_statement_that_takes_too_long_is_broken_off(
    store: Store, leased: HookDelivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alongside, "WITHIN", 0.2)
    forever = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    slow = "SELECT pg_sleep(60)" if store.postgresql else forever
    ended = threading.Event()

    def write(connection: Any) -> None:
        try:
            connection.execute(slow)
        finally:
            ended.set()

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        commit(store, leased, write)
    assert ended.wait(5)
    assert time.monotonic() - began < 5
    commit(store, leased, lambda connection: connection.execute("INSERT INTO my_pages VALUES ('e', '1')"))
    assert (mine(store), state(store)) == ([("e", "1")], "delivered")


@pytest.mark.parametrize("words", ["COMMIT", "  rollback", "End transaction", "BEGIN", "ROLLBACK WORK"])
def test_the_end_of_the_transaction_is_not_its_to_make(store: Store, leased: HookDelivery, words: str) -> None:
    """Else what it wrote could be there while its delivery is not done."""

    def write(connection: Any) -> None:
        connection.execute("INSERT INTO my_pages VALUES ('e', '1')")
        connection.execute(words)

    with pytest.raises(TheirsError, match="together with the event"):
        commit(store, leased, write)
    assert (mine(store), state(store)) == ([], "pending")


def test_savepoints_are_its_own(store: Store, leased: HookDelivery) -> None:
    def write(connection: Any) -> None:
        connection.execute("SAVEPOINT here")
        connection.execute("INSERT INTO my_pages VALUES ('e', '1')")
        connection.execute("ROLLBACK TO here")
        connection.execute("INSERT INTO my_pages VALUES ('e', '2')")

    commit(store, leased, write)
    assert (mine(store), state(store)) == ([("e", "2")], "delivered")


def test_a_function_that_is_async_is_told_from_one_that_wrote_nothing(store: Store, leased: HookDelivery) -> None:
    async def write(connection: Any) -> None:
        connection.execute("INSERT INTO my_pages VALUES ('e', '1')")

    with pytest.raises(TheirsError, match="plain function") as caught:
        commit(store, leased, write)
    assert isinstance(caught.value.cause, UsageError)
    assert (mine(store), state(store)) == ([], "pending")
