"""What one replica makes due, another learns of at once. Here none of them ever looks by itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from databases import Server

from receiver import Receiver, loops
from receiver.core.delivery import Claims, understand
from receiver.hooks.event import Event, Results
from receiver.runtime import Runtime
from receiver.sandbox import Sandbox
from receiver.settings import Settings

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SECRET = "whsec-of-the-hurrying-tests"


@pytest.fixture(autouse=True)
def nobody_looks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_LONGEST_NAP", 3600.0)


@asynccontextmanager
async def replicas(*made: Receiver) -> AsyncIterator[list[Runtime]]:
    """Started, and listening to each other; those whose settings say so without loops."""
    async with AsyncExitStack() as stack:
        running = [await stack.enter_async_context(each.running(loops=each.settings.receiver_loops)) for each in made]
        async with asyncio.timeout(30):
            bells = [runtime.bell for runtime in running if runtime.loops]
            while not all(bell is not None and bell.hears for bell in bells):  # noqa: ASYNC110 - it signals nobody
                await asyncio.sleep(0.01)
        yield running


def receiver(url: str, reader: Sandbox, *, loops: bool = True, asks: bool = True) -> Receiver:
    return Receiver(
        Settings(
            reader_webhook_secret=SECRET,  # type: ignore[arg-type]  # pydantic makes it one
            reader_api_key=reader.api_key if asks else None,  # type: ignore[arg-type]
            reader_base_url=reader.url,
            reader_rpm=1000,
            receiver_database_url=url,
            receiver_loops=loops,
            receiver_listen=False,
        )
    )


async def ended(reader: Sandbox) -> str:
    """A job of somebody else's, that has ended."""
    async with httpx.AsyncClient(base_url=reader.url, headers={"x-api-key": reader.api_key}, trust_env=False) as api:
        answer = await api.post("/v1/read", json={"urls": ["https://site.example/1", "https://site.example/2"]})
    answer.raise_for_status()
    job = str(answer.json()["data"]["id"])
    await reader.until(lambda: reader.ledger()["jobs"][job]["status"] == "completed")
    return job


async def test_a_delivery_at_one_is_looked_into_by_another_at_once(postgresql: Server) -> None:
    """The first has no loops; the second told its handler before anything was due by its own round."""
    with postgresql.migrated() as url:
        async with Sandbox(seed=1, job_seconds=0.1, queue_seconds=0.0) as reader:
            entry, worker = receiver(url, reader, loops=False), receiver(url, reader)
            told: asyncio.Queue[str] = asyncio.Queue()

            @worker.on("job.completed", name="told")
            async def tell(event: Event, _: Results) -> None:
                told.put_nowait(event.job_id)

            async with replicas(entry, worker) as (first, _):
                job = await ended(reader)
                body = json.dumps({"event": "job.completed", "jobId": job}).encode()
                claims = Claims(event="job.completed", delivery_id="d", timestamp="1", signature="…")
                said = asyncio.get_running_loop().create_future()
                first.ingest.take(understand(body, claims, signed=True), lambda outcome, _: said.set_result(outcome))
                assert (await said).name == "accepted"
                async with asyncio.timeout(30):
                    assert await told.get() == job


async def test_an_event_settled_at_one_is_delivered_by_another_at_once(postgresql: Server) -> None:
    """The first asks Reader; the handler runs in the second, which has no key."""
    with postgresql.migrated() as url:
        async with Sandbox(seed=1, job_seconds=0.1, queue_seconds=0.0) as reader:
            asker, handler = receiver(url, reader), receiver(url, reader, asks=False)
            told: asyncio.Queue[str] = asyncio.Queue()

            @handler.on("job.completed", name="told")
            async def tell(event: Event, _: Results) -> None:
                told.put_nowait(event.job_id)

            async with replicas(asker, handler):
                job = await ended(reader)
                await asker.track(job)
                async with asyncio.timeout(30):
                    assert await told.get() == job
