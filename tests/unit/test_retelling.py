"""The workspace stream, told as webhooks."""

from __future__ import annotations

from typing import Any

from receiver.reader.retelling import Retelling
from receiver.reader.shapes import JOB_EVENTS
from receiver.reader.stream import News


def progress(completed: int | None = 0, status: str = "processing", job: str = "job_1") -> News:
    ended = status in {"completed", "failed", "cancelled"}
    return News(job, ended=ended, completed=completed, event="job:progress", status=status)


def end(name: str = "completed", completed: int | None = None, job: str = "job_1", **more: Any) -> News:
    return News(job, ended=True, completed=completed, event=f"job:{name}", **more)


def told(*heard: News, events: frozenset[str] = JOB_EVENTS) -> list[str]:
    retelling = Retelling(events)
    return [each.event.removeprefix("job.") for news in heard for each in retelling.hear(news)]


def test_a_job_starts_once_reads_its_pages_and_ends() -> None:
    heard = (progress(0, "queued"), progress(0), progress(0), progress(2), end(completed=3))
    assert told(*heard) == ["started", "page", "page", "page", "completed"]


def test_a_job_met_midway_tells_neither_its_start_nor_the_pages_before() -> None:
    assert told(progress(5), progress(6), end(completed=6)) == ["page", "completed"]


def test_a_job_first_heard_of_by_its_end_tells_that() -> None:
    assert told(end("failed", error="no")) == ["failed"]


def test_a_cancelled_job_tells_nothing_as_with_reader() -> None:
    assert told(progress(1), progress(1, "cancelled"), end("cancelled")) == []


def test_an_end_that_progress_tells_of_too_is_told_once() -> None:
    assert told(progress(0), progress(1, "completed"), end(completed=1)) == ["started", "page", "completed"]


def test_a_retried_job_starts_and_ends_again() -> None:
    once = (progress(0, "queued"), progress(0), end())
    assert told(*once, *once) == ["started", "completed"] * 2


def test_an_end_found_by_asking_is_not_told_again_by_the_stream_but_the_next_one_is() -> None:
    retelling = Retelling({"job.completed"})
    retelling.hear(progress(0))
    assert retelling.under_way == ["job_1"]
    assert len(retelling.find(end())) == 1
    assert retelling.under_way == []
    assert retelling.hear(end()) == []
    retelling.hear(progress(0))
    assert len(retelling.hear(end())) == 1


def test_what_is_not_wanted_is_not_told() -> None:
    assert told(progress(0), end(completed=2), events=frozenset({"job.failed"})) == []


def test_numbers_that_the_stream_leaves_out_are_no_pages() -> None:
    assert told(progress(None), progress(None), end()) == ["started", "completed"]


def test_jobs_that_never_end_are_forgotten_oldest_first() -> None:
    retelling = Retelling(JOB_EVENTS)
    for number in range(10_010):
        retelling.hear(progress(0, job=f"job_{number}"))
    assert len(retelling.under_way) == 10_000
    assert "job_0" not in retelling.under_way
