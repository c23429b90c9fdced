"""A load of signed deliveries: 64 connections, each sending the next one once the last is answered.

`python -m tests.benchmarks.load URL SECRET COUNT BATCH` prints one JSON line. All requests are made before the first is sent, and an
answer is only looked at as far as its status, so that one core can outrun any server on another.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import statistics
import sys
from collections import Counter, deque
from dataclasses import asdict, dataclass
from hashlib import sha256
from urllib.parse import urlsplit

import uvloop

from receiver.clock import SystemClock

CONNECTIONS = 64
_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Load:
    """What one load met: deliveries a second, milliseconds until the answer, answers by status."""

    rate: float
    p50: float
    p99: float
    statuses: dict[str, int]


def signed(target: str, secret: str, *, count: int, batch: int) -> deque[bytes]:
    """`count` different deliveries, each for a job of its own, as bytes to send. `batch` sets them apart from other calls'."""
    url = urlsplit(target)
    timestamp = str(int(_CLOCK.wall()))
    key = hmac.new(secret.encode(), digestmod=sha256)
    requests: deque[bytes] = deque()
    for number in range(count):
        name = f"{batch:x}_{number:08x}"
        body = json.dumps({"event": "job.completed", "jobId": f"job_{name}", "status": "completed", "pages": 120}).encode()
        mac = key.copy()
        mac.update(timestamp.encode() + b"." + body)
        head = (
            f"POST {url.path} HTTP/1.1\r\nhost: {url.netloc}\r\nuser-agent: Reader-Webhooks/1.0\r\naccept: */*\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\nx-reader-event: job.completed\r\n"
            f"x-reader-delivery: dlv_{name}\r\nx-reader-timestamp: {timestamp}\r\n"
            f"x-reader-signature: sha256={mac.hexdigest()}\r\n\r\n"
        )
        requests.append(head.encode() + body)
    return requests


class _Connection(asyncio.Protocol):
    """Sends what is left of `requests`, one after another. Answers here are small: each comes in one piece, or is waited for."""

    def __init__(self, requests: deque[bytes], times: list[float], statuses: Counter[str]) -> None:
        self._requests, self._times, self._statuses = requests, times, statuses
        self._sent = 0.0
        self._answer = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def begin(self, transport: asyncio.Transport) -> None:
        """Send the first one."""
        self._transport = transport
        self._next()

    def _next(self) -> None:
        if not self._requests:
            self._transport.close()
            return
        self._sent = _CLOCK.monotonic()
        self._transport.write(self._requests.popleft())

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        if not end or not _complete(head.lower(), body):
            return
        self._times.append(_CLOCK.monotonic() - self._sent)
        self._statuses[head[9:12].decode()] += 1
        self._answer = b""
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


def _complete(head: bytes, body: bytes) -> bool:
    _, found, rest = head.partition(b"content-length:")
    if found:
        return len(body) >= int(rest.split(b"\r\n", 1)[0])
    return b"chunked" not in head or body.endswith(b"0\r\n\r\n")


async def send(target: str, requests: deque[bytes]) -> Load:
    """Send them all. Raises `ConnectionError` if the server hangs up before the last is answered."""
    times: list[float] = []
    statuses: Counter[str] = Counter()
    count = len(requests)
    url = urlsplit(target)
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: _Connection(requests, times, statuses), url.hostname, url.port)
        for _ in range(CONNECTIONS)
    ]
    began = _CLOCK.monotonic()
    for transport, connection in made:
        connection.begin(transport)
    await asyncio.gather(*(connection.done for _, connection in made))
    lasted = _CLOCK.monotonic() - began
    if len(times) < count:
        raise ConnectionError(f"the server hung up: {count - len(times)} of {count} deliveries have no answer")
    cuts = statistics.quantiles(times, n=100)
    return Load(count / lasted, cuts[49] * 1000, cuts[98] * 1000, dict(statuses))


def main() -> None:
    target, secret, count, batch = sys.argv[1:]
    requests = signed(target, secret, count=int(count), batch=int(batch))
    print("ready", flush=True)
    sys.stdin.readline()  # signing takes a while: whoever counts the server's time begins after it
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(asdict(runner.run(send(target, requests)))))


if __name__ == "__main__":
    main()
