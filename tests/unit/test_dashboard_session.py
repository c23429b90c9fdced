"""The dashboard's sessions: signed, bound to the key that was shown, and not to be guessed."""

from __future__ import annotations

import pytest
from clock import FakeClock

from receiver.web.dashboard.session import LASTS, Sessions, Tries, form_token, is_form_token

KEYS = ["the-first-token", "the-second-token"]


def test_a_session_begins_with_a_key_and_with_nothing_else() -> None:
    sessions = Sessions(KEYS, FakeClock())
    assert all(sessions.holds(sessions.begin(key)) for key in KEYS)
    for wrong in ("", "the-first-toke", "the-first-token ", "THE-FIRST-TOKEN", "é"):
        assert sessions.begin(wrong) is None


def test_a_session_holds_on_a_replica_and_after_a_restart() -> None:
    clock = FakeClock()
    cookie = Sessions(KEYS, clock).begin(KEYS[1])
    assert Sessions(list(reversed(KEYS)), clock).holds(cookie)


def test_a_session_ends_with_the_key_that_was_shown() -> None:
    clock = FakeClock()
    cookie = Sessions(KEYS, clock).begin(KEYS[0])
    assert not Sessions(KEYS[1:], clock).holds(cookie)


def test_a_session_ends_after_a_day() -> None:
    clock = FakeClock()
    sessions = Sessions(KEYS, clock)
    cookie = sessions.begin(KEYS[0])
    clock.advance(LASTS - 2)
    assert sessions.holds(cookie)
    clock.advance(4)
    assert not sessions.holds(cookie)


def test_what_nobody_signed_is_no_session() -> None:
    clock = FakeClock()
    sessions = Sessions(KEYS, clock)
    cookie = sessions.begin(KEYS[0])
    assert cookie is not None
    until, nonce, signature = cookie.split(".")
    later = f"{int(until) + 1}.{nonce}.{signature}"
    for forged in (None, "", ".", "..", "a.b.c", later, cookie[:-1], cookie + "0", f"{until}.{nonce}.", f"é.{nonce}.{signature}"):
        assert not sessions.holds(forged)


def test_a_forms_token_follows_from_the_cookie() -> None:
    token = form_token("a cookie")
    assert is_form_token(token, "a cookie")
    assert not is_form_token(token, "another")
    for nothing in (None, ""):
        assert not is_form_token(form_token(""), nothing)


@pytest.mark.parametrize(("addresses", "most"), [(["one"], 10), ([f"{n}" for n in range(100)], 100)])
def test_guessing_is_slow_from_one_address_and_from_many(addresses: list[str], most: int) -> None:
    clock = FakeClock()
    tries = Tries(clock)
    for n in range(most):
        assert tries.wait("one") == 0
        tries.failed(addresses[n % len(addresses)])
        clock.advance(0.1)
    assert 0 < tries.wait("one") <= 60
    clock.advance(60)
    assert tries.wait("one") == 0
