"""What a retry queues again: the URLs that errored, as documented; or, by a switch, those never attempted as well."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from sandbox_kit import Landing, checked, error

from receiver.sandbox import Sandbox

pytestmark = pytest.mark.anyio

COUNT = 10


class Stage:
    """A sandbox, and a job of it whose third URL errors once, stopped after so many results."""

    def __init__(self, reader: Sandbox, api: httpx.AsyncClient) -> None:
        self.reader, self.api = reader, api
        self.job = ""

    async def stopped(self, after: int, how: str, query: str = "?sandbox=error-once") -> None:
        wanted = [f"https://example.com/{number}{query if number == 2 else ''}" for number in range(COUNT)]
        self.job = (await self.api.post("/v1/read", json={"urls": wanted})).json()["data"]["id"]
        run = self.reader.engine.workspace.jobs[self.job].round
        if how == "failed":
            run.fatal = after
            await self.reader.settled()
            return
        await self.reader.until(lambda: run.done(self.reader.engine.now()) >= after)
        (await self.api.delete(f"/v1/jobs/{self.job}")).raise_for_status()
        run.stopped_at = run.finish(after - 1) + 0.001

    async def retry(self) -> httpx.Response:
        return await self.api.post(f"/v1/jobs/{self.job}/retry")

    async def shown(self) -> tuple[str, list[int], list[int]]:
        """Its status, which URLs it has results of, and which of those are errors."""
        data = (await self.api.get(f"/v1/jobs/{self.job}?limit=100")).json()["data"]
        numbers = {row["url"]: int(row["url"].split("/")[3].split("?")[0]) for row in data["results"]}
        assert len(numbers) == len(data["results"]) == data["completed"]
        failed = [numbers[row["url"]] for row in data["results"] if row.get("error")]
        truth = self.reader.ledger()["jobs"][self.job]
        assert [row["url"] for row in truth["results"]] == list(numbers)
        assert (truth["status"], truth["generations"][-1]["status"]) == (data["status"], data["status"])
        return data["status"], list(numbers.values()), failed


@asynccontextmanager
async def staged(**settings: Any) -> AsyncIterator[Stage]:
    slow = {"job_seconds": 1, "queue_seconds": 0}
    async with Sandbox(seed=3, **slow | settings) as reader, checked(reader) as api:
        yield Stage(reader, api)


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_a_stopped_job_none_of_whose_urls_errored_has_nothing_to_retry(how: str) -> None:
    async with staged() as stage:
        await stage.stopped(2, how)
        error(await stage.retry(), 400, "invalid_request")
        assert await stage.shown() == (how, [0, 1], [])


@pytest.mark.parametrize(("how", "webhooks"), [("cancelled", []), ("failed", ["job.failed", "job.failed"])])
async def test_only_what_errored_is_retried_and_a_job_still_not_whole_ends_as_before(
    how: str, webhooks: list[str], landing: Landing
) -> None:
    async with staged(webhook_url=landing.url) as stage:
        await stage.stopped(5, how)
        assert await stage.shown() == (how, [0, 1, 2, 3, 4], [2])
        assert (await stage.retry()).json()["data"] == {"id": stage.job, "status": "queued", "retrying": 1}
        async with stage.api.stream("GET", f"/v1/jobs/{stage.job}/stream") as told:
            lines = [line async for line in told.aiter_lines()]
        last = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")][-1]
        assert f'"status":"{how}"' in last.replace(" ", "")
        assert sum(line == "event: page" for line in lines) == 5
        await stage.reader.settled()
        assert await stage.shown() == (how, [0, 1, 2, 3, 4], [])
        error(await stage.retry(), 400, "invalid_request")
    assert [headers["X-Reader-Event"] for headers, _ in landing.got] == webhooks
    truth = stage.reader.ledger()["jobs"][stage.job]
    assert (truth["generation"], len(truth["generations"])) == (2, 2)


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_by_the_switch_what_was_never_attempted_is_queued_too_and_the_job_is_made_whole(how: str) -> None:
    async with staged(retry_queues="unfinished") as stage:
        await stage.stopped(5, how)
        assert (await stage.retry()).json()["data"]["retrying"] == 6
        await stage.reader.settled()
        assert await stage.shown() == ("completed", list(range(COUNT)), [])
        error(await stage.retry(), 400, "invalid_request")


@pytest.mark.slow
async def test_what_a_narrow_retry_left_a_wide_one_still_finds() -> None:
    async with staged() as stage:
        await stage.stopped(5, "cancelled")
        await stage.retry()
        await stage.reader.settled()
        stage.reader.faults["retry_queues"] = "unfinished"
        assert (await stage.retry()).json()["data"]["retrying"] == 5
        await stage.reader.settled()
        assert await stage.shown() == ("completed", list(range(COUNT)), [])


async def test_a_url_that_errored_and_whose_retry_was_cancelled_is_still_one_to_retry() -> None:
    async with staged(queue_seconds=0.5) as stage:
        await stage.stopped(5, "cancelled")
        await stage.retry()
        (await stage.api.delete(f"/v1/jobs/{stage.job}")).raise_for_status()
        assert await stage.shown() == ("cancelled", [0, 1, 3, 4], [])
        assert (await stage.retry()).json()["data"]["retrying"] == 1
        await stage.reader.settled()
        assert await stage.shown() == ("cancelled", [0, 1, 2, 3, 4], [])
