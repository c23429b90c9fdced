"""The schemas of `GET /openapi.json`: open where the vendor adds fields, strict where a client may rely on them."""

from __future__ import annotations

from typing import Any, Final

from receiver.reader.shapes import ERROR_STATUS, EVENTS, MAX_URLS

Shape = dict[str, Any]


def shape(name: str) -> Shape:
    """A reference to one of `SHAPES`."""
    return {"$ref": f"#/components/schemas/{name}"}


def enveloped(data: Shape, **more: Shape) -> Shape:
    """`{"success": true, "data": …}` and what stands beside it."""
    members = {"success": {"const": True}, "data": data, **more}
    return {"type": "object", "required": list(members), "properties": members}


def listed(data: Shape) -> Shape:
    """An envelope with `pagination`."""
    return enveloped(data, pagination=shape("Pagination"))


def _object(required: str = "", **properties: Shape) -> Shape:
    found: Shape = {"type": "object", "properties": properties}
    return found | {"required": required.split()} if required else found


def _text(**more: Any) -> Shape:
    return {"type": "string", **more}


def _whole(low: int, high: int | None = None) -> Shape:
    return {"type": "integer", "minimum": low} | ({} if high is None else {"maximum": high})


def _list(items: Shape, **more: Any) -> Shape:
    return {"type": "array", "items": items, **more}


def _or_null(one: Shape) -> Shape:
    return {"anyOf": [one, {"type": "null"}]}


