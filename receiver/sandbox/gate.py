"""What every request passes: it is written down, given an id, asked for its key, counted, perhaps refused."""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from receiver.sandbox.draws import draw, token
from receiver.sandbox.engine import Engine
from receiver.sandbox.faults import Hit
from receiver.sandbox.ledger import RequestRow
from receiver.sandbox.limits import rate_limited
from receiver.sandbox.misdeeds import misdeed, spoil
from receiver.sandbox.problems import ApiError, not_found
from receiver.sandbox.times import http_date, next_month
from receiver.sandbox.visit import Visit, received

_FORWARDED: Final = frozenset({"forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip"})
_SERVER_ERRORS: Final = (("internal_error", 500), ("upstream_unavailable", 502), ("scrape_timeout", 504))


class Gate:
    """In front of the whole application."""

    def __init__(self, app: ASGIApp, engine: Engine) -> None:
        self._app = app
        self._engine = engine
        self._served = 0
        self._broken: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        self._served += 1
        request_id = "req_" + token(self._engine.options.seed, 20, "request", self._served)
        headers = Headers(scope=scope)
        ours = scope["path"].startswith("/sandbox/") or scope["path"] == "/openapi.json"
        row = self._row(scope, headers)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(raw=message.setdefault("headers", []))["x-request-id"] = request_id
                row.status = message["status"]
                if not ours:
                    self._engine.ledger.answered(row)
            await send(message)

        try:
            visit, receive = await received(scope, row, receive)
            if ours:
                _refuse_strangers(scope, headers)
                await self._app(scope, receive, answer)
                return
            self._engine.ledger.request(row)
            await self._admit(visit, headers)
            hit = misdeed(self._engine, visit)
            if hit is None:
                await self._app(scope, receive, answer)
            else:
                await spoil(hit, self._engine, self._app, scope, receive, answer)
        except ApiError as refusal:
            await problem(refusal)(scope, receive, answer)
        if row.status is None and not ours:
            self._engine.ledger.answered(row)

    def _row(self, scope: Scope, headers: Headers) -> RequestRow:
        key = headers.get("x-api-key")
        query = scope["query_string"].decode("latin-1")
        return RequestRow(self._engine.now(), scope["method"], scope["path"], query, key[-4:] if key else None)

    async def _admit(self, visit: Visit, headers: Headers) -> None:
        """Raises `ApiError` when the request is not let in."""
        engine = self._engine
        if hit := visit.strikes(engine.faults, "latency"):
            await engine.closed_within(hit.number())
        if not visit.row.path.startswith("/v1/"):
            raise not_found("Path")
        if headers.get("x-api-key") != engine.key:
            raise ApiError("unauthenticated", "Missing or invalid API key")
        self._refuse_by_fault(visit)
        engine.workspace.window.take(engine.now())
        self._break_by_fault(visit)

    def _refuse_by_fault(self, visit: Visit) -> None:
        engine, faults = self._engine, self._engine.faults
        window = engine.workspace.window
        if visit.strikes(faults, "unauthorized"):
            raise ApiError("unauthenticated", "Missing or invalid API key")
        if hit := visit.strikes(faults, "rate_limit"):
            raise rate_limited(hit.number(), window.limit, window.seconds)
        bare = ApiError("rate_limited", "Rate limit exceeded")
        if visit.strikes(faults, "rate_limit_bare"):
            raise bare
        if hit := visit.strikes(faults, "rate_limit_date"):
            bare.headers["Retry-After"] = http_date(engine.clock.wall() + hit.number())
            raise bare
        if hit := visit.strikes(faults, "rate_limit_odd"):
            bare.headers["Retry-After"] = _header(hit.value)
            raise bare
        costs = visit.row.path == "/v1/read" or visit.row.path.endswith("/retry")
        if costs and visit.strikes(faults, "out_of_credits"):
            details = {"required": 1, "available": 0, "resetAt": next_month(engine.now())}
            raise ApiError("insufficient_credits", "Insufficient credits", details)

    def _break_by_fault(self, visit: Visit) -> None:
        faults = self._engine.faults
        if faults.in_run("error_burst", visit.about):
            visit.note("error_burst")
            raise self._server_error(visit, None)
        if hit := visit.strikes(faults, "error_burst"):
            faults.begin_run("error_burst", visit.about, int(hit.number()) - 1)
            raise self._server_error(visit, None)
        if hit := visit.strikes(faults, "server_error"):
            raise self._server_error(visit, hit)

    def _server_error(self, visit: Visit, hit: Hit | None) -> ApiError:
        broken = self._broken[visit.about] = self._broken.get(visit.about, 0) + 1
        pick = draw(self._engine.options.seed, "5xx", visit.about, broken)
        code, status = _SERVER_ERRORS[int(pick * len(_SERVER_ERRORS))]
        if hit is not None and hit.value is not None:
            code, status = next(error for error in _SERVER_ERRORS if error[1] == hit.value)
        return ApiError(code, "Something went wrong", status=status)


def problem(refusal: ApiError) -> Response:
    """An error as an answer."""
    headers = {"content-type": "application/json", **refusal.headers}
    return Response(refusal.body(), refusal.status, headers)


def _refuse_strangers(scope: Scope, headers: Headers) -> None:
    """Raises `ApiError` not_found unless it is from this machine, by a local name and through no proxy."""
    peer = scope["client"][0] if scope["client"] else ""
    host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    if not (_loopback(peer) and (host == "localhost" or _loopback(host))) or _FORWARDED & set(headers.keys()):
        raise not_found("Path")


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _header(value: object) -> str:
    """Any text as a header can carry it."""
    return "".join(char for char in str(value) if " " <= char <= "~")[:1000]
