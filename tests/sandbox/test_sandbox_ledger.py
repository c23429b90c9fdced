"""The sandbox's own endpoints: the ledger, the switches, and who may see them."""

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_kit import Landing, batch, client, error

from receiver.sandbox import BackgroundSandbox, Happening, Sandbox

pytestmark = pytest.mark.anyio


async def test_the_ledger_over_http_is_the_ledger_in_process(landing: Landing) -> None:
    async with Sandbox(speed=1000, page_errors=0.3, webhook_url=landing.url) as reader, client(reader) as api:
        await batch(api, 30)
        await batch(api, 40)
        await reader.settled()
        assert (await api.get("/sandbox/ledger", headers={"x-api-key": ""})).json() == reader.ledger()


async def test_an_empty_ledger_is_empty_lists() -> None:
    async with Sandbox() as reader, client(reader) as api:
        assert (await api.get("/sandbox/ledger")).json() == {"jobs": {}, "deliveries": [], "requests": []} == reader.ledger()


async def test_the_true_results_are_those_a_reader_gets(landing: Landing) -> None:
    async with Sandbox(speed=1000, page_errors=0.3, text="odd", page_size="10..3000") as reader, client(reader) as api:
        job = await batch(api, 60, formats=["markdown", "html"])
        await reader.settled()
        rows = (await api.get(f"/v1/jobs/{job}?limit=100")).json()["data"]["results"]
        truth = reader.ledger()["jobs"][job]
    assert truth["results"] == [
        {
            "url": row["url"],
            "error": row.get("error"),
            "sha256": hashlib.sha256(row["markdown"].encode("utf-8", "surrogatepass")).hexdigest() if "markdown" in row else None,
        }
        for row in rows
    ]


async def test_a_result_without_markdown_has_no_hash() -> None:
    async with Sandbox(speed=1000) as reader, client(reader) as api:
        job = await batch(api, 1, formats=["html"])
        await reader.settled()
        assert "markdown" not in (await api.get(f"/v1/jobs/{job}")).json()["data"]["results"][0]
    assert reader.ledger()["jobs"][job]["results"][0]["sha256"] is None


async def test_since_cuts_the_lists_and_not_the_jobs() -> None:
    async with Sandbox(speed=1000) as reader, client(reader) as api:
        await batch(api, 1)
        at = reader.engine.now()
        await api.get("/v1/queue/status")
        cut = (await api.get("/sandbox/ledger", params={"since": at})).json()
        assert [row["path"] for row in cut["requests"]] == ["/v1/queue/status"]
        assert len(cut["jobs"]) == 1
        for odd in ("soon", "nan"):
            error(await api.get("/sandbox/ledger", params={"since": odd}), 400, "invalid_request")


async def test_requests_are_told_with_the_keys_last_four_and_never_the_key() -> None:
    async with Sandbox(api_key="rdr_secret_1234") as reader, client(reader) as api:
        await api.get("/v1/jobs/x?limit=3")
        await api.get("/v1/jobs/x", headers={"x-api-key": ""})
        text = (await api.get("/sandbox/ledger")).text
    one, two = reader.ledger()["requests"]
    assert (one["method"], one["path"], one["query"], one["key"], one["status"]) == ("GET", "/v1/jobs/x", "limit=3", "1234", 404)
    assert (two["key"], two["status"]) == (None, 401)
    assert "rdr_secret" not in text


async def test_a_generation_read_whole_before_it_was_overtaken_was_observable() -> None:
    async with Sandbox(speed=500, page_errors=0.5) as reader, client(reader) as api:
        unread, partly, whole = [await batch(api, 30, site=f"https://{name}.example") for name in "abc"]
        await reader.settled()
        await api.get(f"/v1/jobs/{partly}?limit=20")
        await api.get(f"/v1/jobs/{whole}?limit=20")
        await api.get(f"/v1/jobs/{whole}?limit=20&skip=20")
        object.__setattr__(reader.engine.options, "queue_seconds", 1e9)
        for job in (unread, partly, whole):
            await api.post(f"/v1/jobs/{job}/retry")
        ledger = reader.ledger()["jobs"]
        assert [ledger[job]["observable"] for job in (unread, partly, whole)] == [False, False, True]
        assert [ledger[job]["generation"] for job in (unread, partly, whole)] == [1, 1, 1]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "sandbox.example"},
        {"host": "10.0.0.1:9090"},
        {"host": "localhost.example"},
        {"x-forwarded-for": "127.0.0.1"},
        {"forwarded": "for=127.0.0.1"},
        {"x-real-ip": "127.0.0.1"},
    ],
)
async def test_ledger_and_switches_are_for_this_machine_only(headers: dict[str, str]) -> None:
    async with Sandbox() as reader, client(reader) as api:
        for method, path in (("GET", "/sandbox/ledger"), ("POST", "/sandbox/faults"), ("GET", "/openapi.json")):
            error(await api.request(method, path, headers=headers, json={"lose": 1}), 404, "not_found")
        assert reader.faults.active == {}
        for host in ("localhost:1", "127.0.0.2", "[::1]:9"):
            assert (await api.get("/sandbox/ledger", headers={"host": host})).status_code == 200


