"""Whether it stays as fast as it was when empty: deliveries taken in and work claimed, with more and more in the tables.

`python -m tests.benchmarks.growth`: on SQLite and on a PostgreSQL of its own (fsync on), two databases each. One is kept empty, the
other grows; both are measured in turn, and what counts is the ratio of their medians. In the tables is a month of deliveries, ten
of each job, and with the jobs all that comes of them: outcomes, events, deliveries to a hook.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from sqlalchemy import Table, delete, insert

from receiver.clock import SystemClock
from receiver.core.delivery import Claims, Delivery, understand
from receiver.store import figures, hook_queue, inbox, jobs, outbox
from receiver.store.engine import Database
from receiver.store.inbox import Arrival
from receiver.store.tables import deliveries, events, hook_deliveries, outcomes, seen
from receiver.store.tables import jobs as jobs_table
from receiver.store.transaction import Transaction
from tests.databases import Server

SIZES = (0, 10_000, 100_000, 1_000_000)
OF_A_JOB = 10
"""Deliveries."""
GROUP = 32
"""Deliveries in one commit: what waits together at a few thousand a second."""
MONTH = 30 * 86400.0
_NOW = "now_"
"""What the ids of the jobs of a measurement begin with: the others sort before."""
_CLOCK = SystemClock()

Row = dict[str, Any]


# What is in the tables


def delivery(number: int, job: str, at: float, event: str) -> Delivery:
    """As Reader would sign it: an id at random, a body like no other."""
    body = json.dumps({"event": event, "jobId": job, "timestamp": at, "data": {"id": job, "completed": number}}).encode()
    claims = Claims(event=event, delivery_id=str(UUID(_CLOCK.token())), timestamp=str(int(at)), signature="…")
    return understand(body, claims, signed=True)


def a_month(first: int, last: int, *, total: int, until: float) -> Iterator[tuple[Table, Row]]:
    """Rows of the deliveries `first` to `last` of `total`, the last of which came just before `until`."""
    for number in range(first, last):
        at = until - MONTH + number * MONTH / total - 60
        job = f"job_{number // OF_A_JOB:08x}"
        nth = number % OF_A_JOB
        told = delivery(number, job, at, "job.completed" if nth == OF_A_JOB - 1 else "job.page")
        yield deliveries, dict(zip(inbox._COLUMNS, inbox._row(Arrival(told, at), "accepted"), strict=True))
        for key in (told.key, *told.id_keys):
            yield seen, {"key": key, "first_at": at, "hits": 1, "digest": told.digest}
        if nth == OF_A_JOB - 1:
            yield from _what_comes_of_it(job, at, now=until)


def _what_comes_of_it(job: str, at: float, *, now: float) -> Iterator[tuple[Table, Row]]:
    """A job that ended then, and was told of."""
    document = json.dumps({"id": job, "status": "completed", "completed": 100, "total": 100, "creditsUsed": 100}).encode()
    end = {"generation": 1, "status": "completed", "document": document, "discovered_by": "webhook", "noticed_at": at}
    late = {"due_at": at + 86400.0, "late_looks": 2} if at > now - 86000.0 else {"due_at": None, "late_looks": 3}
    known = {"id": job, "state": "settled", "source": "webhook", "tracked_at": at - 60, "settled_generation": 1, "mark": str(at)}
    yield jobs_table, known | end | late | {"told": True, "completed": 100, "total": 100}
    counts = {"results": 100, "failed_urls": 0, "verified": True, "requests": 1}
    yield outcomes, end | counts | {"job_id": job, "ended_at": at - 1, "settled_at": at + 1}
    event = {"job_id": job, "generation": 1}
    yield events, event | {"id": f"evt_{job}", "type": "job.completed", "created_at": at + 1, "payload": document.decode()}
    delivered = {"state": "delivered", "attempts": 1, "created_at": at + 1, "delivered_at": at + 2}
    yield hook_deliveries, event | delivered | {"event_id": f"evt_{job}", "hook": "index"}


@dataclass
class Place:
    """One database, and how fast it was each time."""

    url: str
    rates: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.database = Database.open(self.url, _CLOCK, migrate=True)

    def transact(self, work: Callable[[Transaction], Any]) -> Any:
        with self.database._begin_write() as tx:
            return work(tx)

    def fill(self, rows: Iterator[tuple[Table, Row]]) -> None:
        """Put them in, past the product, in large portions."""
        while portion := list(islice(rows, 100_000)):
            by_table: dict[Table, list[Row]] = {}
            for table, row in portion:
                by_table.setdefault(table, []).append(row)
            put = _copy if self.database.is_postgresql else insert_rows
            self.transact(lambda tx, by_table=by_table, put=put: [put(tx, *each) for each in by_table.items()])

    def settle_down(self) -> None:
        """What a database does by itself in a quiet minute."""
        if self.database.is_postgresql:
            with psycopg.connect(self.url, autocommit=True) as side:
                side.execute("VACUUM ANALYZE")
                side.execute("CHECKPOINT")
        else:
            writing = self.database._engines.writing.raw_connection()
            writing.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()  # type: ignore[attr-defined]  # the driver's own connection
            writing.close()

    def note(self, name: str, done: int, seconds: float) -> None:
        self.rates.setdefault(name, []).append(done / seconds)


def insert_rows(tx: Transaction, table: Table, rows: Sequence[Row]) -> None:
    # In the order of the key, as they would have come in: by the time that leads it.
    by_key = sorted(rows, key=lambda row: row["key"]) if table is seen else rows
    for named in _alike(by_key):
        tx.execute(insert(table), named)


def _copy(tx: Transaction, table: Table, rows: Sequence[Row]) -> None:
    cursor = tx.connection.connection.cursor()
    for named in _alike(rows):
        columns = sql.SQL(", ").join(map(sql.Identifier, named[0]))
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), columns)
        with cursor.copy(statement) as copy:
            for row in named:
                copy.write_row(list(row.values()))


def _alike(rows: Sequence[Row]) -> list[list[Row]]:
    """Those with the same columns together."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(row)
    return list(groups.values())


