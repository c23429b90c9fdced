"""`submit`, `track`, `watch`, `retry`, `cancel`: having jobs done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from receiver.cli.common import JobId, Json, bar, change, emit, job_ids, out, reading
from receiver.cli.show import job
from receiver.cli.tables import shown
from receiver.errors import ReceiverError, UnknownJobError, UsageError
from receiver.views import JobView, find

if TYPE_CHECKING:
    from receiver.app import Receiver
    from receiver.store.engine import Database


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


def track(ids: Annotated[list[str], typer.Argument(metavar="JOB_ID…", autocompletion=job_ids)], as_json: Json = False) -> None:
    """Make jobs known that were started elsewhere."""
    for job_id in ids:
        job = _change("track", job_id, lambda receiver, job_id=job_id: receiver.track(job_id))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        emit(job) if as_json else out.print(f"{job['id']} is tracked", highlight=False)


def retry(job_id: JobId, as_json: Json = False) -> None:
    """Have Reader read a job's failed URLs again; its next end is told as an event of its own."""
    job = _change("retry", job_id, lambda receiver: receiver.retry(job_id))
    emit(job) if as_json else out.print(f"{job['id']} is retried", highlight=False)


def cancel(job_id: JobId, as_json: Json = False) -> None:
    """Have Reader cancel a job; what it has gathered is read and kept."""
    job = _change("cancel", job_id, lambda receiver: receiver.cancel(job_id))
    emit(job) if as_json else out.print(f"{job['id']} is cancelled", highlight=False)


def _change(name: str, job_id: str, local: Callable[[Receiver], Awaitable[JobView]]) -> dict[str, Any]:
    async def ours(receiver: Receiver) -> dict[str, Any]:
        return (await local(receiver)).document

    return asyncio.run(change(name, {"id": job_id}, ours))


def watch(job_id: JobId, as_json: Json = False) -> None:
    """Follow a job until its results are stored, and print it then.

    Exit code 1 if it failed or was cancelled.
    """

    async def local(receiver: Receiver) -> dict[str, Any]:
        if not await _has_ended(receiver, job_id):
            receiver.settings.require_api_key()  # nobody else works on it, and without a key it would never end
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


def _lines(file: Path) -> list[str]:
    try:
        text = typer.get_text_stream("stdin").read() if str(file) == "-" else file.read_text()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


async def _has_ended(receiver: Receiver, job_id: str) -> bool:
    try:
        return (await receiver.job(job_id)).ended
    except UnknownJobError:
        return False


async def _work_until_settled(receiver: Receiver, job_id: str, *, quiet: bool) -> None:
    async with receiver.running() as runtime:
        with bar(quiet=quiet) as progress:
            task = progress.add_task(job_id, total=None)
            while not (job := await receiver.job(job_id)).ended and job.state != "parked":
                progress.update(task, description=_where(job), completed=job.completed, total=job.total or None)
                await runtime.tick(1.0)
                await runtime.clock.sleep(0.2)


def _watch(database: Database, job_id: str, *, quiet: bool) -> None:
    """Until it is settled, by whoever works on it."""

    async def follow() -> JobView:
        with bar(quiet=quiet) as progress:
            task = progress.add_task(job_id, total=None)
            while True:
                job = await database.read(lambda tx: find(tx, job_id))
                progress.update(task, description=_where(job), completed=job.completed, total=job.total or None)
                if job.ended or job.state == "parked":
                    return job
                await asyncio.sleep(0.3)

    job = asyncio.run(follow())
    if job.state == "parked":
        raise ReceiverError(f"job {job_id} is parked: {job.trouble}")


def _where(job: JobView) -> str:
    return f"{job.id} {shown(job.status if job.state == 'watching' else job.state)}"
