"""`results`: a job's results, out of the store."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from receiver.cli.common import JobId, bar, reading
from receiver.errors import ReceiverError, UsageError
from receiver.exporting import FORMS, Format
from receiver.views import JobView, find, read_results

if TYPE_CHECKING:
    from receiver.store.engine import Database


def results(
    job_id: JobId,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="jsonl: each result exactly as Reader gave it. csv: its usual fields. parquet: these, and the whole in `json`. "
            "By the file's name where it is not given, else jsonl.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A file; without it, standard output.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format jsonl.")] = False,
    generation: Annotated[int | None, typer.Option(min=1, help="Of an earlier end of the job.")] = None,
) -> None:
    """Write a job's results."""
    if as_json and form not in {None, Format.JSONL}:
        raise UsageError(f"--json and --format {form} exclude each other")
    chosen_form = form or (_by_name(output) if output is not None and not as_json else Format.JSONL)
    if chosen_form is Format.PARQUET and output is None and sys.stdout.isatty():
        raise UsageError("parquet is not for a terminal: name a file with -o, or redirect the output")
    with reading() as database:
        job = database.read_now(lambda tx: find(tx, job_id))
        chosen = generation or job.generation
        if not job.generation:
            raise ReceiverError(_not_yet(job))
        if chosen > job.generation:
            raise ReceiverError(f"job {job_id} has no generation {chosen}: {job.generation} is its newest that is stored")
        total = job.results if chosen == job.generation else None
        if output is None:
            asyncio.run(_write(database, job_id, chosen, chosen_form, sys.stdout.buffer, total))
            sys.stdout.buffer.flush()
            return
        # Beside it first: a file of that name is whole, or as it was.
        partial = output.with_name(output.name + ".partial")
        try:
            with partial.open("wb") as file:
                count = asyncio.run(_write(database, job_id, chosen, chosen_form, file, total))
            partial.replace(output)
        except OSError as error:
            raise UsageError(f"cannot write {output}: {error.strerror}") from error
        finally:
            partial.unlink(missing_ok=True)
        print(f"{count} results in {output}", file=sys.stderr)


def _by_name(file: Path) -> Format:
    return {".csv": Format.CSV, ".parquet": Format.PARQUET}.get(file.suffix.lower(), Format.JSONL)


def _not_yet(job: JobView) -> str:
    if job.state == "parked":
        return f"job {job.id} is parked and has no results: {job.trouble}"
    progress = f"it is {job.status}, {job.completed} of {job.total} done"
    return f"job {job.id} has no stored results yet: {progress}; `receiver job {job.id}` tells more"


async def _write(database: Database, job_id: str, generation: int, form: Format, file: BinaryIO, total: int | None) -> int:
    """Write them as they are read; how many there were. `total`: how many are expected, for a bar."""
    count = 0
    with FORMS[form](file) as write, bar(quiet=file is sys.stdout.buffer) as progress:
        task = progress.add_task(job_id, total=total)
        async for result in read_results(database, job_id, generation):
            write(result)
            count += 1
            if count % 100 == 0:
                progress.update(task, completed=count)
    return count
