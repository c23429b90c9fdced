"""`doctor`: everything there is, looked at once, and what to do about each thing that is not well."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict

import typer
from rich.table import Table
from rich.text import Text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from receiver.cli.checks import course, database, hooks, reached, reader, setup
from receiver.cli.checks.line import Line, fail
from receiver.cli.common import Json, emit, out
from receiver.clock import SystemClock
from receiver.errors import SettingsError
from receiver.settings import Settings, load

_SHORTEST = 6
"""Characters of what is told from common words."""
_STYLE = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(as_json: Json = False) -> None:
    """Look at everything, from the settings to a signed test delivery, and say what to do.

    All that comes of it is the test delivery, kept as ignored. Exit code 1 if anything fails.
    """
    try:
        settings = load()
    except SettingsError as error:
        lines = [
            fail("settings", problem, "correct it; `receiver doctor` goes on from there") for problem in str(error).split("; ")
        ]
    else:
        lines = _without_secrets(asyncio.run(_look(settings)), settings)
    failed, warned = (sum(line.status == status for line in lines) for status in ("fail", "warn"))
    if as_json:
        emit({"ok": failed == 0, "failed": failed, "warnings": warned, "checks": [asdict(line) for line in lines]})
    else:
        _show(lines)
        out.print(_verdict(failed, warned), highlight=False)
    if failed:
        raise typer.Exit(1)


async def _look(settings: Settings) -> list[Line]:
    """From near to far, told in that order, but all looked at together: what is silent is waited for once.

    What cannot be looked at because of what failed before it is left out.
    """
    clock = SystemClock()
    stored = asyncio.create_task(database.look(settings, clock))

    async def known() -> database.Past | None:
        return (await asyncio.shield(stored))[1]

    far = await asyncio.gather(reader.look(settings, clock, known), reached.look(settings, clock), hooks.look(settings, known))
    found, past = await stored
    lines = [*setup.look(settings), *found, *(line for group in far for line in group)]
    if past is not None:
        lines += course.look(past)
    return lines


def _without_secrets(lines: Sequence[Line], settings: Settings) -> list[Line]:
    """None of our words holds one; others' may, and are quoted here and there."""
    known = [*settings.secrets, *(key.get_secret_value() for key in settings.receiver_api_keys)]
    if settings.reader_api_key is not None:
        known.append(settings.reader_api_key.get_secret_value())
    for hook in settings.receiver_hooks:
        known += [value.get_secret_value() for value in (*hook.secret, *hook.env.values(), *hook.headers.values())]
    try:
        known.append(make_url(settings.receiver_database_url).password or "")
    except (ArgumentError, ValueError):
        known.append(settings.receiver_database_url)

    def clean(text: str) -> str:
        for secret in sorted({secret for secret in known if len(secret) >= _SHORTEST}, key=len, reverse=True):
            text = text.replace(secret, "[secret]")
        return " ".join(text.split())

    return [Line(line.name, line.status, clean(line.message), line.hint and clean(line.hint)) for line in lines]


def _show(lines: Sequence[Line]) -> None:
    table = Table.grid(padding=(0, 2))
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for line in lines:
        told = Text(line.message)
        if line.hint is not None:
            told.append(f"\n→ {line.hint}", "dim" if line.status == "ok" else "default")
        table.add_row(Text(line.status, _STYLE[line.status]), Text(line.name.replace("_", " ").replace(":", " "), "bold"), told)
    out.print(table)


def _verdict(failed: int, warned: int) -> str:
    warnings = {0: "", 1: ", and there is a warning"}.get(warned, f", and there are {warned} warnings")
    if failed:
        return f"\n{'One thing fails' if failed == 1 else f'{failed} things fail'}{warnings}. Begin at the top."
    return f"\nNothing fails{warnings or ': all is well'}."
