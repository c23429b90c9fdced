"""`POST /hooks/reader` of a live `receiver serve`: what each delivery, and each forgery, is answered, and what is stored."""

from __future__ import annotations

import itertools
import json
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import system_kit
from system_kit import SECRET, Served, Wire, delivery, held, request, signature, signed

NEXT_SECRET = "whsec-that-comes-after-it"
RETIRED_SECRET = "whsec-that-was-before-it"
MAX_BODY = 1 << 20
UNAUTHORIZED = {"error": "unauthorized"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for the whole file: in the midst of a rotation, and with nobody to ask, so nothing but the endpoint works."""
    with Served(tmp_path_factory.mktemp("endpoint"), READER_WEBHOOK_SECRET=f"{SECRET},{NEXT_SECRET}") as served:
        yield served


def stored(server: Served, body: bytes) -> list[tuple[str, str | None, str | None, str | None]]:
    """(outcome, job, event, delivery id) of each row that holds exactly these bytes."""
    return server.rows("SELECT outcome, job_id, event, delivery_id FROM deliveries WHERE body = ? ORDER BY id", body)


def in_row(text: str) -> bytes:
    """A body of which no other test has the bytes, without being JSON."""
    return f"{text} {time.time_ns()}".encode()


# What is genuine


def test_a_delivery_is_stored_byte_for_byte_and_answered_202(server: Served) -> None:
    body = b' {"jobId" :\t"job_bytes",  "event":"job.completed", "x": [1,2 , 3]}\r\n'
    answer = server.post(body)
    assert (answer.status, answer.json) == (202, {"outcome": "accepted"})
    assert answer.header("content-type") == "application/json"
    assert [row[:3] for row in stored(server, body)] == [("accepted", "job_bytes", "job.completed")]


def test_the_same_delivery_again_is_a_duplicate(server: Served) -> None:
    body = delivery()
    headers = signed(body)
    answers = [server.post(body, headers) for _ in range(3)]
    assert [(answer.status, answer.json["outcome"]) for answer in answers] == [
        (202, "accepted"),
        (200, "duplicate"),
        (200, "duplicate"),
    ]
    assert len(stored(server, body)) == 1


def test_an_unknown_event_is_kept_and_ignored(server: Served) -> None:
    body = delivery("job_1", "job.transmogrified")
    answer = server.post(body)
    assert (answer.status, answer.json) == (200, {"outcome": "ignored"})
    assert [row[:3] for row in stored(server, body)] == [("ignored", "job_1", "job.transmogrified")]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda: in_row("not JSON"), id="not JSON"),
        pytest.param(lambda: b"", id="nothing at all"),
        pytest.param(lambda: delivery().decode().encode("utf-16"), id="UTF-16"),
        pytest.param(lambda: b'{"jobId": "job_1", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="100,000 deep"),
        pytest.param(lambda: json.dumps(["jobId", "job_1", time.time_ns()]).encode(), id="a list"),
        pytest.param(lambda: delivery("job_1", job_id="job_2"), id="two different jobs"),
        pytest.param(lambda: b'{"jobId": "job_1", "jobId": "job_2"}', id="one name twice"),
        pytest.param(lambda: json.dumps({"jobId": 17, "at": time.time_ns()}).encode(), id="a number"),
        pytest.param(lambda: json.dumps({"jobId": ["job_1"], "at": time.time_ns()}).encode(), id="a list for an id"),
        pytest.param(lambda: delivery("../../v1/webhooks"), id="a path"),
        pytest.param(lambda: delivery("job_1?limit=1"), id="a query"),
        pytest.param(lambda: delivery("job_1\r\nX-Evil: 1"), id="line ends"),
        pytest.param(lambda: delivery("j" * 10_240), id="10 KB long"),
        pytest.param(lambda: delivery("job_\u0000"), id="NUL in an id"),
    ],
)
def test_what_names_no_job_is_quarantined_as_it_came(server: Served, body: Callable[[], bytes]) -> None:
    sent = body()
    answer = server.post(sent)
    assert (answer.status, answer.json) == (200, {"outcome": "quarantined"})
    assert [(outcome, job) for outcome, job, _, _ in stored(server, sent)] == [("quarantined", None)]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(b'"x": NaN', id="NaN"),
        pytest.param(b'"x": 1e999', id="1e999"),
        pytest.param(b'"x": ' + b"9" * 5000, id="5,000 digits"),
        pytest.param('"x": "Ω \U0001f600", "": {"": []}'.encode(), id="odd fields"),
        pytest.param(b'"x": "\\u0000"', id="NUL"),
        pytest.param(b'"x": "\\ud800"', id="a lone surrogate"),
        pytest.param(b'"event": "job.completed", "data": {"jobId": "job_odd"}', id="its id twice"),
    ],
)
def test_one_valid_job_id_is_a_cue_whatever_stands_beside_it(server: Served, more: bytes) -> None:
    body = b'{"jobId": "job_odd", ' + more + b"}"
    answer = server.post(body)
    assert (answer.status, answer.json) == (202, {"outcome": "accepted"})
    assert [row[:2] for row in stored(server, body)] == [("accepted", "job_odd")]


def test_the_event_in_the_body_counts_and_not_the_one_in_the_header(server: Served) -> None:
    body = delivery(event="job.failed")
    server.post(body, signed(body, event="job.page"))
    assert [row[2] for row in stored(server, body)] == ["job.failed"]


def test_every_secret_of_a_rotation_is_accepted_and_a_retired_one_is_not(server: Served) -> None:
    statuses = []
    for secret in (SECRET, NEXT_SECRET, RETIRED_SECRET, f"{SECRET},{NEXT_SECRET}"):
        body = delivery()
        statuses.append(server.post(body, signed(body, secret=secret)).status)
    assert statuses == [202, 202, 401, 401]


def test_300_seconds_are_in_time_and_301_are_not_in_either_direction(server: Served) -> None:
    answers = {}
    for seconds in (-301, -300, 300, 301):
        while time.time() % 1 > 0.7:  # signed and judged within the same second
            time.sleep(0.01)
        body = delivery()
        answers[seconds] = server.post(body, signed(body, at=time.time() + seconds)).status
    assert answers == {-301: 401, -300: 202, 300: 202, 301: 401}


def test_a_clock_that_is_off_is_named_in_the_log(server: Served) -> None:
    body = delivery()
    for minutes in (-10, 10):
        assert server.post(body, signed(body, at=time.time() + 60 * minutes)).status == 401
    for reason in ("stale", "future"):
        line = server.logged("clock_skew", reason=reason)
        assert line["level"] == "warning"
        assert "clock" in line["hint"]


# What is not


def tampered() -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """(why, body, headers): each of them fails authentication for a reason of its own."""
    body = delivery("job_forged")
    now = str(int(time.time()))
    right = signature(body, now)

    def but(**changed: str | None) -> dict[str, str]:
        return signed(body, SECRET, now, **changed)

    yield "no headers", body, {}
    yield "no signature", body, but(signature=None)
    yield "no timestamp", body, but(timestamp=None)
    yield "the empty key", body, but(signature=signature(body, now, ""))
    yield "another secret", body, but(signature=signature(body, now, "whsec-of-somebody-else"))
    yield "one more character", body, but(signature=right + "0")
    yield "upper case", body, but(signature="sha256=" + right[7:].upper())
    yield "bare hex", body, but(signature=right[7:])
    yield "SHA256=", body, but(signature="SHA256=" + right[7:])
    yield "base64", body, but(signature="sha256=RD3eq3bBGsqKU4LTs9Vs1BfWwUgYT1xyy6mGRCqGDIQ=")
    yield "sha1=", body, but(signature="sha1=" + right[7:47])
    yield "v1,", body, but(signature="v1," + right[7:])
    yield "a list", body, but(signature=f"{right},{right}")
    yield "a list with a space", body, but(signature=f"{right}, {right}")
    yield "0xE9", body, but(signature=right[:-1] + "\xe9")
    yield "non-ASCII digits", body, but(signature="sha256=" + "\xb2" * 64)
    for odd in (
        "+" + now,
        now[:-1] + "_0",
        "1e9",
        "nan",
        "-1",
        "",
        now + "000",
        "9" * 5000,
        now + ".0",
        "0" + now,
        "0x65",
        "\xb2",
    ):
        yield f"timestamp {odd[:20]!r}", body, signed(body, at=odd)
    yield "timestamp not signed", body, but(timestamp=str(int(now) - 1))
    yield "a BOM before it", b"\xef\xbb\xbf" + body, but()
    yield "serialised again", json.dumps(json.loads(body), separators=(",", ":")).encode(), but()
    yield "the body cut", body[:-1], but()
    yield "the body of another", delivery("job_other"), but()
    yield "replayed after 301 s", body, signed(body, at=time.time() - 302)
    yield "from the future", body, signed(body, at=time.time() + 302)
    for length in range(len(right)):
        yield f"the first {length} characters", body, but(signature=right[:length])


def test_whatever_fails_authentication_gets_one_and_the_same_answer(server: Served) -> None:
    with Wire(server.port) as wire:
        answers = {why: wire.ask(request(body, headers)).undated for why, body, headers in tampered()}
    odd_ones = {why: answer for why, answer in answers.items() if answer != answers["no headers"]}
    assert odd_ones == {}
    assert (answers["no headers"].status, answers["no headers"].json) == (401, UNAUTHORIZED)
    assert server.rows("SELECT count(*) FROM deliveries WHERE job_id = 'job_forged'") == [(0,)]


@pytest.mark.parametrize("part", ["timestamp", "body", "signature"])
def test_no_single_bit_of_what_is_signed_may_flip(server: Served, part: str) -> None:
    body, now = delivery("job_flipped"), str(int(time.time()))
    right = {"timestamp": now, "body": body.decode(), "signature": signature(body, now)}
    statuses: Counter[int] = Counter()
    wire = Wire(server.port)
    for position, bit in itertools.product(range(len(right[part])), range(8)):
        wrong = bytearray(right[part], "latin-1")
        wrong[position] ^= 1 << bit
        flipped = right | {part: wrong.decode("latin-1")}
        headers = {"X-Reader-Timestamp": flipped["timestamp"], "X-Reader-Signature": flipped["signature"]}
        answer = wire.ask(request(flipped["body"].encode("latin-1"), headers))
        statuses[answer.status] += 1
        if answer.status == 400:  # a control character may not stand in a header at all, and ends the connection
            assert part != "body"
            wire.socket.close()
            wire = Wire(server.port)
    wire.socket.close()
    assert set(statuses) <= {400, 401}
    assert statuses[401] >= 6 * len(right[part])
    assert server.rows("SELECT count(*) FROM deliveries WHERE job_id = 'job_flipped'") == [(0,)]


@pytest.mark.parametrize("name", ["Event", "Delivery", "Timestamp", "Signature"])
@pytest.mark.parametrize("equal", [True, False], ids=["equal", "different"])
def test_a_reader_header_that_comes_twice_is_refused(server: Served, name: str, equal: bool) -> None:
    body = delivery("job_twice")
    headers = [*signed(body).items()]
    again = dict(headers)[f"X-Reader-{name}"] if equal else "1"
    for order in ([*headers, (f"x-reader-{name.lower()}", again)], [(f"x-reader-{name.lower()}", again), *headers]):
        answer = server.post(body, order)
        assert (answer.status, answer.json) == (401, UNAUTHORIZED)


def test_a_header_with_underscores_is_not_readers(server: Served) -> None:
    body = delivery()
    headers = signed(body)
    underscored = {name.replace("-", "_"): value for name, value in headers.items()}
    assert server.post(body, underscored).status == 401
    assert server.post(body, headers | {"X_Reader_Signature": "sha256=" + "0" * 64, "X_Reader_Timestamp": "1"}).status == 202


def test_an_unsigned_delivery_that_looks_like_readers_is_named_in_the_log(server: Served) -> None:
    body = delivery()
    assert server.post(body, signed(body, timestamp=None, signature=None)).status == 401
    line = server.logged("delivery_refused", reason="missing")
    assert line["level"] == "warning"


# HTTP


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "QUERY"])
def test_only_post_is_allowed(server: Served, method: str) -> None:
    with Wire(server.port) as wire:
        answer = wire.ask(request(b"{}", method=method))
        assert (answer.status, answer.header("allow")) == (405, "POST")


def test_a_head_request_is_told_what_is_allowed_too(server: Served) -> None:
    with Wire(server.port) as wire:
        wire.send(request(method="HEAD"))
        head = b""
        while b"\r\n\r\n" not in head:
            head += wire.socket.recv(65536)
        assert head.startswith(b"HTTP/1.1 405 ")
        assert b"\r\nallow: POST\r\n" in head


@pytest.mark.parametrize(
    "path", ["/hooks/reader/", "/hooks", "/hooks/", "/", "/Hooks/Reader", "//hooks/reader", "/hooks/reader/x", "/hooks/reader%2f"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_wrong_path_is_404_and_never_a_redirect(server: Served, method: str, path: str) -> None:
    body = delivery()
    answer = server.post(body, method=method, path=path)
    assert answer.status == 404
    assert answer.header("location") is None


WEBSOCKET = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "eA=="}
H2C = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA"}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_for_a_websocket_is_answered_and_not_left_hanging(server: Served, method: str) -> None:
    with Wire(server.port, within=2) as wire:
        assert wire.ask(request(b"{}", WEBSOCKET, method=method)).status in {401, 405}


@pytest.fixture(scope="module")
def by_h11(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that finds no httptools, and uses the parser in Python."""
    folder = tmp_path_factory.mktemp("h11")
    script = folder / "receiver"
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom receiver.cli import main\nsys.modules['httptools'] = None\nmain()\n")
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system_kit, "RECEIVER", str(script))
        served = Served(folder)
    with served:
        yield served


