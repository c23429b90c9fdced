"""Who may ask: holders of one of `RECEIVER_API_KEYS`; without any, somebody at this very machine."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from receiver.errors import ReceiverError, UsageError

if TYPE_CHECKING:
    from starlette.requests import Request

_FORWARDING = (
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "cf-connecting-ip",
    "true-client-ip",
)
_HOST: Final = re.compile(
    r"(?:(?P<name>localhost)|(?P<four>[0-9.]+)|\[(?P<six>[0-9a-f]*:[0-9a-f:.]*)\])(?::[0-9]{0,5})?", re.IGNORECASE | re.ASCII
)
_OURSELVES: Final = frozenset({"same-origin", "none"})
"""`Sec-Fetch-Site` of a page that we served, and of an address that somebody typed."""


class UnauthenticatedError(ReceiverError):
    """No valid key, and not somebody at this machine either."""

    fault = "user"
    status = 401
    code = "unauthenticated"


class Gate:
    """`check(request)` raises `UnauthenticatedError`."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def check(self, request: Request) -> None:
        """Keys set: one must come, as `x-api-key` or a bearer token. None set: a loopback peer, asking for a local host, directly.

        The host is checked so that a page in a browser cannot reach us under a name of its own (DNS rebinding); forwarding
        headers mean that somebody else's request comes through a proxy on this machine. A page may also send a plain request
        straight to a local address, and the browser is at this machine: it says whose page it was, and cannot call the body JSON
        without asking us first. Raises `UsageError` for a body that is not called so.
        """
        self.check_peer(request)
        if not self._keys and request.method == "POST" and _has_body(request) and not _is_json(request):
            raise UsageError("send the body with content-type: application/json")

    def check_peer(self, request: Request) -> None:
        """The same, where something else vouches for the body of a request, such as a token that only our own pages know."""
        if self._keys:
            if not self._holds_key(request):
                raise UnauthenticatedError("give one of RECEIVER_API_KEYS as x-api-key, or as Authorization: Bearer")
            return
        if not _is_local(request):
            raise UnauthenticatedError("set RECEIVER_API_KEYS to ask for this from anywhere but this machine")
        if _is_anothers_page(request):
            raise UnauthenticatedError("set RECEIVER_API_KEYS to ask for this from a browser that shows another site's page")

    def _holds_key(self, request: Request) -> bool:
        given = request.headers.get("x-api-key")
        if given is None:
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            given = token.strip() if scheme.lower() == "bearer" else ""
        offered = given.encode("latin-1", "replace")
        # All are compared, so that the time taken does not tell which one is close.
        matches = [hmac.compare_digest(key, offered) for key in self._keys]
        return any(matches)


def _is_local(request: Request) -> bool:
    if request.client is None or any(name in request.headers for name in _FORWARDING):
        return False
    hosts = request.headers.getlist("host")
    named = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if named is None or not _is_loopback(request.client.host):
        return False
    return bool(named["name"]) or _is_loopback(named["four"] or named["six"])


def _is_anothers_page(request: Request) -> bool:
    if any(site.strip().lower() not in _OURSELVES for site in request.headers.getlist("sec-fetch-site")):
        return True
    ours = f"{request.scope.get('scheme', 'http')}://{request.headers['host']}".lower()
    return any(origin.strip().lower() != ours for origin in request.headers.getlist("origin"))


def _has_body(request: Request) -> bool:
    return "transfer-encoding" in request.headers or any(
        length.strip() != "0" for length in request.headers.getlist("content-length")
    )


def _is_json(request: Request) -> bool:
    kinds = request.headers.getlist("content-type")
    return len(kinds) == 1 and kinds[0].partition(";")[0].strip().lower() == "application/json"


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
