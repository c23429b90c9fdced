"""What stands before every page: who may see it, and whether a form that comes in is one of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

from receiver.errors import ReceiverError, UsageError
from receiver.web.auth import UnauthenticatedError
from receiver.web.dashboard.session import LASTS, Sessions, form_token, is_form_token

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from receiver.clock import Clock
    from receiver.web.auth import Gate

SESSION: Final = "receiver_session"
_VISIT: Final = "receiver_visit"
_LARGEST_FORM = 16 << 10


class LoggedOutError(ReceiverError):
    """Nobody has shown a key here yet, or it was too long ago."""

    fault = "user"
    status = 401
    code = "unauthenticated"


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks. `token` is for the forms of the pages they see; `cookie` is to be set where it is new."""

    token: str
    may_log_out: bool
    cookie: str | None = None


class Access:
    """`needs_key`: whether one must log in; else the gate alone decides. `public_url`: where the world reaches us, if known."""

    def __init__(self, gate: Gate, sessions: Sessions, clock: Clock, *, needs_key: bool, public_url: str | None) -> None:
        self._gate = gate
        self._sessions = sessions
        self._clock = clock
        self._needs_key = needs_key
        self._public = urlsplit(public_url or "")

    def check(self, request: Request) -> Visitor:
        """Raises `LoggedOutError` where a key is to be shown, `UnauthenticatedError` where none would help."""
        if not self._needs_key:
            self._gate.check_peer(request)
            visit = request.cookies.get(_VISIT)
            fresh = None if visit else self._clock.token()
            return Visitor(form_token(visit or fresh or ""), may_log_out=False, cookie=fresh)
        session = request.cookies.get(SESSION)
        if session is not None and self._sessions.holds(session):
            return Visitor(form_token(session), may_log_out=True)
        try:
            self._gate.check_peer(request)
        except UnauthenticatedError:
            raise LoggedOutError("log in with one of RECEIVER_API_KEYS") from None
        return Visitor("", may_log_out=False)  # a program that shows the key each time

    async def form(self, request: Request) -> dict[str, str]:
        """What was filled in, of a form that we made for this visitor. Raises `UsageError`."""
        given = await self.foreign_form(request)
        cookie = request.cookies.get(SESSION if self._needs_key else _VISIT)
        if not is_form_token(given.pop("token", ""), cookie):
            raise UsageError("this form is not from a page of ours that was made for you: load the page again, and repeat it")
        return given

    async def foreign_form(self, request: Request) -> dict[str, str]:
        """The same, without the token: of somebody who has none yet. Still not from another site's page."""
        if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            raise UsageError("this form was sent by another site's page")
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower():
            raise UsageError("this form was sent by another site's page")
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > _LARGEST_FORM:
                raise UsageError("this form is larger than any of ours")
        return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=20))

    def remember(self, request: Request, response: Response, visitor: Visitor) -> None:
        """Set the cookie that the visitor's next form is known by."""
        if visitor.cookie is not None:
            self._set(request, response, _VISIT, visitor.cookie, None)

    def let_in(self, request: Request, response: Response, session: str) -> None:
        """Set the cookie of a session."""
        self._set(request, response, SESSION, session, LASTS)

    def let_out(self, request: Request, response: Response) -> None:
        """Take it away."""
        self._set(request, response, SESSION, "", 0)

    def _set(self, request: Request, response: Response, name: str, value: str, max_age: int | None) -> None:
        # `lax`, so that a link to a job in a chat leads there; what changes something needs the form's token too.
        path, secure = f"{request.scope.get('root_path', '')}/dashboard", self._is_secure(request)
        response.set_cookie(name, value, max_age=max_age, path=path, secure=secure, httponly=True, samesite="lax")

    def _is_secure(self, request: Request) -> bool:
        """Whether the browser came by TLS, here or at a proxy: only then it would send a cookie back that asks for it."""
        if request.url.scheme == "https" or request.headers.get("x-forwarded-proto", "").lower() == "https":
            return True
        return self._public.scheme == "https" and self._public.netloc.lower() == request.headers.get("host", "").lower()
