"""Requests' bodies and queries: bytes in, values or `invalid_request` out. Unknown fields are ignored."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import msgspec

from receiver.reader.shapes import EVENTS, JOB_COMPLETED, JOB_FAILED, MAX_PAGE, MAX_URLS
from receiver.sandbox.markdown import Wanted
from receiver.sandbox.problems import ApiError, invalid

Issues = list[tuple[str, str]]

MIN_SECRET: Final = 16
MAX_SECRET: Final = 256
MAX_BODY: Final = 8 << 20
"""A thousand URLs of 8 KB; whatever is longer is a mistake."""
_MAX_URL: Final = 8192
_WHOLE: Final = re.compile(r"[0-9]{1,12}")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]{0,1000}")
_PROXY_MODES: Final = ("auto", "standard", "premium", "stealth")
_BLOCKED_NAMES: Final = frozenset({"metadata.google.internal", "metadata"})


@dataclass(frozen=True, slots=True)
class RequestHook:
    """The `webhook` of one read request."""

    url: str
    events: frozenset[str]
    secret: str | None


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """A valid body of POST /v1/read. `count`: how many pages it has; a crawl's `urls` is where it starts."""

    mode: str
    urls: tuple[str, ...]
    count: int
    formats: frozenset[str]
    lanes: int
    timeout_ms: int
    wanted: Wanted
    hook: RequestHook | None

    @property
    def fingerprint(self) -> str:
        """What is asked for, in 16 digits; not who is to be told, or stories would depend on a port."""
        text = "\n".join((self.mode, str(self.count), ",".join(sorted(self.formats)), *self.urls))
        return sha256(text.encode()).hexdigest()[:16]


