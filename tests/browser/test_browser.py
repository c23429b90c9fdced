"""The dashboard in Chromium: it comes alive, its buttons do what they say, nothing in it acts that should not, and all can use it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard
from conftest import SHOTS, SIZES, Place, place
from playwright.sync_api import Page, expect
from system_kit import Served, start_job, until

pytestmark = pytest.mark.slow

Visit = Callable[..., Page]
Shown = tuple[Place, dict[str, str]]
NAMES = (
    "running",
    "overview",
    "jobs",
    "nothing-found",
    "job",
    "result",
    "deliveries",
    "delivery",
    "hooks",
    "hook",
)


def how_far(page: Page) -> float:
    return float(page.locator("main progress").first.get_attribute("value") or 0)


def test_a_bar_moves_while_a_job_runs_and_goes_when_it_has_ended(visit: Visit, tmp_path: Path) -> None:
    with place(tmp_path, sandbox={"seconds_per_url": 0.4}) as p:
        page = visit(p.url)
        expect(page.get_by_text("No job is known here yet.")).to_be_visible()
        loaded = page.evaluate("performance.timeOrigin")
        job = p.track(_started(p, 200))
        expect(page.get_by_role("link", name=job)).to_be_visible(timeout=10_000)
        seen = {how_far(page)}
        until(lambda: seen.add(how_far(page)) or len(seen) > 3)
        expect(page.get_by_text("Nothing is under way")).to_be_visible(timeout=30_000)
        assert page.evaluate("performance.timeOrigin") == loaded, "it was loaded again"


def test_a_jobs_page_tells_its_story_as_it_happens(visit: Visit, tmp_path: Path) -> None:
    with place(tmp_path, sandbox={"seconds_per_url": 0.02}) as p:
        page = visit(f"{p.url}/jobs/{p.track(_started(p, 120))}")
        expect(page.get_by_text("settled: 120 results")).to_be_visible(timeout=30_000)
        expect(page.get_by_role("table")).to_contain_text("read")
        expect(page.locator(".headline")).to_contain_text("completed")


def test_retrying_failed_urls_ends_in_generation_two_on_screen(visit: Visit, tmp_path: Path) -> None:
    with place(tmp_path, sandbox={"seconds_per_url": 0.01}) as p:
        job = p.track(_started(p, 20, "?sandbox=error-once"))
        page = visit(f"{p.url}/jobs/{job}")
        expect(page.get_by_text("20 with an error")).to_be_visible(timeout=20_000)
        page.get_by_text("Retry failed URLs").click()
        expect(page.get_by_text("It costs their credits.")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_text("It costs their credits.")).to_be_hidden()
        page.get_by_text("Retry failed URLs").click()
        page.get_by_role("button", name="Retry them").click()
        expect(page.get_by_role("status").filter(has_text="Reader is asked to read")).to_be_visible()
        expect(page.get_by_text("settled: 20 results, in 1 request")).to_be_visible(timeout=20_000)
        generations = page.locator(".facts div", has_text="Generation")
        expect(generations).to_contain_text("1 2")
        generations.get_by_role("link", name="1").click()
        expect(page.get_by_role("heading", name="Results of generation 1")).to_be_visible()


def test_a_filter_and_a_search_by_keyboard(visit: Visit, shown: Shown) -> None:
    p, _ = shown
    page = visit(f"{p.url}/jobs")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.get_by_role("link", name="Failed", exact=True).press("Enter")
    expect(page.get_by_text("No job is “Failed” now.")).to_be_visible()
    expect(page.get_by_role("link", name="Failed", exact=True)).to_have_attribute("aria-current", "true")
    page.get_by_role("searchbox").fill("site-")
    page.keyboard.press("Enter")
    expect(page.get_by_role("table")).to_contain_text("completed")


def test_logging_in_is_refused_and_granted_and_ends(visit: Visit, tmp_path: Path) -> None:
    with Served(tmp_path, RECEIVER_API_KEYS="a-token-for-the-browser") as server:
        page = visit(f"{server.url}/dashboard/hooks", expected=("401",))
        page.get_by_label("API key").fill("a wrong one")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("not one of this receiver's API keys")
        page.get_by_label("API key").fill("a-token-for-the-browser")
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{server.url}/dashboard/hooks")
        expect(page.locator("#pulse")).to_have_text("Live")
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("API key")).to_be_visible()
        page.goto(f"{server.url}/dashboard")
        expect(page.get_by_label("API key")).to_be_visible()


EVIL = """<script>document.title = "taken"</script>