@pytest.fixture(params=["server", "by_h11"], ids=["httptools", "h11"])
def either(request: pytest.FixtureRequest) -> Served:
    served: Served = request.getfixturevalue(request.param)
    return served


@pytest.mark.parametrize(
    "upgrade", [WEBSOCKET, H2C, {"Connection": "upgrade", "Upgrade": "TLS/1.0, x"}], ids=lambda h: h["Upgrade"]
)
@pytest.mark.parametrize("how", ["whole", "byte for byte", "chunked"])
def test_an_upgrade_that_is_not_to_be_had_is_ignored(either: Served, upgrade: dict[str, str], how: str) -> None:
    """RFC 9110, 7.8. Some HTTP clients offer HTTP/2 with their every first request; what they send is a delivery like any other."""
    with Wire(either.port, within=5) as wire:
        for _ in range(2):  # the connection can be used again
            body = delivery(how=how)
            headers = {**signed(body), **upgrade}
            data = request(body, headers)
            if how == "chunked":
                halves = [body[:20], body[20:], b""]
                data = request(b"", {**headers, "Transfer-Encoding": "chunked"}, length=-1)
                data += b"".join(b"%x\r\n%s\r\n" % (len(half), half) for half in halves)
            step = 1 if how == "byte for byte" else len(data)
            for start in range(0, len(data), step):
                wire.send(data[start : start + step])
            answer = wire.answer()
            assert (answer.status, answer.json) == (202, {"outcome": "accepted"})
            assert [row[0] for row in stored(either, body)] == ["accepted"]


