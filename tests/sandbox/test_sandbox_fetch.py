"""`fetch`: real pages over HTTP, from the addresses that are allowed and from no other."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest
from sandbox_kit import checked, error

from receiver.sandbox import Sandbox
from receiver.sandbox.fetch import allowed

HTML = """<!doctype html><html><head><title>A page</title><style>p{}</style></head><body><nav>menu</nav><main>
<h1>Heading</h1><p>Some <b>bold</b> text, <a href="/x">a link</a>.</p>
<p class="ad">buy</p><script>bad()</script></main></body></html>"""

ANSWERS = {
    "/page": (200, "Content-Type: text/html; charset=utf-8", HTML),
    "/text": (200, "Content-Type: text/plain", "just text é"),
    "/gone": (404, "Content-Type: text/html", "no"),
    "/image": (200, "Content-Type: image/png", "x"),
    "/there": (302, "Location: /page", ""),
    "/round": (302, "Location: /round", ""),
    "/inside": (302, "Location: http://10.0.0.1/secret", ""),
    "/metadata": (302, "Location: http://169.254.169.254/latest", ""),
    "/file": (302, "Location: file:///etc/passwd", ""),
    "/gzip": (200, "Content-Type: text/html\r\nContent-Encoding: gzip", "x"),
    "/deep": (200, "Content-Type: text/html", "<div>" * 5000),
}


@pytest.fixture
async def site() -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode().split("?")[0]
        if path == "/slow":
            await reader.read()
        elif path == "/huge":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 11_000_000)
        else:
            status, header, body = ANSWERS[path]
            head = f"HTTP/1.1 {status} Told\r\n{header}\r\nConnection: close\r\nContent-Length: {len(body.encode())}\r\n\r\n"
            writer.write(head.encode() + body.encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("address", "public", "loopback"),
    [
        ("93.184.216.34", True, False), ("2606:2800:220:1::1", True, False), ("127.0.0.1", False, True), ("127.9.9.9", False, True),
        ("::1", False, True), ("::ffff:127.0.0.1", False, True), ("::ffff:10.0.0.1", False, False), ("10.0.0.1", False, False),
        ("192.168.1.1", False, False), ("172.16.0.1", False, False), ("169.254.169.254", False, False), ("fe80::1%eth0", False, False),
        ("fd00::1", False, False), ("0.0.0.0", False, False), ("::", False, False), ("100.64.0.1", False, False),
        ("224.0.0.1", False, False), ("ff0e::1", False, False), ("64:ff9b::7f00:1", False, False), ("2002:7f00:1::", False, False),
        ("255.255.255.255", False, False), ("nowhere", False, False),
    ],
)  # fmt: skip
def test_only_public_and_only_loopback_addresses_are_ever_asked(address: str, public: bool, loopback: bool) -> None:
    assert allowed(address, "public") is public
    assert allowed(address, "loopback") is loopback
    assert allowed(address, "both") is (public or loopback)


@pytest.mark.anyio
async def test_a_batch_reads_real_pages_and_tells_why_others_failed(site: str) -> None:
    paths = ["/page", "/gone", "/text", "/there", "/round", "/inside", "/metadata", "/file", "/image", "/gzip", "/huge"]
    async with Sandbox(fetch="loopback") as reader, checked(reader) as api:
        body = {
            "urls": [site + path for path in paths] + ["http://127.0.0.1:9/"],
            "formats": ["markdown", "html"],
            "batchConcurrency": 3,
        }
        job = (await api.post("/v1/read", json=body)).json()["data"]["id"]
        await reader.settled()
        ended = (await api.get(f"/v1/jobs/{job}?limit=100")).json()["data"]
        truth = reader.ledger()["jobs"][job]["results"]
    assert (ended["status"], ended["completed"], ended["creditsUsed"]) == ("completed", 12, 3)
    rows = dict(zip([*paths, "nobody"], ended["results"], strict=True))
    assert rows["/page"]["markdown"] == "# Heading\n\nSome **bold** text, [a link](/x).\n\nbuy"
    assert rows["/page"]["html"].startswith("<main>")
    assert rows["/page"]["metadata"]["title"] == "A page"
    assert rows["/text"]["markdown"] == "just text é"
    assert rows["/there"]["markdown"] == rows["/page"]["markdown"]
    errors = {path: row["error"] for path, row in rows.items() if "error" in row}
    assert errors == {
        "/gone": "Origin answered 404",
        "/round": "More than 5 redirects",
        "/inside": "Address not allowed: 10.0.0.1",
        "/metadata": "Address not allowed: 169.254.169.254",
        "/file": "Redirected to what is no web page",
        "/image": "Not a page: image/png",
        "/gzip": "Origin compressed what it was asked not to",
        "/huge": "More than 10000000 bytes",
        "nobody": errors["nobody"],
    }
    assert errors["nobody"].startswith("Could not connect")
    assert truth[0]["sha256"] == hashlib.sha256(rows["/page"]["markdown"].encode()).hexdigest()
    assert truth[1] == {"url": f"{site}/gone", "error": "Origin answered 404", "sha256": None}


@pytest.mark.anyio
async def test_public_only_is_told_apart_from_loopback_whatever_the_name_says(site: str) -> None:
    async with Sandbox(fetch="public") as reader, checked(reader) as api:
        for url in (f"{site}/page", site.replace("127.0.0.1", "localhost") + "/page"):
            refused = await api.post("/v1/read", json={"url": url})
            assert "Address not allowed" in refused.json()["error"]["message"]
            error(refused, 502, "upstream_unavailable")


@pytest.mark.anyio
async def test_one_page_is_read_at_once_and_selectors_choose(site: str) -> None:
    async with Sandbox(fetch="both") as reader, checked(reader) as api:
        page = (await api.post("/v1/read", json={"url": f"{site}/there", "excludeTags": [".ad", "a"]})).json()["data"]
        assert page["finalUrl"] == f"{site}/page"
        assert page["markdown"] == "# Heading\n\nSome **bold** text, ."
        page = (await api.post("/v1/read", json={"url": f"{site}/page", "includeTags": ["h1"]})).json()["data"]
        assert page["markdown"] == "# Heading"
        page = (await api.post("/v1/read", json={"url": f"{site}/page", "onlyMainContent": False})).json()["data"]
        assert page["markdown"].startswith("menu")
        for broken in ({"url": f"{site}/page", "includeTags": ["["]}, {"url": f"{site}/slow", "timeoutMs": 1000}):
            error(await api.post("/v1/read", json=broken), 502, "upstream_unavailable")
        # Nested deeper than the converter goes: read or not, it is no error of ours.
        assert (await api.post("/v1/read", json={"url": f"{site}/deep"})).status_code in {200, 502}


@pytest.mark.anyio
async def test_a_retry_fetches_what_failed_again(site: str) -> None:
    async with Sandbox(fetch="loopback") as reader, checked(reader) as api:
        job = (await api.post("/v1/read", json={"urls": [f"{site}/page", f"{site}/gone"]})).json()["data"]["id"]
        await reader.settled()
        before = ANSWERS["/gone"]
        ANSWERS["/gone"] = ANSWERS["/text"]
        try:
            assert (await api.post(f"/v1/jobs/{job}/retry")).json()["data"]["retrying"] == 1
            await reader.settled()
        finally:
            ANSWERS["/gone"] = before
        rows = (await api.get(f"/v1/jobs/{job}")).json()["data"]["results"]
    assert [row["markdown"][:9] for row in rows] == ["# Heading", "just text"]


@pytest.mark.anyio
async def test_a_job_whose_pages_never_come_is_cancelled_and_closed(site: str) -> None:
    async with Sandbox(fetch="loopback") as reader, checked(reader) as api:
        body = {"urls": [f"{site}/page", f"{site}/slow", f"{site}/page"], "timeoutMs": 120000}
        job = (await api.post("/v1/read", json=body)).json()["data"]["id"]
        await reader.until(lambda: bool(reader.ledger()["jobs"][job]["results"]))
        await api.delete(f"/v1/jobs/{job}")
        await reader.settled()
        ended = (await api.get(f"/v1/jobs/{job}")).json()
    assert (ended["data"]["status"], len(ended["data"]["results"]), ended["pagination"]["total"]) == ("cancelled", 1, 3)
