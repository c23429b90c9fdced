"""Pages out of templates, with the headers that every one of them has."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from receiver.telling import count, duration, tell
from receiver.web.dashboard import words

if TYPE_CHECKING:
    from starlette.requests import Request

    from receiver.web.dashboard.access import Visitor

SECURE: Final = {
    # Nothing but our own files: whatever a result, an error or a header brings into a page, it neither runs nor loads anything.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
PAGES: Final = (("", "Overview"), ("jobs", "Jobs"), ("deliveries", "Deliveries"), ("hooks", "Hooks"))
"""What the navigation leads to, below `/dashboard`."""
_TYPES: Final = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class Templates:
    """Made once: templates are compiled when they are first used."""

    def __init__(self) -> None:
        folder = files(__package__).joinpath("static")
        self._static = {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in _TYPES}
        self._versions = {name: hashlib.sha256(data).hexdigest()[:12] for name, data in self._static.items()}
        self._environment = Environment(
            loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self._environment.filters |= {
            "ago": words.ago,
            "breakable": words.breakable,
            "counted": count,
            "discoverer": words.discoverer,
            "done": words.done,
            "duration": duration,
            "left": words.left,
            "number": words.number,
            "size": words.size,
            "sort": words.sort,
            "standing": words.standing,
            "tell": tell,
            "under_way": words.is_under_way,
            "when": words.when,
        }

    def page(
        self, request: Request, name: str, visitor: Visitor | None, *, status: int = 200, live: str | None = None, **values: Any
    ) -> Response:
        """The template `name`. `live`: the topic and the version that it shows, of a page that comes alive."""
        root = f"{request.scope.get('root_path', '')}/dashboard"
        here = request.url.path.removeprefix(root).strip("/").partition("/")[0]
        template = self._environment.get_template(f"{name}.html")
        text = template.render(
            root=root, here=here, pages=PAGES, visitor=visitor, live=live, static=self._address(root), **values
        )
        # Not to be kept: who logs out on a shared machine leaves nothing behind.
        return HTMLResponse(text, status_code=status, headers=SECURE | {"cache-control": "no-store"})

    def static(self, name: str, version: str | None) -> Response | None:
        """A file beside the templates; None if there is none of that name."""
        data = self._static.get(name)
        if data is None:
            return None
        newest = version == self._versions[name]
        keep = "public, max-age=31536000, immutable" if newest else "no-cache"
        return Response(data, media_type=_TYPES[name.rpartition(".")[2]], headers=SECURE | {"cache-control": keep})

    def _address(self, root: str) -> Any:
        return lambda name: f"{root}/static/{name}?v={self._versions[name]}"
