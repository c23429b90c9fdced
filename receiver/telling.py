"""A job's timeline in words: one short sentence for each moment, the same wherever it is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from receiver.store.timeline import Moment


def tell(moment: Moment) -> str:
    """The sentence. It names no time, which is shown beside it."""
    said = _WORDS[moment.what](moment.detail)
    return said if moment.count == 1 else f"{said} ({moment.count} ×)"


def duration(seconds: float) -> str:
    """As people say it: `40 ms`, `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 0.095:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 page`, `1,200 pages`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


_CUES: Final = {"webhook": "a webhook", "stream": "Reader's stream", "poll": "our own look"}
_SOURCES: Final = {
    "submit": "Reader took it",
    "track": "known from here on: somebody asked to track it",
    "webhook": "known from here on, by a webhook",
    "stream": "known from here on, by Reader's stream",
}
_WISHES: Final = {"look": "somebody asked for a look", "cancel": "somebody asked Reader to cancel it"}


def _submitted(said: dict[str, Any]) -> str:
    what = "submitted" if said["urls"] is None else f"submitted, {count(said['urls'], 'URL')}"
    return what if said["attempts"] == 1 else f"{what}; answered at attempt {said['attempts']}"


def _asked(said: dict[str, Any]) -> str:
    return _WISHES.get(said["wish"], "somebody asked Reader to retry its failed URLs")


def _webhook(said: dict[str, Any]) -> str:
    what = f"webhook {said['event'] or 'without an event'}: {said['outcome']}"
    if said["reason"]:
        what += f", {said['reason']}"
    again = said["times"] - 1
    return what if again < 1 else f"{what}; came {count(again, 'more time')}, known as a duplicate"


def _looked(said: dict[str, Any]) -> str:
    total = f" of {said['total']:,}" if said["total"] else ""
    because = "" if said["by"] == "poll" else f", because of {_CUES[said['by']]}"
    return f"looked{because}: still running, {said['completed']:,}{total}"


def _page(said: dict[str, Any]) -> str:
    first = said["skip"]
    if not said["rows"]:
        return "page read: no results on it"
    return f"results {first + 1:,}–{first + said['rows']:,} stored"


def _settled(said: dict[str, Any]) -> str:
    failed = f", {said['failed']:,} with an error" if said["failed"] else ""
    doubt = "" if said["verified"] else "; unverified: rows may have moved while they were read"
    requests = count(said["requests"], "request")
    return f"settled: {count(said['results'], 'result')}{failed}, in {requests} and {duration(said['took'])}{doubt}"


def _hook(said: dict[str, Any]) -> str:
    hook, attempts = said["hook"], said["attempts"]
    answer = f" ({said['status']})" if said["status"] else ""
    if said["state"] == "delivered":
        after = "" if attempts == 1 else f" at attempt {attempts}"
        return f"hook {hook} took it{after}{answer}, {duration(said['took'])} after it was told"
    why = f": {said['error']}" if said["error"] else answer
    if said["state"] == "dead":
        return f"hook {hook}: given up after {count(attempts, 'attempt')}{why}"
    return (
        f"hook {hook}: waiting for its first attempt" if not attempts else f"hook {hook}: failed {count(attempts, 'time')}{why}"
    )


def _attempt(said: dict[str, Any]) -> str:
    hook, answer = said["hook"], f" ({said['status']})" if said["status"] else ""
    nth = "" if said["number"] == 1 and said["outcome"] == "delivered" else f" at attempt {said['number']}"
    if said["outcome"] == "delivered":
        return f"hook {hook} took it{nth}{answer}, within {duration(said['took'])}"
    if said["outcome"] == "later":
        return f"hook {hook} put it off{nth}"
    why = f": {said['error']}" if said["error"] else answer
    return f"hook {hook} failed{nth}{why}" + ("; given up" if said["outcome"] == "dead" else "")


_WORDS: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "submitted": _submitted,
    "tracked": lambda said: _SOURCES[said["source"]],
    "created": lambda _: "created at Reader",
    "started": lambda _: "Reader began to read",
    "asked": _asked,
    "ended": lambda said: f"ended at Reader: {said['status']}",
    "webhook": _webhook,
    "heard": lambda said: "Reader's stream told of its end" if said["ended"] else "Reader's stream told that it runs",
    "looked": _looked,
    "noticed": lambda said: f"its end was noticed, by {_CUES[said['by']]}: {said['status']}",
    "page": _page,
    "again": lambda said: f"read anew from the start: {said['reason']}",
    "unchanged": lambda said: "looked" + ("" if said["by"] == "poll" else f", because of {_CUES[said['by']]}") + ": as it was",
    "trouble": lambda said: f"put back for {duration(said['wait'])}: {said['reason']}",
    "parked": lambda said: f"parked: {said['reason']}",
    "retried": lambda _: "its failed URLs are retried, as RECEIVER_RETRY_FAILED has it",
    "given up": lambda said: f"not retried after all: {said['reason'] or 'it is switched off'}",
    "reopened": lambda _: "its results, pruned since, are read again",
    "restored": lambda said: f"{count(said['rows'], 'result')} stored again",
    "settled": _settled,
    "pruned": lambda _: "its results were kept no longer: retention took them",
    "event": lambda said: f"told downstream: {said['type']}",
    "hook": _hook,
    "attempt": _attempt,
}
