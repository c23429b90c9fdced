"""Reader's API endpoint by endpoint; each answer is also held against the sandbox's OpenAPI document."""

import re

import httpx
import pytest
from sandbox_kit import batch, checked, client, error, urls

from receiver.sandbox import Sandbox

pytestmark = pytest.mark.anyio

BATCH = {"urls": ["https://example.com/1"]}
HOOK = {"url": "https://example.com/hook", "name": "mine", "events": ["job.completed"]}


async def test_every_answer_carries_its_own_request_id() -> None:
    async with Sandbox() as reader, client(reader) as api:
        answers = [await api.get("/v1/queue/status"), await api.get("/v1/nothing"), await api.post("/v1/read", content=b"{")]
        answers.append(await api.get("/v1/queue/status", headers={"x-api-key": "wrong"}))
        ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 4


@pytest.mark.parametrize("headers", [{"x-api-key": "wrong"}, {"x-api-key": ""}, {"authorization": "Bearer x"}])
async def test_a_wrong_or_missing_key_is_401(headers: dict[str, str]) -> None:
    async with Sandbox() as reader, httpx.AsyncClient(base_url=reader.url, headers=headers) as api:
        for method, path in (("POST", "/v1/read"), ("GET", "/v1/jobs/x"), ("GET", "/v1/events")):
            error(await api.request(method, path), 401, "unauthenticated")


async def test_one_url_is_read_at_once() -> None:
    async with Sandbox(seconds_per_url=0.01) as reader, checked(reader) as api:
        answer = await api.post("/v1/read", json={"url": "https://example.com/a", "formats": ["markdown", "html"]})
        assert answer.status_code == 200
        data = answer.json()["data"]
        assert "https://example.com/a" in data["markdown"]
        assert data["html"].startswith("<!doctype html>")
        assert data["metadata"]["statusCode"] == 200


async def test_urls_start_a_batch_and_depth_or_pages_a_crawl() -> None:
    async with Sandbox(speed=100) as reader, checked(reader) as api:
        for body, mode, total in (
            ({"urls": urls(3)}, "batch", 3),
            ({"url": "https://example.com", "maxPages": 7}, "crawl", 7),
            ({"url": "https://example.com", "maxDepth": 2}, "crawl", 20),
        ):
            answer = await api.post("/v1/read", json=body)
            assert answer.status_code == 201
            started = answer.json()["data"]
            assert (started["status"], started["mode"], started["completed"]) == ("queued", mode, 0)
            assert started["startedAt"] is None
            await reader.settled()
            ended = (await api.get(f"/v1/jobs/{started['id']}")).json()["data"]
            assert (ended["status"], ended["completed"], ended["total"]) == ("completed", total, total)
            assert len({row["url"] for row in ended["results"]}) == total


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "url"),
        ({"url": "https://example.com", "urls": urls(1)}, "url"),
        ({"urls": []}, "urls"),
        ({"urls": urls(1001)}, "urls"),
        ({"urls": "https://example.com"}, "urls"),
        ({"urls": ["https://example.com", "ftp://example.com"]}, "urls[1]"),
        ({"urls": [7]}, "urls[0]"),
        ({"url": "example.com"}, "url"),
        ({"url": "https://[::1"}, "url"),
        ({"url": "https://e.com:99999/"}, "url"),
        ({"url": "https://e.com/ x"}, "url"),
        ({"url": "https://e.com", "maxDepth": 0}, "maxDepth"),
        ({"url": "https://e.com", "maxDepth": 11}, "maxDepth"),
        ({"url": "https://e.com", "maxPages": 10001}, "maxPages"),
        ({"url": "https://e.com", "maxPages": True}, "maxPages"),
        ({"url": "https://e.com", "maxPages": 1.5}, "maxPages"),
        ({**BATCH, "timeoutMs": 999}, "timeoutMs"),
        ({**BATCH, "timeoutMs": 120001}, "timeoutMs"),
        ({**BATCH, "batchConcurrency": 21}, "batchConcurrency"),
        ({**BATCH, "maxConcurrency": 0}, "maxConcurrency"),
        ({**BATCH, "formats": []}, "formats"),
        ({**BATCH, "formats": ["pdf"]}, "formats"),
        ({**BATCH, "formats": [{}]}, "formats"),
        ({**BATCH, "proxyMode": {}}, "proxyMode"),
        ({**BATCH, "includeTags": [1]}, "includeTags"),
        ({**BATCH, "cache": "yes"}, "cache"),
        ({**BATCH, "webhook": "https://example.com"}, "webhook"),
        ({**BATCH, "webhook": {}}, "webhook.url"),
        ({**BATCH, "webhook": {"url": "https://e.com", "events": []}}, "webhook.events"),
        ({**BATCH, "webhook": {"url": "https://e.com", "events": ["job.paused"]}}, "webhook.events"),
        ({**BATCH, "webhook": {"url": "https://e.com", "secret": "x" * 15}}, "webhook.secret"),
        ({**BATCH, "webhook": {"url": "https://e.com", "secret": "x" * 257}}, "webhook.secret"),
    ],
)
async def test_a_read_that_is_not_valid_is_400_and_says_where(body: dict[str, object], path: str) -> None:
    async with Sandbox() as reader, checked(reader) as api:
        details = error(await api.post("/v1/read", json=body), 400, "invalid_request")
        assert path in [issue["path"] for issue in details["issues"]]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"NaN",
        b'{"url": NaN}',
        b"\xff\xfe{}",
        b'{"url": "\\ud800"}',
        b"[" * 100_000,
        b'{"maxPages": ' + b"9" * 5_000 + b', "url": "https://e.com"}',
        b'{"urls": 1e999}',
    ],
)
async def test_a_body_that_is_no_json_object_is_400(body: bytes) -> None:
    async with Sandbox() as reader, checked(reader) as api:
        for path in ("/v1/read", "/v1/webhooks"):
            error(await api.post(path, content=body), 400, "invalid_request")


