"""What only SQLite promises: one writer, one lock, and a file that may be full, locked or not ours to write."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import Store, subprocess_of
from sqlalchemy import text
from things import arrival, body, tracked

from receiver import ingest
from receiver.clock import SystemClock
from receiver.errors import SettingsError, StoreError
from receiver.store import engine, jobs, lock
from receiver.store.engine import Database
from receiver.store.inbox import Arrival, Outcome
from receiver.store.lock import DatabaseLock, Holder, LockHeldError, read_holder
from receiver.store.tables import deliveries
from receiver.store.tables import jobs as jobs_table


def path_of(store: Store) -> Path:
    return Path(store.url.removeprefix("sqlite:///"))


def accept(store: Store, one: Arrival) -> Outcome:
    async def wait() -> Outcome:
        return await store.database.arrive(one)

    outcome: Outcome = store.run(wait())
    return outcome


def test_a_commit_is_on_the_disk(sqlite: Store) -> None:
    """WAL, and each commit synced: what was answered outlives a power cut."""
    pragmas = ("journal_mode", "synchronous")
    found = [sqlite.write(lambda tx, p=pragma: tx.execute(text(f"PRAGMA {p}")).scalar_one()) for pragma in pragmas]
    assert found == ["wal", 2]


def test_one_connection_writes(sqlite: Store) -> None:
    """SQLite before 3.51.3 can corrupt a WAL that two connections write or checkpoint at once."""
    assert sqlite.database._writing()._working == 1
    for n in range(3):
        tracked(sqlite, f"job_{n}")
    with sqlite.busy():  # it has the only one there is
        connection = sqlite.writing.raw_connection()
        other = sqlite.writing.raw_connection()
        assert connection.driver_connection is other.driver_connection


def test_a_closed_database_is_one_file(sqlite: Store) -> None:
    """With all that was written in it: somebody may copy it."""
    tracked(sqlite)
    sqlite.read(jobs.listing)
    sqlite.database.close()
    path = path_of(sqlite)
    assert sorted(each.name for each in path.parent.iterdir()) == ["receiver.db", "receiver.db.lock"]
    copy = path.with_name("copy.db")
    copy.write_bytes(path.read_bytes())
    with Store(f"sqlite:///{copy}") as copied:
        assert copied.row(jobs_table)["id"] == "job_1"


# A disk that is full.


def test_a_full_disk_is_an_error_that_passes(sqlite: Store) -> None:
    """503 while it lasts; by itself again when there is room; nothing of what was refused is there, all that was accepted is."""

    def limit(pages: int) -> None:
        with sqlite.writing.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    accept(sqlite, arrival(id="before"))
    with sqlite.writing.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    limit(pages + 4)
    big = body(note="x" * 100_000)
    for n in range(3):
        with pytest.raises(StoreError, match="full"):
            accept(sqlite, arrival(big, id=f"big-{n}", job="big"))
    assert accept(sqlite, arrival(id="small", content=body(n=1))).name == "accepted"
    limit(1_000_000)
    assert accept(sqlite, arrival(big, id="big-0")).name == "accepted"
    kept = [row["delivery_id"] for row in sqlite.rows(deliveries)]
    assert kept == ["before", "small", "big-0"]


_FULL = """
import asyncio, os, resource, sys
from receiver.clock import SystemClock
from receiver.core.delivery import Delivery, Meaning
from receiver.errors import StoreError
from receiver.store.engine import Database
from receiver.store.inbox import Arrival

url, path = sys.argv[1:]

async def arrive(database, number):
    delivery = Delivery(b"x" * 50_000, Meaning.ENDED, f"job_{number}", None, None, None, 1, "x", f"s1:{number}", ())
    try:
        await database.arrive(Arrival(delivery, 1.0))
    except StoreError as error:
        return f"refused {error}"
    return f"accepted job_{number}"

