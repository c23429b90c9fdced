"""AWS Lambda: deliveries by HTTP (function URL, HTTP API), and passes of `tick` by schedule, by queue or by hand, in one function.

A delivery costs one durable insert and then the answer: what takes it is all that is loaded for it. Everything else is loaded
when it is first asked for, opened for the one invocation, and closed before its end: Lambda freezes the process the moment we
answer, and a frozen process must hold no lease and need no timer.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import structlog
from mangum import Mangum

from receiver.errors import SettingsError, UsageError
from receiver.logs import configure
from receiver.serverless import settle
from receiver.serverless.function import Function
from receiver.settings import Settings, load
from receiver.store.engine import Database

if TYPE_CHECKING:
    from receiver.app import Receiver

LONGEST_TICK: Final = 50.0
"""Seconds: the schedule begins the next one after a minute."""
_CLOSING: Final = 5.0
"""Seconds that a pass leaves of the invocation's, to put away what it holds."""
_AWS_WITHIN: Final = 1.0

log = structlog.get_logger("receiver.aws")


class Lambda(Function):
    """A handler for Lambda. `build` makes the Receiver, with handlers of yours if you like; only a pass of `tick` and `/v1` need it.

    `READER_…` and `RECEIVER_…` come from the environment, and from the Secrets Manager secret that `RECEIVER_AWS_SECRET` names, a JSON
    object of the same names. With `RECEIVER_POKE_QUEUE`, an SQS queue that invokes this function, each accepted delivery is followed
    by a message there, so that its job is read at once instead of with the next schedule.
    """

    def __init__(self, build: Callable[[Settings], Receiver] | None = None) -> None:
        super().__init__(build)
        self._loop: asyncio.AbstractEventLoop | None = None

    def __call__(self, event: dict[str, Any], context: Any) -> Any:
        """One invocation. Raises `ReceiverError` where a pass could not be made, which Lambda counts as an error."""
        self._begin()
        if "requestContext" in event:
            return self._http(event, context)
        seconds = min(LONGEST_TICK, context.get_remaining_time_in_millis() / 1000 - _CLOSING)
        if event.get("receiver") == "migrate":
            Database.of(self._settings, self._clock, migrate=True).close()
            return {"schema": "current"}
        if event.get("receiver") == "tick" or _is_schedule(event) or _is_queue(event):
            return self._run(self._tick(max(seconds, 0.1)))
        raise UsageError('this is neither HTTP (payload format 2.0), a schedule, SQS, nor {"receiver": "tick" | "migrate"}')

    def _begin(self) -> None:
        """Once in a process: logs, and the loop that all its invocations share, since the open database belongs to it."""
        if self._loop is None:
            configure("json")
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)  # where Mangum looks

    def _run(self, work: Awaitable[Any]) -> Any:
        assert self._loop is not None
        return self._loop.run_until_complete(work)

    def _load(self) -> Settings:
        name = os.environ.get("RECEIVER_AWS_SECRET")
        return load(**_secret(name)) if name else load()

    def _http(self, event: dict[str, Any], context: Any) -> Any:
        answer = Mangum(self._answer, lifespan="off")(event, context)
        queue = os.environ.get("RECEIVER_POKE_QUEUE")
        if queue and answer["statusCode"] == 202:
            _poke(queue)
        return answer

    async def _tick(self, seconds: float) -> dict[str, Any]:
        self._settings.require_api_key()
        async with self._running() as runtime:
            done: dict[str, Any] = await runtime.tick(seconds)
        log.info("tick", **done)
        return done


def _is_schedule(event: dict[str, Any]) -> bool:
    return event.get("source") in {"aws.events", "aws.scheduler"}


def _is_queue(event: dict[str, Any]) -> bool:
    records = event.get("Records")
    return bool(records) and all(record.get("eventSource") == "aws:sqs" for record in records or ())


def _client(service: str) -> Any:
    """A client of AWS's own, asked once: whoever waits for us has no time for a second try."""
    from botocore.config import Config  # type: ignore[import-untyped]  # noqa: PLC0415 - it has no types, and takes a while to load
    from botocore.session import Session  # type: ignore[import-untyped]  # noqa: PLC0415

    once = Config(connect_timeout=_AWS_WITHIN, read_timeout=_AWS_WITHIN, retries={"total_max_attempts": 1})
    return Session().create_client(service, config=once)


def _secret(name: str) -> dict[str, Any]:
    """What the secret holds, by our settings' names. Raises `SettingsError`; never tells a value."""
    try:
        told = json.loads(_client("secretsmanager").get_secret_value(SecretId=name)["SecretString"])
        return {str(key).lower(): value for key, value in dict(told).items()}
    except (ValueError, KeyError, TypeError):
        raise SettingsError(f"the secret {name} is not a JSON object of settings, as text") from None
    except Exception as error:
        # botocore's exceptions have no type in common that is worth waiting for its import here.
        raise SettingsError(f"the secret {name}, which RECEIVER_AWS_SECRET names, cannot be read: {error}") from error


def _poke(queue: str) -> None:
    """Once for each delivery, and never from a pass: AWS breaks off functions that call themselves. Without it the schedule comes."""
    try:
        _client("sqs").send_message(QueueUrl=queue, MessageBody="{}")
    except Exception as error:  # noqa: BLE001 - the delivery is stored: nothing that happens here may change its answer
        log.warning("poke_failed", hint=f"{type(error).__name__}: {error}; its job is read with the next schedule")


handler = Lambda()
settle()
