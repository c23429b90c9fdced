"""The pytest plugin: a `reader_sandbox` fixture for anybody who tests an integration with Reader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from receiver.sandbox import BackgroundSandbox


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", "reader_sandbox(**settings): options and faults of the sandbox this test gets, e.g. lose=0.5"
    )


@pytest.fixture
def reader_sandbox(request: pytest.FixtureRequest) -> Iterator[BackgroundSandbox]:
    """Reader's API on a loopback socket, for one test.

    `@pytest.mark.reader_sandbox(speed=50, lose=1)` sets its options and faults; a class's or module's mark holds for its tests.
    """
    from receiver.sandbox import BackgroundSandbox  # noqa: PLC0415 - a test run that never asks for it does not wait for it

    settings: dict[str, object] = {}
    for marker in reversed(list(request.node.iter_markers("reader_sandbox"))):
        settings |= marker.kwargs
    with BackgroundSandbox(**settings) as sandbox:
        yield sandbox