async def main():
    with Database.open(url, SystemClock()) as database:
        print(await arrive(database, 0), flush=True)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path + "-wal") + 20_000, limits[1]))
        for number in (1, 2, 3):
            print(await arrive(database, number), flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        print(await arrive(database, 4), flush=True)

asyncio.run(main())
"""


def test_a_file_that_may_not_grow_is_an_error_that_passes(sqlite_url: str) -> None:
    """The operating system refuses in the midst of a commit: it is undone whole, and the next one after it works."""
    with subprocess_of(_FULL, sqlite_url, sqlite_url.removeprefix("sqlite:///")) as process:
        said = process.stdout.read().splitlines()
        assert process.wait(30) == 0
    assert [line.split()[0] for line in said] == ["accepted", "refused", "refused", "refused", "accepted"]
    with Store(sqlite_url) as store:
        assert [row["job_id"] for row in store.rows(deliveries)] == ["job_0", "job_4"]
        assert [row["id"] for row in store.rows(jobs_table)] == ["job_0", "job_4"]


# A file that somebody else has locked.


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[float]:
    """Waits for a lock a tenth of a second rather than five."""
    monkeypatch.setattr(engine, "_BUSY", 0.1)
    return 0.1


def test_a_write_lock_that_is_not_ours_is_an_error_that_passes(impatient: float, sqlite: Store) -> None:
    """Somebody edits the file with another program: 503 in time, and by itself again when they are done."""
    other = sqlite3.connect(path_of(sqlite), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        accept(sqlite, arrival())
    with pytest.raises(StoreError, match="locked"):
        tracked(sqlite)
    assert sqlite.read(jobs.listing) == ([], 0)
    other.execute("ROLLBACK")
    assert accept(sqlite, arrival()).name == "accepted"
    other.close()


def test_a_lock_is_given_up_before_the_sender_does() -> None:
    assert engine._BUSY < ingest.ANSWER_WITHIN < 10


def test_opening_a_file_that_somebody_has_locked(impatient: float, sqlite_url: str) -> None:
    """Refused in our words; nothing is left behind that would refuse the next."""
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        Database.open(sqlite_url, SystemClock())
    other.execute("ROLLBACK")
    other.close()
    Database.open(sqlite_url, SystemClock()).close()


# A file that is not ours to write, or no database.

_UNPRIVILEGED = """
import os, sys
from receiver.clock import SystemClock
from receiver.errors import StoreError
from receiver.store import jobs
from receiver.store.engine import Database

if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)  # root may write anything
try:
    with Database.open(sys.argv[1], SystemClock(), readonly=sys.argv[2] == "read") as database:
        print("opened", database.read_now(jobs.listing))
except StoreError as error:
    print("refused:", error)
"""


def _as_nobody(url: str, how: str) -> str:
    with subprocess_of(_UNPRIVILEGED, url, how) as process:
        said = process.stdout.read()
        assert process.wait(30) == 0
    return said


@pytest.fixture
def open_path(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """Everybody may come this far: pytest's own directories are private."""
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & stat.S_IXOTH:
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    tmp_path.chmod(0o755)
    return tmp_path


def test_a_directory_that_is_not_ours_to_write(open_path: Path) -> None:
    said = _as_nobody(f"sqlite:///{open_path}/receiver.db", "write")
    assert said == f"refused: cannot write to {open_path} (Permission denied): choose another place with RECEIVER_DATABASE_URL\n"


def test_a_file_that_is_not_ours_to_write(sqlite_url: str, open_path: Path) -> None:
    """In a directory that is: its lock can be had, so it is SQLite that refuses."""
    open_path.chmod(0o777)
    (open_path / "receiver.db").chmod(0o444)
    assert _as_nobody(sqlite_url, "write").startswith("refused: the database did not take it")


def test_a_file_that_is_not_ours_to_write_can_be_read(sqlite: Store, open_path: Path) -> None:
    """Beside the server that writes it."""
    tracked(sqlite)
    for path in open_path.iterdir():
        path.chmod(0o644)
    assert "job_1" in _as_nobody(sqlite.url, "read")


def test_a_file_that_is_not_ours_to_see(sqlite: Store, open_path: Path) -> None:
    open_path.chmod(0o700)
    assert _as_nobody(sqlite.url, "read") == f"refused: cannot read {open_path}/receiver.db (Permission denied)\n"


@pytest.mark.parametrize("what", ["a directory", "not a database", "a missing directory", "a link to itself"])
def test_what_is_no_database_is_told_in_our_words(tmp_path: Path, what: str) -> None:
    path = tmp_path / "receiver.db"
    if what == "a directory":
        path.mkdir()
    elif what == "not a database":
        path.write_bytes(b"not a database, whatever its name says" * 100)
    elif what == "a missing directory":
        path = tmp_path / "missing" / "receiver.db"
    else:
        path.symlink_to(path)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"the database did not take it|cannot write to") as caught:
            Database.open(f"sqlite:///{path}", SystemClock())
        assert "\n" not in str(caught.value)


# The lock.


