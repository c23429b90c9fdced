"""What a delivery says: one valid job id is a cue, however odd the rest; anything else is kept and never trips us."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.core.delivery import JOB_ID, Claims, Delivery, Meaning, keys_signed_before, read_headers, understand
from receiver.errors import SignatureError

T = "1712275200"
SIGNED = Claims(event=None, delivery_id="7c3e89f1", timestamp=T, signature="sha256=…")


def read(body: Any, **claims: Any) -> Delivery:
    """A signed delivery of `body` (JSON, unless it is bytes)."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return understand(raw, Claims(**{"delivery_id": "7c3e89f1", "timestamp": T, **claims}), signed=True)


# -- headers -----------------------------------------------------------------------------------------------------------------

HEADERS = {
    b"x-reader-event": "event",
    b"x-reader-delivery": "delivery_id",
    b"x-reader-timestamp": "timestamp",
    b"x-reader-signature": "signature",
}


def test_the_four_headers_are_read() -> None:
    raw = [(b"host", b"example.com"), *((name, field.encode()) for name, field in HEADERS.items()), (b"accept", b"*/*")]
    assert read_headers(raw) == Claims("event", "delivery_id", "timestamp", "signature")


def test_absent_headers_are_none() -> None:
    assert read_headers([(b"content-type", b"application/json")]) == Claims(None, None, None, None)


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("second", [b"same", b"other", b""])
def test_a_header_that_comes_twice_is_refused_equal_or_not(name: bytes, second: bytes) -> None:
    with pytest.raises(SignatureError) as caught:
        read_headers([(name, b"same"), (b"between", b"x"), (name, second)])
    assert caught.value.reason == "duplicate_header"


@pytest.mark.parametrize(
    "lookalike",
    [b"x_reader_signature", b"x-reader_signature", b"x-reader-signature ", b"reader-signature", b"x-reader-signatures"],
)
def test_names_that_only_look_alike_are_ignored(lookalike: bytes) -> None:
    """CGI and its heirs spell a dash as an underscore: whoever sends the underscore hopes that two of us read differently."""
    assert read_headers([(lookalike, b"forged"), (b"x-reader-signature", b"true")]).signature == "true"
    assert read_headers([(lookalike, b"forged")]) == Claims()


def test_other_headers_may_repeat() -> None:
    assert read_headers([(b"x-forwarded-for", b"a"), (b"x-forwarded-for", b"b")]) == Claims()


@given(st.lists(st.tuples(st.sampled_from([*HEADERS, b"host"]) | st.binary(max_size=20), st.binary(max_size=40)), max_size=6))
def test_any_bytes_in_headers_are_read_or_refused(raw: list[tuple[bytes, bytes]]) -> None:
    """Byte 0xE9 and its like are text to the signature's check, which refuses them."""
    ours = [name for name, _ in raw if name in HEADERS]
    if len(set(ours)) < len(ours):
        with pytest.raises(SignatureError):
            read_headers(raw)
    else:
        expected = {HEADERS[name]: value.decode("latin-1") for name, value in raw if name in HEADERS}
        assert read_headers(raw) == Claims(**expected)


# -- the job's id ------------------------------------------------------------------------------------------------------------

PLACES = [("jobId",), ("job_id",), ("data", "jobId"), ("data", "id"), ("job", "id"), ("id",)]


