"""Logs go to files and screens that more people read than may know a secret."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from receiver.logs import configure


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
