"""Pages that come alive: whoever looks is told when what they see has changed, and fetches it anew.

One poller serves all viewers of a process, with one short read a second and none while nobody looks. Server-sent events hold no
transaction, and end when the server begins to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from receiver.errors import StoreError

if TYPE_CHECKING:
    from receiver.clock import Clock
    from receiver.store.engine import Database
    from receiver.store.transaction import Transaction

VIEWERS: Final = 64
"""At once, of one process; others see pages that stand still, and are fetched anew every few seconds."""
_EVERY, _ALIVE_EVERY = 1.0, 15.0


Look = Callable[["Transaction", str], Any]


class Live:
    """`look(tx, topic)`: what is to be seen of a topic, compared by what it prints as."""

    def __init__(self, look: Look, clock: Clock) -> None:
        self._look = look
        self._clock = clock
        self._viewers: dict[str, set[asyncio.Queue[str]]] = {}
        self._versions: dict[str, str] = {}
        self._poller: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether nobody more is let in."""
        return sum(map(len, self._viewers.values())) >= VIEWERS

    def version(self, tx: Transaction, topic: str) -> str:
        """What a page shows that is made in this transaction."""
        return hashlib.sha256(repr(self._look(tx, topic)).encode()).hexdigest()[:16]

    async def follow(self, database: Database, topic: str, *, until: asyncio.Event) -> AsyncIterator[bytes]:
        """Server-sent events, until the server stops (`until`) or the viewer goes."""
        news: asyncio.Queue[str] = asyncio.Queue(1)
        self._viewers.setdefault(topic, set()).add(news)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(database))
        elif topic in self._versions:
            news.put_nowait(self._versions[topic])
        stopping = asyncio.create_task(until.wait())
        getting = asyncio.create_task(news.get())
        try:
            yield b"retry: 3000\n\n"
            while not stopping.done():
                await asyncio.wait({getting, stopping}, timeout=_ALIVE_EVERY, return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    told, getting = getting.result(), asyncio.create_task(news.get())
                    yield f"event: version\ndata: {told}\n\n".encode()
                else:
                    yield b": alive\n\n"
        finally:
            stopping.cancel()
            getting.cancel()
            self._viewers[topic].discard(news)
            if not self._viewers[topic]:
                del self._viewers[topic]
                self._versions.pop(topic, None)

    async def _poll(self, database: Database) -> None:
        while self._viewers:
            with contextlib.suppress(StoreError):  # the next look tells
                self._tell(await database.read(self._versions_of))
            await self._clock.sleep(_EVERY)

    def _versions_of(self, tx: Transaction) -> Mapping[str, str]:
        return {topic: self.version(tx, topic) for topic in list(self._viewers)}

    def _tell(self, versions: Mapping[str, str]) -> None:
        for topic, version in versions.items():
            if self._versions.get(topic) == version:
                continue
            self._versions[topic] = version
            for news in self._viewers.get(topic, ()):
                while not news.empty():
                    news.get_nowait()
                news.put_nowait(version)
