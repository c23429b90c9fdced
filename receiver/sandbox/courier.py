"""Sends the webhooks: attempts, pauses, time-outs, and the faults that befall a delivery on its way."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

import httpx

from receiver.clock import Clock
from receiver.sandbox.agenda import Agenda
from receiver.sandbox.deliveries import Delivery, Letter, letter
from receiver.sandbox.draws import draw, token
from receiver.sandbox.faults import Faults
from receiver.sandbox.ledger import DeliveryRow, Ledger
from receiver.sandbox.options import Options
from receiver.sandbox.webhooks import Hook

_PAUSES: Final = (1.0, 4.0, 16.0)
"""Reader's seconds between an attempt that failed and the next."""
_PATIENCE: Final = 10.0
"""Real seconds an endpoint has to answer: it does not live in the sandbox's time."""
_LANES: Final = 32
"""Attempts under way at once."""
_READ: Final = 1 << 16


class Courier:
    """Takes events and sees them through. `close` it after use."""

    def __init__(self, options: Options, faults: Faults, ledger: Ledger, agenda: Agenda, clock: Clock) -> None:
        self._options = options
        self._faults = faults
        self._ledger = ledger
        self._agenda = agenda
        self._clock = clock
        self._client: httpx.AsyncClient | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._backlog: deque[Delivery] = deque()
        self.unsettled = 0
        """Deliveries that are neither through nor given up."""

    def take(self, event: str, job: str, hook: Hook, facts: dict[str, Any], about: tuple[object, ...], at: float) -> None:
        """Deliver an event to a hook, and what the faults add to it."""
        self._start(Delivery(event, job, hook, facts, (job, event, *about, hook.key), at))
        subject = f"{event} {job}"
        seed = self._options.seed
        if self._faults.strikes("unknown_event", job, event, *about, hook.key, subject=subject):
            strange = f"job.{token(seed, 6, 'strange', job, event, *about)}"
            self._start(Delivery(strange, job, hook, facts, (job, strange, *about, hook.key), at))
        if self._faults.strikes("ghost", job, event, *about, hook.key, subject=subject):
            ghost = "job_" + token(seed, 20, "ghost", job, event, *about)
            self._start(Delivery(event, ghost, hook, facts, (ghost, event, *about, hook.key), at))

    async def close(self) -> None:
        """Drop what is under way."""
        self._backlog.clear()
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    def _start(self, delivery: Delivery) -> None:
        subject = f"{delivery.event} {delivery.job}"
        wait = 0.0
        if late := self._faults.strikes("delay", *delivery.about, subject=subject):
            wait += late.number()
        if held := self._faults.strikes("reorder", *delivery.about, subject=subject):
            wait += held.number() * draw(self._options.seed, "held", *delivery.about)
        delivery.lost = self._faults.strikes("lose", *delivery.about, subject=subject) is not None
        self.unsettled += 1
        self._launch_after(wait / self._options.speed, delivery)

    def _launch_after(self, seconds: float, delivery: Delivery) -> None:
        if seconds > 0:
            self._agenda.after(seconds, lambda: self._launch(delivery))
        else:
            self._launch(delivery)

    def _launch(self, delivery: Delivery) -> None:
        if len(self._under_way) >= _LANES:
            self._backlog.append(delivery)
            return
        task = asyncio.get_running_loop().create_task(self._attempt(delivery))
        self._under_way.add(task)
        task.add_done_callback(self._next)

    def _next(self, done: asyncio.Task[None]) -> None:
        self._under_way.discard(done)
        if self._backlog and not done.cancelled():
            self._launch(self._backlog.popleft())

    async def _attempt(self, delivery: Delivery) -> None:
        if delivery.hook.deleted or (delivery.hook.id and not delivery.hook.active):
            self._over(delivery, failed=True)
            return
        subject = f"{delivery.event} {delivery.job}"
        sent = letter(delivery, self._faults, self._options.seed, self._clock.wall())
        status: int | None = None
        lost = self._lost(delivery, subject)
        if lost:
            self._record(delivery, sent, self._clock.steady(), None, [lost])
        else:
            status = await self._post(delivery, sent, [])
            await self._again(delivery, sent, subject)
        if status is not None and 200 <= status < 300:
            self._over(delivery, failed=False)
        elif delivery.attempt >= int(self._faults.choice("attempts")):
            self._over(delivery, failed=True)
        else:
            pause = _PAUSES[delivery.attempt - 1]
            delivery.attempt += 1
            self._launch_after(pause / self._options.speed, delivery)

    def _lost(self, delivery: Delivery, subject: str) -> str | None:
        if delivery.lost:
            return "lose"
        if self._faults.strikes("lose_attempts", *delivery.about, delivery.attempt, subject=subject):
            return "lose_attempts"
        return None

    async def _again(self, delivery: Delivery, sent: Letter, subject: str) -> None:
        twice = self._faults.strikes("duplicate", *delivery.about, delivery.attempt, subject=subject)
        for _ in range(min(int(twice.number()), 100) if twice else 0):
            await self._post(delivery, sent, ["duplicate"])

    async def _post(self, delivery: Delivery, sent: Letter, struck: list[str]) -> int | None:
        at = self._clock.steady()
        status = await self._exchange(delivery.hook.url, sent)
        self._record(delivery, sent, at, status, struck)
        return status

    async def _exchange(self, url: str, sent: Letter) -> int | None:
        """The answer's status; None if there was none in time."""
        client = self._client = self._client or _client()
        try:
            async with asyncio.timeout(_PATIENCE):
                request = client.build_request("POST", url, content=sent.body, headers=sent.headers)
                answer = await client.send(request, stream=True)
                try:
                    await self._skim(answer)
                finally:
                    await answer.aclose()
                return answer.status_code
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, TimeoutError):
            return None

    @staticmethod
    async def _skim(answer: httpx.Response) -> None:
        """Read a short answer to its end, so that its connection can be used again; a long one is cut off."""
        read = 0
        async for chunk in answer.aiter_raw():
            read += len(chunk)
            if read > _READ:
                return

    def _record(self, delivery: Delivery, sent: Letter, at: float, status: int | None, struck: list[str]) -> None:
        hook = delivery.hook
        hook.attempts += 1
        hook.last_at, hook.last_status = at, status
        fault = ",".join([*struck, *sent.faults]) or None
        row = DeliveryRow(at, delivery.job, delivery.event, sent.id, delivery.attempt, hook.url, status, fault)
        self._ledger.delivery(row)

    def _over(self, delivery: Delivery, *, failed: bool) -> None:
        delivery.hook.failures += failed
        self.unsettled -= 1
        self._ledger.pulse.beat()


def _client() -> httpx.AsyncClient:
    """Made for the first delivery: reading the certificates of the world's authorities is most of a sandbox's start."""
    return httpx.AsyncClient(
        trust_env=False,
        follow_redirects=False,
        timeout=_PATIENCE,
        limits=httpx.Limits(max_connections=_LANES, max_keepalive_connections=_LANES),
    )
