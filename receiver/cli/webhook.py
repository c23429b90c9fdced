"""`webhook register`, `list`, `delete`: what Reader knows of where to reach us."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from receiver.cli import secrets
from receiver.cli.asking import endpoint, reader
from receiver.cli.common import Json, ago, emit, out
from receiver.cli.rotate import rotate
from receiver.clock import SystemClock
from receiver.core.audit import WANTED, carries, find_ours
from receiver.core.fingerprint import HEADER, fingerprint
from receiver.errors import ReaderUnavailableError, ReceiverError, SettingsError, UsageError
from receiver.reader.client import ReaderClient
from receiver.settings import Settings, load

webhook = typer.Typer(
    name="webhook",
    help="Reader's webhook for this receiver, and its secret: register, list, rotate, delete.",
    add_completion=False,
    no_args_is_help=True,
)

_NAME: Final = "receiver"
_LAST: Final = "lastDeliveryAt"


def register(
    url: Annotated[
        str | None, typer.Option("--url", help="Our endpoint, https://…/hooks/reader; by default that at RECEIVER_PUBLIC_URL.")
    ] = None,
    event: Annotated[
        list[str] | None, typer.Option("--event", help="What to be told of; may be repeated. By default every end of a job.")
    ] = None,
    name: Annotated[str, typer.Option(help="What Reader is to call it.")] = _NAME,
    configured: Annotated[
        bool, typer.Option("--configured-secret", help="Have it signed with the first READER_WEBHOOK_SECRET, not with a new one.")
    ] = False,
    secret_file: Annotated[
        Path | None, typer.Option(help="Where to write the new secret (a new file, for you alone) instead of showing it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a secret, and have Reader send to us, signed with it. Where Reader has such a webhook already, see that it is whole."""
    settings = load()
    target = endpoint(settings, url)
    if configured and secret_file is not None:
        raise UsageError("--configured-secret makes no secret that --secret-file could take: give one of them")
    events = list(dict.fromkeys(event or sorted(WANTED)))
    told = asyncio.run(_register(settings, target, events, name, configured=configured, file=secret_file))
    if as_json:
        emit(told)
        return
    print(told["hint"] if not told["created"] else _made(told, settings, secret_file))


async def _register(
    settings: Settings, url: str, events: Sequence[str], name: str, *, configured: bool, file: Path | None
) -> dict[str, Any]:
    async with reader(settings) as client:
        there = find_ours(await client.webhooks(), url)
        if there:
            return await _mend(client, there, url, events)
        if configured and not settings.secrets:
            raise SettingsError("READER_WEBHOOK_SECRET is not set: set it, or leave --configured-secret out to have one made")
        secret = settings.secrets[0] if configured else secrets.new(SystemClock())
        if file is not None:
            secrets.keep(secret, file)  # first, for Reader shows it to nobody again
        carried = fingerprint(secret)
        fields = {"url": url, "name": name, "events": events, "secret": secret, "headers": {HEADER: carried}}
        try:
            row = await client.create_webhook(fields)
        except ReaderUnavailableError:
            # It may have been made before the answer was lost, and nobody else would know its secret.
            made = [row for row in find_ours(await client.webhooks(), url) if carries(row) == carried]
            if not made:
                raise
            row = dict(made[0])
    # Should Reader have taken another secret than ours, this is where it says so.
    if row.get("secret") not in {None, secret}:
        secret = str(row["secret"])
        carried = fingerprint(secret)
    shown = None if configured or file is not None else secret
    return {
        **{key: row.get(key) for key in ("id", "url", "name", "events")},
        "created": True,
        "secret": shown,
        "secretFile": None if file is None else str(file),
        "fingerprint": carried,
        "hint": "store the secret where the server runs, (re)start that, then run `receiver doctor`",
    }


async def _mend(client: ReaderClient, there: Sequence[Any], url: str, events: Sequence[str]) -> dict[str, Any]:
    """One that is there is kept: made active, and told of what it is to be told of."""
    row = next((row for row in there if row.get("active") is not False), there[0])
    has = [str(name) for name in row.get("events") or []]
    change: dict[str, Any] = {}
    if row.get("active") is False:
        change["active"] = True
    if missing := [name for name in events if name not in has]:
        change["events"] = [*has, *missing]
    if change:
        await client.change_webhook(str(row["id"]), change)
    did = [
        *(["is active again"] if "active" in change else []),
        *([f"is told of {' and '.join(missing)} now"] if missing else []),
    ]
    hint = (
        f"Reader has a webhook for {url} already ({row.get('id')}), and it {' and '.join(did) or 'is as it should be'}. "
        "Its secret was shown when it was made, and never again: "
        "if you do not have it, `receiver webhook rotate` puts another one in its place"
    )
    return {
        **{key: row.get(key) for key in ("id", "url", "name")},
        "events": change.get("events", has),
        "created": False,
        "changed": sorted(change),
        "secret": None,
        "secretFile": None,
        "fingerprint": carries(row),
        "hint": hint,
    }


