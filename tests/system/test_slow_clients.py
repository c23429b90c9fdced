"""Clients that idle or drip are hung up on; those that only take long to be answered, or to read, are not. By either parser."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import select
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
import uvicorn
from system_kit import Served, Wire, delivery, request, until

from receiver.web.connections import H11, http_protocol

LESS, MORE = 7.0, 8.1
"""Seconds: than a client is waited for."""


class Leaping(asyncio.SelectorEventLoop):
    """Its time leaps ahead when told to: a test of a deadline need not wait for it, and does not depend on how busy the machine is."""

    _ahead = 0.0

    def time(self) -> float:
        return super().time() + self._ahead

    def leap(self, seconds: float) -> None:
        """From another thread. Back when all that is due by then is done."""
        done = threading.Event()

        def now() -> None:
            self._ahead += seconds
            self.call_later(0, done.set)

        self.call_soon_threadsafe(now)
        assert done.wait(30)


async def respond(send: Any, pieces: list[bytes], between: Callable[[], Awaitable[object]] | None = None) -> None:
    headers = [(b"content-length", b"%d" % sum(map(len, pieces)))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number, piece in enumerate(pieces):
        if number and between is not None:
            await between()
        await send({"type": "http.response.body", "body": piece, "more_body": number + 1 < len(pieces)})


@dataclass
class Answering:
    """A server on a real socket that says how long a body was, and does at odd paths what odd apps do."""

    loop: Leaping = field(default_factory=Leaping)
    told: threading.Event = field(default_factory=threading.Event)
    asked: int = 0
    """Requests that reached the app."""
    left: int = 0
    """Those whose client was gone before all of it had come."""
    port: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        size = 0
        match scope["path"]:
            case "/when-told":
                listening = asyncio.create_task(receive())  # as some apps do, to hear of a client that leaves
                await asyncio.to_thread(self.told.wait, 30)
                listening.cancel()
            case "/big":
                await respond(send, [b"x" * 65536] * 128)
                return
            case "/early":
                await respond(send, [b"at once, ", b"and in the end"], between=lambda: asyncio.to_thread(self.told.wait, 30))
                return
            case path:
                if path == "/later":
                    await asyncio.to_thread(self.told.wait, 30)
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        self.left += 1
                        return
                    size, more = size + len(message["body"]), message["more_body"]
        await respond(send, [b"%d" % size])

    def serve(self, protocol: type[Any], started: threading.Event, over: threading.Event) -> None:
        config = uvicorn.Config(
            self,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_keep_alive=3600,  # else uvicorn would see to some of it
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)

        async def run() -> None:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                self.port = listening.getsockname()[1]
                serving = asyncio.create_task(self._server.serve([listening]))
                started.set()
                await asyncio.to_thread(over.wait)
                self._server.should_exit = True
                await serving

        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(run())

    @contextlib.contextmanager
    def connected(self) -> Iterator[Wire]:
        """A connection that the server knows of."""
        with Wire(self.port) as wire:
            ours = wire.socket.getsockname()
            until(lambda: any(known.client == ours for known in list(self._server.server_state.connections)), every=0.001)
            yield wire

    def is_asked(self, times: int) -> None:
        """Wait until so many requests reached the app."""
        until(lambda: self.asked >= times, every=0.001)


@pytest.fixture(params=[http_protocol(), H11], ids=["httptools", "h11"])
def server(request: pytest.FixtureRequest) -> Iterator[Answering]:
    answering, started, over = Answering(), threading.Event(), threading.Event()
    thread = threading.Thread(target=answering.serve, args=(request.param, started, over))
    thread.start()
    assert started.wait(30)
    yield answering
    answering.told.set()
    over.set()
    thread.join()


BODY = b"0123456789"
CHUNKED = request(headers={"Transfer-Encoding": "chunked"}, length=-1)
BEGUN = {
    "one byte": b"P",
    "half a head": request(BODY)[:40],
    "a head without its end": request()[:-2],
    "a head alone": request(length=10),
    "half a body": request(BODY[:5], length=10),
    "a chunked head alone": CHUNKED,
    "half a chunk": CHUNKED + b"a\r\n01234",
    "a chunk and no end": CHUNKED + b"a\r\n0123456789\r\n",
}


@pytest.mark.parametrize("answers", [0, 1], ids=["new", "used"])
def test_who_begins_a_request_and_stops_is_told_so_and_hung_up_on(server: Answering, answers: int) -> None:
    with contextlib.ExitStack() as stack:
        wires = {name: stack.enter_context(server.connected()) for name in BEGUN}
        for name, wire in wires.items():
            for _ in range(answers):
                assert wire.ask(request(BODY)).json == 10
            wire.send(BEGUN[name])
        server.loop.leap(MORE)
        for name, wire in wires.items():
            answer = wire.answer()
            assert (answer.status, answer.header("connection"), answer.json) == (408, "close", {"error": "timeout"}), name
            assert wire.at_end(), name
    # The app hears of it too, where it was to read the body.
    until(lambda: server.left == sum(b"\r\n\r\n" in begun for begun in BEGUN.values()))


def test_who_sends_nothing_at_all_is_hung_up_on_without_a_word(server: Answering) -> None:
    with server.connected() as new, server.connected() as used:
        assert used.ask(request(BODY)).json == 10
        server.loop.leap(MORE)
        assert new.at_end()
        assert used.at_end()


DRIPS: dict[str, tuple[bytes, bytes]] = {
    "headers": (request()[:-2] + b"X-Long: ", b"x"),
    "a body": (request(length=1_000_000), b"x"),
    "chunks": (CHUNKED, b"1\r\nx\r\n"),
    "line ends": (b"", b"\r\n"),
}


@pytest.mark.parametrize("answers", [0, 1], ids=["new", "used"])
def test_a_drop_now_and_then_buys_no_time(server: Answering, answers: int) -> None:
    with contextlib.ExitStack() as stack:
        wires = {name: stack.enter_context(server.connected()) for name in DRIPS}
        for name, wire in wires.items():
            for _ in range(answers):
                assert wire.ask(request(BODY)).json == 10
            wire.send(DRIPS[name][0])
        for _ in range(9):
            for name, wire in wires.items():
                with contextlib.suppress(ConnectionError):
                    wire.send(DRIPS[name][1])
            server.loop.leap(1.0)
        assert [name for name, wire in wires.items() if not is_over(wire)] == []


def is_over(wire: Wire) -> bool:
    """Whether the connection has ended, whatever was said before."""
    try:
        while select.select([wire.socket], [], [], 5)[0]:
            if not wire.socket.recv(65536):
                return True
    except ConnectionError:
        return True
    return False


def test_what_is_whole_in_time_is_answered_however_many_pieces_it_came_in(server: Answering) -> None:
    with server.connected() as wire:
        for _ in range(3):  # each has its own time, which begins with the end of the last answer
            wire.send(request(BODY)[:-5])
            server.loop.leap(LESS)
            assert wire.ask(BODY[-5:]).json == 10


def test_an_answer_that_takes_long_is_not_cut(server: Answering) -> None:
    with server.connected() as wire:
        wire.send(request(path="/when-told", method="GET"))
        server.is_asked(1)
        for _ in range(3):
            server.loop.leap(MORE)
        server.told.set()
        assert wire.answer().json == 0


def test_requests_in_a_pipeline_wait_their_turn_however_long_it_takes(server: Answering) -> None:
    with server.connected() as wire:
        wire.send(request(path="/when-told", method="GET") + request(BODY) + request(BODY))
        server.is_asked(1)
        for _ in range(3):
            server.loop.leap(MORE)
        server.told.set()
        assert [wire.answer().json for _ in range(3)] == [0, 10, 10]


@pytest.mark.parametrize("half", [request(BODY)[:30], request(BODY[:5], length=10)], ids=["a head", "a body"])
def test_half_a_request_in_a_pipeline_does_not_cut_the_answer_before_it(server: Answering, half: bytes) -> None:
    with server.connected() as wire:
        wire.send(request(path="/when-told", method="GET") + half)
        server.is_asked(1)
        for _ in range(3):
            server.loop.leap(MORE)
        server.told.set()
        assert wire.answer().status == 200
        server.loop.leap(MORE)
        assert wire.answer().status == 408


def test_an_answer_that_began_before_the_request_ended_is_not_cut(server: Answering) -> None:
    with server.connected() as wire:
        wire.send(request(BODY[:5], path="/early", length=10))
        server.is_asked(1)
        for _ in range(3):
            server.loop.leap(MORE)
        server.told.set()
        assert wire.answer().body == b"at once, and in the end"


def test_a_client_is_not_blamed_for_a_body_that_nobody_reads(server: Answering) -> None:
    half = b"x" * 100_000  # more than is taken ahead of the app
    with server.connected() as wire:
        wire.send(request(half, path="/later", length=200_000))
        server.is_asked(1)
        for _ in range(3):
            server.loop.leap(MORE)
        server.told.set()
        assert wire.ask(half).json == 200_000


def test_who_reads_slowly_gets_all_of_a_long_answer(server: Answering) -> None:
    with server.connected() as wire:
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # else the kernel would take a good deal of it for us
        wire.send(request(path="/big", method="GET"))
        for _ in range(3):
            wire._more()
            server.loop.leap(MORE)
        assert len(wire.answer().body) == 8 << 20


# The same at its true measure

CROWD = 1000
SECONDS = 30.0
CLOSED_WITHIN = 10.0
MEBIBYTE = 1 << 20


class Crowd:
    """A thousand connections that idle or drip, in turn; who is hung up on comes again. A context: for as long as it lasts."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._loiter)
        self._open: dict[socket.socket, tuple[float, bytes]] = {}
        self._polled = selectors.DefaultSelector()
        self.lived: list[float] = []
        """Seconds until they were hung up on, of those that were."""

    def __enter__(self) -> Self:
        for number in range(CROWD):
            self._come(number)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._polled.close()
        for wire in self._open:
            wire.close()

    def _come(self, number: int) -> None:
        first, drip = list(MANNERS.values())[number % len(MANNERS)]
        began = time.monotonic()
        wire = socket.create_connection(("127.0.0.1", self._port), timeout=15)
        self._open[wire] = began, drip
        self._polled.register(wire, selectors.EVENT_READ)
        if first:
            wire.sendall(first)

    def _loiter(self) -> None:
        while not self._over.is_set():
            again = time.monotonic() + 1.0
            while (left := again - time.monotonic()) > 0:
                for key, _ in self._polled.select(left):
                    self._hear(key.fileobj)  # type: ignore[arg-type]  # we register sockets
            for wire, (_, drip) in self._open.items():
                if drip:
                    with contextlib.suppress(ConnectionError):
                        wire.sendall(drip)

    def _hear(self, wire: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            if wire.recv(65536):
                return
        began, _ = self._open.pop(wire)
        self.lived.append(time.monotonic() - began)
        self._polled.unregister(wire)
        wire.close()
        self._come(len(self.lived))


MANNERS = {"idle": (b"", b""), "idle in a body": (request(length=10), b""), **DRIPS}


@pytest.mark.slow
def test_a_thousand_idle_and_dripping_sockets_harm_nobody(tmp_path: Path) -> None:
    """For half a minute: deliveries are answered with a p99 under 1 s, they are hung up on within 10 s, and memory is bounded."""
    allow_files(2 * CROWD)
    with Served(tmp_path) as server:
        process = psutil.Process(server.process.pid)
        for _ in range(200):  # what it needs for itself, it has by then
            assert server.post(delivery()).status == 202
        before = peak = process.memory_info().rss
        most, took = 0, []
        with Crowd(server.port) as crowd:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                body = delivery()
                began = time.monotonic()
                assert server.post(body).status == 202  # over a connection of its own, as from somebody new
                took.append(time.monotonic() - began)
                peak = max(peak, process.memory_info().rss)
                most = max(most, process.num_fds())
        assert most >= CROWD, "they are all there at once"
        assert len(crowd.lived) >= 2 * CROWD, "and come again as they are hung up on"
        assert max(crowd.lived) < CLOSED_WITHIN
        assert statistics.quantiles(took, n=100)[98] < 1.0
        assert peak - before < 64 * MEBIBYTE


def test_the_server_may_open_as_many_files_as_the_system_lets_it(tmp_path: Path) -> None:
    """Else a crowd of a thousand would be all it can hold, with room for nobody else."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))  # inherited
    try:
        server = Served(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with server:
        soft, hard = psutil.Process(server.process.pid).rlimit(psutil.RLIMIT_NOFILE)
        assert soft == hard


def allow_files(count: int) -> None:
    """So many sockets in this process, and in those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != hard < count:
        pytest.fail(f"this test opens {count} sockets, and the machine allows a process {hard} files (ulimit -Hn)")
    if resource.RLIM_INFINITY != soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
