"""What a delivery says: raw headers and body in, a `Delivery` out.

A delivery is a cue to look at a job, never the truth about it. So little is asked of the body: one valid job id. Whatever
else it holds, however odd, is kept as it came. A body that does not name exactly one job is quarantined, not refused: it is
authentic, and asking the sender again would bring the same bytes.

Reader does not document its body beyond `jobId`, so the id and the event are looked for in the places such bodies use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final, NamedTuple

from receiver.errors import SignatureError


class Meaning(StrEnum):
    """What a delivery asks of us."""

    ENDED = "ended"
    """The job may have reached a terminal state: look at once."""
    ALIVE = "alive"
    """The job exists and runs: know of it, look in due time."""
    NOTHING = "nothing"
    """Not about a job, or of a kind unknown to us: kept, ignored."""
    UNREADABLE = "unreadable"
    """Names no job, or several: kept, quarantined."""


class Claims(NamedTuple):
    """The four Reader headers of one request, as text; None where absent."""

    event: str | None = None
    delivery_id: str | None = None
    timestamp: str | None = None
    signature: str | None = None


class Delivery(NamedTuple):
    """A delivery, understood. `keys` identify it: what was signed, and its id with its body."""

    body: bytes
    meaning: Meaning
    job_id: str | None
    event: str | None
    reason: str | None
    delivery_id: str | None
    timestamp: int | None
    keys: tuple[str, ...]

    @property
    def signed(self) -> bool:
        """Whether its signature was verified (it carries the signed timestamp only then)."""
        return self.timestamp is not None

    @property
    def id_keys(self) -> tuple[str, ...]:
        """What its keys with an id have in common with those of another body under the same id."""
        return () if self.delivery_id is None else tuple(key[:-_DIGEST] for key in self.keys if key[0] in "du")


JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""What may stand in a URL's path as a job id."""
_DELIVERY_ID: Final = re.compile(r"[\x21-\x7e]{1,200}")
_EVENT: Final = re.compile(r"[\x21-\x7e]{1,64}")

_SPAN, _OVERLAP = 6 * 3600, 600
"""Seconds. Ids are random: led by the span of time they were signed in, new keys touch only the end of a large index. Reader signs
its attempts anew for half a minute, and 600 s is all that may lie between two timestamps that pass at the same moment."""
_DIGEST = 64

_NAMED: Final = (("jobId",), ("job_id",), ("data", "jobId"))
"""Fields that can only mean a job."""
_GENERIC: Final = (("data", "id"), ("job", "id"), ("id",))
"""Fields that may mean something else (an event's own id, a page's): weighed only where none of the named ones stands,
unless their value says by its prefix that it is a job's."""

_MEANINGS: Final = {
    "job.completed": Meaning.ENDED,
    "job.failed": Meaning.ENDED,
    "job.started": Meaning.ALIVE,
    "job.page": Meaning.ALIVE,
}

_HEADERS: Final = {
    b"x-reader-event": "event",
    b"x-reader-delivery": "delivery_id",
    b"x-reader-timestamp": "timestamp",
    b"x-reader-signature": "signature",
}


def read_headers(raw: Iterable[tuple[bytes, bytes]]) -> Claims:
    """The Reader headers among `raw` (ASGI: lower-case names).

    Raises `SignatureError` where one comes twice, equal or not: which of them a proxy or a library before us has believed
    cannot be known.
    """
    found: dict[str, str] = {}
    for name, value in raw:
        field = _HEADERS.get(name)
        if field is None:
            continue
        if field in found:
            raise SignatureError("duplicate_header", f"{name.decode('ascii')} came twice")
        found[field] = value.decode("latin-1")
    return Claims(**found)


def understand(body: bytes, claims: Claims, *, signed: bool) -> Delivery:
    """Read a delivery whose signature is verified, or that is let in unsigned (`signed=False`). Raises nothing."""
    delivery_id = claims.delivery_id if _DELIVERY_ID.fullmatch(claims.delivery_id or "") else None
    hint = claims.event if _EVENT.fullmatch(claims.event or "") else None  # not signed
    document, unreadable = _parse(body)
    event = _event(document) or hint
    job_id, reason = _job_id(document)
    if unreadable is not None:
        reason = unreadable  # whatever the header says of it: a body we cannot read must not pass for one that needs no reading
    elif event is not None and not event.startswith("job."):
        reason = None  # `credit.low` and `session.*` name no job and need none
    if reason is not None:
        meaning = Meaning.UNREADABLE
    elif event is None:
        meaning = Meaning.ENDED  # a job and no word of what happened: looking is always right
    else:
        meaning = _MEANINGS.get(event, Meaning.NOTHING)
    return Delivery(
        body=body,
        meaning=meaning,
        job_id=job_id,
        event=event,
        reason=reason,
        delivery_id=delivery_id,
        timestamp=int(claims.timestamp) if signed and claims.timestamp is not None else None,
        keys=tuple(_keys(body, delivery_id, claims.timestamp if signed else None)),
    )


