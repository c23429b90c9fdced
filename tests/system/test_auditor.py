"""The audit of our webhook at Reader: one request, and at once a look at every job where something got lost."""

from pathlib import Path
from typing import Any

import pytest
from reconcile_kit import World, world

from receiver.auditor import EVERY

pytestmark = pytest.mark.anyio


async def _audit(w: World) -> None:
    """Make the next audit, and no other."""
    auditor = w.runtime.auditor
    assert auditor is not None
    w.clock.turn(EVERY)
    assert await auditor.run_once()
    assert not await auditor.run_once(), "one is enough for all"


async def _public(w: World) -> None:
    assert w.listening is not None
    await w.stop()
    await w.start(loops=False, receiver_public_url=f"http://127.0.0.1:{w.listening[1]}")


def _audits(w: World) -> int:
    return sum(row["path"] == "/v1/webhooks" for row in w.reader.ledger()["requests"])


@pytest.mark.slow
async def test_failed_deliveries_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False, lose=1.0) as w:
        await _public(w)
        await _audit(w)
        assert "webhooks_lost" not in capsys.readouterr().out
        await w.elsewhere(1)
        await w.reader.settled()
        await _audit(w)
        assert _audits(w) == 2
        assert "webhooks_lost" in capsys.readouterr().out


async def test_a_quiet_time_is_no_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False, duplicate=1.0) as w:
        await _public(w)
        await _audit(w)
        for _ in range(3):
            await w.elsewhere(1)
        await w.reader.settled()
        await _audit(w)
        await _audit(w)
        assert "webhook" not in capsys.readouterr().out.replace("webhook=", "")


@pytest.mark.parametrize(
    ("change", "name"),
    [({"active": False}, "webhook_inactive"), ({"events": ["job.page"]}, "webhook_events_missing"), (None, "webhook_missing")],
)
async def test_a_webhook_that_is_not_as_it_should_be_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any] | None, name: str
) -> None:
    async with world(tmp_path, seed=1, job_seconds=0.1, loops=False) as w:
        await _public(w)
        (hook,) = w.reader.engine.workspace.hooks
        if change is None:
            (await w.api.delete(f"/v1/webhooks/{hook.id}")).raise_for_status()
        else:
            (await w.api.patch(f"/v1/webhooks/{hook.id}", json=change)).raise_for_status()
        await _audit(w)
        assert name in capsys.readouterr().out
        await _audit(w)
        assert name not in capsys.readouterr().out
