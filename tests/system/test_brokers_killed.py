"""Brokers as hooks of the installed server: killed, and back."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from system_kit import Served, delivery, knowing, start_job, until

from receiver.sandbox import BackgroundSandbox
from tests.brokers import Broker, Kafka, Nats, RabbitMQ, Redis

QUICK: dict[str, Any] = {"seed": 1, "job_seconds": 0.1, "queue_seconds": 0.05}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Nats, Redis, RabbitMQ, Kafka], ids=lambda kind: str(kind.__name__))
def test_events_reach_a_broker_that_hung_and_was_killed_under_the_id_they_have(kind: type[Broker], tmp_path: Path) -> None:
    """One arrives; of the next an attempt fails at a broker that hangs; it is killed, comes back, and has it."""
    with kind(tmp_path / "broker") as broker, BackgroundSandbox(**QUICK) as reader:
        asyncio.run(broker.prepare())
        hooks = [{"name": "broker", "url": broker.url, "timeout": 1}]
        with Served(tmp_path, settings=knowing(reader, RECEIVER_HOOKS=json.dumps(hooks))) as server:

            def ended() -> str:
                job = start_job(reader, 3)
                reader.settled()
                assert server.post(delivery(job)).status == 202
                return job

            first = ended()
            server.logged("delivered", 20, hook="broker")
            broker.signal(signal.SIGSTOP)
            second = ended()
            assert "no acknowledgement" in server.logged("hook_failed", 20, hook="broker")["hint"]
            broker.kill()
            broker.start()
            until(lambda: server.rows("SELECT count(*) FROM hook_deliveries WHERE state = 'delivered'") == [(2,)], 40)
            told = dict(server.rows("SELECT id, job_id FROM events"))
            arrived = {got.id: json.loads(got.body)["data"]["job"]["id"] for got in asyncio.run(broker.messages())}
            assert arrived == told == {event: job for event, job in told.items() if job in {first, second}}
            assert not any(line.get("level") == "error" for line in server.log)