<img src="https://tracker.example/pixel.gif" onerror="document.title = 'taken'">

[click me](javascript:document.title='taken') ![image](https://tracker.example/other.gif)

<iframe src="https://tracker.example/"></iframe><style>body { display: none }</style>

| left | right |
|:-----|------:|
| 1 | 2 |
"""


def test_a_result_full_of_scripts_is_harmless(visit: Visit, tmp_path: Path) -> None:
    with place(tmp_path, sandbox={"job_seconds": 0.05}) as p:
        job = p.settled(1)
        p.server.stop()
        result = json.dumps(
            {"url": "javascript:alert(1)//<script>", "markdown": EVIL, "title": "</script><script>x</script>"}
        ).encode()
        with contextlib.closing(sqlite3.connect(p.server.database)) as database:
            database.execute("UPDATE chunks SET data = ? WHERE job_id = ?", [zstandard.compress(result), job])
            database.execute(
                "UPDATE results SET start = 0, length = ?, url = ? WHERE job_id = ?", [len(result), '"><script>', job]
            )
            database.commit()
        with Served(tmp_path) as again:
            page = visit(f"{again.url}/dashboard/jobs/{job}")
            page.locator(".results tbody a").click()
            preview = page.locator(".markdown")
            expect(preview).to_contain_text('<script>document.title = "taken"</script>')
            expect(preview).to_contain_text("click me")
            preview.get_by_text("click me").click()
            assert preview.locator("script, img, iframe, style, [href^=javascript], [onerror]").count() == 0
            assert page.locator('a[href^="javascript" i]').count() == 0
            assert "taken" not in page.title()
            assert page.locator("main").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_every_page_fits_and_is_kept_as_a_picture(visit: Visit, shown: Shown, size: str, scheme: str) -> None:
    p, pages = shown
    SHOTS.mkdir(exist_ok=True)
    page = visit(p.url, size=size, scheme=scheme)
    for name in NAMES:
        page.goto(p.url + pages[name])
        expect(page.get_by_role("main")).to_be_visible()
        page.screenshot(path=SHOTS / f"{name}-{size}-{scheme}.png", full_page=True)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= SIZES[size][0], f"{name} is {wide} pixels wide"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_nothing_keeps_anybody_from_using_it(visit: Visit, shown: Shown, axe: str, size: str, scheme: str) -> None:
    """By axe-core's rules, which know of contrast, labels, landmarks and the keyboard."""
    p, pages = shown
    page = visit(p.url, size=size, scheme=scheme, expected=("404",))
    found: list[str] = []
    for name, path in [*((name, pages[name]) for name in NAMES), ("not there", "/jobs/job_nobody")]:
        page.goto(p.url + path)
        page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        page.evaluate(axe)
        told: dict[str, Any] = page.evaluate("axe.run()")
        grave = [each for each in told["violations"] if each["impact"] in {"serious", "critical"}]
        found += [f"{name}: {each['id']}: {[node['html'][:120] for node in each['nodes'][:3]]}" for each in grave]
    assert found == []


def test_without_scripts_everything_can_be_done(visit: Visit, tmp_path: Path) -> None:
    with place(tmp_path, sandbox={"job_seconds": 0.05}) as p:
        job = p.settled(2)
        page = visit(p.url, java_script_enabled=False)
        page.get_by_role("link", name="Jobs", exact=True).click()
        page.get_by_role("link", name=job).click()
        expect(page.get_by_text("UTC").first).to_be_visible()
        page.get_by_text("Look now").first.click()
        page.get_by_role("button", name="Look now").click()
        expect(page.get_by_role("status")).to_contain_text("Reader is asked how it stands.")


def test_a_server_that_goes_away_is_said_to_and_found_again(visit: Visit, tmp_path: Path) -> None:
    with Served(tmp_path) as server:
        page = visit(f"{server.url}/dashboard", expected=("ERR_", "Failed to load"))
        expect(page.locator("#pulse")).to_have_text("Live")
        port = server.port
        server.stop()
    expect(page.locator("#pulse")).to_have_text("Reconnecting", timeout=10_000)
    with Served(tmp_path, port=port):
        expect(page.locator("#pulse")).to_have_text("Live", timeout=20_000)


def _started(p: Place, pages: int, query: str = "") -> str:
    if not query:
        return start_job(p.reader, pages)
    urls = [f"https://retried.example/{n}{query}" for n in range(pages)]
    asked = httpx.post(f"{p.reader.url}/v1/read", json={"urls": urls}, headers={"x-api-key": p.reader.api_key}, trust_env=False)
    return str(asked.json()["data"]["id"])
