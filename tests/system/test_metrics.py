"""What Prometheus is told, over a real socket."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from reconcile_kit import World, world

pytestmark = pytest.mark.anyio


async def scrape(w: World) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels."""
    assert w.listening is not None
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{w.listening[1]}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, *(s.labels[name] for name in sorted(s.labels))): s.value for family in families for s in family.samples}


async def test_a_webhook_that_came_and_one_that_did_not_are_told_apart(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1) as w:
        await w.event(await w.elsewhere(120))
        told = await scrape(w)
        assert told["receiver_outcomes_total", "webhook", "completed"] == 1
        assert told["receiver_requests_total", "hydrate"] == 2
        assert told["receiver_jobs", "settled"] == 1
        assert told["receiver_missed_webhooks",] == 0
        assert told["receiver_notice_seconds_count",] == 1
        w.reader.faults = {"lose": 1}
        job = await w.elsewhere(1)
        await w.receiver.track(job)
        await w.event(job)
        told = await scrape(w)
        assert told["receiver_outcomes_total", "poll", "completed"] == 1
        assert told["receiver_missed_webhooks",] == 1
        assert told["receiver_notice_seconds_bucket", "+Inf"] == 2
        assert told["receiver_requests_in_window",] == sum(
            row["path"].startswith("/v1/jobs/") and row["method"] == "GET" for row in w.reader.ledger()["requests"]
        )


async def test_an_empty_receiver_tells_of_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1) as w:
        told = await scrape(w)
    assert {name for name, value in told.items() if value} == set()


async def test_a_pause_is_told_with_its_cause(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False) as w:
        w.reader.faults = {"rate_limit": {"rate": 1, "value": 30}}
        await w.receiver.track("job_1")
        await w.runtime.tick(5)
        assert (await scrape(w))["receiver_paused", "rate_limited"] == 1
