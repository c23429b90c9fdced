"""A page cut up as it comes is the page that a whole parser reads: the same slices, the same head, or no page at all."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver.errors import ReaderUnavailableError
from receiver.packing import unpack
from receiver.reader import pages
from receiver.reader.pages import Glimpse, Head, PageCutter, glimpse
from receiver.reader.shapes import Job, Pagination


def cut(pieces: Iterable[bytes]) -> tuple[list[bytes], Head]:
    """What is made of a body that comes in `pieces`, each result looked into as the packer does."""
    cutter, found = PageCutter(), []
    for piece in pieces:
        for result in cutter.feed(piece):
            glimpse(result)
            found.append(result)
    return found, cutter.finish()


def refused(pieces: Iterable[bytes]) -> str:
    with pytest.raises(ReaderUnavailableError) as caught:
        cut(pieces)
    return str(caught.value)


def in_pieces(body: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield body[at : at + size]
        at += size
    yield body[at:]


class Whole(msgspec.Struct):
    """The reference: a parser that reads all at once."""

    data: dict[str, msgspec.Raw]
    pagination: Pagination
    success: bool = True


def reference(body: bytes) -> tuple[list[bytes], Job, Pagination, dict[str, Any]]:
    body.decode()
    whole = msgspec.json.decode(body, type=Whole)
    results = msgspec.json.decode(whole.data.pop("results", b"[]"), type=list[msgspec.Raw] | None) or []
    document = {name: msgspec.json.decode(value) for name, value in whole.data.items()}
    return [bytes(result) for result in results], msgspec.convert(document, Job), whole.pagination, document


def body_of(*results: bytes, before: bytes = b"", after: bytes = b"", rest: bytes = b"") -> bytes:
    """A page with members before and after its results, and beside `data`."""
    data = b'{"id":"job_1",%s"results":[%s]%s,"status":"completed"}' % (before, b",".join(results), after)
    return b'{"success":true,"data":%s,"pagination":{"total":%d,"hasMore":false}%s}' % (data, len(results), rest)


# -- arbitrary pages ---------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(["results", "data", "id", "status", "url", "error", "", "[", "]", "{", "}", ",", ":", '"', "\\", '\\"'])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.lists(WORDS, max_size=4).map("".join)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | TEXTS, inner, max_size=4),
    max_leaves=15,
)
COUNTS = st.integers(0, 10**6)


@st.composite
def page_bodies(draw: st.DrawFn) -> bytes:
    """A page with its members in any order, strangers among them, any white space, characters escaped or not."""
    rng = random.Random(draw(st.integers(0, 2**32)))

    def object_of(known: dict[str, Any], strangers: dict[str, Any]) -> dict[str, Any]:
        members = list((strangers | known).items())
        rng.shuffle(members)
        return dict(members)

    known: dict[str, Any] = {
        "id": draw(TEXTS),
        "status": draw(TEXTS),
        "completed": draw(COUNTS | st.none()),
        "creditsUsed": draw(COUNTS | st.none()),
    }
    if draw(st.integers(0, 9)):
        known["results"] = draw(st.lists(VALUES, max_size=5))
    strangers = st.dictionaries(TEXTS, VALUES, max_size=3).map(
        lambda members: {name: value for name, value in members.items() if name not in {*Job.__struct_encode_fields__, "results"}}
    )
    pagination = {"total": draw(COUNTS), "hasMore": draw(st.booleans()), "next": draw(st.none() | TEXTS)}
    others = draw(st.dictionaries(TEXTS, VALUES, max_size=3))
    others.pop("success", None)
    envelope = object_of({"data": object_of(known, draw(strangers)), "pagination": object_of(pagination, {})}, others)
    return _render(envelope, rng).encode()


def _render(value: Any, rng: random.Random) -> str:
    def space() -> str:
        return rng.choice(["", "", "", " ", "\n", "\t\r\n  "])

    def text(plain: str) -> str:
        escaped = json.dumps(plain, ensure_ascii=rng.random() < 0.5)
        return escaped.replace("/", "\\/") if rng.random() < 0.5 else escaped

    if isinstance(value, str):
        told = text(value)
    elif isinstance(value, list):
        told = "[" + ",".join(_render(item, rng) for item in value) + (space() if not value else "") + "]"
    elif isinstance(value, dict):
        # A key we go by is written plainly, as every JSON writer does.
        told = (
            "{"
            + ",".join(
                f"{space()}{json.dumps(name) if name in {'data', 'results'} else text(name)}{space()}:{_render(item, rng)}"
                for name, item in value.items()
            )
            + (space() if not value else "")
            + "}"
        )
    else:
        told = json.dumps(value)
    return space() + told + space()


@settings(max_examples=150)
@given(page_bodies(), st.lists(st.integers(0, 40), max_size=60))
def test_a_page_in_any_pieces_is_what_a_whole_parser_reads(body: bytes, sizes: list[int]) -> None:
    results, head = cut(in_pieces(body, sizes))
    expected, job, pagination, document = reference(body)
    assert results == expected
    assert (head.job, head.pagination) == (job, pagination)
    assert json.loads(head.document) == document


TRICKY = (
    b' {"x" : {"data":{"results":[9]}}, "data": { "a":"\\"results\\":[8]","results" : [ {"url":"a\\\\","n":[[1],{}]} , "],[" , '
    b'-1.5e3,null , [ ],{ } ] ,"id":"job_1","status":"comp\\u006ceted\xc3\xa9"}, "pagination":{"total":6} } '
)
TRICKY_RESULTS = [b'{"url":"a\\\\","n":[[1],{}]}', b'"],["', b"-1.5e3", b"null", b"[ ]", b"{ }"]


def test_a_page_may_be_cut_anywhere() -> None:
    """In a key, an escape, a character of two bytes, between a string's end and its comma."""
    for at in range(len(TRICKY) + 1):
        assert cut([TRICKY[:at], TRICKY[at:]])[0] == TRICKY_RESULTS


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_page_may_drip(size: int) -> None:
    results, head = cut(in_pieces(TRICKY, [size] * len(TRICKY)))
    assert (results, head.job.status) == (TRICKY_RESULTS, "completedé")