def test_a_second_opener_is_refused_with_the_holders_address(sqlite: Store) -> None:
    held = sqlite.database.lock
    assert held is not None
    with pytest.raises(LockHeldError, match=rf"in use by another receiver process \(pid {os.getpid()}\)") as caught:
        Database.open(sqlite.url, SystemClock())
    assert caught.value.holder == Holder(os.getpid(), None)
    held.announce("http://127.0.0.1:8080")
    with pytest.raises(LockHeldError, match="use PostgreSQL") as caught:
        Database.open(sqlite.url, SystemClock())
    assert caught.value.holder == Holder(os.getpid(), "http://127.0.0.1:8080")
    held.announce(None)
    assert read_holder(path_of(sqlite)) == Holder(os.getpid(), None)


def test_a_refused_opener_changes_nothing(sqlite: Store) -> None:
    """The first one works on, and still holds the lock."""
    for _ in range(3):
        with pytest.raises(LockHeldError):
            Database.open(sqlite.url, SystemClock())
    tracked(sqlite)
    assert read_holder(path_of(sqlite)).pid == os.getpid()


@pytest.mark.parametrize("link", ["to the file", "to its directory"])
def test_another_path_to_the_same_file_is_the_same_lock(sqlite: Store, tmp_path: Path, link: str) -> None:
    path = path_of(sqlite)
    if link == "to the file":
        other = tmp_path / "link.db"
        other.symlink_to(path)
    else:
        (tmp_path / "link").symlink_to(path.parent)
        other = tmp_path / "link" / path.name
    with pytest.raises(LockHeldError):
        Database.open(f"sqlite:///{other}", SystemClock())


def test_a_file_of_two_names_is_refused_under_both(sqlite_url: str, tmp_path: Path) -> None:
    """Each name would have a lock, and a WAL, of its own; the first holder keeps what it has."""
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    other = path.with_name("other.db")
    with Database.open(sqlite_url, SystemClock()) as first:
        os.link(path, other)
        with pytest.raises(SettingsError, match="2 names") as caught:
            Database.open(f"sqlite:///{other}", SystemClock())
        assert str(other) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not other.with_name("other.db.lock").exists()
        assert first.lock is not None
    with pytest.raises(SettingsError, match="2 names"):
        Database.open(sqlite_url, SystemClock())
    Database.open(f"sqlite:///{other}", SystemClock(), readonly=True).close()
    other.unlink()
    Database.open(sqlite_url, SystemClock()).close()


def test_a_lock_that_was_released_is_anybodys(sqlite_url: str) -> None:
    for _ in range(3):
        with Database.open(sqlite_url, SystemClock()):
            pass
    assert read_holder(Path(sqlite_url.removeprefix("sqlite:///"))) == Holder(None, None)


def test_a_lock_released_twice_is_released_once(tmp_path: Path) -> None:
    """The second time its descriptor may be another file's."""
    held = DatabaseLock(tmp_path / "receiver.db")
    held.release()
    innocent = os.open(tmp_path / "innocent", os.O_RDWR | os.O_CREAT)
    os.write(innocent, b"precious")
    held.release()
    assert (tmp_path / "innocent").read_bytes() == b"precious"
    os.close(innocent)


def test_a_lock_that_cannot_be_announced_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, for one: the next attempt must not find our own lock in its way."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    url = f"sqlite:///{tmp_path}/receiver.db"
    with monkeypatch.context() as patch:
        patch.setattr(lock.os, "pwrite", full)
        with pytest.raises(StoreError, match="No space left on device"):
            Database.open(url, SystemClock())
    Database.open(url, SystemClock()).close()


_HOLD = """
import sys, time
from receiver.clock import SystemClock
from receiver.store.engine import Database

database = Database.open(sys.argv[1], SystemClock())
database.lock.announce("http://127.0.0.1:9999")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_ends_with_its_process_however_it_ends(sqlite_url: str) -> None:
    """Kill -9: nothing has to be cleaned up by hand."""
    with subprocess_of(_HOLD, sqlite_url) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(LockHeldError, match=f"pid {process.pid}") as caught:
            Database.open(sqlite_url, SystemClock())
        assert caught.value.holder == Holder(process.pid, "http://127.0.0.1:9999")
        process.kill()
        process.wait(30)
    with Database.open(sqlite_url, SystemClock()) as database:
        assert database.lock is not None
        assert read_holder(Path(sqlite_url.removeprefix("sqlite:///"))) == Holder(os.getpid(), None)


def test_nobody_else_may_read_who_holds_it(sqlite: Store) -> None:
    path = path_of(sqlite)
    assert stat.S_IMODE(path.with_name(path.name + ".lock").stat().st_mode) == 0o600


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff"])
def test_a_note_that_cannot_be_read_names_nobody(tmp_path: Path, note: bytes) -> None:
    (tmp_path / "receiver.db.lock").write_bytes(note)
    assert read_holder(tmp_path / "receiver.db") == Holder(None, None)
