"""Tells of what jobs do, when they do it: webhooks to the courier, events to the streams."""

from __future__ import annotations

import asyncio
import math
from typing import Any, Final

from receiver.clock import Clock
from receiver.reader.shapes import CANCELLED, CREDIT_LOW, JOB_COMPLETED, JOB_FAILED, JOB_PAGE, JOB_STARTED
from receiver.sandbox.agenda import Agenda
from receiver.sandbox.courier import Courier
from receiver.sandbox.jobs import Job
from receiver.sandbox.ledger import Ledger
from receiver.sandbox.pulse import Pulse
from receiver.sandbox.rounds import Round
from receiver.sandbox.state import Workspace
from receiver.sandbox.times import next_month
from receiver.sandbox.webhooks import Hook

_PROGRESS: Final = 0.25
"""Real seconds between two `job:progress` of one job, at least."""
_PROMPT: Final = 0.02
"""Real seconds between two looks for pages done, while somebody wants to know of each."""
_BEHIND: Final = 2_000
"""Events a stream's reader may be behind; then its oldest are dropped."""


class Director:
    """Follows each run of each job from queued to its end."""

    def __init__(self, workspace: Workspace, courier: Courier, ledger: Ledger, agenda: Agenda, clock: Clock) -> None:
        self._workspace = workspace
        self._courier = courier
        self._ledger = ledger
        self._agenda = agenda
        self._clock = clock
        self._watchers: set[asyncio.Queue[tuple[str, dict[str, Any]]]] = set()
        self._warned = False
        self.open: set[tuple[str, int]] = set()
        """Runs whose end is still to be told, by job and number."""
        self.moved: dict[str, Pulse] = {}
        """Who follows one job's own stream waits here for it to be cancelled or queued again."""

    def queued(self, job: Job) -> None:
        """A job was queued, for the first time or again."""
        run = job.round
        self.open.add((job.id, run.number))
        self._job(job, run.queued_at)
        self._move(job)
        self._at(run.started_at, job, run, self._started)

    def advanced(self, job: Job, run: Round) -> None:
        """A page came, of a run whose pages come when they come."""
        now = self._clock.steady()
        done = run.done(now)
        self._tell_pages(job, run, done - 1, done)
        if self._watchers and now < run.ends_at:
            self._tell_progress(job, now)
        self._move(job)
        if now >= run.ends_at:
            self._ended(job, run)

    def cancelled(self, job: Job) -> None:
        """A job was cancelled: streams end, and nobody is told by webhook."""
        self.open.discard((job.id, job.round.number))
        self._job(job, self._clock.steady())
        self._move(job)

    def close(self) -> None:
        """Wake up who follows a stream, so that they see that it is over."""
        self._broadcast("", {})
        for pulse in self.moved.values():
            pulse.beat()

    def session(self, event: str, session_id: str) -> None:
        """A browser session was created or stopped."""
        now = self._clock.steady()
        for hook in self._wanting(event):
            self._courier.take(event, "", hook, {"sessionId": session_id}, (session_id,), now)

    def watch(self) -> asyncio.Queue[tuple[str, dict[str, Any]]]:
        """A queue that gets what the workspace stream tells from now on."""
        queue: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue(_BEHIND)
        self._watchers.add(queue)
        return queue

    def unwatch(self, queue: asyncio.Queue[tuple[str, dict[str, Any]]]) -> None:
        """No more of it."""
        self._watchers.discard(queue)

    def _at(self, when: float, job: Job, run: Round, then: Any) -> None:
        def call() -> None:
            if job.round is run and run.stopped_at is None:
                then(job, run)
            self._ledger.pulse.beat()

        self._agenda.after(when - self._clock.steady(), call)

    def _started(self, job: Job, run: Round) -> None:
        self._job(job, run.started_at)
        self._announce(JOB_STARTED, job, run, run.started_at)
        if math.isinf(run.ends_at):
            return  # its pages say themselves when they come
        self._at(run.ends_at, job, run, self._ended)
        self._progress(job, run)
        self._pages(job, run, 0)

    def _ended(self, job: Job, run: Round) -> None:
        view = job.view(run.ends_at)
        self.open.discard((job.id, run.number))
        self._job(job, run.ends_at)
        if view.status == CANCELLED:  # it was before, and is again: of that nobody is told
            self._check_credits(run.ends_at)
            return
        event = JOB_COMPLETED if view.error is None else JOB_FAILED
        self._announce(event, job, run, run.ends_at)
        told: dict[str, Any] = {"jobId": job.id}
        if view.error is None:
            told |= {"status": view.status, "completed": view.completed, "total": view.total}
            self._broadcast("job:completed", {**told, "creditsUsed": view.credits})
        else:
            self._broadcast("job:failed", {**told, "error": view.error})
        self._check_credits(run.ends_at)

    def _progress(self, job: Job, run: Round) -> None:
        now = self._clock.steady()
        if now >= run.ends_at:
            return
        if self._watchers:
            self._tell_progress(job, now)
        step = max(_PROGRESS, run.span / 20)
        if now + step < run.ends_at:
            self._at(now + step, job, run, self._progress)

    def _pages(self, job: Job, run: Round, told: int) -> None:
        """Tell of each page done, if anybody wants to know; look again when the next one is."""
        now = self._clock.steady()
        done = run.done(now)
        wanted = bool(self._wanting(JOB_PAGE, job))
        if wanted:
            self._tell_pages(job, run, told, done)
        if done < (len(run.pages) if run.fatal is None else run.fatal):
            # Nobody needs a page to the millisecond, hardly anybody needs any: no wake-up for each.
            due = max(run.finish(done), now + (_PROMPT if wanted else max(_PROGRESS, run.span / 20)))
            self._at(min(due, run.ends_at), job, run, lambda job, run: self._pages(job, run, done))

    def _tell_pages(self, job: Job, run: Round, told: int, done: int) -> None:
        for position in range(told, done):
            index = run.pages[position]
            error, at = job.outcome(index)
            facts = {"url": job.url(index)} | ({"error": error} if error else {})
            self._announce(JOB_PAGE, job, run, at, facts, position)

    def _tell_progress(self, job: Job, now: float) -> None:
        view = job.view(now)
        told = {"jobId": job.id, "status": view.status, "completed": view.completed, "total": view.total}
        self._broadcast("job:progress", told)

    def _announce(
        self,
        event: str,
        job: Job,
        run: Round,
        at: float,
        more: dict[str, Any] | None = None,
        nth: int | None = None,
    ) -> None:
        hooks = self._wanting(event, job)
        if not hooks:
            return
        view = job.view(at)
        facts: dict[str, Any] = {"status": view.status, "completed": view.completed, "total": view.total}
        if event == JOB_FAILED:
            facts["error"] = view.error
        facts |= more or {}
        about = (run.number,) if nth is None else (run.number, nth)
        for hook in hooks:
            self._courier.take(event, job.id, hook, facts, about, at)

    def _wanting(self, event: str, job: Job | None = None) -> list[Hook]:
        hooks = [hook for hook in self._workspace.hooks if hook.wants(event)]
        own = self._workspace.job_hooks.get(job.id) if job is not None else None
        return [*hooks, own] if own is not None and own.wants(event) else hooks

    def _check_credits(self, now: float) -> None:
        hooks = self._wanting(CREDIT_LOW)
        if self._warned or not hooks:
            return
        left = self._workspace.credits(now)
        if left["balance"] * 10 < left["limit"]:
            self._warned = True
            facts = {"balance": left["balance"], "limit": left["limit"], "resetAt": next_month(now)}
            for hook in hooks:
                self._courier.take(CREDIT_LOW, "", hook, facts, (), now)

    def _broadcast(self, event: str, data: dict[str, Any]) -> None:
        for queue in self._watchers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait((event, data))

    def _move(self, job: Job) -> None:
        pulse = self.moved.pop(job.id, None)
        if pulse is not None:
            pulse.beat()

    def _job(self, job: Job, at: float) -> None:
        view = job.view(at)
        row = {"job": job.id, "status": view.status, "completed": view.completed, "total": view.total}
        self._ledger.tell("job", at, row)
