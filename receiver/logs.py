"""Logs: one line an event, for people on a terminal, as JSON elsewhere; always on stderr, for stdout is for data."""

from __future__ import annotations

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


_encoder = msgspec.json.Encoder(enc_hook=repr)


def _as_json(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    """By msgspec: a line is written for each delivery, and the standard library's encoder takes as long as all the rest of it."""
    try:
        return _encoder.encode(event).decode()
    except UnicodeEncodeError:  # half a surrogate pair, which it does not write
        return json.dumps(event, default=repr)


def _without_nothing(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in event.items() if value is not None}
