"""Logs: one line an event, for people on a terminal, as JSON elsewhere; always on stderr, for stdout is for data."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal

import msgspec
import structlog


def configure(style: Literal["console", "json"] | None, *, level: int = logging.INFO) -> None:
    """Set up structlog, and the standard library's loggers of what we use, to one form. `None`: by whether stderr is a terminal."""
    chosen = style or ("console" if sys.stderr.isatty() else "json")
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _with_facts,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    ending: list[Any]
    if chosen == "json":
        ending = [structlog.processors.format_exc_info, _as_json]
    else:
        # Its own choice, where rich is installed, is a traceback with every local variable: secrets are among them.
        plain = structlog.dev.plain_traceback
        ending = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[*shared, _without_nothing, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending]
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # It warns of each malformed request: anybody could fill a disk with that.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    # They tell of each failed connection, which is told with the attempt it belongs to.
    for client in ("aiormq", "aio_pika", "confluent_kafka", "nats"):
        logging.getLogger(client).setLevel(logging.CRITICAL)


def identify(**facts: Any) -> None:
    """Have every line of this process say so. Not by context variables: a connection's callbacks run in a context of their own."""
    _facts.update(facts)


_facts: dict[str, Any] = {}


def _with_facts(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    event.update(_facts)
    return event


_STAMP = 3
"""Where among the processors the one is that knows the time."""

_encoder = msgspec.json.Encoder(enc_hook=repr)


def _as_json(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    """By msgspec: a line is written for each delivery, and the standard library's encoder takes as long as all the rest of it."""
    try:
        return _encoder.encode(event).decode()
    except UnicodeEncodeError:  # half a surrogate pair, which it does not write
        return json.dumps(event, default=repr)


class Lines:
    """Lines that come many at once, such as one for each delivery of a group: written at once, at the end of the loop's turn.

    In JSON, as `configure` has it, that takes a fifth of the time. In any other form they are logged one by one, as ever.
    """

    def __init__(self, name: str) -> None:
        self._log = structlog.get_logger(name)
        self._waiting: list[dict[str, Any]] = []

    def info(self, line: dict[str, Any]) -> None:
        """Log it soon; its `event` says what. Call it on an event loop."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.write)
        self._waiting.append(line)

    def write(self) -> None:
        """Log what waits."""
        lines, self._waiting = self._waiting, []
        processors = structlog.get_config()["processors"]
        if processors[-1] is not _as_json or structlog.contextvars.get_contextvars():
            for line in lines:
                self._log.info(**line)
            return
        stamp = processors[_STAMP](None, "", {})["timestamp"]
        for line in lines:
            line.update(_facts)
            line["level"], line["timestamp"] = "info", stamp
        try:
            text = _encoder.encode_lines(lines).decode()
        except UnicodeEncodeError:
            text = "".join(f"{_as_json(None, '', line)}\n" for line in lines)
        sys.stderr.write(text)
        sys.stderr.flush()


def _without_nothing(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in event.items() if value is not None}
