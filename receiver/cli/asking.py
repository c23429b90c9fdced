"""Asking Reader from the command line: about webhooks, not jobs, and so also where there is no database, or none that answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from receiver.cli.common import reading
from receiver.clock import Clock, SystemClock
from receiver.errors import ReaderPausedError, ReaderUnavailableError, ReceiverError, SettingsError, UsageError
from receiver.reader.client import ReaderClient
from receiver.settings import BaseUrl, Settings
from receiver.store import budget
from receiver.web.webhook import WEBHOOK

DEADLINE = 8.0
"""Seconds for an answer: somebody sits and waits."""


class Aside:
    """Lets requests leave without a grant: a handful, out of the part of the limit that RECEIVER_RPM_SHARE leaves to others.

    A grant would have to be written into the database, which a server may hold, or which may be what is broken. But while Reader has
    told everybody to wait, these wait too.
    """

    def __init__(self, held: budget.Denied | None = None) -> None:
        self._held = held
        self.trouble: str | None = None
        """Why Reader refuses everybody, by the name of the pause that a server would make of it."""

    async def acquire(self, _: Any, *, lasts: float) -> None:  # noqa: ARG002 - the protocol's
        if self._held is not None:
            self.trouble = "rate_limited"
            raise ReaderPausedError(f"{self._held.paused}; try again in {self._held.wait:.0f} s", retry_after=self._held.wait)

    async def give_back(self, grant: None) -> None: ...

    async def release(self, grant: None, *, tally: str) -> None: ...

    async def pause(self, name: str, *, seconds: float, reason: str) -> None:  # noqa: ARG002 - the protocol's, as above
        self.trouble = name

    async def learn_limit(self, rpm: int) -> None: ...


@asynccontextmanager
async def reader(
    settings: Settings, clock: Clock | None = None, *, aside: Aside | None = None, deadline: float = DEADLINE
) -> AsyncIterator[ReaderClient]:
    """A client for Reader. Raises `SettingsError` without a key."""
    key = settings.require_api_key()
    chosen, allowance = clock or SystemClock(), aside or Aside(_held_back(settings))
    async with ReaderClient(settings.reader_base_url, key, allowance=allowance, clock=chosen, deadline=deadline) as client:
        try:
            yield client
        except ReaderPausedError:
            raise
        except ReaderUnavailableError as error:
            where = settings.reader_base_url
            raise ReceiverError(f"{error} (at {where}): try again, or check the network and READER_BASE_URL") from error


def endpoint(settings: Settings, url: str | None) -> str:
    """Where Reader is to send to: `url`, where a mere host gets our path, or by RECEIVER_PUBLIC_URL.

    Raises `UsageError` or `SettingsError`.
    """
    if url is None:
        if settings.receiver_public_url is None:
            raise SettingsError("RECEIVER_PUBLIC_URL is not set: set it to where the world reaches the server, or give --url")
        return f"{settings.receiver_public_url}{WEBHOOK}"
    try:
        given: str = TypeAdapter(BaseUrl).validate_python(url)
    except ValidationError as error:
        raise UsageError(f"--url {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    return given if urlsplit(given).path else f"{given}{WEBHOOK}"


def base(target: str) -> str:
    """Where the server whose endpoint this is answers everything else."""
    parts = urlsplit(target)
    return target.removesuffix(WEBHOOK) if parts.path.endswith(WEBHOOK) else f"{parts.scheme}://{parts.netloc}"


def _held_back(settings: Settings) -> budget.Denied | None:
    """A pause that a 429 asked for, as far as the database can tell."""
    try:
        with reading(settings) as database:
            return database.read_now(budget.pauses_now).get("rate_limited")
    except ReceiverError:
        return None
