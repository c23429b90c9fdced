"""How the API may misbehave, one test for each; what was asked for is done or not done as the switch says, and the ledger tells."""

import time
import zlib
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest
from sandbox_kit import batch, client, error, urls

from receiver.sandbox import Sandbox

pytestmark = pytest.mark.anyio

STATUS = "/v1/queue/status"


async def ended(reader: Sandbox, api: httpx.AsyncClient, pages: int = 250) -> str:
    job = await batch(api, pages)
    await reader.settled()
    return job


def faults(reader: Sandbox) -> list[str | None]:
    return [row["fault"] for row in reader.ledger()["requests"]]


async def test_429_with_the_seconds_asked_for() -> None:
    async with Sandbox(rate_limit={"rate": 1, "value": 12}) as reader, client(reader) as api:
        answer = await api.get(STATUS)
        assert error(answer, 429, "rate_limited") == {"retryAfterSeconds": 12, "limit": 1000, "windowSeconds": 60}
        assert answer.headers["retry-after"] == "12"
    assert faults(reader) == ["rate_limit"]


async def test_429_bare_tells_nothing_more() -> None:
    async with Sandbox(rate_limit_bare=1) as reader, client(reader) as api:
        answer = await api.get(STATUS)
        assert error(answer, 429, "rate_limited") == {}
        assert "retry-after" not in answer.headers


async def test_429_with_a_date() -> None:
    async with Sandbox(rate_limit_date={"rate": 1, "value": 100}) as reader, client(reader) as api:
        answer = await api.get(STATUS)
        assert 95 < parsedate_to_datetime(answer.headers["retry-after"]).timestamp() - time.time() < 105


@pytest.mark.parametrize("value", ["-1", "soon", "9" * 30, "1.5", "\r\nx: y", "Ünïcode"])
async def test_429_with_whatever_in_retry_after(value: str) -> None:
    async with Sandbox(rate_limit_odd={"rate": 1, "value": value}) as reader, client(reader) as api:
        answer = await api.get(STATUS)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "".join(char for char in value if " " <= char <= "~")


async def test_a_5xx_before_anything_is_done() -> None:
    async with Sandbox(server_error=1) as reader, client(reader) as api:
        answers = [await api.post("/v1/read", json={"urls": urls(1)}) for _ in range(12)]
        assert {answer.status_code for answer in answers} == {500, 502, 504}
        assert {answer.json()["error"]["code"] for answer in answers} == {
            "internal_error",
            "upstream_unavailable",
            "scrape_timeout",
        }
    assert reader.ledger()["jobs"] == {}


@pytest.mark.parametrize(("value", "code"), [(500, "internal_error"), (502, "upstream_unavailable"), (504, "scrape_timeout")])
async def test_a_5xx_is_the_one_asked_for(value: int, code: str) -> None:
    async with Sandbox(server_error={"value": value}) as reader, client(reader) as api:
        for _ in range(3):
            error(await api.get(STATUS), value, code)


@pytest.mark.parametrize("value", [999, 200, 503, "abc", "502", 502.5, True, 0])
async def test_a_5xx_that_reader_does_not_send_is_refused(value: Any) -> None:
    async with Sandbox() as reader, client(reader) as api:
        answer = await api.post("/sandbox/faults", json={"server_error": {"rate": 1, "value": value}})
        (issue,) = error(answer, 400, "invalid_request")["issues"]
        assert "server_error: 'value' is one of 500, 502, 504, not" in issue["message"]
        assert reader.faults.active == {}


async def test_5xx_come_in_bursts() -> None:
    async with Sandbox(error_burst={"rate": 1, "times": 1, "value": 3}) as reader, client(reader) as api:
        assert [(await api.get(STATUS)).status_code >= 500 for _ in range(5)] == [True] * 3 + [False] * 2
    assert faults(reader) == ["error_burst"] * 3 + [None] * 2


@pytest.mark.parametrize(
    "cleared", [{}, {"error_burst": 0}, {"error_burst": None}, {"error_burst": {"rate": 1, "match": "nothing"}}]
)
async def test_a_burst_ends_when_its_fault_is_switched_back_or_set_anew(cleared: dict[str, Any]) -> None:
    async with Sandbox(error_burst={"rate": 1, "times": 1, "value": 100}) as reader, client(reader) as api:
        assert [(await api.get(STATUS)).status_code >= 500 for _ in range(3)] == [True] * 3
        (await api.post("/sandbox/faults", json=cleared)).raise_for_status()
        assert (await api.get(STATUS)).status_code == 200


