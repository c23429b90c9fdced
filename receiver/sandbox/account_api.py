"""The workspace's own endpoints: webhooks, credits, history, the queue, browser sessions."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from receiver.reader.shapes import SESSION_CREATED, SESSION_STOPPED
from receiver.sandbox.answers import ok, paginated
from receiver.sandbox.draws import token
from receiver.sandbox.engine import Engine
from receiver.sandbox.intake import engine_of, json_body
from receiver.sandbox.problems import ApiError, invalid
from receiver.sandbox.times import iso
from receiver.sandbox.validation import page_query, webhook_fields

_SESSION_MS: Final = 600_000
_LONGEST_SESSION_MS: Final = 3_600_000


async def create_webhook(request: Request) -> Response:
    """Register one; its secret is shown here and never again."""
    engine = engine_of(request)
    fields = webhook_fields(await json_body(request), whole=True)
    hook = engine.workspace.hooks.create(fields, engine.now())
    shown = hook.row()
    if hook.secret is not None:
        shown["secret"] = hook.secret
    return ok(shown, 201)


async def list_webhooks(request: Request) -> Response:
    """All of them, paginated."""
    skip, limit = page_query(request.scope["query_string"])
    rows = [hook.row() for hook in engine_of(request).workspace.hooks]
    return paginated(rows[skip : skip + limit], len(rows), skip, limit)


async def change_webhook(request: Request) -> Response:
    """Change what is given."""
    engine = engine_of(request)
    hook_id = request.path_params["id"]
    engine.workspace.hooks.get(hook_id)
    fields = webhook_fields(await json_body(request), whole=False)
    if "secret" in fields and engine.faults.choice("patch_secret") == "refused":
        raise invalid(("secret", "can't be changed: delete the webhook and create it again"))
    if engine.faults.choice("patch_secret") == "ignored":
        fields.pop("secret", None)
    return ok(engine.workspace.hooks.change(hook_id, fields, engine.now()).row())


async def delete_webhook(request: Request) -> Response:
    """Forget it."""
    hook_id = request.path_params["id"]
    engine_of(request).workspace.hooks.delete(hook_id)
    return ok({"id": hook_id, "deleted": True})


async def balance(request: Request) -> Response:
    """The balance."""
    engine = engine_of(request)
    return ok(engine.workspace.credits(engine.now()))


async def queue(request: Request) -> Response:
    """How busy the workspace is."""
    engine = engine_of(request)
    return ok(engine.workspace.queue(engine.now()))


async def history(request: Request) -> Response:
    """Every page read, by the latest job first, then those read at once."""
    engine = engine_of(request)
    skip, limit = page_query(request.scope["query_string"])
    rows, total = _history(engine, skip, limit)
    return paginated(rows, total, skip, limit)


def _history(engine: Engine, skip: int, limit: int) -> tuple[list[dict[str, Any]], int]:
    now, seed = engine.now(), engine.options.seed
    rows: list[dict[str, Any]] = []
    total = 0
    for job in reversed(engine.workspace.jobs.values()):
        gathered = job.view(now).gathered
        for place in range(max(0, skip - total), min(len(gathered), skip + limit - total)):
            index = gathered[place]
            error, at = job.outcome(index)
            rows.append(_usage(token(seed, 16, "usage", job.id, index), job.url(index), at, error))
        total += len(gathered)
    scrapes = engine.workspace.scrapes
    for place in range(max(0, skip - total), min(len(scrapes), skip + limit - total)):
        url, at, good = scrapes[place]
        rows.append(_usage(token(seed, 16, "usage", "scrape", place), url, at, None if good else "upstream_unavailable"))
    return rows, total + len(scrapes)


def _usage(usage_id: str, url: str, at: float, error: str | None) -> dict[str, Any]:
    return {
        "id": f"use_{usage_id}",
        "url": url,
        "duration": 400,
        "status": "success" if error is None else "error",
        "cached": False,
        "proxyMode": "standard",
        "credits": 1 if error is None else 0,
        "error": error,
        "createdAt": iso(at),
    }


async def open_session(request: Request) -> Response:
    """A browser session."""
    engine = engine_of(request)
    longest = (await json_body(request)).get("maxDurationMs", _SESSION_MS)
    if not isinstance(longest, int) or isinstance(longest, bool) or not 1 <= longest <= _LONGEST_SESSION_MS:
        raise invalid(("maxDurationMs", f"expected a whole number from 1 to {_LONGEST_SESSION_MS}"))
    session = engine.workspace.open_session(longest, engine.now())
    engine.director.session(SESSION_CREATED, session.id)
    return ok(session.row(engine.url, engine.options.seed, engine.now()), 201)


async def list_sessions(request: Request) -> Response:
    """Those that are open."""
    engine = engine_of(request)
    now = engine.now()
    sessions = [session for session in engine.workspace.sessions.values() if session.status(now) == "active"]
    return ok([session.row(engine.url, engine.options.seed, now) for session in sessions])


async def get_session(request: Request) -> Response:
    """One of them."""
    engine = engine_of(request)
    session = engine.workspace.session(request.path_params["id"])
    return ok(session.row(engine.url, engine.options.seed, engine.now()))


async def stop_session(request: Request) -> Response:
    """Stop it, once."""
    engine = engine_of(request)
    now = engine.now()
    session = engine.workspace.session(request.path_params["id"])
    if session.status(now) != "active":
        raise ApiError("conflict", f"Session is already {session.status(now)}", {"status": session.status(now)})
    session.stopped_at = now
    engine.director.session(SESSION_STOPPED, session.id)
    told = {"sessionId": session.id, "status": "stopped", "durationMs": int(session.duration(now) * 1000)}
    return ok({**told, "creditsCharged": session.charged(now)})
