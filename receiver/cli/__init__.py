"""The command line: one small file for each group of commands."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperGroup

from receiver.errors import ReceiverError, SettingsError, UsageError
from receiver.store.lock import LockHeldError

_RUN, _MEET, _WORK, _LOOK, _TRY = "Run it", "Connect Reader", "Jobs", "See what happened", "Develop and try"

COMMANDS: Final = (
    ("demo", "demo", _RUN, "Run a sandbox Reader and a receiver on this machine, lose webhooks, and see everything recovered."),
    ("serve", "serve", _RUN, "Serve the webhook endpoint, reconcile and dispatch."),
    (
        "tick",
        "serve",
        _RUN,
        "Reconcile and dispatch what is due, once, within a time; print a JSON summary. For cron and serverless.",
    ),
    ("migrate", "serve", _RUN, "Bring the database's schema to this release's."),
    ("webhook", "webhook", _MEET, "Reader's webhook for this receiver, and its secret: register, list, rotate, delete."),
    (
        "doctor",
        "doctor",
        _MEET,
        "Look at everything, from the settings to a signed test delivery, and say what to do.",
    ),
    ("submit", "jobs", _WORK, "Hand a job to Reader, and see it through."),
    ("track", "jobs", _WORK, "Make jobs known that were started elsewhere."),
    (
        "watch",
        "jobs",
        _WORK,
        "Follow a job until its results are stored, and print it then.",
    ),
    ("retry", "jobs", _WORK, "Have Reader read a job's failed URLs again; its next end is told as an event of its own."),
    ("cancel", "jobs", _WORK, "Have Reader cancel a job; what it has gathered is read and kept."),
    ("results", "results", _WORK, "Write a job's results."),
    ("jobs", "show", _LOOK, "List the jobs, newest first."),
    ("job", "show", _LOOK, "Show one job: where it stands, and everything that happened to it, in order."),
    ("deliveries", "deliveries", _LOOK, "List the deliveries that came, newest first, or show one with its headers and body."),
    ("hooks", "hooks", _LOOK, "List the hooks and how they fare; pause, resume or try one, and see what went to it."),
    (
        "replay",
        "hooks",
        _WORK,
        "Have events delivered again, under the ids they had, each with the results of its own generation.",
    ),
    ("listen", "listen", _TRY, "Forward Reader's webhooks to an endpoint on this machine: no public address, no tunnel."),
    ("sign", "wire", _TRY, "Print the four headers with which Reader would deliver a body, signed with the first secret."),
    ("send", "wire", _TRY, "Send a signed test delivery."),
    (
        "sandbox",
        "sandbox",
        _TRY,
        "Reader's API, emulated: faithful by default, as cruel as you ask.",
    ),
)
"""Each command's name, the file it is in, where help lists it, and its help's first sentence.

A command is imported when it is run: who asks for help, or completes a word, need not wait for a database toolkit.
"""


class _Group(TyperGroup):
    """Knows its commands by their names and first sentences; loads the one that is run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, (command and load(str(name))), rest


def load(name: str) -> Any:
    """The command of this name, whole: a function or a `Typer` of that name in its file."""
    home = next(file for command, file, *_ in COMMANDS if command == name)
    found = getattr(import_module(f"receiver.cli.{home}"), name)
    if not isinstance(found, typer.Typer):
        whole = typer.Typer(add_completion=False)
        whole.command(name)(found)
        found = whole
    return typer.main.get_command(found)


app = typer.Typer(
    name="receiver",
    help="The webhook endpoint for jobs of the Reader API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    cls=_Group,
)


def _named(name: str, panel: str, sentence: str) -> None:
    @app.command(name, help=sentence, rich_help_panel=panel)
    def stand_in() -> None: ...


for _name, _, _panel, _sentence in COMMANDS:
    _named(_name, _panel, _sentence)


# What click raises for a wrong command line. Taken from here because typer brings a click of its own, or does not, by its version.
_Usage: type[Exception] = typer.BadParameter.__mro__[1]


def main() -> None:
    """Run, and end with 0 (done), 1 (it failed) or 2 (wrong usage or settings). An error is one line that says what to do."""
    sys.exit(_run())


def _run() -> int:
    try:
        code = app(standalone_mode=False)
    except ReceiverError as error:
        return _tell(2 if isinstance(error, SettingsError | UsageError | LockHeldError) else 1, str(error))
    except _Usage as error:
        context = getattr(error, "ctx", None)
        said = getattr(error, "format_message", error.__str__)() or "give a command"
        return _tell(2, f"{said} (see `{context.command_path if context else 'receiver'} --help`)")
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # Whoever read our output has enough: no failure, though typer by itself would make it one. Nothing may be flushed into
        # the broken pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code if isinstance(code, int) else 0


def _tell(code: int, message: str) -> int:
    # What it quotes may be anybody's words, and a terminal obeys what it prints.
    line = "".join(character if character.isprintable() else "\ufffd" for character in " ".join(message.split()))
    print(f"receiver: {line}", file=sys.stderr)
    return code
