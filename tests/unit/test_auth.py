"""The gate: a key where keys are set; where none are, only somebody at this very machine, asking directly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from receiver.errors import UsageError
from receiver.web.auth import Gate, UnauthenticatedError

KEYS = ["token-a", "token-b"]
LOCAL = ("127.0.0.1", 51234)


def request(
    *headers: tuple[str, str],
    client: tuple[str, int] | None = LOCAL,
    host: str | None = "localhost:8080",
    method: str = "GET",
) -> Request:
    named = [*headers, *([("host", host)] if host is not None else [])]
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in named]
    return Request({"type": "http", "method": method, "path": "/v1/jobs", "headers": raw, "client": client})


def opens(gate: Gate, asked: Request) -> bool:
    try:
        gate.check(asked)
    except UnauthenticatedError:
        return False
    return True


# -- with keys ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("client", [LOCAL, ("203.0.113.9", 4), None])
def test_any_of_the_keys_opens_from_anywhere(key: str, client: tuple[str, int] | None) -> None:
    gate = Gate(KEYS)
    assert opens(gate, request(("x-api-key", key), client=client, host="hooks.example.com"))
    assert opens(gate, request(("authorization", f"Bearer {key}"), client=client, host="hooks.example.com"))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_read_in_any_case(scheme: str) -> None:
    assert opens(Gate(KEYS), request(("authorization", f"{scheme} token-a")))


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("x-api-key", "")],
        [("x-api-key", "token-")],
        [("x-api-key", "token-aa")],
        [("x-api-key", "TOKEN-A")],
        [("x-api-key", "token-a,token-b")],
        [("x-api-key", "Bearer token-a")],
        [("x-api-key", "\xe9")],
        [("authorization", "")],
        [("authorization", "token-a")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "Basic token-a")],
        [("authorization", "Basic dG9rZW4tYTo=")],
        [("authorization", "Bearer token-a token-b")],
        [("x-api-key", "wrong"), ("authorization", "Bearer token-a")],
        [("cookie", "x-api-key=token-a")],
    ],
)
def test_with_keys_set_nothing_else_opens_not_even_at_this_machine(headers: list[tuple[str, str]]) -> None:
    assert not opens(Gate(KEYS), request(*headers))


def test_a_key_beyond_ascii_is_compared_by_its_bytes() -> None:
    gate = Gate(["ключ"])
    assert opens(gate, request(("x-api-key", "ключ".encode().decode("latin-1"))))
    assert not opens(gate, request(("x-api-key", "????")))


@given(st.text(st.characters(max_codepoint=255), max_size=12), st.text(st.characters(max_codepoint=255), max_size=20))
def test_whatever_is_offered_the_gate_is_open_or_shut(key: str, authorization: str) -> None:
    assert not opens(Gate(["a key that nobody guesses"]), request(("x-api-key", key), ("authorization", authorization)))
    assert not opens(Gate(["a key that nobody guesses"]), request(("authorization", authorization)))


def test_a_refusal_does_not_quote_what_was_offered() -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        Gate(KEYS).check(request(("x-api-key", "almost-token-a")))
    assert "token" not in str(caught.value)
    assert (caught.value.status, caught.value.code) == (401, "unauthenticated")


# -- without keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "LOCALHOST", "127.0.0.1", "127.0.0.1:80", "127.9.9.9", "[::1]", "[::1]:8080"]
)
@pytest.mark.parametrize("client", [("127.0.0.1", 1), ("127.1.2.3", 1), ("::1", 1)])
def test_somebody_at_this_machine_may_ask_without_a_key(host: str, client: tuple[str, int]) -> None:
    assert opens(Gate([]), request(client=client, host=host))


@pytest.mark.parametrize(
    "client",
    [("192.168.1.5", 1), ("10.0.0.1", 1), ("0.0.0.0", 1), ("203.0.113.9", 1), ("::", 1), ("testclient", 1), ("", 0), None],
)
def test_nobody_else_may(client: tuple[str, int] | None) -> None:
    """A peer without an address (a Unix socket) has a proxy in front of it more often than not."""
    assert not opens(Gate([]), request(client=client))


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "hooks.example.com",
        "hooks.example.com:8080",
        "localhost.example.com",
        "127.0.0.1.example.com",
        "example.com:127.0.0.1",
        "notlocalhost",
        "192.168.1.5",
        "0.0.0.0",
        "[::]",
        "::1",
        "2130706433",
        "127.1",
    ],
)
def test_a_foreign_name_for_this_machine_is_refused(host: str | None) -> None:
    """A page in a browser may have its own name resolve to 127.0.0.1 (DNS rebinding): what it then asks for carries that name."""
    assert not opens(Gate([]), request(host=host))


@pytest.mark.parametrize(
    "header",
    [
        "forwarded",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-real-ip",
        "cf-connecting-ip",
        "true-client-ip",
    ],
)
@pytest.mark.parametrize("value", ["127.0.0.1", "203.0.113.9", ""])
def test_what_came_through_a_proxy_is_not_from_this_machine(header: str, value: str) -> None:
    assert not opens(Gate([]), request((header, value)))


def test_a_key_nobody_asked_for_changes_nothing() -> None:
    assert opens(Gate([]), request(("x-api-key", "anything")))
    assert not opens(Gate([]), request(("x-api-key", "anything"), client=("203.0.113.9", 1)))


@pytest.mark.parametrize(
    "host",
    [
        "[::1]evil",
        "[::1]evil:80",
        "[::1].example.com",
        "[::1",
        "[::1]:80:80",
        "[::1]:evil",
        "[127.0.0.1]",
        "[localhost]",
        "localhost:evil",
        "localhost:80:80",
        "localhost:80.example.com",
        "127.0.0.1:80@example.com",
        "localhost/x",
        "localhost, example.com",
        " localhost x",
        "[::1%25lo]",
        "localhost:\xb2",
    ],
)
def test_a_host_is_local_only_as_a_whole(host: str) -> None:
    assert not opens(Gate([]), request(host=host))


def test_two_hosts_are_none() -> None:
    assert not opens(Gate([]), request(("host", "localhost")))
    assert not opens(Gate([]), request(("host", "hooks.example.com")))


# -- without keys, from a browser --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        [("origin", "https://example.com")],
        [("origin", "null")],
        [("origin", "")],
        [("origin", "http://localhost")],
        [("origin", "http://localhost:3000")],
        [("origin", "http://127.0.0.1:8080")],
        [("origin", "https://localhost:8080")],
        [("origin", "http://localhost:8080.example.com")],
        [("origin", "http://localhost:8080"), ("origin", "https://example.com")],
        [("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "same-site")],
        [("sec-fetch-site", "Cross-Site")],
        [("sec-fetch-site", "something-new")],
        [("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "cross-site"), ("origin", "http://localhost:8080")],
    ],
)
def test_a_page_of_somebody_elses_in_a_browser_here_may_not_ask(headers: list[tuple[str, str]]) -> None:
    """It needs no permission of ours for a plain POST or GET: the browser sends it from this machine, to a local host."""
    assert not opens(Gate([]), request(*headers))


@pytest.mark.parametrize(
    "headers",
    [
        [("sec-fetch-site", "none")],
        [("sec-fetch-site", "same-origin")],
        [("sec-fetch-site", "same-origin"), ("origin", "http://localhost:8080")],
        [("origin", "http://LOCALHOST:8080")],
    ],
)
def test_our_own_page_and_the_address_bar_may(headers: list[tuple[str, str]]) -> None:
    assert opens(Gate([]), request(*headers))


@pytest.mark.parametrize(
    "body", [[("content-length", "2")], [("transfer-encoding", "chunked")], [("content-length", "0"), ("content-length", "2")]]
)
@pytest.mark.parametrize(
    "kind",
    [
        [],
        [("content-type", "text/plain")],
        [("content-type", "application/x-www-form-urlencoded")],
        [("content-type", "")],
        [("content-type", "text/plain; application/json")],
        [("content-type", "application/json"), ("content-type", "text/plain")],
    ],
)
def test_without_keys_a_posted_body_says_that_it_is_json(body: list[tuple[str, str]], kind: list[tuple[str, str]]) -> None:
    """What a page may send across sites without asking first never says so, however old the browser."""
    with pytest.raises(UsageError, match="content-type: application/json"):
        Gate([]).check(request(*body, *kind, method="POST"))
    assert opens(Gate(KEYS), request(*body, *kind, ("x-api-key", "token-a"), method="POST"))


def test_a_body_of_json_is_taken_and_so_is_none() -> None:
    for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
        assert opens(Gate([]), request(("content-length", "2"), ("content-type", kind), method="POST"))
    assert opens(Gate([]), request(method="POST"))
    assert opens(Gate([]), request(("content-length", "0"), method="POST"))


def test_with_keys_a_page_that_knows_one_may_ask_from_anywhere() -> None:
    assert opens(
        Gate(KEYS), request(("x-api-key", "token-a"), ("origin", "https://example.com"), ("sec-fetch-site", "cross-site"))
    )
