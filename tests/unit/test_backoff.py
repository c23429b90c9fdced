"""How long to wait: never at once, never for ever, whatever a header says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.core.backoff import LONGEST_RETRY_AFTER, backoff, retry_after
from tests.clock import EPOCH

CHANCES = st.floats(0, 1, exclude_max=True)


@given(st.integers(0, 10_000), st.floats(0.01, 60), st.floats(1, 86_400), CHANCES)
def test_a_wait_is_the_upper_half_of_what_doubles_up_to_the_cap(attempt: int, base: float, cap: float, chance: float) -> None:
    whole = min(cap, base * 2 ** min(attempt, 100))
    assert whole / 2 <= backoff(attempt, base=base, cap=cap, chance=chance) <= whole


@given(st.integers(0, 100), CHANCES)
def test_a_later_attempt_never_waits_less_for_the_same_draw(attempt: int, chance: float) -> None:
    assert backoff(attempt + 1, base=1, cap=60, chance=chance) >= backoff(attempt, base=1, cap=60, chance=chance)


def test_draws_spread_the_waits() -> None:
    """So that many who failed together do not come back together."""
    assert [backoff(3, base=1, cap=60, chance=chance) for chance in (0, 0.25, 0.5, 0.75)] == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("12", 12),
        ("0", 0),
        (" 12 ", 12),
        ("\t3", 3),
        ("0012", 12),
        ("1.5", 1.5),
        ("-1", 0),
        ("-0", 0),
        ("-99999999999999999999", 0),
        ("3600", 3600),
        ("3601", LONGEST_RETRY_AFTER),
        ("1000000000", LONGEST_RETRY_AFTER),
        ("9" * 5000, LONGEST_RETRY_AFTER),
    ],
)
def test_seconds_are_taken_and_clamped(header: str, seconds: float) -> None:
    assert retry_after(header, now=EPOCH) == seconds


@pytest.mark.parametrize(
    "header",
    [
        "Fri, 05 Apr 2024 00:00:30 GMT",
        "Friday, 05-Apr-24 00:00:30 GMT",
        "Fri Apr  5 00:00:30 2024",
        "Fri, 05 Apr 2024 00:00:30 +0000",
        "Fri, 05 Apr 2024 02:00:30 +0200",
        "Thu, 04 Apr 2024 19:00:30 -0500",
        "5 Apr 2024 00:00:30 -0000",
    ],
)
def test_a_date_in_any_of_its_forms_is_seconds_from_now(header: str) -> None:
    """The three of RFC 9110 §5.6.7, and time zones as mail has them."""
    assert retry_after(header, now=EPOCH) == 30


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Pacific/Kiritimati")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_away")
def test_a_date_without_a_zone_is_utc_wherever_this_machine_stands() -> None:
    assert retry_after("Fri Apr  5 00:00:30 2024", now=EPOCH) == 30


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("Fri, 05 Apr 2024 00:00:00 GMT", 0),
        ("Thu, 04 Apr 2024 23:00:00 GMT", 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Mon, 01 Jan 0001 00:00:00 GMT", 0),
        ("Sat, 05 Apr 2025 00:00:00 GMT", LONGEST_RETRY_AFTER),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_RETRY_AFTER),
        ("Fri, 31 Dec 9999 23:59:59 -2359", LONGEST_RETRY_AFTER),
    ],
)
def test_a_date_that_is_past_asks_for_no_wait_and_a_far_one_is_clamped(header: str, seconds: float) -> None:
    assert retry_after(header, now=EPOCH) == seconds


@pytest.mark.parametrize(
    "header",
    [
        "",
        " ",
        "soon",
        "nan",
        "NaN",
        "-nan",
        "inf",
        "-inf",
        "Infinity",
        "1e3",
        "1_0",
        "0x10",
        "12s",
        "12, 12",
        "1 2",
        "+",
        "-",
        ".",
        "١٢",
        "\uff11\uff12",
        "\xb2",
        "\ud800",
        "\x00",
        "Fri, 32 Apr 2024 00:00:00 GMT",
        "Fri, 05 Apr 2024 25:00:00 GMT",
        "Fri, 05 Apr 2024 00:00:00 +9999",
        "Fri, 05 Apr 99999999999 00:00:00 GMT",
        "2024-04-05T00:00:00Z",
        "12" + "\x00",
    ],
    ids=ascii,
)
def test_garbage_asks_for_nothing(header: str) -> None:
    assert retry_after(header, now=EPOCH) is None


def test_no_header_asks_for_nothing() -> None:
    assert retry_after(None, now=EPOCH) is None


PARTS = st.sampled_from(
    ["Fri", ",", " ", "05", "Apr", "-", "2024", "24", "99999", ":", "00", "60", "GMT", "+", "9999", "UTC", ".", "0"]
)


@given(st.text(st.characters(), max_size=40) | st.lists(PARTS, max_size=14).map("".join))
def test_any_header_is_no_wish_or_one_that_can_be_granted(header: str) -> None:
    wait = retry_after(header, now=EPOCH)
    assert wait is None or 0 <= wait <= LONGEST_RETRY_AFTER


@given(st.datetimes(min_value=datetime(1900, 1, 1)), st.floats(0, 4e9))  # noqa: DTZ001 - hypothesis wants it bare
def test_every_date_is_understood(date: datetime, now: float) -> None:
    date = date.replace(tzinfo=UTC, microsecond=0)
    wait = retry_after(format_datetime(date, usegmt=True), now=now)
    assert wait == min(max(date.timestamp() - now, 0.0), LONGEST_RETRY_AFTER)
