"""The main way: a job is asked for, runs, is told of and read; over real sockets."""

import hashlib
import hmac
import json

import pytest
from sandbox_kit import Landing, batch, client, urls

from receiver.sandbox import Sandbox

pytestmark = pytest.mark.anyio


async def test_a_batch_runs_and_is_read_page_by_page() -> None:
    async with Sandbox(seed=3, speed=200) as reader, client(reader) as api:
        job = await batch(api, 250)
        await reader.settled()
        read = []
        for skip in (0, 100, 200):
            answer = (await api.get(f"/v1/jobs/{job}", params={"skip": skip, "limit": 100})).json()
            assert answer["pagination"]["total"] == 250
            assert answer["pagination"]["hasMore"] is (skip < 200)
            assert ("next" in answer["pagination"]) is (skip < 200)
            read += answer["data"]["results"]
        assert answer["data"]["status"] == "completed"
        assert [row["url"] for row in read] == urls(250)
        truth = reader.ledger()["jobs"][job]
        assert [hashlib.sha256(row["markdown"].encode()).hexdigest() for row in read] == [
            row["sha256"] for row in truth["results"]
        ]


async def test_the_end_is_told_by_a_webhook_signed_as_documented(landing: Landing) -> None:
    async with Sandbox(speed=200, webhook_url=landing.url, webhook_secret="0123456789abcdef") as reader:
        async with client(reader) as api:
            job = await batch(api, 3)
        await reader.settled()
    [(headers, body)] = landing.got
    signed = headers["X-Reader-Timestamp"].encode() + b"." + body
    assert headers["X-Reader-Signature"] == "sha256=" + hmac.digest(b"0123456789abcdef", signed, "sha256").hex()
    assert headers["X-Reader-Event"] == "job.completed"
    assert headers["User-Agent"] == "Reader-Webhook/1.0"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body)["jobId"] == job


async def test_a_delivery_refused_is_tried_three_times_and_given_up(landing: Landing) -> None:
    landing.statuses = [500, 301, 404, 500]
    async with Sandbox(speed=200, webhook_url=landing.url) as reader, client(reader) as api:
        await batch(api, 3)
        await reader.settled()
        [hook] = (await api.get("/v1/webhooks")).json()["data"]
    assert [row["status"] for row in reader.ledger()["deliveries"]] == [500, 301, 404]
    assert len(landing.got) == 3
    assert hook["deliveryStats"]["failedDeliveries"] == 1
    assert hook["deliveryStats"]["totalAttempts"] == 3


async def test_a_retry_reads_the_failed_urls_again_and_ends_once_more(landing: Landing) -> None:
    async with Sandbox(speed=200, webhook_url=landing.url, page_errors=0.3) as reader, client(reader) as api:
        job = await batch(api, 50)
        await reader.settled()
        first = (await api.get(f"/v1/jobs/{job}?limit=100")).json()["data"]
        failed = [row["url"] for row in first["results"] if "error" in row]
        assert 5 < len(failed) < 25
        answer = await api.post(f"/v1/jobs/{job}/retry")
        assert answer.json()["data"] == {"id": job, "status": "queued", "retrying": len(failed)}
        await reader.settled()
        second = (await api.get(f"/v1/jobs/{job}?limit=100")).json()["data"]
        assert second["status"] == "completed"
        assert not [row for row in second["results"] if "error" in row]
        assert second["completedAt"] > first["completedAt"]
        assert second["creditsUsed"] == 50 > first["creditsUsed"]
    assert len(landing.got) == 2
    assert reader.ledger()["jobs"][job]["generation"] == 2


async def test_a_cancelled_job_keeps_what_it_gathered_and_tells_nobody(landing: Landing) -> None:
    async with (
        Sandbox(webhook_url=landing.url, queue_seconds=0, job_seconds=1) as reader,
        client(reader) as api,
    ):
        job = await batch(api, 1000)
        await reader.until(lambda: bool(reader.ledger()["jobs"][job]["status"] == "processing"))
        answer = await api.delete(f"/v1/jobs/{job}")
        assert answer.json()["data"] == {"id": job, "status": "cancelled"}
        await reader.settled()
        again = await api.delete(f"/v1/jobs/{job}")
        assert again.status_code == 409
        assert again.json()["error"]["details"] == {"status": "cancelled"}
        read = (await api.get(f"/v1/jobs/{job}?limit=100")).json()
        assert read["data"]["status"] == "cancelled"
        assert read["pagination"]["total"] == 1000
        assert len(read["data"]["results"]) == min(100, read["data"]["completed"]) < 1000
    assert landing.got == []
