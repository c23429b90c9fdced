"""`submit`, `track`, `jobs`, `job`: what is to be done, and how far it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from receiver.app import Receiver
from receiver.cli.common import Json, ago, change, emit, err, iso, out, reading
from receiver.core.lifecycle import State
from receiver.errors import ReceiverError, UsageError
from receiver.store.engine import Database
from receiver.views import JobView, find, listing

_KNOWN = ("queued", "processing", "completed", "failed", "cancelled", *State)
_STYLE = {"completed": "green", "failed": "red", "cancelled": "yellow", "processing": "cyan", "queued": "cyan"}


def submit(
    urls: Annotated[list[str] | None, typer.Argument(help="URLs to read.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="A file with a URL on each line; - for stdin.")] = None,
    crawl: Annotated[bool, typer.Option("--crawl", help="Crawl from the one URL.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Wait until its results are stored.")] = False,
    as_json: Json = False,
) -> None:
    """Hand a job to Reader, and see it through."""
    chosen = list(urls or []) + (_lines(file) if file is not None else [])
    if not chosen:
        raise UsageError("give URLs, or a file of them with --file")

    async def local(receiver: Receiver) -> dict[str, Any]:
        job = await receiver.submit(chosen, crawl=crawl)
        if watch:
            # Nobody else works on it: this process does, until it is done.
            await _work_until_settled(receiver, job.id, quiet=as_json)
            job = await receiver.job(job.id)
        return job.document

    job = asyncio.run(change("submit", {"urls": chosen, "crawl": crawl}, local))
    if watch:
        with reading() as database:
            _watch(database, str(job["id"]), quiet=as_json)
            job = database.read_now(lambda tx: find(tx, str(job["id"]))).document
    emit(job) if as_json else out.print(f"{job['id']} {job['status']}", highlight=False)
    if watch and job["status"] != "completed":
        raise typer.Exit(1)


def track(ids: Annotated[list[str], typer.Argument(metavar="JOB_ID…")], as_json: Json = False) -> None:
    """Make jobs known that were started elsewhere."""
    for job_id in ids:
        job = _change("track", job_id, lambda receiver, job_id=job_id: receiver.track(job_id))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        emit(job) if as_json else out.print(f"{job['id']} is tracked", highlight=False)


def retry(job_id: Annotated[str, typer.Argument(metavar="JOB_ID")], as_json: Json = False) -> None:
    """Have Reader read a job's failed URLs again; its next end is told as an event of its own."""
    job = _change("retry", job_id, lambda receiver: receiver.retry(job_id))
    emit(job) if as_json else out.print(f"{job['id']} is retried", highlight=False)


def cancel(job_id: Annotated[str, typer.Argument(metavar="JOB_ID")], as_json: Json = False) -> None:
    """Have Reader cancel a job; what it has gathered is read and kept."""
    job = _change("cancel", job_id, lambda receiver: receiver.cancel(job_id))
    emit(job) if as_json else out.print(f"{job['id']} is cancelled", highlight=False)


def _change(name: str, job_id: str, local: Callable[[Receiver], Awaitable[JobView]]) -> dict[str, Any]:
    async def ours(receiver: Receiver) -> dict[str, Any]:
        return (await local(receiver)).document

    return asyncio.run(change(name, {"id": job_id}, ours))


def watch(job_id: Annotated[str, typer.Argument(metavar="JOB_ID")], as_json: Json = False) -> None:
    """Follow a job until its results are stored, and print it then. Exit code 1 if it failed or was cancelled."""

    async def local(receiver: Receiver) -> dict[str, Any]:
        await receiver.track(job_id)
        await _work_until_settled(receiver, job_id, quiet=as_json)
        return (await receiver.job(job_id)).document

    asyncio.run(change("track", {"id": job_id}, local))
    with reading() as database:
        _watch(database, job_id, quiet=as_json)
        ended = database.read_now(lambda tx: find(tx, job_id)).status
    job(job_id, as_json=as_json)
    if ended != "completed":
        raise typer.Exit(1)


def jobs(
    status: Annotated[str | None, typer.Option(help="Reader's status, or watching, hydrating, settled, parked.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    as_json: Json = False,
) -> None:
    """List the jobs, newest first."""
    with reading() as database:
        found, total = database.read_now(lambda tx: listing(tx, status=status, skip=0, limit=limit))
    if as_json:
        emit({"jobs": [_plain(job) for job in found], "total": total})
        return
    if not found and status is not None and status not in _KNOWN:
        raise UsageError(f"no job is {status!r}; Reader's statuses and ours are {', '.join(_KNOWN)}")
    if not found:
        out.print(
            "No jobs"
            + (f" are {status}." if status else " yet: `receiver submit URL…` starts one, `receiver track ID` adopts one.")
        )
        return
    out.print(_table({name: [cell(job) for job in found] for name, cell in _CELLS.items()}, out.width))
    if total > len(found):
        out.print(f"{len(found)} of {total}: --limit shows more", style="dim")


def _delay(job: JobView) -> str:
    """How long after its end we noticed it."""
    if job.ended_at is None or job.noticed_at is None:
        return "–"
    return f"{max(job.noticed_at - job.ended_at, 0.0):.1f} s"


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


def _table(columns: dict[str, list[str]], width: int) -> Table:
    """The columns that fit, whole: an id is there to be copied, and half a word tells nothing."""
    widths = {name: max(len(name), *map(len, cells)) + 2 for name, cells in columns.items()}
    for name in _DISPENSABLE:
        if sum(widths.values()) > width:
            del widths[name]
    table = Table(*(Column(name, no_wrap=True, min_width=widths[name] - 2) for name in widths), box=None, header_style="bold")
    for row in zip(*(columns[name] for name in widths), strict=True):
        table.add_row(*(f"[{_STYLE[cell]}]{cell}[/]" if cell in _STYLE else cell for cell in row))
    return table


def job(job_id: Annotated[str, typer.Argument(metavar="JOB_ID")], as_json: Json = False) -> None:
    """Show one job."""
    with reading() as database:
        found = database.read_now(lambda tx: find(tx, job_id))
    if as_json:
        emit(_plain(found))
        return
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in _told(found):
        table.add_row(name, value)
    out.print(table)


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


def _lines(file: Path) -> list[str]:
    try:
        text = typer.get_text_stream("stdin").read() if str(file) == "-" else file.read_text()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


async def _work_until_settled(receiver: Receiver, job_id: str, *, quiet: bool) -> None:
    async with receiver.running() as runtime:
        with _bar(quiet=quiet) as progress:
            task = progress.add_task(job_id, total=None)
            while not (job := await receiver.job(job_id)).ended and job.state != "parked":
                progress.update(task, completed=job.completed, total=job.total or None)
                await runtime.tick(1.0)
                await runtime.clock.sleep(0.2)


def _watch(database: Database, job_id: str, *, quiet: bool) -> None:
    """Until it is settled, by whoever works on it."""

    async def follow() -> JobView:
        with _bar(quiet=quiet) as progress:
            task = progress.add_task(job_id, total=None)
            while True:
                job = await database.read(lambda tx: find(tx, job_id))
                progress.update(task, completed=job.completed, total=job.total or None)
                if job.ended or job.state == "parked":
                    return job
                await asyncio.sleep(0.3)

    job = asyncio.run(follow())
    if job.state == "parked":
        raise ReceiverError(f"job {job_id} is parked: {job.trouble}")


def _bar(*, quiet: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal)
