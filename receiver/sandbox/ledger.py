"""What truly happened: every request, every delivery attempt, every job's true results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from receiver.reader.shapes import TERMINAL
from receiver.sandbox.jobs import Job
from receiver.sandbox.pulse import Pulse
from receiver.sandbox.render import markdown_sha256
from receiver.sandbox.rounds import Round
from receiver.sandbox.times import iso


@dataclass(slots=True)
class RequestRow:
    """One request to the API. `status` is None while it is answered, and for good when it got no answer."""

    at: float
    method: str
    path: str
    query: str
    key: str | None
    status: int | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """One attempt of a delivery. `status` is None when no answer came, or nothing was sent."""

    at: float
    job: str
    event: str
    delivery: str
    attempt: int
    url: str
    status: int | None
    fault: str | None


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that happened, for who listens: `kind` and the row that tells of it."""

    kind: Literal["request", "delivery", "job", "faults"]
    at: float
    row: dict[str, Any]


class Ledger:
    """Remembers the last `rows` requests, and deliveries, and tells listeners of each thing as it happens."""

    def __init__(self, rows: int) -> None:
        self.requests: deque[RequestRow] = deque(maxlen=rows)
        self.deliveries: deque[DeliveryRow] = deque(maxlen=rows)
        self.counts: dict[str, int] = {"requests": 0, "deliveries": 0}
        self.pulse = Pulse()
        self._listeners: list[Callable[[Happening], None]] = []

    def listen(self, listener: Callable[[Happening], None]) -> Callable[[], None]:
        """Be called with each happening, in the loop's thread; returns what to call to stop it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def request(self, row: RequestRow) -> RequestRow:
        """A request came in; its status is filled in later."""
        self.requests.append(row)
        self.counts["requests"] += 1
        return row

    def answered(self, row: RequestRow) -> None:
        """The request has its answer."""
        self.tell("request", row.at, row)

    def delivery(self, row: DeliveryRow) -> None:
        """An attempt is over."""
        self.deliveries.append(row)
        self.counts["deliveries"] += 1
        self.tell("delivery", row.at, row)

    def tell(self, kind: Literal["request", "delivery", "job", "faults"], at: float, row: Any) -> None:
        """Tell the listeners."""
        self.pulse.beat()
        if self._listeners:
            told = Happening(kind, at, row if isinstance(row, dict) else asdict(row))
            for listener in tuple(self._listeners):
                listener(told)

    def lists(self, since: float) -> dict[str, list[dict[str, Any]]]:
        """Deliveries and requests at or after a time, oldest first."""
        deliveries = [asdict(row) for row in self.deliveries if row.at >= since]
        requests = [asdict(row) for row in self.requests if row.at >= since]
        return {
            "deliveries": sorted(deliveries, key=lambda row: float(row["at"])),
            "requests": sorted(requests, key=lambda row: float(row["at"])),
        }


def job_row(job: Job, now: float) -> dict[str, Any]:
    """A job without its results."""
    view = job.view(now)
    ended = job.rounds if view.terminal else job.rounds[:-1]
    generations = [_generation(job, run) for run in ended]
    return {
        "status": view.status,
        "generation": len(ended),
        "observable": generations[-1]["observable"] if generations else True,
        "completedAt": iso(view.completed_at),
        "generations": generations,
    }


def true_results(job: Job, now: float) -> Iterator[dict[str, Any]]:
    """What a reader that misses nothing has of this job now, in the order submitted."""
    for index in job.view(now).gathered:
        error, _ = job.outcome(index)
        digest = markdown_sha256(job, index) if error is None else None
        yield {"url": job.url(index), "error": error, "sha256": digest}


def _generation(job: Job, run: Round) -> dict[str, Any]:
    """One end. Observable: it stands, or somebody was told the whole of it before it was overtaken."""
    status = job.status_of(run)
    assert status in TERMINAL
    return {
        "generation": run.number,
        "status": status,
        "completedAt": iso(run.ends_at),
        "observable": run.overtaken_at is None or run.whole_read,
        "overtakenAt": iso(run.overtaken_at),
        "wholeRead": run.whole_read,
    }
