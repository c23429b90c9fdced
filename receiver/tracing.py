"""Traces, by OpenTelemetry: one for each job, from its webhook through the reading of its results to its hooks.

A trace's id is made from the job's: whoever works on the job, in whatever process and however much later, adds to the same trace. So
nothing is stored, and nothing handed over. Off, and none of it loaded, unless the environment names a collector
(`OTEL_EXPORTER_OTLP_ENDPOINT`; the other variables of OpenTelemetry's count too) and the extra `[otel]` is installed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, Final

import structlog

from receiver.clock import Clock

_FLUSH_WITHIN = 2.0
"""Seconds for what is not sent yet when the process ends."""
_PLACES: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

log = structlog.get_logger("receiver.tracing")

Value = str | int | float | bool | None


class Tracer:
    """Makes spans. There is at most one; see `started`."""

    def __init__(self, clock: Clock) -> None:
        """Raises `ImportError` without the library."""
        from opentelemetry import propagate, trace  # noqa: PLC0415 - who traces nothing need not have it
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        self._clock = clock
        self._api, self._propagate = trace, propagate
        self._ids = _ids()
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "receiver"}
        self._provider = TracerProvider(resource=Resource.create(named), id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("receiver")

    def job(self, job_id: str, *, began: float, ended: float, attributes: Mapping[str, Value]) -> None:
        """The span that all others of the job are under: from when it was known to when its first end was stored (Unix seconds)."""
        self._ids.next = _identity(job_id)
        try:
            # Under nothing, whatever is under way here.
            span = self._tracer.start_span("job", self._api.set_span_in_context(self._api.INVALID_SPAN), start_time=_ns(began))
        finally:
            self._ids.next = None
        self._end(span, {"reader.job": job_id, **attributes}, ended)

    def past(self, name: str, job_id: str, *, seconds: float, attributes: Mapping[str, Value]) -> None:
        """Something that took so long until now, and that came from outside."""
        now = self._clock.wall()
        kind = self._api.SpanKind.SERVER
        span = self._tracer.start_span(name, self._under(job_id), kind=kind, start_time=_ns(now - seconds))
        self._end(span, {"reader.job": job_id, **attributes}, now)

    @contextmanager
    def span(self, name: str, job_id: str | None, attributes: Mapping[str, Value]) -> Iterator[dict[str, Value]]:
        """Something that is done meanwhile: under its job or, without one, under what is under way. More attributes may be put in."""
        more: dict[str, Value] = {"reader.job": job_id, **attributes}
        under = None if job_id is None else self._under(job_id)
        span = self._tracer.start_span(name, under, start_time=_ns(self._clock.wall()))
        try:
            with self._api.use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
                yield more
        except BaseException as error:
            span.set_status(self._api.StatusCode.ERROR, type(error).__name__)  # its words may be anybody's
            raise
        finally:
            self._end(span, more, self._clock.wall())

    def headers(self) -> dict[str, str]:
        """For a request to somebody else, who may go on with the trace (W3C Trace Context)."""
        carrier: dict[str, str] = {}
        self._propagate.inject(carrier)
        return {name: carrier[name] for name in ("traceparent",) if name in carrier}

    def close(self) -> None:
        """Send what is not sent yet, if that is soon done. Blocks."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)  # a collector that is down must not keep us
        ending.start()
        ending.join(_FLUSH_WITHIN)

    def _under(self, job_id: str) -> Any:
        trace_id, span_id = _identity(job_id)
        flags = self._api.TraceFlags(self._api.TraceFlags.SAMPLED)
        context = self._api.SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)
        return self._api.set_span_in_context(self._api.NonRecordingSpan(context))

    @staticmethod
    def _end(span: Any, attributes: Mapping[str, Value], at: float) -> None:
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        span.end(_ns(at))


_tracer: Tracer | None = None


@contextmanager
def started(clock: Clock) -> Iterator[None]:
    """While it lasts there are traces, if the environment asks for them."""
    global _tracer  # noqa: PLW0603 - one for a process, as with a log: handed through everything it would be in everybody's way
    if _tracer is not None or not any(os.environ.get(name) for name in _PLACES) or os.environ.get("OTEL_SDK_DISABLED") == "true":
        yield
        return
    try:
        _tracer = Tracer(clock)
    except ImportError:
        log.warning("traces_unavailable", hint="OpenTelemetry is not installed: pip install 'reader-receiver[otel]'")
        yield
        return
    try:
        yield
    finally:
        ended, _tracer = _tracer, None
        ended.close()


def on() -> Tracer | None:
    """The tracer, if there is one: whoever is in a hurry asks before it gathers what to tell."""
    return _tracer


@contextmanager
def span(name: str, job_id: str | None = None, **attributes: Value) -> Iterator[dict[str, Value]]:
    """See `Tracer.span`. Nothing where nobody traces."""
    if _tracer is None:
        yield {}
        return
    with _tracer.span(name, job_id, {f"receiver.{key}": value for key, value in attributes.items()}) as more:
        yield more


def headers() -> dict[str, str]:
    """See `Tracer.headers`."""
    return {} if _tracer is None else _tracer.headers()


def _identity(job_id: str) -> tuple[int, int]:
    """The ids of a job's trace and of the span that all others are under. Never zero, which means none."""
    digest = blake2b(job_id.encode(), digest_size=24, person=b"reader-trace").digest()
    return int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:]) or 1


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _ids() -> Any:
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: PLC0415

    class Ids(RandomIdGenerator):
        """Random, but for the span that is made next, if that is a job's."""

        next: tuple[int, int] | None = None

        def generate_span_id(self) -> int:
            return self.next[1] if self.next else super().generate_span_id()

        def generate_trace_id(self) -> int:
            return self.next[0] if self.next else super().generate_trace_id()

    return Ids()