@pytest.mark.parametrize(
    "body", [BATCH | {"urls": urls(1000)}, {**BATCH, "webhook": {"url": "https://e.com", "secret": "x" * 16}}]
)
async def test_the_largest_and_the_shortest_allowed_are_taken(body: dict[str, object]) -> None:
    async with Sandbox() as reader, checked(reader) as api:
        assert (await api.post("/v1/read", json=body)).status_code == 201


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest", "http://[fe80::1]/", "http://metadata.google.internal/", "https://e.com/?sandbox=blocked"],
)
async def test_what_nobody_should_fetch_is_blocked(url: str) -> None:
    async with Sandbox() as reader, checked(reader) as api:
        for body in ({"url": url}, {"urls": ["https://example.com", url]}):
            details = error(await api.post("/v1/read", json=body), 403, "url_blocked")
            assert details["url"] == url
            assert details["reason"]


async def test_an_idempotency_key_gives_the_first_answer_again_whatever_is_asked() -> None:
    async with Sandbox(speed=100) as reader, checked(reader) as api:
        headers = {"x-idempotency-key": "once"}
        first = await api.post("/v1/read", json={"urls": urls(2)}, headers=headers)
        await reader.settled()
        second = await api.post("/v1/read", json={"urls": urls(3)}, headers=headers)
        assert (second.status_code, second.content) == (201, first.content)
        other = await api.post("/v1/read", json={"urls": urls(2)}, headers={"x-idempotency-key": "twice"})
        assert other.json()["data"]["id"] != first.json()["data"]["id"]
        assert len(reader.ledger()["jobs"]) == 2


async def test_an_idempotency_key_of_a_page_read_at_once_gives_the_same_bytes() -> None:
    async with Sandbox(seconds_per_url=0.01) as reader, checked(reader) as api:
        headers = {"x-idempotency-key": "once"}
        first = await api.post("/v1/read", json={"url": "https://example.com"}, headers=headers)
        assert (await api.post("/v1/read", json={"url": "https://example.com"}, headers=headers)).content == first.content


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=-1", "limit=x", "limit=", "skip=-1", "skip=1.0", "skip=%D9%A1", "limit=" + "9" * 5000],
)
async def test_a_page_that_cannot_be_is_400(query: str) -> None:
    async with Sandbox() as reader, checked(reader) as api:
        job = await batch(api, 1)
        details = error(await api.get(f"/v1/jobs/{job}?{query}"), 400, "invalid_request")
        assert details["issues"][0]["path"] == query.split("=", 1)[0]


