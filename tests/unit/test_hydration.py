"""Reading all pages: an honest server is asked exactly as often as it must be, and no other is believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.core.hydration import Again, Ask, Page, Reading, Row, Step, Whole, same_page

Server = Callable[[int, int], Page]


def rows(count: int) -> list[Row]:
    return [Row(f"https://example.com/{n}", n.to_bytes(4)) for n in range(count)]


def honest(stock: Sequence[Row], *, total: int | None = None) -> Server:
    """Pages `stock` by position; `total` is what it says there is, which for a failed job may be more."""

    def page(skip: int, limit: int) -> Page:
        told = len(stock) if total is None else total
        return Page(skip, limit, told, has_more=skip + limit < len(stock), rows=stock[skip : skip + limit])

    return page


def drive(reading: Reading, server: Server, *, limit: int = 100, step: Step | None = None) -> tuple[Step, list[int]]:
    """Ask until it has an answer; that, and where it asked."""
    step = Ask(0) if step is None else step
    asked: list[int] = []
    while isinstance(step, Ask):
        asked.append(step.skip)
        assert len(asked) < 2500, "it never ends"
        step = reading.add(server(step.skip, limit))
    return step, asked


SIZES = st.integers(0, 1000) | st.sampled_from([0, 1, 99, 100, 101, 199, 200, 201, 999, 1000])
LIMITS = st.integers(1, 100) | st.just(100)
ENDS = st.booleans()


# -- an honest server --------------------------------------------------------------------------------------------------------


@given(SIZES, LIMITS, ENDS, ENDS)
def test_all_rows_cost_exactly_as_many_requests_as_they_fill_pages(size: int, limit: int, completed: bool, known: bool) -> None:
    stock = rows(size)
    expected = [row.url for row in stock] if known else None
    step, asked = drive(Reading(completed, expected=expected), honest(stock), limit=limit)
    assert step == Whole(verified=True)
    assert asked == list(range(0, max(size, 1), limit))
    assert len(asked) == max(1, ceil(size / limit))


@given(gathered=SIZES, missing=st.integers(1, 500), limit=LIMITS, known=st.booleans())
def test_what_a_failed_job_gathered_is_read_though_its_total_says_more(
    gathered: int, missing: int, limit: int, known: bool
) -> None:
    """One request more only where its rows end with a full page: then nothing but an empty one can tell."""
    submitted = [row.url for row in rows(gathered + missing)]
    server = honest(rows(gathered), total=gathered + missing)
    step, asked = drive(Reading(completed=False, expected=submitted if known else None), server, limit=limit)
    assert step == Whole(verified=True)
    assert len(asked) == gathered // limit + 1


@given(SIZES, st.lists(LIMITS, min_size=1, max_size=8))
def test_the_limit_may_shrink_midway(size: int, limits: list[int]) -> None:
    """A page too large to be read is asked for again in halves."""
    server, asks = honest(rows(size)), []

    def halving(skip: int, _: int) -> Page:
        asks.append(skip)
        return server(skip, limits[min(len(asks), len(limits)) - 1])

    step, asked = drive(Reading(completed=True), halving)
    assert step == Whole(verified=True)
    assert asked == sorted(set(asked))


def test_a_url_submitted_twice_is_trusted_where_it_is_known() -> None:
    twice = [rows(1)[0]] * 250
    step, asked = drive(Reading(completed=True, expected=[row.url for row in twice]), honest(twice))
    assert (step, len(asked)) == (Whole(verified=True), 3)


def test_a_url_twice_on_one_page_is_no_cause_for_suspicion() -> None:
    stock = [*rows(98), rows(1)[0], rows(1)[0], *rows(120)[98:]]
    assert drive(Reading(completed=True), honest(stock))[0] == Whole(verified=True)


# -- going on after a crash --------------------------------------------------------------------------------------------------


@given(size=st.integers(1, 400), limit=LIMITS, data=st.data(), completed=ENDS)
def test_a_reading_resumed_asks_only_for_what_is_missing(size: int, limit: int, data: st.DataObject, completed: bool) -> None:
    stock, server = rows(size), honest(rows(size))
    pages = ceil(size / limit)
    stored = data.draw(st.integers(1, pages))
    kept = [(skip, row) for skip in range(0, stored * limit, limit) for row in stock[skip : skip + limit]]
    reading = Reading(completed)
    step, asked = drive(reading, server, limit=limit, step=reading.resume(total=size, rows=kept))
    assert step == Whole(verified=True)
    assert asked == list(range(0, size, limit))[stored:]


@given(
    stock=st.lists(st.sampled_from(rows(6)), min_size=1, max_size=12),
    limit=st.integers(1, 4),
    data=st.data(),
    completed=ENDS,
    known=st.booleans(),
    last_chance=st.booleans(),
)
def test_a_crash_changes_nothing_about_the_verdict(
    stock: list[Row], limit: int, data: st.DataObject, completed: bool, known: bool, last_chance: bool
) -> None:
    """Doubled rows among them: what was noticed before the crash is noticed again."""
    urls = [row.url for row in stock]
    expected = data.draw(st.permutations(urls) | st.just(urls[1:])) if known else None

    def new() -> Reading:
        return Reading(completed, expected=expected, last_chance=last_chance)

    stored = data.draw(st.integers(1, ceil(len(stock) / limit)))
    kept = [(skip, row) for skip in range(0, stored * limit, limit) for row in stock[skip : skip + limit]]
    resumed = new()
    after = drive(resumed, honest(stock), limit=limit, step=resumed.resume(total=len(stock), rows=kept))[0]
    assert after == drive(new(), honest(stock), limit=limit)[0]


# -- liars -------------------------------------------------------------------------------------------------------------------

COUNTS = st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=30)


@given(total=st.integers(-1, 20), pages=COUNTS, limit=st.integers(1, 5), completed=ENDS, last_chance=st.booleans())
def test_whatever_a_server_says_it_ends_and_completed_means_all_rows(
    total: int, pages: list[tuple[int, bool]], limit: int, completed: bool, last_chance: bool
) -> None:
    """`hasMore` for ever, never, with nothing on the page; more rows than asked for, fewer, none."""
    given_out = iter(pages)

    def page(skip: int, limit: int) -> Page:
        count, has_more = next(given_out, (0, True))
        return Page(skip, limit, total, has_more, rows(skip + count)[skip:])

    reading = Reading(completed, last_chance=last_chance)
    step, asked = drive(reading, page, limit=limit)
    assert len(asked) <= max(total, 0) + 1
    if isinstance(step, Whole):
        assert reading.count <= total
        assert reading.count == total or not completed
    else:
        assert step.kind == "broken"


@pytest.mark.parametrize("has_more", [True, False])
@given(size=st.integers(0, 300), short=st.integers(1, 200))
def test_a_completed_job_short_of_its_total_is_never_whole(has_more: bool, size: int, short: int) -> None:
    """`hasMore` false too early, and true with an empty page."""
    server = honest(rows(size), total=size + short)
    step, _ = drive(Reading(completed=True), lambda skip, limit: replace(server(skip, limit), has_more=has_more))
    assert isinstance(step, Again)
    assert step.kind == "broken"


@given(size=st.integers(1, 400), has_more=st.booleans())
def test_with_all_rows_read_has_more_is_not_asked(size: int, has_more: bool) -> None:
    server = honest(rows(size))
    step, asked = drive(Reading(completed=True), lambda skip, limit: replace(server(skip, limit), has_more=has_more))
    assert (step, len(asked)) == (Whole(verified=True), ceil(size / 100))


@pytest.mark.parametrize("gathered", [0, 1, 100, 150])
def test_a_failed_job_said_to_have_more_than_it_gives_is_unverified(gathered: int) -> None:
    server = honest(rows(gathered), total=200)
    step, asked = drive(Reading(completed=False), lambda skip, limit: replace(server(skip, limit), has_more=True))
    assert step == Whole(verified=False)
    assert len(asked) <= gathered // 100 + 2


@given(st.integers(101, 400), st.integers(-3, 3).filter(bool), st.integers(1, 3), ENDS)
def test_a_total_that_changes_between_pages_breaks_the_reading(size: int, change: int, at: int, completed: bool) -> None:
    server = honest(rows(size))

    def page(skip: int, limit: int) -> Page:
        told = server(skip, limit)
        return replace(told, total=told.total + change) if skip >= at * 100 else told

    step, _ = drive(Reading(completed), page)
    if size > at * 100:
        assert isinstance(step, Again)
        assert step.kind == "broken"
    else:
        assert step == Whole(verified=True)


@pytest.mark.parametrize("completed", [True, False])
@pytest.mark.parametrize("extra", [1, 100])
def test_more_rows_than_the_total_break_the_reading(completed: bool, extra: int) -> None:
    step, _ = drive(Reading(completed), honest(rows(50 + extra), total=50))
    assert isinstance(step, Again)
    assert step.kind == "broken"


@pytest.mark.parametrize("completed", [True, False])
def test_more_rows_than_were_asked_for_break_the_reading(completed: bool) -> None:
    step = Reading(completed).add(Page(0, 10, 100, has_more=True, rows=rows(11)))
    assert isinstance(step, Again)
    assert step.kind == "broken"


def test_a_page_from_elsewhere_breaks_the_reading() -> None:
    reading = Reading(completed=True)
    assert reading.add(Page(0, 10, 100, has_more=True, rows=rows(10))) == Ask(10)
    step = reading.add(Page(20, 10, 100, has_more=True, rows=rows(30)[20:]))
    assert isinstance(step, Again)
    assert step.kind == "broken"


# -- rows that move between pages --------------------------------------------------------------------------------------------


def shuffling(orders: Sequence[Sequence[Row]], *, total: int | None = None) -> Server:
    """Shows another order at each request."""
    asked = iter(range(10**6))

    def page(skip: int, limit: int) -> Page:
        return honest(orders[next(asked) % len(orders)], total=total)(skip, limit)

    return page


@st.composite
def orders(draw: st.DrawFn) -> list[list[Row]]:
    stock = rows(draw(st.integers(2, 12)))
    return draw(st.lists(st.permutations(stock), min_size=1, max_size=4))


@given(orders(), st.integers(1, 6), st.booleans(), ENDS, st.booleans(), st.integers(0, 3))
def test_rows_missed_are_never_silently_missed(
    orders: list[list[Row]], limit: int, known: bool, completed: bool, last_chance: bool, missing: int
) -> None:
    """A row that is missing means that another stands on two pages, as long as no two rows are the same."""
    submitted = [row.url for row in orders[0]] + [f"https://example.com/never/{n}" for n in range(missing)]
    if completed:
        missing, submitted = 0, submitted[: len(orders[0])]
    read: list[Row] = []
    server = shuffling(orders, total=len(submitted))

    def page(skip: int, limit: int) -> Page:
        told = server(skip, limit)
        read.extend(told.rows)
        return told

    reading = Reading(completed, expected=submitted if known else None, last_chance=last_chance)
    step, _ = drive(reading, page, limit=limit)
    if sorted(read, key=lambda row: row.url) == sorted(orders[0], key=lambda row: row.url):
        assert step == Whole(verified=True)
    elif last_chance:
        assert step == Whole(verified=False)
    else:
        assert isinstance(step, Again)
        assert step.kind == "suspicious"


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("completed", [True, False])
def test_one_doubled_and_one_missing_is_read_again_once(known: bool, completed: bool) -> None:
    stock = rows(200)
    swapped = [*stock[:99], stock[100], stock[99], *stock[101:]]  # the hundredth row moved over the edge of the page
    expected = [row.url for row in stock] if known else None
    first, asked = drive(Reading(completed, expected=expected), shuffling([stock, swapped]))
    assert isinstance(first, Again)
    assert (first.kind, len(asked)) == ("suspicious", 2)
    still = Reading(completed, expected=expected, last_chance=True)
    assert drive(still, honest(stock))[0] == Whole(verified=True)
    moving = Reading(completed, expected=expected, last_chance=True)
    assert drive(moving, shuffling([stock, swapped]))[0] == Whole(verified=False)


@pytest.mark.parametrize("completed", [True, False])
def test_a_url_nobody_submitted_is_suspicious(completed: bool) -> None:
    stock = rows(5)
    expected = [*[row.url for row in stock[:4]], "https://example.com/other"]
    step, _ = drive(Reading(completed, expected=expected), honest(stock))
    assert isinstance(step, Again)
    assert step.kind == "suspicious"


def test_a_submitted_url_that_is_missing_is_suspicious_only_if_the_job_completed() -> None:
    expected = [row.url for row in rows(5)]
    stock = honest(rows(4))
    step, _ = drive(Reading(completed=True, expected=expected), stock)
    assert isinstance(step, Again)
    assert drive(Reading(completed=False, expected=expected), stock)[0] == Whole(verified=True)


def test_the_same_url_with_other_content_has_not_moved() -> None:
    stock = [Row("https://example.com/", bytes([n])) for n in range(3)]
    assert drive(Reading(completed=True), honest(stock), limit=1)[0] == Whole(verified=True)


# -- when two URLs are one ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("HTTP://Example.COM/a", "http://example.com/a"),
        ("https://example.com", "https://example.com/"),
        ("https://example.com?q=1", "https://example.com/?q=1"),
        ("https://example.com:443/a", "https://example.com/a"),
        ("http://example.com:80/a", "http://example.com/a"),
        ("https://example.com:/a", "https://example.com/a"),
        ("https://[2001:DB8::1]:443/", "https://[2001:db8::1]"),
        ("https://example.com/%c3%a9?x=%2f", "https://example.com/%C3%A9?x=%2F"),
        ("https://example.com/a#part", "https://example.com/a"),
    ],
)
def test_two_spellings_of_a_url_are_one_page(one: str, other: str) -> None:
    assert same_page(one) == same_page(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://example.com/a", "http://example.com/a"),
        ("https://example.com/a", "https://example.com/A"),
        ("https://example.com/a", "https://example.com/a/"),
        ("https://example.com/a?b", "https://example.com/a"),
        ("https://example.com:8443/", "https://example.com/"),
        ("http://example.com:443/", "http://example.com/"),
        ("https://example.com:80/", "https://example.com/"),
        ("https://User@example.com/", "https://user@example.com/"),
        ("https://[2001:db8::80]/", "https://[2001:db8::]/"),
    ],
)
def test_two_urls_that_may_differ_are_two_pages(one: str, other: str) -> None:
    assert same_page(one) != same_page(other)


HOSTS = st.from_regex(r"\A[a-zA-Z0-9.-]{1,12}\Z") | st.sampled_from(["[::1]", "[2001:DB8::443]"])
URLS = st.builds(
    "{}://{}{}{}{}".format,
    st.sampled_from(["http", "https", "HTTP", "ftp"]),
    HOSTS,
    st.sampled_from(["", ":", ":80", ":443", ":8080"]),
    st.from_regex(r"\A(/[a-zA-Z0-9%./]{0,8})?\Z"),
    st.sampled_from(["", "?", "?a=%2f", "#f"]),
)


@given(URLS)
def test_the_form_of_a_form_is_itself(url: str) -> None:
    assert same_page(same_page(url)) == same_page(url)


@given(st.text(st.characters(), max_size=40) | st.from_regex(r"\Ahttps?://[\[\]@:%a-zA-Z0-9./?#]{0,30}\Z"))
def test_whatever_reader_calls_a_url_has_a_form(url: str) -> None:
    assert isinstance(same_page(url), str)
