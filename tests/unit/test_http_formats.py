"""What goes out beside the standard form: signed twice while a secret changes, with headers of one's own, in other shapes."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.v1.http import from_http
from standardwebhooks import Webhook, WebhookVerificationError

from receiver.hooks.formats import body
from receiver.hooks.http import HttpTarget
from receiver.hooks.target import Delivery
from tests.clock import FakeClock
from tests.loopback import Asked, answering, serving
from tests.unit.test_http_hook import nothing

pytestmark = pytest.mark.anyio

OLD, NEW, OTHER = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_bmV3IHNlY3JldCBvZiBvdXJz", "whsec_b3RoZXIgc2VjcmV0IHRoYXQ="


def event(kind: str = "job.completed", *, url: str = "https://hooks.example.com/v1/jobs/job_1", **more: Any) -> str:
    job = {"id": "job_1", "status": kind.removeprefix("job."), "completed": 12, "total": 12, "note": "żółw — 亀"}
    data = {"job": job, "generation": 1, "failedUrls": 0, "discoveredBy": "poll", "resultsUrl": url, **more}
    return json.dumps({"type": kind, "timestamp": "2024-04-05T00:00:00.000Z", "data": data})


async def sent(payload: str | None = None, **options: Any) -> Asked:
    payload = event() if payload is None else payload
    clock = FakeClock(time.time())  # the specification's library goes by this machine's time
    async with serving(answering(204)) as server, HttpTarget(server.url, timeout=5, clock=clock, **options) as target:
        await target.deliver(Delivery("evt_1", payload, 1, nothing))
    (asked,) = server.asked
    return asked


async def test_while_secrets_change_each_of_them_verifies() -> None:
    asked = await sent(secrets=[NEW, OLD])
    assert len(asked.headers["webhook-signature"].split(" ")) == 2
    for secret in (OLD, NEW):
        assert Webhook(secret).verify(asked.body, asked.headers) == json.loads(event())
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(asked.body, asked.headers)


async def test_headers_of_ones_own_go_along() -> None:
    asked = await sent(headers={"Authorization": "Bearer token", "User-Agent": "mine"})
    assert (asked.headers["authorization"], asked.headers["user-agent"]) == ("Bearer token", "mine")
    assert asked.headers["content-type"] == "application/json"


@pytest.mark.parametrize("kind", ["job.completed", "job.failed", "job.cancelled", "job.stalled", "hook.test"])
async def test_a_cloudevent_is_read_by_the_official_library(kind: str) -> None:
    asked = await sent(event(kind), form="cloudevents", secrets=[OLD])
    told = from_http_event(HTTPMessage(headers=asked.headers, body=asked.body))
    assert (told.get_id(), told.get_type(), told.get_source()) == ("evt_1", kind, "https://hooks.example.com/v1/jobs")
    assert (told.get_specversion(), told.get_subject(), told.get_datacontenttype()) == ("1.0", "job_1", "application/json")
    assert told.get_time() == datetime(2024, 4, 5, tzinfo=UTC)
    assert told.get_data() == json.loads(event(kind))["data"]
    older = from_http(asked.headers, asked.body)
    assert (older["id"], older["type"], older.data) == ("evt_1", kind, told.get_data())
    assert Webhook(OLD).verify(asked.body, asked.headers)["id"] == "evt_1", "signed as it is sent"
    assert asked.headers["content-type"] == "application/cloudevents+json"


@pytest.mark.parametrize("url", ["/v1/jobs/job_1", ""])
def test_a_cloudevents_source_is_never_empty(url: str) -> None:
    assert json.loads(body("evt_1", event(url=url), "cloudevents"))["source"] == "/v1/jobs"


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (event(), "Job job_1 completed: 12 pages. https://hooks.example.com/v1/jobs/job_1"),
        (event("job.failed", url="/v1/jobs/job_1", failedUrls=3), "Job job_1 failed: 12 pages, 3 of them with an error"),
        (event(url="", generation=2), "Job job_1 completed, for time number 2: 12 pages"),
        (event("job.stalled", stalledSeconds=1900), "Job job_1 has made no progress for 31 minutes"),
        (event("hook.test"), "A test of this hook: hook.test"),
    ],
)
async def test_a_chat_gets_a_line_of_text(payload: str, text: str) -> None:
    assert json.loads((await sent(payload, form="slack")).body) == {"text": text}
