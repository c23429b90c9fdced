"""`jobs`, `job`: what there is, and what happened to one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from receiver.cli.common import JobId, Json, ago, emit, iso, out, reading
from receiver.cli.tables import facts, listing, shown
from receiver.core.lifecycle import State
from receiver.errors import UsageError
from receiver.store import timeline
from receiver.store.timeline import Moment, Timeline
from receiver.telling import duration, tell
from receiver.views import JobView, find
from receiver.views import listing as list_jobs

_KNOWN = ("queued", "processing", "completed", "failed", "cancelled", *State)


def jobs(
    status: Annotated[
        str | None,
        typer.Option(
            help="Reader's status, or watching, hydrating, settled, parked.", autocompletion=lambda: list(dict.fromkeys(_KNOWN))
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    as_json: Json = False,
) -> None:
    """List the jobs, newest first."""
    with reading() as database:
        found, total = database.read_now(lambda tx: list_jobs(tx, status=status, skip=0, limit=limit))
    if not found and status is not None and status not in _KNOWN:  # Reader may have new ones, and then there are such jobs
        raise UsageError(f"no job is {status!r}; Reader's statuses and ours are {', '.join(_KNOWN)}")
    if as_json:
        emit({"jobs": [_plain(job) for job in found], "total": total})
        return
    if not found:
        out.print(
            "No jobs"
            + (f" are {status}." if status else " yet: `receiver submit URL…` starts one, `receiver track ID` adopts one.")
        )
        return
    columns = {name: [cell(job) for job in found] for name, cell in _CELLS.items()}
    out.print(listing(columns, width=out.width, dispensable=_DISPENSABLE, right=("results", "failed", "gen", "after")))
    if total > len(found):
        out.print(f"{len(found)} of {total}: --limit shows more", style="dim")


def _delay(job: JobView) -> str:
    """How long after its end we noticed it."""
    if job.ended_at is None or job.noticed_at is None:
        return "–"
    return duration(max(job.noticed_at - job.ended_at, 0.0))


_CELLS: dict[str, Callable[[JobView], str]] = {
    "job": lambda job: job.id,
    "status": lambda job: job.status,
    "here": lambda job: job.state,
    "results": lambda job: str(job.results) if job.generation else f"{job.completed}/{job.total}",
    "failed": lambda job: str(job.failed_urls),
    "gen": lambda job: str(job.generation),
    "found by": lambda job: job.discovered_by or "–",
    "after": _delay,
    "tracked": lambda job: ago(job.tracked_at),
}
_DISPENSABLE = ("gen", "failed", "after", "found by", "tracked", "here")


def job(job_id: JobId, as_json: Json = False) -> None:
    """Show one job: where it stands, and everything that happened to it, in order."""
    with reading() as database:
        found, story = database.read_now(lambda tx: (find(tx, job_id), timeline.read(tx, job_id)))
    if as_json:
        emit(_plain(found) | {"timeline": [_moment(moment) for moment in story.moments], "timeline_whole": story.whole})
        return
    out.print(facts(_told(found)))
    out.print()
    out.print(_story(story))
    if not story.whole:
        out.print("Many deliveries came in its time: not all of them were looked through for its own.", style="dim")


def _moment(moment: Moment) -> dict[str, Any]:
    times = {"at": iso(moment.at), "last_at": iso(moment.last_at)}
    return asdict(moment) | times | {"text": tell(moment)}


def _story(story: Timeline) -> Table:
    """When (on this machine's clock), how long after what came before, and what it was."""
    table = Table(box=None, show_header=False)
    for column in ("dim", "cyan", ""):
        table.add_column(style=column, justify="right" if column == "cyan" else "left", overflow="fold")
    day, before = "", None
    for moment in story.moments:
        at = datetime.fromtimestamp(moment.at).astimezone()
        today, time = at.strftime("%Y-%m-%d"), at.strftime("%H:%M:%S.%f")[:-3]
        # The date where it changes: between two moments may lie a second, or the hours until a late look.
        when = time if today == day else f"{today} {time}"
        after = "" if before is None else f"+{duration(max(moment.at - before, 0.0))}"
        table.add_row(Text(when.rjust(23)), after, Text(shown(tell(moment))))
        day, before = today, moment.at
    return table


def _told(job: JobView) -> list[tuple[str, str]]:
    rows = [
        ("job", job.id),
        ("status", f"{job.status} ({job.state})"),
        ("progress", f"{job.completed} of {job.total}"),
        ("tracked", ago(job.tracked_at)),
    ]
    if job.generation:
        rows += [
            ("generation", str(job.generation)),
            ("results", f"{job.results}, {job.failed_urls} with an error" + ("" if job.verified else ", unverified")),
            ("ended", ago(job.ended_at)),
            ("noticed", f"{ago(job.noticed_at)}, {_delay(job)} after its end, by {job.discovered_by}"),
            ("webhook", "came" if job.told else "never came"),
            ("settled", f"{ago(job.settled_at)}, in {job.requests} request{'' if job.requests == 1 else 's'}"),
        ]
    if job.pruned_at is not None:
        rows.append(("pruned", f"{ago(job.pruned_at)}; `receiver track {job.id}` fetches them again while Reader keeps them"))
    if job.held:
        rows.append(("held", "its end is told once its failed URLs were retried"))
    if job.trouble:
        rows.append(("trouble", job.trouble))
    return rows


def _plain(job: JobView) -> dict[str, Any]:
    times = {name: iso(getattr(job, name)) for name in ("ended_at", "noticed_at", "settled_at", "pruned_at", "tracked_at")}
    return asdict(job) | times
