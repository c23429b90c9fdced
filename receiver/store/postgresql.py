"""How we connect to PostgreSQL: what each connection asks of the server, and when one is known to be dead."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import structlog
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext

if TYPE_CHECKING:
    from receiver.settings import Settings

_LOCKED = 5.0
"""Seconds a statement waits for a lock somebody else holds: less than a sender's patience."""
_IDLE = 10.0
"""Seconds a transaction may lie idle: what a frozen process holds locked stops nobody for longer."""
_REACHABLE = {
    "connect_timeout": 5,
    # A server that vanished without a word is noticed in 25 s when nothing is sent, in 10 s when something is.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_ENDED = {
    "57P01",  # the server shuts down
    "57P02",  # another of its processes crashed
    "57P05",  # idle for too long
    "25P03",  # the same, in a transaction
}
"""What the server says before it closes a connection, which the driver may read before it sees the end itself."""

log = structlog.get_logger("receiver.store")


@dataclass(frozen=True, slots=True)
class Options:
    """`pool`: connections of one process. `timeout`: seconds until the server gives up a statement, 0: never.

    `prepare`: have the server keep statements prepared on their connections, which a transaction pooler may lose.
    """

    schema: str | None = None
    pool: int = 8
    timeout: float = 30.0
    prepare: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Options:
        """As configured."""
        return cls(
            schema=settings.receiver_database_schema,
            pool=settings.receiver_database_pool,
            timeout=settings.receiver_database_timeout,
            prepare=settings.receiver_database_prepare,
        )

    @property
    def writers(self) -> int:
        """Transactions that write at once."""
        return self.pool // 2

    @property
    def readers(self) -> int:
        """Those that only read."""
        return self.pool - self.writers


DEFAULTS = Options()


def connect(url: URL, options: Options) -> Engine:
    """An engine whose connections are made when they are needed."""
    # No ping before each use: it would cost every transaction a round trip. Who meets a dead connection begins again
    # (`failures.is_passing`), and the first to meet one has all the others replaced.
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=options.pool,
        pool_use_lifo=True,  # the server's process that was used last has most of what it needs at hand
        max_overflow=0,
        hide_parameters=True,
        connect_args=_arguments(url, options),
    )
    event.listen(engine, "do_connect", _Connector(wanted=options.timeout > 0))
    event.listen(engine, "handle_error", _note_end)
    if options.schema is None:
        return engine
    # Qualified names, not a search_path: that is a session's, and a transaction pooler gives each transaction another one.
    return engine.execution_options(schema_translate_map={None: options.schema})


class Line:
    """Where replicas tell each other something: a connection outside the pool, and the channel of their schema."""

    def __init__(self, url: URL, options: Options) -> None:
        self.channel = "receiver" if options.schema is None else f"receiver.{options.schema}"
        # It lies idle, in no transaction: no limits, so that what refuses them does not matter here.
        self._arguments = _known(url)
        self._url = url.set(drivername="postgresql+psycopg")

    async def connect(self) -> psycopg.AsyncConnection[Any]:
        """A new connection, in autocommit. Raises `psycopg.Error`."""
        args, parameters = self._url.get_dialect()().create_connect_args(self._url)
        return await psycopg.AsyncConnection.connect(*args, **{**self._arguments, **parameters, "autocommit": True})


def lock_key(number: int, schema: str | None) -> int:
    """The key of an advisory lock, which the whole database shares: receivers in other schemas have their own."""
    return number if schema is None else number ^ (zlib.crc32(schema.encode()) << 31)


def _arguments(url: URL, options: Options) -> dict[str, Any]:
    """What goes to the driver besides the URL, whose own words win."""
    limits = {
        "statement_timeout": options.timeout,
        "lock_timeout": min(options.timeout, _LOCKED) or _LOCKED,
        "idle_in_transaction_session_timeout": _IDLE,
    }
    ours = " ".join(f"-c {name}={math.ceil(seconds * 1000)}" for name, seconds in limits.items())
    theirs = url.query.get("options", "")
    return {
        **_known(url),
        "options": f"{ours} {theirs if isinstance(theirs, str) else ' '.join(theirs)}".strip(),
        "prepare_threshold": 5 if options.prepare else None,
    }


def _known(url: URL) -> dict[str, Any]:
    known = {"application_name": "receiver", **_REACHABLE}
    return {name: value for name, value in known.items() if name not in url.query}


class _Connector:
    """Connects with our limits; without them where a pooler refuses to pass them on, or drops them, which is told once."""

    def __init__(self, *, wanted: bool) -> None:
        self._refused = False
        self._unchecked = wanted

    def __call__(self, _: object, __: object, args: list[Any], parameters: dict[str, Any]) -> psycopg.Connection[Any]:
        connection = self._connect(args, parameters)
        # A pooler may hand us a session in which somebody listens: what that hears would pile up here.
        connection.add_notify_handler(lambda _: None)
        if self._unchecked:
            self._unchecked = False
            self._check(connection)
        return connection

    def _connect(self, args: list[Any], parameters: dict[str, Any]) -> psycopg.Connection[Any]:
        if not self._refused:
            try:
                return psycopg.connect(*args, **parameters)
            except psycopg.OperationalError as error:
                if "startup parameter" not in str(error):
                    raise
        connection = psycopg.connect(*args, **{name: value for name, value in parameters.items() if name != "options"})
        self._refused = True
        return connection

    def _check(self, connection: psycopg.Connection[Any]) -> None:
        row = connection.execute("SHOW statement_timeout").fetchone()
        connection.rollback()
        if row is None or row[0] == "0":
            log.warning(
                "database_limits_unset",
                hint="a pooler does not pass our time limits on: set them for the role, e.g. ALTER ROLE … SET statement_timeout "
                "= '30s'; SET lock_timeout = '5s'; SET idle_in_transaction_session_timeout = '10s'",
            )


def has_ended(error: BaseException) -> bool:
    """Whether the server said with it that it closes the connection."""
    return getattr(error, "sqlstate", None) in _ENDED


def _note_end(context: ExceptionContext) -> None:
    if has_ended(context.original_exception):
        context.is_disconnect = True
