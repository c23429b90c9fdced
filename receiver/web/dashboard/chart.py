"""The chart of a day: what arrived in each hour, by what became of it, as figures that a template draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

HOURS: Final = 24
KINDS: Final = ("accepted", "duplicate", "ignored", "quarantined", "refused", "unavailable")
"""From the ground up."""
WIDTH, HEIGHT = 720.0, 150.0
_BAR, _LEAST = 0.72, 2.0
"""The part of an hour's place that its bar takes; and the height at which a single one is still seen."""


@dataclass(frozen=True, slots=True)
class Part:
    """A rectangle."""

    kind: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """An hour: when it began (Unix seconds), how many of each kind, and where to draw them."""

    began: float
    counts: Mapping[str, int]
    x: float
    width: float
    parts: Sequence[Part]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class Chart:
    """`top`: what the highest line stands for. `totals`: by kind, of the whole day; `refused`: by reason."""

    bars: Sequence[Bar]
    top: int
    totals: Mapping[str, int]
    refused: Mapping[str, int]


def draw(by_hour: Mapping[int, Mapping[str, int]], *, last: int) -> Chart:
    """`by_hour`: counts by label, which is a kind, or `refused REASON`. `last`: the newest hour, since the epoch."""
    hours = range(last - HOURS + 1, last + 1)
    counted = {hour: _by_kind(by_hour.get(hour, {})) for hour in hours}
    top = _round_up(max(sum(counts.values()) for counts in counted.values()))
    place = WIDTH / HOURS
    bars = []
    for nth, (hour, counts) in enumerate(counted.items()):
        parts, ground = [], HEIGHT
        for kind in KINDS:
            if counts[kind]:
                height = max(counts[kind] / top * HEIGHT, _LEAST)
                ground -= height
                parts.append(Part(kind, round(ground, 2), round(height, 2)))
        x = nth * place + place * (1 - _BAR) / 2
        bars.append(Bar(hour * 3600.0, counts, round(x, 2), round(place * _BAR, 2), parts))
    refused: dict[str, int] = {}
    for hour in hours:
        for label, count in by_hour.get(hour, {}).items():
            kind, _, reason = label.partition(" ")
            if reason:
                refused[reason] = refused.get(reason, 0) + count
    return Chart(bars, top, {kind: sum(counts[kind] for counts in counted.values()) for kind in KINDS}, refused)


def _by_kind(labels: Mapping[str, int]) -> dict[str, int]:
    counts = dict.fromkeys(KINDS, 0)
    for label, count in labels.items():
        kind = label.partition(" ")[0]
        counts[kind] = counts.get(kind, 0) + count
    return counts


def _round_up(most: int) -> int:
    """To a number that a line of the chart may stand for: 1, 2, 5, 10, 20, 50 and so on."""
    unit = 1
    while True:
        for step in (1, 2, 5):
            if most <= step * unit:
                return step * unit
        unit *= 10
