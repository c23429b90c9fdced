"""Traces, as a collector gets them: OTLP over HTTP, from real processes."""

from __future__ import annotations

import contextlib
import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from system_kit import Served, command, delivery, downstream, environment, free_port, knowing, start_job, until

from receiver.sandbox import BackgroundSandbox


@dataclass(frozen=True)
class Span:
    """One, as it came."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    seconds: float
    failed: bool
    said: dict[str, Any]


@dataclass
class Collector:
    """Keeps what it is sent."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)

    def of(self, job: str) -> list[Span]:
        """All of the job's trace."""
        traces = {span.trace for span in list(self.spans) if span.said.get("reader.job") == job}
        return [span for span in list(self.spans) if span.trace in traces]

    def named(self, job: str, name: str) -> list[Span]:
        return [span for span in self.of(job) if span.name == name]


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            collector.spans += _spans(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in request.resource_spans:
        service = next(each.value.string_value for each in resource.resource.attributes if each.key == "service.name")
        for scope in resource.scope_spans:
            for span in scope.spans:
                said = {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}
                ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                took = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
                yield Span(service, span.name, *ids, took, span.status.code == 2, said)


def traced(collector: Collector, **more: str | None) -> dict[str, str | None]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100", "READER_RPM": "100000", **more}


def check_whole(collector: Collector, job: str, hook_headers: dict[str, str]) -> None:
    """One trace, all of it under the job's span, the pages under the turn in which they were read, the hook's call the last link."""
    spans = {span.id: span for span in collector.of(job)}
    assert len({span.trace for span in spans.values()}) == 1
    (root,) = collector.named(job, "job")
    assert root.parent == ""
    assert root.said["receiver.status"] == "completed"
    for name in ("webhook", "reconcile", "hook"):
        assert {span.parent for span in collector.named(job, name)} == {root.id}, name
    pages = collector.named(job, "read page")
    assert [page.said["receiver.skip"] for page in pages] == [0, 100]
    assert {spans[page.parent].name for page in pages} == {"reconcile"}
    (hook,) = collector.named(job, "hook")
    assert (hook.said["receiver.hook"], hook.said["receiver.outcome"], hook.said["receiver.status"]) == (
        "indexer",
        "delivered",
        200,
    )
    assert hook_headers["traceparent"] == f"00-{hook.trace}-{hook.id}-01"
    assert all(0 <= span.seconds < 60 for span in spans.values())


def test_a_job_is_one_trace_from_its_webhook_to_its_hook(tmp_path: Path) -> None:
    with (
        collecting() as collector,
        downstream() as hook,
        BackgroundSandbox(seed=1, job_seconds=0.1, queue_seconds=0.02) as reader,
    ):
        hooks = json.dumps([{"name": "indexer", "url": hook.url}])
        with Served(tmp_path, settings=knowing(reader, **traced(collector, RECEIVER_HOOKS=hooks))) as server:
            job = start_job(reader, 120)
            reader.settled()
            assert server.post(delivery(job)).status == 202
            until(lambda: {"job", "hook", "webhook"} <= {span.name for span in collector.of(job)})
        check_whole(collector, job, hook.got[0][0])
    (webhook,) = collector.named(job, "webhook")
    assert (webhook.said["receiver.outcome"], webhook.said["receiver.event"]) == ("accepted", "job.completed")
    assert webhook.service == "receiver"


@pytest.mark.slow
def test_it_is_one_trace_too_where_other_processes_go_on_with_the_job(tmp_path: Path) -> None:
    """Received by one that does nothing else, seen through by a tick; what is not sent yet is sent at the end."""
    with (
        collecting() as collector,
        downstream() as hook,
        BackgroundSandbox(seed=1, job_seconds=0.1, queue_seconds=0.02) as reader,
    ):
        hooks = json.dumps([{"name": "indexer", "url": hook.url}])
        settings = knowing(reader, **traced(collector, RECEIVER_HOOKS=hooks, OTEL_BSP_SCHEDULE_DELAY="60000"))
        with Served(tmp_path, settings=settings, RECEIVER_LOOPS="false", OTEL_SERVICE_NAME="receiver-web") as server:
            job = start_job(reader, 120)
            reader.settled()
            assert server.post(delivery(job)).status == 202
        assert command(tmp_path, "tick", "--budget", "10", settings=settings, OTEL_SERVICE_NAME="receiver-tick").code == 0
        check_whole(collector, job, hook.got[0][0])
    assert {span.service for span in collector.of(job)} == {"receiver-web", "receiver-tick"}


@pytest.mark.slow
def test_a_collector_that_is_down_keeps_nobody_waiting(tmp_path: Path) -> None:
    nowhere = Collector(f"http://127.0.0.1:{free_port()}")
    with Served(tmp_path, settings=traced(nowhere), READER_API_KEY=None) as server:
        assert server.post(delivery()).status == 202
        assert server.stop() < 6


@pytest.mark.slow
def test_without_the_library_it_is_said_and_everything_else_works(tmp_path: Path) -> None:
    code = "import sys; sys.modules['opentelemetry'] = None; sys.argv[0] = 'receiver'; from receiver.cli import main; main()"
    asked = environment(
        tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", READER_API_KEY="rdr_key", READER_BASE_URL="http://127.0.0.1:1"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "tick", "--budget", "1"], env=asked, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "pip install 'reader-receiver[otel]'" in ended.stderr
    assert json.loads(ended.stdout)["done"] == 0


def test_where_nobody_asks_for_traces_nothing_of_them_is_loaded(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; from receiver import Receiver\n"
        "async def main():\n    async with Receiver(): pass\n"
        "asyncio.run(main()); print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    ended = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
