"""Requests that nobody who knows the secret has made: none is accepted, none upsets the server."""

from __future__ import annotations

import asyncio
import json
import random
import re
import string
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest
from system_kit import SECRET, Served, delivery, request, signature

CONNECTIONS = 6
BATCH = 40
"""Requests written at once on one connection, before the first of their answers is read."""
SILENCE = 0.15
"""Seconds after which a server that waits for more of a request has had its chance."""

_PRINTABLE = "".join(chr(code) for code in (*range(0x21, 0x7F), *range(0xA1, 0x100)))

_MARKS = [b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"\r\n\r\n", b"\xff", b"%", b"HTTP/1.1"]


class Forger:
    """Makes them up, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    def well_formed(self) -> bytes:
        """HTTP as it should be, with something wrong in it."""
        make: Callable[[], bytes] = self.dice.choice(
            [
                self.flipped,
                self.flipped,
                self.header_changed,
                self.other_secret,
                self.out_of_time,
                self.body_changed,
                self.noise,
                self.odd,
            ]
        )
        return make()

    def flipped(self) -> bytes:
        """Genuine, but for one to four bits of what is signed."""
        parts = self.genuine()
        for _ in range(self.dice.randint(1, 4)):
            name = self.dice.choice(["body", "timestamp", "signature"])
            value = bytearray(parts[name], "latin-1")
            if not value:
                continue
            value[self.dice.randrange(len(value))] ^= 1 << self.dice.randrange(8)
            if name == "body" or all(byte in range(0x21, 0x7F) or byte > 0xA0 for byte in value):
                parts[name] = value.decode("latin-1")
        if parts["signature"] == signature(parts["body"].encode("latin-1"), parts["timestamp"]):
            return self.flipped()  # the bits flipped back
        return self.rendered(parts)

    def header_changed(self) -> bytes:
        """Genuine, but for one header."""
        parts = self.genuine()
        right, now = parts["signature"], parts["timestamp"]
        dice = self.dice
        cut = dice.randrange(len(right))
        changes: list[dict[str, str]] = [
            {"signature": right[:cut]},
            {"signature": right[:cut] + right[cut + 1 :]},
            {"signature": right[:cut] + dice.choice(string.printable[:90]).strip() + right[cut:] + "0"},
            {"signature": right[7:]},
            {"signature": "sha256=" + right[7:].upper()},
            {"signature": f"{right},{right}"},
            {"signature": f"{right};{right}"},
            {"signature": f'"{right}"'},
            {"signature": right.replace("sha256", dice.choice(["sha1", "sha512", "SHA256", "md5", "hmac-sha256", "none", "v1"]))},
            {"signature": ""},
            {"timestamp": ""},
            {"timestamp": dice.choice(["+", "-", "0", "0x", "  1"]).strip() + now},
            {"timestamp": now + dice.choice(["0", ".0", "e0", "_", "L"])},
            {"timestamp": str(int(now) + dice.choice([-1, 1, 60, -60]))},
            {"timestamp": right, "signature": now},
            {"timestamp": dice.choice(["nan", "inf", "1e9", "9" * dice.randint(13, 4000), "١٢٣".encode().decode("latin-1")])},
        ]
        return self.rendered(parts | dice.choice(changes))

    def other_secret(self) -> bytes:
        """Signed, by somebody who guessed."""
        guess = self.dice.choice(
            ["", SECRET[:-1], SECRET + "\n", SECRET.upper(), " " + SECRET, "secret", "x" * 256, SECRET[::-1]]
        )
        parts = self.genuine()
        return self.rendered(parts | {"signature": signature(parts["body"].encode(), parts["timestamp"], guess)})

    def out_of_time(self) -> bytes:
        """Once genuine, or to be so one day."""
        at = str(int(time.time()) + self.dice.choice([-1, 1]) * self.dice.choice([303, 3600, 86400, 10**9]))
        parts = self.genuine() | {"timestamp": at}
        return self.rendered(parts | {"signature": signature(parts["body"].encode(), at)})

    def body_changed(self) -> bytes:
        """Another body under a genuine signature."""
        parts = self.genuine()
        body = parts["body"]
        cut = self.dice.randrange(len(body))
        changed: str = self.dice.choice(
            [
                body[:cut],
                body[cut:] + body[:cut] + " ",
                body + "\n",
                "\xef\xbb\xbf" + body,
                body * 2,
                "",
                json.dumps(json.loads(body), indent=1),
                body.replace("job_", "job-"),
                self.text(2000),
            ]
        )
        return self.rendered(parts | {"body": changed})

    def noise(self) -> bytes:
        """Anything for anything."""
        return self.rendered({name: self.text(300) for name in ("body", "timestamp", "signature", "event", "delivery")})

    def odd(self) -> bytes:
        """Unsigned or wrongly signed, and strange besides."""
        dice = self.dice
        body = self.text(200).encode("latin-1")
        headers = {"X-Reader-Signature": signature(body, "1", "guess"), "X-Reader-Timestamp": "1"}
        headers |= dice.choice(
            [
                {"X_Reader_Signature": signature(body, str(int(time.time())))},
                {"Content-Encoding": "gzip"},
                {"Expect": "100-continue"},
                {"Transfer-Encoding": "chunked"},
                {"X-HTTP-Method-Override": "GET"},
                {"Upgrade": "h2c"},
                {"Cookie": self.text(1000)},
                {"X-Reader-Event": self.text(1000)},
                {self.name(): self.text(100)},
            ]
        )
        if "Transfer-Encoding" in headers:
            return request(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n", headers, length=-1)
        method = dice.choice(["POST", "POST", "POST", "GET", "PUT", "DELETE", "OPTIONS", "PATCH"])
        path = dice.choice(
            ["/hooks/reader"] * 4 + ["/hooks/reader/", "/hooks/readers", "/%2e%2e/hooks/reader", "/hooks/reader?x=%ff"]
        )
        return request(body, headers, method=method, path=path)

    def malformed(self) -> bytes:
        """What is no HTTP, or no longer. Nothing in it is rightly signed, so nothing in it may be accepted."""
        make: Callable[[], bytes] = self.dice.choice(
            [self.junk, self.mangled, self.mangled, self.mangled, self.smuggled, self.cut]
        )
        return make()

    def junk(self) -> bytes:
        """Bytes."""
        return self.dice.choice([b"", b"POST /hooks/reader HTTP/1.1\r\n", b"POST "]) + self.dice.randbytes(
            self.dice.randint(1, 600)
        )

    def mangled(self) -> bytes:
        """A request of a wrong signer in which bytes were flipped, dropped, doubled and put in, wherever they stood."""
        data = bytearray(self.other_secret())
        for _ in range(self.dice.randint(1, 8)):
            at, length = self.dice.randrange(len(data)), self.dice.randint(1, 12)
            change = self.dice.randrange(5)
            if change == 0:
                data[at] ^= 1 << self.dice.randrange(8)
            elif change == 1:
                del data[at : at + length]
            elif change == 2:
                data[at:at] = data[at : at + length]
            elif change == 3:
                data[at:at] = self.dice.randbytes(length)
            else:
                data[at:at] = self.dice.choice(
                    [b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"\r\n\r\n", b"\xff", b"%", b"HTTP/1.1"]
                )
            if not data:
                break
        return bytes(data)

    def smuggled(self) -> bytes:
        """Framing in which two readers may see two different requests."""
        inner = self.other_secret()
        headers: str = self.dice.choice(
            [
                "Content-Length: 5\r\nContent-Length: 500",
                "Content-Length: 0\r\nTransfer-Encoding: chunked",
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
                "Transfer-Encoding: xchunked",
                "Transfer-Encoding: chunked, gzip",
                "Transfer-Encoding : chunked",
                "Transfer-Encoding:\x0bchunked",
                "Content-Length: -1",
                "Content-Length: +5",
                "Content-Length: 0x5",
                "Content-Length: 99999999999999999999999",
                "Content-Length: 5, 5",
                "Content-Length: \xb2",
                "Content-Length:",
                "Content-Length: 5\r\n folded: 1",
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13",
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
                "Connection: close\r\nX: " + "x" * self.dice.choice([100, 70_000]),
                "\r\n".join(f"X-{number}: 1" for number in range(self.dice.choice([10, 2000]))),
                "Host:\r\nHost: elsewhere",
                "",
            ]
        )
        line: str = self.dice.choice(
            [
                "POST /hooks/reader HTTP/1.1",
                "POST /hooks/reader HTTP/1.0",
                "POST /hooks/reader HTTP/9.9",
                "POST /hooks/reader",
                "post /hooks/reader HTTP/1.1",
                "POST http://127.0.0.1/hooks/reader HTTP/1.1",
                "POST //hooks/reader HTTP/1.1",
                "POST /hooks/\xe9 HTTP/1.1",
                "POST * HTTP/1.1",
                "CONNECT 127.0.0.1:80 HTTP/1.1",
                "OPTIONS * HTTP/1.1",
                "GET /hooks/reader HTTP/1.1",
                "PRI * HTTP/2.0",
                "POST /hooks/reader%00 HTTP/1.1",
                "POST /hooks/reader#x HTTP/1.1",
            ]
        )
        body = self.dice.choice(
            [b"", b"5\r\nhello\r\n0\r\n\r\n", b"fffffffffffffffff\r\n", b"-1\r\n", b"5;x=\r\nhello\r\n0\r\n\r\n"]
        )
        return f"{line}\r\nHost: x\r\n{headers}\r\n\r\n".encode("latin-1") + body + inner

    def cut(self) -> bytes:
        """A request that stops in the middle."""
        data = self.other_secret()
        return data[: self.dice.randrange(1, len(data))]

    def genuine(self) -> dict[str, str]:
        """The parts of a delivery that would be accepted as it is."""
        now = str(int(time.time()) - self.dice.randrange(250))
        body = delivery(f"job_{self.dice.randrange(10**6)}").decode()
        delivery_id = f"{self.dice.getrandbits(64):x}"
        return {
            "body": body,
            "timestamp": now,
            "signature": signature(body.encode(), now),
            "delivery": delivery_id,
            "event": "job.page",
        }

    def rendered(self, parts: dict[str, str]) -> bytes:
        headers = {f"X-Reader-{name.title()}": value for name, value in parts.items() if name != "body"}
        return request(parts["body"].encode("latin-1"), headers)

    def text(self, most: int) -> str:
        return "".join(self.dice.choices(_PRINTABLE, k=self.dice.randint(0, most)))

    def name(self) -> str:
        return "X-" + "".join(self.dice.choices(string.ascii_letters + string.digits + "!#$%&'*+.^_`|~-", k=20))


async def pipelined(port: int, forger: Forger, count: int, tally: Counter[int]) -> None:
    """Send `count` well-formed forgeries over one connection, many in flight; read an answer to each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    waiting: list[bytes] = []
    while count or waiting:
        while len(waiting) < BATCH and count:
            waiting.append(forger.well_formed())
            count -= 1
        writer.write(b"".join(waiting))
        closed = False
        while waiting and not closed:
            status, closed = await asyncio.wait_for(one_answer(reader), 20)
            tally[status] += 1
            del waiting[0]
        if closed:  # a body that is refused unread ends the connection: what came after it was not looked at
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