def parse(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises `ApiError`."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, ValueError) as exc:
        raise invalid(("body", f"not JSON: {exc}")) from exc
    if not isinstance(value, dict):
        raise invalid(("body", "expected an object"))
    return value


def read_request(body: dict[str, Any]) -> ReadRequest:
    """The body of POST /v1/read. Raises `ApiError`: invalid_request, or url_blocked for a forbidden host."""
    issues: Issues = []
    url, urls = body.get("url"), body.get("urls")
    given: list[str] = []
    if (url is None) == (urls is None):
        issues.append(("url", "give either url or urls"))
    elif url is not None:
        given = _urls([url], "url", issues)
    elif not isinstance(urls, list) or not 1 <= len(urls) <= MAX_URLS:
        issues.append(("urls", f"expected a list of 1 to {MAX_URLS} URLs"))
    else:
        given = _urls(urls, "urls", issues)
    depth = _whole(body, "maxDepth", 1, 10, issues)
    pages = _whole(body, "maxPages", 1, 10_000, issues)
    timeout_ms = _whole(body, "timeoutMs", 1_000, 120_000, issues) or 30_000
    lanes = _whole(body, "batchConcurrency", 1, 20, issues)
    lanes = _whole(body, "maxConcurrency", 1, 1_000, issues) or lanes or 10
    formats = _formats(body.get("formats"), issues)
    _check_rest(body, issues)
    hook = _request_hook(body.get("webhook"), issues)
    if issues:
        raise invalid(*issues)
    for each in given:
        _refuse_blocked(each)
    crawl = url is not None and (depth is not None or pages is not None)
    mode = "batch" if urls is not None else "crawl" if crawl else "scrape"
    count = (pages or 10 * (depth or 1)) if crawl else len(given)
    return ReadRequest(mode, tuple(given), count, formats, lanes, timeout_ms, _wanted(body), hook)


def page_query(query: bytes) -> tuple[int, int]:
    """(skip, limit). Raises `ApiError`."""
    issues: Issues = []
    try:
        given = dict(parse_qsl(query.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=100))
    except ValueError as exc:
        raise invalid(("query", str(exc))) from exc
    skip = _query_whole(given, "skip", 0, 10**12, 0, issues)
    limit = _query_whole(given, "limit", 1, MAX_PAGE, 20, issues)
    if issues:
        raise invalid(*issues)
    return skip, limit


def webhook_fields(body: dict[str, Any], *, whole: bool) -> dict[str, Any]:
    """The given fields of a webhook, checked; `whole`: with all that must be there. Raises `ApiError`."""
    issues: Issues = []
    checks: dict[str, Callable[[Any], str | None]] = {
        "url": web_url_issue,
        "name": lambda value: None if _text(value, 1, 100) else "expected 1 to 100 characters",
        "events": _events_issue,
        "secret": secret_issue,
        "headers": _headers_issue,
        "active": lambda value: None if isinstance(value, bool) else "expected true or false",
    }
    optional = {"secret", "headers", "active"}
    fields: dict[str, Any] = {}
    for name, check in checks.items():
        value = body.get(name)
        if value is None:
            if whole and name not in optional:
                issues.append((name, "required"))
            elif name in body and name not in {"secret", "headers"}:
                issues.append((name, "must not be null"))
            continue
        issue = check(value)
        if issue:
            issues.append((name, issue))
        fields[name] = value
    if issues:
        raise invalid(*issues)
    return fields


def secret_issue(value: Any) -> str | None:
    """What is wrong with a webhook's secret; None if nothing is."""
    return None if _text(value, MIN_SECRET, MAX_SECRET) else f"expected {MIN_SECRET} to {MAX_SECRET} characters"


def web_url_issue(value: Any) -> str | None:
    """What is wrong with a URL; None if nothing is."""
    if not isinstance(value, str) or not 1 <= len(value) <= _MAX_URL:
        return "expected a URL"
    try:
        parts = urlsplit(value)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError as exc:
        return f"not a URL: {exc}"
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_fine:
        return "expected an http or https URL"
    if not value.isprintable() or " " in value:
        return "not a URL: a space or control character"
    return None


def _urls(values: list[Any], path: str, issues: Issues) -> list[str]:
    for position, value in enumerate(values):
        issue = web_url_issue(value)
        if issue:
            issues.append((f"{path}[{position}]" if path == "urls" else path, issue))
    return values


def _refuse_blocked(url: str) -> None:
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        reason = "link-local address" if ipaddress.ip_address(host).is_link_local else None
    except ValueError:
        reason = "cloud metadata host" if host in _BLOCKED_NAMES else None
    if reason is None and "sandbox=blocked" in url:
        reason = "asked to be blocked"
    if reason:
        raise ApiError("url_blocked", f"URL is blocked: {reason}", {"url": url, "reason": reason})


def _formats(value: Any, issues: Issues) -> frozenset[str]:
    if value is None:
        return frozenset({"markdown"})
    if isinstance(value, list) and value and all(item in ("markdown", "html") for item in value):
        return frozenset(value)
    issues.append(("formats", "expected a list of markdown, html"))
    return frozenset()


def _check_rest(body: dict[str, Any], issues: Issues) -> None:
    for name, kind, said in (
        ("onlyMainContent", bool, "true or false"),
        ("cache", bool, "true or false"),
        ("waitForSelector", str, "a string"),
        ("extract", dict, "an object"),
    ):
        if body.get(name) is not None and not isinstance(body[name], kind):
            issues.append((name, f"expected {said}"))
    for name in ("includeTags", "excludeTags"):
        tags = body.get(name)
        if tags is not None and not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
            issues.append((name, "expected a list of strings"))
    if body.get("proxyMode") is not None and body["proxyMode"] not in _PROXY_MODES:
        issues.append(("proxyMode", f"expected one of {', '.join(_PROXY_MODES)}"))


def _wanted(body: dict[str, Any]) -> Wanted:
    main = body.get("onlyMainContent")
    return Wanted(main is not False, tuple(body.get("includeTags") or ()), tuple(body.get("excludeTags") or ()))


def _request_hook(value: Any, issues: Issues) -> RequestHook | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        issues.append(("webhook", "expected an object"))
        return None
    events = value.get("events")
    secret = value.get("secret")
    found = (
        ("webhook.url", web_url_issue(value.get("url"))),
        ("webhook.events", None if events is None else _events_issue(events)),
        ("webhook.secret", None if secret is None else secret_issue(secret)),
    )
    wrong = [(path, issue) for path, issue in found if issue]
    issues.extend(wrong)
    if wrong:
        return None
    return RequestHook(value["url"], frozenset(events or (JOB_COMPLETED, JOB_FAILED)), secret)


def _events_issue(value: Any) -> str | None:
    if isinstance(value, list) and value and all(isinstance(item, str) and item in EVENTS for item in value):
        return None
    return f"expected a list of at least one of {', '.join(sorted(EVENTS))}"


def _headers_issue(value: Any) -> str | None:
    if not isinstance(value, dict) or len(value) > 50:
        return "expected an object of at most 50 headers"
    for name, text in value.items():
        if not _HEADER_NAME.fullmatch(name) or not isinstance(text, str) or not _HEADER_VALUE.fullmatch(text):
            return f"not a header: {name}"
    return None


def _text(value: Any, shortest: int, longest: int) -> bool:
    return isinstance(value, str) and shortest <= len(value) <= longest


def _whole(body: dict[str, Any], name: str, low: int, high: int, issues: Issues) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    issues.append((name, f"expected a whole number from {low} to {high}"))
    return None


def _query_whole(given: dict[str, str], name: str, low: int, high: int, default: int, issues: Issues) -> int:
    text = given.get(name)
    if text is None:
        return default
    if _WHOLE.fullmatch(text) and low <= int(text) <= high:
        return int(text)
    issues.append((name, f"expected a whole number from {low} to {high}"))
    return default
