"""Markdown from anywhere on the web: shown, and harmless."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.web.dashboard.safe import render

HARMFUL = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt:alert(1))",
    "[click](java&#x0A;script:alert(1))",
    "[click](&#x6A;avascript:alert(1))",
    "[click](\x01javascript:alert(1))",
    "[click](data:text/html;base64,PHNjcmlwdD4=)",
    "[click](vbscript:x)",
    "[click](file:///etc/passwd)",
    "[click](blob:https://example.com/x)",
    '[click](https://example.com/"onmouseover="alert(1))',
    "![pixel](https://tracker.example/pixel.gif)",
    "![x](javascript:alert(1))",
    "<javascript:alert(1)>",
    "[ref]: javascript:alert(1)\n\n[ref]",
    '<a href="javascript:alert(1)">x</a>',
    "<iframe src=https://example.com></iframe>",
    "<style>@import url(https://example.com)</style>",
    "<svg onload=alert(1)>",
    "```html\n<script>alert(1)</script>\n```",
    "# <b onclick=alert(1)>x</b>",
    "| a |\n|---|\n| <script>x</script> |",
]
TAGS = frozenset(
    "p h1 h2 h3 h4 h5 h6 a em strong s code pre ul ol li blockquote hr br table thead tbody tr th td".split()  # noqa: SIM905 - read as words
)


class _Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        for name, value in attrs:
            assert name in {"href", "rel", "target", "start", "class"}, name
            if name == "href":
                self.links.append(value or "")
                assert (value or "").lower().startswith(("http://", "https://", "mailto:")), value


def check(html: str) -> list[str]:
    seen = _Seen()
    seen.feed(html)
    return seen.links


@pytest.mark.parametrize("markdown", HARMFUL)
def test_harm_is_shown_as_text(markdown: str) -> None:
    for base in ("https://example.com/page", "", "javascript:alert(1)//"):
        check(render(markdown, base=base))


@given(st.text(alphabet=st.sampled_from("<>[]()!\"'`*_&#;:/\\ \n\tjavscriptdt:hef=onl0x"), max_size=120))
def test_no_text_makes_anything_that_acts(markdown: str) -> None:
    check(render(markdown, base="https://example.com/page"))


def test_links_lead_where_the_page_meant() -> None:
    markdown = "[a](/x) [b](https://b.example/) [c](mailto:me@c.example) ![d](d.png) [e](//e.example/)"
    assert check(render(markdown, base="https://a.example/deep/page")) == [
        "https://a.example/x",
        "https://b.example/",
        "mailto:me@c.example",
        "https://a.example/deep/d.png",
        "https://e.example/",
    ]


def test_tables_and_lists_are_shown_as_such() -> None:
    html = render("# T\n\n- one\n- ~~two~~\n\n| a | b |\n|---|--:|\n| 1 | 2 |", base="")
    assert all(tag in html for tag in ("<h1>", "<ul>", "<s>", "<table>", '<td class="right">'))