def _keys(body: bytes, delivery_id: str | None, timestamp: str | None) -> Iterator[str]:
    digest = sha256(body).hexdigest()
    if timestamp is not None:
        # Stands for the signature, which is a function of the two. Led by the time, so that new keys append to the index.
        yield f"s{timestamp}:{digest}"
        if delivery_id is not None:
            # Just before a span ends, of the next one too: what is signed again after it is known by that.
            for span in sorted({int(timestamp) // _SPAN, (int(timestamp) + _OVERLAP) // _SPAN}):
                yield f"d{span:06}:{delivery_id}:{digest}"
    else:
        # Keys of their own: what anybody can send must not make what Reader sends a duplicate.
        yield f"u{delivery_id or ''}:{digest}"


def keys_signed_before(timestamp: float) -> tuple[tuple[str, str], ...]:
    """Ranges (from, up to) that hold only keys of deliveries signed before `timestamp`, and nearly all of those there are."""
    return ("d", f"d{int(timestamp) // _SPAN:06}"), ("s", f"s{int(timestamp)}")


def _parse(body: bytes) -> tuple[_Members, str | None]:
    """The body's object, or an empty one and why there is none."""
    try:
        # Decoded here: json.loads(bytes) would take UTF-16 and UTF-32 too.
        document = _JSON.decode(body.decode().removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        return _Members(), "too deeply nested" if isinstance(error, RecursionError) else "not JSON in UTF-8"
    if not isinstance(document, _Members):
        return _Members(), "the top level is not an object"
    return document, None


def _job_id(document: _Members) -> tuple[str | None, str | None]:
    """(job id, None), or (None, why there is no one job)."""
    named = [value for place in _NAMED if place[0] in document for value in _values(document, place)]
    generic = [_values(document, place) for place in _GENERIC if place[0] in document]
    by_prefix = [value for values in generic for value in values if isinstance(value, str) and value.startswith("job_")]
    # All that stands in a place, for which of two equal keys a reader believes is anybody's guess.
    candidates = named + by_prefix or next(filter(None, generic), [])
    if not candidates:
        return None, "no job id"
    ids = {value for value in candidates if type(value) is str and JOB_ID.fullmatch(value)}
    if len(ids) > 1:
        return None, "several job ids"
    if not ids:
        return None, "the job id is not of the form [A-Za-z0-9_-]{1,128}"
    return ids.pop(), None


def _event(document: _Members) -> str | None:
    """The event's name, fit for a column and a log line; an outlandish one is unknown all the same."""
    told = [value for name in ("event", "type") for value in document.get(name, ()) if type(value) is str and value]
    if not told:
        return None
    return told[0] if _EVENT.fullmatch(told[0]) else ascii(told[0])[1:-1][:64]


class _Number(str):
    """A JSON number, kept as its text so that it is not taken for a string."""

    __slots__ = ()


class _Members(dict[str, list[Any]]):
    """A JSON object with all the values of each member, but for null: a later duplicate does not hide an earlier one."""

    __slots__ = ()


def _members(pairs: list[tuple[str, Any]]) -> _Members:
    members = _Members()
    for name, value in pairs:
        if value is not None:
            members.setdefault(name, []).append(value)
    return members


def _values(document: _Members, place: tuple[str, ...]) -> list[Any]:
    """Every value at `place` that is not null, all duplicates included."""
    values = document.get(place[0], [])
    for name in place[1:]:
        values = [value for item in values if isinstance(item, _Members) for value in item.get(name, ())]
    return values


_JSON: Final = json.JSONDecoder(
    object_pairs_hook=_members,
    # Numbers stay text: nobody needs them, and a number of 5,000 digits is an error (or, without a limit, quadratic work) as an int.
    parse_int=_Number,
    parse_float=_Number,
    parse_constant=_Number,
)