def test_results_are_given_out_as_soon_as_they_are_complete() -> None:
    """Memory holds one result and the envelope, not the page."""
    cutter, body = PageCutter(), body_of(b'{"url":"a"}', b'{"url":"b"}')
    first, second = body.index(b',{"url":"b"') + 1, body.index(b"],") + 1
    assert cutter.feed(body[: first - 1]) == []
    assert cutter.feed(body[first - 1 : first]) == [b'{"url":"a"}']
    assert cutter.feed(body[first:second]) == [b'{"url":"b"}']
    assert cutter.feed(body[second:]) == []


def test_values_stand_in_the_document_as_they_came() -> None:
    """Numbers beyond a double's precision, the order of members, white space within: nothing is written anew."""
    _, head = cut([body_of(before=b'"big":12345678901234567890123,"tiny":1.10,"n" : { "a" : 1 },')])
    assert head.document == b'{"id":"job_1","big":12345678901234567890123,"tiny":1.10,"n":{ "a" : 1 },"status":"completed"}'


def test_a_page_need_not_hold_results() -> None:
    for body in (
        b'{"data":{"id":"job_1","status":"queued"},"pagination":{"total":0}}',
        b'{"data":{"id":"job_1","results":null,"status":"queued"},"pagination":{"total":0}}',
        b'{"data":{"id":"job_1","results": [ \n] ,"status":"queued"},"pagination":{"total":0}}',
    ):
        results, head = cut([body])
        assert (results, head.document) == ([], b'{"id":"job_1","status":"queued"}')


def test_fields_the_vendor_adds_or_renames_do_not_matter() -> None:
    results, head = cut(
        [body_of(b'{"url":"a","proxyMode":"quantum"}', before=b'"mode":"stealth","newField":{"x":[1]},', rest=b',"v":2')]
    )
    assert (results, head.job.mode) == ([b'{"url":"a","proxyMode":"quantum"}'], "stealth")


# -- what is no page ---------------------------------------------------------------------------------------------------------


def test_a_page_that_ends_midway_is_refused_wherever_that_is() -> None:
    body = TRICKY.rstrip()
    for end in range(len(body)):
        assert ("ended midway" in refused([body[:end]])) == bool(body[:end].strip())


