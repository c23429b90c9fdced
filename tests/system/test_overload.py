"""More deliveries than the database can take: those that cannot be stored in time are told so quickly, the others are stored."""

from __future__ import annotations

import asyncio
import socket
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from sqlalchemy import event
from system_kit import SECRET, Answer, delivery, request, rows, signed

from receiver import Receiver
from receiver.settings import Settings
from receiver.store import writer
from receiver.web import webhook
from receiver.web.connections import http_protocol

COMMIT = 0.5
"""Seconds that the database takes for one."""
GROUP = 8
"""Deliveries in a commit, instead of 256: so few senders are too many."""
SENDERS = 250
"""At 16 a second they would wait for 15 seconds, if they were let in."""
SECONDS = 12.0


@pytest.mark.slow
@pytest.mark.anyio
async def test_beyond_capacity_the_answer_is_a_quick_503_and_what_was_acknowledged_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "GROUP", GROUP)
    senders = [Sender() for _ in range(SENDERS)]
    async with serving(tmp_path, lambda: time.sleep(COMMIT)) as port:
        await Sender().send(port, time.monotonic() + 4 * COMMIT)  # it knows by then how slow its database is
        until = time.monotonic() + SECONDS
        await asyncio.gather(*(sender.send(port, until) for sender in senders))
    answers = [answer for sender in senders for answer in sender.answers]
    acknowledged = {body for body, answer, _ in answers if answer.status == 202}
    refused = [(answer, took) for _, answer, took in answers if answer.status == 503]
    stored = {body for (body,) in rows(tmp_path / "receiver.db", "SELECT body FROM deliveries")}

    assert {answer.status for _, answer, _ in answers} == {202, 503}
    assert {answer.header("retry-after") for answer, _ in refused} == {"2"}
    assert acknowledged <= stored
    # It is overloaded, and yet goes on: nearly as many are stored as it can take.
    assert len(acknowledged) > 0.5 * SECONDS / COMMIT * GROUP
    assert statistics.median(took for _, took in refused) < 1.0
    assert statistics.quantiles((took for _, _, took in answers), n=100)[98] < 7.0, "no answer comes too late to count"


@pytest.mark.anyio
async def test_more_at_once_than_can_be_answered_in_time_are_turned_away_unread_and_who_drips_takes_nobodys_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "CROWD", 3)
    go = threading.Event()
    async with serving(tmp_path, go.wait) as port, asyncio.TaskGroup() as group:
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
        dripping, waiting, others = connections[:4], connections[4:7], connections[7:]
        for _, to in dripping:
            to.write(request(b"{", length=100))
        for _, to in waiting:
            to.write(request(body := delivery(), signed(body)))
        answers = [group.create_task(read(answer)) for answer, _ in waiting]
        refused = 0
        while refused < len(others):  # by then the others are known to wait
            reader, to = others[refused]
            to.write(request(b"{}", {}))  # not even signed: nobody looked
            answer = await read(reader)
            assert answer.status in {401, 503}
            refused += answer.status == 503
        assert (answer.header("retry-after"), answer.json) == ("2", {"error": "unavailable"})
        assert not any(answer.done() for answer in answers)
        go.set()
        assert [(await answer).status for answer in answers] == [202, 202, 202]
        reader, to = others[0]
        to.write(request(body := delivery(), signed(body)))
        assert (await read(reader)).status == 202, "their places are free again"
        for _, to in connections:
            to.close()


@dataclass
class Sender:
    """Sends one delivery after another, each until it is taken; when turned away it comes again when told to."""

    answers: list[tuple[bytes, Answer, float]] = field(default_factory=list)
    """(body, answer, seconds)"""

    async def send(self, port: int, until: float) -> None:
        reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        body = delivery()
        while time.monotonic() < until:
            began = time.monotonic()
            self._writer.write(request(body, signed(body)))
            answer = await read(reader)
            self.answers.append((body, answer, time.monotonic() - began))
            if answer.status == 503:
                await asyncio.sleep(float(answer.header("retry-after") or 0))
            else:
                body = delivery()
        self._writer.close()


async def read(reader: asyncio.StreamReader) -> Answer:
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
    headers = tuple((name, value) for name, _, value in (line.partition(": ") for line in lines))
    body = await reader.readexactly(int(dict(headers)["content-length"]))
    return Answer(int(status.split()[1]), headers, body)


@asynccontextmanager
async def serving(folder: Path, before_commit: Callable[[], object]) -> AsyncIterator[int]:
    """A receiver on a real socket, whose database takes its time for each commit."""
    receiver = Receiver(
        Settings(reader_webhook_secret=SECRET, receiver_database_url=f"sqlite:///{folder / 'receiver.db'}", receiver_listen=False)
    )
    async with receiver.running(loops=False) as runtime:
        event.listen(runtime.database._engines.writing, "commit", lambda _: before_commit())  # in the writer's own thread
        server = Embedded(
            uvicorn.Config(
                receiver.app, port=0, http=http_protocol(), ws="none", lifespan="off", log_config=None, access_log=False
            )
        )
        with socket.create_server(("127.0.0.1", 0)) as listening:
            serving = asyncio.create_task(server.serve([listening]))
            yield listening.getsockname()[1]
            server.should_exit = True
            await serving


class Embedded(uvicorn.Server):
    """Leaves signals to the process it runs in."""

    @contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def,override]  # noqa: ANN201
        yield
