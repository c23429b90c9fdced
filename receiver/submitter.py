"""Submitting: written down before the request leaves; sent again, under the same key, if its answer never came."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from receiver.core.backoff import backoff
from receiver.core.delivery import JOB_ID
from receiver.core.schedule import Outlook, first_look
from receiver.errors import (
    LeaseLostError,
    ReaderError,
    ReaderRefusedError,
    ReaderTooLargeError,
    ReaderUnavailableError,
    UsageError,
)
from receiver.reader.shapes import MAX_URLS
from receiver.store import jobs, submissions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from receiver.clock import Clock
    from receiver.reader.client import ReaderClient
    from receiver.store.engine import Database
    from receiver.store.transaction import Transaction

LEASE = 600.0
"""Seconds: longer than all attempts of one request together."""

log = structlog.get_logger("receiver.submitter")


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask of Reader: a batch of `urls`, or a crawl from the one there is."""

    urls: Sequence[str]
    crawl: bool = False
    options: Mapping[str, Any] | None = None

    def body(self, webhook: Mapping[str, Any] | None) -> str:
        """The JSON of `POST /v1/read`. Raises `UsageError` for what Reader would refuse, or answer without a job."""
        urls = [url for url in self.urls if str(url).strip()]
        if not urls or len(urls) != len(self.urls):
            raise UsageError("give at least one URL, none of them empty")
        if len(urls) > MAX_URLS:
            raise UsageError(f"{len(urls)} URLs are too many for one job: Reader takes {MAX_URLS}; submit several")
        body: dict[str, Any] = dict(self.options or {})
        if self.crawl:
            if len(urls) != 1:
                raise UsageError("a crawl starts from exactly one URL")
            body |= {"url": urls[0]} | ({} if {"maxDepth", "maxPages"} & body.keys() else {"maxDepth": 2})
        else:
            body["urls"] = urls
        if webhook is not None:
            body.setdefault("webhook", dict(webhook))
        return json.dumps(body)


class Submitter:
    """See the module.

    `webhook`: what to ask Reader to tell when the job ends, if it is told with each job. `outlook`: what the schedule goes by.
    """

    def __init__(
        self,
        database: Database,
        reader: ReaderClient,
        clock: Clock,
        *,
        owner: str,
        webhook: Mapping[str, Any] | None,
        outlook: Callable[[Transaction], Outlook],
    ) -> None:
        self._database = database
        self._reader = reader
        self._clock = clock
        self._owner = owner
        self._webhook = webhook
        self._outlook = outlook

    async def submit(self, request: Request) -> jobs.Job:
        """Hand a job to Reader and track it.

        Raises `UsageError` or `ReaderRefusedError` if it is not to be had. On `ReaderUnavailableError` it stays written down: it is
        sent again, for as long as its key lives, by whoever runs `run_once`.
        """
        body = request.body(self._webhook)
        submission_id, key = f"sub_{self._clock.token()}", f"receiver-{self._clock.token()}"
        submission = await self._database.write(
            lambda tx: submissions.add(tx, submission_id, key=key, body=body, lease=LEASE, owner=self._owner)
        )
        try:
            return await self._send(submission)
        except (ReaderUnavailableError, ReaderTooLargeError) as error:
            raise ReaderUnavailableError(
                f"{error}. It is written down ({submission_id}) and will be sent when Reader answers",
                retry_after=error.retry_after if isinstance(error, ReaderUnavailableError) else None,
            ) from error

    async def run_once(self) -> bool:
        """Send one again whose answer never came; False if there is none."""
        submission = await self._database.write(lambda tx: submissions.claim(tx, owner=self._owner, lease=LEASE))
        if submission is None:
            return False
        try:
            await self._send(submission)
        except ReaderError as error:
            log.warning("submission_failed", submission=submission.id, hint=str(error))
        except LeaseLostError as error:
            log.warning("lease_lost", submission=submission.id, hint=str(error))
        return True

    async def next_due(self) -> float | None:
        """Seconds until there is something to do; None: not until one is submitted."""
        return await self._database.read(submissions.next_due)

    async def _send(self, submission: submissions.Submission) -> jobs.Job:
        age = await self._database.read(lambda tx: tx.now - submission.created_at)
        if age > submissions.KEY_LIVES:
            await self._database.write(lambda tx: submissions.expired(tx, submission))
            raise ReaderRefusedError("not sent within 24 h", code="expired", status=0)
        try:
            data = await self._reader.read(submission.body.encode(), idempotency_key=submission.idempotency_key)
        except ReaderRefusedError as error:
            trouble = str(error)
            await self._database.write(lambda tx: submissions.refused(tx, submission, trouble=trouble))
            raise
        except ReaderError as error:
            trouble = str(error)
            asked = error.retry_after if isinstance(error, ReaderUnavailableError) else None
            wait = backoff(submission.attempts, base=2.0, cap=600.0, chance=self._clock.chance()) if asked is None else asked
            await self._database.write(lambda tx: submissions.later(tx, submission, wait=wait, trouble=trouble))
            raise
        job_id = data.get("id")
        if not isinstance(job_id, str) or not JOB_ID.fullmatch(job_id):
            trouble = "Reader answered without a job's id"
            await self._database.write(lambda tx: submissions.refused(tx, submission, trouble=trouble))
            raise ReaderRefusedError(trouble, code="invalid_request", status=200)
        job = await self._database.write(lambda tx: self._sent(tx, submission, job_id, data))
        log.info("job_submitted", job=job_id, submission=submission.id)
        return job

    def _sent(self, tx: Transaction, submission: submissions.Submission, job_id: str, data: dict[str, Any]) -> jobs.Job:
        submissions.sent(tx, submission, job_id=job_id)
        total = len(json.loads(submission.body).get("urls") or ())
        wait = first_look(self._outlook(tx))
        return jobs.track(tx, job_id, source="submit", submission_id=submission.id, total=total, wait=wait, document=data)