@given(page_bodies(), st.data())
def test_a_damaged_page_is_refused_or_reads_as_a_whole_parser_reads_it(body: bytes, data: st.DataObject) -> None:
    """Never anything but `ReaderUnavailableError` comes out, and nothing that is not JSON gets in."""
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged)))
        damaged[at : at + data.draw(st.integers(0, 4))] = data.draw(
            st.sampled_from([b"", b'"', b"\\", b"[", b"]", b"{", b"}", b",", b":", b"\xff", b"0"])
        )
    try:
        results, head = cut(in_pieces(bytes(damaged), [len(damaged) // 2]))
    except ReaderUnavailableError:
        return
    # Not msgspec as the reference here: what it finds in a half character is another matter.
    told = json.loads(damaged.decode())
    assert [json.loads(result) for result in results] == (told["data"].get("results") or [])
    assert (head.job.status, head.pagination.total) == (halves(told["data"]["status"]), told["pagination"]["total"])


@given(st.lists(st.binary(max_size=30) | st.sampled_from([b'{"data":{"results":[', b'"', b"]", b"}", b","]), max_size=8))
def test_garbage_is_refused(pieces: list[bytes]) -> None:
    refused(pieces)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "not a job's page"),
        (b"<html><body>502 Bad Gateway</body></html>", "not a job's page"),
        (b"null", "not a job's page"),
        (b"[]", "not a job's page"),
        (b"{}", "not a job's page"),
        (b'{"data":{"id":"a","status":"b"}}', "not a job's page"),
        (b'{"data":{"id":"a"},"pagination":{"total":0}}', "not a job's page"),
        (b'{"data":{"id":5,"status":"b"},"pagination":{"total":0}}', "not a job's page"),
        (b'{"data":[{"results":[1]}],"pagination":{"total":0}}', "not a job's page"),
        (body_of() + b"{}", "not a job's page"),
        (body_of() + b"}", "is not JSON"),
        (b'{"data":]', "is not JSON"),
        (body_of(b"1", b"", b"2"), "a comma too many"),
        (body_of(b"", b"1"), "a comma too many"),
        (body_of(b"1", b""), "a comma too many"),
        (body_of(b"1 2"), "is not JSON"),
        (body_of(b"\x0b1\x0c"), "is not JSON"),
        (body_of(b'{"url":"a" "b"}'), "is not JSON"),
        (body_of(b"{'url':1}"), "is not JSON"),
        (body_of(b"NaN"), "is not JSON"),
        (body_of(b'{"url":"a","n":-Infinity}'), "is not JSON"),
        (body_of(b'{"url":"a","markdown":"\xff"}'), "is not JSON"),
        (body_of(b'{"url":"a","markdown":"\xed\xa0\x80"}'), "is not JSON"),
        (body_of(b'{"url":"a","\xff":1}'), "is not JSON"),
        (body_of(before=b'"error":"\xff",'), "not a job's page"),
        (body_of(rest=b',"x":"\xff"'), "not a job's page"),
        (b"\xef\xbb\xbf" + body_of(), "not a job's page"),
        (body_of().decode().encode("utf-16"), "not a job's page"),
        (body_of().replace(b"true", b"false", 1), "200 with success: false"),
    ],
)
def test_what_is_no_page_is_refused_and_says_why(body: bytes, complaint: str) -> None:
    assert complaint in refused([body])


@pytest.mark.parametrize(
    "body",
    [
        body_of(b"1", after=b',"results":[2]'),
        body_of(b"1", after=b',"results":null'),
        body_of(b"1", after=b',"results":{}'),
        body_of(b"1", rest=b',"data":{"id":"job_1","status":"completed"}'),
        body_of(b"1", rest=b',"data":{"id":"job_1","status":"completed","results":[2]}'),
        body_of(b"1", rest=b',"data":{"id":"job_1","status":"completed","results":[]}'),
        body_of(b"1").replace(b"results", b"result\\u0073"),
        body_of(b"1").replace(b'"data"', b'"d\\u0061ta"'),
    ],
)
def test_results_that_two_readers_could_read_differently_are_refused(body: bytes) -> None:
    """Said twice, or under a name in disguise: one page must not mean two things."""
    assert "results" in refused([body])


@pytest.mark.parametrize("total", [2**31, -(2**31) - 1, 10**30, int("9" * 4000)])
def test_a_count_that_no_database_could_hold_is_refused(total: int) -> None:
    refused([b'{"data":{"id":"a","status":"b"},"pagination":{"total":%d}}' % total])
    refused([b'{"data":{"id":"a","status":"b","total":%d},"pagination":{"total":0}}' % total])
    refused([b'{"data":{"id":"a","status":"b","completed":%d},"pagination":{"total":0}}' % total])


@pytest.mark.parametrize("opening", [b"[", b'{"x":', b'[{"x":'])
@pytest.mark.parametrize("where", [b'{"data":{"results":[', b'{"data":', b""])
def test_nesting_without_end_is_refused_before_it_costs_memory(opening: bytes, where: bytes) -> None:
    cutter = PageCutter()
    with pytest.raises(ReaderUnavailableError, match="nested too deeply"):
        cutter.feed(where + opening * 1000)


