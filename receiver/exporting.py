"""Results for other programs: JSON lines, CSV or Parquet, written one after another."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from typing import Any, BinaryIO, Final

from receiver.packing import unpack

COLUMNS = ("url", "finalUrl", "statusCode", "error", "credits", "markdown", "html", "extracted", "metadata")


class Format(StrEnum):
    """How to write them."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


@contextmanager
def _as_jsonl(file: BinaryIO) -> Iterator[Callable[[bytes], Any]]:
    # Line ends stand in JSON only between tokens: within strings they are escaped.
    yield lambda result: file.write(result.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n")


@contextmanager
def _as_csv(file: BinaryIO) -> Iterator[Callable[[bytes], Any]]:
    file.write(_csv_line(list(COLUMNS)))
    yield lambda result: file.write(_csv_line([_cell(value) for value in usual(unpack(result)).values()]))


@contextmanager
def _as_parquet(file: BinaryIO) -> Iterator[Callable[[bytes], Any]]:
    from receiver.parquet import writing  # noqa: PLC0415 - only who wants it needs its library

    with writing(file, COLUMNS) as write:
        yield lambda result: write(usual(unpack(result)), result)


FORMS: Final[dict[Format, Callable[[BinaryIO], AbstractContextManager[Callable[[bytes], Any]]]]] = {
    Format.JSONL: _as_jsonl,
    Format.CSV: _as_csv,
    Format.PARQUET: _as_parquet,
}


def usual(result: dict[str, Any]) -> dict[str, Any]:
    """A result's usual fields, by `COLUMNS`."""
    metadata = result.get("metadata")
    told = {"statusCode": metadata.get("statusCode") if isinstance(metadata, dict) else None, **result}
    return {name: told.get(name) for name in COLUMNS}


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) or value is None else json.dumps(value, ensure_ascii=False)


def _csv_line(cells: list[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().encode("utf-8", "replace")