@pytest.mark.parametrize("upgrade", [WEBSOCKET, H2C], ids=["websocket", "h2c"])
def test_requests_behind_one_for_an_upgrade_are_answered_in_their_order(either: Served, upgrade: dict[str, str]) -> None:
    bodies = [delivery() for _ in range(3)]
    with Wire(either.port, within=5) as wire:
        wire.send(b"".join(request(body, {**signed(body), **(upgrade if number else {})}) for number, body in enumerate(bodies)))
        wire.send(request(method="GET", headers=upgrade))
        assert [wire.answer().status for _ in range(4)] == [202, 202, 202, 405]


@pytest.mark.parametrize("target", ["/hooks/reader", "127.0.0.1:80"])
def test_a_tunnel_is_refused(either: Served, target: str) -> None:
    with Wire(either.port, within=5) as wire:
        assert wire.ask(request(b"{}", H2C, method="CONNECT", path=target)).status in {400, 404, 405}


def test_a_client_that_has_sent_all_and_shut_its_side_is_answered(either: Served) -> None:
    for upgrade in ({}, H2C):
        body = delivery()
        with Wire(either.port, within=5) as wire:
            wire.send(request(body, {**signed(body), **upgrade}))
            wire.socket.shutdown(socket.SHUT_WR)
            assert wire.answer().status == 202
            assert wire.at_end()


