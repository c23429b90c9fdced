"""A job's page, read as it comes: each result a raw slice, the envelope at the end.

A page can be tens of megabytes. Parsing it whole would stall the endpoint for tens of milliseconds, even on another thread, for
the parser holds the interpreter. So the bytes are only *cut* here, in the small pieces in which they arrive, and judging what was cut
is msgspec's: each slice, and the envelope with its results taken out, must be valid JSON by itself, or the page is refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from receiver.errors import ReaderUnavailableError
from receiver.reader.shapes import Job, Pagination

_STRUCTURE: Final = re.compile(rb'[{}\[\],:"]')
_NESTED: Final = re.compile(rb'[{}\[\]"]')
"""All that matters within a result."""
# In a JSON text, each escape: two halves of a character, half a one (a group of its own), any other.
_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_OPEN, _CLOSE = b"{[", b"}]"
_BACKSLASH: Final = 0x5C
_QUOTE: Final = 0x22
_DEEPEST: Final = 500
"""Nested brackets: half of what Python's parsers go down to, so that whoever reads a result later has room. Millions of them
would also cost as many list entries here."""


@dataclass(frozen=True, slots=True)
class Head:
    """What is told of a page besides its results. `document`: the job's JSON object without `results`, values as they came."""

    job: Job
    pagination: Pagination
    document: bytes


@dataclass(frozen=True, slots=True)
class Glimpse:
    """The two members of a result that we use."""

    url: str
    error: str | None


class _ResultHead(msgspec.Struct):
    url: Any = None
    error: Any = None


class _Envelope(msgspec.Struct):
    data: msgspec.Raw
    pagination: Pagination
    success: bool = True


