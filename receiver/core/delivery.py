"""What a delivery says: raw headers and body in, a `Delivery` out.

A delivery is a cue to look at a job, never the truth about it. So little is asked of the body: one valid job id. Whatever
else it holds, however odd, is kept as it came. A body that does not name exactly one job is quarantined, not refused: it is
authentic, and asking the sender again would bring the same bytes.

Reader does not document its body beyond `jobId`, so the id and the event are looked for in the places such bodies use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final, NamedTuple

from receiver.core.fingerprint import HEADER
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
    """The four Reader headers of one request, as text; None where absent. `webhook`: what our own webhooks carry (fingerprint.py)."""

    event: str | None = None
    delivery_id: str | None = None
    timestamp: str | None = None
    signature: str | None = None
    webhook: str | None = None


class Delivery(NamedTuple):
    """A delivery, understood. `key` and `id_keys` tell whether it is known: what was signed, and its id with its body."""

    body: bytes
    meaning: Meaning
    job_id: str | None
    event: str | None
    reason: str | None
    delivery_id: str | None
    timestamp: int | None
    digest: str
    """Of the body."""
    key: str
    """Known: the same has come before."""
    id_keys: tuple[str, ...]
    """Known with the same digest: the same has come before under this id. Known with another: the id is used again."""

    @property
    def signed(self) -> bool:
        """Whether its signature was verified (it carries the signed timestamp only then)."""
        return self.timestamp is not None

    def key_with_body(self, id_key: str) -> str:
        """What stands for the id and this body, where the id is known with another."""
        return f"{id_key.replace('d', 'e', 1)}:{self.digest}"


JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""What may stand in a URL's path as a job id."""
_DELIVERY_ID: Final = re.compile(r"[\x21-\x7e]{1,200}")
_EVENT: Final = re.compile(r"[\x21-\x7e]{1,64}")

_SPAN, _OVERLAP = 6 * 3600, 600
"""Seconds. Ids are random: led by the span of time they were signed in, new keys touch only the end of a large index. Reader signs
its attempts anew for half a minute, and 600 s is all that may lie between two timestamps that pass at the same moment."""
_DIGEST = 32
"""Hexadecimal digits of a SHA-256 that tell bodies apart. Who could make two alike would have to sign both."""

_NAMED: Final = (("jobId",), ("job_id",), ("data", "jobId"))
"""Fields that can only mean a job."""
_GENERIC: Final = (("data", "id"), ("job", "id"), ("id",))
"""Fields that may mean something else (an event's own id, a page's): weighed only where none of the named ones stands,
unless their value says by its prefix that it is a job's."""
_ELSEWHERE: Final = {place[0] for place in (*_NAMED, *_GENERIC)} - {"jobId"}

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
    HEADER.lower().encode(): "webhook",
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
    event, delivery_id, timestamp = claims.event, claims.delivery_id, claims.timestamp
    if delivery_id is not None and not _DELIVERY_ID.fullmatch(delivery_id):
        delivery_id = None
    document, reason = _parse(body)
    event = _event(document) or (event if event is not None and _EVENT.fullmatch(event) else None)  # the header's is not signed
    # Whatever the header says of it: a body we cannot read must not pass for one that needs no reading.
    job_id = None
    if reason is None:
        job_id, reason = _job_id(document)
        if reason is not None and event is not None and not event.startswith("job."):
            reason = None  # `credit.low` and `session.*` name no job and need none
    if reason is not None:
        meaning = Meaning.UNREADABLE
    elif event is None:
        meaning = Meaning.ENDED  # a job and no word of what happened: looking is always right
    else:
        meaning = _MEANINGS.get(event, Meaning.NOTHING)
    digest = sha256(body).hexdigest()[:_DIGEST]
    if not signed or timestamp is None:
        # Keys of their own: what anybody can send must not make what Reader sends a duplicate.
        signed_at, key = None, f"u:{digest}:{delivery_id or ''}"
    else:
        # The key stands for the signature, which is a function of the two. Led by the time, so that new keys append to the index.
        signed_at, key = int(timestamp), f"s{timestamp}:{digest}"
    keys = id_keys(delivery_id, signed_at)
    return Delivery(body, meaning, job_id, event, reason, delivery_id, signed_at, digest, key, keys)