async def test_pages_are_cut_by_skip_and_limit_and_twenty_is_the_default() -> None:
    async with Sandbox(speed=1000) as reader, checked(reader) as api:
        job = await batch(api, 45)
        await reader.settled()
        for query, count, more in (("", 20, True), ("skip=40", 5, False), ("skip=45", 0, False), ("skip=999", 0, False)):
            answer = (await api.get(f"/v1/jobs/{job}?{query}")).json()
            assert (len(answer["data"]["results"]), answer["pagination"]["hasMore"]) == (count, more)
            assert answer["pagination"]["total"] == 45


async def test_an_unknown_job_webhook_session_or_path_is_404() -> None:
    async with Sandbox() as reader, checked(reader) as api:
        for method, path in (
            ("GET", "/v1/jobs/job_none"),
            ("DELETE", "/v1/jobs/job_none"),
            ("POST", "/v1/jobs/job_none/retry"),
            ("GET", "/v1/jobs/job_none/stream"),
            ("DELETE", "/v1/webhooks/wh_none"),
            ("GET", "/v1/sessions/ses_none"),
            ("DELETE", "/v1/sessions/ses_none"),
        ):
            error(await api.request(method, path), 404, "not_found")
        error(await api.patch("/v1/webhooks/wh_none", json={"name": "x"}), 404, "not_found")
    async with Sandbox() as reader, client(reader) as api:
        for path in ("/", "/v1", "/v1/", "/v2/read", "/v1/read/", "/v1/jobs/a/b", "/v1/jobs/a%2Fb", "/sandbox", "/sandbox/none"):
            error(await api.get(path), 404, "not_found")


async def test_a_method_a_path_does_not_know_is_405_and_told_the_right_ones() -> None:
    async with Sandbox() as reader, client(reader) as api:
        answer = await api.put("/v1/jobs/job_none")
        error(answer, 405, "invalid_request")
        assert {method.strip() for method in answer.headers["allow"].split(",")} == {"GET", "DELETE"}
        assert (await api.head("/v1/events")).status_code == 405


async def test_a_job_that_runs_cannot_be_retried_and_one_without_failures_neither() -> None:
    async with Sandbox(queue_seconds=3600) as reader, checked(reader) as api:
        job = await batch(api, 3)
        assert error(await api.post(f"/v1/jobs/{job}/retry"), 409, "conflict") == {"status": "queued"}
    async with Sandbox(speed=1000) as reader, checked(reader) as api:
        job = await batch(api, 3)
        await reader.settled()
        error(await api.post(f"/v1/jobs/{job}/retry"), 400, "invalid_request")
        assert error(await api.delete(f"/v1/jobs/{job}"), 409, "conflict") == {"status": "completed"}


async def test_a_job_may_fail_as_a_whole_and_be_retried_to_its_end() -> None:
    async with Sandbox(job_failures=1, speed=200, retry_queues="unfinished") as reader, checked(reader) as api:
        job = await batch(api, 40)
        await reader.settled()
        failed = (await api.get(f"/v1/jobs/{job}?limit=100")).json()["data"]
        assert failed["status"] == "failed"
        assert failed["error"]
        assert len(failed["results"]) == failed["completed"] < 40
        object.__setattr__(reader.engine.options, "job_failures", 0)
        again = (await api.post(f"/v1/jobs/{job}/retry")).json()["data"]
        assert again["retrying"] == 40 - failed["completed"]
        await reader.settled()
        ended = (await api.get(f"/v1/jobs/{job}?limit=100")).json()
        assert (ended["data"]["status"], ended["data"]["error"]) == ("completed", None)
        assert [row["url"] for row in ended["data"]["results"]] == urls(40)


