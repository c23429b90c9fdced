"""What goes wrong in our own code is told in Reader's envelope as well, and says nothing of its inside."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from receiver import Receiver, Settings

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    receiver = Receiver(
        Settings(
            reader_webhook_secret=["whsec-of-the-unit-tests"],
            receiver_database_url=f"sqlite:///{tmp_path}/receiver.db",
            receiver_api_keys=["a-token"],
        )
    )

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("token-in-a-message")

    monkeypatch.setattr("receiver.web.api.listing", fails)
    async with receiver.running(loops=False):
        transport = httpx.ASGITransport(receiver.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x", headers={"x-api-key": "a-token"}) as asking:
            yield asking


async def test_a_defect_of_ours_is_an_internal_error_with_a_request_id(broken: httpx.AsyncClient) -> None:
    answer = await broken.get("/v1/jobs")
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert (answer.json()["success"], error["code"]) == (False, "internal_error")
    assert error["docsUrl"].endswith("#internal_error")
    assert answer.headers["x-request-id"]
    assert "token-in-a-message" not in answer.text
