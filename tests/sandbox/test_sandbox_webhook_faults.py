"""What may befall a webhook, one test for each; the ledger tells of it."""

import hmac
import json
from collections import Counter

import pytest
from sandbox_kit import Landing, batch, client

from receiver.sandbox import Sandbox

pytestmark = pytest.mark.anyio

SECRET = "0123456789abcdef"


async def deliver(landing: Landing, jobs: int = 1, pages: int = 1, **settings: object) -> Sandbox:
    """Run jobs to their ends with these faults; the sandbox, closed, its ledger readable."""
    settings = {"speed": 500, "webhook_secret": SECRET, "webhook_url": landing.url} | settings
    async with Sandbox(**settings) as reader, client(reader) as api:
        for number in range(jobs):
            await batch(api, pages, site=f"https://{number}.example")
        await reader.settled()
    return reader


def genuine(headers: dict[str, str], body: bytes) -> bool:
    signed = headers["X-Reader-Timestamp"].encode() + b"." + body
    return headers["X-Reader-Signature"] == "sha256=" + hmac.digest(SECRET.encode(), signed, "sha256").hex()


def faults(reader: Sandbox) -> list[str | None]:
    return [row["fault"] for row in reader.ledger()["deliveries"]]


async def test_a_lost_delivery_loses_all_its_attempts(landing: Landing) -> None:
    reader = await deliver(landing, jobs=20, lose=0.5)
    fates = Counter(row["job"] for row in reader.ledger()["deliveries"] if row["fault"] == "lose")
    assert 3 < len(fates) < 17
    assert set(fates.values()) == {3}
    assert len(landing.got) == 20 - len(fates)


async def test_losing_attempts_leaves_later_ones_a_chance(landing: Landing) -> None:
    reader = await deliver(landing, lose_attempts={"rate": 1, "times": 2})
    assert [(row["attempt"], row["status"], row["fault"]) for row in reader.ledger()["deliveries"]] == [
        (1, None, "lose_attempts"),
        (2, None, "lose_attempts"),
        (3, 202, None),
    ]
    assert len(landing.got) == 1


async def test_a_duplicate_is_the_same_to_the_byte(landing: Landing) -> None:
    reader = await deliver(landing, duplicate={"rate": 1, "value": 2})
    assert len(landing.got) == 3
    assert landing.got[0] == landing.got[1] == landing.got[2]
    assert faults(reader) == [None, "duplicate", "duplicate"]


async def test_reordered_deliveries_overtake_each_other(landing: Landing) -> None:
    reader = await deliver(landing, jobs=12, reorder={"rate": 0.5, "value": 400})
    ended = {job: row["completedAt"] for job, row in reader.ledger()["jobs"].items()}
    arrived = [ended[json.loads(body)["jobId"]] for _, body in landing.got]
    assert arrived != sorted(arrived)
    assert len(arrived) == 12


async def test_a_delayed_delivery_leaves_later(landing: Landing) -> None:
    reader = await deliver(landing, delay=50)
    [row] = reader.ledger()["deliveries"]
    assert len(landing.got) == 1
    assert row["at"] >= reader.engine.workspace.jobs[row["job"]].round.ends_at + 0.1


async def test_early_the_api_lags_behind_the_webhook(landing: Landing) -> None:
    settings = {"webhook_url": landing.url, "queue_seconds": 0, "job_seconds": 0.05, "early": {"rate": 1, "value": 3600}}
    async with Sandbox(**settings) as reader, client(reader) as api:
        job = await batch(api, 3)
        await reader.settled()
        assert len(landing.got) == 1
        assert (await api.get(f"/v1/jobs/{job}")).json()["data"]["status"] == "processing"
        assert reader.ledger()["jobs"][job]["status"] == "completed"
        del reader.faults["early"]
        assert (await api.get(f"/v1/jobs/{job}")).json()["data"]["status"] == "completed"


@pytest.mark.parametrize("fault", ["wrong_secret", "corrupt_body"])
async def test_what_is_not_genuine_does_not_verify(landing: Landing, fault: str) -> None:
    reader = await deliver(landing, **{fault: 1})
    [(headers, body)] = landing.got
    assert not genuine(headers, body)
    assert faults(reader) == [fault]


async def test_an_unsigned_delivery_has_neither_timestamp_nor_signature(landing: Landing) -> None:
    await deliver(landing, unsigned=1)
    [(headers, _)] = landing.got
    assert not {"X-Reader-Timestamp", "X-Reader-Signature"} & headers.keys()


@pytest.mark.parametrize(("fault", "shift"), [("stale_timestamp", -600), ("future_timestamp", 600)])
async def test_a_shifted_timestamp_is_signed_with_the_shift(landing: Landing, fault: str, shift: int) -> None:
    reader = await deliver(landing, **{fault: 1})
    [(headers, body)] = landing.got
    assert genuine(headers, body)
    assert abs(int(headers["X-Reader-Timestamp"]) - reader.ledger()["deliveries"][0]["at"] - shift) < 3


async def test_an_odd_body_is_signed_and_of_no_use(landing: Landing) -> None:
    await deliver(landing, jobs=12, odd_body=1)
    assert all(genuine(headers, body) for headers, body in landing.got)
    assert len({body for _, body in landing.got}) > 2
    for _, body in landing.got:
        try:
            said = json.loads(body)
        except ValueError:
            continue
        assert not isinstance(said, dict) or not isinstance(said.get("jobId"), str)


