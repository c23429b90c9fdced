"""HTTP hooks: one signed POST an event, by the Standard Webhooks specification."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Self

import httpx
from standardwebhooks import Webhook

from receiver import tracing
from receiver.clock import Clock
from receiver.core.addresses import EVERYWHERE, AllowList
from receiver.core.backoff import retry_after
from receiver.errors import HookError
from receiver.hooks.connecting import CheckedTransport
from receiver.hooks.formats import CONTENT_TYPES, Format, body
from receiver.hooks.target import EXCERPT, Answer, Delivery, excerpt

ANSWER_CAP = 64 * 1024
"""Bytes of a hook's answer that are read; the rest is nobody's business."""


class HttpTarget:
    """Posts events to `url`, signed with each of `secrets`. `timeout`: seconds for the whole exchange.

    Redirects are failures, for a signed body must not wander; proxies of the environment are not used. Each hook has connections
    of its own, so that those of one that hangs are not missing to another.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        clock: Clock,
        secrets: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        form: Format = "standard",
        allowed: AllowList = EVERYWHERE,
        connections: int = 8,
    ) -> None:
        self._url = url
        self._signers = [Webhook(secret) for secret in secrets]
        self._timeout = timeout
        self._form = form
        self._clock = clock
        ours = {"user-agent": "receiver/0.1", "accept-encoding": "identity", "content-type": CONTENT_TYPES[form]}
        self._http = httpx.AsyncClient(
            transport=CheckedTransport(tls=_tls(), allowed=allowed, connections=connections),
            follow_redirects=False,
            trust_env=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none: a jar that grows ends in refused requests
            headers=ours | dict(headers or {}),
        )

    @property
    def place(self) -> str:
        """The site alone: with many, who knows the path may post there."""
        url = httpx.URL(self._url)
        return f"{url.scheme}://{url.netloc.decode()}" + ("/…" if url.raw_path.strip(b"/") else "")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._http.aclose()

    async def deliver(self, delivery: Delivery) -> Answer:
        """Post it: any 2xx is a success. See `Target`."""
        content = body(delivery.event_id, delivery.payload, self._form)
        headers = self._signed(delivery.event_id, content) | tracing.headers()
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._http.stream("POST", self._url, content=content.encode(), headers=headers, timeout=self._timeout) as answer,
            ):
                said = excerpt(await _read_a_little(answer))
                status = answer.status_code
        except TimeoutError as error:
            raise HookError(f"no answer within {self._timeout:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise HookError(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        if 200 <= status < 300:
            return Answer(status, said)
        wait = retry_after(answer.headers.get("retry-after"), now=self._clock.wall())
        why = f"answered {status}"
        if 300 <= status < 400:
            why += ", a redirect, which is not followed: the hook's url must be the place itself"
        raise HookError(why, retry_after=wait, answer=status, excerpt=said)

    def _signed(self, event_id: str, content: str) -> dict[str, str]:
        now = int(self._clock.wall())
        headers = {"webhook-id": event_id, "webhook-timestamp": str(now)}
        if self._signers:
            # One by each secret, so that the other side may go from one to the next when it likes.
            at = datetime.fromtimestamp(now, UTC)
            headers["webhook-signature"] = " ".join(signer.sign(event_id, at, content) for signer in self._signers)
        return headers


@cache
def _tls() -> ssl.SSLContext:
    """One for all: to read the certificates takes a while."""
    return httpx.create_ssl_context(trust_env=False)


async def _read_a_little(answer: httpx.Response) -> bytes:
    """The beginning, of which `EXCERPT` bytes are kept; the rest up to the cap is read so that the connection may serve again."""
    size, kept = 0, b""
    async for piece in answer.aiter_raw():
        kept += piece[: EXCERPT - len(kept)]
        size += len(piece)
        if size >= ANSWER_CAP:
            break
    return kept
