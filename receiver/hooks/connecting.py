"""Connecting to where a hook is: a name is resolved here, and what is checked is the very address that is connected to.

Who checks a URL's name first, and lets a library resolve it once more, is led elsewhere by a name that changes its answer.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import httpcore
import httpx

from receiver.core.addresses import AllowList, why_not


class RefusedAddressError(httpcore.ConnectError):
    """A name led to where no event is sent."""


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to the addresses that may be connected to, one after another until one answers."""

    def __init__(self, allowed: AllowList) -> None:
        self._allowed = allowed
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                addresses = await resolve(host, port)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"the name {host} was not resolved in time") from error
        except OSError as error:
            raise httpcore.ConnectError(f"the name {host} is not known ({error.strerror})") from error
        reasons = {address: why_not(host, address, self._allowed) for address in addresses}
        fine = [address for address, reason in reasons.items() if reason is None]
        if not fine:
            told = ", ".join(f"{address} is {reason}" for address, reason in reasons.items())
            raise RefusedAddressError(f"nothing is sent to {host}: {told}")
        last: Exception | None = None
        for address in fine:
            try:
                return await self._backend.connect_tcp(
                    address, port, None if timeout is None else timeout / len(fine), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        assert last is not None
        raise last

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise NotImplementedError("a hook's URL names no such socket")

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, in the order in which they are to be tried. Raises `OSError`.

    In a thread of its own: a pool would be used up by names of one hook whose servers do not answer, and miss for all others.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str]] = loop.create_future()

    def settle(addresses: list[str] | None, error: OSError | None) -> None:
        if found.done():
            return
        if error is not None:
            found.set_exception(error)
        else:
            found.set_result(addresses or [])

    def run() -> None:
        addresses: list[str] | None = None
        failure: OSError | None = None
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
        except OSError as error:
            failure = error
        except UnicodeError:
            failure = OSError(0, "not a name")
        with suppress(RuntimeError):  # the loop has closed
            loop.call_soon_threadsafe(settle, addresses, failure)

    threading.Thread(target=run, name=f"resolve {host}", daemon=True).start()
    return await found


class CheckedTransport(httpx.AsyncHTTPTransport):
    """httpx's own, over connections that are made as above. `connections`: how many at once."""

    def __init__(self, *, tls: Any, allowed: AllowList, connections: int) -> None:
        super().__init__(verify=tls, trust_env=False)
        # httpx has no parameter for it; a test sees to it that what is put in here is what connects.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=30.0,
            network_backend=CheckedBackend(allowed),
        )
