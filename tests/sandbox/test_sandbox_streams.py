"""Both event streams, read to their ends over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from sandbox_kit import batch, client, urls

from receiver.sandbox import Sandbox

pytestmark = pytest.mark.anyio

Told = tuple[str, dict[str, object]]


async def events(lines: AsyncIterator[str]) -> AsyncIterator[Told]:
    """(event, data) of each event; (":", {}) of each comment that is a ping."""
    name = ""
    async for line in lines:
        if line == ": ping":
            yield ":", {}
        elif line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def told(api: httpx.AsyncClient, path: str) -> list[Told]:
    async with api.stream("GET", path) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [event async for event in events(answer.aiter_lines())]


async def test_a_jobs_stream_tells_every_result_and_closes_with_done() -> None:
    async with Sandbox(job_seconds=1, queue_seconds=0.05, page_errors=0.2) as reader, client(reader) as api:
        job = await batch(api, 40)
        got = await told(api, f"/v1/jobs/{job}/stream")
        rows = (await api.get(f"/v1/jobs/{job}?limit=100")).json()["data"]["results"]
        names = [name for name, _ in got]
        assert names[0] == "progress"
        assert names.count("progress") > 2
        assert got[-1] == ("done", {"status": "completed", "completed": 40, "total": 40})
        assert [data for name, data in got if name == "page"] == [row for row in rows if "error" not in row]
        assert [data for name, data in got if name == "error"] == [
            {"url": row["url"], "error": row["error"]} for row in rows if "error" in row
        ]


async def test_an_ended_jobs_stream_tells_it_all_or_only_the_end() -> None:
    async with Sandbox(speed=1000) as reader, client(reader) as api:
        job = await batch(api, 3)
        await reader.settled()
        assert [name for name, _ in await told(api, f"/v1/jobs/{job}/stream")] == ["progress", *["page"] * 3, "done"]
        reader.faults["replay_stream"] = "new"
        assert [name for name, _ in await told(api, f"/v1/jobs/{job}/stream")] == ["progress", "done"]


async def test_a_stream_opened_after_a_retry_tells_each_result_once() -> None:
    async with Sandbox(speed=500, page_errors=0.5) as reader, client(reader) as api:
        job = await batch(api, 20)
        await reader.settled()
        await api.post(f"/v1/jobs/{job}/retry")
        await reader.settled()
        pages = [data["url"] for name, data in await told(api, f"/v1/jobs/{job}/stream") if name == "page"]
        assert sorted(pages) == sorted(urls(20))


async def test_a_stream_ends_when_its_job_is_cancelled() -> None:
    async with Sandbox(job_seconds=3600, queue_seconds=0) as reader, client(reader) as api:
        job = await batch(api, 5)
        async with api.stream("GET", f"/v1/jobs/{job}/stream") as answer:
            got = events(answer.aiter_lines())
            assert (await anext(got))[0] == "progress"
            await api.delete(f"/v1/jobs/{job}")
            last = [event async for event in got][-1]
        assert (last[0], last[1]["status"]) == ("done", "cancelled")


async def test_quiet_streams_send_pings() -> None:
    async with Sandbox(queue_seconds=3600, ping=0.02) as reader, client(reader) as api:
        job = await batch(api, 1)
        for path in (f"/v1/jobs/{job}/stream", "/v1/events"):
            async with api.stream("GET", path) as answer:
                got = events(answer.aiter_lines())
                while (await anext(got))[0] != ":":
                    pass
                assert (await anext(got))[0] == ":"


async def test_the_workspace_stream_tells_of_every_job_from_now_on() -> None:
    async with Sandbox(speed=20, seconds_per_url=20) as reader, client(reader) as api:
        async with api.stream("GET", "/v1/events") as answer:
            jobs = {await batch(api, 5, site=f"https://{number}.example") for number in range(3)}
            ended, progress = {}, set()
            async for name, data in events(answer.aiter_lines()):
                if name == "job:completed":
                    ended[data.pop("jobId")] = data
                else:
                    assert name == "job:progress"
                    assert data.keys() == {"jobId", "status", "completed", "total"}
                    progress.add(data["jobId"])
                if len(ended) == 3:
                    break
        assert ended.keys() == jobs == progress
        assert all(data == {"status": "completed", "completed": 5, "total": 5, "creditsUsed": 5} for data in ended.values())


async def test_the_workspace_stream_tells_of_a_failure_and_not_of_a_cancellation() -> None:
    async with Sandbox(speed=100, queue_seconds=1e9, job_failures=1) as reader, client(reader) as api:
        async with api.stream("GET", "/v1/events") as answer:
            cancelled = await batch(api, 5)
            object.__setattr__(reader.engine.options, "queue_seconds", 0)
            failed = await batch(api, 6)
            await api.delete(f"/v1/jobs/{cancelled}")
            got = events(answer.aiter_lines())
            name, data = await anext(got)
            while name == "job:progress":
                name, data = await anext(got)
        assert name == "job:failed"
        assert data["jobId"] == failed
        assert data["error"]


async def test_a_stream_may_break_off_or_stay_deaf() -> None:
    async with Sandbox(speed=100, ping=0.02, stream_cut={"rate": 1, "after": 3}) as reader, client(reader) as api:
        job = await batch(api, 30)
        with pytest.raises(httpx.RemoteProtocolError):
            await told(api, f"/v1/jobs/{job}/stream")
        reader.faults = {"stream_deaf": 1}
        await reader.settled()
        async with api.stream("GET", f"/v1/jobs/{job}/stream") as answer:
            heard = events(answer.aiter_lines())
            assert [await anext(heard) for _ in range(3)] == [(":", {})] * 3


async def test_closing_the_sandbox_ends_its_streams() -> None:
    async with asyncio.TaskGroup() as tasks, client_of_a_closing_sandbox() as (reader, api):
        job = await batch(api, 1)
        reading = [tasks.create_task(told(api, path)) for path in (f"/v1/jobs/{job}/stream", "/v1/events")]
        await reader.until(lambda: len(reader.ledger()["requests"]) == 3)
    assert all(not [event for event in task.result() if event[0] == "done"] for task in reading)


def client_of_a_closing_sandbox() -> "Closing":
    return Closing()


class Closing:
    """A sandbox that closes before its client does."""

    async def __aenter__(self) -> tuple[Sandbox, httpx.AsyncClient]:
        self.reader = await Sandbox(queue_seconds=3600).__aenter__()
        self.api = client(self.reader)
        return self.reader, self.api

    async def __aexit__(self, *_: object) -> None:
        await self.reader.__aexit__(None, None, None)
