"""One process at a time on an SQLite file.

SQLite before 3.51.3 can corrupt a WAL that two connections write or checkpoint at once, so whoever writes holds a lock for as
long as it runs. It lies on a file of its own: closing any descriptor of the database itself would drop SQLite's own locks. The holder
leaves its address in it, so that commands which change something can ask the holder to do it.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from receiver.errors import ReceiverError, SettingsError


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has the file: its process, and the URL it serves at, if it serves."""

    pid: int | None
    url: str | None


class LockHeldError(ReceiverError):
    """Another process writes to this SQLite file."""

    fault = "user"

    def __init__(self, database: Path, holder: Holder) -> None:
        super().__init__(
            f"{database} is in use by another receiver process (pid {holder.pid or 'unknown'}): stop that one first, "
            "or use PostgreSQL (RECEIVER_DATABASE_URL=postgresql://…) to run several"
        )
        self.holder = holder


class DatabaseLock:
    """The lock, held from construction to `release` (or the end of the process, however it ends)."""

    def __init__(self, database: Path) -> None:
        """Raises `LockHeldError` if somebody else has it, `SettingsError` if the file has several names, `OSError` if it cannot be."""
        _check_one_name(database)
        self._descriptor: int | None = os.open(_lock_path(database), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.announce(None)
        except BlockingIOError:
            self._close()
            raise LockHeldError(database, read_holder(database)) from None
        except OSError:
            self._close()
            raise

    def announce(self, url: str | None) -> None:
        """Leave the address at which the holder takes commands."""
        assert self._descriptor is not None
        note = json.dumps({"pid": os.getpid(), "url": url}).encode()
        os.pwrite(self._descriptor, note, 0)
        os.ftruncate(self._descriptor, len(note))

    def release(self) -> None:
        """Let others have it. The file stays: removing it could take it from under one who just opened it."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            self._close()

    def _close(self) -> None:
        # Once only: by the next time the number may be somebody else's file.
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def read_holder(database: Path) -> Holder:
    """What the holder left. It may be gone by now: only taking the lock tells."""
    try:
        note = json.loads(_lock_path(database).read_bytes())
        return Holder(pid=note["pid"], url=note["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return Holder(pid=None, url=None)


def _check_one_name(database: Path) -> None:
    # SQLite keeps its WAL beside the name it was opened by, as we keep the lock: two names of one file are two of each.
    names = database.stat().st_nlink if database.is_file() else 1
    if names > 1:
        raise SettingsError(
            f"{database} is a file with {names} names (hard links), and SQLite loses data when it is opened by two of them: "
            "remove the others, or make a copy (cp) and name that in RECEIVER_DATABASE_URL"
        )


def _lock_path(database: Path) -> Path:
    # Of the file itself: two links to one database are one database.
    path = Path(os.path.realpath(database))
    return path.with_name(path.name + ".lock")
