"""The dashboard over plain HTTP: every page against a server that has something to show, and one that has nothing; who is let in."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from system_kit import Served, delivery, downstream, knowing, start_job, until

from receiver.sandbox import BackgroundSandbox

KEY = "the-first-token"
LOCAL = {"RECEIVER_LISTEN": "false"}


class Browser(httpx.Client):
    """As somebody would use it who has no scripts."""

    def text(self, path: str, status: int = 200) -> str:
        answer = self.get(path)
        assert answer.status_code == status, answer.text
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        return answer.text

    def press(self, page: str, action: str, **changed: str) -> httpx.Response:
        """Send the form of `page` that leads to `action`."""
        found = re.search(rf'action="{re.escape(action)}".*?</form>', self.text(page), re.DOTALL)
        assert found is not None, action
        fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', found[0]))
        return self.post(action, data=fields | changed, headers={"origin": str(self.base_url).rstrip("/")})


def browser(server: Served, **more: Any) -> Browser:
    return Browser(base_url=server.url, trust_env=False, **more)


@pytest.fixture(scope="module")
def reader() -> Iterator[BackgroundSandbox]:
    with BackgroundSandbox(job_seconds=0.05, speed=10) as started:
        yield started


@pytest.fixture(scope="module")
def server(reader: BackgroundSandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("dashboard"), settings=knowing(reader, **LOCAL)) as started:
        yield started


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("keyed"), RECEIVER_API_KEYS=f"{KEY},another-token") as started:
        yield started


def settled(server: Served, reader: BackgroundSandbox, pages: int, **more: Any) -> str:
    job = start_job(reader, pages, **more)
    with browser(server) as b:
        assert b.post("/v1/jobs", json={"id": job}).status_code == 201
        until(lambda: b.get(f"/v1/jobs/{job}").json()["data"]["receiver"]["state"] == "settled")
    return job


def test_an_empty_one_says_what_to_do_next(tmp_path: Path) -> None:
    with Served(tmp_path, RECEIVER_PUBLIC_URL="https://hooks.example.com") as server, browser(server) as b:
        overview = b.text("/dashboard")
        assert "receiver submit" in overview
        assert "https://hooks.example.com/hooks/reader" in overview
        assert "READER_API_KEY is not set" in overview
        assert "receiver track" in b.text("/dashboard/jobs")
        assert "receiver track job_nobody" in b.text("/dashboard/jobs?q=job_nobody")
        assert "no job job_x is tracked here" in b.text("/dashboard/jobs/job_x", 404)


def test_a_job_is_found_by_its_id_and_by_a_url_and_its_story_is_told(server: Served, reader: BackgroundSandbox) -> None:
    job = settled(server, reader, 120)
    with browser(server) as b:
        assert "1 completed" in b.text("/dashboard")
        site = re.search(r"https://site-\d+", httpx.get(f"{server.url}/v1/jobs/{job}", trust_env=False).text)
        assert site is not None
        for found in (
            b.text(f"/dashboard/jobs?q={job}"),
            b.text(f"/dashboard/jobs?q={site[0]}"),
            b.text("/dashboard/jobs?which=completed"),
        ):
            assert f'href="/dashboard/jobs/{job}"' in found
        page = b.text(f"/dashboard/jobs/{job}")
        assert "settled: 120 results, in 2 requests" in page
        assert "results 101–120 stored" in page
        assert "least possible: 2" in page
        assert page.count("✓ read") == 25
        more = re.search(r'href="([^"]+after=read_24[^"]*)#results"', page)
        assert more is not None
        assert "/25?generation=1" in b.text(more[1].replace("&amp;", "&"))
        assert "Preview" in b.text(f"/dashboard/jobs/{job}/results/7")
        assert "has no result 121" in b.text(f"/dashboard/jobs/{job}/results/120", 404)


def test_a_button_asks_first_and_does_what_it_says(server: Served, reader: BackgroundSandbox) -> None:
    job = settled(server, reader, 3)
    with browser(server, follow_redirects=True) as b:
        page = f"/dashboard/jobs/{job}"
        done = b.press(page, f"{page}/look")
        assert "Reader is asked how it stands." in done.text
        assert b.text(page).count("somebody asked for a look") == 2
        refused = b.post(f"{page}/retry", data={"token": re.findall(r'name="token" value="(\w+)"', done.text)[0]})
        assert refused.status_code >= 400
        assert "failed" in refused.text  # in Reader's words: none has


@pytest.mark.parametrize(
    "headers",
    [{}, {"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}],
    ids=["without its token", "from another site", "by another site's page"],
)
def test_a_form_that_is_not_ours_does_nothing(server: Served, reader: BackgroundSandbox, headers: dict[str, str]) -> None:
    job = settled(server, reader, 1)
    with browser(server) as b:
        token = re.findall(r'name="token" value="(\w+)"', b.text(f"/dashboard/jobs/{job}"))[0]
        given = {"token": token} if headers else {"token": "0" * 64}
        answer = b.post(f"/dashboard/jobs/{job}/look", data=given, headers=headers)
        assert answer.status_code in {400, 401}
        assert b.text(f"/dashboard/jobs/{job}").count("somebody asked for a look") == 1


def test_where_keys_are_set_one_must_be_shown(keyed: Served) -> None:
    with browser(keyed) as b:
        for path in ("/dashboard", "/dashboard/jobs?which=failed"):
            answer = b.get(path)
            assert answer.status_code == 303
            assert answer.headers["location"].startswith("/dashboard/login?next=%2Fdashboard")
        assert b.get("/dashboard/live?topic=overview").status_code == 401
        login = b.get("/dashboard/jobs?which=failed").headers["location"]
        assert "API key" in b.text(login)
        wrong = b.post(login, data={"key": "a-wrong-token"})
        assert wrong.status_code == 401
        assert "not one of" in wrong.text
        granted = b.post(login, data={"key": KEY})
        assert granted.status_code == 303
        assert granted.headers["location"] == "/dashboard/jobs?which=failed"
        cookie = granted.headers["set-cookie"]
        assert all(part in cookie for part in ("HttpOnly", "SameSite=lax", "Path=/dashboard"))
        assert KEY not in cookie
        assert "Jobs" in b.text("/dashboard/jobs")
        assert b.press("/dashboard", "/dashboard/logout").status_code == 303
        assert b.get("/dashboard").status_code == 303


def test_a_program_shows_its_key_each_time(keyed: Served) -> None:
    with browser(keyed, headers={"x-api-key": "another-token"}) as b:
        assert "Overview" in b.text("/dashboard")


@pytest.mark.parametrize(
    "target", ["https://evil.example", "//evil.example", "/dashboard@evil.example", "/dashboard/\\evil", "/v1/jobs"]
)
def test_a_login_leads_nowhere_else(keyed: Served, target: str) -> None:
    with browser(keyed) as b:
        assert b.post("/dashboard/login", params={"next": target}, data={"key": KEY}).headers["location"] == "/dashboard"


def test_guessing_keys_is_slowed_down(tmp_path: Path) -> None:
    with Served(tmp_path, RECEIVER_API_KEYS=KEY) as server, browser(server) as b:
        for _ in range(10):
            assert b.post("/dashboard/login", data={"key": "a guess"}).status_code == 401
        slowed = b.post("/dashboard/login", data={"key": KEY})
        assert slowed.status_code == 429
        assert 0 < int(slowed.headers["retry-after"]) <= 60


def test_without_keys_only_this_machine_sees_it(server: Served) -> None:
    with browser(server) as b:
        for headers in ({"x-forwarded-for": "203.0.113.9"}, {"host": "evil.example"}, {"sec-fetch-site": "cross-site"}):
            answer = b.get("/dashboard", headers=headers)
            assert answer.status_code == 401
            assert "RECEIVER_API_KEYS" in answer.text


@pytest.mark.slow
def test_deliveries_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    with Served(tmp_path) as server, browser(server) as b:
        body = delivery("job_counted")
        once = server.post(body)
        assert once.status == 202
        server.post(b"not json")
        server.post(body, headers={})
        until(lambda: "Refused because" in b.text("/dashboard"))
        page = b.text("/dashboard")
        assert "1 accepted, 1 quarantined, 1 refused" in page
        assert "missing <strong>1</strong>" in page


@pytest.mark.slow
def test_viewers_are_told_of_changes_and_let_go_when_the_server_stops(
    server: Served, reader: BackgroundSandbox, tmp_path: Path
) -> None:
    with (
        Served(tmp_path, settings=knowing(reader, **LOCAL)) as own,
        browser(own) as b,
        b.stream("GET", "/dashboard/live?topic=jobs") as told,
    ):
        lines = told.iter_lines()
        first = next(line for line in lines if line.startswith("data:"))
        job = start_job(reader, 1)
        with browser(own) as other:
            other.post("/v1/jobs", json={"id": job})
        assert next(line for line in lines if line.startswith("data:")) != first
        assert own.stop() < 5
        assert list(lines)[-1:] in ([], [""])


def test_an_end_that_no_webhook_told_of_is_seen_at_once(server: Served, reader: BackgroundSandbox) -> None:
    job = settled(server, reader, 2)
    with browser(server) as b:
        until(lambda: "no webhook came" in b.text("/dashboard"))
        overview = b.text("/dashboard")
        assert re.search(r"of the last \d+ ends?</a> had none, and \w+ found all the same; for \d+ it may still come", overview)
        assert re.search(r"2 results · end found by our own look within", " ".join(overview.split()))
        assert f'href="/dashboard/jobs/{job}"' in b.text("/dashboard/jobs?which=missed")
        assert "! none came" in b.text(f"/dashboard/jobs/{job}")


def test_results_are_downloaded_in_each_format(server: Served, reader: BackgroundSandbox) -> None:
    job = settled(server, reader, 30)
    with browser(server) as b:
        page = b.text(f"/dashboard/jobs/{job}")
        found = dict(re.findall(rf'"(/dashboard/jobs/{job}/download\?format=(\w+)[^"]*)"', page))
        files = {form: b.get(path.replace("&amp;", "&")) for path, form in found.items()}
        assert {"jsonl", "csv"} <= set(files)
        assert all(file.headers["content-disposition"].startswith("attachment") for file in files.values())
        lines = [json.loads(line) for line in files["jsonl"].text.splitlines()]
        rows = list(csv.DictReader(io.StringIO(files["csv"].text)))
        assert [line["url"] for line in lines] == [row["url"] for row in rows]
        assert len(rows) == 30
        if "parquet" in files:
            assert files["parquet"].content[:4] == files["parquet"].content[-4:] == b"PAR1"
        assert b.get(f"/dashboard/jobs/{job}/download?format=exe").status_code == 400
        assert b.get(f"/dashboard/jobs/{job}/download?format=csv&generation=2").status_code == 404


def test_a_delivery_is_shown_as_it_came_and_can_be_sent_again(tmp_path: Path) -> None:
    with Served(tmp_path) as server, browser(server) as b:
        assert "Nothing was delivered yet" in b.text("/dashboard/deliveries")
        odd = b'\xff<script>alert("1")</script>'
        server.post(delivery("job_shown"))
        server.post(odd)
        assert "came twice" in b.text("/dashboard/deliveries?outcome=duplicate")
        listed = b.text("/dashboard/deliveries?outcome=quarantined")
        number = re.findall(r"/dashboard/deliveries/(\d+)", listed)[0]
        page = b.text(f"/dashboard/deliveries/{number}")
        assert "not JSON in UTF-8" in page
        assert "<script>alert" not in page
        raw = b.get(f"/dashboard/deliveries/{number}/body")
        assert raw.content == odd
        assert raw.headers["content-disposition"].startswith("attachment")
        first = re.findall(r"/dashboard/deliveries/(\d+)", b.text("/dashboard/deliveries?outcome=accepted"))[0]
        shown = re.search(r'id="curl">(.*?)</pre>', b.text(f"/dashboard/deliveries/{first}"), re.DOTALL)
        assert shown is not None
        sent = subprocess.run(html.unescape(shown[1]), shell=True, capture_output=True, text=True, check=True)
        assert '{"outcome": "duplicate"}' in sent.stdout
        assert re.findall(r"/dashboard/deliveries/(\d+)", b.text("/dashboard/deliveries?outcome=duplicate")) == [first]
        assert b.get("/dashboard/deliveries/999999").status_code == 404


def test_a_hook_that_fails_is_seen_paused_resumed_and_given_its_dead_letters(reader: BackgroundSandbox, tmp_path: Path) -> None:
    with downstream(500) as hook:
        hooks = json.dumps([{"name": "indexer", "url": hook.url}])
        settings = knowing(reader, RECEIVER_HOOKS=hooks, RECEIVER_HOOK_ATTEMPTS="1", **LOCAL)
        with Served(tmp_path, settings=settings) as server, browser(server, follow_redirects=True) as b:
            job = settled(server, reader, 2)
            page = "/dashboard/hooks/one?name=indexer"
            until(lambda: "Replay dead letters" in b.text(page))
            assert "answered 500" in b.text(page)
            assert "indexer" in b.text("/dashboard/hooks")
            assert "Paused" in b.press(page, "/dashboard/hooks/pause").text
            assert "Resume" in b.text(page)
            b.press(page, "/dashboard/hooks/resume")
            b.press(page, "/dashboard/hooks/replay")
            until(lambda: "hook indexer took it" in b.text(f"/dashboard/jobs/{job}"))
            before = len(hook.got)
            b.press(f"/dashboard/jobs/{job}", f"/dashboard/jobs/{job}/replay")
            until(lambda: len(hook.got) > before)
            assert b.get("/dashboard/hooks/one?name=nobody").status_code == 400


def test_files_are_kept_by_the_browser_and_nothing_else_is_served(server: Served) -> None:
    with browser(server) as b:
        page = b.text("/dashboard")
        for path in re.findall(r'"(/dashboard/static/[^"]+)"', page):
            assert "immutable" in b.get(path).headers["cache-control"]
        assert b.get("/dashboard/static/dashboard.css?v=old").headers["cache-control"] == "no-cache"
        for path in ("nothing.css", "..%2Frender.py", "render.py"):
            assert b.get(f"/dashboard/static/{path}").status_code == 404
