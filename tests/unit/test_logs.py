"""Logs go to files and screens that more people read than may know a secret."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog
import structlog.testing

from receiver.logs import Lines, configure


@pytest.fixture
def as_before() -> Iterator[None]:
    root, uvicorn = logging.getLogger(), logging.getLogger("uvicorn.error")
    handlers, levels = root.handlers[:], (root.level, uvicorn.level)
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    uvicorn.setLevel(levels[1])


def fail() -> None:
    password = "hunter2"  # noqa: F841 - what a traceback must not show
    raise ValueError("the index is down")


@pytest.mark.parametrize("style", ["console", "json"])
@pytest.mark.parametrize("through", ["structlog", "logging"])
@pytest.mark.usefixtures("as_before")
def test_a_traceback_shows_no_local_variables(
    capsys: pytest.CaptureFixture[str], style: Literal["console", "json"], through: str
) -> None:
    """Secrets and API keys are among them: in a handler of the user's, and in our own code."""
    configure(style)
    secret = "-".join(("whsec", "in", "a", str(len("variable"))))
    try:
        fail()
    except ValueError:
        if through == "structlog":
            structlog.get_logger("a test").exception("handler_failed")
        else:
            logging.getLogger("a test").exception("handler_failed")
    told = capsys.readouterr().err
    assert "handler_failed" in told
    assert "Traceback (most recent call last)" in told
    assert "ValueError: the index is down" in told
    assert 'password = "hunter2"' not in told
    assert "password = 'hunter2'" not in told
    assert secret not in told
    assert "locals" not in told


TOLD = [
    {"outcome": "accepted", "job": "job_1", "ms": 1.5, "event": "delivery"},
    {"job": "half \ud800 a pair", "event": "delivery"},
]


@pytest.mark.parametrize("lines", [TOLD[:1] * 3, TOLD], ids=["plain", "with half a surrogate pair"])
@pytest.mark.anyio
@pytest.mark.usefixtures("as_before")
async def test_lines_written_together_read_as_if_each_were_logged(
    capsys: pytest.CaptureFixture[str], lines: list[dict[str, str]]
) -> None:
    configure("json")
    together = Lines("a test")
    for line in lines:
        structlog.get_logger("a test").info(**line)
        together.info(dict(line))
    each = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    await asyncio.sleep(0)
    written = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [list(line) for line in written] == [list(line) for line in each]
    assert [line | {"timestamp": ""} for line in written] == [line | {"timestamp": ""} for line in each]


@pytest.mark.anyio
@pytest.mark.usefixtures("as_before")
async def test_lines_in_anybodys_own_form_are_logged_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal, by the user's own configuration, or with what the user has bound to all lines."""
    together = Lines("a test")
    with structlog.testing.capture_logs() as logged:
        together.info({"job": "job_1", "event": "delivery"})
        await asyncio.sleep(0)
    assert logged == [{"job": "job_1", "event": "delivery", "log_level": "info"}]
    configure("json")
    with structlog.contextvars.bound_contextvars(deployment="blue"):
        together.info({"job": "job_1", "event": "delivery"})
    await asyncio.sleep(0)
    assert json.loads(capsys.readouterr().err)["deployment"] == "blue"