_STRING: Final = _text()
_NUMBER: Final = {"type": "number"}
_FLAG: Final = {"type": "boolean"}
_ANYTHING: Final[Shape] = {"type": "object"}
_TIME: Final = _text(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z$")
_URL: Final = _text(format="uri", pattern="^https?://", maxLength=8192)
_EVENT_LIST: Final = _list(_text(enum=sorted(EVENTS)), minItems=1)
_SECRET: Final = _text(minLength=16, maxLength=256)
_HEADERS: Final = {
    "type": "object",
    "maxProperties": 50,
    "propertyNames": {"pattern": "^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$"},
    "additionalProperties": _text(pattern="^[\\t\\x20-\\x7e]{0,1000}$"),
}
_STATUS: Final = _text(enum=["queued", "processing", "completed", "failed", "cancelled"])

_READ_FIELDS: Final[Shape] = {
    "formats": _list(_text(enum=["markdown", "html"]), minItems=1),
    "onlyMainContent": _FLAG,
    "includeTags": _list(_STRING),
    "excludeTags": _list(_STRING),
    "waitForSelector": _STRING,
    "timeoutMs": _whole(1_000, 120_000),
    "proxyMode": _text(enum=["auto", "standard", "premium", "stealth"]),
    "batchConcurrency": _whole(1, 20),
    "maxConcurrency": _whole(1, 1_000),
    "cache": _FLAG,
    "extract": _ANYTHING,
    "webhook": _object("url", url=_URL, events=_EVENT_LIST, secret=_SECRET),
    "maxDepth": _whole(1, 10),
    "maxPages": _whole(1, 10_000),
}
READ: Final[Shape] = {
    "oneOf": [
        {"title": "One page", **_object("url", url=_URL, **_READ_FIELDS), "not": {"required": ["urls"]}},
        {
            "title": "A batch",
            **_object("urls", urls=_list(_URL, minItems=1, maxItems=MAX_URLS), **_READ_FIELDS),
            "not": {"required": ["url"]},
        },
    ]
}

_HOOK_FIELDS: Final[Shape] = {
    "url": _URL,
    "name": _text(minLength=1, maxLength=100),
    "events": _EVENT_LIST,
    "secret": _SECRET,
    "headers": _HEADERS,
}
CREATE_WEBHOOK: Final = _object("url name events", **_HOOK_FIELDS)
PATCH_WEBHOOK: Final = _object(**_HOOK_FIELDS, active=_FLAG)

_JOB: Final[Shape] = {
    "id": _STRING,
    "status": _STATUS,
    "mode": _text(enum=["batch", "crawl"]),
    "completed": _whole(0),
    "total": _whole(0),
    "creditsUsed": _whole(0),
    "error": _or_null(_STRING),
    "startedAt": _or_null(_TIME),
    "completedAt": _or_null(_TIME),
    "createdAt": _TIME,
}
_JOB_REQUIRED: Final = "id status mode completed total creditsUsed createdAt"

SHAPES: Final[Shape] = {
    "Error": _object(
        "success error",
        success={"const": False},
        error=_object("code message", code=_text(enum=list(ERROR_STATUS)), message=_STRING, details=_ANYTHING, docsUrl=_STRING),
    ),
    "Pagination": _object(
        "total skip limit hasMore", total=_whole(0), skip=_whole(0), limit=_whole(1), hasMore=_FLAG, next=_or_null(_STRING)
    ),
    "Result": _object(
        "url metadata",
        url=_STRING,
        markdown=_or_null(_STRING),
        html=_or_null(_STRING),
        statusCode=_whole(100, 599),
        proxyMode=_STRING,
        credits=_whole(0),
        error=_or_null(_STRING),
        metadata=_ANYTHING,
    ),
    "Job": _object(_JOB_REQUIRED, **_JOB),
    "JobWithResults": _object(f"{_JOB_REQUIRED} results", **_JOB, results=_list(shape("Result"))),
    "Scrape": _object(
        "url metadata",
        url=_STRING,
        finalUrl=_STRING,
        markdown=_STRING,
        html=_STRING,
        metadata=_object("duration cached scrapedAt", duration=_whole(0), cached=_FLAG, scrapedAt=_TIME),
    ),
    "Cancelled": _object("id status", id=_STRING, status={"const": "cancelled"}),
    "Retrying": _object("id status retrying", id=_STRING, status={"const": "queued"}, retrying=_whole(1)),
    "Deleted": _object("id deleted", id=_STRING, deleted={"const": True}),
    "Webhook": _object(
        "id url name events headers active createdAt updatedAt deliveryStats",
        id=_STRING,
        url=_STRING,
        name=_STRING,
        events=_EVENT_LIST,
        secret=_SECRET,
        headers=_ANYTHING,
        active=_FLAG,
        createdAt=_TIME,
        updatedAt=_TIME,
        deliveryStats=_object(
            "totalAttempts failedDeliveries lastDeliveryAt lastDeliveryStatus",
            totalAttempts=_whole(0),
            failedDeliveries=_whole(0),
            lastDeliveryAt=_or_null(_TIME),
            lastDeliveryStatus=_or_null(_whole(100, 599)),
        ),
    ),
    "Credits": _object(
        "balance limit used tier resetAt", balance=_whole(0), limit=_whole(0), used=_whole(0), tier=_STRING, resetAt=_TIME
    ),
    "Usage": _object(
        "id url duration status cached proxyMode credits error createdAt",
        id=_STRING,
        url=_STRING,
        duration=_NUMBER,
        status=_text(enum=["success", "error"]),
        cached=_FLAG,
        proxyMode=_STRING,
        credits=_whole(0),
        error=_or_null(_STRING),
        createdAt=_TIME,
    ),
    "Queue": _object(
        "activeJobs waitingJobs maxConcurrency", activeJobs=_whole(0), waitingJobs=_whole(0), maxConcurrency=_whole(1)
    ),
    "NewSession": _object(maxDurationMs=_whole(1, 3_600_000)),
    "Session": _object(
        "sessionId wsEndpoint token status createdAt expiresAt",
        sessionId=_STRING,
        wsEndpoint=_STRING,
        token=_STRING,
        status=_text(enum=["active", "stopped", "expired"]),
        createdAt=_TIME,
        expiresAt=_TIME,
    ),
    "StoppedSession": _object(
        "sessionId status durationMs creditsCharged",
        sessionId=_STRING,
        status={"const": "stopped"},
        durationMs=_whole(0),
        creditsCharged=_whole(0),
    ),
}
