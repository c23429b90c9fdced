"""What each page of the dashboard costs with a month in the tables, against an empty database.

`python -m tests.benchmarks.dashboard`: on SQLite and on a PostgreSQL of its own, two databases each: one empty, one with a million
deliveries and a hundred thousand jobs, as `growth` makes them. Each page is asked for in turn from both, by HTTP's words but without a
socket; what counts is the ratio of the medians. A page that shows one job shows it in both: in the empty database it is the only one.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import httpx

from receiver import Receiver
from receiver.settings import Settings
from receiver.store import history, outbox
from receiver.store.tables import results
from receiver.store.transaction import Transaction
from receiver.web.dashboard import pages
from tests.benchmarks.growth import _CLOCK, DATABASES, OF_A_JOB, Place, a_month

SEARCHED = 200
"""The newest jobs, of which a hundred results each are there: so many and more are looked through for a URL."""
SECRET = "whsec-of-the-benchmark-of-pages"
PAGES = (
    "",
    "/jobs",
    "/jobs?which=failed",
    "/jobs?which=missed",
    "/jobs?after={middle}",
    "/jobs?q={job}",
    "/jobs?q=in-no-url",
    "/jobs/{job}",
    "/deliveries",
    "/deliveries?outcome=quarantined",
    "/deliveries/{delivery}",
    "/hooks",
    "/hooks/one?name=index",
)


@dataclass
class Asked:
    """A database, and how long its pages took, in milliseconds."""

    place: Place
    client: httpx.AsyncClient
    names: dict[str, object]
    took: dict[str, list[float]] = field(default_factory=dict)

    async def ask(self, page: str) -> None:
        began = _CLOCK.monotonic()
        answer = await self.client.get("/dashboard" + page.format(**self.names))
        self.took.setdefault(page, []).append((_CLOCK.monotonic() - began) * 1000)
        assert answer.status_code == 200, (page, answer.text)


async def measure(empty: Place, grown: Place, *, size: int, rounds: int) -> list[tuple[str, float, float]]:
    """By page: the medians of both, in milliseconds."""
    pages._SHARED = -1.0  # each is read anew, as by somebody who looks now and then
    async with AsyncExitStack() as stack:
        now = _CLOCK.wall()
        job = size // OF_A_JOB // 2
        both = []
        for place, number, delivery in ((empty, 0, 1), (grown, job, size // 2)):
            # A server of its own opens the database: the one that filled it lets go.
            place.database.close()
            receiver = Receiver(
                Settings(
                    reader_webhook_secret=(SECRET,), receiver_database_url=place.url, receiver_loops=False, receiver_listen=False
                )
            )
            await stack.enter_async_context(receiver.running(loops=False, declares=False))
            transport = httpx.ASGITransport(receiver.app, client=("127.0.0.1", 1))
            client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1"))
            names = {"job": f"job_{number:08x}", "delivery": delivery, "middle": f"{now - 1e6}_job_x"}
            both.append(Asked(place, client, names))
        for turn in range(rounds + 2):
            for page in PAGES:
                for one in both if turn % 2 else reversed(both):
                    await one.ask(page)
        few, many = both
        return [(page, statistics.median(few.took[page][2:]), statistics.median(many.took[page][2:])) for page in PAGES]


def prepare(place: Place, size: int, *, jobs: int) -> None:
    """So many deliveries, and what came of them; of each job a little history; the hook that they went to."""
    now = _CLOCK.wall()
    place.fill(a_month(0, size, total=max(size, OF_A_JOB), until=now))
    place.transact(
        lambda tx: outbox.declare(tx, [outbox.Declaration("index", "python", "index", ["job.completed"])], all_configured=False)
    )
    for first in range(0, jobs, 10_000):
        place.transact(lambda tx, first=first: [_looked(tx, n) for n in range(first, min(first + 10_000, jobs))])
    for number in range(max(jobs - SEARCHED, 0), jobs):
        place.transact(lambda tx, number=number: _read(tx, number))
    place.settle_down()


def _read(tx: Transaction, number: int) -> None:
    of = {"job_id": f"job_{number:08x}", "generation": 1, "page": 0, "digest": b"", "length": 1}
    rows = [of | {"position": n, "start": n, "url": f"https://shop.example/{number}/a-page-like-others/{n}"} for n in range(100)]
    tx.execute(results.insert(), rows)


def _looked(tx: Transaction, number: int) -> None:
    values = {"job_id": f"job_{number:08x}", "number": 1, "what": "looked", "at": 0.0, "last_at": 0.0}
    tx.execute(history.history.insert().values(**values, detail='{"completed": 1, "total": 2, "by": "poll"}'))


def run(name: str, *, size: int, rounds: int) -> Iterator[tuple[str, float, float]]:
    """On one kind of database."""
    with DATABASES[name]() as (empty, grown):
        prepare(empty, OF_A_JOB, jobs=1)
        prepare(grown, size, jobs=size // OF_A_JOB)
        yield from asyncio.run(measure(empty, grown, size=size, rounds=rounds))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--size", type=int, default=1_000_000, help="deliveries in the tables")
    arguments.add_argument("--rounds", type=int, default=31)
    arguments.add_argument("--databases", nargs="+", choices=DATABASES, default=list(DATABASES))
    chosen = arguments.parse_args()
    print("| database | page | empty | with it all | ratio |")
    print("|---|---|---|---|---|")
    for name in chosen.databases:
        for page, few, many in run(name, size=chosen.size, rounds=chosen.rounds):
            print(f"| {name} | `/dashboard{page}` | {few:.1f} ms | {many:.1f} ms | × {many / few:.2f} |", flush=True)


if __name__ == "__main__":
    main()
