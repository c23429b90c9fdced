"""Dedupe keys that are held in memory: whatever becomes of the process, what came is known, exactly as if all had been written."""

from __future__ import annotations

import random

import pytest
from databases import NOW, Store
from sqlalchemy import event
from things import arrival, body, tracked

from receiver.store import held_keys, pruning
from receiver.store.inbox import Arrival
from receiver.store.tables import seen


def come(store: Store, *arrivals: Arrival) -> list[str]:
    return [outcome.name for outcome in store.arrive(*arrivals)]


def numbered(*numbers: int) -> list[Arrival]:
    return [arrival(job=f"job_{n}", id=f"dlv_{n}", at=NOW + n) for n in numbers]


def written(store: Store) -> set[str]:
    return {row["key"] for row in store.rows(seen)}


def spill(store: Store) -> None:
    """Pruning begins with it."""
    store.write(pruning.signed_keys, 0.0, None)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_after_a_restart_what_was_only_held_is_known(sqlite: Store, signed: bool) -> None:
    """By its bytes, and by its id."""
    tracked(sqlite, "job_1")
    assert come(sqlite, arrival(signed=signed)) == ["accepted"]
    assert written(sqlite) == set()
    for again in ({}, {"at": NOW + 1}):
        sqlite.reopen()
        assert come(sqlite, arrival(signed=signed, **again)) == ["duplicate"]
    assert come(sqlite, arrival(id="dlv_2")) == ["duplicate" if signed else "accepted"]


def test_after_a_restart_only_what_is_not_written_is_held(sqlite: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many reads it takes to find where that begins."""
    monkeypatch.setattr(held_keys, "_ROWS", 2)
    come(sqlite, *numbered(*range(10)))
    spill(sqlite)
    assert len(written(sqlite)) == 20
    come(sqlite, *numbered(*range(10, 15)))
    sqlite.reopen()
    assert sqlite.database._held is not None
    assert set(sqlite.database._held._held) == {key for new in numbered(*range(10, 15)) for key in keys(new)}
    assert come(sqlite, *numbered(*range(15))) == ["duplicate"] * 15


def keys(of: Arrival) -> tuple[str, ...]:
    return (of.delivery.key, *of.delivery.id_keys)


def test_no_more_are_held_than_fit(sqlite: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_keys, "MOST", 6)
    for n in range(10):
        assert come(sqlite, *numbered(n)) == ["accepted"]
    assert len(written(sqlite)) == 18
    assert come(sqlite, *numbered(*range(10))) == ["duplicate"] * 10


def test_what_was_rolled_back_is_not_known(sqlite: Store) -> None:
    """Neither is what was to be written forgotten."""
    come(sqlite, *numbered(0))
    failing = True

    def fail(_: object) -> None:
        if failing:
            raise RuntimeError("no commit")

    event.listen(sqlite.database._engines.writing, "commit", fail)
    with pytest.raises(RuntimeError):
        come(sqlite, *numbered(1))
    with pytest.raises(RuntimeError):
        spill(sqlite)
    failing = False
    assert come(sqlite, *numbered(0, 1)) == ["duplicate", "accepted"]


@pytest.mark.parametrize("seed", range(8))
def test_it_is_as_if_all_were_written(sqlite: Store, postgresql_store: Store, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A random story, with restarts: each delivery becomes what it does on PostgreSQL, which writes each key at once."""
    monkeypatch.setattr(held_keys, "MOST", 12)
    dice = random.Random(seed)
    try:
        for store in (sqlite, postgresql_store):
            tracked(store, "job_1")
        for _ in range(40):
            group = [
                arrival(
                    body(note=dice.randrange(4)),
                    id=f"dlv_{dice.randrange(8)}",
                    at=NOW + dice.randrange(3),
                    signed=dice.random() < 0.8,
                )
                for _ in range(dice.choice([1, 1, 1, 2, 5]))
            ]
            assert sqlite.arrive(*group) == postgresql_store.arrive(*group)
            if dice.random() < 0.1:
                sqlite.reopen()
        spill(sqlite)
        assert written(sqlite) == written(postgresql_store)
    finally:
        postgresql_store.wipe()
