"""What all tests share: one fixed course of chance, a clock that a test holds, and one event loop's flavour."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from tests.clock import FakeClock

# The same examples on every run and machine. `HYPOTHESIS_PROFILE=search pytest …` looks for new ones.
settings.register_profile("fixed", derandomize=True, max_examples=60, deadline=None, database=None)
settings.register_profile("search", max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So does a shell start what it puts in the background. Children would inherit it, and Ctrl-C is among what is tested.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
