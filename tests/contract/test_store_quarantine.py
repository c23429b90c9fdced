"""The quarantine: what could not be read when it came is taken in by a release that can."""

from __future__ import annotations

from typing import Any

from databases import Store
from sqlalchemy import select, update
from things import arrival, body, claimed, tracked

from receiver.store import quarantine
from receiver.store.tables import deliveries
from receiver.store.tables import jobs as jobs_table


def unread(store: Store, **which: Any) -> None:
    """As a release left them that did not know where the job's id stands."""
    values = {"outcome": "quarantined", "reason": "no job id", "job_id": None, "event": None}
    chosen = [getattr(deliveries.c, name) == value for name, value in which.items()]
    store.write(lambda tx: tx.execute(update(deliveries).where(*chosen).values(values)))
    store.write(lambda tx: tx.execute(jobs_table.delete()))


def outcomes(store: Store) -> list[tuple[str, str | None, str | None]]:
    chosen = select(deliveries.c.outcome, deliveries.c.job_id, deliveries.c.reason).order_by(deliveries.c.id)
    return [tuple(row) for row in store.write(lambda tx: tx.execute(chosen).all())]


def test_what_can_be_read_by_now_makes_its_job_due_as_if_it_had_just_come(store: Store) -> None:
    store.arrive(arrival(body("job_1")), arrival(body("job_2", "job.started"), id="dlv_2"), arrival(b"not json", id="dlv_3"))
    unread(store)
    assert store.write(lambda tx: quarantine.read_again(tx, after=0)) == quarantine.Reread(3, 2, 0, None)
    assert outcomes(store) == [("accepted", "job_1", None), ("accepted", "job_2", None), ("quarantined", None, "no job id")]
    assert claimed(store).id == "job_1", "the one that ended is due at once, as by any webhook"


def test_it_goes_through_all_of_them_in_steps_and_is_done_once(store: Store, monkeypatch: Any) -> None:
    monkeypatch.setattr(quarantine, "ROWS", 2)
    store.arrive(*(arrival(body(f"job_{number}"), id=f"dlv_{number}") for number in range(3)))
    unread(store)
    first = store.write(lambda tx: quarantine.read_again(tx, after=0))
    assert (first.looked_at, first.accepted) == (2, 2)
    assert first.last is not None
    assert store.write(lambda tx: quarantine.read_again(tx, after=first.last or 0)) == quarantine.Reread(1, 1, 0, None)
    assert store.write(lambda tx: quarantine.read_again(tx, after=0)) == quarantine.Reread(0, 0, 0, None)


def test_one_that_nobody_signed_is_a_cue_for_a_known_job_only(store: Store) -> None:
    store.arrive(arrival(body("job_known"), signed=False), arrival(body("job_invented"), signed=False, id="dlv_2"))
    unread(store)
    tracked(store, "job_known")
    assert store.write(lambda tx: quarantine.read_again(tx, after=0)) == quarantine.Reread(2, 1, 1, None)
    assert [outcome for outcome, _, _ in outcomes(store)] == ["accepted", "ignored"]
