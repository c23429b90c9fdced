"""Results as a Parquet file. Needs pyarrow, which is an extra: it is larger than everything else together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, BinaryIO, Final

from receiver.errors import UsageError

_ROWS, _BYTES = 1000, 16 << 20
"""A row group is written when it has so many, or so much: memory holds one."""
_NUMBERS: Final = {"statusCode": "int64", "credits": "float64"}


@contextmanager
def writing(file: BinaryIO, columns: Sequence[str]) -> Iterator[Callable[[dict[str, Any], bytes], None]]:
    """What takes a result's usual fields and its JSON, as it came; the file is whole when the context ends.

    Raises `UsageError` without the library.
    """
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise UsageError("--format parquet needs pyarrow: pip install 'reader-receiver[parquet]'") from error
    schema = arrow.schema([(name, getattr(arrow, _NUMBERS.get(name, "string"))()) for name in (*columns, "json")])
    rows: list[dict[str, Any]] = []
    size = 0

    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:

        def flush() -> None:
            nonlocal size
            writer.write_table(arrow.Table.from_pylist(rows, schema=schema))
            rows.clear()
            size = 0

        def write(result: dict[str, Any], raw: bytes) -> None:
            nonlocal size
            rows.append({name: _cell(name, value) for name, value in result.items()} | {"json": raw.decode("utf-8", "replace")})
            size += 2 * len(raw)
            if len(rows) >= _ROWS or size >= _BYTES:
                flush()

        yield write
        if rows:
            flush()


def _cell(name: str, value: Any) -> Any:
    """As its column has it. What is no number where one is expected stands in `json` alone."""
    if name in _NUMBERS:
        fits = type(value) is int or (type(value) is float and name == "credits")
        return value if fits and abs(value) < 2**63 else None
    if value is None:
        return None
    return _text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _text(text: str) -> str:
    """What Parquet calls text: half a surrogate pair is none."""
    return text.encode("utf-8", "replace").decode()
