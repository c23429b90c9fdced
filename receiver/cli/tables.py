"""Tables for a terminal, of words that may come from anywhere."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.table import Column, Table
from rich.text import Text

_STYLE = {
    **dict.fromkeys(("completed", "accepted", "delivered"), "green"),
    **dict.fromkeys(("failed", "quarantined", "dead", "parked"), "red"),
    **dict.fromkeys(("cancelled", "ignored", "paused"), "yellow"),
    **dict.fromkeys(("processing", "queued", "pending"), "cyan"),
}


def listing(columns: dict[str, list[str]], *, width: int, dispensable: Sequence[str], right: Collection[str] = ()) -> Table:
    """The columns that fit, whole: an id is there to be copied, and half a word tells nothing. `dispensable`: what goes first."""
    widths = {name: max(len(name), *map(len, cells)) + 2 for name, cells in columns.items()}
    for name in dispensable:
        if sum(widths.values()) > width:
            del widths[name]
    heads = (
        Column(name, no_wrap=True, min_width=widths[name] - 2, justify="right" if name in right else "left") for name in widths
    )
    table = Table(*heads, box=None, header_style="bold")
    for row in zip(*(columns[name] for name in widths), strict=True):
        table.add_row(*(Text(shown(cell), _STYLE.get(cell, "")) for cell in row))
    return table


def facts(rows: Sequence[tuple[str, str]]) -> Table:
    """A name and what there is to say of it, one below another."""
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(shown(value)))
    return table


def shown(text: str) -> str:
    """Without what would move the cursor, or worse: a terminal obeys what it prints."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
