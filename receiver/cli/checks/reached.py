"""Ourselves, as others see us: is the server there, does it accept our secret, does it take a signed delivery."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

import httpx
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from receiver.cli.checks.line import TEST_EVENT, Line, fail, ok, warn
from receiver.clock import Clock
from receiver.core.fingerprint import fingerprint
from receiver.core.letter import headers
from receiver.settings import Settings
from receiver.store.lock import read_holder
from receiver.web.webhook import WEBHOOK

_WITHIN: Final = 6.0
"""Seconds for each answer: somebody sits and waits. Reader itself gives a delivery no more than about 20."""


async def look(settings: Settings, clock: Clock) -> list[Line]:
    """By the public URL if there is one, and at the server that has the SQLite file."""
    here = _here(settings)
    public = settings.receiver_public_url
    target = public or here
    if target is None:
        hint = "`receiver serve` starts it; if it runs elsewhere, set RECEIVER_PUBLIC_URL to where"
        return [warn("server", "none is known: none has the database here, and RECEIVER_PUBLIC_URL is not set", hint)]
    name = "server" if public is None else "reachable"
    # All at once: one that is silent is waited for once.
    both = here if public is not None else None
    near, told, delivered = await asyncio.gather(_server(both), _get(f"{target}/readyz"), _deliver(target, settings, clock))
    lines = [near] if near is not None else []
    if isinstance(told, str):
        return [*lines, fail(name, f"{target}: {told}", _UNREACHED if public else "is it stopping? `receiver serve` starts it")]
    lines.append(_ready(name, target, told))
    lines += _secrets(settings, told[1])
    return lines if delivered is None else [*lines, delivered]


_UNREACHED: Final = "does the server run, does the name lead to it, does its proxy pass it on, is its certificate good?"


async def _server(url: str | None) -> Line | None:
    if url is None:
        return None
    told = await _get(f"{url}/readyz")
    if isinstance(told, str):
        return warn("server", f"{url} has the database: {told}", "is it stopping?")
    return _ready("server", url, told)


def _ready(name: str, url: str, told: tuple[int, dict[str, Any]]) -> Line:
    status, said = told
    if status == 200 and said.get("status") == "ok":
        return ok(name, f"{url} is ready")
    if status == 503:
        return fail(
            name, f"{url} is not ready: {said.get('reason')}", "see the lines on the database; deliveries get 503 until then"
        )
    return fail(
        name,
        f"{url}/readyz answers {status}, not as a receiver does",
        "does the URL lead to it, and its proxy pass on all paths?",
    )


def _secrets(settings: Settings, said: dict[str, Any]) -> list[Line]:
    accepted = said.get("secrets")
    known = [fingerprint(secret) for secret in settings.secrets]
    if not isinstance(accepted, list) or not known or set(known) & set(map(str, accepted)):
        return []
    there = ", ".join(map(str, accepted)) or "none"
    return [fail("same_secret", f"that server accepts other secrets ({there}) than are set here ({', '.join(known)})", _SAME)]


_SAME: Final = "set READER_WEBHOOK_SECRET alike in both places, to what Reader signs with, and restart the server"


async def _deliver(target: str, settings: Settings, clock: Clock) -> Line | None:
    """A delivery that causes nothing, signed as Reader signs. None without a secret to sign with."""
    if not settings.secrets:
        return None
    name, url = "test_delivery", f"{target}{WEBHOOK}"
    token = clock.token(64)
    body = json.dumps({"event": TEST_EVENT, "test": token}).encode()
    signed = headers(body, event=TEST_EVENT, delivery=f"doctor-{token}", timestamp=int(clock.wall()), secret=settings.secrets[0])
    began = clock.monotonic()
    told = await _ask("POST", url, content=body, headers=signed)
    if isinstance(told, str):
        return fail(name, f"{url}: {told}", _UNREACHED)
    status, said = told
    took = clock.monotonic() - began
    if status == 200 and said.get("outcome") == "ignored":
        return ok(name, f"{url} verified a signed delivery, and stored it, in {took * 1000:.0f} ms")
    return fail(name, f"{url} answered a signed delivery with {status} {said or ''}".rstrip(), _ANSWERS.get(status, _ELSE))


_ELSE: Final = "is that a receiver, and does nothing between change what is sent to it?"
_ANSWERS: Final = {
    401: "it has another secret, a clock that is off, or a proxy that changes headers or bodies: see the lines above, and its log",
    404: "the endpoint is not there: RECEIVER_PUBLIC_URL must be what stands before /hooks/reader",
    405: "something else answers there: RECEIVER_PUBLIC_URL must be what stands before /hooks/reader",
    413: "a proxy takes no body, or hardly any",
    415: "a proxy changes the content-type",
    503: "its database did not take it in time: see the lines on the database",
}


async def _get(url: str) -> tuple[int, dict[str, Any]] | str:
    return await _ask("GET", url)


async def _ask(method: str, url: str, **options: Any) -> tuple[int, dict[str, Any]] | str:
    """Status and JSON object (empty if it is none), or what went wrong on the way."""
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=_WITHIN, follow_redirects=False) as client:
            answer = await client.request(method, url, **options)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"it does not answer ({str(error) or type(error).__name__})"
    if answer.is_redirect:
        return (
            f"it redirects to {answer.headers.get('location', 'nowhere')}, which Reader may not follow: use that address at once"
        )
    try:
        said = answer.json()
    except ValueError:
        said = None
    return answer.status_code, said if isinstance(said, dict) else {}


def _here(settings: Settings) -> str | None:
    """Where the server that has our SQLite file says that it listens."""
    try:
        url = make_url(settings.receiver_database_url)
    except (ArgumentError, ValueError):
        return None
    return read_holder(Path(url.database).absolute()).url if url.drivername == "sqlite" and url.database else None
