"""A job's answer as bytes, piece by piece: the results are made as they are sent, and forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from receiver.sandbox.draws import draw, token
from receiver.sandbox.faults import Faults
from receiver.sandbox.jobs import Job, View
from receiver.sandbox.pages import Text
from receiver.sandbox.times import iso
from receiver.sandbox.validation import ReadRequest

encode = msgspec.json.encode


def job_fields(job: Job, view: View, faults: Faults) -> tuple[dict[str, Any], dict[str, Any]]:
    """The members of `data` before and after its results."""
    precision = faults.choice("time")
    ended = view.completed_at
    if view.status in {"failed", "cancelled"} and faults.choice("ended_at") == "null":
        ended = None
    before: dict[str, Any] = {
        "id": job.id,
        "status": view.status,
        "mode": job.request.mode,
        "completed": view.completed,
        "total": view.total,
        "creditsUsed": view.credits,
        "error": view.error,
    }
    after: dict[str, Any] = {
        "startedAt": iso(view.started_at, precision=precision),
        "completedAt": iso(ended, precision=precision),
        "createdAt": iso(job.created_at, precision=precision),
    }
    if faults.choice("extra_fields") == "some":
        after["region"] = "eu-1"
        after["priority"] = {"lane": 3, "weights": [0.5, 1e-3]}
    if faults.choice("nulls") == "absent":
        before = {name: value for name, value in before.items() if value is not None}
        after = {name: value for name, value in after.items() if value is not None}
    return before, after


def envelope(before: dict[str, Any], after: dict[str, Any], rows: Iterator[bytes], pagination: dict[str, Any]) -> Iterator[bytes]:
    """`{"success": true, "data": {…, "results": […], …}, "pagination": …}`."""
    lead = b'{"success":true,"data":' + encode(before)[:-1] + b',"results":['
    for row in rows:
        yield lead + row
        lead = b","
    closing = b"]," + encode(after)[1:] + b',"pagination":' + encode(pagination) + b"}"
    yield closing if lead == b"," else lead + closing


def result(job: Job, index: int, faults: Faults) -> bytes:
    """One result."""
    seed, url = job.options.seed, job.url(index)
    error, done_at = job.outcome(index)
    everywhere = faults.choice("nulls") == "everywhere"
    mode = faults.choice("proxy_mode")
    status = 200 if error is None else 502
    metadata: dict[str, Any] = {
        "duration": 100 + int(1400 * draw(seed, "duration", job.id, index)),
        "statusCode": status,
        "cached": False,
        "scrapedAt": iso(done_at, precision=faults.choice("time")),
    }
    tail: dict[str, Any] = {"statusCode": status, "proxyMode": mode, "credits": 0 if error else 1}
    if error is not None:
        tail["error"] = error
    elif everywhere:
        tail["error"] = None
    if faults.choice("extra_fields") == "some":
        tail["proxyEscalated"] = draw(seed, "escalated", job.id, index) < 0.1
        tail["renderer"] = {
            "engine": "chromium",
            "took": 1e-7,
            "trace": token(seed, 32, "trace", job.id, index),
        }
    head = [b'{"url":' + encode(url)]
    if error is None:
        head.extend(_contents(job.text(index), job.request.formats, metadata))
    elif everywhere:
        head.append(b'"markdown":null')
    tail["metadata"] = metadata
    return b",".join(head) + b"," + encode(tail)[1:]


def scrape(request: ReadRequest, found: str, text: Text, at: float, seconds: float, faults: Faults) -> Iterator[bytes]:
    """The answer to a single page, read at once: `found` at this URL, `at` in Unix seconds, `seconds` it took."""
    url = request.urls[0]
    mode = faults.choice("proxy_mode")
    metadata: dict[str, Any] = {
        "title": None,
        "description": None,
        "statusCode": 200,
        "duration": int(seconds * 1000),
        "cached": False,
        "proxyMode": mode,
        "scrapedAt": iso(at, precision=faults.choice("time")),
    }
    members = _contents(text, request.formats, metadata)
    if faults.choice("nulls") == "absent":
        metadata = {name: value for name, value in metadata.items() if value is not None}
    tail = encode({"finalUrl": found, "metadata": metadata})[1:]
    yield b'{"success":true,"data":' + b",".join((b'{"url":' + encode(url), *members)) + b"," + tail + b"}"


def _contents(text: Text, formats: frozenset[str], metadata: dict[str, Any]) -> list[bytes]:
    """The members that hold the page's text; its title goes into the metadata."""
    metadata["title"] = text.title
    members = []
    if "markdown" in formats:
        members.append(b'"markdown":"' + text.markdown() + b'"')
    if "html" in formats:
        members.append(b'"html":"' + text.html() + b'"')
    return members


def markdown_sha256(job: Job, index: int) -> str | None:
    """Of the markdown a good result carries; None when it carries none."""
    if "markdown" not in job.request.formats:
        return None
    return job.text(index).sha256()