def test_a_client_that_shuts_its_side_while_its_delivery_waits_for_the_database_is_answered(either: Served) -> None:
    body = delivery()
    with Wire(either.port, within=10) as wire:
        with held(either.database):
            wire.send(request(body, signed(body)))
            assert select.select([wire.socket], [], [], 0.3)[0] == []
            wire.socket.shutdown(socket.SHUT_WR)
            assert select.select([wire.socket], [], [], 0.3)[0] == []
        assert wire.answer().status == 202
        assert wire.at_end()


def test_a_client_that_shuts_its_side_before_the_end_of_its_body_is_hung_up_on(either: Served) -> None:
    body = delivery()
    for data in (request(body, signed(body))[:-1], b"POST /hooks/re", b""):
        with Wire(either.port, within=5) as wire:
            wire.send(data)
            wire.socket.shutdown(socket.SHUT_WR)
            assert wire.at_end()
    assert stored(either, body) == []


def test_a_query_on_the_path_does_no_harm(server: Served) -> None:
    assert server.post(delivery(), path="/hooks/reader?from=reader").status == 202


def test_a_body_of_the_limit_is_taken(server: Served) -> None:
    body = delivery(more="")
    body = delivery(more="x" * (MAX_BODY - len(body)))
    body += b" " * (MAX_BODY - len(body))
    assert len(body) == MAX_BODY
    assert server.post(body).status == 202


