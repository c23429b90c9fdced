"""Where brokers are, and where in them events go, as `RECEIVER_HOOKS` names it by URL."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

TYPE: Final = "{type}"
"""In a subject or a routing key: the event's type, such as `job.completed`."""
_SUBJECT = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")
_TOPIC = re.compile(r"([A-Za-z0-9._-]|\{type\}){1,200}")
_SASL: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_TLS: Final = {"rediss", "amqps", "kafka+ssl"}


@dataclass(frozen=True, slots=True)
class Server:
    """A broker's address, and who we are there."""

    host: str
    port: int
    user: str | None
    password: str | None
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Nats:
    """`nats://host:4222/subject?stream=NAME`. A user without a password is a token. TLS where the server requires it."""

    server: Server
    subject: str
    stream: str | None
    """Which stream must be the one that takes it; None: whichever does."""

    def __str__(self) -> str:
        return f"nats://{self.server}/{self.subject}"


@dataclass(frozen=True, slots=True)
class Redis:
    """`redis://host:6379/0?stream=NAME&maxlen=100000`; `rediss` by TLS."""

    server: Server
    database: int
    stream: str
    maxlen: int | None
    """About how many entries to keep; None: all."""

    def __str__(self) -> str:
        return f"{'rediss' if self.server.tls else 'redis'}://{self.server}/{self.database}?stream={self.stream}"


@dataclass(frozen=True, slots=True)
class Amqp:
    """`amqp://host:5672/vhost?exchange=NAME&routing_key=KEY`, or `?queue=NAME`; `amqps` by TLS."""

    server: Server
    vhost: str
    exchange: str
    """Empty: the default one, which leads to the queue that the routing key names."""
    routing_key: str

    def __str__(self) -> str:
        where = f"exchange={self.exchange}&routing_key={self.routing_key}" if self.exchange else f"queue={self.routing_key}"
        return f"{'amqps' if self.server.tls else 'amqp'}://{self.server}/{self.vhost.removeprefix('/')}?{where}"


@dataclass(frozen=True, slots=True)
class Kafka:
    """`kafka://host:9092/topic`; `kafka+ssl` by TLS. Whoever has a user and a password there says so by SASL."""

    server: Server
    topic: str
    sasl: str
    """By which mechanism."""

    def __str__(self) -> str:
        return f"{'kafka+ssl' if self.server.tls else 'kafka'}://{self.server}/{self.topic}"


Address: TypeAlias = Nats | Redis | Amqp | Kafka


def broker(url: str) -> Address | None:
    """Where it leads; None if its scheme is no broker's. Raises `ValueError` saying how to write it."""
    scheme = url.partition(":")[0].lower()
    if scheme not in _READ:
        return None
    form, default_port, allowed, read = _READ[scheme]
    try:
        parts = urlsplit(url)
        given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        port = default_port if parts.port is None else parts.port
        options = dict(given)
        well_formed = url.isprintable() and parts.hostname and port > 0 and not parts.fragment and len(options) == len(given)
        if not well_formed or not options.keys() <= allowed:
            raise ValueError
        server = Server(str(parts.hostname), port, _plain(parts.username), _plain(parts.password), scheme in _TLS)
        return read(server, parts, options)
    except ValueError:
        raise ValueError(f"must be like {form}") from None


def _plain(quoted: str | None) -> str | None:
    return None if quoted is None else unquote(quoted, errors="strict")


def _nats(server: Server, parts: SplitResult, options: dict[str, str]) -> Nats:
    subject = unquote(parts.path[1:], errors="strict")
    stream = options.get("stream")
    if not _SUBJECT.fullmatch(subject) or (stream is not None and not _SUBJECT.fullmatch(stream)):
        raise ValueError
    return Nats(server, subject, stream)


def _redis(server: Server, parts: SplitResult, options: dict[str, str]) -> Redis:
    database = parts.path.removeprefix("/") or "0"
    maxlen = options.get("maxlen")
    if not options.get("stream") or not all(re.fullmatch("[0-9]{1,15}", text) for text in (database, maxlen or "0")):
        raise ValueError
    return Redis(server, int(database), options["stream"], None if maxlen is None else int(maxlen))


def _amqp(server: Server, parts: SplitResult, options: dict[str, str]) -> Amqp:
    vhost = unquote(parts.path[1:], errors="strict") or "/"
    match options:
        case {"queue": queue, **rest} if queue and not rest:
            exchange, key = "", queue
        case {"exchange": exchange, **rest} if exchange and "queue" not in rest:
            key = options.get("routing_key", TYPE)
        case _:
            raise ValueError
    if max(len(text.encode()) for text in (vhost, exchange, key)) > 200:  # the protocol's short strings have 255 bytes at most
        raise ValueError
    return Amqp(server, vhost, exchange, key)


def _kafka(server: Server, parts: SplitResult, options: dict[str, str]) -> Kafka:
    topic = unquote(parts.path[1:], errors="strict")
    sasl = options.get("sasl", _SASL[0])
    if not _TOPIC.fullmatch(topic) or topic in {".", ".."} or sasl not in _SASL:
        raise ValueError
    if (server.user is None) != (server.password is None) or ("sasl" in options and server.user is None):
        raise ValueError
    return Kafka(server, topic, sasl)


_NATS = "nats://host:4222/subject, with ?stream=NAME if you like"
_REDIS = "redis://host:6379/0?stream=NAME, with &maxlen=NUMBER if you like (rediss:// for TLS)"
_AMQP = "amqp://host:5672/vhost?queue=NAME or ?exchange=NAME&routing_key=KEY (amqps:// for TLS)"
_KAFKA = "kafka://host:9092/topic (kafka+ssl:// for TLS), with user:password@ and ?sasl=SCRAM-SHA-512 if it needs them"
_READ: Final[dict[str, tuple[str, int, set[str], Callable[[Server, SplitResult, dict[str, str]], Address]]]] = {
    "nats": (_NATS, 4222, {"stream"}, _nats),
    "redis": (_REDIS, 6379, {"stream", "maxlen"}, _redis),
    "rediss": (_REDIS, 6379, {"stream", "maxlen"}, _redis),
    "amqp": (_AMQP, 5672, {"queue", "exchange", "routing_key"}, _amqp),
    "amqps": (_AMQP, 5671, {"queue", "exchange", "routing_key"}, _amqp),
    "kafka": (_KAFKA, 9092, {"sasl"}, _kafka),
    "kafka+ssl": (_KAFKA, 9093, {"sasl"}, _kafka),
}