@pytest.mark.parametrize("shape", [b'{"url":"a","x":%s}', b'{"url":%s}', b'{"error":%s}', b"%s"])
def test_what_is_let_in_can_be_read_later_however_deep_it_is(shape: bytes) -> None:
    """At the deepest that passes there is room for the stack of whoever reads it."""
    depths = [n for n in range(400, 520) if _fits(shape % (b"[" * n + b"]" * n))]
    assert len(depths) > 50
    result = shape % (b"[" * depths[-1] + b"]" * depths[-1])
    assert _under(300, result)


def _fits(result: bytes) -> bool:
    try:
        return cut([body_of(result)])[0] == [result]
    except ReaderUnavailableError:
        return False


def _under(frames: int, result: bytes) -> dict[str, Any]:
    return unpack(result) if frames == 0 else _under(frames - 1, result)


# -- halves of characters ----------------------------------------------------------------------------------------------------

LONE = ["\\ud800", "\\udfff", "\\uD83D", "a\\ud83d", "\\udc00\\ud800", "\\ud800\\ud800\\udc00", "\\\\\\ud800", "\\n\\ud800\\n"]


def halves(text: str) -> str:
    """`text` with each half of a character replaced."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


@pytest.mark.parametrize("half", LONE)
def test_half_a_character_in_a_result_is_kept_as_it_came(half: str) -> None:
    """Pages hold them where somebody cut a text in two."""
    result = b'{"url":"a","markdown":"%s"}' % half.encode()
    assert cut([body_of(result)])[0] == [result]
    assert unpack(result)["markdown"] == json.loads(f'"{half}"')


@pytest.mark.parametrize("half", LONE)
def test_half_a_character_in_the_jobs_own_fields_does_not_hide_the_job(half: str) -> None:
    """An error's text, cut at so many characters: the job ended all the same."""
    _, head = cut([body_of(b"1", before=b'"error":"%s",' % half.encode())])
    told = json.loads(head.document)["error"]
    assert told == halves(json.loads(f'"{half}"'))
    assert head.job.error == told
    assert head.job.status == "completed"


@pytest.mark.parametrize(
    "text", ["\\ud83d\\ude00", "\\\\ud800", "\\\\\\\\ud800", '\\"\\/\\b\\f\\n\\r\\t', "\\uD83D\\uDE00\\u00e9"]
)
def test_whole_characters_and_escapes_are_left_alone(text: str) -> None:
    _, head = cut([body_of(before=b'"error":"%s",' % text.encode())])
    assert b'"error":"%s"' % text.encode() in head.document


# -- how much work it is -----------------------------------------------------------------------------------------------------


class Counting(bytearray):
    """A buffer that counts its bytes that are looked at."""

    looked_at = 0

    def find(self, what: Any, at: Any = 0, *rest: Any) -> int:
        found = super().find(what, at, *rest)
        self.looked_at += (found + 1 if found >= 0 else len(self)) - at
        return found

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        self.looked_at += 1 if isinstance(value, int) else len(value)
        return value


class CountingPattern:
    """A pattern that counts the bytes it looks at."""

    def __init__(self, pattern: Any) -> None:
        self._pattern = pattern
        self.looked_at = 0

    def search(self, buffer: bytearray, at: int) -> Any:
        found = self._pattern.search(buffer, at)
        self.looked_at += (found.end() if found else len(buffer)) - at
        return found