async def test_an_unknown_event_comes_beside_the_real_one(landing: Landing) -> None:
    await deliver(landing, unknown_event=1)
    real, strange = sorted((json.loads(body) for _, body in landing.got), key=lambda said: said["event"] != "job.completed")
    assert (real["event"], strange["jobId"]) == ("job.completed", real["jobId"])
    assert strange["event"] not in {"job.completed", "job.failed"}


async def test_a_ghost_is_of_a_job_that_does_not_exist(landing: Landing) -> None:
    reader = await deliver(landing, ghost=1)
    told = {json.loads(body)["jobId"] for _, body in landing.got}
    assert len(told) == 2
    assert len(told - reader.ledger()["jobs"].keys()) == 1


async def test_a_fault_may_strike_for_one_event_only(landing: Landing) -> None:
    async with Sandbox(speed=500, lose={"rate": 1, "match": "job.started"}) as reader, client(reader) as api:
        reader.register(landing.url, "job.started", "job.page", "job.completed")
        await batch(api, 3)
        await reader.settled()
    assert sorted(headers["X-Reader-Event"] for headers, _ in landing.got) == ["job.completed", *["job.page"] * 3]


async def test_an_endpoint_that_answers_too_late_is_sent_it_again(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receiver.sandbox.courier._PATIENCE", 0.5)
    landing.stall.clear()
    async with Sandbox(speed=500, webhook_url=landing.url) as reader, client(reader) as api:
        await batch(api, 1)
        await reader.until(lambda: len(reader.ledger()["deliveries"]) == 1)
        landing.stall.set()
        await reader.settled()
    assert [row["status"] for row in reader.ledger()["deliveries"]] == [None, 202]


async def test_nobody_listening_is_no_answer_three_times() -> None:
    async with Sandbox(speed=500, webhook_url="http://127.0.0.1:9/") as reader, client(reader) as api:
        await batch(api, 1)
        await reader.settled()
    assert [(row["attempt"], row["status"]) for row in reader.ledger()["deliveries"]] == [(1, None), (2, None), (3, None)]


@pytest.mark.slow
async def test_the_pauses_between_attempts_are_one_and_four_seconds_of_readers_time(landing: Landing) -> None:
    landing.statuses = [500] * 4
    reader = await deliver(landing, speed=10, queue_seconds=0, attempts="4")
    first, second, third, fourth = [row["at"] for row in reader.ledger()["deliveries"]]
    # At least: how late they are is the machine's business.
    assert second - first >= 0.1
    assert third - second >= 0.4
    assert fourth - third >= 1.6


async def test_a_request_may_bring_its_own_webhook_with_a_secret_or_without(landing: Landing) -> None:
    async with Sandbox(speed=500) as reader, client(reader) as api:
        signed = await batch(api, 1, webhook={"url": landing.url, "secret": SECRET})
        unsigned = await batch(api, 2, webhook={"url": landing.url, "events": ["job.started", "job.page"]})
        await batch(api, 3)
        await reader.settled()
    by_job: dict[str, list[dict[str, str]]] = {signed: [], unsigned: []}
    for headers, body in landing.got:
        by_job[json.loads(body)["jobId"]].append(headers)
        assert ("X-Reader-Signature" in headers) is (json.loads(body)["jobId"] == signed)
    assert [headers["X-Reader-Event"] for headers in by_job[signed]] == ["job.completed"]
    assert sorted(headers["X-Reader-Event"] for headers in by_job[unsigned]) == ["job.page", "job.page", "job.started"]


async def test_a_hook_switched_off_or_deleted_gets_nothing_more(landing: Landing) -> None:
    landing.statuses = [500, 500]
    async with Sandbox(queue_seconds=0, job_seconds=0) as reader, client(reader) as api:
        off, gone = reader.register(landing.url), reader.register(landing.url)
        await batch(api, 1)
        await reader.until(lambda: len(reader.ledger()["deliveries"]) == 2)
        await api.patch(f"/v1/webhooks/{off.id}", json={"active": False})
        await api.delete(f"/v1/webhooks/{gone.id}")
        await reader.settled()
        await batch(api, 2)
        await reader.settled()
    assert len(landing.got) == 2


async def test_a_hooks_own_headers_are_sent_and_do_not_replace_readers(landing: Landing) -> None:
    async with Sandbox(speed=500) as reader, client(reader) as api:
        extra = {"X-Mine": "1", "x-reader-event": "job.forged"}
        hook = {"url": landing.url, "name": "x", "events": ["job.completed"], "headers": extra}
        await api.post("/v1/webhooks", json=hook)
        await batch(api, 1)
        await reader.settled()
    [(headers, _)] = landing.got
    assert headers["X-Mine"] == "1"
    assert [value for name, value in headers.items() if name.lower() == "x-reader-event"] == ["job.completed"]


async def test_sessions_and_low_credits_are_told_too(landing: Landing) -> None:
    async with Sandbox(speed=500, credits=10) as reader, client(reader) as api:
        reader.register(landing.url, "session.created", "session.stopped", "credit.low")
        session = (await api.post("/v1/sessions", json={})).json()["data"]["sessionId"]
        await api.delete(f"/v1/sessions/{session}")
        await batch(api, 9)
        await reader.settled()
    told = {headers["X-Reader-Event"]: json.loads(body) for headers, body in landing.got}
    assert told["session.created"]["sessionId"] == told["session.stopped"]["sessionId"] == session
    assert told["credit.low"]["balance"] == 0
    assert "jobId" not in told["credit.low"]
