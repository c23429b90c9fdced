"""A page's results, packed for the store as they come: digested, laid end to end, compressed by the chunk, off the event loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgspec

from receiver.core.hydration import Page, Row
from receiver.reader.pages import Glimpse, Head, glimpse, loads
from receiver.store.results import CHUNK, Stored, compress


@dataclass(slots=True)
class PagePacker:
    """Takes raw results; holds what is to be stored of them. Memory: the compressed page, and one chunk."""

    skip: int
    rows: list[Stored] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    size: int = 0
    """Bytes of JSON taken so far."""
    _open: list[tuple[Glimpse, bytes]] = field(default_factory=list)
    _open_size: int = 0
    _rest: bytes = b""

    async def take(self, result: bytes) -> None:
        """One more result, as it came. Raises `ReaderUnavailableError` if it is not JSON."""
        self._open.append((glimpse(result), result))
        self._open_size += len(result)
        if self._open_size >= CHUNK:
            await asyncio.to_thread(self._pack)

    async def close(self) -> None:
        """The page has ended."""
        await asyncio.to_thread(self._pack, last=True)

    def _pack(self, *, last: bool = False) -> None:
        """In a thread: digesting and compressing let others run meanwhile, and take a while to be let in again."""
        data = self._rest + b"".join([result for _, result in self._open])
        for seen, result in self._open:
            digest = blake2b(result, digest_size=16).digest()
            position = self.skip + len(self.rows)
            self.rows.append(Stored(position, self.skip, seen.url, seen.error, digest, self.size, len(result)))
            self.size += len(result)
        self._open.clear()
        whole = len(data) if last else len(data) - len(data) % CHUNK
        self.chunks += [compress(data[start : start + CHUNK]) for start in range(0, whole, CHUNK)]
        self._rest = data[whole:]
        self._open_size = len(self._rest)

    def page(self, head: Head, *, limit: int) -> Page:
        """What there is to judge of it."""
        told = head.pagination
        rows = [Row(row.url, row.digest) for row in self.rows]
        return Page(
            skip=self.skip, limit=limit, total=told.total, has_more=bool(told.has_more), rows=rows, gathered=head.job.completed
        )


def unpack(result: bytes) -> dict[str, Any]:
    """A stored result as a dict."""
    try:
        value = msgspec.json.decode(result)
    except msgspec.DecodeError:
        value = loads(result)
    return value if isinstance(value, dict) else {"url": "", "value": value}
