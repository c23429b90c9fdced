"""The command line: one small file for each group of commands."""

from __future__ import annotations

import os
import sys

import typer

from receiver.cli.demo import demo
from receiver.cli.jobs import cancel, job, jobs, retry, submit, track, watch
from receiver.cli.results import results
from receiver.cli.sandbox import sandbox
from receiver.cli.serve import migrate, serve, tick
from receiver.cli.wire import send, sign
from receiver.errors import ReceiverError, SettingsError, UsageError
from receiver.store.lock import LockHeldError

app = typer.Typer(
    name="receiver",
    help="The webhook endpoint for jobs of the Reader API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (demo, serve, tick, migrate, submit, track, watch, jobs, job, retry, cancel, results, sign, send, sandbox):
    app.command()(command)


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
    print(f"receiver: {' '.join(message.split())}", file=sys.stderr)
    return code
