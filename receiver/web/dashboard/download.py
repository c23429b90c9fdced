"""A job's results as a file, written while it is read: neither is ever whole in memory."""

from __future__ import annotations

import io
from importlib.util import find_spec
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from starlette.responses import Response, StreamingResponse

from receiver.errors import ResultsPrunedError, UnknownJobError, UsageError
from receiver.exporting import FORMS, Format
from receiver.store import settlement
from receiver.views import read_results
from receiver.web.dashboard.render import SECURE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from receiver.store.engine import Database

_TYPES: Final = {
    Format.JSONL: "application/x-ndjson",
    Format.CSV: "text/csv; charset=utf-8",
    Format.PARQUET: "application/vnd.apache.parquet",
}
_PIECE = 64 << 10


def formats() -> list[str]:
    """What can be had here: Parquet needs a library that is an extra."""
    return [form.value for form in Format if form is not Format.PARQUET or find_spec("pyarrow") is not None]


async def download(database: Database, job_id: str, generation: int, name: str) -> Response:
    """The response. Raises `UsageError`, `UnknownJobError`, `ResultsPrunedError`."""
    if name not in formats():
        raise UsageError(f"format must be one of {', '.join(formats())}")
    form = Format(name)
    outcome = await database.read(lambda tx: settlement.get_outcome(tx, job_id, generation))
    if outcome is None:
        raise UnknownJobError(f"job {job_id} has no generation {generation} that is stored")
    if outcome.pruned_at is not None and outcome.results:
        raise ResultsPrunedError.of(job_id)

    async def body() -> AsyncIterator[bytes]:
        sink = _Sink()
        with FORMS[form](cast("BinaryIO", sink)) as write:
            async for result in read_results(database, job_id, generation):
                write(result)
                if sink.waiting >= _PIECE:
                    yield sink.drain()
        yield sink.drain()

    file = f"{job_id}-{generation}.{form}"
    headers = SECURE | {"content-disposition": f'attachment; filename="{file}"', "cache-control": "no-store"}
    return StreamingResponse(body(), media_type=_TYPES[form], headers=headers)


class _Sink(io.RawIOBase):
    """A file that is taken away while it is written."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._at = 0
        self.waiting = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # of all that may be written, bytes are
        piece = bytes(data)
        self._pieces.append(piece)
        self._at += len(piece)
        self.waiting += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._at

    def drain(self) -> bytes:
        """What was written since."""
        taken, self._pieces, self.waiting = b"".join(self._pieces), [], 0
        return taken