async def one_answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """(status, whether the connection ends with it)."""
    head = await reader.readuntil(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100 "):
        head = await reader.readuntil(b"\r\n\r\n")
    head = head.lower()
    length = int(head.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
    await reader.readexactly(length)
    return int(head[9:12]), b"connection: close" in head


_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


async def thrown_in(port: int, forger: Forger, count: int, tally: Counter[int]) -> None:
    """Send `count` malformed requests, each on a connection of its own; 0 stands for no answer."""
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(forger.malformed())
        said = bytearray()
        try:
            while piece := await asyncio.wait_for(reader.read(65536), SILENCE):
                said += piece
        except (TimeoutError, ConnectionError):
            pass
        tally.update(int(status) for status in _STATUS.findall(said))
        tally[0] += not said
        writer.close()


async def attack(port: int, count: int, seed: int) -> Counter[int]:
    """Nine in ten well-formed, the others not; the statuses of all answers."""
    tally: Counter[int] = Counter()
    malformed = count // 10
    works: list[tuple[Callable[[int, Forger, int, Counter[int]], Awaitable[None]], int, int]] = [
        (pipelined, CONNECTIONS, count - malformed),
        (thrown_in, 4 * CONNECTIONS, malformed),
    ]
    async with asyncio.TaskGroup() as group:
        for work, hands, share in works:
            for hand in range(hands):
                part = share // hands + (hand < share % hands)
                group.create_task(work(port, Forger(seed * 1000 + hand), part, tally))  # type: ignore[arg-type]
    return tally


def withstands(server: Served, count: int, seed: int) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    tally = asyncio.run(attack(server.port, count, seed))
    assert tally.total() >= count
    assert tally[0] < 0.08 * count
    assert [status for status in tally if status >= 500] == []
    assert [status for status in tally if 200 <= status < 300] == []
    assert tally[401] > 0.6 * count
    assert server.rows("SELECT (SELECT count(*) FROM deliveries), (SELECT count(*) FROM seen), (SELECT count(*) FROM jobs)") == [
        (0, 0, 0)
    ]
    began = time.monotonic()
    assert server.post(delivery()).status == 202
    assert time.monotonic() - began < 1
    assert process.memory_info().rss - before < 48 << 20
    # Anybody can cause these: they must not fill a disk, nor drown what matters.
    assert len(server.log) < 60 + count / 500
    assert [line for line in server.log if line.get("level") in {"error", "critical"} or "Traceback" in str(line)] == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path) as served:
        yield served


def test_three_thousand_forgeries_are_refused(server: Served) -> None:
    withstands(server, 3_000, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_thousand_forgeries_are_refused(server: Served) -> None:
    withstands(server, 100_000, seed=2)
