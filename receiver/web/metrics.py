"""`/metrics`: the figures of all replicas, in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from receiver.store.figures import Figures
from receiver.store.measures import BUCKETS, Delays

CONTENT_TYPE = CONTENT_TYPE_LATEST


def render(figures: Figures) -> bytes:
    """The text for one scrape."""
    registry = CollectorRegistry()
    registry.register(_Collector(figures))
    return generate_latest(registry)


class _Collector:
    """Made for one scrape: the figures come from the database, so that every process tells the same."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        yield from _gauges(self._figures)
        yield from _counters(self._figures)
        yield _histogram("notice_seconds", "From a job's end at Reader to our noticing it.", self._figures.noticed)
        yield _histogram("settle_seconds", "From noticing an end to all its results stored.", self._figures.settled)
        yield _histogram("deliver_seconds", "From settling to an event taken by its hook.", self._figures.delivered)


def _gauges(figures: Figures) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("receiver_jobs", "Jobs by where they stand.", labels=["state"])
    for state, count in figures.jobs.items():
        jobs.add_metric([state], count)
    yield jobs
    hooks = GaugeMetricFamily("receiver_hook_deliveries", "Events on their way to hooks, taken, or given up.", labels=["state"])
    for state, count in figures.hook_deliveries.items():
        hooks.add_metric([state], count)
    yield hooks
    yield GaugeMetricFamily("receiver_requests_in_window", "Requests to Reader in the last minute.", value=figures.in_use)
    paused = GaugeMetricFamily("receiver_paused", "1 while no request may leave, by cause.", labels=["cause"])
    for cause in figures.paused:
        paused.add_metric([cause], 1)
    yield paused
    missed = "Jobs whose newest end no webhook has told of; cancelled ones send none and are left out."
    yield GaugeMetricFamily("receiver_missed_webhooks", missed, value=figures.missed)


def _counters(figures: Figures) -> Iterator[Metric]:
    outcomes = CounterMetricFamily(
        "receiver_outcomes", "Settled ends by status and discoverer.", labels=["status", "discovered_by"]
    )
    for labels, count in figures.outcomes.items():
        outcomes.add_metric(list(labels), count)
    yield outcomes
    pruned = CounterMetricFamily("receiver_pruned", "Rows that retention has deleted, by what they were of.", labels=["of"])
    for of, count in figures.pruned.items():
        pruned.add_metric([of], count)
    yield pruned
    requests = CounterMetricFamily("receiver_requests", "Requests to Reader by what they were for.", labels=["purpose"])
    for purpose, count in figures.requests.items():
        requests.add_metric([purpose.replace(" ", "_")], count)
    yield requests


def _histogram(name: str, documentation: str, delays: Delays) -> Metric:
    buckets = [(str(bound), float(count)) for bound, count in zip(BUCKETS, delays.within, strict=True)]
    return HistogramMetricFamily(
        f"receiver_{name}", documentation, buckets=[*buckets, ("+Inf", float(delays.count))], sum_value=delays.total
    )
