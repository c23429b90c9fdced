"""What several commands need: reading the store beside a running server, asking it for changes, and printing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from receiver.clock import SystemClock
from receiver.errors import ReceiverError, StoreError, UsageError
from receiver.logs import configure
from receiver.settings import Settings, load
from receiver.store.lock import LockHeldError

if TYPE_CHECKING:
    from rich.progress import Progress

    from receiver.app import Receiver
    from receiver.store.engine import Database


def job_ids(incomplete: str) -> list[str]:
    """What completes a job's id: those of the newest jobs. Nothing where the database cannot be read: this is no place to complain."""
    from receiver.views import listing

    try:
        with reading() as database:
            found, _ = database.read_now(lambda tx: listing(tx, status=None, skip=0, limit=100))
    except ReceiverError:
        return []
    return [job.id for job in found if job.id.startswith(incomplete)]


JobId = Annotated[str, typer.Argument(metavar="JOB_ID", autocompletion=job_ids)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# Into a pipe or a file nothing is cut to a width.
out = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 1000)
err = Console(stderr=True)


@contextmanager
def reading(settings: Settings | None = None) -> Iterator[Database]:
    """The store, for reading: also while a server has it."""
    from receiver.store.engine import Database

    chosen = load() if settings is None else settings
    database = Database.of(chosen, SystemClock(), readonly=True)
    try:
        yield database
    finally:
        database.close()


async def change(name: str, body: dict[str, Any], local: Callable[[Receiver], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """Have something changed: by the server that holds the SQLite file if there is one, else by ourselves, as `local` does it."""
    from receiver.app import Receiver  # who only reads need not wait for what serves

    settings = load()
    configure("console", level=30)
    receiver = Receiver(settings)
    try:
        # A shell without the server's hooks must not have them retired.
        async with receiver.running(loops=False, declares=bool(settings.receiver_hooks)):
            return await local(receiver)
    except LockHeldError as error:
        if error.holder.url is None:
            raise UsageError(
                f"{error}; if it is your own app with a Receiver in it, have that do it "
                "(`await receiver.submit(…)`), or POST to its /v1/jobs"
            ) from error
        told: dict[str, Any] = (await ask(settings, error.holder.url, f"commands/{name}", body))["data"]
        return told


async def ask(settings: Settings, url: str, path: str, body: dict[str, Any], *, within: float = 200.0) -> dict[str, Any]:
    """What the server that holds the database answers to `POST /internal/PATH`. Raises `ReceiverError`."""
    import httpx

    keys = settings.receiver_api_keys
    headers = {"x-api-key": keys[0].get_secret_value()} if keys else {}
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=within) as client:
            answer = await client.post(f"{url}/internal/{path}", json=body, headers=headers)
            told: dict[str, Any] = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise StoreError(
            f"the server at {url} holds the database, and did not answer ({type(error).__name__}): is it stopping?"
        ) from error
    if answer.status_code == 200:
        return told
    problem = told.get("error", {})
    message = problem.get("message", f"the server at {url} answered {answer.status_code}")
    raise UsageError(message) if answer.status_code in {400, 401} else ReceiverError(message)


def emit(value: Any) -> None:
    """Print JSON, on one line."""
    print(json.dumps(value, ensure_ascii=False), flush=True)  # who reads a pipe has it at once


def bar(*, quiet: bool) -> Progress:
    """A bar on stderr, where somebody sees it. `quiet`: none."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    words = TextColumn("{task.description}", markup=False)
    columns = (words, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal)


def ago(timestamp: float | None) -> str:
    """A time as people say it."""
    if timestamp is None:
        return "–"
    seconds = max(SystemClock().wall() - timestamp, 0.0)
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def iso(timestamp: float | None) -> str | None:
    """A time as programs read it."""
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="milliseconds")
