"""`deliveries`: what came to the endpoint, and each of them as it came."""

from __future__ import annotations

import asyncio
import base64
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Final

import typer

from receiver.cli.common import Json, ago, change, emit, iso, out, reading
from receiver.cli.tables import facts, listing, shown
from receiver.clock import SystemClock
from receiver.core import letter
from receiver.errors import ReceiverError, SettingsError, UsageError
from receiver.settings import Settings, load
from receiver.store import arrivals
from receiver.store.arrivals import Arrived
from receiver.store.transaction import Transaction
from receiver.telling import count

_STORED: Final = ("accepted", "ignored", "quarantined")
_OUTCOMES: Final = (*_STORED, "duplicate")
_LOOKED_THROUGH: Final = 10_000
"""Deliveries among which those are looked for that came more than once: in no index."""


def deliveries(
    number: Annotated[int | None, typer.Argument(metavar="[NUMBER]", help="Show this one, with its headers and body.")] = None,
    outcome: Annotated[
        str | None,
        typer.Option(
            help="accepted, ignored or quarantined; duplicate: those that came more than once.",
            autocompletion=lambda: list(_OUTCOMES),
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    before: Annotated[int | None, typer.Option(min=1, help="Only those with a smaller number: the next page.")] = None,
    body: Annotated[bool, typer.Option("--body", help="Of one: its body alone, byte for byte.")] = False,
    curl: Annotated[
        bool, typer.Option("--curl", help="Of one: a command that sends it to this receiver again, signed afresh.")
    ] = False,
    reprocess: Annotated[
        bool, typer.Option("--reprocess", help="Read the quarantined ones once more, as this release reads them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the deliveries that came, newest first, or show one with its headers and body.

    A duplicate is not stored again, but counted with the one that came first. One that was refused is not stored at all: /metrics
    counts them by reason.
    """
    if reprocess:
        if number is not None or outcome is not None or before is not None or body or curl:
            raise UsageError("--reprocess is of all that are quarantined: give it alone")
        _reprocess(as_json=as_json)
        return
    if number is not None:
        _one(number, body=body, curl=curl, as_json=as_json)
        return
    if body or curl:
        raise UsageError("--body and --curl are of one delivery: give its NUMBER, as `receiver deliveries` lists it")
    if outcome is not None and outcome not in _OUTCOMES:
        known = ", ".join(_OUTCOMES)
        raise UsageError(f"no delivery is stored as {outcome!r}: give {known}. Refused ones are only counted, in /metrics")
    with reading() as database:
        found = database.read_now(lambda tx: _found(tx, outcome, before, limit + 1))
    more, found = len(found) > limit, found[:limit]
    if as_json:
        emit({"deliveries": [_plain(each) for each in found], "more": more})
    elif not found:
        out.print(
            f"No deliveries{' are ' + outcome if outcome else ''}{' before that' if before else '' if outcome else ' yet'}."
            + ("" if outcome or before else " `receiver send job.completed --job ID` sends one to try.")
        )
    else:
        columns = {name: [cell(each) for each in found] for name, cell in _CELLS.items()}
        out.print(listing(columns, width=out.width, dispensable=_DISPENSABLE, right=("number", "times", "bytes")))
        if more:
            out.print(f"There are more: --before {found[-1].id} shows the next", style="dim")


def _reprocess(*, as_json: bool) -> None:
    now = asyncio.run(change("reprocess", {}, lambda receiver: receiver.reprocess()))
    if as_json:
        emit(now)
        return
    if not any(now.values()):
        out.print("No deliveries are quarantined.")
        return
    taken = f"{count(now['accepted'], 'delivery', 'deliveries')} taken in, {now['ignored']} about no job"
    left = f"{now['quarantined']} still quarantined: `receiver deliveries --outcome quarantined` lists them"
    out.print(f"{taken}, {left if now['quarantined'] else 'none left'}", highlight=False)


def _found(tx: Transaction, outcome: str | None, before: int | None, limit: int) -> list[Arrived]:
    if outcome != "duplicate":
        return arrivals.newest(tx, outcome=outcome, before=before, limit=limit)
    return arrivals.repeated(tx, before=before, limit=limit, among=_LOOKED_THROUGH)


_CELLS: Final[dict[str, Callable[[Arrived], str]]] = {
    "number": lambda each: str(each.id),
    "came": lambda each: ago(each.received_at),
    "outcome": lambda each: each.outcome,
    "event": lambda each: each.event or "–",
    "job": lambda each: each.job_id or "–",
    "times": lambda each: str(each.times),
    "bytes": lambda each: str(each.size),
    "delivery": lambda each: each.delivery_id or "–",
    "reason": lambda each: each.reason or "",
}
_DISPENSABLE = ("bytes", "delivery", "times", "reason", "came", "event")


def _one(number: int, *, body: bool, curl: bool, as_json: bool) -> None:
    settings = load()
    with reading(settings) as database:
        found = database.read_now(lambda tx: arrivals.get(tx, number))
    if found is None:
        raise ReceiverError(
            f"there is no delivery {number}: `receiver deliveries` lists them, as long as RECEIVER_RETENTION keeps them"
        )
    came, content = found
    if body:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    elif curl:
        print(_curl(settings, came, content))
    elif as_json:
        emit(_plain(came) | {"headers": _headers(came), **_content(content)})
    else:
        out.print(facts([(name, str(value)) for name, value in _facts(came)]))
        out.print()
        for name, value in _headers(came).items():
            out.print(f"{name}: {shown(value)}", markup=False, highlight=False)
        out.print()
        out.print(_text(content), markup=False, highlight=False, soft_wrap=True)


def _facts(came: Arrived) -> list[tuple[str, str]]:
    rows = [
        ("number", str(came.id)),
        ("came", f"{ago(came.received_at)}, {iso(came.received_at)}" + (f", {came.times} times" if came.times > 1 else "")),
        ("outcome", came.outcome + (f": {came.reason}" if came.reason else "")),
        ("event", came.event or "–"),
        ("job", came.job_id or "–"),
    ]
    return rows if came.signed_at is not None else [*rows, ("signed", "no")]


def _headers(came: Arrived) -> dict[str, str]:
    """Reader's, as far as they are kept: a signature is checked and, like the secret, not stored."""
    said = {
        "X-Reader-Event": came.event,
        "X-Reader-Delivery": came.delivery_id,
        "X-Reader-Timestamp": None if came.signed_at is None else str(came.signed_at),
    }
    return {name: value for name, value in said.items() if value is not None}


def _plain(came: Arrived) -> dict[str, Any]:
    times = {"received_at": iso(came.received_at), "signed_at": iso(came.signed_at)}
    told = asdict(came)
    return {"number": told.pop("id"), **told, **times}


def _content(body: bytes) -> dict[str, str]:
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def _text(body: bytes) -> str:
    return "\n".join(shown(line) for line in body.decode("utf-8", "backslashreplace").splitlines())


def _curl(settings: Settings, came: Arrived, body: bytes) -> str:
    """A command for a shell. What is no text is taken from the store again, by this command."""
    if not settings.secrets:
        raise SettingsError(
            "READER_WEBHOOK_SECRET is not set: a delivery is signed afresh to be sent again, set it to the secret"
        )
    clock = SystemClock()
    headers = letter.headers(
        body,
        event=came.event or "",
        delivery=came.delivery_id or clock.token(),
        timestamp=int(clock.wall()),
        secret=settings.secrets[0],
    )
    from receiver.cli.wire import server

    data, before = "@-", f"receiver deliveries {came.id} --body | "
    # A shell keeps no NUL, and curl would take a leading @ for a file's name.
    if body.isascii() and b"\x00" not in body and not body.startswith(b"@"):
        data, before = shlex.quote(body.decode()), ""
    said = [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in headers.items() if value]
    return " \\\n  ".join([f"{before}curl -i {shlex.quote(server(settings) + '/hooks/reader')}", *said, f"--data-binary {data}"])
