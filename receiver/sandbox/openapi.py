"""`GET /openapi.json`: Reader's API as the sandbox speaks it."""

from __future__ import annotations

from typing import Any, Final

from receiver.reader.shapes import ERROR_STATUS, MAX_PAGE, MAX_URLS
from receiver.sandbox.openapi_shapes import CREATE_WEBHOOK, PATCH_WEBHOOK, READ, SHAPES, enveloped, listed, shape

_SKIP: Final = {"name": "skip", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": 10**12, "default": 0}}
_LIMIT: Final = {
    "name": "limit",
    "in": "query",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 20},
}
_KEY: Final = {
    "name": "x-idempotency-key",
    "in": "header",
    "description": "The first answer is returned for the same key, for 24 hours.",
    "schema": {"type": "string", "maxLength": 255},
}
_REQUEST_ID: Final = {"x-request-id": {"required": True, "schema": {"type": "string", "minLength": 1}}}
_COSTLY: Final = ("insufficient_credits", "concurrency_limited")
_ANY_TIME: Final = ("invalid_request", "unauthenticated", "rate_limited", "internal_error", "upstream_unavailable")


def document(url: str) -> dict[str, Any]:
    """OpenAPI 3.1, for the sandbox at this URL."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Reader API (sandbox)",
            "version": "1",
            "description": f"Batches of at most {MAX_URLS} URLs; results in pages of at most {MAX_PAGE}.",
        },
        "servers": [{"url": url}],
        "security": [{"key": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "x-api-key"}},
            "schemas": SHAPES,
        },
    }


def _paths() -> dict[str, Any]:
    job, hook, session = _identified("job"), _identified("webhook"), _identified("session")
    return {
        "/v1/read": {
            "post": {
                **_operation("read", "Read one page, or start a batch or a crawl"),
                "parameters": [_KEY],
                "requestBody": _json(READ),
                "responses": _responses(
                    {
                        200: ("One page", _content(enveloped(shape("Scrape")))),
                        201: ("A job", _content(enveloped(shape("Job")))),
                    },
                    "scrape_timeout",
                    "url_blocked",
                    *_COSTLY,
                ),
            }
        },
        "/v1/jobs/{id}": {
            "parameters": [job],
            "get": _get("job", "A job and a page of its results", listed(shape("JobWithResults")), _SKIP, _LIMIT, missing=True),
            "delete": _delete("cancel", "Stop a job", shape("Cancelled"), "not_found", "conflict"),
        },
        "/v1/jobs/{id}/retry": {
            "parameters": [job],
            "post": {
                **_operation("retry", "Queue again what failed"),
                "responses": _responses(
                    {200: ("Queued", _content(enveloped(shape("Retrying"))))}, "not_found", "conflict", *_COSTLY
                ),
            },
        },
        "/v1/jobs/{id}/stream": {
            "parameters": [job],
            "get": _stream("stream", "A job's events", ["progress", "page", "error", "done"], "not_found"),
        },
        "/v1/events": {"get": _stream("events", "The workspace's events", ["job:progress", "job:completed", "job:failed"])},
        "/v1/webhooks": {
            "post": {
                **_operation("createWebhook", "Register a webhook"),
                "requestBody": _json(CREATE_WEBHOOK),
                "responses": _responses({201: ("Registered", _content(enveloped(shape("Webhook"))))}, "conflict"),
            },
            "get": _get("listWebhooks", "The webhooks", listed({"type": "array", "items": shape("Webhook")}), _SKIP, _LIMIT),
        },
        "/v1/webhooks/{id}": {
            "parameters": [hook],
            "patch": {
                **_operation("changeWebhook", "Change a webhook"),
                "requestBody": _json(PATCH_WEBHOOK),
                "responses": _responses({200: ("Changed", _content(enveloped(shape("Webhook"))))}, "not_found"),
            },
            "delete": _delete("deleteWebhook", "Forget a webhook", shape("Deleted"), "not_found"),
        },
        "/v1/usage/credits": {"get": _get("credits", "The balance", enveloped(shape("Credits")))},
        "/v1/usage/history": {
            "get": _get("history", "What was read", listed({"type": "array", "items": shape("Usage")}), _SKIP, _LIMIT)
        },
        "/v1/queue/status": {"get": _get("queue", "How busy it is", enveloped(shape("Queue")))},
        "/v1/sessions": {
            "post": {
                **_operation("createSession", "Open a browser session"),
                "requestBody": _json(shape("NewSession")),
                "responses": _responses({201: ("Open", _content(enveloped(shape("Session"))))}),
            },
            "get": _get("listSessions", "Open sessions", enveloped({"type": "array", "items": shape("Session")})),
        },
        "/v1/sessions/{id}": {
            "parameters": [session],
            "get": _get("session", "A session", enveloped(shape("Session")), missing=True),
            "delete": _delete("stopSession", "Stop a session", shape("StoppedSession"), "not_found", "conflict"),
        },
    }


def _operation(name: str, summary: str) -> dict[str, Any]:
    return {"operationId": name, "summary": summary}


def _get(name: str, summary: str, body: dict[str, Any], *parameters: dict[str, Any], missing: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {**_operation(name, summary)}
    if parameters:
        found["parameters"] = list(parameters)
    return found | {"responses": _responses({200: (summary, _content(body))}, *(("not_found",) if missing else ()))}


def _delete(name: str, summary: str, body: dict[str, Any], *codes: str) -> dict[str, Any]:
    return {**_operation(name, summary), "responses": _responses({200: (summary, _content(enveloped(body)))}, *codes)}


def _stream(name: str, summary: str, events: list[str], *codes: str) -> dict[str, Any]:
    event = {"type": "object", "properties": {"event": {"enum": events}, "data": {"type": "string"}}}
    content = {"text/event-stream": {"schema": event}}
    return {**_operation(name, summary), "responses": _responses({200: (summary, content)}, *codes)}


def _responses(good: dict[int, tuple[str, dict[str, Any]]], *codes: str) -> dict[str, Any]:
    told = {
        str(status): {"description": text, "headers": _REQUEST_ID, "content": content} for status, (text, content) in good.items()
    }
    by_status: dict[int, list[str]] = {}
    for code in (*_ANY_TIME, *codes):
        by_status.setdefault(ERROR_STATUS[code], []).append(code)
    for status, these in sorted(by_status.items()):
        content = _content(shape("Error"))
        told[str(status)] = {"description": " or ".join(these), "headers": _REQUEST_ID, "content": content}
    return told


def _identified(what: str) -> dict[str, Any]:
    return {
        "name": "id",
        "in": "path",
        "required": True,
        "description": f"the {what}'s id",
        "schema": {"type": "string", "minLength": 1},
    }


def _content(body: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": body}}


def _json(body: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": _content(body)}
