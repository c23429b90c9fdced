"""`listen`: Reader's webhooks for an endpoint on this machine, without an address that the world can reach."""

from __future__ import annotations

import asyncio
import json
import signal
from datetime import datetime
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.text import Text

from receiver.cli.common import Json
from receiver.clock import SystemClock
from receiver.errors import SettingsError, UsageError
from receiver.forwarder import PAUSES, Attempt, Forwarder
from receiver.reader.client import ReaderClient
from receiver.reader.retelling import Retelling
from receiver.reader.shapes import EVENTS, JOB_EVENTS
from receiver.settings import Settings, load

_SETTLED: Final = "job.completed,job.failed"


def listen(
    forward_to: Annotated[
        str, typer.Option("--forward-to", metavar="URL", help="Your endpoint, such as http://localhost:8080/hooks/reader.")
    ],
    events: Annotated[
        str, typer.Option(help="Comma-separated: job.started, job.page (one for each page), job.completed, job.failed.")
    ] = _SETTLED,
    as_json: Json = False,
) -> None:
    """Forward Reader's webhooks to an endpoint on this machine: no public address, no tunnel.

    Follows Reader's workspace stream, and posts what it tells as Reader would: the same headers, signed with the (first)
    READER_WEBHOOK_SECRET, three attempts, any 2xx is success. The endpoint need not be a receiver. It takes one request of the
    workspace's quota, and another one whenever the stream breaks.
    """
    wanted = _events(events)
    settings = load()
    if not settings.secrets:
        raise SettingsError(
            "READER_WEBHOOK_SECRET is not set: set it to the secret that your endpoint verifies with, "
            "such as READER_WEBHOOK_SECRET=$(openssl rand -hex 32)"
        )
    settings.require_api_key()
    url = _url(forward_to)
    show = _Json() if as_json else _Lines()
    show.begins(settings.reader_base_url, url, sorted(wanted))
    try:
        asyncio.run(_forward(settings, wanted, url, show))
    except BaseExceptionGroup as group:  # of a task group, whatever it holds: the first trouble is the cause
        raise _first(group) from None


async def _forward(settings: Settings, wanted: frozenset[str], url: str, show: _Lines | _Json) -> None:
    """Until somebody ends it: that is no failure."""
    task = asyncio.current_task()
    assert task is not None
    ended = False

    def end() -> None:
        nonlocal ended
        ended = True
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end)
    clock = SystemClock()
    reader = ReaderClient(settings.reader_base_url, settings.require_api_key(), allowance=_Alone(), clock=clock)
    try:
        async with reader:
            await Forwarder(
                reader,
                Retelling(wanted),
                clock,
                url=url,
                secret=settings.secrets[0],
                on_attempt=show.attempt,
                on_open=show.opened,
                on_lost=show.lost,
            ).run()
    except asyncio.CancelledError:
        if not ended:
            raise


class _Alone:
    """The allowance of who asks hardly anything: counts nothing, and ends where going on is of no use."""

    async def acquire(self, purpose: str, *, lasts: float) -> None: ...

    async def give_back(self, grant: None) -> None: ...

    async def release(self, grant: None, *, tally: str) -> None: ...

    async def learn_limit(self, rpm: int) -> None: ...

    async def pause(self, name: str, *, seconds: float, reason: str) -> None:
        del seconds  # the stream is asked for again in its own time
        if name == "unauthenticated":
            raise SettingsError(reason)


class _Lines:
    """For people."""

    def __init__(self) -> None:
        self._console = Console(soft_wrap=True, highlight=False)

    def begins(self, reader: str, url: str, events: list[str]) -> None:
        self._console.print(f"{', '.join(events)} of {reader} → {url}  (Ctrl+C ends it)", markup=False)

    def opened(self) -> None:
        self._tell("the stream is open: waiting for jobs", "dim")

    def lost(self, why: str, again_in: float) -> None:
        self._tell(f"the stream is lost, again in {again_in:.0f} s: {why}", "yellow")

    def attempt(self, attempt: Attempt) -> None:
        line = Text(f"{attempt.event:<13} {attempt.job_id}  ")
        line.append(str(attempt.status or "–"), style="green" if attempt.taken else "red")
        line.append(f"  {attempt.ms:.0f} ms  {attempt.delivery}", style="dim")
        if attempt.number > 1 or not attempt.taken:
            line.append(f"  attempt {attempt.number} of {len(PAUSES) + 1}")
        if attempt.trouble:
            line.append(f"  {attempt.trouble}", style="red")
        if attempt.again_in is not None:
            line.append(f"  again in {attempt.again_in:g} s", style="yellow")
        elif not attempt.taken:
            line.append("  given up", style="red")
        self._tell(line)

    def _tell(self, line: str | Text, style: str = "") -> None:
        now = datetime.fromtimestamp(SystemClock().wall()).astimezone().strftime("%H:%M:%S")
        self._console.print(Text.assemble((now, "dim"), "  ", (line, style) if isinstance(line, str) else line))


class _Json:
    """For programs: an object a line."""

    def begins(self, reader: str, url: str, events: list[str]) -> None:
        self._tell(event="forwarding", reader=reader, url=url, events=events)

    def opened(self) -> None:
        self._tell(event="stream_open")

    def lost(self, why: str, again_in: float) -> None:
        self._tell(event="stream_ended", again_in=round(again_in, 1), hint=why)

    def attempt(self, attempt: Attempt) -> None:
        self._tell(
            event="delivery",
            event_name=attempt.event,
            job=attempt.job_id,
            delivery=attempt.delivery,
            attempt=attempt.number,
            status=attempt.status,
            ms=attempt.ms,
            trouble=attempt.trouble,
            again_in=attempt.again_in,
        )

    def _tell(self, **said: Any) -> None:
        print(json.dumps({"at": SystemClock().wall(), **said}), flush=True)


def _events(text: str) -> frozenset[str]:
    chosen = frozenset(part.strip() for part in text.split(",") if part.strip())
    unknown, untold = sorted(chosen - EVENTS), sorted((chosen & EVENTS) - JOB_EVENTS)
    if unknown or not chosen:
        raise UsageError(f"--events: {', '.join(unknown) or 'nothing'} is not among {', '.join(sorted(JOB_EVENTS))}")
    if untold:
        raise UsageError(
            f"--events: Reader's stream does not tell of {', '.join(untold)}; it does of {', '.join(sorted(JOB_EVENTS))}"
        )
    return chosen


def _url(text: str) -> str:
    import httpx

    url = text if "://" in text else f"http://{text}"
    try:
        parts = httpx.URL(url)
        fits = parts.scheme in {"http", "https"} and bool(parts.host) and url.isprintable() and " " not in url
    except httpx.InvalidURL:
        fits = False
    if not fits:
        raise UsageError(f"--forward-to {text!r} is no URL: give your endpoint's, such as http://localhost:8080/hooks/reader")
    return url


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """What went wrong first, where several things were under way."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
