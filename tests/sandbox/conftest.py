import asyncio
from collections.abc import AsyncIterator

import pytest
from sandbox_kit import Landing


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def landing() -> AsyncIterator[Landing]:
    place = Landing()
    server = await asyncio.start_server(place.serve, "127.0.0.1", 0)
    place.port = server.sockets[0].getsockname()[1]
    yield place
    server.close()
    await server.wait_closed()
