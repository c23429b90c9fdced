"""What a delivery is: its body, its headers, and what a fault makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from receiver.sandbox.draws import draw, uuid
from receiver.sandbox.faults import Faults, Hit
from receiver.sandbox.signing import signature
from receiver.sandbox.times import iso
from receiver.sandbox.webhooks import Hook

_AGENT: Final = "Reader-Webhook/1.0"
_RESERVED: Final = frozenset(
    {"content-type", "user-agent", "x-reader-event", "x-reader-delivery", "x-reader-timestamp", "x-reader-signature"}
    | {"host", "connection", "content-length", "transfer-encoding"}
)
"""What a hook's own headers don't replace."""
_ODD_BODIES: Final = (
    b"not json",
    b"[1,2,3]",
    b'{"event":"job.completed"}',
    b'{"jobId":12}',
    '{"jobId":"é'.encode("utf-16"),
)


@dataclass(slots=True)
class Delivery:
    """An event on its way to a hook. `about`: what its draws are about; `at`: when it was, Unix seconds."""

    event: str
    job: str
    hook: Hook
    facts: dict[str, Any]
    about: tuple[object, ...]
    at: float
    attempt: int = 1
    lost: bool = False
    """Whether all its attempts are lost on their way."""
    signed: dict[str, str] | None = None
    """The headers of the first attempt, for who resends them as they were."""


@dataclass(frozen=True, slots=True)
class Letter:
    """What goes over the wire."""

    id: str
    headers: dict[str, str]
    body: bytes
    faults: tuple[str, ...]


def body(delivery: Delivery, faults: Faults) -> bytes:
    """The JSON, by the reading of the documentation that is switched on."""
    said: dict[str, Any] = {}
    event_field = faults.choice("body_event")
    if event_field != "nowhere":
        said[event_field] = delivery.event
    said["timestamp"] = iso(delivery.at)
    outer, _, inner = faults.choice("body_id").rpartition(".")
    facts = {inner: delivery.job, **delivery.facts} if delivery.job else delivery.facts
    said |= {outer: facts} if outer else facts
    return msgspec.json.encode(said)


def letter(delivery: Delivery, faults: Faults, seed: int, wall: float) -> Letter:
    """One attempt, with what the faults make of it. `wall` is the time to sign with, Unix seconds."""
    about = (*delivery.about, delivery.attempt)
    struck: list[str] = []

    def strike(name: str) -> Hit | None:
        hit = faults.strikes(name, *about, subject=f"{delivery.event} {delivery.job}")
        if hit is not None:
            struck.append(name)
        return hit

    content = body(delivery, faults)
    if strike("odd_body"):
        content = _ODD_BODIES[int(draw(seed, "odd", *about) * len(_ODD_BODIES))]
    per_attempt = faults.choice("delivery_id") == "attempt"
    delivery_id = uuid(seed, "delivery", *(about if per_attempt else delivery.about))
    if delivery.signed is not None and faults.choice("signing") == "once":
        signed = delivery.signed
    else:
        signed = _sign(delivery.hook.secret, content, wall, strike)
        delivery.signed = signed
    headers = {
        **{name: value for name, value in delivery.hook.headers.items() if name.lower() not in _RESERVED},
        "Content-Type": "application/json",
        "User-Agent": _AGENT,
        "X-Reader-Event": delivery.event,
        "X-Reader-Delivery": delivery_id,
        **signed,
    }
    if strike("corrupt_body"):
        place = int(draw(seed, "corrupt", *about) * len(content))
        content = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    return Letter(delivery_id, headers, content, tuple(struck))


def _sign(secret: str | None, content: bytes, wall: float, strike: Callable[[str], Hit | None]) -> dict[str, str]:
    if secret is None or strike("unsigned"):
        return {}
    past, future = strike("stale_timestamp"), strike("future_timestamp")
    wall += (future.number() if future else 0) - (past.number() if past else 0)
    if strike("wrong_secret"):
        secret = "not-" + secret
    timestamp = str(int(wall))
    return {"X-Reader-Timestamp": timestamp, "X-Reader-Signature": signature(secret, timestamp, content)}
