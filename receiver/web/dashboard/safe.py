"""A result's markdown, as a page that can do no harm: it comes from anywhere on the web.

Three things stand in its way, each of which would do: HTML in it is text, links lead only to web pages and mail, and the page's
Content-Security-Policy runs no script and loads nothing from elsewhere. Images are shown as links, so that looking at a result tells
nobody of it.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping, Sequence
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup, escape

MOST = 200_000
"""Characters that are shown; longer ones are there to be downloaded."""
_HARMLESS: Final = frozenset({"http", "https", "mailto"})
_UNSEEN: Final = re.compile(r"[\x00-\x20\x7f-\xa0\u200b-\u200f\u2028-\u202f]")
"""Browsers skip some of these in front of a scheme, or within it."""


class _Renderer(RendererHTML):
    def image(self, tokens: Sequence[Token], idx: int, options: Any, env: MutableMapping[str, Any]) -> str:
        token = tokens[idx]
        words = f"[{escape(self.renderInlineAsText(token.children or [], options, env) or 'image')}]"
        return f"{_opened(str(token.attrs.get('src', '')), env)}{words}</a>"

    def renderToken(self, tokens: Sequence[Token], idx: int, options: Any, env: MutableMapping[str, Any]) -> str:  # noqa: N802 - its name there
        # How a table's column is aligned: as a class, for no style of its own is let in.
        style = str(tokens[idx].attrs.pop("style", ""))
        if style:
            tokens[idx].attrs["class"] = style.rpartition(":")[2]
        return super().renderToken(tokens, idx, options, env)

    def link_open(self, tokens: Sequence[Token], idx: int, options: Any, env: MutableMapping[str, Any]) -> str:
        del options
        return _opened(str(tokens[idx].attrs.get("href", "")), env)


def _opened(target: str, env: MutableMapping[str, Any]) -> str:
    """The beginning of a link; one that leads nowhere where it would lead to anything but a page or mail."""
    try:
        whole = urljoin(env.get("base", ""), _UNSEEN.sub("", target))
        harmless = urlsplit(whole).scheme.lower() in _HARMLESS
    except ValueError:
        harmless, whole = False, ""
    if not harmless:
        return "<a>"
    return f'<a href="{escape(whole)}" rel="noopener noreferrer nofollow" target="_blank">'


_MARKDOWN: Final = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer).enable(["table", "strikethrough"])


def render(markdown: str, *, base: str) -> Markup:
    """HTML without anything that acts. `base`: the address that relative links are meant from."""
    return Markup(_MARKDOWN.render(markdown[:MOST], {"base": base}))  # noqa: S704 - what this module is for
