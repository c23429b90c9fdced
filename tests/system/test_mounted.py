"""A receiver inside somebody else's app: it works where that app starts it, and says what is missing where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from system_kit import RECEIVER, Background, Wire, delivery, free_port, knowing, request, signed, start_job, until

from receiver.sandbox import BackgroundSandbox

HOST = """
import json, sys
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from receiver import Receiver
from receiver.logs import configure

configure("json")
receiver = Receiver()

@receiver.on("job.completed")
async def index(event, results):
    urls = [result["url"] async for result in results]
    print(json.dumps({"event": "indexed", "job": event.job_id, "urls": urls}), file=sys.stderr, flush=True)

async def home(request):
    return PlainTextResponse("the host's own page")

async def submit(request):
    job = await receiver.submit(urls=["https://mounted.example/1", "https://mounted.example/2"])
    end = await receiver.wait_for_job(job.id, timeout=30)
    return PlainTextResponse(f"{end.id} {end.status}")

@asynccontextmanager
async def own(app):
    async with receiver.lifespan(app):
        yield

HOW = {"lifespan": receiver.lifespan, "its own, around it": own, "without": None}
app = Starlette(
    routes=[Route("/", home), Route("/submit", submit), Mount("/reader", receiver.app)],
    lifespan=HOW[sys.argv[2]],
)
print(json.dumps({"event": "starting"}), file=sys.stderr, flush=True)
uvicorn.run(app, port=int(sys.argv[1]), log_config=None, access_log=False)
"""
PYTHON = str(Path(RECEIVER).with_name("python"))


class Host:
    """The other app, running."""

    def __init__(self, process: Background, port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.database = process.folder / "receiver.db"

    def deliver(self, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, str | None]:
        with Wire(self.port) as wire:
            answer = wire.ask(request(body, headers or signed(body), path="/reader/hooks/reader"))
        return answer.status, answer.header("retry-after")


@contextmanager
def hosted(folder: Path, reader: BackgroundSandbox, how: str) -> Iterator[Host]:
    (folder / "host.py").write_text(HOST)
    port = free_port()
    settings = knowing(reader, READER_RPM="100000", RECEIVER_PUBLIC_URL=f"http://127.0.0.1:{port}/reader")
    with Background([PYTHON, "host.py", str(port), how], folder, "stderr", **settings) as process:
        process.logged("starting", 30)

        def answers() -> bool:
            try:
                return httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).text == "the host's own page"
            except httpx.TransportError:
                return False

        until(answers)
        yield Host(process, port)
        process.kill()  # what uvicorn makes of a signal is its own business


@pytest.mark.parametrize("how", ["lifespan", pytest.param("its own, around it", marks=pytest.mark.slow)])
def test_mounted_with_its_lifespan_it_works_as_by_itself(tmp_path: Path, how: str) -> None:
    """Deliveries, handlers, `/v1` and the calls a program makes."""
    with BackgroundSandbox(seed=1, job_seconds=0.1, queue_seconds=0.05) as reader, hosted(tmp_path, reader, how) as host:
        job = start_job(reader, 2)
        assert host.deliver(delivery(job, "job.started"))[0] == 202
        reader.settled()
        assert host.deliver(delivery(job))[0] == 202
        truth = [row["url"] for row in reader.ledger()["jobs"][job]["results"]]
        assert host.process.logged("indexed", 20, job=job)["urls"] == truth
        told = httpx.get(f"{host.url}/reader/v1/jobs/{job}?limit=1", trust_env=False).json()
        assert told["data"]["status"] == "completed"
        assert told["pagination"]["next"].startswith(f"{host.url}/reader/v1/jobs/{job}?")
        assert len(httpx.get(told["pagination"]["next"], trust_env=False).json()["data"]["results"]) == 1
        assert httpx.get(f"{host.url}/reader/readyz", trust_env=False).status_code == 200


def test_mounted_it_submits_and_reader_finds_the_way_to_it(tmp_path: Path) -> None:
    """The public URL with the path that it is mounted at is where the job's webhook goes."""
    with BackgroundSandbox(seed=1, job_seconds=0.1, queue_seconds=0.05) as reader, hosted(tmp_path, reader, "lifespan") as host:
        job, status = httpx.get(f"{host.url}/submit", trust_env=False, timeout=40).text.split()
        assert status == "completed"
        reader.settled()
        (sent,) = [row for row in reader.ledger()["deliveries"] if row["job"] == job]
        assert (sent["url"], sent["status"]) == (f"{host.url}/reader/hooks/reader", 202)
        host.process.logged("indexed", 20, job=job)


def test_mounted_without_its_lifespan_deliveries_get_503_and_the_log_says_why(tmp_path: Path) -> None:
    """Reader sends them again, and somebody reads the log: nothing is acknowledged that nobody keeps."""
    with BackgroundSandbox() as reader, hosted(tmp_path, reader, "without") as host:
        body = delivery()
        assert host.deliver(body) == (503, "2")
        forged = signed(body, "of-somebody-else-entirely")
        assert host.deliver(body, forged) == (401, None), "503 would invite to try again"
        offering = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAA"}
        with Wire(host.port) as wire:  # the host's server, uvicorn as it is, keeps the body of such a request to itself
            answer = wire.ask(request(body, {**signed(body), **offering}, path="/reader/hooks/reader"))
            assert (answer.status, answer.header("connection")) == (400, "close"), "401 would say that it is forged"
            assert wire.at_end()
        hint = host.process.logged("delivery_not_stored")["hint"]
        assert "lifespan=receiver.lifespan" in hint
        assert httpx.get(f"{host.url}/reader/healthz", trust_env=False).status_code == 200
        ready = httpx.get(f"{host.url}/reader/readyz", trust_env=False)
        assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
        listed = httpx.get(f"{host.url}/reader/v1/jobs", trust_env=False)
        assert (listed.status_code, listed.json()["success"], listed.headers["retry-after"]) == (503, False, "2")
        assert not host.database.exists()
        assert httpx.get(f"{host.url}/submit", trust_env=False).status_code == 500
