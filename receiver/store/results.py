"""Results: each one's JSON exactly as it came, in compressed chunks, found again by position.

A page's results are laid end to end, cut every `CHUNK` bytes and compressed, one transaction a chunk, so that a page of 50 MB never
stalls a delivery. The page counts as stored once its rows are, in a last transaction: a crash before that leaves chunks that
the next reading of the same page overwrites.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import zstandard
from sqlalchemy import ColumnElement, Table, delete, func, select, tuple_

from receiver.core.hydration import Row
from receiver.errors import ResultsPrunedError
from receiver.store.many import insert_rows
from receiver.store.tables import chunks, outcomes, results
from receiver.store.transaction import Transaction, per_dialect

CHUNK = 512 * 1024
"""Bytes of JSON in a chunk: a commit of one takes about as long as one of many deliveries."""
_ROWS_SWEPT, _CHUNKS_SWEPT = 1000, 64
"""Deleted at once, at most."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A result's row: where its JSON lies in its page's chunks, and what is known of it without reading that."""

    position: int
    page: int
    url: str
    error: str | None
    digest: bytes
    start: int
    length: int


def compress(data: bytes) -> bytes:
    """A chunk as it is stored: a Zstandard frame. Level 1: markdown shrinks to a third, and time is what is short."""
    return zstandard.compress(data, level=1)


def put_chunks(tx: Transaction, job_id: str, generation: int, page: int, numbered: Sequence[tuple[int, bytes]]) -> None:
    """Store compressed chunks with their numbers in the page, over what a crash may have left there."""
    if numbered:
        of = {"job_id": job_id, "generation": generation, "page": page}
        tx.execute(_put_chunk(tx), [of | {"number": number, "data": data} for number, data in numbered])


@per_dialect
def _put_chunk(insert: Any) -> Any:
    statement = insert(chunks)
    return statement.on_conflict_do_update(index_elements=list(chunks.primary_key), set_={"data": statement.excluded.data})


def put_rows(tx: Transaction, job_id: str, generation: int, rows: Sequence[Stored]) -> None:
    """Store a page's rows: from now on it need not be asked for again."""
    if rows:
        columns = ("job_id", "generation", *Stored.__slots__)
        values = attrgetter(*Stored.__slots__)
        insert_rows(tx, results, columns, [(job_id, generation, *values(row)) for row in rows])


def read_rows(tx: Transaction, job_id: str, generation: int) -> list[tuple[int, Row]]:
    """What is stored of a pass, as (page, row) in order."""
    columns = (results.c.page, results.c.url, results.c.digest)
    found = tx.execute(select(*columns).where(*_of(job_id, generation)).order_by(results.c.position))
    return [(page, Row(url, bytes(digest))) for page, url, digest in found]


def count(tx: Transaction, job_id: str, generation: int) -> tuple[int, int]:
    """(results, those with an error)."""
    statement = select(func.count(), func.count(results.c.error)).where(*_of(job_id, generation))
    total, failed = tx.execute(statement).one()
    return total, failed


@dataclass(frozen=True, slots=True)
class Dropped:
    """What was deleted, and whether there is more."""

    rows: int = 0
    chunks: int = 0
    more: bool = False


def drop_some(tx: Transaction, job_id: str, generation: int) -> bool:
    """Delete a part of what a reading has stored; True while there is more.

    A settled generation stays, unless it was pruned: its handlers and replays read it, whatever becomes of the job.
    """
    of = (outcomes.c.job_id == job_id, outcomes.c.generation == generation)
    if tx.execute(select(outcomes.c.generation).where(*of, outcomes.c.pruned_at.is_(None))).first() is not None:
        return False
    return drop_part(tx, job_id, generation).more


def drop_part(tx: Transaction, job_id: str, generation: int) -> Dropped:
    """The same of any generation, rows first. A transaction stays short."""
    rows = _delete_some(tx, results, job_id, generation, _ROWS_SWEPT)
    if rows == _ROWS_SWEPT:
        return Dropped(rows, more=True)
    parts = _delete_some(tx, chunks, job_id, generation, _CHUNKS_SWEPT)
    return Dropped(rows, parts, more=parts == _CHUNKS_SWEPT)


def _delete_some(tx: Transaction, table: Table, job_id: str, generation: int, most: int) -> int:
    of = (table.c.job_id == job_id, table.c.generation == generation)
    key = [column for column in table.primary_key if column.name not in {"job_id", "generation"}]
    return tx.execute(delete(table).where(*of, tuple_(*key).in_(select(*key).where(*of).limit(most)))).rowcount


def read_slices(
    tx: Transaction, job_id: str, generation: int, *, skip: int, limit: int, max_bytes: int | None = None
) -> list[bytes]:
    """The JSON of results `skip`…, at most `limit` and, after the first, at most `max_bytes` together.

    Raises `ResultsPrunedError` where there were some.
    """
    of = (outcomes.c.job_id == job_id, outcomes.c.generation == generation)
    if tx.execute(select(outcomes.c.results).where(*of, outcomes.c.pruned_at.is_not(None))).scalar():
        raise ResultsPrunedError.of(job_id)  # looked at each time: it may come between two parts of one reading
    chosen = tx.execute(
        select(results.c.page, results.c.start, results.c.length)
        .where(*_of(job_id, generation), results.c.position >= skip)
        .order_by(results.c.position)
        .limit(limit)
    ).all()
    slices: list[bytes] = []
    reader = _ChunkReader(tx, job_id, generation)
    size = 0
    for page, start, length in chosen:
        size += length
        if slices and max_bytes is not None and size > max_bytes:
            break
        slices.append(reader.read(page, start, length))
    return slices


class _ChunkReader:
    """Reads slices in order, keeping the chunk at hand."""

    def __init__(self, tx: Transaction, job_id: str, generation: int) -> None:
        self._tx = tx
        self._where = (chunks.c.job_id == job_id, chunks.c.generation == generation)
        self._at: tuple[int, int] | None = None
        self._data = b""

    def read(self, page: int, start: int, length: int) -> bytes:
        return b"".join(self._parts(page, start, length))

    def _parts(self, page: int, start: int, length: int) -> Iterator[bytes]:
        end = start + length
        for number in range(start // CHUNK, (end - 1) // CHUNK + 1):
            base = number * CHUNK
            yield self._chunk(page, number)[max(start - base, 0) : end - base]

    def _chunk(self, page: int, number: int) -> bytes:
        if self._at != (page, number):
            statement = select(chunks.c.data).where(*self._where, chunks.c.page == page, chunks.c.number == number)
            self._data = zstandard.decompress(self._tx.execute(statement).scalar_one())
            self._at = (page, number)
        return self._data


def _of(job_id: str, generation: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return (results.c.job_id == job_id, results.c.generation == generation)