def test_a_longer_body_is_refused_by_its_length_before_it_is_read(server: Served) -> None:
    with Wire(server.port) as wire:
        answer = wire.ask(request(headers={**signed(b""), "Expect": "100-continue"}, length=MAX_BODY + 1))
        assert (answer.status, answer.json) == (413, {"error": "too_large"})
        assert answer.header("connection") == "close"
        assert wire.at_end()


def chunked(wire: Wire, total: int, piece: int = 65536) -> int:
    """Send a body of `total` bytes in chunks; how many of them the server took before it hung up."""
    headers = {**signed(b""), "Transfer-Encoding": "chunked"}
    wire.send(request(headers=headers, length=-1))
    chunk = b"%x\r\n" % piece + b"x" * piece + b"\r\n"
    sent = 0
    try:
        while sent < total:
            wire.send(chunk)
            sent += piece
        wire.send(b"0\r\n\r\n")
    except (ConnectionError, TimeoutError):
        pass
    return sent


def test_a_chunked_body_is_counted_and_the_memory_for_it_bounded(server: Served) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    wires = [Wire(server.port) for _ in range(20)]
    peak = before
    for wire in wires:
        # Each offers 100 MB, faster than it could be thrown away if it were all taken.
        assert chunked(wire, 100 << 20) < 20 << 20
        peak = max(peak, process.memory_info().rss)
    for wire in wires:
        wire.socket.close()
    assert peak - before < 32 << 20
    with Wire(server.port) as wire:
        chunked(wire, MAX_BODY + 65536)
        answer = wire.answer()
        assert (answer.status, answer.header("connection")) == (413, "close")


