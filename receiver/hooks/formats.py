"""The shapes in which an event goes out: ours, CloudEvents 1.0, or a line of text for a chat. The data are the same in all."""

from __future__ import annotations

import json
from typing import Any, Final, Literal, TypeAlias

Format: TypeAlias = Literal["standard", "cloudevents", "slack"]

CONTENT_TYPES: Final[dict[Format, str]] = {
    "standard": "application/json",
    "cloudevents": "application/cloudevents+json",
    "slack": "application/json",
}


def body(event_id: str, payload: str, form: Format) -> str:
    """What is sent: the same at each attempt, as it is signed."""
    if form == "standard":
        return payload
    event = json.loads(payload)
    shaped = _cloudevent(event_id, event) if form == "cloudevents" else {"text": _told(event)}
    return json.dumps(shaped, ensure_ascii=True, separators=(",", ":"))


def _cloudevent(event_id: str, event: dict[str, Any]) -> dict[str, Any]:
    """Structured mode, https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md."""
    data = event["data"]
    job_id = str(data["job"]["id"])
    return {
        "specversion": "1.0",
        "id": event_id,
        "source": str(data.get("resultsUrl", "")).removesuffix(f"/{job_id}") or "/v1/jobs",
        "type": event["type"],
        "subject": job_id,
        "time": event["timestamp"],
        "datacontenttype": "application/json",
        "data": data,
    }


def _told(event: dict[str, Any]) -> str:
    """As one would say it; `text` is what Slack, Mattermost and others take."""
    data = event["data"]
    job = data["job"]
    if event["type"] == "job.stalled":
        return f"Job {job['id']} has made no progress for {data.get('stalledSeconds', 0) // 60} minutes"
    if not str(event["type"]).startswith("job."):
        return f"A test of this hook: {event['type']}"
    status = str(event["type"]).removeprefix("job.")
    failed = data.get("failedUrls", 0)
    pages = f"{job['completed']} pages" if isinstance(job.get("completed"), int) else "its results are stored"
    also = f", {failed} of them with an error" if failed else ""
    again = f", for time number {data['generation']}" if data.get("generation", 1) > 1 else ""
    where = str(data.get("resultsUrl", ""))
    return f"Job {job['id']} {status}{again}: {pages}{also}" + (f". {where}" if where.startswith("http") else "")
