"""Requests per sliding window, active jobs, credits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox_kit import batch, checked, error, urls

from receiver.sandbox import Sandbox
from receiver.sandbox.limits import Window
from receiver.sandbox.problems import ApiError


@given(st.lists(st.floats(0, 30), min_size=1, max_size=60), st.integers(1, 5))
def test_no_window_of_sixty_seconds_ever_holds_more_than_the_limit(pauses: list[float], limit: int) -> None:
    window, now, taken = Window(limit, 60), 0.0, []
    for pause in pauses:
        now += pause
        try:
            window.take(now)
        except ApiError as exc:
            refused = exc
        else:
            refused = None
        if refused is not None:
            # Exactly full: refusing sooner would be as wrong as refusing later.
            assert sum(at > now - 60 for at in taken) == limit
            assert refused.details["retryAfterSeconds"] >= 1
            assert refused.details["retryAfterSeconds"] - 1 <= min(at for at in taken if at > now - 60) + 60 - now
        else:
            taken.append(now)
            assert sum(at > now - 60 for at in taken) <= limit


def test_a_place_is_free_again_exactly_when_retry_after_says() -> None:
    window = Window(2, 60)
    window.take(0)
    window.take(10)
    with pytest.raises(ApiError) as refused:
        window.take(59)
    assert refused.value.headers["Retry-After"] == "1"
    window.take(60)


@pytest.mark.anyio
@pytest.mark.parametrize(("tier", "rpm", "limit"), [("free", None, 10), ("pro", 3, 3), ("enterprise", 5, 5)])
async def test_the_request_after_the_last_is_429_with_all_there_is_to_know(tier: str, rpm: int | None, limit: int) -> None:
    async with Sandbox(tier=tier, rpm=rpm) as reader, checked(reader) as api:
        for _ in range(limit):
            assert (await api.get("/v1/queue/status")).status_code == 200
        answer = await api.get("/v1/queue/status")
        details = error(answer, 429, "rate_limited")
        assert (details["limit"], details["windowSeconds"]) == (limit, 60)
        assert answer.headers["retry-after"] == str(details["retryAfterSeconds"])
        assert 55 <= details["retryAfterSeconds"] <= 60


@pytest.mark.anyio
async def test_requests_without_the_key_do_not_use_up_the_window() -> None:
    async with Sandbox(rpm=1) as reader, checked(reader) as api:
        for _ in range(3):
            error(await api.get("/v1/queue/status", headers={"x-api-key": "no"}), 401, "unauthenticated")
        assert (await api.get("/v1/queue/status")).status_code == 200


@pytest.mark.anyio
async def test_a_stream_costs_one_request_and_polling_one_each() -> None:
    async with Sandbox(rpm=3, job_seconds=0.1) as reader, checked(reader) as api:
        job = await batch(api, 2)
        assert (await api.get(f"/v1/jobs/{job}/stream")).status_code == 200
        assert (await api.get(f"/v1/jobs/{job}")).status_code == 200
        error(await api.get(f"/v1/jobs/{job}"), 429, "rate_limited")


@pytest.mark.anyio
async def test_one_active_job_too_many_is_concurrency_limited_without_retry_after() -> None:
    async with Sandbox(tier="free", queue_seconds=3600) as reader, checked(reader) as api:
        first = await batch(api, 1)
        await batch(api, 1)
        answer = await api.post("/v1/read", json={"urls": urls(1)})
        assert error(answer, 429, "concurrency_limited") == {"active": 2, "max": 2}
        assert "retry-after" not in answer.headers
        await api.delete(f"/v1/jobs/{first}")
        await batch(api, 1)


@pytest.mark.anyio
async def test_a_retry_counts_as_an_active_job() -> None:
    async with Sandbox(active_jobs=1, speed=200, page_errors=1) as reader, checked(reader) as api:
        failed = await batch(api, 1)
        await reader.settled()
        object.__setattr__(reader.engine.options, "queue_seconds", 3600 * 200)
        await batch(api, 1)
        error(await api.post(f"/v1/jobs/{failed}/retry"), 429, "concurrency_limited")


@pytest.mark.anyio
async def test_what_is_promised_to_running_jobs_is_not_available_to_others() -> None:
    async with Sandbox(credits=10, queue_seconds=3600) as reader, checked(reader) as api:
        await batch(api, 6)
        await batch(api, 3)
        details = error(await api.post("/v1/read", json={"urls": urls(2)}), 402, "insufficient_credits")
        assert (details["required"], details["available"]) == (2, 1)
        await batch(api, 1)


@pytest.mark.anyio
async def test_what_the_credits_do_not_cover_is_402_and_failed_pages_cost_nothing() -> None:
    async with Sandbox(credits=10, speed=500) as reader, checked(reader) as api:
        await batch(api, 6, site="https://example.com/?sandbox=error-once&n=")
        await batch(api, 4)
        await reader.settled()
        assert (await api.get("/v1/usage/credits")).json()["data"]["used"] == 4
        await batch(api, 6)
        await reader.settled()
        details = error(await api.post("/v1/read", json={"url": "https://example.com"}), 402, "insufficient_credits")
        assert details["resetAt"].endswith("-01T00:00:00Z")
