"""What templates say things with: words and signs for where a job stands, times, sizes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from markupsafe import Markup, escape

from receiver.core.lifecycle import State
from receiver.reader.shapes import TERMINAL
from receiver.store.jobs import Job
from receiver.telling import duration


@dataclass(frozen=True, slots=True)
class Standing:
    """`kind` colours it; the sign and the word say the same to whoever sees no colours."""

    kind: str
    sign: str
    word: str


_ENDED: Final = {
    "completed": Standing("good", "✓", "completed"),
    "failed": Standing("bad", "✕", "failed"),
    "cancelled": Standing("off", "⊘", "cancelled"),
}
_KINDS: Final = {
    "accepted": Standing("good", "✓", "accepted"),
    "duplicate": Standing("off", "=", "duplicate"),
    "ignored": Standing("off", "–", "ignored"),
    "quarantined": Standing("odd", "!", "quarantined"),
    "refused": Standing("bad", "✕", "refused"),
    "unavailable": Standing("bad", "↻", "unavailable"),
    "delivered": Standing("good", "✓", "delivered"),
    "pending": Standing("busy", "…", "waiting"),
    "dead": Standing("bad", "✕", "dead letter"),
    "later": Standing("busy", "…", "put off"),
    "failed": Standing("bad", "✕", "failed"),
    "running": Standing("good", "✓", "well"),
    "failing": Standing("odd", "!", "failing"),
    "paused": Standing("odd", "‖", "paused"),
    "retired": Standing("off", "⊘", "no longer in the settings"),
}


def standing(job: Job) -> Standing:
    """Where a job stands, in one word."""
    if job.state is State.PARKED:
        return Standing("odd", "‖", "parked")
    if job.state is State.HYDRATING:
        return Standing("busy", "⇣", "reading results")
    if job.state is State.SETTLED and not job.held:
        return _ENDED.get(job.status, Standing("off", "?", job.status))
    if job.held:
        return Standing("busy", "↻", "retrying failed URLs")
    if job.status == "unknown":
        return Standing("off", "…", "not looked at yet")
    return Standing("busy", "▸", "processing" if job.status in TERMINAL or done(job) else job.status)


def sort(name: str) -> Standing:
    """Of a delivery's outcome, or a hook's state."""
    return _KINDS.get(name, Standing("off", "?", name))


def discoverer(name: str) -> str:
    """Who told us of a job's end."""
    return {"webhook": "by its webhook", "poll": "by our own look", "stream": "by Reader's stream"}[name]


def is_under_way(job: Job) -> bool:
    """Whether there is something to wait for."""
    return job.state in {State.WATCHING, State.HYDRATING} or job.held


def done(job: Job) -> int:
    """How far it is, by what was seen and by what was heard since."""
    return max(job.completed, job.heard or 0)


def left(job: Job, now: float) -> str | None:
    """About how long it still takes, if it goes on as it did; None where nothing can be said."""
    so_far, age = done(job), now - job.tracked_at
    if job.state is not State.WATCHING or not 0 < so_far < job.total or age < 1:
        return None
    return duration((job.total - so_far) * age / so_far)


def when(at: float | None) -> Markup:
    """A time. Scripts show it in the reader's own zone; without, it is UTC and says so."""
    if at is None:
        return Markup("–")
    moment = datetime.fromtimestamp(at, UTC)
    full = moment.strftime("%Y-%m-%d %H:%M:%S UTC")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        moment.isoformat(timespec="milliseconds"), full, moment.strftime("%d %b %H:%M:%S UTC")
    )


def ago(at: float | None, now: float) -> Markup:
    """The same, as people say it."""
    if at is None:
        return Markup("–")
    moment = datetime.fromtimestamp(at, UTC)
    said = f"{duration(round(now - at))} ago" if now - at >= 10 else "just now"
    return Markup('<time datetime="{}" title="{}" data-ago>{}</time>').format(
        moment.isoformat(timespec="milliseconds"), moment.strftime("%Y-%m-%d %H:%M:%S UTC"), said
    )


def size(number: int) -> str:
    """Bytes, as people say them."""
    if number < 1000:
        return f"{number} B"
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= length:
            return f"{number / length:.1f} {unit}"
    return f"{number} B"


def number(value: Any) -> str:
    """With a comma at each thousand."""
    return f"{value:,}"


def breakable(url: str) -> Markup:
    """A URL that a narrow screen may break after its slashes and the like."""
    parts = Markup("")
    for sign in url:
        parts += escape(sign)
        if sign in "/?&=_-.":
            parts += Markup("<wbr>")
    return parts
