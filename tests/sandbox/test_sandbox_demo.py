"""The demo: what its ledger says in words, and how long one waits for it."""

import asyncio
import io
from collections import Counter

import pytest
from rich.console import Console

from receiver.cli.demo_run import Plan, Report, conditions, run
from receiver.cli.demo_show import ledger
from receiver.sandbox import Happening
from receiver.views import JobView


class Nobody:
    def happened(self, happening: Happening) -> None: ...

    def jobs(self, jobs: list[JobView], events: Counter[str], progress: dict[str, tuple[int, int]]) -> None: ...


def said(report: Report) -> str:
    out = io.StringIO()
    ledger(report, Console(file=out, width=80))
    return " ".join(out.getvalue().replace("│", " ").split())


def report(**webhooks: int) -> Report:
    return Report(
        plan=Plan(jobs=12, pages=150, loss=0.4, seed=7),
        webhooks=webhooks,
        forged=6,
        refused=6,
        recovered=4,
        results=1800,
        events=12,
        requests={"hydrate": 24, "probe": 9, "submit": 12, "other": 1, "total": 46},
        lower_bound=24,
        seconds=9.0,
        wrong=[],
    )


def test_the_ledger_counts_attempts_and_says_so() -> None:
    words = said(report(sent=20, lost=12, duplicated=3, accepted=8, duplicates=3))
    assert "20 attempts to deliver their webhooks, up to 3 for each;" in words
    assert "12 of these attempts were lost on the way," in words
    assert "3 copies of attempts came on top, and some came late or out of order;" in words
    assert "8 + 3 arrived, and were accepted or known as duplicates" in words
    assert "4 jobs lost every attempt of their webhook: recovered by the poller" in words


@pytest.mark.anyio
async def test_a_small_demo_waits_for_little() -> None:
    """Neither for a job longer than its pages are worth, nor for the pauses between attempts that get lost."""
    given = conditions(Plan(jobs=1, pages=1, loss=0, seed=7))
    assert given["job_seconds"][1] / given["speed"] < 1
    assert (1 + 4) / given["speed"] < 2
    told = await asyncio.wait_for(run(Plan(jobs=1, pages=1, loss=0, seed=7), Nobody()), 30)
    assert told.ok
    assert (told.results, told.events, told.webhooks["lost"]) == (1, 1, 0)
