"""Same seed, same story."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from sandbox_kit import Landing, client, urls

from receiver.sandbox import Sandbox

pytestmark = pytest.mark.anyio

CRUEL = {
    "page_errors": 0.1,
    "retry_errors": 0.3,
    "job_failures": 0.2,
    "page_size": "200..5000",
    "lose": 0.3,
    "lose_attempts": 0.2,
    "duplicate": 0.3,
    "reorder": 0.5,
    "wrong_secret": 0.1,
    "stale_timestamp": 0.1,
    "corrupt_body": 0.1,
    "unknown_event": 0.2,
    "ghost": 0.2,
    "server_error": 0.2,
    "truncate": 0.1,
    "html": 0.1,
    "shuffle": 0.2,
    "total_drift": 0.2,
}


async def one_job(api: httpx.AsyncClient, reader: Sandbox, number: int) -> None:
    """Submit, wait for the end, read all, retry once: in a way that depends on this job's own answers only."""
    body = {"urls": urls(40 + number, f"https://{number}.example")}
    answer = await api.post("/v1/read", json=body, headers={"x-idempotency-key": f"key {number}"})
    while answer.status_code != 201 or answer.headers["content-type"] != "application/json":
        answer = await api.post("/v1/read", json=body, headers={"x-idempotency-key": f"key {number}"})
    try:
        job = answer.json()["data"]["id"]
    except ValueError:
        return  # spoilt; the job runs all the same
    await reader.until(lambda: not any(each == job for each, _ in reader.engine.director.open))
    for skip in (0, 20, 40):
        await api.get(f"/v1/jobs/{job}", params={"skip": skip, "limit": 20})
    await api.post(f"/v1/jobs/{job}/retry")


async def story(seed: int, order: list[int], landing: Landing) -> dict[str, Any]:
    async with Sandbox(seed=seed, speed=200, webhook_url=landing.url, **CRUEL) as reader, client(reader) as api:
        await asyncio.gather(*(one_job(api, reader, number) for number in order))
        await reader.settled()
        return reader.ledger()


def timeless(ledger: dict[str, Any], landing: Landing) -> dict[str, Any]:
    """Without times and ports, and in an order of its own: only what happened."""
    jobs = json.loads(json.dumps(ledger["jobs"]))
    for job in jobs.values():
        del job["completedAt"]
        for generation in job["generations"]:
            del generation["completedAt"], generation["overtakenAt"]
    deliveries = [{**row, "at": 0, "url": row["url"].replace(str(landing.port), "PORT")} for row in ledger["deliveries"]]
    requests = [{**row, "at": 0} for row in ledger["requests"]]
    return {"jobs": jobs, "deliveries": sorted(deliveries, key=str), "requests": sorted(requests, key=str)}


async def test_two_runs_tell_the_same_story_whatever_the_order_of_the_sockets(landing: Landing) -> None:
    one = timeless(await story(7, list(range(15)), landing), landing)
    two = timeless(await story(7, list(reversed(range(15))), landing), landing)
    assert one["jobs"] == two["jobs"]
    assert one["deliveries"] == two["deliveries"]
    assert one["requests"] == two["requests"]
    # It is a story worth telling: there was loss, there were failures, there were retries.
    assert {"lose", "duplicate"} <= {row["fault"] for row in one["deliveries"]}
    assert {job["generation"] for job in one["jobs"].values()} >= {1, 2}


async def test_another_seed_tells_another_story(landing: Landing) -> None:
    one = timeless(await story(7, list(range(5)), landing), landing)
    two = timeless(await story(8, list(range(5)), landing), landing)
    assert one["jobs"].keys().isdisjoint(two["jobs"].keys())
    assert [row["fault"] for row in one["deliveries"]] != [row["fault"] for row in two["deliveries"]]