class PageCutter:
    """Feed it the body in pieces; it returns the results as they complete. Then `finish` for the envelope."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0  # scanned up to here
        self._from = 0  # what is not cut off yet begins here
        self._envelope = bytearray()
        self._stack: list[int] = []  # the open brackets
        self._keys: list[bytes] = []  # of each open object, the key at hand
        self._string_from = -1  # where the string at hand began
        self._in_results = False
        self._seen_results = False
        self._count = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The results that `piece` completes, each one's exact bytes. Raises `ReaderUnavailableError` where it is not JSON."""
        self._buffer += piece
        found: list[bytes] = []
        while True:
            if self._string_from >= 0:
                end = self._buffer.find(b'"', self._at)
                if end < 0:
                    self._at = len(self._buffer)
                    break  # the string goes on in the next piece
                if self._escaped(end):
                    self._at = end + 1
                    continue
                if not self._in_results and self._stack and self._stack[-1] == 0x7B:
                    self._keys[-1] = self._pending_key(end)
                self._string_from, self._at = -1, end + 1
            marks = _NESTED if self._in_results and len(self._stack) > 3 else _STRUCTURE
            match = marks.search(self._buffer, self._at)
            if match is None:
                self._at = len(self._buffer)
                break
            start = match.start()
            self._at = start + 1
            if self._buffer[start] == _QUOTE:
                self._string_from = start
            else:
                self._step(match[0], start, found)
        # Cut off what is done with, but only here: once per piece.
        if not self._in_results:
            self._envelope += self._buffer[self._from : self._at if self._string_from < 0 else self._string_from]
            self._from = self._at if self._string_from < 0 else self._string_from
        del self._buffer[: self._from]
        self._at -= self._from
        if self._string_from >= 0:
            self._string_from -= self._from
        self._from = 0
        return found

    def finish(self) -> Head:
        """The envelope. Raises `ReaderUnavailableError` if the body is truncated, or not a job's page."""
        if self._stack or self._string_from >= 0:
            raise ReaderUnavailableError("Reader's answer ended midway")
        self._envelope += self._buffer
        try:
            self._envelope.decode()  # not all strings are looked into below
            # Half a surrogate pair, where somebody cut a text in two: JSON by RFC 8259, but not to msgspec.
            body = _ESCAPE.sub(lambda escape: rb"\ufffd" if escape[1] else escape[0], self._envelope)
            envelope = msgspec.json.decode(body, type=_Envelope)
            if not envelope.success:
                raise ReaderUnavailableError("Reader answered 200 with success: false")
            members = msgspec.json.decode(envelope.data, type=dict[str, msgspec.Raw])
            if bytes(members.pop("results", msgspec.Raw(b"null"))) != (b"[]" if self._seen_results else b"null"):
                raise ReaderUnavailableError("Reader's answer has its results where they are not looked for")
            return Head(
                msgspec.json.decode(envelope.data, type=Job),
                envelope.pagination,
                msgspec.json.encode(members),
            )
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ReaderUnavailableError(f"Reader's answer is not a job's page: {error}") from error

    def _escaped(self, quote: int) -> bool:
        """Whether an odd number of backslashes stands before it, in its string."""
        if self._buffer[quote - 1] != _BACKSLASH:
            return False
        begin, size = self._string_from + 1, 64
        while True:  # looks no further back than the run is long, or some times that
            run = self._buffer[max(begin, quote - size) : quote]
            slashes = len(run) - len(run.rstrip(b"\\"))
            if slashes < len(run) or quote - size <= begin:
                return slashes % 2 == 1
            size *= 8

    def _pending_key(self, end: int) -> bytes:
        return bytes(self._buffer[self._string_from + 1 : end])

    def _step(self, mark: bytes, at: int, found: list[bytes]) -> None:
        if mark in _OPEN:
            self._open(mark, at)
        elif mark in _CLOSE:
            if not self._stack or self._stack[-1] != (0x7B if mark == b"}" else 0x5B):
                raise ReaderUnavailableError("Reader's answer is not JSON")
            if self._in_results and len(self._stack) == 3:
                self._cut(at, found, last=True)
                self._in_results = False
            self._stack.pop()
            if not self._in_results and mark == b"}":
                self._keys.pop()
        elif mark == b"," and self._in_results and len(self._stack) == 3:
            self._cut(at, found, last=False)
            self._from = at + 1

    def _open(self, mark: bytes, at: int) -> None:
        if len(self._stack) == _DEEPEST:
            raise ReaderUnavailableError("Reader's answer is nested too deeply")
        if mark == b"[" and self._keys == [b"data", b"results"] and len(self._stack) == 2 and not self._in_results:
            self._enter_results(at)
        self._stack.append(mark[0])
        if not self._in_results and mark == b"{":
            self._keys.append(b"")

    def _enter_results(self, at: int) -> None:
        if self._seen_results:
            raise ReaderUnavailableError("Reader's answer has its results twice")
        self._seen_results = self._in_results = True
        self._envelope += self._buffer[self._from : at + 1]
        self._from = at + 1

    def _cut(self, at: int, found: list[bytes], *, last: bool) -> None:
        piece = bytes(self._buffer[self._from : at]).strip(b" \t\r\n")
        self._from = at
        if piece:
            found.append(piece)
            self._count += 1
        elif not last or self._count:
            raise ReaderUnavailableError("Reader's answer is not JSON: a comma too many in its results")


def glimpse(result: bytes) -> Glimpse:
    """Look into one result, checking that it is JSON. Raises `ReaderUnavailableError` if it is not."""
    try:
        result.decode()  # msgspec does not look into the strings that it skips
        try:
            head = msgspec.json.decode(result, type=_ResultHead)
        except msgspec.DecodeError:
            value = loads(result)
            # Not an object: kept all the same.
            head = _ResultHead(value.get("url"), value.get("error")) if isinstance(value, dict) else _ResultHead()
        return Glimpse(_text(head.url) or "", _text(head.error) or None)
    except (ValueError, RecursionError) as error:
        raise ReaderUnavailableError(f"a result in Reader's answer is not JSON: {error}") from error


def loads(result: bytes) -> Any:
    """A second opinion on a result. Raises `ValueError` or `RecursionError`.

    msgspec refuses half a surrogate pair, and numbers beyond its range, which are JSON by RFC 8259 and do occur on web pages.
    """
    return json.loads(result.decode(), parse_int=_whole, parse_constant=_not_json)


def _whole(digits: str) -> float:
    return int(digits) if len(digits) < 4000 else float(digits)  # int() refuses more than 4300


def _not_json(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _text(value: Any) -> str | None:
    if value is None or value is False:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    # A copy to search and show by; PostgreSQL's text takes neither of these. The result itself is kept as it came.
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