async def test_switches_are_set_seen_and_cleared_over_http() -> None:
    async with Sandbox(order="unstable") as reader, client(reader) as api:
        told = (await api.post("/sandbox/faults", json={"lose": 0.5, "cut": {"rate": 1, "times": 1}})).json()
        assert (told["lose"], told["order"], told["duplicate"]) == (0.5, "unstable", 0)
        assert (await api.get("/sandbox/faults")).json() == told
        for odd in ({"lose": 7}, {"loose": 1}, {"lose": 0, "order": "up"}, {"lose": 10**30}):
            error(await api.post("/sandbox/faults", json=odd), 400, "invalid_request")
        error(await api.post("/sandbox/faults", content=b"[]"), 400, "invalid_request")
        assert (await api.get("/sandbox/faults")).json() == told
        cleared = (await api.post("/sandbox/faults", json={})).json()
        assert (cleared["lose"], cleared["order"]) == (0, "submitted")
        assert (await api.post("/sandbox/faults", json=told)).json() == told


async def test_listeners_are_told_of_everything_until_they_stop(landing: Landing) -> None:
    heard: list[Happening] = []
    async with Sandbox(speed=1000, webhook_url=landing.url) as reader, client(reader) as api:
        stop = reader.listen(heard.append)
        await api.post("/sandbox/faults", json={"duplicate": 1})
        job = await batch(api, 1)
        await reader.settled()
        stop()
        await api.get("/v1/queue/status")
    assert [each.kind for each in heard if each.kind != "job"] == ["faults", "request", "delivery", "delivery"]
    assert [each.row["status"] for each in heard if each.kind == "job"] == ["queued", "processing", "completed"]
    assert [each.row["path"] for each in heard if each.kind == "request"] == ["/v1/read"]
    assert heard[-1].row["job"] == job


async def test_two_sandboxes_in_one_process_do_not_know_each_other() -> None:
    async with Sandbox(seed=1) as one, Sandbox(seed=2, lose=1) as two, client(one) as api, client(two) as other:
        await batch(api, 1)
        error(await other.get("/v1/queue/status", headers={"x-api-key": one.api_key}), 401, "unauthenticated")
        assert two.ledger()["jobs"] == {}
        assert one.faults.active == {}


async def test_a_taken_port_is_an_os_error_and_a_wrong_setting_says_so() -> None:
    async with Sandbox() as reader:
        with pytest.raises(OSError, match="in use"):
            await Sandbox(port=int(reader.url.rsplit(":", 1)[1])).__aenter__()
    for wrong in ({"lose": 2}, {"tier": "gold"}, {"webhook_url": "nowhere"}, {"port": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Sandbox(**wrong)
    with pytest.raises(TypeError, match="loose"):
        Sandbox(loose=1)


async def test_nothing_is_left_running_when_it_closes(landing: Landing) -> None:
    before = asyncio.all_tasks()
    landing.stall.clear()
    async with Sandbox(speed=1000, webhook_url=landing.url) as reader, client(reader) as api:
        await batch(api, 1)
        await reader.until(lambda: bool(landing.got))
    landing.stall.set()
    await asyncio.sleep(0)
    left = {task for task in asyncio.all_tasks() - before if "serve" not in repr(task.get_coro())}
    assert left == set()


def test_bytes_that_are_no_http_hurt_nobody() -> None:
    with BackgroundSandbox() as reader:
        host, port = reader.url.removeprefix("http://").split(":")

        @settings(max_examples=200, deadline=None)
        @given(st.binary(max_size=200))
        def hold(noise: bytes) -> None:
            with socket.create_connection((host, int(port)), timeout=5) as line:
                line.sendall(noise + b"\r\n\r\n")
                line.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    assert b" 500 " not in line.recv(1000)

        hold()
        assert httpx.get(f"{reader.url}/v1/queue/status", headers={"x-api-key": reader.api_key}).status_code == 200


async def test_a_thousand_urls_of_eight_kilobytes_are_taken_and_a_larger_body_is_not() -> None:
    async with Sandbox(queue_seconds=3600) as reader, client(reader) as api:
        long = [f"https://example.com/{number}/" + "x" * 8000 for number in range(1000)]
        assert (await api.post("/v1/read", json={"urls": long})).status_code == 201
        for content in (b"x" * 9_000_000, _drops(9_000_000)):
            with contextlib.suppress(httpx.WriteError):  # the answer came before the body was through
                error(await api.post("/v1/read", content=content), 400, "invalid_request")


async def _drops(size: int) -> AsyncIterator[bytes]:
    for _ in range(0, size, 100_000):
        yield b"x" * 100_000