async def test_a_webhook_shows_its_secret_once_and_is_changed_and_deleted() -> None:
    async with Sandbox() as reader, checked(reader) as api:
        made = (await api.post("/v1/webhooks", json={**HOOK, "secret": "s" * 16, "headers": {"X-Mine": "1"}})).json()["data"]
        assert made["secret"] == "s" * 16
        assert made["active"] is True
        listed = (await api.get("/v1/webhooks")).json()
        assert listed["pagination"] == {"total": 1, "skip": 0, "limit": 20, "hasMore": False}
        assert "secret" not in listed["data"][0]
        change = {"name": "other", "events": ["job.failed", "job.page"], "active": False, "secret": "t" * 256}
        changed = (await api.patch(f"/v1/webhooks/{made['id']}", json=change)).json()["data"]
        assert (changed["name"], changed["events"], changed["active"]) == ("other", ["job.failed", "job.page"], False)
        assert "secret" not in changed
        reader.faults["patch_secret"] = "refused"
        error(await api.patch(f"/v1/webhooks/{made['id']}", json={"secret": "u" * 16}), 400, "invalid_request")
        assert (await api.delete(f"/v1/webhooks/{made['id']}")).status_code == 200
        assert (await api.get("/v1/webhooks")).json()["data"] == []


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": None}, "name"),
        ({"events": []}, "events"),
        ({"events": ["job.gone"]}, "events"),
        ({"events": [["job.failed"]]}, "events"),
        ({"url": "nowhere"}, "url"),
        ({"secret": "short"}, "secret"),
        ({"secret": "x" * 257}, "secret"),
        ({"headers": {"X Mine": "1"}}, "headers"),
        ({"headers": {"X-Mine": "1\r\nX-Other: 2"}}, "headers"),
        ({"headers": []}, "headers"),
    ],
)
async def test_a_webhook_that_is_not_valid_is_400(change: dict[str, object], path: str) -> None:
    async with Sandbox() as reader, checked(reader) as api:
        details = error(await api.post("/v1/webhooks", json=HOOK | change), 400, "invalid_request")
        assert [issue["path"] for issue in details["issues"]] == [path]
        made = (await api.post("/v1/webhooks", json=HOOK)).json()["data"]
        error(await api.patch(f"/v1/webhooks/{made['id']}", json=change), 400, "invalid_request")


async def test_an_eleventh_webhook_is_409() -> None:
    async with Sandbox() as reader, checked(reader) as api:
        for _ in range(10):
            assert (await api.post("/v1/webhooks", json=HOOK)).status_code == 201
        error(await api.post("/v1/webhooks", json=HOOK), 409, "conflict")
        assert (await api.get("/v1/webhooks?skip=8&limit=1")).json()["pagination"]["hasMore"] is True


async def test_usage_tells_of_credits_and_of_every_page_read() -> None:
    async with Sandbox(speed=200, tier="pro", credits=1000) as reader, checked(reader) as api:
        await batch(api, 30, site="https://example.com/?sandbox=error-once&n=")
        await api.post("/v1/read", json={"url": "https://example.com"})
        await reader.settled()
        told = (await api.get("/v1/usage/credits")).json()["data"]
        assert (told["limit"], told["used"], told["balance"], told["tier"]) == (1000, 1, 999, "pro")
        assert re.fullmatch(r"\d{4}-\d\d-01T00:00:00Z", told["resetAt"])
        history = (await api.get("/v1/usage/history?skip=25&limit=100")).json()
        assert history["pagination"]["total"] == 31
        assert [row["status"] for row in history["data"]] == ["error"] * 5 + ["success"]


async def test_the_queue_tells_who_runs_and_who_waits() -> None:
    async with Sandbox(queue_seconds=3600, tier="free") as reader, checked(reader) as api:
        await batch(api, 1)
        told = (await api.get("/v1/queue/status")).json()["data"]
        assert told == {"activeJobs": 0, "waitingJobs": 1, "maxConcurrency": 2}


async def test_a_session_is_opened_seen_and_stopped() -> None:
    async with Sandbox() as reader, checked(reader) as api:
        opened = (await api.post("/v1/sessions", json={"maxDurationMs": 60000})).json()["data"]
        assert opened["wsEndpoint"].startswith("ws://127.0.0.1:")
        assert (await api.get("/v1/sessions")).json()["data"] == [opened]
        stopped = (await api.delete(f"/v1/sessions/{opened['sessionId']}")).json()["data"]
        assert (stopped["status"], stopped["creditsCharged"]) == ("stopped", 1)
        error(await api.delete(f"/v1/sessions/{opened['sessionId']}"), 409, "conflict")
        assert (await api.get(f"/v1/sessions/{opened['sessionId']}")).json()["data"]["status"] == "stopped"
        error(await api.post("/v1/sessions", json={"maxDurationMs": "long"}), 400, "invalid_request")
