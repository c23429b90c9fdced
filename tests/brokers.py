"""Real brokers for tests, each started here from its installed program, on a port of its own, with what it keeps in a folder.

Where a program is not installed its tests are skipped; where it is, they run, and a broker that does not come up is a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import aio_pika
import confluent_kafka
import nats
import pytest
import redis.asyncio

NAME = "events"
"""Of the queue, stream or subject that events go to."""
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/lib/rabbitmq/bin"


@dataclass(frozen=True)
class Got:
    """A message as it lies in a broker."""

    headers: dict[str, str]
    body: bytes
    native: Any = None
    """The client's own form of it."""

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


def free_port() -> int:
    """On which nobody listened a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Broker(ABC):
    """A broker's process. As a context manager it is killed at the end."""

    program: ClassVar[str]
    patience: ClassVar[float] = 0.5
    """Seconds in which it takes an event even as the first one."""

    def __init__(self, folder: Path, *more: str) -> None:
        """`more`: arguments for the program."""
        found = shutil.which(self.program, path=_PATH)
        if found is None:
            pytest.skip(f"{self.program} is not installed")
        self._found = found
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.more = more
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def server(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Return once it answers."""
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [self._found, *self.arguments(), *self.more],
                cwd=self.folder,
                env={**os.environ, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        end = time.monotonic() + 60
        while not self._answers():
            waits = self._process.poll() is None and time.monotonic() < end
            assert waits, (self.folder / "output").read_text()[-3000:]
            time.sleep(0.02)

    def kill(self) -> None:
        """`kill -9`."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def signal(self, number: int) -> None:
        """To all of it: SIGSTOP leaves its sockets open, and answers nothing."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
            while number == signal.SIGSTOP and not self._stands_still(self._process.pid):
                time.sleep(0.001)

    def _stands_still(self, pid: int) -> bool:
        """The signal reaches one thread after another."""
        states = [stat.read_text().rpartition(") ")[2][0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
        return set(states) == {"T"}

    def ready(self) -> None:
        """Running, whatever was done to it."""
        if self._process is None:
            self.start()
        self.signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as line:
                line.sendall(self.greeting)
                return bool(line.recv(1))
        except OSError:
            return False

    greeting: ClassVar[bytes] = b""

    def environment(self) -> dict[str, str]:
        return {}

    @abstractmethod
    def arguments(self) -> list[str]: ...

    @property
    @abstractmethod
    def url(self) -> str:
        """For a hook."""

    @abstractmethod
    async def prepare(self, **limits: Any) -> None:
        """Make what must be there for the URL to lead somewhere, anew."""

    @abstractmethod
    async def messages(self) -> list[Got]:
        """What arrived, in order."""


class Nats(Broker):
    program = "nats-server"
    full: ClassVar[dict[str, Any]] = {"max_msgs": 1, "discard": nats.js.api.DiscardPolicy.NEW}

    def arguments(self) -> list[str]:
        return ["-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.folder / "store")]

    @property
    def url(self) -> str:
        return f"nats://{self.server}/{NAME}"

    @contextlib.asynccontextmanager
    async def _stream(self) -> AsyncIterator[Any]:
        client = await nats.connect(f"nats://{self.server}")
        try:
            yield client.jetstream()
        finally:
            await client.close()

    async def prepare(self, **limits: Any) -> None:
        async with self._stream() as stream:
            with contextlib.suppress(nats.js.errors.NotFoundError):
                await stream.delete_stream(NAME)
            await stream.add_stream(name=NAME, subjects=[NAME, f"{NAME}.>"], **limits)

    async def messages(self) -> list[Got]:
        async with self._stream() as stream:
            state = (await stream.stream_info(NAME)).state
            numbers = range(state.first_seq, state.last_seq + 1)
            found = [await stream.get_msg(NAME, number) for number in numbers]
            return [Got(dict(message.headers), message.data, message) for message in found]


class Redis(Broker):
    program = "redis-server"
    greeting = b"PING\r\n"
    full: ClassVar[dict[str, Any]] = {"maxmemory": 1}

    def arguments(self) -> list[str]:
        options = {"bind": "127.0.0.1", "port": str(self.port), "dir": str(self.folder), "save": ""}
        options |= {"appendonly": "yes", "appendfsync": "always"}
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    @property
    def url(self) -> str:
        return f"redis://{self.server}/0?stream={NAME}"

    async def prepare(self, **limits: Any) -> None:
        async with redis.asyncio.Redis(port=self.port) as client:
            await client.config_set("maxmemory", limits.get("maxmemory", 0))
            await client.flushall()

    async def messages(self) -> list[Got]:
        async with redis.asyncio.Redis(port=self.port) as client:
            entries = [fields for _, fields in await client.xrange(NAME)]
            plain = [{name.decode(): value for name, value in fields.items()} for fields in entries]
            return [Got({name: value.decode() for name, value in each.items()}, each["payload"], each) for each in plain]


class RabbitMQ(Broker):
    program = "rabbitmq-server"
    greeting = b"AMQP\x00\x00\x09\x01"
    full: ClassVar[dict[str, Any]] = {"x-max-length": 1, "x-overflow": "reject-publish"}

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        # The packaged command changes to another user; the one behind it does not.
        self._found = shutil.which("rabbitmq-server", path="/usr/lib/rabbitmq/bin") or self._found
        self._others = {name: free_port() for name in ("ERL_EPMD_PORT", "RABBITMQ_DIST_PORT")}
        self._mapper: subprocess.Popen[bytes] | None = None

    def arguments(self) -> list[str]:
        return []

    def environment(self) -> dict[str, str]:
        folder = str(self.folder)
        (self.folder / "plugins").write_text("[].")
        return {name: str(port) for name, port in self._others.items()} | {
            "HOME": folder,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "tests@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/none",
            "RABBITMQ_CONFIG_FILE": f"{folder}/none",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/generated",
        }

    def start(self) -> None:
        if self._mapper is None:  # a port mapper of its own, which Erlang would otherwise start and leave behind
            port = str(self._others["ERL_EPMD_PORT"])
            self._mapper = subprocess.Popen(["epmd", "-address", "127.0.0.1", "-port", port])
        super().start()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        if self._mapper is not None:
            self._mapper.kill()
            self._mapper.wait()

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{self.server}/?queue={NAME}"

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[Any]:
        async with await aio_pika.connect(host="127.0.0.1", port=self.port) as connection:
            yield await connection.channel()

    async def prepare(self, **limits: Any) -> None:
        async with self.channel() as channel:
            await channel.queue_delete(NAME)
            await channel.declare_queue(NAME, durable=True, arguments=limits)

    async def messages(self) -> list[Got]:
        """They stay in the queue: the channel closes without an acknowledgement of ours."""
        async with self.channel() as channel:
            queue = await channel.get_queue(NAME)
            found = []
            while (message := await queue.get(fail=False)) is not None:
                found.append(Got({name: str(value) for name, value in message.headers.items()}, message.body, message))
            return found


class Kafka(Broker):
    """librdkafka's. Its log is in memory, so it is read before it is lost."""

    program = sys.executable
    patience = 1.0  # the client asks for its producer's id half a second after it began
    full: ClassVar[dict[str, Any]] = {"refuse": 44}
    """A policy of the topic's."""

    def __init__(self, folder: Path, *more: str) -> None:
        super().__init__(folder, *more)
        self._lost: list[Got] = []
        self._last: list[Got] = []
        self._stopped = False

    def arguments(self) -> list[str]:
        (self.folder / "control").unlink(missing_ok=True)
        return [str(Path(__file__).with_name("kafka_broker.py")), str(self.port), "control"]

    @property
    def url(self) -> str:
        return f"kafka://{self.server}/{NAME}"

    def start(self) -> None:
        super().start()
        self._stopped = False

    def _answers(self) -> bool:
        try:
            self.tell(f"create {NAME}")
        except OSError:
            return False
        return True

    def signal(self, number: int) -> None:
        if number != signal.SIGCONT and not self._stopped and not self.more:
            self._last = self._held()
        self._stopped = number == signal.SIGSTOP
        super().signal(number)

    def kill(self) -> None:
        if self._process is not None:
            super().kill()
            self._lost += self._last

    def tell(self, command: str) -> None:
        """See `kafka_broker.py`."""
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(self.folder / "control"))
            line.sendall(f"{command}\n".encode())
            assert line.recv(100) == b"done\n"

    async def prepare(self, **limits: Any) -> None:
        self._lost.clear()
        self.tell(f"refuse 0 {limits.get('refuse', 0)}")
        self.tell(f"create {NAME}")

    async def messages(self) -> list[Got]:
        return self._lost + await asyncio.to_thread(self._held)

    def _held(self) -> list[Got]:
        place = confluent_kafka.TopicPartition(NAME, 0, 0)
        consumer = confluent_kafka.Consumer({"bootstrap.servers": self.server, "group.id": "tests", "log_level": 0})
        try:
            _, end = consumer.get_watermark_offsets(place, timeout=20)
            consumer.assign([place])
            found = consumer.consume(end, timeout=20) if end else []
        finally:
            consumer.close()
        assert len(found) == end
        return [Got({name: value.decode() for name, value in each.headers()}, each.value(), each) for each in found]


BROKERS: tuple[Any, ...] = (Nats, Redis, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (Kafka, RabbitMQ)))
"""For `parametrize`. RabbitMQ takes some seconds to start, Kafka's client to see that a broker is away."""
