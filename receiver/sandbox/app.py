"""The routes. Before them stands the gate (gate.py): it lets requests in, counts them, writes them down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from receiver.sandbox import account_api, control, jobs_api
from receiver.sandbox.engine import Engine
from receiver.sandbox.gate import Gate, problem
from receiver.sandbox.problems import ApiError, not_found

Endpoint = Callable[[Request], Awaitable[Response]]

_ANY: Final = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_ROUTES: Final[tuple[tuple[str, str, Endpoint], ...]] = (
    ("POST", "/v1/read", jobs_api.read),
    ("GET", "/v1/jobs/{id}", jobs_api.job),
    ("DELETE", "/v1/jobs/{id}", jobs_api.cancel),
    ("POST", "/v1/jobs/{id}/retry", jobs_api.retry),
    ("GET", "/v1/jobs/{id}/stream", jobs_api.stream),
    ("GET", "/v1/events", jobs_api.events),
    ("POST", "/v1/webhooks", account_api.create_webhook),
    ("GET", "/v1/webhooks", account_api.list_webhooks),
    ("PATCH", "/v1/webhooks/{id}", account_api.change_webhook),
    ("DELETE", "/v1/webhooks/{id}", account_api.delete_webhook),
    ("GET", "/v1/usage/credits", account_api.balance),
    ("GET", "/v1/usage/history", account_api.history),
    ("GET", "/v1/queue/status", account_api.queue),
    ("POST", "/v1/sessions", account_api.open_session),
    ("GET", "/v1/sessions", account_api.list_sessions),
    ("GET", "/v1/sessions/{id}", account_api.get_session),
    ("DELETE", "/v1/sessions/{id}", account_api.stop_session),
    ("GET", "/openapi.json", control.openapi),
    ("GET", "/sandbox/faults", control.get_faults),
    ("POST", "/sandbox/faults", control.set_faults),
    ("GET", "/sandbox/ledger", control.get_ledger),
)


def build(engine: Engine) -> ASGIApp:
    """The whole sandbox as an ASGI application."""
    handlers = {ApiError: _refused, HTTPException: _unrouted}
    app = Starlette(routes=_routes(), exception_handlers=handlers)  # type: ignore[arg-type]
    app.state.engine = engine
    # Reader answers the paths it has; a redirect to one with or without a slash would be an answer of ours.
    app.router.redirect_slashes = False
    served: ASGIApp = GZipMiddleware(app, minimum_size=500) if engine.options.gzip else app
    return Gate(served, engine)


def _routes() -> list[Route]:
    """One route per path, so that a wrong method is told which are right. No HEAD: streams never end it."""
    by_path: dict[str, dict[str, Endpoint]] = {}
    for method, path, endpoint in _ROUTES:
        by_path.setdefault(path, {})[method] = endpoint
    routes = [Route(path, _dispatch(endpoints), methods=list(endpoints)) for path, endpoints in by_path.items()]
    for route in routes:
        (route.methods or set()).discard("HEAD")
    traps = [Route(path, control.trap, methods=_ANY) for path in ("/sandbox/trap", "/sandbox/trap/{rest:path}")]
    return [*routes, *traps]


def _dispatch(endpoints: dict[str, Endpoint]) -> Endpoint:
    async def serve(request: Request) -> Response:
        return await endpoints[request.method](request)

    return serve


async def _refused(_: Request, exc: ApiError) -> Response:
    return problem(exc)


async def _unrouted(_: Request, exc: HTTPException) -> Response:
    if exc.status_code == 405:
        allow = (exc.headers or {}).get("Allow", "")
        return problem(ApiError("invalid_request", f"Allowed here: {allow}", status=405, headers={"Allow": allow}))
    return problem(not_found("Path"))
