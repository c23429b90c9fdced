"""The table of all that can be switched while it runs: faults, and the vendor's undocumented choices.

Flags, environment names, `POST /sandbox/faults` and `Sandbox(lose=0.5)` are all made from this one table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["rate", "seconds", "choice", "text"]
Group = Literal["webhooks", "api", "streams", "choices"]


@dataclass(frozen=True, slots=True)
class Switch:
    """One thing that can be switched.

    `rate`: 0..1, how often it happens. `seconds`: how long (Reader's seconds).
    `choice`: one of `values`, the first by default. `text`: any string.
    """

    name: str
    kind: Kind
    group: Group
    about: str
    values: tuple[str, ...] = ()
    value: float | str | None = None
    """What a `rate` comes with when the setting names no value of its own."""
    allowed: tuple[int, ...] = ()
    """All that the value of a `rate` may be, where not every one is possible."""

    @property
    def default(self) -> float | str | None:
        """The setting when nobody has set it."""
        if self.kind == "choice":
            return self.values[0]
        return None if self.kind == "text" else 0


def _webhook(name: str, about: str, *, value: float | str | None = None, kind: Kind = "rate") -> Switch:
    return Switch(name, kind, "webhooks", about, value=value)


def _api(
    name: str, about: str, *, value: float | str | None = None, kind: Kind = "rate", allowed: tuple[int, ...] = ()
) -> Switch:
    return Switch(name, kind, "api", about, value=value, allowed=allowed)


def _choice(name: str, about: str, *values: str) -> Switch:
    return Switch(name, "choice", "choices", about, values=values)


_ALL: Final = (
    _webhook("lose", "a delivery never arrives: all its attempts are lost"),
    _webhook("lose_attempts", "one attempt is lost on its way"),
    _webhook("duplicate", "an attempt that arrived is sent again as it was (value: how many times)", value=1),
    _webhook("reorder", "a delivery is held back, and overtaken (value: up to so many seconds)", value=3),
    _webhook("delay", "every delivery waits so long before its first attempt", kind="seconds"),
    _webhook("early", "the API lags behind a job's end and its webhook (value: so many seconds)", value=2),
    _webhook("wrong_secret", "signed with another secret"),
    _webhook("unsigned", "sent without timestamp and signature"),
    _webhook("stale_timestamp", "signed with a timestamp in the past (value: seconds)", value=600),
    _webhook("future_timestamp", "signed with a timestamp in the future (value: seconds)", value=600),
    _webhook("corrupt_body", "a byte of the body flips after signing"),
    _webhook("odd_body", "validly signed, but nothing to be used: not JSON, a list, no job id"),
    _webhook("unknown_event", "one more delivery for the job, of an event nobody has heard of"),
    _webhook("ghost", "one more delivery, for a job that does not exist"),
    _api("latency", "every answer waits so long (real seconds)", kind="seconds"),
    _api("rate_limit", "429 rate_limited (value: the seconds in Retry-After)", value=1),
    _api("rate_limit_bare", "429 rate_limited with neither Retry-After nor details"),
    _api("rate_limit_date", "429 rate_limited, Retry-After as a date (value: seconds ahead)", value=2),
    _api("rate_limit_odd", "429 rate_limited, Retry-After odd (value: any text)", value="-1"),
    _api("server_error", "a 5xx (value: 500, 502 or 504; drawn if none is given)", allowed=(500, 502, 504)),
    _api("error_burst", "a run of 5xx on one path (value: how many)", value=3),
    _api("unauthorized", "401, though the key is right"),
    _api("rotate_key", "the key that is accepted from now on instead; none by default", kind="text"),
    _api("out_of_credits", "402 insufficient_credits"),
    _api("redirect", "302 to another host (value: where; a trap that tells the ledger otherwise)"),
    _api("foreign_next", "`pagination.next` points to another host (value: where; the trap otherwise)"),
    _api("html", "200 with a page of HTML; what was asked for is done"),
    _api("false_success", "200 with `success: false`; what was asked for is done"),
    _api("truncate", "JSON that ends halfway, framed as if it were whole; what was asked for is done"),
    _api("cut", "the connection closes halfway through the body; what was asked for is done"),
    _api("reset", "the connection is reset instead of an answer; what was asked for is done"),
    _api("drip", "the answer drips (value: real seconds from first byte to last)", value=30),
    _api("gzip_bomb", "gzip that inflates beyond reason (value: MB)", value=256),
    _api("unborn", "a new job is not found at first (value: for so many seconds)", value=1),
    _api("requeue", "a job that ended is queued again between two pages of its results"),
    _api("has_more_forever", "`hasMore` stays true past the end"),
    _api("has_more_early", "`hasMore` is false too early"),
    _api("total_drift", "`pagination.total` changes from read to read"),
    _api("shuffle", "results move between pages: one is doubled, one is missing"),
    _api("double", "a result stands twice on its page"),
    Switch("stream_cut", "rate", "streams", "a stream breaks off after an event, without its end"),
    Switch("stream_deaf", "rate", "streams", "a stream opens, pings and tells nothing"),
    _choice("body_id", "the job's id in a body", "jobId", "job_id", "data.jobId", "data.id", "job.id", "id"),
    _choice("body_event", "where a delivery's body names its event", "event", "type", "nowhere"),
    _choice("delivery_id", "X-Reader-Delivery is one per", "delivery", "attempt"),
    _choice("signing", "a retry is signed afresh, or resent as it was", "afresh", "once"),
    _choice("attempts", "attempts in total: the documentation's sum, or its list of pauses", "3", "4"),
    _choice("ended_total", "`pagination.total` of a failed or cancelled job", "submitted", "gathered"),
    _choice("ended_at", "`completedAt` of a failed or cancelled job", "set", "null"),
    _choice("retry_queues", "a retry queues URLs that errored, or those never attempted too", "errored", "unfinished"),
    _choice("order", "results in the order", "submitted", "finished", "unstable"),
    _choice("next", "`pagination.next` is", "present", "absent"),
    _choice("nulls", "null fields are", "present", "absent", "everywhere"),
    _choice("time", "timestamps to the", "millisecond", "second"),
    _choice("proxy_mode", "`proxyMode` of a result", "standard", "premium", "stealth"),
    _choice("extra_fields", "fields the vendor may add", "none", "some"),
    _choice("patch_secret", "PATCH of a webhook's secret is", "accepted", "refused", "ignored"),
    _choice("replay_stream", "a job's stream begins with all results so far, or only new ones", "all", "new"),
)  # fmt: skip

SWITCHES: Final[dict[str, Switch]] = {switch.name: switch for switch in _ALL}
