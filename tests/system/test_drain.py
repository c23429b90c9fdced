"""SIGTERM: what was acknowledged is stored, what was not is not claimed to be, and the process is gone within ten seconds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from system_kit import Load, Served, Wire, delivery, downstream, held, knowing, request, signed, start_job, until

from receiver.sandbox import BackgroundSandbox


@pytest.mark.parametrize("answered", [1, 200, pytest.param(2000, marks=pytest.mark.slow)])
def test_under_load_nothing_acknowledged_is_lost_and_nothing_is_answered_by_half(tmp_path: Path, answered: int) -> None:
    server = Served(tmp_path)
    with Load(server.port) as load:
        until(lambda: len(load.acknowledged) >= answered)
        server.stop()
    stored = {body for (body,) in server.rows("SELECT body FROM deliveries")}
    assert len(load.acknowledged) >= answered
    assert load.acknowledged - stored == set()
    assert load.partial == []
    assert load.statuses <= {202, 503, None}


def test_idle_connections_do_not_hold_it_up(tmp_path: Path) -> None:
    server = Served(tmp_path)
    wires = [Wire(server.port) for _ in range(100)]
    for wire in wires[:50]:
        body = delivery()
        assert wire.ask(request(body, signed(body))).status == 202
    assert server.stop() < 3
    assert all(wire.at_end() for wire in wires)
    for wire in wires:
        wire.socket.close()


# What keeps it waiting. Each is set up on its own, and all of them at once: what they cost is time.


def a_body_that_drips_in(folder: Path) -> None:
    server = Served(folder)
    body = delivery(filler="x" * 1000)
    with Wire(server.port) as wire:
        wire.send(request(body[:500], signed(body), length=len(body)))
        assert server.post(delivery()).status == 202  # by now it reads the other one too
        server.stop()
        not_acknowledged(wire)
    assert server.rows("SELECT count(*) FROM deliveries WHERE body = ?", body) == [(0,)]
    assert errors(server) == []


def a_reader_that_does_not_answer(folder: Path) -> None:
    with silence() as url:
        server = Served(folder, READER_BASE_URL=url, READER_API_KEY="key", READER_RPM="1000")
        assert server.post(delivery("job_waiting")).status == 202
        until(lambda: server.rows("SELECT 1 FROM jobs WHERE lease_owner IS NOT NULL"))
        server.stop()
    assert server.rows("SELECT state FROM jobs") == [("watching",)]
    assert errors(server) == []


def a_tick_that_is_asked_for_much(folder: Path) -> None:
    with silence() as url:
        server = Served(folder, READER_BASE_URL=url, READER_API_KEY="key", READER_RPM="1000", RECEIVER_LOOPS="false")
        assert server.post(delivery("job_waiting")).status == 202
        with Wire(server.port) as wire:
            wire.send(request(method="GET", path="/internal/tick?budget=600"))
            until(lambda: server.rows("SELECT 1 FROM jobs WHERE lease_owner IS NOT NULL"))
            server.stop()
            not_acknowledged(wire)
    assert errors(server) == []


def a_hook_that_does_not_answer(folder: Path) -> None:
    """It gets its event after the next start."""
    with BackgroundSandbox(speed=100) as reader, silence() as url, downstream() as hook:

        def served(url: str) -> Served:
            return Served(folder, settings=knowing(reader, RECEIVER_HOOKS=f'[{{"name": "hook", "url": "{url}"}}]'))

        server = served(url)
        assert server.post(delivery(start_job(reader))).status == 202
        until(lambda: server.rows("SELECT 1 FROM hook_deliveries WHERE lease_owner IS NOT NULL"))
        server.stop()
        assert errors(server) == []
        with served(hook.url):
            until(lambda: hook.got)
        assert hook.ids == [id_ for (id_,) in server.rows("SELECT id FROM events")]


def a_database_that_takes_no_writes(folder: Path) -> None:
    with silence() as url:
        server = Served(folder, READER_BASE_URL=url, READER_API_KEY="key", READER_RPM="1000")
        for number in range(20):  # work for all, each piece of which wants to write
            assert server.post(delivery(f"job_{number}")).status == 202
        body = delivery()
        with Wire(server.port) as wire, held(server.database):
            wire.send(request(body, signed(body)))
            time.sleep(0.5)  # for it to be read, and to wait for the lock as all else does
            server.stop()
            not_acknowledged(wire)
    with Served(folder) as again:
        assert again.post(body).status in {200, 202}
        assert len(again.rows("SELECT 1 FROM deliveries WHERE body = ?", body)) == 1


SCENES: list[Callable[[Path], None]] = [
    a_body_that_drips_in,
    a_reader_that_does_not_answer,
    a_tick_that_is_asked_for_much,
    a_hook_that_does_not_answer,
    a_database_that_takes_no_writes,
]


@pytest.mark.slow
def test_nothing_that_takes_its_time_holds_it_up(tmp_path: Path) -> None:
    """All at once, each beside a server of its own: what they cost is time."""
    with ThreadPoolExecutor(len(SCENES)) as pool:
        for scene in SCENES:
            (tmp_path / scene.__name__).mkdir()
        ended = {scene.__name__: pool.submit(scene, tmp_path / scene.__name__) for scene in SCENES}
    assert {name: error for name, future in ended.items() if (error := future.exception())} == {}


def not_acknowledged(wire: Wire) -> None:
    """Either no answer, or one that asks to come again."""
    try:
        answer = wire.answer()
    except (EOFError, ConnectionError):
        assert wire.got == b""
    else:
        assert (answer.status, answer.header("retry-after")) == (503, "2")


def errors(server: Served) -> list[str]:
    """Lines of the log with a traceback."""
    return [line for line in server.lines if "Traceback" in line]


@contextmanager
def silence() -> Iterator[str]:
    """A URL where every connection is taken, and nothing is ever answered."""
    connections: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def take() -> None:
            while True:
                try:
                    connections.append(listening.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=take)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
    for connection in connections:
        connection.close()
