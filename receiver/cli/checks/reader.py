"""Reader: does it answer, does the key work, do our clocks agree, is there anything left to spend, is our webhook well."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from receiver.cli.asking import Aside, endpoint, reader
from receiver.cli.checks.database import Known, Past
from receiver.cli.checks.line import Line, fail, ok, warn
from receiver.cli.common import ago
from receiver.clock import Clock
from receiver.core.audit import carries, find_ours, judge, sent
from receiver.core.fingerprint import fingerprint
from receiver.errors import ReceiverError
from receiver.reader.shapes import RPM_BY_TIER
from receiver.settings import Settings
from receiver.telling import count

_DEADLINE: Final = 5.0
_PATIENCE: Final = 7.0
"""Seconds for both answers together, with what is asked again: somebody sits and waits."""
_SOON: Final = 2.0
_OFF: Final = 10.0
"""Seconds that clocks may differ by without a word: Reader tells its own in whole seconds, and the way there takes some."""
_LITTLE: Final = 0.05

_HELD: Final = "wait: this is asked for by Reader, and all requests from here wait"
_CHECK: Final = "check the network and READER_BASE_URL; what is sent meanwhile is stored, and looked at later"
_KEY: Final = "set READER_API_KEY to a key that works, here and where the server runs; it goes on by itself"


async def look(settings: Settings, clock: Clock, known: Known) -> list[Line]:
    """Two requests, outside of the shared budget, given up after a while. None without a key."""
    if settings.reader_api_key is None:
        return []
    aside = Aside()
    lines: list[Line] = []
    tier: str | None = None
    try:
        async with (
            asyncio.timeout(_PATIENCE),
            reader(settings, clock, aside=(aside := await _aside(known)), deadline=_DEADLINE) as client,
        ):
            try:
                told = await client.credits()
                tier = str(told.get("tier") or "unknown")
                lines += [
                    ok("reader", f"{settings.reader_base_url} answers, the key works, and its tier is {tier}"),
                    _credits(told),
                ]
                rows = await client.webhooks()
                lines += _webhook(settings, rows)
            finally:
                if client.ahead is not None:
                    lines.insert(1, _clock(client.ahead, settings.receiver_tolerance))
    except (ReceiverError, TimeoutError) as error:
        place, name = (len(lines), "webhook") if tier is not None else (0, "reader")
        if aside.trouble == "rate_limited":
            lines.insert(place, warn(name, str(error), _HELD))
        elif aside.trouble == "unauthenticated":
            lines.insert(place, fail(name, str(error).partition(". Set ")[0], _KEY))
        else:
            why = (
                error.__cause__ or error if isinstance(error, ReceiverError) else f"Reader did not answer within {_PATIENCE:g} s"
            )
            lines.insert(place, fail(name, f"{settings.reader_base_url}: {why}", _CHECK))
    return [*lines, *_budget(settings, await known(), tier)]


async def _aside(known: Known) -> Aside:
    """That waits where all are told to, as far as the database tells in time."""
    try:
        async with asyncio.timeout(_SOON):
            past = await known()
    except TimeoutError:
        past = None
    return Aside(past.pauses.get("rate_limited") if past else None)


def _clock(ahead: float, tolerance: float) -> Line:
    told = f"this machine's is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} Reader's"
    if abs(ahead) >= tolerance - _OFF:
        return fail(
            "clock", told, f"set it (NTP): deliveries signed more than {tolerance:g} s from our time are refused, all of them"
        )
    if abs(ahead) > _OFF:
        return warn("clock", told, f"set it (NTP): from {tolerance:g} s on, every delivery is refused")
    return ok("clock", "agrees with Reader's")


def _credits(told: dict[str, Any]) -> Line:
    balance, limit = told.get("balance"), told.get("limit")
    if not isinstance(balance, int | float):
        return ok("credits", "Reader tells no balance")
    words = f"{balance:,} of {limit:,} left" if isinstance(limit, int | float) else f"{balance:,} left"
    until = f" until {told['resetAt']}" if isinstance(told.get("resetAt"), str) else ""
    if balance <= 0:
        return fail("credits", f"none are left{until}", "jobs are refused (402) until then: buy some at Reader")
    if isinstance(limit, int | float) and balance < limit * _LITTLE:
        return warn("credits", words + until, "jobs are refused (402) once they are spent")
    return ok("credits", words)


def _budget(settings: Settings, past: Past | None, tier: str | None) -> Iterator[Line]:
    allowed = settings.rpm or (RPM_BY_TIER.get((tier or "").lower()) if tier else None) or (past.allowed if past else None)
    if allowed is None:
        return
    share = f"{allowed * settings.receiver_rpm_share:g} of {allowed} requests a minute are ours"
    if past is None:
        yield ok("budget", share)
        return
    share += f", {past.figures.in_use} in use"
    if not past.pauses:
        yield ok("budget", share)
    for name, pause in past.pauses.items():
        hint = _KEY if name == "unauthenticated" else "wait, it goes on by itself" if name == "rate_limited" else "see `credits`"
        yield warn("budget", f"{share}; nothing is asked for another {pause.wait:.0f} s: {pause.paused}", hint)


def _webhook(settings: Settings, rows: Sequence[Any]) -> Iterator[Line]:
    if settings.receiver_public_url is None:
        known = [f"{row.get('url')}" for row in rows if isinstance(row, dict)]
        if known:
            hint = "set RECEIVER_PUBLIC_URL to where the world reaches us, so that it is known which one is ours"
            yield warn("webhook", f"Reader sends to {', '.join(known)}", hint)
        else:
            hint = "set RECEIVER_PUBLIC_URL, then run `receiver webhook register`"
            yield warn("webhook", "Reader has no webhooks: ends of jobs are found by polling alone", hint)
        return
    url = endpoint(settings, None)
    ours = find_ours(rows, url)
    findings = judge(ours, url)
    for finding in findings:
        said, _, do = finding.hint.partition(": ")
        if finding.name == "webhook_missing" and (near := _near(rows, url)):
            said += f", but one to {near}"
            do = "is that an old address? `receiver webhook register` makes one, `receiver webhook delete` ends one"
        yield fail("webhook", said, do)
    if findings:
        return
    yield _registered(settings, ours, url)
    yield _deliveries(ours)


def _registered(settings: Settings, ours: Sequence[Any], url: str) -> Line:
    marks = {carries(row) for row in ours if row.get("active") is not False} - {None}
    known = {fingerprint(secret) for secret in settings.secrets}
    if marks and known and not marks & known:
        names = ", ".join(sorted(str(mark) for mark in marks))
        return fail(
            "webhook",
            f"Reader signs for {url} with the secret {names}, which is not set here",
            "set READER_WEBHOOK_SECRET to that one, or run `receiver webhook rotate`",
        )
    if len(ours) > 1:
        several = f"{len(ours)} webhooks send to {url}: everything comes twice, and counts once"
        return warn("webhook", several, "`receiver webhook list`, and delete what is not needed")
    return ok("webhook", f"Reader sends every end of a job to {url}")


def _deliveries(ours: Sequence[Any]) -> Line:
    total = sent(ours)
    stats = [row["deliveryStats"] for row in ours if isinstance(row.get("deliveryStats"), dict)]
    newest = max(
        (each for each in stats if each.get("lastDeliveryAt")), key=lambda each: str(each["lastDeliveryAt"]), default=None
    )
    if newest is None or not total.attempts:
        return ok("deliveries", "Reader has sent none yet")
    status = newest.get("lastDeliveryStatus")
    last = f"the last one {_when(newest['lastDeliveryAt'])} was answered {status}" if status else "nobody answered the last one"
    told = f"{count(total.attempts, 'attempt')}, {count(total.failed, 'delivery', 'deliveries')} given up; {last}"
    if type(status) is int and 200 <= status < 300:
        if total.failed * 20 > total.attempts:
            return warn("deliveries", told, "the poller covers what was given up; see why we were not reached")
        return ok("deliveries", told)
    if status in _WRONG:
        return fail("deliveries", told, _WRONG[status])
    # That may be over: what does not work now is told by other lines.
    return warn("deliveries", told, "was the server down, or is it not to be reached from outside? See `reachable`")


# Set up wrongly: that does not pass by itself.
_WRONG: Final[dict[object, str]] = {
    401: "Reader signs with another secret than the server accepts: `receiver webhook rotate` puts both right",
    404: "the path is not our endpoint's: RECEIVER_PUBLIC_URL, and what a proxy makes of it",
    405: "something else than our endpoint answers there: RECEIVER_PUBLIC_URL, and what a proxy makes of it",
    413: "a proxy, or RECEIVER_MAX_BODY, takes no body of that size",
}


def _near(rows: Sequence[Any], url: str) -> str | None:
    """A webhook that may be meant for us, and points elsewhere: to our path on another host, or our host with another path."""
    host, path = url.split("/")[2], "/" + url.split("/", 3)[3]
    for row in rows:
        other = str(row.get("url", "")) if isinstance(row, dict) else ""
        if f"//{host}/" in f"{other}/" or other.rstrip("/").endswith(path):
            return other
    return None


def _when(text: Any) -> str:
    try:
        return ago(datetime.fromisoformat(text).timestamp())
    except (TypeError, ValueError):
        return f"at {text}"
