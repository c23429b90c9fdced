"""What Reader's list of webhooks says of ours: is it there, is it whole, and did everything it sent arrive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from receiver.core.fingerprint import FORM, HEADER

WANTED: Final = frozenset({"job.completed", "job.failed"})
"""Events that tell of an end."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and what to do about it."""

    name: Literal["webhook_missing", "webhook_inactive", "webhook_events_missing", "webhooks_lost"]
    hint: str


@dataclass(frozen=True, slots=True)
class Sent:
    """How often Reader tried to reach us, and how often it gave up or was refused, since the webhook was made."""

    attempts: int = 0
    failed: int = 0


def find_ours(rows: Sequence[Any], url: str) -> list[Mapping[str, Any]]:
    """Of Reader's webhooks, those that point to `url`."""
    return [row for row in rows if isinstance(row, dict) and _alike(str(row.get("url", ""))) == _alike(url)]


def carries(row: Mapping[str, Any]) -> str | None:
    """The fingerprint of the secret that a webhook is to be signed with, where `receiver webhook` has made or changed it."""
    headers = row.get("headers")
    found = [str(value) for name, value in headers.items() if name.lower() == HEADER.lower()] if isinstance(headers, dict) else []
    return found[0] if found and FORM.fullmatch(found[0]) else None


def judge(ours: Sequence[Mapping[str, Any]], url: str) -> list[Finding]:
    """What is wrong with how they are set up."""
    if not ours:
        hint = (
            f"no webhook at Reader points to {url}: `receiver webhook register` makes one "
            "(only jobs submitted through Receiver bring one along)"
        )
        return [Finding("webhook_missing", hint)]
    active = [row for row in ours if row.get("active") is not False]
    if not active:
        return [
            Finding("webhook_inactive", f"Reader's webhook for {url} is switched off: `receiver webhook register` sets it active")
        ]
    told = {event for row in active for event in _list(row.get("events"))}
    if missing := sorted(WANTED - told):
        them = "it" if len(missing) == 1 else "them"
        hint = f"Reader's webhook for {url} is not told of {' and '.join(missing)}: `receiver webhook register` adds {them}"
        return [Finding("webhook_events_missing", hint)]
    return []


def sent(ours: Sequence[Mapping[str, Any]]) -> Sent:
    """Their `deliveryStats`, added up; what is not a number counts as none."""
    stats = [row.get("deliveryStats") for row in ours]
    known = [row for row in stats if isinstance(row, dict)]
    return Sent(
        attempts=sum(_count(row.get("totalAttempts")) for row in known),
        failed=sum(_count(row.get("failedDeliveries")) for row in known),
    )


def lost(before: Sent, now: Sent, *, arrived: int) -> Finding | None:
    """Whether, since the audit before, deliveries failed, or more were sent than the `arrived` ones."""
    failed, ahead = now.failed - before.failed, now.attempts - before.attempts - arrived
    if failed > 0:
        return Finding("webhooks_lost", f"{failed} more of Reader's deliveries to us failed: looking at every job under way")
    if ahead > 0:
        return Finding("webhooks_lost", f"Reader sent {ahead} more deliveries than arrived: looking at every job under way")
    return None


def _alike(url: str) -> tuple[str, ...]:
    """What two spellings of one URL have in common: Reader may write ours in its own way."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return (url,)
    return (parts.scheme, parts.hostname or "", str(port), parts.path.rstrip("/"), parts.query)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0
