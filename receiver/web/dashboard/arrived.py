"""The pages of deliveries: what came to the endpoint, and each of them as it came."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import Response

from receiver.core import letter
from receiver.errors import UnknownJobError, UsageError
from receiver.store import arrivals, hours
from receiver.web.dashboard.chart import draw
from receiver.web.dashboard.render import SECURE

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from receiver.clock import Clock
    from receiver.settings import Settings
    from receiver.store.arrivals import Arrived
    from receiver.store.engine import Database
    from receiver.store.transaction import Transaction
    from receiver.web.dashboard.access import Visitor
    from receiver.web.dashboard.render import Templates

PAGE = 25
OUTCOMES: Final = ("accepted", "duplicate", "ignored", "quarantined")
AMONG: Final = 100
"""Deliveries that are looked through for duplicates, the newest."""
_SHOWN = 100_000
"""Bytes of a body that are shown; the whole can be downloaded."""


@dataclass(frozen=True, slots=True)
class Deliveries:
    """`store()` is the database; `version` compares what is shown."""

    store: Callable[[], Database]
    templates: Templates
    settings: Settings
    clock: Clock
    version: Callable[[Transaction, str], str]

    async def listed(self, request: Request, visitor: Visitor) -> Response:
        """Newest first: `?outcome=`, `?before=` an id."""
        outcome, before = request.query_params.get("outcome", ""), _number(request.query_params.get("before", ""))
        if outcome and outcome not in OUTCOMES:
            raise UsageError(f"outcome must be one of {', '.join(OUTCOMES)}")

        def work(tx: Transaction) -> dict[str, Any]:
            now = tx.now
            last = int(now // hours.HOUR)
            return {
                "found": _found(tx, outcome, before),
                "chart": draw(hours.since(tx, "deliveries", last - 23), last=last),
                "now": now,
                "version": self.version(tx, "deliveries"),
            }

        values = await self.store().read(work)
        live = f"deliveries {values.pop('version')}"
        more, found = len(values["found"]) > PAGE, values["found"][:PAGE]
        values |= {
            "found": found,
            "more": more,
            "outcome": outcome,
            "outcomes": OUTCOMES,
            "among": AMONG,
            "paged": before is not None,
        }
        return self.templates.page(request, "deliveries", visitor, live=live, settings=self.settings, **values)

    async def one(self, request: Request, visitor: Visitor) -> Response:
        """One of them: its headers, its body, and how to send it again."""
        came, body = await self._get(request)
        text = body[:_SHOWN].decode("utf-8", "backslashreplace")
        target = self.settings.receiver_public_url or str(request.base_url).rstrip("/")
        return self.templates.page(
            request,
            "delivery",
            visitor,
            came=came,
            body=text,
            cut=len(body) > _SHOWN,
            headers=_headers(came),
            curl=self._curl(came, body, f"{target}/hooks/reader"),
            tolerance=self.settings.receiver_tolerance,
        )

    async def body(self, request: Request, _: Visitor) -> Response:
        """Its body as it came, byte for byte, to be kept and not to be shown: nobody knows what it is."""
        came, body = await self._get(request)
        headers = SECURE | {"content-disposition": f'attachment; filename="delivery-{came.id}.bin"', "cache-control": "no-store"}
        return Response(body, media_type="application/octet-stream", headers=headers)

    async def _get(self, request: Request) -> tuple[Arrived, bytes]:
        number: int = request.path_params["number"]
        found = await self.store().read(lambda tx: arrivals.get(tx, number)) if number < 2**63 else None
        if found is None:
            raise UnknownJobError(f"there is no delivery {number} here: they go when RECEIVER_RETENTION says so")
        return found

    def _curl(self, came: Arrived, body: bytes, url: str) -> str | None:
        """A command that sends it again, signed now; None for a body that no shell can hold, or without a secret to sign with."""
        if not self.settings.secrets or not body.isascii() or b"\x00" in body or body.startswith(b"@") or len(body) > _SHOWN:
            return None
        headers = letter.headers(
            body,
            event=came.event or "",
            delivery=came.delivery_id or self.clock.token(),
            timestamp=int(self.clock.wall()),
            secret=self.settings.secrets[0],
        )
        said = [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in headers.items() if value]
        return " \\\n  ".join([f"curl -i {shlex.quote(url)}", *said, f"--data-binary {shlex.quote(body.decode())}"])


def _found(tx: Transaction, outcome: str, before: int | None) -> list[Arrived]:
    if outcome == "duplicate":
        return arrivals.repeated(tx, before=before, limit=PAGE + 1, among=AMONG)
    return arrivals.newest(tx, outcome=outcome or None, before=before, limit=PAGE + 1)


def _headers(came: Arrived) -> dict[str, str]:
    said = {
        "X-Reader-Event": came.event,
        "X-Reader-Delivery": came.delivery_id,
        "X-Reader-Timestamp": None if came.signed_at is None else str(came.signed_at),
    }
    return {name: value for name, value in said.items() if value is not None}


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
