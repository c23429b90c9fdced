"""The vendor changes its body: an alarm, and what was set aside is taken in by a release that can read it."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from system_kit import Served, command, delivery, knowing, migrated, rows, signed, start_job, until

from receiver.sandbox import BackgroundSandbox


def test_when_nothing_can_be_read_any_more_the_log_says_so_and_when_it_can_again(tmp_path: Path) -> None:
    with Served(tmp_path) as server:
        for number in range(2):
            strange = b'{"now": "it is called otherwise", "n": %d}' % number
            assert server.post(strange, signed(strange)).status == 200
        assert server.post(delivery("job_1")).status == 202, "two strange ones are no alarm, with one between that is not"
        for number in range(3):
            strange = b'{"and": "again", "n": %d}' % number
            assert server.post(strange, signed(strange)).status == 200
        told = server.logged("deliveries_unreadable")
        assert (told["level"], told["count"]) == ("error", 3)
        assert "`receiver deliveries --reprocess`" in told["hint"]
        assert server.post(delivery("job_2")).status == 202
        server.logged("deliveries_readable")


def _set_aside(database: Path) -> None:
    """As a release left them that did not know where the job's id stands."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE deliveries SET outcome = 'quarantined', reason = 'no job id', job_id = NULL")
        connection.execute("DELETE FROM jobs")


@pytest.mark.slow
def test_deliveries_are_taken_in_again_by_the_server_that_has_the_database_and_without_one(tmp_path: Path) -> None:
    with BackgroundSandbox(seed=1, job_seconds=0.1, queue_seconds=0.05) as reader:
        settings = knowing(reader, READER_RPM="100000", RECEIVER_LISTEN="false")
        job = start_job(reader, 1)
        with Served(tmp_path, READER_API_KEY=None) as server:
            body = delivery(job)
            assert server.post(body, signed(body)).status == 202
        database = tmp_path / "receiver.db"
        _set_aside(database)
        shutil.copy(database, tmp_path / "other.db")
        alone = command(
            tmp_path,
            "deliveries",
            "--reprocess",
            "--json",
            settings={**settings, "RECEIVER_DATABASE_URL": f"sqlite:///{tmp_path}/other.db"},
        )
        assert (alone.code, alone.json) == (0, {"accepted": 1, "ignored": 0, "quarantined": 0})
        assert rows(tmp_path / "other.db", "SELECT id FROM jobs") == [(job,)]
        with Served(tmp_path, settings=settings) as server:
            beside = command(tmp_path, "deliveries", "--reprocess", settings=settings)
            assert (beside.code, beside.out) == (0, "1 delivery taken in, 0 about no job, none left\n")
            until(lambda: server.rows("SELECT 1 FROM events WHERE job_id = ?", job))


def test_where_nothing_is_quarantined_it_says_so(tmp_path: Path) -> None:
    shutil.copy(migrated(), tmp_path / "receiver.db")
    assert command(tmp_path, "deliveries", "--reprocess").out == "No deliveries are quarantined.\n"
    assert "give it alone" in command(tmp_path, "deliveries", "3", "--reprocess").complaint