async def test_a_burst_outlives_what_else_is_switched() -> None:
    async with Sandbox(error_burst={"rate": 1, "times": 1, "value": 3}) as reader, client(reader) as api:
        await api.get(STATUS)
        (await api.post("/sandbox/faults", json={"lose": 1})).raise_for_status()
        assert [(await api.get(STATUS)).status_code >= 500 for _ in range(3)] == [True, True, False]


async def test_a_rotated_key_replaces_the_old_one_until_it_is_taken_back() -> None:
    async with Sandbox() as reader, client(reader) as api:
        reader.faults["rotate_key"] = "another"
        error(await api.get(STATUS), 401, "unauthenticated")
        assert (await api.get(STATUS, headers={"x-api-key": "another"})).status_code == 200
        assert reader.api_key == "another"
        del reader.faults["rotate_key"]
        assert (await api.get(STATUS)).status_code == 200


async def test_401_and_402_out_of_the_blue() -> None:
    async with Sandbox(unauthorized={"rate": 1, "times": 1}, out_of_credits=1) as reader, client(reader) as api:
        error(await api.get(STATUS), 401, "unauthenticated")
        assert (await api.get(STATUS)).status_code == 200
        error(await api.post("/v1/read", json={"urls": urls(1)}), 402, "insufficient_credits")
    assert faults(reader) == ["unauthorized", None, "out_of_credits"]


async def test_who_follows_a_redirect_with_the_key_is_told_on() -> None:
    async with Sandbox(redirect={"rate": 1, "match": STATUS}) as reader:
        for follow in (False, True):
            async with httpx.AsyncClient(follow_redirects=follow, trust_env=False, verify=False) as api:
                await api.get(reader.url + STATUS, headers={"x-api-key": reader.api_key})
        rows = reader.ledger()["requests"]
    assert [(row["path"], row["status"], row["fault"]) for row in rows] == [
        (STATUS, 302, "redirect"),
        (STATUS, 302, "redirect"),
        ("/sandbox/trap", 200, "trap"),
    ]
    assert rows[-1]["key"] == reader.api_key[-4:]


async def test_next_may_point_to_another_host() -> None:
    async with Sandbox(speed=1000, foreign_next=1) as reader, client(reader) as api:
        job = await ended(reader, api)
        following = (await api.get(f"/v1/jobs/{job}")).json()["pagination"]["next"]
        assert following.startswith("http://localhost:")
        assert following.endswith(f"/sandbox/trap/v1/jobs/{job}?skip=20&limit=20")
        assert (await api.get(following)).status_code == 200
    assert faults(reader)[-2:] == ["foreign_next", "trap"]


@pytest.mark.parametrize("fault", ["html", "false_success", "truncate", "cut", "reset", "gzip_bomb"])
async def test_a_spoilt_answer_comes_after_the_deed(fault: str) -> None:
    async with Sandbox(speed=1000, **{fault: {"rate": 1, "value": 1}}) as reader, client(reader) as api:
        try:
            await api.post("/v1/read", json={"urls": urls(3)})
        except httpx.TransportError:
            assert fault in {"cut", "reset"}
        await reader.settled()
    assert len(reader.ledger()["jobs"]) == 1
    assert faults(reader) == [fault]


async def test_html_and_false_success_come_with_200() -> None:
    async with Sandbox(html={"rate": 1, "times": 1}, false_success=1) as reader, client(reader) as api:
        answer = await api.get(STATUS)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        error(await api.get(STATUS), 200, "internal_error")


