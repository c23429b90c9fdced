"""A real browser, Debian's Chromium, that nothing may go wrong in; and a receiver with something to show."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright
from system_kit import Served, delivery, downstream, knowing, start_job, until

from receiver.sandbox import BackgroundSandbox

CHROMIUM = "/usr/bin/chromium"
AXE = Path(sys.prefix) / "node_modules/axe-core/axe.min.js"
SHOTS = Path(__file__).parents[2] / ".screenshots"
SIZES = {"phone": (390, 844), "desktop": (1280, 800)}


@pytest.fixture(scope="module")  # while it runs, no other test of this process can have an event loop
def chromium() -> Iterator[Browser]:
    assert Path(CHROMIUM).exists(), "these tests need Chromium: apt-get install -y chromium"
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe() -> str:
    assert AXE.exists(), "these tests need axe-core: npm install --prefix .venv axe-core@4"
    return AXE.read_text()


@dataclass
class Watched:
    """What went wrong in a page, beyond what the test expects."""

    wrong: list[str]
    expected: tuple[str, ...] = ()

    def console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not any(words in message.text for words in self.expected):
            self.wrong.append(f"console: {message.text}")


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page; at the end, none must have logged an error, broken its policy, or asked another host for anything."""
    watched: list[Watched] = []
    contexts = []

    def open_at(url: str, *, size: str = "desktop", scheme: Any = "light", expected: tuple[str, ...] = (), **more: Any) -> Page:
        width, height = SIZES[size]
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **more)
        contexts.append(context)
        page, seen = context.new_page(), Watched([], expected)
        watched.append(seen)
        page.on("console", seen.console)
        page.on("pageerror", lambda error: seen.wrong.append(f"error: {error}"))
        host = urlsplit(url).netloc
        page.on("request", lambda asked: urlsplit(asked.url).netloc == host or seen.wrong.append(f"asked for {asked.url}"))
        page.goto(url)
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert [wrong for each in watched for wrong in each.wrong] == []


@dataclass
class Place:
    """A receiver with a Reader of its own."""

    server: Served
    reader: BackgroundSandbox

    @property
    def url(self) -> str:
        return f"{self.server.url}/dashboard"

    def track(self, job: str) -> str:
        assert httpx.post(f"{self.server.url}/v1/jobs", json={"id": job}, trust_env=False).status_code == 201
        return job

    def settled(self, pages: int, **more: Any) -> str:
        job = self.track(start_job(self.reader, pages, **more))
        until(lambda: self.state(job) == "settled")
        return job

    def state(self, job: str) -> str:
        told = httpx.get(f"{self.server.url}/v1/jobs/{job}", trust_env=False).json()
        return str(told["data"]["receiver"]["state"])


@contextmanager
def place(folder: Path, *, sandbox: dict[str, Any], **settings: str) -> Iterator[Place]:
    with BackgroundSandbox(**sandbox) as reader, Served(folder, settings=knowing(reader, **settings)) as server:
        yield Place(server, reader)


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, dict[str, str]]]:
    """One with something on every page, and these pages by name."""
    folder = tmp_path_factory.mktemp("shown")
    with downstream() as well, downstream(*[500] * 50) as ill:
        hooks = json.dumps([{"name": "indexer", "url": well.url}, {"name": "archive", "url": ill.url}])
        sandbox = {"seconds_per_url": 0.1, "page_errors": 0.05, "seed": 3}
        with place(folder, sandbox=sandbox, RECEIVER_HOOKS=hooks, RECEIVER_HOOK_ATTEMPTS="2", RECEIVER_HOOK_BACKOFF="0.1") as p:
            job = p.settled(120)
            p.settled(3)
            p.server.post(delivery(job))
            p.server.post(b"neither JSON nor anything")
            p.server.post(delivery(), headers={})
            slow = p.track(start_job(p.reader, 1000))
            until(lambda: "quarantined" in httpx.get(p.url, trust_env=False).text)
            until(lambda: "Replay dead" in httpx.get(f"{p.url}/hooks/one?name=archive", trust_env=False).text)
            pages = {
                "running": f"/jobs/{slow}",
                "overview": "",
                "jobs": "/jobs",
                "nothing-found": "/jobs?q=nothing",
                "job": f"/jobs/{job}",
                "result": f"/jobs/{job}/results/1",
                "deliveries": "/deliveries",
                "delivery": "/deliveries/1",
                "hooks": "/hooks",
                "hook": "/hooks/one?name=archive",
            }
            yield p, pages
    shutil.rmtree(folder, ignore_errors=True)
