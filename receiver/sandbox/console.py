"""One line for each thing that happens, for people who watch the sandbox run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from receiver.sandbox.ledger import Happening

_GOOD, _BAD, _ODD, _QUIET = "green", "red", "yellow", "dim"


def line(happening: Happening) -> Text:
    """The happening as coloured text, without a newline."""
    told = Text.assemble((datetime.fromtimestamp(happening.at, UTC).strftime("%H:%M:%S.%f")[:-3], _QUIET), " ")
    row = happening.row
    match happening.kind:
        case "request":
            target = row["path"] + (f"?{row['query']}" if row["query"] else "")
            told.append(f"{'request':<9}{row['method']:<6} {target}  ", style="cyan")
            _status(told, row["status"], nothing="no answer")
            _fault(told, row)
        case "delivery":
            told.append(f"{'webhook':<9}{row['event']} {row['job']}  attempt {row['attempt']}  ", style="magenta")
            _status(told, row["status"], nothing="not delivered")
            _fault(told, row)
        case "job":
            told.append(f"{'job':<9}{row['job']} ", style="blue")
            told.append(f"{row['status']}  {row['completed']}/{row['total']}", style=_of(row["status"]))
        case "faults":
            set_now = ", ".join(f"{name}={value}" for name, value in row.items()) or "none"
            told.append(f"{'faults':<9}{set_now}", style=_ODD)
    return told


def _status(told: Text, status: int | None, *, nothing: str) -> None:
    told.append(str(status or nothing), style=_GOOD if status is not None and status < 400 else _BAD)


def _fault(told: Text, row: dict[str, Any]) -> None:
    if row["fault"]:
        told.append(f"  fault: {row['fault']}", style=_ODD)


def _of(status: str) -> str:
    return {"completed": _GOOD, "failed": _BAD, "cancelled": _ODD}.get(status, _QUIET)
