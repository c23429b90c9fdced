"""The dashboard's addresses, and what is the same for all of them: access, errors, logging in and out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import structlog
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from receiver.errors import ReceiverError, StoreError, UnknownJobError, UsageError
from receiver.web.auth import UnauthenticatedError
from receiver.web.dashboard.access import Access, LoggedOutError, Visitor
from receiver.web.dashboard.arrived import Deliveries
from receiver.web.dashboard.hooked import Hooks
from receiver.web.dashboard.live import Live
from receiver.web.dashboard.pages import Pages
from receiver.web.dashboard.render import SECURE, Templates
from receiver.web.dashboard.session import Sessions, Tries

if TYPE_CHECKING:
    from starlette.requests import Request

    from receiver.clock import Clock
    from receiver.settings import Settings
    from receiver.store.engine import Database
    from receiver.web.auth import Gate

Act = Callable[[str], Awaitable[object]]
Page = Callable[["Request", Visitor], Awaitable[Response]]


log = structlog.get_logger("receiver.dashboard")


class Dashboard:
    """As `Api`. `acts`, `hook_acts`: by name, what changes a job, and a hook. `stopping()`: set once the server begins to stop."""

    def __init__(
        self,
        database: Callable[[], Database | None],
        *,
        settings: Settings,
        gate: Gate,
        clock: Clock,
        acts: Mapping[str, Act],
        hook_acts: Mapping[str, Act],
        stopping: Callable[[], asyncio.Event | None],
    ) -> None:
        keys = [key.get_secret_value() for key in settings.receiver_api_keys]
        self._database = database
        self._sessions = Sessions(keys, clock)
        self._access = Access(gate, self._sessions, clock, needs_key=bool(keys), public_url=settings.receiver_public_url)
        self._tries = Tries(clock)
        self._templates = Templates()
        self._acts = acts
        self._hook_acts = hook_acts
        self._stopping = stopping
        self._pages = Pages(self._store, self._templates, settings, clock)
        self._live = Live(self._pages.look, clock)
        self._pages.version = self._live.version
        self._deliveries = Deliveries(self._store, self._templates, settings, clock, self._live.version)
        self._hooks = Hooks(self._store, self._templates, self._live.version)

    def routes(self) -> list[Route]:
        """What it answers."""
        pages, deliveries, hooks = self._pages, self._deliveries, self._hooks
        return [
            Route("/dashboard", self._shown(pages.overview), methods=["GET"]),
            Route("/dashboard/jobs", self._shown(pages.jobs), methods=["GET"]),
            Route("/dashboard/jobs/{job_id}", self._shown(pages.job), methods=["GET"]),
            Route("/dashboard/jobs/{job_id}/results/{position:int}", self._shown(pages.result), methods=["GET"]),
            Route("/dashboard/jobs/{job_id}/download", self._shown(pages.download), methods=["GET"]),
            Route("/dashboard/jobs/{job_id}/{act}", self._shown(self.act), methods=["POST"]),
            Route("/dashboard/deliveries", self._shown(deliveries.listed), methods=["GET"]),
            Route("/dashboard/deliveries/{number:int}", self._shown(deliveries.one), methods=["GET"]),
            Route("/dashboard/deliveries/{number:int}/body", self._shown(deliveries.body), methods=["GET"]),
            Route("/dashboard/hooks", self._shown(hooks.listed), methods=["GET"]),
            Route("/dashboard/hooks/one", self._shown(hooks.one), methods=["GET"]),
            Route("/dashboard/hooks/{act}", self._shown(self.act_on_hook), methods=["POST"]),
            Route("/dashboard/live", self._shown(self.live), methods=["GET"]),
            Route("/dashboard/login", self.login, methods=["GET", "POST"]),
            Route("/dashboard/logout", self._shown(self.logout), methods=["POST"]),
            Route("/dashboard/static/{name}", self.static, methods=["GET"]),
        ]

    def _shown(self, page: Page) -> Callable[[Request], Awaitable[Response]]:
        """`page` for those who may see it; our errors are pages too."""

        async def answer(request: Request) -> Response:
            visitor = None
            try:
                visitor = self._access.check(request)
                response = await page(request, visitor)
                self._access.remember(request, response, visitor)
            except LoggedOutError as error:
                if request.method != "GET" or request.url.path.endswith("/live"):
                    return self._failure(request, error, None)
                asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
                return RedirectResponse(f"{_root(request)}/login?{urlencode({'next': asked})}", 303, headers=SECURE)
            except ReceiverError as error:
                return self._failure(request, error, visitor)
            except asyncio.CancelledError:  # by a server that is stopping and waits no longer
                return self._failure(request, StoreError("the server is stopping"), visitor)
            return response

        return answer

    def _failure(self, request: Request, error: ReceiverError, visitor: Visitor | None) -> Response:
        return self._templates.page(request, "error", visitor, status=error.status, error=error)

    def _store(self) -> Database:
        store = self._database()
        if store is None:
            raise StoreError("the receiver is not started")
        return store

    async def login(self, request: Request) -> Response:
        """The page with the one field, and what is written into it."""
        target = request.query_params.get("next", "")
        try:
            self._access.check(request)
            return RedirectResponse(_within(request, target), 303, headers=SECURE)
        except LoggedOutError:
            pass
        except UnauthenticatedError as error:
            return self._failure(request, error, None)
        if request.method == "GET":
            return self._asking(request, None)
        try:
            given = await self._access.foreign_form(request)
        except UsageError as error:
            return self._failure(request, error, None)
        return self._shown_key(request, given.get("key", "").strip(), target)

    def _shown_key(self, request: Request, key: str, target: str) -> Response:
        address = request.client.host if request.client else ""
        if wait := self._tries.wait(address):
            response = self._asking(request, f"Too many wrong keys. Wait {wait:.0f} seconds, then try again.", status=429)
            response.headers["retry-after"] = f"{wait:.0f}"
            return response
        session = self._sessions.begin(key)
        if session is None:
            self._tries.failed(address)
            log.warning("login_refused", address=address)
            return self._asking(request, "That is not one of this receiver's API keys.", status=401)
        response = RedirectResponse(_within(request, target), 303, headers=SECURE)
        self._access.let_in(request, response, session)
        return response

    def _asking(self, request: Request, problem: str | None, *, status: int = 200) -> Response:
        target = request.query_params.get("next", "")
        return self._templates.page(request, "login", None, status=status, target=target, problem=problem)

    async def logout(self, request: Request, _: Visitor) -> Response:
        """Take the session's cookie away."""
        await self._access.form(request)
        response = RedirectResponse(f"{_root(request)}/login", 303, headers=SECURE)
        self._access.let_out(request, response)
        return response

    async def act(self, request: Request, _: Visitor) -> Response:
        """Do something with a job, once its form has shown that it is ours; then its page again."""
        job_id, name = request.path_params["job_id"], request.path_params["act"]
        if name not in self._acts:
            raise UnknownJobError(f"nothing is done by {name!r}: {', '.join(sorted(self._acts))} are known")
        await self._access.form(request)
        await self._acts[name](job_id)
        return RedirectResponse(f"{_root(request)}/jobs/{job_id}?done={name}", 303, headers=SECURE)

    async def act_on_hook(self, request: Request, _: Visitor) -> Response:
        """The same of a hook, which the form names."""
        name = request.path_params["act"]
        if name not in self._hook_acts:
            raise UnknownJobError(f"nothing is done by {name!r}: {', '.join(sorted(self._hook_acts))} are known")
        hook = (await self._access.form(request)).get("name", "")
        await self._hook_acts[name](hook)
        return RedirectResponse(f"{_root(request)}/hooks/one?{urlencode({'name': hook, 'done': name})}", 303, headers=SECURE)

    async def live(self, request: Request, _: Visitor) -> Response:
        """Server-sent events: the version of what `?topic=` shows, whenever it changes."""
        stopping = self._stopping()
        if self._live.is_full or stopping is None:
            raise StoreError("too many look at once: this page is fetched anew every few seconds instead")
        topic = self._pages.topic(request.query_params.get("topic", ""))
        events = self._live.follow(self._store(), topic, until=stopping)
        headers = SECURE | {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def static(self, request: Request) -> Response:
        """Styles and scripts: the same for everybody, and no secret."""
        found = self._templates.static(request.path_params["name"], request.query_params.get("v"))
        return Response(status_code=404, headers=SECURE) if found is None else found


def _root(request: Request) -> str:
    return f"{request.scope.get('root_path', '')}/dashboard"


def _within(request: Request, target: str) -> str:
    """A path of the dashboard, and nothing else: a link to the login page must not lead to another site."""
    root = _root(request)
    beyond = target.removeprefix(root)
    inside = target.startswith(root) and beyond[:1] in {"", "/", "?"} and "\\" not in target and target.isprintable()
    return target if inside else root
