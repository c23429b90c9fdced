"""What Prometheus is told, over a real socket."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from databases import Server
from prometheus_client.parser import text_string_to_metric_families
from reconcile_kit import World, world
from system_kit import Served, delivery, signed, until

pytestmark = pytest.mark.anyio


async def scrape(w: World) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels."""
    assert w.listening is not None
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{w.listening[1]}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, *(s.labels[name] for name in sorted(s.labels))): s.value for family in families for s in family.samples}


@pytest.mark.slow
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
    standing = {"receiver_sqlite_bytes", "receiver_requests_allowed", "receiver_clock_skew_seconds"}
    assert {name for name, value in told.items() if value and name[0] not in standing} == set()
    assert told["receiver_sqlite_bytes", "wal"] > 0
    assert abs(told["receiver_clock_skew_seconds",]) < 1


async def test_a_pause_is_told_with_its_cause(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False) as w:
        w.reader.faults = {"rate_limit": {"rate": 1, "value": 30}}
        await w.receiver.track("job_1")
        await w.runtime.tick(5)
        told = await scrape(w)
    assert told["receiver_paused", "rate_limited"] == 1
    assert told["receiver_reader_refusals_total", "rate_limited"] == 1


async def test_results_attempts_and_the_budget_are_told(tmp_path: Path) -> None:
    settings = {"receiver_listen": True, "reader_rpm": 500, "receiver_rpm_share": 0.5}
    async with world(tmp_path, seed=1, job_seconds=0.1, settings=settings) as w:
        await w.reader.until(lambda: any(row["path"] == "/v1/events" and row["status"] for row in w.reader.ledger()["requests"]))
        await w.event(await w.elsewhere(3, query="?sandbox=error"))
        while ("receiver_hook_attempts_total", "told", "delivered") not in (told := await scrape(w)):
            pass  # the handler has run, and that is being written down
    assert (told["receiver_results_total", "read"], told["receiver_results_total", "failed"]) == (2, 1)
    assert told["receiver_hook_attempts_total", "told", "delivered"] == 1
    assert told["receiver_hook_paused", "told"] == 0
    assert told["receiver_requests_allowed",] == 250
    assert told["receiver_stream_up",] == 1


async def test_work_that_nobody_takes_up_grows_old(tmp_path: Path) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False) as w:
        await w.receiver.track("job_1")
        w.clock.turn(100)
        told = await scrape(w)
        assert told["receiver_overdue_seconds", "jobs"] == pytest.approx(100, abs=5)
        assert told["receiver_overdue_seconds", "events"] == told["receiver_overdue_seconds", "submissions"] == 0
        await w.runtime.tick(5)
        assert (await scrape(w))["receiver_overdue_seconds", "jobs"] == 0


def told_by(server: Served) -> dict[tuple[str, ...], float]:
    text = httpx.get(f"{server.url}/metrics", trust_env=False).text
    families = text_string_to_metric_families(text)
    return {(s.name, *(s.labels[name] for name in sorted(s.labels))): s.value for family in families for s in family.samples}


def told_of(server: Served, count: int) -> dict[tuple[str, ...], float] | None:
    """The metrics, once they tell of so many deliveries."""
    told = told_by(server)
    return told if sum(value for name, value in told.items() if name[0] == "receiver_deliveries_total") == count else None


@pytest.mark.slow
def test_deliveries_are_counted_by_what_became_of_them_also_across_restarts(tmp_path: Path) -> None:
    known = delivery("job_1")
    for served in (1, 2):
        with Served(tmp_path, READER_API_KEY=None) as server:
            for body in (delivery(), known, known, b"[]", delivery(event="job.renamed")):
                assert server.post(body).status in {200, 202}
            for headers in (signed(known, "of-somebody-else-entirely"), signed(known, at=1), {}):
                assert server.post(known, headers).status == 401
            assert server.post(known, {"content-encoding": "gzip", **signed(known)}).status == 415
            told = until(lambda served=served: told_of(server, 9 * served))
            outcomes = {name[1:]: value for name, value in told.items() if name[0] == "receiver_deliveries_total"}
            answered = sum(count for (outcome, _), count in outcomes.items() if outcome != "refused")
            assert answered == told["receiver_ack_seconds_count",] == told["receiver_commit_deliveries_sum",] == served * 5
            assert outcomes["refused", "mismatch"] == outcomes["refused", "stale"] == outcomes["refused", "missing"] == served
            assert outcomes["refused", "media_type"] == served
            assert 0 < told["receiver_ack_seconds_sum",] < served * 5
    assert outcomes["quarantined", ""] + outcomes["duplicate", ""] >= 4


@pytest.mark.slow
def test_every_replica_tells_the_sum_of_all(tmp_path: Path, postgresql: Server) -> None:
    """What each counted in its memory included, and nothing twice."""
    with (
        postgresql.migrated() as url,
        Served(tmp_path, RECEIVER_DATABASE_URL=url) as one,
        Served(tmp_path, RECEIVER_DATABASE_URL=url) as other,
    ):
        for server in (one, other, one):
            assert server.post(delivery()).status == 202
        for server in (one, other):
            told = until(lambda server=server: told_of(server, 3))
            assert told["receiver_commit_deliveries_sum",] == told["receiver_ack_seconds_count",] == 3
