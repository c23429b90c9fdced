"""The auditor: every few minutes, one request to see whether Reader's webhook for us is well, and what it sent arrived.

Where deliveries failed, every job under way is looked at, at once: no sooner way is known to learn of an outage that is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from receiver.core.audit import Finding, find_ours, judge, lost, sent
from receiver.errors import ReaderError
from receiver.store import audits, jobs

if TYPE_CHECKING:
    from collections.abc import Callable

    from receiver.clock import Clock
    from receiver.core.audit import Sent
    from receiver.reader.client import ReaderClient
    from receiver.store.engine import Database
    from receiver.store.transaction import Transaction

EVERY = 300.0
"""Seconds between two audits, whoever makes them."""
_SLACK = 60.0
"""Seconds before the last audit at which a delivery may have been signed that was sent after it: attempts take half a minute."""

log = structlog.get_logger("receiver.auditor")


class Auditor:
    """See the module. `url`: our endpoint as the world reaches it. `on_cue` is called when jobs were made due."""

    def __init__(self, database: Database, reader: ReaderClient, clock: Clock, *, url: str, on_cue: Callable[[], None]) -> None:
        self._database = database
        self._reader = reader
        self._clock = clock
        self._url = url
        self._on_cue = on_cue
        self._told: set[Finding] = set()

    async def run_once(self) -> bool:
        """Make the audit that is due; False if none is."""
        if not await self._database.write(lambda tx: audits.claim(tx, every=EVERY)):
            return False
        try:
            rows = await self._reader.webhooks()
        except ReaderError as error:
            log.warning("audit_failed", hint=str(error))
            return True
        ours = find_ours(rows, self._url)
        self._tell(set(judge(ours, self._url)))
        total = sent(ours)
        found, swept = await self._database.write(lambda tx: self._compare(tx, total))
        if found is not None:
            log.warning(found.name, hint=found.hint, jobs=swept)
            self._on_cue()
        return True

    async def next_due(self) -> float | None:
        """Seconds until the next one."""
        return await self._database.read(lambda tx: audits.next_due(tx, every=EVERY))

    def _compare(self, tx: Transaction, total: Sent) -> tuple[Finding | None, int]:
        before = audits.last(tx)
        audits.note(tx, total, at=self._clock.wall())
        if before is None:
            return None, 0
        found = lost(before[0], total, arrived=audits.arrived(tx, signed_since=before[1] - _SLACK))
        return found, 0 if found is None else jobs.sweep(tx)

    def _tell(self, findings: set[Finding]) -> None:
        """Each of them once, as long as it lasts."""
        for finding in sorted(findings - self._told, key=lambda finding: finding.name):
            log.warning(finding.name, hint=finding.hint)
        if self._told and not findings:
            log.info("webhook_well")
        self._told = findings
