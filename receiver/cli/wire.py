"""`sign`, `send`: making deliveries by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from receiver.cli.common import Json, emit
from receiver.clock import SystemClock
from receiver.core import letter
from receiver.errors import ReceiverError, SettingsError, UsageError
from receiver.settings import Settings, load
from receiver.store.lock import read_holder


def sign(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The body; - for stdin.")],
    event: Annotated[str, typer.Option(help="The X-Reader-Event header.")] = "job.completed",
    as_json: Json = False,
) -> None:
    """Print the four headers with which Reader would deliver a body, signed with the first secret."""
    try:
        body = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    headers = {name: value for name, value in _headers(load(), body, event).items() if name.startswith("X-Reader-")}
    if as_json:
        emit(headers)
    else:
        print("\n".join(f"{name}: {value}" for name, value in headers.items()))


def send(
    event: Annotated[str, typer.Argument(metavar="EVENT", help="Such as job.completed.")],
    job: Annotated[str, typer.Option("--job", help="The job's id.")],
    url: Annotated[str | None, typer.Option("--url", help="Where to; by default, the server on this database.")] = None,
    as_json: Json = False,
) -> None:
    """Send a signed test delivery."""
    settings = load()
    target = url or f"{server(settings)}/hooks/reader"
    body = json.dumps({"event": event, "jobId": job}).encode()
    headers = _headers(settings, body, event)
    import httpx

    try:
        answer = httpx.post(target, content=body, headers=headers, timeout=15.0, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ReceiverError(f"{target} did not answer ({type(error).__name__}): is `receiver serve` running there?") from error
    if as_json:
        emit({"status": answer.status_code, "body": answer.text[:1000]})
    else:
        print(f"{answer.status_code} {answer.text[:1000]}")
    if not answer.is_success:
        raise typer.Exit(1)


def _headers(settings: Settings, body: bytes, event: str) -> dict[str, str]:
    if not settings.secrets:
        raise SettingsError("READER_WEBHOOK_SECRET is not set: set it to the secret to sign with")
    clock = SystemClock()
    now = int(clock.wall())
    return letter.headers(body, event=event, delivery=clock.token(), timestamp=now, secret=settings.secrets[0])


def server(settings: Settings) -> str:
    """Where the server on our SQLite file said that it listens; the default place otherwise."""
    from sqlalchemy.engine import make_url

    url = make_url(settings.receiver_database_url)
    if url.drivername == "sqlite" and url.database and (holder := read_holder(Path(url.database).absolute())).url:
        return holder.url
    return "http://127.0.0.1:8080"
