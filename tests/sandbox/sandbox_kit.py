"""What the sandbox's tests share."""

import asyncio
from dataclasses import dataclass, field

import httpx
import schemathesis

from receiver.sandbox import Sandbox
from receiver.sandbox.openapi import document

DOCUMENT = schemathesis.openapi.from_dict(document("http://127.0.0.1"))


@dataclass
class Landing:
    """An endpoint for webhooks on a real socket: keeps what came, answers as told."""

    statuses: list[int] = field(default_factory=list)
    """What to answer, one after another; 202 once they are used up."""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    stall: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared, it keeps the next answer back."""
    port: int = 0

    def __post_init__(self) -> None:
        self.stall.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks/reader"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = dict(line.split(": ", 1) for line in head[1:] if line)
                body = await reader.readexactly(int(headers["Content-Length"]))
                self.got.append((headers, body))
                await self.stall.wait()
                status = self.statuses.pop(0) if self.statuses else 202
                writer.write(b"HTTP/1.1 %d Told\r\nContent-Length: 2\r\n\r\nok" % status)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def client(reader: Sandbox, key: str | None = None) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=reader.url, headers={"x-api-key": key or reader.api_key}, trust_env=False, timeout=20, verify=False
    )


def urls(count: int, site: str = "https://example.com") -> list[str]:
    return [f"{site}/{number}" for number in range(count)]


async def batch(api: httpx.AsyncClient, count: int, site: str = "https://example.com", **more: object) -> str:
    """Start a batch job; its id."""
    answer = await api.post("/v1/read", json={"urls": urls(count, site), **more})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["data"]["id"])


def checked(reader: Sandbox, key: str | None = None) -> httpx.AsyncClient:
    """A client that holds every answer against the sandbox's own OpenAPI document."""

    async def check(answer: httpx.Response) -> None:
        await answer.aread()
        request = answer.request
        parts = request.url.path.split("/")
        if len(parts) > 3 and parts[2] in {"jobs", "webhooks", "sessions"}:
            parts[3] = "{id}"
        assert answer.headers["x-request-id"]
        if answer.status_code != 405:
            DOCUMENT["/".join(parts)][request.method].validate_response(answer)

    api = client(reader, key)
    api.event_hooks = {"response": [check]}
    return api


def error(answer: httpx.Response, status: int, code: str) -> dict[str, object]:
    """The details of an error, once it is the one expected."""
    body = answer.json()
    assert (answer.status_code, body["success"], body["error"]["code"]) == (status, False, code), answer.text
    assert body["error"]["message"]
    assert body["error"]["docsUrl"].startswith("https://")
    details: dict[str, object] = body["error"].get("details", {})
    return details
