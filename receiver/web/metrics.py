"""`/metrics`: the figures of all replicas, in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from receiver.store.figures import Figures
from receiver.store.measures import Delays

CONTENT_TYPE = CONTENT_TYPE_LATEST


@dataclass(frozen=True, slots=True)
class Here:
    """What the process that is asked adds: the part of the limit that is ours, and its clock (Unix seconds)."""

    share: float
    wall: float


def render(figures: Figures, here: Here) -> bytes:
    """The text for one scrape."""
    registry = CollectorRegistry()
    registry.register(_Collector(figures, here))
    return generate_latest(registry)


class _Collector:
    """Made for one scrape: the figures come from the database, so that every process tells the same."""

    def __init__(self, figures: Figures, here: Here) -> None:
        self._figures = figures
        self._here = here

    def collect(self) -> Iterable[Metric]:
        yield from _gauges(self._figures)
        yield from _state(self._figures, self._here)
        yield from _counters(self._figures)
        yield _histogram("ack_seconds", "From a delivery's headers to its answer, where it was stored.", self._figures.acks)
        yield _histogram("commit_deliveries", "Deliveries that shared a transaction.", self._figures.batches)
        yield _histogram("notice_seconds", "From a job's end at Reader to our noticing it.", self._figures.noticed)
        yield _histogram("settle_seconds", "From noticing an end to all its results stored.", self._figures.settled)
        yield _histogram("deliver_seconds", "From settling to an event taken by its hook.", self._figures.delivered)


def _gauges(figures: Figures) -> Iterator[Metric]:
    yield _by("jobs", "Jobs by where they stand.", "state", figures.jobs)
    yield _by("hook_deliveries", "Events on their way to hooks, taken, or given up.", "state", figures.hook_deliveries)
    yield _by("hook_paused", "1 while nothing is brought to the hook.", "hook", figures.hooks)
    yield _by("paused", "1 while no request may leave, by cause.", "cause", dict.fromkeys(figures.paused, 1))
    yield _by("overdue_seconds", "How long the work longest due has waited.", "of", figures.overdue)
    missed = "Jobs whose newest end no webhook has told of; cancelled ones send none and are left out."
    yield GaugeMetricFamily("receiver_missed_webhooks", missed, value=figures.missed)


def _state(figures: Figures, here: Here) -> Iterator[Metric]:
    yield GaugeMetricFamily("receiver_requests_in_window", "Requests to Reader in the last minute.", value=figures.in_use)
    yield GaugeMetricFamily(
        "receiver_requests_allowed", "Requests a minute that are ours to spend.", value=figures.limit * here.share
    )
    yield GaugeMetricFamily("receiver_stream_up", "1 while somebody follows Reader's workspace stream.", value=figures.stream_up)
    quarantined = "Deliveries that are genuine, and could not be read: see `receiver deliveries --outcome quarantined`."
    yield GaugeMetricFamily("receiver_quarantined", quarantined, value=figures.quarantined)
    skew = "How far this process's clock is ahead of the database's; on SQLite, what it has leapt since the start."
    yield GaugeMetricFamily("receiver_clock_skew_seconds", skew, value=round(here.wall - figures.now, 3))
    yield _by("sqlite_bytes", "Size of the SQLite database and of its write-ahead log.", "file", figures.files)


def _counters(figures: Figures) -> Iterator[Metric]:
    became = "Deliveries by what they were answered; refused ones by why."
    deliveries = CounterMetricFamily("receiver_deliveries", became, labels=["outcome", "reason"])
    for labels, count in figures.deliveries.items():
        deliveries.add_metric(list(labels), count)
    yield deliveries
    outcomes = CounterMetricFamily(
        "receiver_outcomes", "Settled ends by status and discoverer.", labels=["status", "discovered_by"]
    )
    for labels, count in figures.outcomes.items():
        outcomes.add_metric(list(labels), count)
    yield outcomes
    yield _count("results", "Results of settled ends, read or failed at Reader.", "outcome", figures.results)
    attempts = CounterMetricFamily("receiver_hook_attempts", "Attempts to deliver events.", labels=["hook", "outcome"])
    for labels, count in figures.attempts.items():
        attempts.add_metric(list(labels), count)
    yield attempts
    yield _count("pruned", "Rows that retention has deleted, by what they were of.", "of", figures.pruned)
    requests = {purpose.replace(" ", "_"): count for purpose, count in figures.requests.items()}
    yield _count("requests", "Requests to Reader by what they were for.", "purpose", requests)
    held_back = "Times that Reader had us wait: 429s, a refused key, credits at an end."
    yield _count("reader_refusals", held_back, "cause", figures.held_back)


def _by(name: str, documentation: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"receiver_{name}", documentation, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _count(name: str, documentation: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"receiver_{name}", documentation, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _histogram(name: str, documentation: str, delays: Delays) -> Metric:
    buckets = [(str(bound), float(count)) for bound, count in zip(delays.bounds, delays.within, strict=True)]
    return HistogramMetricFamily(
        f"receiver_{name}", documentation, buckets=[*buckets, ("+Inf", float(delays.count))], sum_value=delays.total
    )