@pytest.mark.parametrize(
    "body",
    [
        body_of(b'{"url":"a","markdown":"%s"}' % (b"x" * 300_000)),
        body_of(b'{"url":"a","markdown":"%s"}' % (b'\\"' * 150_000)),
        body_of(b'{"url":"a","markdown":"%s"}' % (b"\\\\" * 150_000)),
        body_of(before=b'"error":"%s",' % (b'x\\"' * 100_000)),
        body_of(b'{"url":"a","markdown":"%s"}' % ((b"\\" * 501 + b'"') * 600)),
        body_of(b"[%s]" % b",".join([b"1"] * 100_000)),
        body_of(*[b"{}"] * 100_000),
        body_of(b"1" * 300_000),
        body_of(before=b'"n":%s,' % (b" " * 300_000 + b"1")),
    ],
    ids=["text", "quotes", "backslashes", "error", "runs", "array", "results", "number", "space"],
)
@pytest.mark.parametrize("size", [100, 4096])
def test_each_byte_is_looked_at_a_few_times_however_it_comes(body: bytes, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A huge string in small pieces is not begun again with each of them."""
    structure = CountingPattern(pages._STRUCTURE)
    monkeypatch.setattr(pages, "_STRUCTURE", structure)
    cutter = PageCutter()
    cutter._buffer = buffer = Counting()
    for at in range(0, len(body), size):
        cutter.feed(body[at : at + size])
    assert cutter.finish().job.id == "job_1"
    # Searched, cut out, and before each escaped quote up to some times the run of backslashes, or 64 bytes.
    assert buffer.looked_at + structure.looked_at <= 12 * len(body) + 66 * body.count(b'\\"')


def test_what_is_done_with_is_not_held() -> None:
    cutter = PageCutter()
    for piece in in_pieces(body_of(*[b'{"url":"a"}'] * 50_000), [4096] * 200):
        cutter.feed(piece)
        assert len(cutter._buffer) <= 4096 + 11
        assert len(cutter._envelope) <= 200


# -- a look into a result ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "seen"),
    [
        (b'{"url":"https://a/","markdown":"x"}', Glimpse("https://a/", None)),
        (b'{"url":"https://a/","error":"timeout"}', Glimpse("https://a/", "timeout")),
        (b'{"error":{"code":"scrape_timeout"},"url":"a"}', Glimpse("a", '{"code": "scrape_timeout"}')),
        (b'{"url":"a","error":null}', Glimpse("a", None)),
        (b'{"url":"a","error":false}', Glimpse("a", None)),
        (b'{"url":"a","error":""}', Glimpse("a", None)),
        (b'{"url":"a","error":true}', Glimpse("a", "true")),
        (b'{"url":"a","metadata":{"url":"b","error":"c"}}', Glimpse("a", None)),
        (b'{"markdown":"x"}', Glimpse("", None)),
        (b'{"url":null}', Glimpse("", None)),
        (b'{"url":7}', Glimpse("7", None)),
        (b"{}", Glimpse("", None)),
        (b"null", Glimpse("", None)),
        (b"[1]", Glimpse("", None)),
        (b'"text"', Glimpse("", None)),
        (b'{"url":"a\\u0000b"}', Glimpse("a\ufffdb", None)),
        (b'{"url":"a\\ud800"}', Glimpse("a?", None)),
        (b'{"url":"a","error":"\\ud800","markdown":"\\udfff"}', Glimpse("a", "?")),
        (b'{"url":"a","error":"e","n":1e999,"m":"\\ud800"}', Glimpse("a", "e")),
        (b'{"url":"a","error":1e999}', Glimpse("a", "Infinity")),
        (b'{"url":"a","n":%s,"m":"\\ud800"}' % (b"9" * 5000), Glimpse("a", None)),
        (b'{"url":"a","error":[%s]}' % (b"9" * 5000), Glimpse("a", "[Infinity]")),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_glimpse_tells_the_url_and_the_error(result: bytes, seen: Glimpse) -> None:
    """In a form that any database's text column takes; the result itself is kept as it came."""
    assert glimpse(result) == seen


@pytest.mark.parametrize(
    ("result", "value"),
    [
        (b'{"url":"a","n":1.5}', {"url": "a", "n": 1.5}),
        (b'{"n":12345678901234567890123}', {"n": 12345678901234567890123}),
        (b'{"n":1e999}', {"n": float("inf")}),
        (b'{"n":%s}' % (b"9" * 5000), {"n": float("inf")}),
        (b'{"n":-%s,"m":"\\ud800"}' % (b"9" * 5000), {"n": float("-inf"), "m": "\ud800"}),
        (b"[1]", {"url": "", "value": [1]}),
        (b"null", {"url": "", "value": None}),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_passed_the_glimpse_can_be_handed_to_a_handler(result: bytes, value: dict[str, Any]) -> None:
    assert glimpse(result)
    assert unpack(result) == value


@given(VALUES)
def test_any_json_passes_the_glimpse_and_comes_back(value: Any) -> None:
    result = json.dumps(value).encode()
    seen = glimpse(result)
    assert all("\x00" not in text and text.encode() is not None for text in (seen.url, seen.error or ""))
    assert unpack(result) == (value if isinstance(value, dict) else {"url": "", "value": value})


@given(st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()), st.integers(0, 60), st.binary(max_size=2))
def test_what_passes_the_glimpse_is_json(result: bytes, at: int, scrap: bytes) -> None:
    damaged = result[:at] + scrap + result[at + 1 :]
    try:
        glimpse(damaged)
    except ReaderUnavailableError:
        return
    assert json.loads(damaged.decode(), parse_constant=pytest.fail) == json.loads(damaged)