def test_a_chunked_delivery_is_as_good_as_any(server: Served) -> None:
    body = delivery()
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with Wire(server.port) as wire:
        answer = wire.ask(request(headers={**signed(body), "Transfer-Encoding": "chunked"}, length=-1) + pieces)
    assert answer.status == 202
    assert len(stored(server, body)) == 1


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "gzip, identity"])
def test_a_compressed_body_is_not_supported(server: Served, encoding: str) -> None:
    body = delivery()
    answer = server.post(body, signed(body) | {"Content-Encoding": encoding})
    assert (answer.status, answer.json) == (415, {"error": "unsupported_media_type"})


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx"]
)
def test_another_content_type_is_not_supported(server: Served, kind: str) -> None:
    body = delivery()
    assert server.post(body, signed(body) | {"Content-Type": kind}, json_type=False).status == 415


@pytest.mark.parametrize("kind", [None, "application/json; charset=utf-8", "APPLICATION/JSON", "application/cloudevents+json"])
def test_json_may_be_called_by_any_of_its_names(server: Served, kind: str | None) -> None:
    body = delivery()
    headers = signed(body) | ({"Content-Type": kind} if kind else {})
    assert server.post(body, headers, json_type=False).status == 202


def test_a_truncated_body_leaves_no_row(server: Served) -> None:
    body = delivery("job_truncated")
    for sent in (body[:-1], body[:10], b""):
        with Wire(server.port) as wire:
            wire.send(request(sent, signed(body), length=len(body)))
    for cut in (b"5\r\n" + body[:5] + b"\r\n", b"ffff\r\n" + body, b"5\r\n" + body[:5] + b"\r\n0\r\n"):
        with Wire(server.port) as wire:
            wire.send(request(headers={**signed(body), "Transfer-Encoding": "chunked"}, length=-1) + cut)
    assert server.post(delivery()).status == 202  # whatever came before it on the same loop is dealt with
    assert server.rows("SELECT count(*) FROM deliveries WHERE job_id = 'job_truncated'") == [(0,)]


def test_a_client_that_leaves_before_its_answer_leaves_a_whole_row_or_none(server: Served) -> None:
    bodies = [delivery(f"job_gone_{number}", filler="x" * 5000) for number in range(200)]
    for body in bodies:
        with Wire(server.port) as wire:
            wire.send(request(body, signed(body)))
    assert server.post(delivery()).status == 202
    kept = server.rows("SELECT body FROM deliveries WHERE job_id LIKE 'job_gone_%'")
    assert {body for (body,) in kept} <= set(bodies)
    jobs = server.rows("SELECT count(*) FROM jobs WHERE id LIKE 'job_gone_%'")
    assert jobs == [(len(kept),)]


# Deduping


def test_one_delivery_a_hundred_times_at_once_is_one_row_and_one_effect(server: Served) -> None:
    body = delivery("job_crowd")
    data = request(body, signed(body))
    wires = [Wire(server.port) for _ in range(100)]
    for wire in wires:
        wire.send(data)
    answers = Counter((answer.status, answer.json["outcome"]) for answer in (wire.answer() for wire in wires))
    for wire in wires:
        wire.socket.close()
    assert answers == {(202, "accepted"): 1, (200, "duplicate"): 99}
    assert len(stored(server, body)) == 1
    assert server.rows("SELECT cue FROM jobs WHERE id = 'job_crowd'") == [(1,)]


def test_the_same_signed_bytes_under_a_fresh_delivery_id_have_no_second_effect(server: Served) -> None:
    body = delivery()
    first = signed(body, event="job.started", delivery="one")
    assert server.post(body, first).status == 202
    for headers in (first | {"X-Reader-Delivery": "two"}, first | {"X-Reader-Event": "job.failed"}):
        answer = server.post(body, headers)
        assert (answer.status, answer.json) == (200, {"outcome": "duplicate"})
    assert len(stored(server, body)) == 1


