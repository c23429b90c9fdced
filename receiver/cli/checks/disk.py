"""The disk under an SQLite file: how fast it makes things durable, how much room there is, and whether it stays."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from receiver.cli.checks.line import Line, fail, ok, warn
from receiver.clock import Clock

_TIMES: Final = 15
_PAGE: Final = b"\x00" * 4096
_SLOW, _TOO_SLOW = 0.05, 1.0
_LITTLE, _TOO_LITTLE = 1 << 30, 100 << 20
_LARGE_WAL: Final = 64 << 20

# Locks and shared memory, which SQLite's WAL rests on, do not hold there.
_NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "fuse.glusterfs", "ceph", "lustre", "afs"}
)
_PASSING: Final = frozenset({"tmpfs", "ramfs"})


def look(database: Path, clock: Clock) -> Iterator[Line]:
    """`database`: the file, which need not be there yet."""
    folder = database.parent
    if not folder.is_dir():
        yield fail("writing", f"there is no folder {folder}", "make it, or choose another place with RECEIVER_DATABASE_URL")
        return
    if database.exists() and not os.access(database, os.W_OK):
        yield fail("writing", f"{database} may only be read by this user", "give the service the right to write it")
    else:
        yield _writing(folder, clock)
    yield _room(database)
    kind = _kind(folder)
    if kind in _NETWORK:
        yield fail("disk_kind", f"{folder} is on a network ({kind}), where SQLite loses data", "use a local disk, or PostgreSQL")
    elif kind in _PASSING:
        hint = "choose a place on a disk with RECEIVER_DATABASE_URL, or use PostgreSQL"
        yield warn("disk_kind", f"{folder} is in memory ({kind}): what is stored there is gone at the next restart", hint)


def _writing(folder: Path, clock: Clock) -> Line:
    """By a file beside it: a running server has the database itself."""
    took = []
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".receiver-doctor-") as file:
            for _ in range(_TIMES):
                began = clock.monotonic()
                file.write(_PAGE)
                file.flush()
                os.fsync(file.fileno())
                took.append(clock.monotonic() - began)
    except OSError as error:
        why = f"nothing can be written in {folder} ({error.strerror})"
        return fail("writing", why, "make room, give the service the right to write there, or choose another place")
    median = statistics.median(took)
    told = f"a write is durable after {median * 1000:.1f} ms (at worst {max(took) * 1000:.1f} ms)"
    if median > _TOO_SLOW:
        return fail("writing", told, "Reader waits 10 s for an answer, and every one needs a write: use another disk")
    if median > _SLOW:
        return warn("writing", told, "no acknowledgement is sooner than that: is it a network disk, or a busy one?")
    return ok("writing", told)


def _room(database: Path) -> Line:
    free = shutil.disk_usage(database.parent).free
    wal = _size(database.with_name(database.name + "-wal"))
    told = f"{_bytes(free)} free; the database has {_bytes(_size(database))}, and {_bytes(wal)} in its WAL"
    if free < _TOO_LITTLE:
        return fail("disk", told, "make room: without any, deliveries are answered 503, and lost if that lasts for 20 s")
    if free < _LITTLE:
        return warn("disk", told, "make room, or have old results go by themselves: RECEIVER_RETENTION=30d")
    if wal > _LARGE_WAL:
        return warn("disk", told, "somebody reads for a long time, which keeps the WAL growing: end that, or restart the server")
    return ok("disk", told)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _bytes(number: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _kind(folder: Path) -> str | None:
    """The file system's, where the machine tells (Linux)."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return None
    here = folder.resolve()
    # The longest one that leads here, the last of equals: it lies on top.
    found = [(len(Path(point).parts), number, kind) for number, (point, kind) in enumerate(mounts) if here.is_relative_to(point)]
    return max(found)[2] if found else None
