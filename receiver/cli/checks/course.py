"""How things went: what arrived, what was refused, what no webhook told of, what waits for somebody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from receiver.cli.checks.database import Past
from receiver.cli.checks.line import Line, fail, ok, warn
from receiver.cli.common import ago
from receiver.store.refusals import Refused
from receiver.telling import count

_DAY: Final = 86400.0
_SOME: Final = 3
"""So few say nothing yet."""


def look(past: Past) -> Iterator[Line]:
    """From what the database holds."""
    yield _arrived(past)
    yield from (_refused(each) for each in past.refused if past.now - each.last_at < _DAY and each.reason in _REFUSED)
    yield from _untold(past)
    if parked := past.figures.jobs.get("parked", 0):
        yield warn(
            "jobs",
            f"{count(parked, 'job')} parked, and looked at no more",
            "`receiver jobs --status parked`; `receiver track ID` tries again",
        )


def _arrived(past: Past) -> Line:
    if past.last_arrival is None:
        return ok("arrivals", "no delivery has come yet")
    quarantined, read = past.arrived.get("quarantined", 0), past.arrived.get("accepted", 0)
    told = f"the last delivery came {ago(past.last_arrival)}"
    if quarantined and not read:
        return fail(
            "arrivals",
            f"all {quarantined} of the newest deliveries are quarantined: they are Reader's, and cannot be read",
            "Reader may have changed what it sends: update receiver, then run `receiver deliveries --reprocess`",
        )
    if quarantined:
        share = quarantined / (quarantined + read)
        words = f"{told}; {quarantined} of the newest {quarantined + read} are quarantined ({share:.0%})"
        return warn("arrivals", words, "`receiver deliveries --outcome quarantined` lists them; the poller covers")
    return ok("arrivals", told)


def _refused(each: Refused) -> Line:
    said, do = _REFUSED[each.reason]
    return warn("refused", f"{count(each.count, 'delivery', 'deliveries')} {said} refused, the last one {ago(each.last_at)}", do)


_CLOCK: Final = "set this machine's clock (NTP), and look at the line `clock`; or somebody replays what he has recorded"
_REFUSED: Final = {
    "unsigned": (
        "that looked like Reader's, but had no signature,",
        "a webhook set for one job, without a secret, does this: give it ours, or set RECEIVER_ALLOW_UNSIGNED=true",
    ),
    "mismatch": (
        "signed with a secret that is not ours",
        "a webhook with another secret does this (`receiver webhook list`), or somebody who tries",
    ),
    "stale": ("that were signed too long ago", _CLOCK),
    "future": ("that were signed ahead of our time", _CLOCK),
}


def _untold(past: Past) -> Iterator[Line]:
    missed = past.told.count(False)
    if len(past.told) < _SOME:
        return
    told = f"of the last {len(past.told)} ends of jobs, {missed} were told by no webhook"
    if missed == len(past.told):
        yield warn(
            "lost_webhooks", told, "they were found by polling, which is slower: see the lines on the webhook and the public URL"
        )
    elif missed * 5 > len(past.told):
        yield warn("lost_webhooks", told, "the poller covers; see why we were not reached")
    else:
        yield ok("lost_webhooks", told)
