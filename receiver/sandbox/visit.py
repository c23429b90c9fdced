"""One request on its way through the sandbox: its row in the ledger, and what its faults are drawn about."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from starlette.types import Message, Receive, Scope

from receiver.sandbox.faults import Faults, Hit
from receiver.sandbox.ledger import RequestRow
from receiver.sandbox.validation import MAX_BODY

_READ: Final = ("POST", "/v1/read")


@dataclass(slots=True)
class Visit:
    """`about` is the same for the same request in every run, whatever is sent beside it."""

    row: RequestRow
    about: str

    def note(self, name: str) -> None:
        """Write a fault into the ledger's row."""
        self.row.fault = f"{self.row.fault},{name}" if self.row.fault else name

    def strikes(self, faults: Faults, name: str) -> Hit | None:
        """Whether the fault strikes; drawn for the n-th request like this one, and noted."""
        hit = faults.next_strikes(name, self.about, subject=f"{self.row.method} {self.row.path}?{self.row.query}")
        if hit is not None:
            self.note(name)
        return hit


def visit_of(scope: Scope) -> Visit:
    """The visit the gate made of this request."""
    visit: Visit = scope["sandbox.visit"]
    return visit


async def received(scope: Scope, row: RequestRow, receive: Receive) -> tuple[Visit, Receive]:
    """The visit, and from where to read its body.

    All reads share one path: what tells them apart is what they ask for, so that body is read here, and read again by who wants it.
    """
    about = f"{row.method} {row.path}"
    if (row.method, row.path) == _READ:
        body, receive = await _ahead(receive)
        about = f"{about} {_asked(body)}"
    visit = scope["sandbox.visit"] = Visit(row, about)
    return visit, receive


async def _ahead(receive: Receive) -> tuple[bytes, Receive]:
    """The body, as far as it is anybody's business, and a `receive` that begins anew."""
    kept: list[Message] = []
    body = bytearray()
    more = True
    while more and len(body) <= MAX_BODY:
        message = await receive()
        kept.append(message)
        body += message.get("body", b"")
        more = message.get("more_body", False)
    again = iter(kept)

    async def replay() -> Message:
        return next(again, None) or await receive()

    return bytes(body), replay


def _asked(body: bytes) -> str:
    """What is asked for, but for who is to be told: ports differ from run to run."""
    try:
        asked = json.loads(body)
        if isinstance(asked, dict):
            asked.pop("webhook", None)
            body = json.dumps(asked, sort_keys=True).encode()
    except (ValueError, RecursionError):
        pass  # no JSON: as it came
    return sha256(body).hexdigest()[:16]