def test_one_delivery_signed_afresh_for_each_attempt_is_a_duplicate_by_its_id(server: Served) -> None:
    body = delivery()
    answers = [server.post(body, signed(body, at=time.time() - ago, delivery="signed-afresh")) for ago in (5, 4, 1)]
    assert [answer.status for answer in answers] == [202, 200, 200]
    assert len(stored(server, body)) == 1


def test_one_delivery_id_with_two_bodies_keeps_both_and_warns(server: Served) -> None:
    bodies = [delivery(), delivery()]
    answers = [server.post(body, signed(body, delivery="used-twice")) for body in bodies]
    assert [answer.status for answer in answers] == [202, 202]
    assert [len(stored(server, body)) for body in bodies] == [1, 1]
    assert server.logged("delivery_id_reused", delivery="used-twice")["level"] == "warning"


@pytest.mark.parametrize("garbage", [None, "", "\xe9\xff", "x" * 5000, "a b"], ids=["none", "empty", "bytes", "long", "a space"])
def test_a_delivery_without_a_usable_id_is_deduped_by_what_is_signed(server: Served, garbage: str | None) -> None:
    body = delivery()
    headers = signed(body, delivery=garbage)
    assert [server.post(body, headers).json["outcome"] for _ in range(2)] == ["accepted", "duplicate"]
    assert [row[3] for row in stored(server, body)] == [None]


def test_a_duplicate_of_what_is_still_being_written_waits_for_the_commit(server: Served) -> None:
    body = delivery()
    data = request(body, signed(body))
    with Wire(server.port) as first, Wire(server.port) as second:
        with held(server.database):
            for wire in (first, second):
                wire.send(data)
            assert select.select([first.socket, second.socket], [], [], 0.5)[0] == []
        assert sorted(wire.answer().status for wire in (first, second)) == [200, 202]
        with held(server.database):
            first.send(data)
            assert select.select([first.socket], [], [], 0.3)[0] == []
        assert first.answer().status == 200


# Unsigned, where that is allowed


def test_unsigned_deliveries_are_cues_for_known_jobs_only_and_deduped_by_their_id(tmp_path: Path) -> None:
    with Served(tmp_path, RECEIVER_ALLOW_UNSIGNED="true") as server:
        known, unknown = delivery("job_known"), delivery("job_unknown")
        assert server.post(known).json == {"outcome": "accepted"}

        def unsigned(body: bytes, number: str | None) -> str:
            answer = server.post(body, {"X-Reader-Event": "job.completed"} | ({"X-Reader-Delivery": number} if number else {}))
            assert answer.status in {200, 202}
            return str(answer.json["outcome"])

        assert unsigned(unknown, "1") == "ignored"
        again = delivery("job_known", again=True)
        assert [unsigned(again, number) for number in ("2", "2", None, None)] == [
            "accepted",
            "duplicate",
            "accepted",
            "duplicate",
        ]
        assert server.rows("SELECT id FROM jobs") == [("job_known",)]
        # What claims to be signed must be signed rightly all the same.
        assert server.post(again, signed(again, secret="whsec-of-somebody-else")).status == 401


@pytest.mark.parametrize("given", ["from-the-proxy-1", None])
def test_a_deliverys_line_names_its_request(tmp_path: Path, given: str | None) -> None:
    """By the id that a proxy gave it, so that both logs tell of the same; without one, by one of its own."""
    with Served(tmp_path) as server:
        body = delivery("job_named")
        headers = {**signed(body), **({} if given is None else {"x-request-id": given})}
        for _ in range(2):
            server.post(body, headers)
        first = server.logged("delivery", outcome="accepted")
        again = server.logged("delivery", outcome="duplicate")
    assert {"request", "delivery", "job", "outcome", "ms"} <= first.keys()
    assert (first["request"] == given) if given else (first["request"] != again["request"])