def _id_keys(delivery_id: str, timestamp: int) -> tuple[str, ...]:
    span, passed = divmod(timestamp, _SPAN)
    key = f"d{span:06}:{delivery_id}"
    # Just before a span ends, of the next one too: what is signed again after it is known by that.
    return (key,) if passed < _SPAN - _OVERLAP else (key, f"d{span + 1:06}:{delivery_id}")


def key_by_id(delivery_id: str | None, timestamp: int | None) -> str | None:
    """Of a signed delivery: the key by which it is known when it is signed anew under the same id."""
    return None if delivery_id is None or timestamp is None else _id_keys(delivery_id, timestamp)[0]


def id_keys(delivery_id: str | None, timestamp: int | None) -> tuple[str, ...]:
    """What `Delivery.id_keys` was of a delivery with this id; `timestamp` is None if it was not signed."""
    if delivery_id is None:
        return ()
    return (f"ud:{delivery_id}",) if timestamp is None else _id_keys(delivery_id, timestamp)


def keys_signed_before(timestamp: float) -> tuple[tuple[str, str], ...]:
    """Ranges (from, up to) that hold only keys of deliveries signed before `timestamp`, and nearly all of those there are."""
    span = f"{int(timestamp) // _SPAN:06}"
    return ("d", f"d{span}"), ("e", f"e{span}"), ("s", f"s{int(timestamp)}")


def _parse(body: bytes) -> tuple[_Members, str | None]:
    """The body's object, or an empty one and why there is none."""
    try:
        # Decoded here: json.loads(bytes) would take UTF-16 and UTF-32 too.
        document = _JSON.decode(body.decode().removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        return _Members(), "too deeply nested" if isinstance(error, RecursionError) else "not JSON in UTF-8"
    if type(document) is not _Members:
        return _Members(), "the top level is not an object"
    return document, None


def _job_id(document: _Members) -> tuple[str | None, str | None]:
    """(job id, None), or (None, why there is no one job)."""
    candidates = _candidates(document)
    ids = {value for value in candidates if type(value) is str and JOB_ID.fullmatch(value)}
    if len(ids) == 1:
        return ids.pop(), None
    if ids:
        return None, "several job ids"
    return None, "the job id is not of the form [A-Za-z0-9_-]{1,128}" if candidates else "no job id"


def _candidates(document: _Members) -> list[Any]:
    if document.keys().isdisjoint(_ELSEWHERE):
        return document.all("jobId")
    named = [value for place in _NAMED if place[0] in document for value in _values(document, place)]
    generic = [_values(document, place) for place in _GENERIC if place[0] in document]
    by_prefix = [value for values in generic for value in values if isinstance(value, str) and value.startswith("job_")]
    # All that stands in a place, for which of two equal keys a reader believes is anybody's guess.
    return named + by_prefix or next(filter(None, generic), [])


def _event(document: _Members) -> str | None:
    """The event's name, fit for a column and a log line; an outlandish one is unknown all the same."""
    for name in ("event", "type"):
        for value in document.all(name):
            if type(value) is str and value:
                return value if _EVENT.fullmatch(value) else ascii(value)[1:-1][:64]
    return None


class _Number(str):
    """A JSON number, kept as its text so that it is not taken for a string."""

    __slots__ = ()


class _Members(dict[str, Any]):
    """A JSON object. A name's later value hides an earlier one here, as in most readers of JSON, but not from `all`."""

    _pairs: list[tuple[str, Any]] | None = None

    def all(self, name: str) -> list[Any]:
        """All the values of a member, but for null."""
        if self._pairs is None:
            value = self.get(name)
            return [] if value is None else [value]
        return [value for key, value in self._pairs if key == name and value is not None]


def _members(pairs: list[tuple[str, Any]]) -> _Members:
    members = _Members(pairs)
    if len(members) < len(pairs):
        members._pairs = pairs  # noqa: SLF001 - its own
    return members


def _values(document: _Members, place: tuple[str, ...]) -> list[Any]:
    """Every value at `place` that is not null, all duplicates included."""
    values = document.all(place[0])
    for name in place[1:]:
        values = [value for item in values if isinstance(item, _Members) for value in item.all(name)]
    return values


_JSON: Final = json.JSONDecoder(
    object_pairs_hook=_members,
    # Numbers stay text: nobody needs them, and a number of 5,000 digits is an error (or, without a limit, quadratic work) as an int.
    parse_int=_Number,
    parse_float=_Number,
    parse_constant=_Number,
)
