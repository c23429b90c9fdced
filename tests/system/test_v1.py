"""`/v1`: Reader's own shapes from our store. What Reader would answer for a job that has ended, we answer too, for nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from reader_py import InvalidRequestError, NotFoundError, ReaderClient, UnauthenticatedError
from system_kit import SECRET, Answer, Headers, Served, Wire, delivery, free_port, knowing, request, start_job, until

from receiver.sandbox import BackgroundSandbox

KEYS = "the-first-token,the-second-token"
PAGES = 105


@dataclass
class Both:
    """Reader, and a receiver that has read from it."""

    reader: BackgroundSandbox
    server: Served
    job: str = ""
    """A job of 105 results that has ended, one URL of them with an error, all of it stored."""

    def ask(self, path: str, headers: Headers = (), *, method: str = "GET", body: bytes = b"") -> Answer:
        with Wire(self.server.port) as wire:
            return wire.ask(request(body, headers, method=method, path=path))

    def get(self, path: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.server.url}{path}", trust_env=False)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def readers(self, path: str) -> dict[str, Any]:
        """What Reader itself answers."""
        answer = httpx.get(f"{self.reader.url}{path}", headers={"x-api-key": self.reader.api_key}, trust_env=False)
        told: dict[str, Any] = answer.json()
        return told

    def settled(self, pages: int, **more: Any) -> str:
        job = start_job(self.reader, pages, **more)
        self.track(job)
        until(lambda: self.get(f"/v1/jobs/{job}")["data"]["receiver"]["state"] == "settled")
        return job

    def track(self, job: str) -> httpx.Response:
        return httpx.post(f"{self.server.url}/v1/jobs", json={"id": job}, trust_env=False)


@contextmanager
def running(folder: Path, **sandbox: Any) -> Iterator[Both]:
    port = free_port()
    hooks = f"http://127.0.0.1:{port}/hooks/reader"
    with (
        BackgroundSandbox(
            seed=1, webhook_url=hooks, webhook_secret=SECRET, **{"job_seconds": 0.1, "queue_seconds": 0.05} | sandbox
        ) as reader,
        Served(folder, port=port, settings=knowing(reader, READER_RPM="100000")) as server,
    ):
        yield Both(reader, server)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with running(tmp_path_factory.mktemp("v1")) as both:
        both.job = both.settled(PAGES - 1, urls=[f"https://v1.example/{n}{'?sandbox=error' * (n == 7)}" for n in range(PAGES)])
        yield both


def client(server: Served, key: str = "none needed") -> ReaderClient:
    return ReaderClient(key, server.url, max_retries=0)


# A job and its results


@pytest.mark.parametrize(
    "query",
    ["", "?limit=1", "?skip=5", "?skip=0&limit=100", "?skip=100&limit=100", "?skip=104&limit=1", "?skip=105", "?skip=9999"],
)
def test_a_page_is_answered_as_reader_answers_it(both: Both, query: str) -> None:
    """The envelope, the job, every result, the pagination; `next` leads to us, and what is ours stands apart."""
    ours, theirs = both.get(f"/v1/jobs/{both.job}{query}"), both.readers(f"/v1/jobs/{both.job}{query}")
    assert ours["data"].pop("receiver")["generation"] == 1
    assert ours["pagination"].get("next", "").startswith(both.server.url if theirs["pagination"]["hasMore"] else "")
    for told in (ours, theirs):
        told["pagination"]["next"] = urlsplit(told["pagination"].get("next") or "")[2:]
    assert ours == theirs


def test_next_leads_through_every_result_once(both: Both) -> None:
    urls, following = [], f"{both.server.url}/v1/jobs/{both.job}?limit=40"
    while following:
        page = httpx.get(following, trust_env=False).json()
        urls += [row["url"] for row in page["data"]["results"]]
        following = page["pagination"].get("next")
    assert urls == [row["url"] for row in both.reader.ledger()["jobs"][both.job]["results"]]


def test_the_official_client_reads_a_job_whole(both: Both) -> None:
    with client(both.server) as reading:
        job = reading.wait_for_job(both.job, poll_interval=1, timeout=20)
    assert (job.status, job.completed, job.total) == ("completed", PAGES, PAGES)
    truth = both.reader.ledger()["jobs"][both.job]["results"]
    assert [(page.url, page.error) for page in job.results] == [(row["url"], row["error"]) for row in truth]
    assert [page.markdown and sha256(page.markdown.encode()).hexdigest() for page in job.results] == [
        row["sha256"] for row in truth
    ]


def test_asking_us_costs_no_request_of_readers(both: Both) -> None:
    before = len(both.reader.ledger()["requests"])
    with client(both.server) as reading:
        for _ in range(5):
            reading.get_all_job_results(both.job)
    assert len(both.reader.ledger()["requests"]) == before


def test_a_job_has_not_ended_here_before_its_results_are_stored(both: Both) -> None:
    """Else a client that polls us would read half of them: here the second page is not to be had for a while."""
    both.reader.faults = {"server_error": {"rate": 1, "match": "skip=100"}}
    job = start_job(both.reader, PAGES)
    both.track(job)
    both.reader.until(lambda ledger: any(row["fault"] == "server_error" for row in ledger["requests"]))
    told = both.get(f"/v1/jobs/{job}?limit=100")
    assert both.readers(f"/v1/jobs/{job}?limit=1")["data"]["status"] == "completed"
    assert (told["data"]["status"], told["data"]["results"]) == ("processing", [])
    assert (told["pagination"]["total"], told["pagination"]["hasMore"]) == (0, False)
    both.reader.faults = {}
    with client(both.server) as reading:
        assert len(reading.wait_for_job(job, poll_interval=1, timeout=30).results) == PAGES


@pytest.mark.slow
def test_a_cancelled_job_keeps_what_it_gathered(tmp_path: Path) -> None:
    with running(tmp_path, job_seconds=60) as both:
        job = start_job(both.reader, 600)
        until(lambda: both.readers(f"/v1/jobs/{job}?limit=1")["data"]["completed"] >= 2)
        httpx.delete(f"{both.reader.url}/v1/jobs/{job}", headers={"x-api-key": both.reader.api_key}, trust_env=False)
        both.track(job)
        until(lambda: both.get(f"/v1/jobs/{job}")["data"]["status"] == "cancelled")
        told = both.get(f"/v1/jobs/{job}?limit=100")
        assert told["data"]["results"] == both.readers(f"/v1/jobs/{job}?limit=100")["data"]["results"]
        assert len(told["data"]["results"]) >= 2


# What cannot be


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/jobs/job_of_nobody", 404, "not_found"),
        ("/v1/jobs/a%20b", 400, "invalid_request"),
        ("/v1/jobs/" + "x" * 129, 400, "invalid_request"),
        ("/v1/jobs/{job}?skip=-1", 400, "invalid_request"),
        ("/v1/jobs/{job}?skip=99999999999", 400, "invalid_request"),
        ("/v1/jobs/{job}?skip=1.5", 400, "invalid_request"),
        ("/v1/jobs/{job}?limit=0", 400, "invalid_request"),
        ("/v1/jobs/{job}?limit=101", 400, "invalid_request"),
        ("/v1/jobs/{job}?limit=%D9%A1", 400, "invalid_request"),
        ("/v1/jobs?limit=many", 400, "invalid_request"),
        ("/v1/jobs?status=bogus", 400, "invalid_request"),
        ("/v1/jobs?status=", 400, "invalid_request"),
        ("/v1/nothing", 404, "not_found"),
        ("/v1", 404, "not_found"),
        ("/v1/jobs/", 404, "not_found"),
        ("/v1/jobs/{job}/stream", 404, "not_found"),
    ],
)
def test_an_error_has_readers_envelope_and_code(both: Both, path: str, status: int, code: str) -> None:
    path = path.format(job=both.job)
    answer = both.ask(path)
    assert answer.status == status
    assert answer.json["success"] is False
    error = answer.json["error"]
    assert (error["code"], bool(error["message"])) == (code, True)
    assert error["docsUrl"] == both.readers("/v1/jobs/job_of_nobody")["error"]["docsUrl"].replace("not_found", code)
    assert answer.header("x-request-id")
    assert ("issues" in error.get("details", {})) == (code == "invalid_request")
    if "129" not in path and path.startswith("/v1/jobs/{") and status == 400:
        assert both.readers(path)["error"]["code"] == code, "and Reader says the same"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/jobs/{job}", {"GET", "HEAD"}),
        ("POST", "/v1/jobs/{job}", {"GET", "HEAD"}),
        ("PUT", "/v1/jobs", {"GET", "HEAD", "POST"}),
        ("GET", "/internal/commands/submit", {"POST"}),
    ],
)
def test_a_method_that_is_not_ours_has_readers_envelope_too(both: Both, method: str, path: str, allowed: set[str]) -> None:
    path = path.format(job=both.job)
    answer = both.ask(path, method=method, body=b"{}")
    assert answer.status == 405
    assert set((answer.header("allow") or "").split(", ")) == allowed
    error = answer.json["error"]
    assert (answer.json["success"], error["code"]) == (False, "invalid_request")
    assert allowed <= set(error["message"].replace(",", "").split())
    assert error["docsUrl"].endswith("#invalid_request")
    assert answer.header("x-request-id")


def test_a_status_that_is_none_is_told_which_there_are(both: Both) -> None:
    message = both.ask("/v1/jobs?status=bogus").json["error"]["message"]
    for status in ("queued", "processing", "completed", "failed", "cancelled", "watching", "hydrating", "settled", "parked"):
        assert status in message
        assert both.ask(f"/v1/jobs?status={status}").status == 200


def test_every_answer_has_a_request_id_of_its_own(both: Both) -> None:
    paths = ["/v1/jobs", f"/v1/jobs/{both.job}", "/v1/jobs?limit=0", "/v1/nothing", "/internal/tick?budget=0"]
    names = [both.ask(path).header("x-request-id") for path in paths * 2]
    assert None not in names
    assert len(set(names)) == len(names)


def test_the_official_client_knows_our_errors(both: Both) -> None:
    with client(both.server) as reading:
        with pytest.raises(NotFoundError) as unknown:
            reading.get_job("job_of_nobody")
        with pytest.raises(InvalidRequestError) as refused:
            reading.cancel_job(both.job)  # which is not ours to do
    for caught in (unknown, refused):
        assert (caught.value.request_id or "").startswith("req_")
        assert caught.value.docs_url == f"https://reader.dev/docs/errors#{caught.value.code}"
    assert refused.value.http_status == 405


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"\xff", b"{}", b'{"id": 1}', b'{"id": "../x"}', b'{"id": ""}', b"[" * 50_000],
    ids=lambda b: repr(b[:15]),
)
def test_what_names_no_job_is_not_tracked(both: Both, body: bytes) -> None:
    answer = both.ask("/v1/jobs", method="POST", body=body)
    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_request")


# The list, and tracking


def test_posting_an_id_tracks_the_job_and_once_more_changes_nothing(both: Both) -> None:
    """An id of which neither webhook nor stream can have told before."""
    answers = [both.track("job_that_nobody_told_of") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    for answer in answers:
        assert answer.json()["success"] is True
        assert answer.json()["data"]["id"] == "job_that_nobody_told_of"
        assert answer.json()["data"]["status"] in {"queued", "processing"}


def test_a_tracked_job_is_there_in_the_end(both: Both) -> None:
    job = start_job(both.reader, 2)
    assert both.track(job).status_code in {200, 201}
    until(lambda: both.get(f"/v1/jobs/{job}")["data"]["status"] == "completed")


def test_a_webhook_makes_a_job_known_too(both: Both) -> None:
    job = start_job(both.reader, 1)
    assert both.server.post(delivery(job, "job.started")).status == 202
    assert both.get(f"/v1/jobs/{job}")["data"]["id"] == job


def test_the_list_is_in_pages_newest_first_and_by_status(both: Both) -> None:
    ended = [both.settled(1) for _ in range(3)]
    both.reader.faults = {"unborn": {"rate": 1, "value": 3600}}
    waiting = start_job(both.reader, 1)
    both.track(waiting)

    def ids(query: str) -> list[str]:
        return [job["id"] for job in both.get(f"/v1/jobs{query}")["data"]]

    newest_first = [waiting, *reversed(ended)]
    assert ids("")[:4] == newest_first
    assert ids("?status=completed")[:3] == ids("?status=settled")[:3] == newest_first[1:]
    assert ids("?status=cancelled") == []
    page = both.get("/v1/jobs?status=completed&skip=1&limit=1")
    assert [job["id"] for job in page["data"]] == [ended[1]]
    total = page["pagination"]["total"]
    assert page["pagination"] == {"total": total, "skip": 1, "limit": 1, "hasMore": True}
    last = both.get(f"/v1/jobs?status=completed&skip={total - 1}&limit=20")
    assert (len(last["data"]), last["pagination"]["hasMore"]) == (1, False)
    both.reader.faults = {}


# Who may ask

GUARDED = [
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/job_1"),
    ("POST", "/v1/jobs"),
    ("GET", "/internal/tick"),
    ("POST", "/internal/commands/track"),
]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("keyed"), RECEIVER_API_KEYS=KEYS) as server:
        yield server


def asked(server: Served, path: str, headers: Headers, *, method: str = "GET", host: str | None = None) -> Answer:
    raw = request(b'{"id": "job_1"}', headers, method=method, path=path)
    with Wire(server.port) as wire:
        return wire.ask(raw if host is None else raw.replace(b"Host: 127.0.0.1", f"Host: {host}".encode()))


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_with_keys_set_one_of_them_opens_and_nothing_else(keyed: Served, method: str, path: str) -> None:
    for headers in ({"x-api-key": "the-first-token"}, {"Authorization": "Bearer the-second-token"}):
        assert asked(keyed, path, headers, method=method, host="hooks.example.com").status != 401
    for headers in (
        {},
        {"x-api-key": "the-third-token"},
        {"x-api-key": KEYS},
        {"x-api-key": "\xe9"},
        {"Authorization": "Bearer "},
    ):
        answer = asked(keyed, path, headers, method=method)
        assert (answer.status, answer.json["error"]["code"]) == (401, "unauthenticated")
        assert b"token" not in answer.body


def test_the_official_client_with_a_wrong_key_is_told_so(keyed: Served) -> None:
    with client(keyed, "wrong") as reading, pytest.raises(UnauthenticatedError):
        reading.get_job("job_1")
    with client(keyed, "the-first-token") as reading, pytest.raises(NotFoundError):
        reading.get_job("job_of_nobody")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_platform_may_ask_for_health_without_a_key(keyed: Served, path: str) -> None:
    assert asked(keyed, path, {"x-forwarded-for": "203.0.113.9"}, host="hooks.example.com").status == 200


@pytest.mark.parametrize(
    ("headers", "host"),
    [
        ({"X-Forwarded-For": "127.0.0.1"}, None),
        ({"Forwarded": "for=127.0.0.1"}, None),
        ({"X-Real-IP": "127.0.0.1"}, None),
        ({"Via": "1.1 proxy"}, None),
        ({"X-Forwarded-Host": "localhost"}, None),
        ({}, "hooks.example.com"),
        ({}, "127.0.0.1.example.com"),
        ({}, "localhost.example.com:80"),
    ],
)
def test_without_keys_a_request_through_a_proxy_or_by_a_foreign_name_is_refused(
    both: Both, headers: dict[str, str], host: str | None
) -> None:
    for method, path in GUARDED:
        answer = asked(both.server, path, headers, method=method, host=host)
        assert (answer.status, answer.json["error"]["code"]) == (401, "unauthenticated"), path
        assert "RECEIVER_API_KEYS" in answer.json["error"]["message"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8080", "[::1]:8080"])
def test_without_keys_somebody_at_this_machine_may_ask(both: Both, host: str) -> None:
    assert json.loads(asked(both.server, "/v1/jobs?limit=1", {}, host=host).body)["success"] is True


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"},
    ],
)
def test_without_keys_a_page_of_somebody_elses_in_a_browser_here_is_refused(both: Both, headers: dict[str, str]) -> None:
    for method, path in GUARDED:
        answer = asked(both.server, path, headers, method=method)
        assert (answer.status, answer.json["error"]["code"]) == (401, "unauthenticated"), path
        assert "browser" in answer.json["error"]["message"]


def test_without_keys_a_command_must_come_as_json(both: Both) -> None:
    """A form, or text: what a page in an old browser may send anywhere, and it says not even where it comes from."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = httpx.post(
            f"{both.server.url}/internal/commands/track",
            content=b'{"id": "job_1"}',
            headers={"content-type": kind},
            trust_env=False,
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
        assert "content-type: application/json" in answer.json()["error"]["message"]
