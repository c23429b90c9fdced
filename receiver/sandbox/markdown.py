"""HTML of the real world into a title and markdown."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from receiver.sandbox.options import OptionError

_NOISE = ("script", "style", "noscript", "template", "iframe", "svg")
_AROUND = ("nav", "header", "footer", "aside", "form")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of a page is wanted: CSS selectors, and whether only its main part."""

    only_main: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


def require() -> None:
    """Raises `OptionError` when the libraries for it are not installed."""
    if find_spec("markdownify") is None or find_spec("bs4") is None:
        raise OptionError("fetch: needs an extra: pip install 'reader-receiver[fetch]'")


def convert(page: bytes, charset: str | None, wanted: Wanted) -> tuple[str, str, str]:
    """(title, markdown, html) of a page. Slow for large ones: call it in a thread. Raises `ValueError` for selectors that are none."""
    from bs4 import BeautifulSoup  # noqa: PLC0415 - an extra: who does not fetch need not have it
    from markdownify import MarkdownConverter  # noqa: PLC0415
    from soupsieve import SelectorSyntaxError  # noqa: PLC0415

    soup = BeautifulSoup(page, "html.parser", from_encoding=charset)
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    try:
        for selector in (*_NOISE, *(_AROUND if wanted.only_main else ()), *wanted.exclude):
            for found in soup.select(selector):
                found.decompose()
        parts = [found for selector in wanted.include for found in soup.select(selector)]
    except SelectorSyntaxError as exc:
        raise ValueError(f"not a selector: {exc}") from exc
    if not parts:
        main = (soup.find("main") or soup.find("article")) if wanted.only_main else None
        parts = [main or soup.body or soup]
    converter = MarkdownConverter(heading_style="ATX")
    markdown = "\n\n".join(str(converter.convert_soup(part)).strip() for part in parts)
    return title, markdown, "".join(str(part) for part in parts)
