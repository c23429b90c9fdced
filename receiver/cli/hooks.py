"""`hooks`, `replay`: who is told of what, how it went, and once more."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from receiver.cli.common import Json, ago, change, emit, iso, out, reading
from receiver.clock import SystemClock
from receiver.errors import UsageError
from receiver.settings import span
from receiver.telling import count

if TYPE_CHECKING:
    from receiver.app import Receiver
    from receiver.store.hook_log import AttemptRow, DeliveryRow, HookRow

_STYLE = {"running": "green", "failing": "yellow", "paused": "red", "retired": "dim", "delivered": "green", "dead": "red"}
Name = Annotated[str, typer.Argument(metavar="NAME", help="A hook's name, as `receiver hooks` lists it.")]
Hook = Annotated[str | None, typer.Option("--hook", help="For this hook alone.")]

hooks = typer.Typer(invoke_without_command=True, add_completion=False)


@hooks.callback(help="List the hooks and how they fare; pause, resume or try one, and see what went to it.")
def _hooks(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_(as_json=as_json)


@hooks.command("list")
def list_(as_json: Json = False) -> None:
    """List the hooks."""
    from receiver.store import hook_log

    with reading() as database:
        found = database.read_now(hook_log.all_hooks)
    if as_json:
        emit({"hooks": [_plain(row) for row in found]})
        return
    if not found:
        out.print("No hooks yet: set RECEIVER_HOOKS, or write a handler (@receiver.on), and start `receiver serve`.")
        return
    table = Table(box=None, header_style="bold")
    for column in ("hook", "kind", "to", "state", "pending", "dead", "last delivered"):
        table.add_column(column, no_wrap=column in {"hook", "state"})
    for row in found:
        counts = (str(row.pending), f"[red]{row.dead}[/]" if row.dead else "0")
        table.add_row(row.name, row.kind, row.target, _styled(row.state), *counts, ago(row.last_delivered_at))
    out.print(table)
    for row in found:
        if row.state == "paused":
            out.print(f"{row.name}: {row.paused_why}{_probe(row)}; `receiver hooks resume {row.name}`", highlight=False)


@hooks.command()
def pause(name: Name, as_json: Json = False) -> None:
    """Bring nothing to a hook until it is resumed; its events wait."""
    row = _change("hook-pause", name)
    emit(row) if as_json else out.print(f"{name} is paused, {row['pending']} waiting", highlight=False)


@hooks.command()
def resume(name: Name, as_json: Json = False) -> None:
    """Bring a paused hook what has waited for it, from now on."""
    row = _change("hook-resume", name)
    emit(row) if as_json else out.print(f"{name} is resumed, {row['pending']} waiting", highlight=False)


@hooks.command("test")
def try_(name: Name, as_json: Json = False) -> None:
    """Send a configured hook an event of type hook.test, now, and print what it said. Exit code 1 if it did not take it."""

    async def local(receiver: Receiver) -> dict[str, Any]:
        return asdict(await receiver.test_hook(name))

    said = asyncio.run(change("hook-test", {"name": name}, local))
    if as_json:
        emit(said)
    else:
        words = "took it" if said["ok"] else f"did not take it: {said['error']}"
        status = f" ({said['status']})" if said["ok"] and said["status"] else ""
        out.print(f"{name} {words}{status}, in {said['ms']:.0f} ms", highlight=False)
        if said["answer"].strip():
            out.print(said["answer"].strip(), style="dim", highlight=False, markup=False)
    if not said["ok"]:
        raise typer.Exit(1)


@hooks.command()
def deliveries(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of this hook.")] = None,
    event: Annotated[str | None, typer.Option(help="Of this event, with all that was tried.")] = None,
    state: Annotated[str | None, typer.Option(help="pending, delivered or dead.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: Json = False,
) -> None:
    """List what went to hooks or waits for them, newest first: with --json, or of one --event, with each attempt."""
    from receiver import hook_commands

    with reading() as database:
        found = asyncio.run(hook_commands.deliveries(database, hook=name, event=event, state=state, limit=limit))
    if as_json:
        emit({"deliveries": [_delivery(each.delivery) | {"log": [_attempt(row) for row in each.log]} for each in found]})
        return
    if not found:
        if (name, event, state) == (None, None, None):
            out.print("Nothing has gone to a hook yet: the first event is told when a job ends.")
        else:
            out.print(
                "No delivery is like that. `receiver hooks` lists the hooks, and this command all that went to them, newest first."
            )
        return
    table = Table(box=None, header_style="bold")
    for column in ("event", "type", "job", "hook", "state", "attempts", "when", "said"):
        table.add_column(column, no_wrap=column in {"event", "job"})
    for row in (each.delivery for each in found):
        when = ago(row.delivered_at or row.created_at)
        said = row.last_error or ("" if row.last_status is None else str(row.last_status))
        table.add_row(row.event_id, row.type, row.job_id, row.hook, _styled(row.state), str(row.attempts), when, said)
    out.print(table)
    for each in found if event is not None else ():
        _print_attempts(each.delivery, each.log)


def _print_attempts(row: DeliveryRow, attempts: list[AttemptRow]) -> None:
    for each in attempts:
        status = "" if each.status is None else f" {each.status}"
        what = f"attempt {each.number}: {each.outcome}{status}, {each.seconds * 1000:.0f} ms"
        out.print(f"{iso(each.at)}  {row.hook}  {what}  {each.error or ''}", highlight=False, markup=False)
        if each.answer:
            out.print(f"    {' '.join(each.answer.split())}", style="dim", highlight=False, markup=False)


def replay(
    event: Annotated[str | None, typer.Option("--event", metavar="ID", help="This event.")] = None,
    job: Annotated[str | None, typer.Option("--job", metavar="ID", help="All events of this job.")] = None,
    dead: Annotated[bool, typer.Option("--dead", help="All that were given up.")] = False,
    since: Annotated[str | None, typer.Option(metavar="T", help="All since then: 2h, 30m, 7d ago, or an ISO time.")] = None,
    hook: Hook = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    as_json: Json = False,
) -> None:
    """Have events delivered again, under the ids they had, each with the results of its own generation."""
    chosen: dict[str, Any] = {"event": event, "job": job, "dead": dead, "hook": hook, "dry_run": dry_run}
    chosen["since"] = None if since is None else moment(since, SystemClock().wall())
    if sum((event is not None, job is not None, dead, since is not None)) != 1:
        raise UsageError("say what to replay: exactly one of --event ID, --job ID, --dead and --since T")
    done = _counted(chosen) if dry_run else _replayed(chosen)
    if as_json:
        emit(done | {"dryRun": dry_run})
        return
    to = "".join(f", {number} to {name}" for name, number in done["hooks"].items())
    words = "would be delivered" if dry_run else "are delivered"
    what = f"{count(done['deliveries'], 'delivery', 'deliveries')} of {count(done['events'], 'event')}"
    out.print(f"{what} {words if done['deliveries'] != 1 else words.replace('are', 'is')} again{to}", highlight=False)


def _replayed(chosen: dict[str, Any]) -> dict[str, Any]:
    async def local(receiver: Receiver) -> dict[str, Any]:
        return asdict(await receiver.replay(**chosen))

    return asyncio.run(change("replay", chosen, local))


def _counted(chosen: dict[str, Any]) -> dict[str, Any]:
    from receiver import hook_commands
    from receiver.store.replay import Selection

    selection = Selection(**{name: value for name, value in chosen.items() if name != "dry_run"})
    with reading() as database:
        return asdict(asyncio.run(hook_commands.replay(database, SystemClock(), selection, dry_run=True)))


def moment(text: str, now: float) -> float:
    """Unix seconds of a time as people write it: so long ago, an ISO time (UTC unless it says otherwise), or Unix seconds."""
    try:
        return now - span(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        pass
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{text!r} is no time: give 2h, 30m or 7d (ago), 2026-01-31 or 2026-01-31T12:00, or Unix seconds"
        ) from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _change(command: str, name: str) -> dict[str, Any]:
    async def local(receiver: Receiver) -> dict[str, Any]:
        row = await (receiver.pause_hook(name) if command == "hook-pause" else receiver.resume_hook(name))
        return asdict(row)

    return _timed(asyncio.run(change(command, {"name": name}, local)))


def _timed(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: iso(row[name]) for name in row if name.endswith("_at") or name == "failing_since"}


def _plain(row: HookRow) -> dict[str, Any]:
    return _timed(asdict(row))


def _delivery(row: DeliveryRow) -> dict[str, Any]:
    return _timed(asdict(row))


def _attempt(row: AttemptRow) -> dict[str, Any]:
    fields = asdict(row) | {"at": iso(row.at), "ms": round(row.seconds * 1000, 1)}
    return {name: fields[name] for name in ("number", "at", "ms", "outcome", "status", "error", "answer")}


def _styled(state: str) -> str:
    return f"[{_STYLE[state]}]{state}[/]" if state in _STYLE else state


def _probe(row: HookRow) -> str:
    if row.probe_at is None:
        return ""
    seconds = max(row.probe_at - SystemClock().wall(), 0.0)
    return f"; probed again in {seconds:.0f} s"
