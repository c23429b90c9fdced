"""Real GETs, to addresses that may be asked: an address is looked at when connecting to it, so that no name can lie about it."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from email.message import Message
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import httpcore
import httpx

_HOPS: Final = 5
_LARGEST: Final = 10_000_000
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_HEADERS: Final[list[tuple[bytes | str, bytes | str]]] = [
    ("user-agent", "Reader-Sandbox/1.0"),
    ("accept", "text/html, text/plain"),
    ("accept-encoding", "identity"),
]
_TUNNELS: Final = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))
"""IPv6 networks that lead to whatever IPv4 address is written into them."""
_AT_ONCE: Final = 20


class FetchError(Exception):
    """A page can't be had; the message is what the result's `error` says."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A page as its origin sent it. `url` is where it was found in the end."""

    url: str
    body: bytes
    content_type: str
    charset: str | None


def allowed(address: str, scope: str) -> bool:
    """Whether this IP address may be asked; `scope` is public, loopback or both."""
    try:
        found = ipaddress.ip_address(address.split("%", 1)[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        elif any(found in tunnel for tunnel in _TUNNELS):
            return False
    if found.is_loopback:
        return scope in {"loopback", "both"}
    return scope in {"public", "both"} and found.is_global and not found.is_multicast


class Fetcher:
    """`scope`: which addresses it may ask. `close` it after use."""

    def __init__(self, scope: str) -> None:
        # httpcore reads no proxy from the environment: one would connect to anything for us.
        self._pool = httpcore.AsyncConnectionPool(network_backend=_Guard(scope), max_connections=_AT_ONCE)

    async def get(self, url: str, seconds: float) -> Fetched:
        """The page, through at most five redirects, within so many real seconds. Raises `FetchError`."""
        try:
            async with asyncio.timeout(seconds):
                for _ in range(_HOPS + 1):
                    answer = await self._once(url)
                    if isinstance(answer, Fetched):
                        return answer
                    url = answer
        except TimeoutError:
            raise FetchError(f"Timed out after {int(seconds * 1000)} ms") from None
        except (httpcore.ConnectError, OSError) as exc:
            raise FetchError(f"Could not connect: {_said(exc)}") from exc
        except (httpcore.ProtocolError, httpcore.NetworkError, httpcore.TimeoutException, httpcore.UnsupportedProtocol) as exc:
            raise FetchError(f"The connection failed: {_said(exc)}") from exc
        raise FetchError(f"More than {_HOPS} redirects")

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    async def _once(self, url: str) -> Fetched | str:
        """A page, or where it says to look instead."""
        target = httpcore.URL(_ascii(url))
        async with self._pool.stream("GET", target, headers=_HEADERS) as answer:
            headers = {name.lower(): value.decode("latin-1") for name, value in answer.headers}
            if answer.status in _REDIRECTS and b"location" in headers:
                following = urljoin(url, headers[b"location"])
                if urlsplit(following).scheme not in {"http", "https"}:
                    raise FetchError("Redirected to what is no web page")
                return following
            if not 200 <= answer.status < 300:
                raise FetchError(f"Origin answered {answer.status}")
            if headers.get(b"content-encoding", "identity") != "identity":
                raise FetchError("Origin compressed what it was asked not to")
            body = bytearray()
            async for piece in answer.aiter_stream():
                body += piece
                if len(body) > _LARGEST:
                    raise FetchError(f"More than {_LARGEST} bytes")
        said = Message()
        said["content-type"] = headers.get(b"content-type", "text/html")
        return Fetched(url, bytes(body), said.get_content_type(), said.get_content_charset())


def _said(exc: Exception) -> str:
    return str(exc) or type(exc).__name__


def _ascii(url: str) -> bytes:
    """A URL as the wire takes it, whatever letters it was written in. Raises `FetchError`."""
    try:
        return str(httpx.URL(url)).encode("ascii")
    except (httpx.InvalidURL, UnicodeError) as exc:
        raise FetchError(f"Not a URL: {exc}") from exc


class _Guard(httpcore.AsyncNetworkBackend):
    """Looks a name up once, checks each address, and connects to what it has checked."""

    def __init__(self, scope: str) -> None:
        self._scope = scope
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(each[4][0]) for each in found if allowed(str(each[4][0]), self._scope)]
        if not addresses:
            raise FetchError(f"Address not allowed: {host}")
        return await self._network.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self,
        path: str,  # noqa: ARG002 - httpcore's signature
        timeout: float | None = None,  # noqa: ARG002, ASYNC109
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        raise FetchError("Address not allowed")

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)