# What is measured

_numbers = count()


def measure(place: Place, *, groups: int, claims: int) -> None:
    """Once: so many groups taken in, so many jobs claimed, so many events claimed; the figures read."""
    now = _CLOCK.wall()
    waiting = [
        [Arrival(delivery(n, f"{_NOW}{n:08x}", now, "job.completed"), now) for n in islice(_numbers, GROUP)]
        for _ in range(groups)
    ]
    with _timed(place, "deliveries taken in", groups * GROUP):
        for group in waiting:
            place.transact(lambda tx, group=group: inbox.accept(tx, group))
    place.transact(lambda tx: _tell(tx, [a.delivery.job_id for group in waiting for a in group][:claims]))
    with _timed(place, "jobs claimed", claims):
        for _ in range(claims):
            assert place.transact(lambda tx: jobs.claim(tx, owner="benchmark", lease=60)) is not None
    with _timed(place, "events claimed", claims):
        for _ in range(claims):
            assert place.transact(lambda tx: hook_queue.claim(tx, hook="index", most=1, owner="benchmark", lease=60))
    with _timed(place, "/metrics read", 1):
        place.database.read_now(figures.read)
    place.transact(_take_back)


def _tell(tx: Transaction, job_ids: Sequence[str | None]) -> None:
    outbox.declare(tx, [outbox.Declaration("index", "python", "index", ["job.completed"])], all_configured=False)
    for job_id in job_ids:
        assert job_id is not None
        outbox.publish(tx, outbox.Event(f"evt_{job_id}", job_id, 1, "job.completed", tx.now, "{}"))


def _take_back(tx: Transaction) -> None:
    """The jobs and events of a measurement: each one begins with the same that is due."""
    tx.execute(delete(jobs_table).where(jobs_table.c.id >= _NOW))
    for table, column in ((events, events.c.id), (hook_deliveries, hook_deliveries.c.event_id)):
        tx.execute(delete(table).where(column >= f"evt_{_NOW}"))


@contextmanager
def _timed(place: Place, name: str, done: int) -> Iterator[None]:
    began = _CLOCK.monotonic()
    yield
    place.note(name, done, _CLOCK.monotonic() - began)


@contextmanager
def two_of_sqlite() -> Iterator[tuple[Place, Place]]:
    folder = Path(tempfile.mkdtemp(prefix="receiver-growth-"))
    places = (Place(f"sqlite:///{folder}/empty.db"), Place(f"sqlite:///{folder}/grown.db"))
    try:
        yield places
    finally:
        for place in places:
            place.database.close()
        shutil.rmtree(folder)


@contextmanager
def two_of_postgresql() -> Iterator[tuple[Place, Place]]:
    server = Server(durable=True)
    try:
        with psycopg.connect(str(server._server.get_uri()), autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET max_wal_size = '4GB'")
            admin.execute("SELECT pg_reload_conf()")
        with server.empty() as one, server.empty() as other:
            places = (Place(one), Place(other))
            try:
                yield places
            finally:
                for place in places:
                    place.database.close()
    finally:
        server.stop()


DATABASES = {"SQLite": two_of_sqlite, "PostgreSQL": two_of_postgresql}


def run(name: str, sizes: Sequence[int], *, rounds: int, groups: int, claims: int) -> Iterator[tuple[int, Place, Place]]:
    """Measure at each size; the rates of both databases at it."""
    with DATABASES[name]() as (empty, grown):
        filled = 0
        for size in sizes:
            _say(f"{name}: {size:,} deliveries")
            now = _CLOCK.wall()
            grown.fill(a_month(filled, size, total=max(sizes), until=now))
            filled = size
            for place in (empty, grown):
                place.settle_down()
                place.rates.clear()
                measure(place, groups=groups, claims=claims)  # warm
                place.rates.clear()
            for turn in range(rounds):
                _say(f"{name}: {size:,} deliveries, round {turn + 1} of {rounds}")
                for place in (empty, grown) if turn % 2 else (grown, empty):
                    measure(place, groups=groups, claims=claims)
            yield size, empty, grown


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="deliveries in the tables")
    arguments.add_argument("--rounds", type=int, default=31)
    arguments.add_argument("--groups", type=int, default=8, help=f"of {GROUP} deliveries, in a round")
    arguments.add_argument("--claims", type=int, default=40, help="in a round")
    arguments.add_argument("--databases", nargs="+", choices=DATABASES, default=list(DATABASES))
    chosen = arguments.parse_args()
    sizes = sorted(set(chosen.sizes))
    lines = []
    for name in chosen.databases:
        for size, empty, grown in run(name, sizes, rounds=chosen.rounds, groups=chosen.groups, claims=chosen.claims):
            cells = [name, f"{size:,}", f"{size // OF_A_JOB:,}"]
            for what, rates in grown.rates.items():
                base, rate = statistics.median(empty.rates[what]), statistics.median(rates)
                cells.append(f"{1000 / rate:.1f} ms" if what.startswith("/") else f"{rate:,.0f}/s, × {rate / base:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
            _say(lines[-1])
    print("| database | deliveries in it | jobs | taken in | jobs claimed | events claimed | `/metrics` read in |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