async def test_truncated_json_is_framed_as_if_it_were_whole() -> None:
    async with Sandbox(speed=1000) as reader, client(reader) as api:
        job = await ended(reader, api)
        whole = await api.get(f"/v1/jobs/{job}")
        reader.faults["truncate"] = 1
        half = await api.get(f"/v1/jobs/{job}")
    assert half.status_code == 200
    assert half.content == whole.content[: len(whole.content) // 2]


async def test_a_cut_answer_and_a_reset_connection_are_not_answers() -> None:
    async with Sandbox(speed=1000) as reader, client(reader) as api:
        job = await ended(reader, api)
        reader.faults["cut"] = {"rate": 1, "times": 1}
        with pytest.raises(httpx.RemoteProtocolError):
            await api.get(f"/v1/jobs/{job}?limit=100")
        reader.faults["reset"] = {"rate": 1, "times": 1}
        with pytest.raises(httpx.ReadError):
            await api.get(f"/v1/jobs/{job}")
        assert (await api.get(f"/v1/jobs/{job}")).status_code == 200
    assert [row["status"] for row in reader.ledger()["requests"]][1:] == [200, None, 200]


async def test_a_dripping_answer_comes_in_many_pieces_over_the_time_given() -> None:
    async with Sandbox(drip={"rate": 1, "value": 0.5}) as reader, client(reader) as api:
        began = reader.engine.now()
        async with api.stream("GET", STATUS) as answer:
            pieces = [piece async for piece in answer.aiter_raw()]
        assert reader.engine.now() - began >= 0.4
    assert len(pieces) > 1  # of 50: how many come together is the machine's business


async def test_a_gzip_bomb_is_small_on_the_wire_and_whole() -> None:
    async with Sandbox(gzip_bomb={"rate": 1, "value": 64}) as reader, client(reader) as api, api.stream("GET", STATUS) as answer:
        assert answer.headers["content-encoding"] == "gzip"
        raw = b"".join([piece async for piece in answer.aiter_raw()])
    assert len(raw) < 100_000
    inflated = zlib.decompress(raw, wbits=31)
    assert len(inflated) > 64_000_000
    assert inflated.strip() == b'{"success":true,"data":{}}'


async def test_a_new_job_may_not_be_found_at_first() -> None:
    async with Sandbox(queue_seconds=3600, unborn={"rate": 1, "value": 3600}) as reader, client(reader) as api:
        job = await batch(api, 1)
        error(await api.get(f"/v1/jobs/{job}"), 404, "not_found")
        del reader.faults["unborn"]
        assert (await api.get(f"/v1/jobs/{job}")).status_code == 200


async def test_a_job_may_be_queued_again_between_two_pages() -> None:
    async with Sandbox(speed=100, queue_seconds=20, requeue={"rate": 1, "times": 1}) as reader, client(reader) as api:
        job = await ended(reader, api)
        first = (await api.get(f"/v1/jobs/{job}?limit=100")).json()["data"]
        second = (await api.get(f"/v1/jobs/{job}?limit=100&skip=100")).json()["data"]
        assert (first["status"], second["status"]) == ("completed", "queued")
        await reader.settled()
        third = (await api.get(f"/v1/jobs/{job}")).json()["data"]
        assert third["status"] == "completed"
        assert third["completedAt"] > first["completedAt"]
        row = reader.ledger()["jobs"][job]
    assert row["generation"] == 2
    assert [generation["observable"] for generation in row["generations"]] == [False, True]


async def test_has_more_may_stay_true_for_ever_or_end_too_early() -> None:
    async with Sandbox(speed=1000, has_more_forever=1) as reader, client(reader) as api:
        job = await ended(reader, api)
        past = (await api.get(f"/v1/jobs/{job}?skip=500&limit=100")).json()
        assert (past["pagination"]["hasMore"], past["data"]["results"]) == (True, [])
        reader.faults = {"has_more_early": 1}
        assert (await api.get(f"/v1/jobs/{job}")).json()["pagination"]["hasMore"] is False


async def test_the_total_may_drift() -> None:
    async with Sandbox(speed=1000, total_drift=1) as reader, client(reader) as api:
        job = await ended(reader, api)
        totals = [(await api.get(f"/v1/jobs/{job}?limit=1")).json()["pagination"]["total"] for _ in range(3)]
    assert len(set(totals)) == 3
    assert 250 not in totals


async def test_shuffled_pages_double_one_result_and_miss_one() -> None:
    async with Sandbox(speed=1000, shuffle={"rate": 1, "after": 1, "times": 1}) as reader, client(reader) as api:
        job = await ended(reader, api)
        read = [
            row["url"]
            for skip in (0, 100, 200)
            for row in (await api.get(f"/v1/jobs/{job}?skip={skip}&limit=100")).json()["data"]["results"]
        ]
    assert len(read) == 250
    assert len(set(read)) == 249


async def test_a_result_may_stand_twice_on_its_page() -> None:
    async with Sandbox(speed=1000, double={"rate": 1, "times": 1}) as reader, client(reader) as api:
        job = await ended(reader, api, 5)
        rows = (await api.get(f"/v1/jobs/{job}")).json()["data"]["results"]
    assert len(rows) == 6
    assert rows[0] == rows[5]


async def test_latency_holds_an_answer_back() -> None:
    async with Sandbox(latency={"value": 0.2, "match": STATUS}) as reader, client(reader) as api:
        began = reader.engine.now()
        await api.get("/v1/webhooks")
        quick = reader.engine.now() - began
        await api.get(STATUS)
        assert reader.engine.now() - began - quick >= 0.2
    assert faults(reader) == [None, "latency"]


async def test_compressed_answers_are_for_clients_that_accept_them() -> None:
    async with Sandbox(speed=1000, gzip=True) as reader, client(reader) as api:
        job = await ended(reader, api)
        squeezed = await api.get(f"/v1/jobs/{job}")
        plain = await api.get(f"/v1/jobs/{job}", headers={"accept-encoding": "identity"})
        assert squeezed.headers["content-encoding"] == "gzip"
        assert "content-encoding" not in plain.headers
        assert squeezed.json() == plain.json()
