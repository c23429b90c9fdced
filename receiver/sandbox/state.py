"""The workspace: its jobs, credits and limits. No I/O, no clock: time comes in with each question."""

from __future__ import annotations

from typing import Any, Final

from receiver.reader.shapes import QUEUED, TERMINAL
from receiver.sandbox.draws import draw, token
from receiver.sandbox.jobs import Job, fails_by_name, job_id
from receiver.sandbox.limits import Window
from receiver.sandbox.options import Options
from receiver.sandbox.problems import ApiError, invalid, not_found
from receiver.sandbox.sessions import Session
from receiver.sandbox.times import next_month
from receiver.sandbox.validation import ReadRequest
from receiver.sandbox.webhooks import Hook, Registry

_IDEMPOTENT_FOR: Final = 24 * 3600.0


class Workspace:
    """All that Reader knows of one customer."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.window = Window(options.limit, options.window)
        self.hooks = Registry(options.seed)
        self.jobs: dict[str, Job] = {}
        self.job_hooks: dict[str, Hook] = {}
        self.sessions: dict[str, Session] = {}
        self.scrapes: list[tuple[str, float, bool]] = []
        self._active: dict[str, Job] = {}
        self._settled_credits = 0
        self._most_credits = 0
        self._asked: dict[str, int] = {}
        self._answers: dict[str, tuple[float, Any]] = {}

    def submit(self, request: ReadRequest, now: float) -> Job:
        """A new job, queued. Raises `ApiError`: concurrency_limited, insufficient_credits."""
        self._admit(request.count, now)
        nth = self._asked[request.fingerprint] = self._asked.get(request.fingerprint, 0) + 1
        job = Job(job_id(self.options.seed, request, nth), request, self.options, now)
        self.jobs[job.id] = self._active[job.id] = job
        if request.hook is not None:
            hook = request.hook
            self.job_hooks[job.id] = Hook("request", hook.url, hook.events, hook.secret)
        return job

    def scrape(self, request: ReadRequest, now: float) -> bool:
        """Charge one page read at once; whether it succeeds. Raises `ApiError` insufficient_credits."""
        self._afford(1, now)
        url = request.urls[0]
        nth = self._asked[request.fingerprint] = self._asked.get(request.fingerprint, 0) + 1
        options = self.options
        failed = fails_by_name(url, nth) or draw(options.seed, "scrape", request.fingerprint, nth) < options.page_errors
        self.scrapes.append((url, now, not failed))
        return not failed

    def job(self, wanted: str) -> Job:
        """Raises `ApiError` not_found."""
        try:
            return self.jobs[wanted]
        except KeyError:
            raise not_found("Job") from None

    def cancel(self, wanted: str, now: float) -> Job:
        """Stop it where it stands. Raises `ApiError`: not_found, conflict once it has ended."""
        job = self.job(wanted)
        status = job.status(now)
        if status in TERMINAL:
            raise ApiError("conflict", f"Job is already {status}", {"status": status})
        job.round.stopped_at = now
        return job

    def retry(self, wanted: str, now: float, *, unfinished: bool = False) -> tuple[Job, int]:
        """Queue again what failed, or all that is `unfinished`: what was never attempted too; and how many that are.

        Raises `ApiError`: not_found, conflict while it runs, invalid_request when nothing failed,
        concurrency_limited, insufficient_credits.
        """
        job = self.job(wanted)
        status = job.status(now)
        if status not in TERMINAL:
            raise ApiError("conflict", f"Job is still {status}", {"status": status})
        pages = sorted(job.round.errored(now) + (job.round.never(now) if unfinished else []))
        if not pages:
            raise invalid(("id", "the job has no failed URLs"))
        self._admit(len(pages), now)
        self.requeue(job, pages, now)
        return job, len(pages)

    def requeue(self, job: Job, pages: list[int], now: float) -> None:
        """Queue these pages of a job that ended, nobody asked."""
        self.active(now)
        if job.id not in self._active:
            self._settled_credits -= job.view(now).credits
        job.run(pages, now)
        self._active[job.id] = job

    def active(self, now: float) -> list[Job]:
        """The jobs that have not ended."""
        for ended in [job for job in self._active.values() if job.status(now) in TERMINAL]:
            self._settled_credits += ended.view(now).credits
            del self._active[ended.id]
        return list(self._active.values())

    def used(self, now: float) -> int:
        """Credits spent."""
        running = sum(job.view(now).credits for job in self.active(now))
        charged = sum(session.charged(now) for session in self.sessions.values())
        return self._settled_credits + running + charged + sum(good for _, _, good in self.scrapes)

    def credits(self, now: float) -> dict[str, Any]:
        """GET /v1/usage/credits."""
        limit, used = self.options.credits, self.used(now)
        return {
            "balance": max(0, limit - used),
            "limit": limit,
            "used": used,
            "tier": self.options.tier,
            "resetAt": next_month(now),
        }

    def queue(self, now: float) -> dict[str, int]:
        """GET /v1/queue/status."""
        active = self.active(now)
        waiting = sum(job.status(now) == QUEUED for job in active)
        return {
            "activeJobs": len(active) - waiting,
            "waitingJobs": waiting,
            "maxConcurrency": self.options.max_active,
        }

    def remembered(self, key: str, now: float) -> Any | None:
        """The first answer to this idempotency key, for 24 hours."""
        found = self._answers.get(key)
        return found[1] if found is not None and now - found[0] < _IDEMPOTENT_FOR else None

    def remember(self, key: str, answer: Any, now: float) -> None:
        """Keep the first answer to an idempotency key."""
        while self._answers:  # oldest first: they were put in as time went
            oldest = next(iter(self._answers))
            if now - self._answers[oldest][0] < _IDEMPOTENT_FOR:
                break
            del self._answers[oldest]
        self._answers[key] = (now, answer)

    def open_session(self, max_ms: int, now: float) -> Session:
        """A new browser session."""
        session = Session("ses_" + token(self.options.seed, 16, "session", len(self.sessions)), now, max_ms / 1000)
        self.sessions[session.id] = session
        return session

    def session(self, wanted: str) -> Session:
        """Raises `ApiError` not_found."""
        try:
            return self.sessions[wanted]
        except KeyError:
            raise not_found("Session") from None

    def _admit(self, pages: int, now: float) -> None:
        active = len(self.active(now))
        if active >= self.options.max_active:
            details = {"active": active, "max": self.options.max_active}
            raise ApiError("concurrency_limited", "Too many active jobs", details)
        self._afford(pages, now)

    def _afford(self, pages: int, now: float) -> None:
        self._most_credits += pages
        if self._most_credits <= self.options.credits and not self.sessions:
            return  # even if every page ever asked for had succeeded
        promised = sum(job.request.count - job.view(now).credits for job in self.active(now))
        available = max(0, self.options.credits - self.used(now) - promised)
        if pages > available:
            self._most_credits -= pages
            details = {"required": pages, "available": available, "resetAt": next_month(now)}
            raise ApiError("insufficient_credits", "Insufficient credits", details)
