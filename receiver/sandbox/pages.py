"""What a page says, made from the seed and its URL whenever somebody asks: nothing is kept.

A page is a unique head and then lines cut out of one seeded block: 100 KB are a slice, not a computation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Final, Protocol

from receiver.sandbox.draws import between, draw, token
from receiver.sandbox.options import Options

_WORDS: Final = """
reader page markdown content link heading table figure note section source archive index query result quiet
river stone lantern harbour meadow copper orchard winter signal paper garden window bridge letter and or the
of with under over near beyond across before after while until because
"""
_WIDTH: Final = 80
"""Bytes per line, its newline among them."""
_WIRE_WIDTH: Final = _WIDTH + 1  # in JSON a newline is two bytes
_LINES: Final = 1024

_ODD: Final = 'Odd: NUL \x00, lone \ud800, é, 漢字, 😀, \u2028, \x7f, "quoted", back\\slash, </script>\n\n'
"""All that JSON lets a string hold and that stores and parsers stumble over."""


class Text(Protocol):
    """What a page says, wherever it comes from."""

    @property
    def title(self) -> str:
        """Its title."""
        ...

    def markdown(self) -> bytes:
        """As the inside of a JSON string."""
        ...

    def html(self) -> bytes:
        """As the inside of a JSON string."""
        ...

    def sha256(self) -> str:
        """Of the markdown."""
        ...


@dataclass(frozen=True, slots=True)
class Page:
    """One page's text: `head`, then `lines` lines of the block from line `start` on, then `tail`."""

    block: Block
    title: str
    head: str
    start: int
    lines: int
    tail: str

    def markdown(self) -> bytes:
        """The text as the inside of a JSON string."""
        return b"".join((_inside(self.head), self.block.wire_lines(self.start, self.lines), self.tail.encode()))

    def html(self) -> bytes:
        """The same in a page's dress, as the inside of a JSON string."""
        return b"<!doctype html><title>" + self.title.encode() + b"</title><pre>" + self.markdown() + b"</pre>"

    def sha256(self) -> str:
        """Of the markdown in UTF-8 (a lone surrogate as the three bytes it would have)."""
        hashed = sha256(self.head.encode("utf-8", "surrogatepass"))
        for piece in self.block.raw_lines(self.start, self.lines):
            hashed.update(piece)
        hashed.update(self.tail.encode())
        return hashed.hexdigest()


class Block:
    """The seeded lines all pages are cut from, as text and as JSON; twice over, so that no cut wraps."""

    def __init__(self, seed: int) -> None:
        lines = [_line(seed, number) for number in range(_LINES)]
        self._raw = "".join(f"{line}\n" for line in lines * 2).encode()
        self._wire = "".join(f"{line}\\n" for line in lines * 2).encode()

    def raw_lines(self, start: int, lines: int) -> list[bytes]:
        """The text of so many lines, in pieces."""
        whole, rest = divmod(lines, _LINES)
        one = self._raw[start * _WIDTH : (start + _LINES) * _WIDTH]
        return [one] * whole + [one[: rest * _WIDTH]]

    def wire_lines(self, start: int, lines: int) -> bytes:
        """The same as the inside of a JSON string."""
        whole, rest = divmod(lines, _LINES)
        if not whole:
            return self._wire[start * _WIRE_WIDTH : (start + rest) * _WIRE_WIDTH]
        one = self._wire[start * _WIRE_WIDTH : (start + _LINES) * _WIRE_WIDTH]
        return one * whole + one[: rest * _WIRE_WIDTH]


@lru_cache(maxsize=4)
def block(seed: int) -> Block:
    """The block of a seed (330 KB; a few are kept, for tests that run several sandboxes)."""
    return Block(seed)


def page(options: Options, url: str) -> Page:
    """The page behind a URL, always the same."""
    seed = options.seed
    mark = token(seed, 12, "page", url)
    title = f"Page {mark}"
    head = f"# {title}\n\nSource: {url}\n\n"
    if options.text == "odd":
        head += _ODD
    low, high = options.page_size
    bytes_wanted = int(between(low, high, seed, "page-size", url))
    if options.huge_pages and draw(seed, "huge", url) < options.huge_pages:
        bytes_wanted = int(options.huge_size)
    room = max(0, bytes_wanted - len(head.encode("utf-8", "surrogatepass")))
    lines, rest = divmod(room, _WIDTH)
    return Page(block(seed), title, head, int(draw(seed, "start", url) * _LINES), lines, "." * rest)


def _line(seed: int, number: int) -> str:
    words: list[str] = []
    known = _WORDS.split()
    length = 0
    while length < _WIDTH:
        word = known[int(draw(seed, "word", number, len(words)) * len(known))]
        words.append(word)
        length += len(word) + 1
    return " ".join(words)[: _WIDTH - 1]


def _inside(text: str) -> bytes:
    return json.dumps(text)[1:-1].encode()