def put(document: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in place[:-1]:
        document = document.setdefault(name, {})
    document[place[-1]] = value
    return document


@pytest.mark.parametrize("place", PLACES, ids=".".join)
@pytest.mark.parametrize("job_id", ["job_9fba2", "9fba2", "A-b_3", "x", "y" * 128])
def test_the_job_id_is_found_in_each_of_its_places(place: tuple[str, ...], job_id: str) -> None:
    document: dict[str, Any] = {"event": "job.completed"}
    put(document, place, job_id)
    delivery = read(document)
    assert (delivery.job_id, delivery.meaning, delivery.reason) == (job_id, Meaning.ENDED, None)


@pytest.mark.parametrize("first", range(3, 6))
@pytest.mark.parametrize("second", range(3, 6))
def test_of_the_general_places_the_first_in_order_tells(first: int, second: int) -> None:
    """`data.id`, `job.id`, `id` may each be the id of something else; the job's comes first."""
    document: dict[str, Any] = {}
    put(document, PLACES[second], "second")
    put(document, PLACES[first], "first")
    expected = "first" if first <= second else "second"
    assert read(document).job_id == expected


@pytest.mark.parametrize("named", PLACES[:3], ids=".".join)
@pytest.mark.parametrize("general", PLACES[3:], ids=".".join)
def test_a_place_that_can_only_mean_a_job_outweighs_one_that_need_not(named: tuple[str, ...], general: tuple[str, ...]) -> None:
    document: dict[str, Any] = {}
    put(document, general, "evt_1")
    put(document, named, "9fba2")
    assert read(document).job_id == "9fba2"


def test_a_general_place_tells_a_job_by_its_prefix() -> None:
    assert read({"id": "job_9fba2", "data": {"id": "evt_1"}}).job_id == "job_9fba2"


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_null_is_as_good_as_absent(place: tuple[str, ...]) -> None:
    document: dict[str, Any] = {}
    put(document, place, None)
    assert read(document).reason == "no job id"
    put(document, ("id",) if place != ("id",) else ("jobId",), "job_9fba2")
    assert read(document).job_id == "job_9fba2"


@pytest.mark.parametrize(
    "document", [{"jobId": "job_1", "job_id": "job_1"}, {"jobId": "job_1", "id": "job_1", "data": {"id": "job_1"}}]
)
def test_the_same_id_in_several_places_is_one(document: Any) -> None:
    assert read(document).job_id == "job_1"


@pytest.mark.parametrize(
    "body",
    [
        b'{"jobId": "job_1", "job_id": "job_2"}',
        b'{"jobId": "a", "data": {"jobId": "b"}}',
        b'{"jobId": "a", "id": "job_2"}',
        b'{"data": {"id": "job_1"}, "id": "job_2"}',
        b'{"jobId": "a", "jobId": "b"}',
        b'{"jobId": "a", "job\\u0049d": "b"}',
        b'{"data": {"jobId": "a"}, "data": {"jobId": "b"}}',
        b'{"id": "a", "id": "b"}',
        b'{"data": {"id": "a"}, "data": {"id": "b"}}',
        b'{"job": {"id": "a", "id": "b"}}',
    ],
)
def test_two_different_job_ids_are_quarantined_even_under_one_key(body: bytes) -> None:
    """Which of two equal keys counts depends on the parser: nobody's choice is ours."""
    delivery = read(body)
    assert (delivery.meaning, delivery.job_id, delivery.reason) == (Meaning.UNREADABLE, None, "several job ids")


@pytest.mark.parametrize("body", [b'{"jobId": "a", "jobId": "a"}', b'{"id": "a", "id": "a"}'])
def test_a_key_twice_with_one_id_is_a_cue(body: bytes) -> None:
    assert read(body).job_id == "a"


@pytest.mark.parametrize(
    "value",
    [
        5,
        -1,
        1.5,
        True,
        False,
        [],
        ["job_1"],
        {},
        {"id": "job_1"},
        "",
        " ",
        "job 1",
        "../",
        "job_1/../../secrets",
        "..%2f",
        "job_1?limit=1",
        "job_1#x",
        "job_1\r\nx-injected: 1",
        "job_1\n",
        "job_1\u0000",
        "\u0000",
        "jób_1",
        "job_\uff11",
        "\ud800",
        "j" * 129,
        "j" * 10_240,
    ],
    ids=lambda value: ascii(value)[:30],
)
@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_an_id_that_could_not_stand_in_a_url_is_quarantined(place: tuple[str, ...], value: Any) -> None:
    document: dict[str, Any] = {"event": "job.completed"}
    put(document, place, value)
    delivery = read(document)
    assert (delivery.meaning, delivery.job_id) == (Meaning.UNREADABLE, None)
    assert delivery.reason == "the job id is not of the form [A-Za-z0-9_-]{1,128}"


@given(st.text(max_size=10) | st.text("abzAZ09_-./?%", min_size=1, max_size=140))
def test_what_passes_for_an_id_is_safe_in_a_path(text: str) -> None:
    assert (JOB_ID.fullmatch(text) is not None) == (
        re.fullmatch(r"[A-Za-z0-9_-]+", text, re.ASCII) is not None and len(text) <= 128
    )


# -- odd bodies --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON in UTF-8"),
        (b"jobId=job_1", "not JSON in UTF-8"),
        (b"<html>job_1</html>", "not JSON in UTF-8"),
        (b'{"jobId": "job_1"', "not JSON in UTF-8"),
        (b'{"jobId": "job_1"} x', "not JSON in UTF-8"),
        (b"{'jobId': 'job_1'}", "not JSON in UTF-8"),
        (b'{"jobId": "job_1",}', "not JSON in UTF-8"),
        (b'{"jobId": "job_1\xff"}', "not JSON in UTF-8"),
        (b'{"jobId": "job_1\n"}', "not JSON in UTF-8"),
        ('{"jobId": "job_1"}'.encode("utf-16"), "not JSON in UTF-8"),
        ('{"jobId": "job_1"}'.encode("utf-16-le"), "not JSON in UTF-8"),
        ('{"jobId": "job_1"}'.encode("utf-32"), "not JSON in UTF-8"),
        (b"[" * 100_000 + b"]" * 100_000, "too deeply nested"),
        (b'{"jobId": "job_1", "x": ' + b'{"x":' * 100_000 + b"1" + b"}" * 100_001, "too deeply nested"),
        (b"[" * 100_000, "too deeply nested"),
        (b"null", "the top level is not an object"),
        (b'"job_1"', "the top level is not an object"),
        (b'["jobId", "job_1"]', "the top level is not an object"),
        (b'[{"jobId": "job_1"}]', "the top level is not an object"),
        (b"1", "the top level is not an object"),
        (b"NaN", "the top level is not an object"),
        (b"{}", "no job id"),
        (b'{"jobid": "job_1"}', "no job id"),
        (b'{"data": [{"id": "job_1"}], "job": "job_1"}', "no job id"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_body_that_names_no_one_job_is_quarantined_and_says_why(body: bytes, reason: str) -> None:
    delivery = read(body, event="job.completed")
    assert (delivery.meaning, delivery.job_id, delivery.reason) == (Meaning.UNREADABLE, None, reason)
    assert delivery.body == body


@pytest.mark.parametrize(
    "oddity",
    [
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-1e-999",
        b"9" * 5000,
        b"-" + b"9" * 5000 + b"." + b"9" * 5000,
        b'"\\u0000"',
        b'"\\ud800"',
        b'"\\udfff\\ud800"',
        b'"\xf0\x9f\x92\xa9"',
        b"[" * 200 + b"]" * 200,
        b'{"jobId": "job_2", "id": "job_3"}',
        b'{"": {"": ""}}',
    ],
    ids=lambda value: ascii(value)[:30],
)
@pytest.mark.parametrize("where", [b'{"x": %s, "jobId": "job_1"}', b'{"jobId": "job_1", "x": %s}'])
def test_odd_fields_beside_one_valid_id_do_not_matter(oddity: bytes, where: bytes) -> None:
    delivery = read(where % oddity, event="job.completed")
    assert (delivery.meaning, delivery.job_id) == (Meaning.ENDED, "job_1")
    assert delivery.body == where % oddity


def test_a_byte_order_mark_does_not_matter() -> None:
    assert read(b'\xef\xbb\xbf{"jobId": "job_1"}').job_id == "job_1"


# -- the event ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "meaning"),
    [
        ("job.completed", Meaning.ENDED),
        ("job.failed", Meaning.ENDED),
        ("job.started", Meaning.ALIVE),
        ("job.page", Meaning.ALIVE),
        ("credit.low", Meaning.NOTHING),
        ("session.created", Meaning.NOTHING),
        ("session.stopped", Meaning.NOTHING),
        ("job.archived", Meaning.NOTHING),
        ("JOB.COMPLETED", Meaning.NOTHING),
        ("job.completed ", Meaning.NOTHING),
        ("x" * 10_000, Meaning.NOTHING),
        ("\ud800", Meaning.NOTHING),
        ("\x00", Meaning.NOTHING),
    ],
)
@pytest.mark.parametrize("field", ["event", "type"])
def test_the_bodys_event_says_what_a_delivery_means(field: str, event: str, meaning: Meaning) -> None:
    delivery = read({field: event, "jobId": "job_1"}, event="job.completed")
    assert (delivery.meaning, delivery.job_id, delivery.reason) == (meaning, "job_1", None)


def test_the_body_outranks_the_header_for_only_the_body_is_signed() -> None:
    assert read({"event": "job.page", "jobId": "job_1"}, event="job.completed").event == "job.page"


def test_event_outranks_type() -> None:
    assert read({"type": "job.page", "event": "job.failed", "jobId": "job_1"}).event == "job.failed"


@pytest.mark.parametrize("value", [None, 5, True, "", ["job.page"], {"name": "job.page"}])
def test_an_event_that_is_no_text_says_nothing(value: Any) -> None:
    assert read({"event": value, "type": "job.started", "jobId": "job_1"}).event == "job.started"
    assert read({"event": value, "jobId": "job_1"}, event="job.failed").event == "job.failed"


def test_without_one_in_the_body_the_headers_event_is_used() -> None:
    delivery = read({"jobId": "job_1"}, event="job.page")
    assert (delivery.event, delivery.meaning) == ("job.page", Meaning.ALIVE)


@pytest.mark.parametrize("header", [None, "", " ", "two words", "caf\xe9", "e" * 65])
def test_a_job_and_no_word_of_what_happened_is_worth_a_look(header: str | None) -> None:
    delivery = read({"jobId": "job_1"}, event=header)
    assert (delivery.event, delivery.meaning) == (None, Meaning.ENDED)


@pytest.mark.parametrize("event", ["credit.low", "session.created", "session.stopped", "invoice.paid"])
def test_events_that_are_not_about_a_job_need_none(event: str) -> None:
    for delivery in (read({"event": event}), read({"type": event, "balance": 3}), read({"balance": 3}, event=event)):
        assert (delivery.meaning, delivery.reason, delivery.event) == (Meaning.NOTHING, None, event)


@pytest.mark.parametrize("body", [b"", b"\xff", b"[1]", b"[" * 100_000])
def test_no_header_makes_a_body_readable(body: bytes) -> None:
    """The header is not signed: it must not hide from the alarm that deliveries cannot be read any more."""
    delivery = read(body, event="credit.low")
    assert delivery.meaning is Meaning.UNREADABLE
    assert delivery.reason is not None


@given(st.text(st.characters(), max_size=80))
def test_an_events_name_is_fit_for_a_column_and_a_log_line(event: str) -> None:
    kept = read({"event": event, "jobId": "job_1"}).event
    assert kept is None or (kept.isascii() and kept.isprintable() and len(kept) <= 64)
    if re.fullmatch(r"[\x21-\x7e]{1,64}", event):
        assert kept == event


def test_an_outlandish_event_keeps_its_look() -> None:
    assert read({"event": "job finished", "jobId": "job_1"}).event == "job finished"
    assert read({"event": "a\r\nb", "jobId": "job_1"}).event == r"a\r\nb"


# -- the keys ----------------------------------------------------------------------------------------------------------------

BODIES = st.binary(max_size=60)
IDS = st.none() | st.text("abc:-", min_size=1, max_size=8)
TIMES = st.integers(0, 10**12 - 1).map(str)


def keys(body: bytes, delivery_id: str | None = None, timestamp: str | None = T) -> set[str]:
    """All that tells whether it is known; an id's key does so together with the digest that is kept with it."""
    told = understand(body, Claims(delivery_id=delivery_id, timestamp=timestamp), signed=timestamp is not None)
    return {told.key, *(f"{key} {told.digest}" for key in told.id_keys)}


@given(BODIES, IDS, IDS, TIMES)
def test_the_same_signed_bytes_share_a_key_under_any_delivery_id(
    body: bytes, one: str | None, other: str | None, at: str
) -> None:
    assert keys(body, one, at) & keys(body, other, at)


@given(BODIES, st.text("abc:-", min_size=1, max_size=8), TIMES, st.integers(0, 600))
def test_one_delivery_signed_again_shares_a_key(body: bytes, delivery_id: str, one: str, later: int) -> None:
    """At any two times that pass at the same moment: 300 s old and 300 s ahead."""
    assert keys(body, delivery_id, one) & keys(body, delivery_id, str(int(one) + later))


@pytest.mark.parametrize("at", [21600 - 601, 21600 - 600, 21600 - 1, 21600, 21600 + 599])
@pytest.mark.parametrize("later", [0, 1, 599, 600])
def test_one_delivery_signed_again_where_a_span_ends_shares_a_key(at: int, later: int) -> None:
    first = 1_700_000_000 // 21600 * 21600 + at
    assert keys(b"{}", "a", str(first)) & keys(b"{}", "a", str(first + later))


@given(BODIES, st.text("abc:-", min_size=1, max_size=8), st.lists(st.integers(10**9, 2 * 10**9), min_size=2, max_size=2))
def test_keys_of_a_signed_delivery_are_in_the_order_of_their_time(body: bytes, delivery_id: str, times: list[int]) -> None:
    """So that they are added at the end of a large index, and pruned from its beginning."""
    first, second = sorted(times)
    if second - first > 6 * 3600 + 600:
        for kind in "ds":
            early, late = ([key for key in keys(body, delivery_id, str(at)) if key[0] == kind] for at in (first, second))
            assert max(early) < min(late)


@given(BODIES, st.text("abc:-", min_size=1, max_size=8), st.integers(10**9, 2 * 10**9), st.integers(10**9, 2 * 10**9))
def test_what_is_pruned_by_time_was_signed_before_it(body: bytes, delivery_id: str, at: int, before: int) -> None:
    """And of what was signed well before it, nothing is left."""
    gone = {
        key for key in keys(body, delivery_id, str(at)) if any(first <= key < end for first, end in keys_signed_before(before))
    }
    if at >= before:
        assert not gone
    if at < before - 2 * 6 * 3600:
        assert gone == keys(body, delivery_id, str(at))


def test_no_unsigned_key_is_taken_for_a_signed_one_when_pruned() -> None:
    for delivery_id in (None, "a", "078703:a"):
        told = understand(b"{}", Claims(delivery_id=delivery_id), signed=False)
        for key in (told.key, *told.id_keys, *map(told.key_with_body, told.id_keys)):
            assert not any(first <= key < end for first, end in keys_signed_before(2e9))
            assert key >= "u"


@given(BODIES, BODIES, IDS, IDS, TIMES, TIMES)
def test_different_bodies_share_no_key(a: bytes, b: bytes, one: str | None, other: str | None, at: str, then: str) -> None:
    if a != b:
        assert not keys(a, one, at) & keys(b, other, then)


@given(
    st.tuples(st.text("abcde01:", min_size=1, max_size=60), BODIES, st.booleans(), TIMES),
    st.tuples(st.text("abcde01:", min_size=1, max_size=60), BODIES, st.booleans(), TIMES),
)
def test_an_id_with_a_body_has_a_key_of_its_own(one: tuple[str, bytes, bool, str], other: tuple[str, bytes, bool, str]) -> None:
    """For an id that came with another body: whatever the id looks like, only the same id with the same body has that key."""
    told, known = (understand(b, Claims(delivery_id=i, timestamp=at), signed=signed) for i, b, signed, at in (one, other))
    both, others = ({each.key_with_body(key) for key in each.id_keys} for each in (told, known))
    assert not both & {known.key, *known.id_keys}
    if one[:2] != other[:2]:
        assert not both & others


@given(BODIES, st.text("abc:", min_size=1, max_size=6), st.text("abc:", min_size=1, max_size=6), TIMES, TIMES)
def test_a_new_id_at_a_new_time_shares_no_key(body: bytes, one: str, other: str, at: str, then: str) -> None:
    """The same words about a job that ended again: what they lead to is decided by looking."""
    if one != other and at != then:
        assert not keys(body, one, at) & keys(body, other, then)


@given(BODIES, IDS)
def test_every_delivery_has_a_key(body: bytes, delivery_id: str | None) -> None:
    assert keys(body, delivery_id)
    assert keys(body, delivery_id, None)


@given(BODIES, st.text("abc:-", min_size=1, max_size=8), st.text("abc:-", min_size=1, max_size=8))
def test_unsigned_deliveries_go_by_their_id(body: bytes, one: str, other: str) -> None:
    assert bool(keys(body, one, None) & keys(body, other, None)) == (one == other)


def test_an_unsigned_one_cannot_take_the_key_of_a_signed_one() -> None:
    """Nor could it by an id made up to look like it."""
    digest = understand(b"{}", SIGNED, signed=True).digest
    for made_up in (None, T, f"{T}:{digest}", f"s{T}:{digest}"):
        assert not keys(b"{}", made_up, None) & keys(b"{}")


@pytest.mark.parametrize("delivery_id", [None, "", " ", "a b", "x" * 201, "caf\xe9", "a\x00", "\t"])
def test_a_garbage_delivery_id_is_as_good_as_none(delivery_id: str | None) -> None:
    delivery = read({"jobId": "job_1"}, delivery_id=delivery_id)
    assert delivery.delivery_id is None
    assert delivery == read({"jobId": "job_1"}, delivery_id=None)


def test_it_is_signed_only_if_its_signature_was_verified() -> None:
    body = b'{"jobId": "job_1"}'
    verified, unverified = understand(body, SIGNED, signed=True), understand(body, SIGNED, signed=False)
    assert (verified.signed, verified.timestamp) == (True, int(T))
    assert (unverified.signed, unverified.timestamp) == (False, None)


# -- whatever comes in -------------------------------------------------------------------------------------------------------

TEXT = st.none() | st.text(st.characters(), max_size=60)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["jobId", "job_id", "data", "job", "id", "event", "type"]) | st.text(max_size=3), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(
    body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()),
    event=TEXT,
    delivery_id=TEXT,
    timestamp=TIMES | TEXT,
    signed=st.booleans(),
)
def test_nothing_raises_and_what_is_made_of_it_can_be_stored(
    body: bytes, event: str | None, delivery_id: str | None, timestamp: str | None, signed: bool
) -> None:
    if signed and not (timestamp and re.fullmatch(r"0|[1-9][0-9]{0,11}", timestamp)):
        signed = False  # no such timestamp is ever verified
    delivery = understand(body, Claims(event, delivery_id, timestamp, "sha256=…"), signed=signed)
    assert delivery.body == body
    assert (delivery.meaning is Meaning.UNREADABLE) == (delivery.reason is not None)
    assert delivery.job_id is not None or delivery.meaning in {Meaning.UNREADABLE, Meaning.NOTHING}
    assert delivery.job_id is None or re.fullmatch(r"[A-Za-z0-9_-]{1,128}", delivery.job_id)
    for text in (delivery.event, delivery.delivery_id, delivery.key, *delivery.id_keys):
        assert text is None or (text.isascii() and text.isprintable())