def _made(told: dict[str, Any], settings: Settings, file: Path | None) -> str:
    head = (
        f"Reader sends {', '.join(told['events'] or [])} to {told['url']} from now on (webhook {told['id']}).\n"
        f"Its secret has the fingerprint {told['fingerprint']}: `/readyz` shows it once the server accepts that secret."
    )
    if told["secret"] is None and file is None:
        return (
            f"{head}\nIt is the first READER_WEBHOOK_SECRET, as it is set here: the server needs it too.\n\nThen: receiver doctor"
        )
    return f"{head}\n{secrets.where_to_store(told['secret'], beside=bool(settings.secrets), file=file)}\n\nThen: receiver doctor"


def listing(as_json: Json = False) -> None:
    """List the workspace's webhooks, and how their deliveries fare."""
    settings = load()

    async def ask() -> list[Any]:
        async with reader(settings) as client:
            return await client.webhooks()

    rows = [_without_secret(row) for row in asyncio.run(ask()) if isinstance(row, dict)]
    ours = endpoint(settings, None) if settings.receiver_public_url else None
    if as_json:
        emit({"webhooks": rows})
        return
    if not rows:
        out.print("Reader has no webhooks: `receiver webhook register --url https://…/hooks/reader` makes one.", highlight=False)
        return
    table = Table(box=None, header_style="bold")
    for heading in ("id", "url", "events", "active", "secret", "attempts", "failed", "last"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        here = ours is not None and find_ours([row], ours)
        table.add_row(*_cells(row), style="bold" if here else None)
    out.print(table, highlight=False)


def _cells(row: dict[str, Any]) -> list[str]:
    stats = row.get("deliveryStats") if isinstance(row.get("deliveryStats"), dict) else {}
    assert isinstance(stats, dict)
    last = f"{ago(_seconds(stats.get(_LAST)))}: {stats.get('lastDeliveryStatus') or 'no answer'}" if stats.get(_LAST) else "–"
    return [
        str(row.get("id")),
        str(row.get("url")),
        ", ".join(map(str, row.get("events") or [])),
        "no" if row.get("active") is False else "yes",
        carries(row) or "–",
        str(stats.get("totalAttempts", "–")),
        str(stats.get("failedDeliveries", "–")),
        last,
    ]


def delete(
    which: Annotated[str, typer.Argument(metavar="ID|URL", help="A webhook's id, or the URL that it sends to.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Have Reader forget a webhook. What it still had to send is not sent."""
    gone = asyncio.run(_delete(load(), which, yes=yes))
    if as_json:
        emit({"deleted": gone})
    else:
        print("\n".join(f"{webhook_id} is deleted" for webhook_id in gone))


async def _delete(settings: Settings, which: str, *, yes: bool) -> list[str]:
    async with reader(settings) as client:
        rows = [row for row in await client.webhooks() if isinstance(row, dict)]
        found = [row for row in rows if row.get("id") == which] or find_ours(rows, which)
        if not found:
            known = ", ".join(f"{row.get('id')} ({row.get('url')})" for row in rows) or "none"
            raise ReceiverError(f"Reader has no webhook {which}; it has: {known}")
        if not yes:
            _confirm("Delete " + " and ".join(f"{row.get('id')}, which sends to {row.get('url')}" for row in found) + "?")
        for row in found:
            await client.delete_webhook(str(row["id"]))
        return [str(row["id"]) for row in found]


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to ask whether to delete it: give --yes")
    typer.confirm(question, abort=True, err=True)


def _without_secret(row: dict[str, Any]) -> dict[str, Any]:
    """Reader does not show it in a list; should it begin to, we do not."""
    return {name: value for name, value in row.items() if name != "secret"}


def _seconds(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None


for command, called in ((register, "register"), (listing, "list"), (rotate, "rotate"), (delete, "delete")):
    webhook.command(called)(command)
