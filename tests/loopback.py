"""A small HTTP server on a loopback socket that says, byte for byte, what a test has it say: no web server misbehaves so well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Line:
    """The way back to whoever asks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.peer: tuple[str, int] = writer.get_extra_info("peername")

    async def say(self, raw: bytes) -> None:
        """These bytes, now. Raises `ConnectionError` when the other side has gone."""
        self._writer.write(raw)
        await self._writer.drain()

    async def answer(self, status: int, body: bytes = b"", /, **headers: str) -> None:
        """A well-formed answer; `retry_after=` is the header Retry-After."""
        named = {"content-length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in named.items())]
        await self.say("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    async def hung_up(self) -> None:
        """Return once the other side has closed the connection, or reset it."""
        with suppress(ConnectionError):
            while await self._reader.read(65536):
                pass

    def hang_up(self) -> None:
        """Close the connection, once all that was said is on its way."""
        self._writer.close()

    def reset(self) -> None:
        """Break the connection off, without a goodbye."""
        self._writer.transport.abort()


Script = Callable[[Line, Asked], Awaitable[None]]


@dataclass
class Loopback:
    """Where it listens, and what it was asked."""

    url: str
    asked: list[Asked] = field(default_factory=list)


@asynccontextmanager
async def serving(*scripts: Script) -> AsyncIterator[Loopback]:
    """Answer the n-th request by the n-th script, and all further ones by the last."""
    lines: dict[Any, asyncio.StreamWriter] = {}

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines[asyncio.current_task()] = writer
        try:
            while (asked := await _read(reader)) is not None:
                server.asked.append(asked)
                await scripts[min(len(server.asked), len(scripts)) - 1](Line(reader, writer), asked)
        except ConnectionError:
            pass  # they left: what that means is for the test to say
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            del lines[asyncio.current_task()]

    listening = await asyncio.start_server(talk, "127.0.0.1", 0, limit=1 << 20)
    host, port = listening.sockets[0].getsockname()
    server = Loopback(f"http://{host}:{port}")
    try:
        yield server
    finally:
        listening.close()
        # Broken off rather than cancelled: a script that is still talking then hears of it as it would from the network.
        for writer in (open_lines := dict(lines)).values():
            writer.transport.abort()
        await asyncio.gather(*open_lines)


async def _read(reader: asyncio.StreamReader) -> Asked | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Asked(method, target, headers, await reader.readexactly(int(headers.get("content-length", 0))))


def answering(status: int, body: bytes = b"", /, **headers: str) -> Script:
    """A script that answers so."""

    async def script(line: Line, _: Asked) -> None:
        await line.answer(status, body, **headers)

    return script


async def resetting(line: Line, _: Asked) -> None:
    """A script that breaks the connection off."""
    line.reset()


async def silent(line: Line, _: Asked) -> None:
    """A script that never answers."""
    await line.hung_up()
