"""HTTP hooks: one signed POST an event, by the Standard Webhooks specification."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Self

import httpx
from standardwebhooks import Webhook

from receiver.clock import Clock
from receiver.core.backoff import retry_after
from receiver.errors import HookError

ANSWER_CAP = 64 * 1024
"""Bytes of a hook's answer that are read; the rest is nobody's business."""


@dataclass(frozen=True, slots=True)
class HttpHook:
    """A URL that wants to hear of `events`. `timeout`: seconds for the whole exchange."""

    name: str
    url: str
    secret: str | None
    events: tuple[str, ...]
    timeout: float


class HttpSender:
    """Posts events. Use as an async context manager.

    Redirects are failures, for a signed body must not wander; proxies of the environment are not used.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._http = httpx.AsyncClient(
            follow_redirects=False,
            trust_env=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none: a jar that grows ends in refused requests
            headers={"user-agent": "receiver/0.1", "accept-encoding": "identity"},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._http.aclose()

    async def send(self, hook: HttpHook, *, event_id: str, payload: str) -> int:
        """Post it; the 2xx status of the answer. Raises `HookError`."""
        now = int(self._clock.wall())
        headers = {"content-type": "application/json", "webhook-id": event_id, "webhook-timestamp": str(now)}
        if hook.secret is not None:
            signed_at = datetime.fromtimestamp(now, UTC)
            headers["webhook-signature"] = Webhook(hook.secret).sign(event_id, signed_at, payload)
        try:
            async with (
                asyncio.timeout(hook.timeout),
                self._http.stream("POST", hook.url, content=payload.encode(), headers=headers, timeout=hook.timeout) as answer,
            ):
                await _read_a_little(answer)
                status = answer.status_code
        except TimeoutError as error:
            raise HookError(f"no answer within {hook.timeout:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise HookError(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        if 200 <= status < 300:
            return status
        wait = retry_after(answer.headers.get("retry-after"), now=self._clock.wall())
        raise HookError(f"answered {status}", retry_after=wait, answer=status)


async def _read_a_little(answer: httpx.Response) -> None:
    size = 0
    async for piece in answer.aiter_raw():
        size += len(piece)
        if size >= ANSWER_CAP:
            return
