"""What the vendor left undocumented: each reading can be had."""

import json
import re

import pytest
from sandbox_kit import Landing, batch, checked, client, urls

from receiver.sandbox import SWITCHES, Sandbox

pytestmark = pytest.mark.anyio


def at(said: dict[str, object], path: str) -> object:
    found: object = said
    for name in path.split("."):
        assert isinstance(found, dict)
        found = found[name]
    return found


@pytest.mark.parametrize("place", SWITCHES["body_id"].values)
@pytest.mark.parametrize("event", SWITCHES["body_event"].values)
async def test_the_body_names_job_and_event_where_the_switch_says(landing: Landing, place: str, event: str) -> None:
    async with Sandbox(speed=1000, webhook_url=landing.url, body_id=place, body_event=event) as reader, client(reader) as api:
        job = await batch(api, 1)
        await reader.settled()
    said = json.loads(landing.got[0][1])
    assert at(said, place) == job
    assert said.get("event") == ("job.completed" if event == "event" else None)
    assert said.get("type") == ("job.completed" if event == "type" else None)


@pytest.mark.parametrize(("per", "count"), [("delivery", 1), ("attempt", 3)])
async def test_the_delivery_id_is_one_per_delivery_or_per_attempt(landing: Landing, per: str, count: int) -> None:
    landing.statuses = [500, 500, 500]
    async with Sandbox(speed=1000, webhook_url=landing.url, delivery_id=per) as reader, client(reader) as api:
        await batch(api, 1)
        await reader.settled()
    ids = [headers["X-Reader-Delivery"] for headers, _ in landing.got]
    assert len(ids) == 3
    assert len(set(ids)) == count
    assert all(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", each) for each in ids)


@pytest.mark.parametrize(("signing", "count"), [("afresh", 2), ("once", 1)])
async def test_a_retry_is_signed_afresh_or_resent_as_it_was(landing: Landing, signing: str, count: int) -> None:
    landing.statuses = [500]
    # The second attempt comes a second and more after the first: its timestamp differs, if it has its own.
    settings = {"speed": 0.9, "job_seconds": 0, "queue_seconds": 0, "webhook_url": landing.url}
    async with Sandbox(**settings, signing=signing) as reader, client(reader) as api:
        await batch(api, 1)
        await reader.settled()
    first, second = landing.got
    assert first[1] == second[1]
    assert len({first[0]["X-Reader-Timestamp"], second[0]["X-Reader-Timestamp"]}) == count


@pytest.mark.parametrize(("attempts", "count"), [("3", 3), ("4", 4)])
async def test_attempts_are_three_or_as_many_as_there_are_pauses(attempts: str, count: int) -> None:
    async with Sandbox(speed=1000, webhook_url="http://127.0.0.1:9", attempts=attempts) as reader, client(reader) as api:
        await batch(api, 1)
        await reader.settled()
    assert len(reader.ledger()["deliveries"]) == count


@pytest.mark.parametrize("total", ["submitted", "gathered"])
@pytest.mark.parametrize("completed_at", ["set", "null"])
async def test_a_job_cut_short_tells_its_total_and_its_end_one_way_or_the_other(total: str, completed_at: str) -> None:
    async with (
        Sandbox(job_seconds=3600, queue_seconds=0, ended_total=total, ended_at=completed_at) as reader,
        checked(reader) as api,
    ):
        job = await batch(api, 1000)
        await reader.until(lambda: reader.engine.workspace.job(job).status(reader.engine.now()) == "processing")
        await api.delete(f"/v1/jobs/{job}")
        answer = (await api.get(f"/v1/jobs/{job}")).json()
        gathered = answer["data"]["completed"]
        assert answer["pagination"]["total"] == (1000 if total == "submitted" else gathered)
        assert (answer["data"]["completedAt"] is None) is (completed_at == "null")


@pytest.mark.parametrize("order", ["submitted", "finished", "unstable"])
async def test_results_keep_the_order_submitted_or_another_or_none(order: str) -> None:
    async with Sandbox(speed=1000, order=order) as reader, checked(reader) as api:
        job = await batch(api, 60)
        await reader.settled()
        one, two = [
            [row["url"] for row in (await api.get(f"/v1/jobs/{job}?limit=60")).json()["data"]["results"]] for _ in range(2)
        ]
        assert sorted(one) == sorted(two) == sorted(urls(60))
        assert (one == urls(60)) is (order == "submitted")
        assert (one == two) is (order != "unstable")


async def test_next_and_null_fields_may_be_left_out_or_put_everywhere() -> None:
    async with Sandbox(speed=1000) as reader, checked(reader) as api:
        job = await batch(api, 30)
        await reader.settled()
        reader.faults = {"next": "absent", "nulls": "absent"}
        answer = (await api.get(f"/v1/jobs/{job}")).json()
        assert "next" not in answer["pagination"]
        assert "error" not in answer["data"]
        reader.faults = {"nulls": "everywhere"}
        answer = (await api.get(f"/v1/jobs/{job}?skip=20")).json()
        assert answer["pagination"]["next"] is None
        assert all(row["error"] is None for row in answer["data"]["results"])


async def test_times_are_to_the_millisecond_or_the_second() -> None:
    async with Sandbox(speed=1000, time="second") as reader, checked(reader) as api:
        job = await batch(api, 1)
        await reader.settled()
        seconds = (await api.get(f"/v1/jobs/{job}")).json()["data"]
        reader.faults.clear()
        millis = (await api.get(f"/v1/jobs/{job}")).json()["data"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", seconds["completedAt"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", millis["completedAt"])


async def test_the_vendor_renames_and_adds_fields() -> None:
    async with Sandbox(speed=1000, proxy_mode="stealth", extra_fields="some") as reader, checked(reader) as api:
        job = await batch(api, 1)
        await reader.settled()
        data = (await api.get(f"/v1/jobs/{job}")).json()["data"]
    assert data["results"][0]["proxyMode"] == "stealth"
    assert {"proxyEscalated", "renderer"} <= data["results"][0].keys()
    assert {"region", "priority"} <= data.keys()


async def test_odd_text_is_valid_json_with_all_that_json_allows() -> None:
    async with Sandbox(speed=1000, text="odd") as reader, client(reader) as api:
        job = await batch(api, 1)
        await reader.settled()
        raw = (await api.get(f"/v1/jobs/{job}")).content
    markdown = json.loads(raw)["data"]["results"][0]["markdown"]
    assert "\x00" in markdown
    assert "\ud800" in markdown
    assert b"\\u0000" in raw


async def test_page_sizes_are_exact_and_may_vary() -> None:
    for given, low, high in ((500, 500, 500), ("100KB", 100_000, 100_000), ("1KB..1MB", 1_000, 1_000_000)):
        async with Sandbox(speed=1000, page_size=given) as reader, client(reader) as api:
            job = await batch(api, 30)
            await reader.settled()
            rows = (await api.get(f"/v1/jobs/{job}?limit=100")).json()["data"]["results"]
            sizes = {len(row["markdown"].encode()) for row in rows}
        assert low <= min(sizes) <= max(sizes) <= high
        assert (len(sizes) == 1) is (low == high)
        assert len({row["markdown"] for row in rows}) == 30


async def test_huge_results_stand_between_ordinary_ones() -> None:
    async with Sandbox(speed=1000, huge_pages=0.2, huge_size="1MB") as reader, client(reader) as api:
        job = await batch(api, 30)
        await reader.settled()
        rows = (await api.get(f"/v1/jobs/{job}?limit=100")).json()["data"]["results"]
    assert {len(row["markdown"]) for row in rows} == {2_000, 1_000_000}
