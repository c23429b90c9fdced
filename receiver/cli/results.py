"""`results`: a job's results, out of the store."""

from __future__ import annotations

import asyncio
import csv
import io
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import typer

from receiver.cli.common import reading
from receiver.errors import ReceiverError, UsageError
from receiver.packing import unpack
from receiver.store.engine import Database
from receiver.views import JobView, find, read_results

_COLUMNS = ("url", "finalUrl", "statusCode", "error", "credits", "markdown", "html", "extracted", "metadata")


class Format(StrEnum):
    """How to write them."""

    JSONL = "jsonl"
    CSV = "csv"


def results(
    job_id: Annotated[str, typer.Argument(metavar="JOB_ID")],
    form: Annotated[
        Format, typer.Option("--format", help="jsonl: each result exactly as Reader gave it. csv: its usual fields.")
    ] = Format.JSONL,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A file; without it, standard output.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format jsonl.")] = False,
    generation: Annotated[int | None, typer.Option(min=1, help="Of an earlier end of the job.")] = None,
) -> None:
    """Write a job's results."""
    if as_json and form is not Format.JSONL:
        raise UsageError("--json and --format csv exclude each other")
    with reading() as database:
        job = database.read_now(lambda tx: find(tx, job_id))
        chosen = generation or job.generation
        if not job.generation:
            raise ReceiverError(_not_yet(job))
        if chosen > job.generation:
            raise ReceiverError(f"job {job_id} has no generation {chosen}: {job.generation} is its newest that is stored")
        if output is None:
            asyncio.run(_write(database, job_id, chosen, form, sys.stdout.buffer))
            sys.stdout.buffer.flush()
            return
        # Beside it first: a file of that name is whole, or as it was.
        partial = output.with_name(output.name + ".partial")
        try:
            with partial.open("wb") as file:
                count = asyncio.run(_write(database, job_id, chosen, form, file))
            partial.replace(output)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise UsageError(f"cannot write {output}: {error.strerror}") from error
        print(f"{count} results in {output}", file=sys.stderr)


def _not_yet(job: JobView) -> str:
    if job.state == "parked":
        return f"job {job.id} is parked and has no results: {job.trouble}"
    progress = f"it is {job.status}, {job.completed} of {job.total} done"
    return f"job {job.id} has no stored results yet: {progress}; `receiver job {job.id}` tells more"


async def _write(database: Database, job_id: str, generation: int, form: Format, file: BinaryIO) -> int:
    line, head = _LINES[form]
    file.write(head)
    count = 0
    async for result in read_results(database, job_id, generation):
        file.write(line(result))
        count += 1
    return count


def _jsonl(result: bytes) -> bytes:
    # Line ends stand in JSON only between tokens: within strings they are escaped.
    return result.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n"


def _csv(result: bytes) -> bytes:
    value = unpack(result)
    value.setdefault(
        "statusCode", (value.get("metadata") or {}).get("statusCode") if isinstance(value.get("metadata"), dict) else None
    )
    return _csv_line([_cell(value.get(name)) for name in _COLUMNS])


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) or value is None else msgspec.json.encode(value).decode()


def _csv_line(cells: list[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().encode("utf-8", "replace")


_LINES: dict[Format, tuple[Callable[[bytes], bytes], bytes]] = {
    Format.JSONL: (_jsonl, b""),
    Format.CSV: (_csv, _csv_line(list(_COLUMNS))),
}
