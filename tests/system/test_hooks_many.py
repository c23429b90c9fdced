"""Many events to several hooks, of which some are bad: the others have all of theirs, and as soon as if they were alone."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
from databases import BACKENDS, Server

from receiver import Receiver, Settings
from receiver.clock import SystemClock
from receiver.store import outbox
from receiver.store.transaction import Transaction

EVENTS = int(os.environ.get("RECEIVER_TEST_EVENTS", "1000"))
"""10000 take some minutes."""
HANGS_FOR = 300.0
_CLOCK = SystemClock()

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(1200)]


class Place(asyncio.Protocol):
    """One connection to a hook that answers as `say` wishes; None: never."""

    def __init__(self, name: str, say: Callable[[], int | None], got: Counter[tuple[str, str]]) -> None:
        self._name, self._say, self._got = name, say, got
        self._left = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._left += data
        head, ended, body = self._left.partition(b"\r\n\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if not ended or len(body) < int(headers[b"content-length"]):
            return
        self._left = b""
        status = self._say()
        if status is None:
            return
        if status == 200:
            self._got[self._name, headers[b"webhook-id"].decode()] += 1
            self._got[self._name, ""] += 1  # all of them
        self._transport.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)


@asynccontextmanager
async def places(got: Counter[tuple[str, str]], **says: Callable[[], int | None]) -> AsyncIterator[dict[str, str]]:
    """Their URLs; and one of a place that nobody is at."""
    loop = asyncio.get_running_loop()
    open_: list[asyncio.Server] = []
    urls = {"dead": "http://127.0.0.1:1/"}
    for name, say in says.items():
        server = await loop.create_server(lambda name=name, say=say: Place(name, say, got), "127.0.0.1", 0)  # type: ignore[misc]
        open_.append(server)
        urls[name] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    yield urls
    for server in open_:
        server.close()


def publish(tx: Transaction, numbers: range) -> None:
    for n in numbers:
        data = {"job": {"id": f"job_{n}"}, "generation": 1}
        payload = json.dumps({"type": "job.completed", "timestamp": "2024-04-05T00:00:00Z", "data": data})
        outbox.publish(tx, outbox.Event(f"evt_{n}", f"job_{n}", 1, "job.completed", tx.now, payload))


@pytest.fixture(params=BACKENDS)
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Makes one at each call; returns its URL."""
    numbers = itertools.count()
    with ExitStack() as stack:
        if request.param == "sqlite":
            yield lambda: f"sqlite:///{tmp_path}/{next(numbers)}.db"
        else:
            server: Server = request.getfixturevalue("postgresql")
            yield lambda: stack.enter_context(server.migrated())


async def deliver(url: str, *, hangs_for: float) -> dict[str, float]:
    """Seconds until each live hook had all events."""
    got: Counter[tuple[str, str]] = Counter()
    dice = random.Random(1)
    says: dict[str, Callable[[], int | None]] = {
        "one": lambda: 200,
        "two": lambda: 200,
        "flaky": lambda: 500 if dice.random() < 0.3 else 200,
        "hangs": lambda: None,
    }
    async with places(got, **says) as urls:
        hooks = [{"name": name, "url": place, "timeout": hangs_for if name == "hangs" else 15} for name, place in urls.items()]
        settings = Settings(
            reader_webhook_secret="a-secret-of-the-many",  # type: ignore[arg-type]  # pydantic makes it one
            receiver_database_url=url,
            receiver_hooks=hooks,  # type: ignore[arg-type]
            receiver_hook_backoff=0.2,
            receiver_hook_attempts=100,
            receiver_listen=False,
        )
        receiver = Receiver(settings)
        async with receiver.running() as runtime:
            began = _CLOCK.monotonic()
            for numbers in (range(first, min(first + 500, EVENTS)) for first in range(0, EVENTS, 500)):
                await runtime.database.write(lambda tx, numbers=numbers: publish(tx, numbers))  # type: ignore[misc]
                runtime.wake("dispatcher")
            ended: dict[str, float] = {}
            while len(ended) < 3:
                await asyncio.sleep(0.05)
                for name in ("one", "two", "flaky"):
                    if name not in ended and got[name, ""] >= EVENTS:
                        ended[name] = _CLOCK.monotonic() - began
    for name in ("one", "two", "flaky"):
        told = Counter(count for (to, event), count in got.items() if to == name and event)
        assert told == {1: EVENTS}, "each event, and each once"
    return ended


async def test_twice_the_patience_with_one_that_hangs_changes_nothing_for_the_others(new_database: Callable[[], str]) -> None:
    """Its deliveries are given up, and begun again, all the while."""
    once = await deliver(new_database(), hangs_for=2.0)
    twice = await deliver(new_database(), hangs_for=4.0)
    for name, seconds in once.items():
        assert twice[name] < 1.5 * seconds + 1, (once, twice)


async def test_no_hook_waits_for_one_that_hangs_fails_or_is_dead(new_database: Callable[[], str]) -> None:
    """All is done before the first delivery to the one that hangs is given up: how long that takes is of no consequence to them."""
    ended = await deliver(new_database(), hangs_for=HANGS_FOR)
    if EVENTS <= 5000:  # more may take longer than any delivery may hang
        assert max(ended.values()) < HANGS_FOR, ended
