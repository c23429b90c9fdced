"""The reconciler: looks at jobs that are due, reads what has ended until it is whole, and settles it.

It works the same whether a webhook, the schedule or a person made the job due. `run_once` does one job's turn; all of what it has
done so far is in the database whenever it stops, so another one, anywhere, can go on from there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from receiver import announce, tracing
from receiver.core import schedule
from receiver.core.backoff import backoff
from receiver.core.hydration import PAGE, Again, Ask, Page, Reading, Step, Whole
from receiver.core.lifecycle import MOVES, Seen, State, compare, mark
from receiver.core.retrying import TRIES, Do, Policy, Retry, step
from receiver.core.timestamps import unix
from receiver.errors import (
    LeaseLostError,
    ReaderError,
    ReaderPausedError,
    ReaderRefusedError,
    ReaderTooLargeError,
    ReaderUnavailableError,
    StoreError,
)
from receiver.leases import lease_kept
from receiver.looking import Looks
from receiver.packing import PagePacker
from receiver.readahead import ReadAhead
from receiver.store import budget, history, jobs, outbox, results, settlement, submissions

if TYPE_CHECKING:
    from receiver.clock import Clock
    from receiver.reader.client import Purpose, ReaderClient
    from receiver.reader.pages import Head
    from receiver.store.engine import Database
    from receiver.store.transaction import Transaction

LEASE = 60.0
"""Seconds; renewed three times within it while the work goes on."""
LOOKS = 4
"""Answers of no use in a row (404, say) before a job is parked: a webhook may come before its job can be read."""
KNOWN_LOOKS = 10
"""404s in a row for a job that Reader itself has told us of: over a quarter of an hour, so that no hiccup of Reader's loses it."""
BROKEN_PASSES = 12
"""Readings in a row that contradict themselves before a job is parked."""

log = structlog.get_logger("receiver.reconciler")


PATIENT, PATIENCE = 3, 30.0
"""How often, and for how many seconds at a time, a page is waited for while later ones of its job are held in memory."""
COMMIT_BYTES = 1 << 20
"""Bytes of results, compressed, in one transaction."""
AHEAD = 8
"""Pages of one job asked for at once, at most."""
AHEAD_BYTES = 32 << 20
"""Their bytes together, if they are as large as the last one was."""


@dataclass(slots=True)
class _Look:
    """One answer of Reader's about a job."""

    head: Head
    packed: PagePacker
    page: Page
    roomy: bool
    """An answer twice as large would have come through as well."""


class Reconciler:
    """See the module. `outlook`: what the schedule goes by. `on_settled` is called with a job's id once its event is in the outbox.

    `stalled_after`: seconds without progress after which a running job is told to be stalled.
    `retrying`: whether failed URLs are retried by ourselves.
    `public_url`: where the world reaches us; makes the `resultsUrl` of events absolute.
    """

    def __init__(
        self,
        database: Database,
        reader: ReaderClient,
        clock: Clock,
        *,
        owner: str,
        outlook: Callable[[Transaction], schedule.Outlook],
        on_settled: Any = None,
        public_url: str | None = None,
        stalled_after: float,
        retrying: Policy,
    ) -> None:
        self._database = database
        self._reader = reader
        self._clock = clock
        self._owner = owner
        self._outlook = outlook
        self._on_settled = on_settled
        self._reached_at = public_url or ""
        self._stalled_after = stalled_after
        self._retrying = retrying
        self._claim = Looks(lambda: database.write(lambda tx: jobs.claim(tx, owner=owner, lease=LEASE)))
        self._due: asyncio.Task[float | None] | None = None

    async def run_once(self) -> bool:
        """Claim the job longest due and give it its turn; False if none is due. Broken off, it gives the job back."""
        claiming = asyncio.ensure_future(self._claim())
        try:
            # Shielded: a claim that is under way as we are broken off may still come through, and must not be left to run out.
            job = await asyncio.shield(claiming)
            if job is None:
                return False
            await self._turn(job)
        except asyncio.CancelledError:
            await self._give_back(claiming)
            raise
        return True

    async def next_due(self) -> float | None:
        """Seconds until there is something to do; None: not until a cue comes."""
        if self._due is None or self._due.done():  # those who ask at the same time are told the same
            self._due = asyncio.create_task(self._database.read(jobs.next_due))
            self._due.add_done_callback(
                lambda task: task.cancelled() or task.exception()
            )  # looked at, should nobody wait any more
        return await asyncio.shield(self._due)

    async def _turn(self, job: jobs.Job) -> None:
        with (
            structlog.contextvars.bound_contextvars(job=job.id),
            tracing.span("reconcile", job.id, because=job.cued_by or "poll"),
        ):
            try:
                async with lease_kept(self._clock, LEASE, lambda: self._hold(job)):
                    await _Turn(self, job).run()
            except LeaseLostError as error:
                log.warning("lease_lost", fence=job.fence, hint=str(error))
            except StoreError as error:
                # The lease runs out by itself, and the job is claimed again then.
                log.error("store_failed", hint=str(error))  # noqa: TRY400 - the hint is the whole story

    async def _give_back(self, claiming: asyncio.Future[jobs.Job | None]) -> None:
        with suppress(StoreError, LeaseLostError):
            job = await claiming
            if job is not None:
                await self._database.write(lambda tx: jobs.give_back(tx, job))

    async def _hold(self, job: jobs.Job) -> None:
        await self._database.write(lambda tx: jobs.hold(tx, job, lease=LEASE))


class _Turn:
    """One job's turn, from claim to finish."""

    def __init__(self, service: Reconciler, job: jobs.Job) -> None:
        self._database = service._database  # noqa: SLF001 - two classes, one service
        self._reader = service._reader  # noqa: SLF001
        self._clock = service._clock  # noqa: SLF001
        self._outlook = service._outlook  # noqa: SLF001
        self._on_settled = service._on_settled  # noqa: SLF001
        self._reached_at = service._reached_at  # noqa: SLF001
        self._stalled_after = service._stalled_after  # noqa: SLF001
        self._retrying = service._retrying  # noqa: SLF001
        self._job = job
        self._tallied = job.requests
        """Of the requests that hydrated, how many are written down."""
        self._cued = job.cued_by is not None
        self._reading: Reading | None = None
        self._skip = 0
        self._ahead = ReadAhead(self._look)
        self._window = 1
        """Pages to ask for at once: more while all goes well, so that what Reader has against it is learned from few."""

    async def run(self) -> None:
        try:
            if self._job.state is State.HYDRATING and await self._resume():
                return
            if self._job.retry is not None and await self._retry(self._job.retry, looked=False):
                return
            while not await self._step():
                pass
        except ReaderPausedError as error:
            await self._put_back(error.retry_after or 1.0, trouble=str(error), loud=False)  # it was told once, when it began
        except ReaderUnavailableError as error:
            tried = self._job.attempts
            if self._job.retry is not None and tried + 1 >= TRIES:
                await self._rest(str(error))
            else:
                # As long as Reader says, at the least; longer each time that this has not helped.
                await self._put_back(max(error.retry_after or 0.0, self._backoff(tried)), trouble=str(error), attempts=tried + 1)
        except ReaderRefusedError as error:
            if error.code == "not_found":
                await self._missing(str(error))
            else:
                await self._miss(Seen.UNUSABLE, str(error))
        except ReaderError as error:
            await self._miss(Seen.UNUSABLE, str(error))
        finally:
            await self._ahead.drop()

    async def _resume(self) -> bool:
        """Go on with a reading of which some pages are stored; True if nothing more is to be asked for."""
        job = self._job
        rows = await self._database.read(lambda tx: results.read_rows(tx, job.id, job.generation))
        if job.result_total is None:
            if rows:
                await self._begin_again()  # a crash came while they went
            return False
        self._reading = await self._new_reading()
        return await self._follow(self._reading.resume(total=job.result_total, rows=rows), None)

    async def _step(self) -> bool:
        """One request and what follows from it; True when the turn is over."""
        limit = self._limit()
        try:
            look = await self._page(limit)
        except ReaderTooLargeError:
            if limit == 1:
                raise
            await self._save(page_limit=max(1, limit // 2))
            return False
        told = look.head.job
        seen = compare(self._job.mark, told.terminal, _mark(look.head))
        move = MOVES[self._job.state, seen]
        if move.abandons:
            await self._begin_again("the job was retried meanwhile")
        if move.to is State.WATCHING:
            await self._still_running(look.head)
            return True
        if move.to is State.SETTLED and not self._is_wanted_again:
            return await self._leave()
        if move.opens:
            self._reading = None
            await self._open(look.head)
        elif move.to is State.SETTLED:
            await self._reopen(look.head)
        if self._reading is None:
            self._reading = await self._new_reading()
        mere_probe = limit < min(PAGE, self._job.page_limit) and look.page.total > limit
        if mere_probe or look.page.skip != self._reading.count:
            self._skip = self._reading.count  # it told of the end; the reading begins with the next request
            return False
        self._job = replace(self._job, requests=self._job.requests + 1)
        return await self._follow(self._reading.add(look.page), look)

    @property
    def _is_wanted_again(self) -> bool:
        """Whether the results were pruned, and somebody wants them. A retry goes before: it will bring others."""
        return self._job.refetch and self._job.retry is None

    async def _leave(self) -> bool:
        """Of a settled job that is as it was: a retry, if one is wanted. As `_step`."""
        if self._job.retry is not None:
            return await self._retry(self._job.retry, looked=True)
        await self._rest()
        return True

    async def _follow(self, step: Step, look: _Look | None) -> bool:
        """Do what the reading says; True when the turn is over."""
        if isinstance(step, Again):
            if step.kind == "broken":
                await self._begin_again(step.reason)
                await self._miss(Seen.UNUSABLE, f"thrown away: {step.reason}", patience=BROKEN_PASSES)
                return True
            log.warning("reading_again", reason=step.reason)
            await self._begin_again(step.reason, restarts=self._job.restarts + 1)
            return False
        if isinstance(step, Whole):
            await self._settle(look, verified=step.verified)
            return True
        if look is not None:
            self._look_ahead(step, look)
            await self._store(look)
        self._skip = step.skip
        return False

    async def _page(self, limit: int) -> _Look:
        """The page at hand. While later ones are held already, its trouble is waited out: to put the job back would waste them."""
        tried = 0
        while True:
            try:
                return await self._ahead.page(self._skip, limit)
            except ReaderUnavailableError as error:
                wait = max(error.retry_after or 0.0, self._backoff(tried))
                self._window = 1
                tried += 1
                if not self._ahead.holds or tried > PATIENT or wait > PATIENCE:
                    raise
                log.warning("waiting", wait=round(wait, 1), hint=str(error))
                await self._clock.sleep(wait)

    def _limit(self) -> int:
        """A full page where the job has probably ended; else one result, which carries the status just as well."""
        full = self._job.state is State.HYDRATING or self._cued or self._job.expects_end or self._is_wanted_again
        return min(PAGE, self._job.page_limit) if full else 1

    def _purpose(self) -> Purpose:
        if self._job.state is State.HYDRATING or self._cued:
            return "hydrate"
        late = self._job.state is State.SETTLED and self._job.retry is None and not self._job.refetch
        return "audit" if late else "probe"

    def _look_ahead(self, step: Ask, look: _Look) -> None:
        """Ask for the next pages while this one is stored: as many as are sure to be there, and as memory allows."""
        limit = self._limit()
        if look.page.limit != limit or self._next_limit(look) != limit:
            return  # it shrinks or grows: one by one until it is settled
        # Of a job that did not complete, the total may count what was never gathered.
        end = look.page.total if self._job.status == "completed" else min(look.page.total, look.page.gathered or 0)
        room = max(1, min(self._window, AHEAD_BYTES // max(look.packed.size, 1)))
        self._window = min(AHEAD, 2 * self._window)
        self._ahead.extend(range(step.skip, end, limit)[:room], limit)

    def _next_limit(self, look: _Look) -> int:
        """Where less had to be asked for, that may have been for one large result, which is behind us by now."""
        return min(PAGE, 2 * self._job.page_limit) if look.roomy else self._job.page_limit

    async def _look(self, skip: int, limit: int) -> _Look:
        packed, began = PagePacker(skip), self._clock.monotonic()

        def into() -> Any:
            nonlocal packed, began
            packed, began = PagePacker(skip), self._clock.monotonic()
            return packed.take

        with tracing.span("read page", skip=skip, limit=limit) as told:
            head = await self._reader.page(self._job.id, skip=skip, limit=limit, purpose=self._purpose(), into=into)
            await packed.close()
            told.update({"receiver.status": head.job.status, "receiver.results": len(packed.rows)})
        if head.job.id != self._job.id:
            raise ReaderUnavailableError(f"Reader was asked for {self._job.id} and answered for another job")
        roomy = self._reader.roomy(packed.size, self._clock.monotonic() - began)
        return _Look(head, packed, packed.page(head, limit=limit), roomy)

    async def _new_reading(self) -> Reading:
        job = self._job
        return Reading(
            completed=job.status == "completed",
            expected=await self._submitted_urls(),
            last_chance=job.restarts > 0,
        )

    async def _submitted_urls(self) -> Sequence[str] | None:
        submission_id = self._job.submission_id
        if submission_id is None:
            return None
        body = await self._database.read(lambda tx: submissions.body_of(tx, submission_id))
        urls = json.loads(body).get("urls") if body else None
        return urls if isinstance(urls, list) else None

    async def _open(self, head: Head) -> None:
        job = self._job
        by = job.cued_by or "poll"

        def work(tx: Transaction) -> jobs.Job:
            changes = _seen(head) | {
                "state": State.HYDRATING,
                "generation": job.generation + 1,
                "mark": _mark(head),
                "noticed_at": tx.now,
                "discovered_by": by,
                "told": by == "webhook",
                "result_total": None,
                "restarts": 0,
                "requests": 0,
                "attempts": 0,
                "misses": 0,
                "retry": None,
                "looked_at": tx.now,
            }
            jobs.save(tx, job, **changes)
            history.note(tx, job.id, "noticed", generation=job.generation + 1, status=head.job.status, by=by)
            return replace(job, **changes)

        self._job, self._tallied = await self._database.write(work), 0
        log.info("job_ended", status=head.job.status, generation=self._job.generation, discovered_by=by)

    async def _reopen(self, head: Head) -> None:
        """Read the newest end's results again, which were pruned. Reader has them still: it has just said so."""
        await self._save(self._note("reopened"), **_seen(head), **settlement.reopened(self._job))
        await self._begin_again()  # pruning may not be done with them
        log.info("reopened", generation=self._job.generation)

    async def _store(self, look: _Look) -> None:
        """The page: its rows go with the last of its chunks, and from then on it need not be asked for again."""
        last = await self._store_chunks(look.packed)
        job, rows = self._job, look.packed.rows

        def also(tx: Transaction) -> None:
            last(tx)
            results.put_rows(tx, job.id, job.generation, rows)
            _note_page(tx, job, look.packed)

        await self._save(also, result_total=look.page.total, page_limit=self._next_limit(look), attempts=0)

    async def _store_chunks(self, packed: PagePacker) -> Callable[[Transaction], None]:
        """Some in each transaction: a commit has its price, and a long one would keep acknowledgements waiting.

        Returns what stores those that are left for the next one.
        """
        job, left = self._job, list(enumerate(packed.chunks))
        while True:
            group = left[:1]
            while len(group) < len(left) and sum(len(data) for _, data in left[: len(group) + 1]) <= COMMIT_BYTES:
                group.append(left[len(group)])
            del left[: len(group)]
            store = partial(results.put_chunks, job_id=job.id, generation=job.generation, page=packed.skip, numbered=group)
            if not left:
                return store
            await self._save(store)

    async def _settle(self, look: _Look | None, *, verified: bool) -> None:
        last = await self._store_chunks(look.packed) if look is not None else None
        job, untallied = self._job, self._job.requests - self._tallied

        def work(tx: Transaction) -> tuple[outbox.Event | None, bool]:
            budget.count(tx, "hydrate", untallied)
            if look is not None and last is not None:
                last(tx)
                results.put_rows(tx, job.id, job.generation, look.packed.rows)
                _note_page(tx, job, look.packed)
            total, failed = results.count(tx, job.id, job.generation)
            assert job.document is not None
            assert job.noticed_at is not None
            assert job.discovered_by is not None
            outcome = settlement.Outcome(
                job_id=job.id,
                generation=job.generation,
                status=job.status,
                document=job.document,
                results=total,
                failed_urls=failed,
                verified=verified,
                discovered_by=job.discovered_by,
                requests=job.requests,
                ended_at=unix(json.loads(job.document).get("completedAt")),
                noticed_at=job.noticed_at,
                settled_at=tx.now,
            )
            if settlement.restore(tx, job, outcome):
                history.note(tx, job.id, "restored", generation=job.generation, rows=total)
                return None, False
            event, retry = announce.end(outcome, self._reached_at), self._wants_retry(tx, outcome)
            settlement.settle(tx, job, outcome, None if retry and self._retrying.waits else event, retry=retry)
            return event, retry

        event, retry = await self._database.write(work)
        log.info(
            "job_settled",
            generation=job.generation,
            status=job.status,
            requests=job.requests,
            verified=verified,
            event_id=event.id if event is not None else None,
            retry=retry,
        )
        if (tracer := tracing.on()) is not None and job.generation == 1:
            said = {"receiver.status": job.status, "receiver.discovered_by": job.discovered_by, "receiver.requests": job.requests}
            tracer.job(job.id, began=job.tracked_at, ended=self._clock.wall(), attributes=said)
        self._tell()

    def _wants_retry(self, tx: Transaction, outcome: settlement.Outcome) -> bool:
        if not self._retrying.most:
            return False
        first = settlement.first_outcome(tx, outcome.job_id) or outcome
        spent = _credits(outcome) - _credits(first)
        return self._retrying.wants(status=outcome.status, failed=outcome.failed_urls, retries=self._job.retries, spent=spent)

    async def _retry(self, retry: Retry, *, looked: bool) -> bool:
        """The next step of a retry; True when the turn is over, False if the job is to be looked at."""
        unwanted = self._job.retries > self._retrying.most  # it was switched off since
        match step(Retry.REFUSED if unwanted else retry, looked=looked, cued=self._cued):
            case Do.LOOK:
                return False
            case Do.ASK:
                return await self._ask_for_retry()
            case Do.GIVE_UP:
                await self._rest(self._job.trouble)
                return True

    async def _ask_for_retry(self) -> bool:
        """As `_retry`. If no answer comes, it stays written down that it was asked for."""
        await self._save(retry=Retry.ASKED)
        job = self._job
        try:
            await self._reader.retry(job.id, purpose="probe")
        except ReaderPausedError:
            await self._save(retry=Retry.DUE)  # nobody may ask for anything: it was not done
            raise
        except ReaderRefusedError as error:
            await self._save(retry=Retry.REFUSED, trouble=str(error))
            return False

        def work(tx: Transaction) -> None:
            jobs.finish(
                tx,
                job,
                due_at=tx.now + schedule.first_look(self._outlook(tx)),
                state=State.WATCHING,
                retry=None,
                progressed_at=tx.now,
                told=self._told(),
                attempts=0,
                misses=0,
                trouble=None,
            )
            history.note(tx, job.id, "retried", generation=job.generation)

        await self._database.write(work)
        log.info("job_retried", generation=job.generation, retries=job.retries)
        return True

    def _released(self, tx: Transaction) -> dict[str, Any]:
        """Publish the event that was held back, if one was; what to write of that. No retry is wanted any more."""
        job = self._job
        if job.held:
            outcome = settlement.get_outcome(tx, job.id, job.settled_generation)
            assert outcome is not None
            outbox.publish(tx, announce.end(outcome, self._reached_at))
        return {"retry": None, "held": False}

    def _told(self) -> bool:
        """Whether a webhook has told of the newest generation, be it only now."""
        return self._job.told or self._job.cued_by == "webhook"

    def _tell(self) -> None:
        if self._on_settled is not None:
            self._on_settled(self._job.id)

    async def _still_running(self, head: Head) -> None:
        """Note how far it is and when to look next."""
        job, told = self._job, head.job

        def work(tx: Transaction) -> bool:
            began = unix(told.started_at) or unix(told.created_at) or job.tracked_at
            age = min(max(tx.now - began, 0.0), max(tx.now - job.tracked_at, 1.0) * 10)
            completed = told.completed or 0
            earlier = None if job.looked_at is None else schedule.Earlier(tx.now - job.looked_at, job.completed, job.total)
            goes_on = job.state is State.WATCHING and completed == job.completed and job.progressed_at is not None
            progressed_at = job.progressed_at if goes_on and job.progressed_at is not None else tx.now
            progress = schedule.Progress(age, completed, told.total or 0, still=tx.now - progressed_at, earlier=earlier)
            look = schedule.next_look(progress, self._outlook(tx))
            stalled = progress.still >= self._stalled_after
            by = job.cued_by or "poll"
            history.note(tx, job.id, "looked", generation=job.generation + 1, completed=completed, total=told.total or 0, by=by)
            if newly := stalled and not job.stalled:
                outbox.publish(tx, announce.stall(job, head.document, still=progress.still, now=tx.now))
            jobs.finish(
                tx,
                job,
                due_at=tx.now + look.after,
                **_seen(head),
                state=State.WATCHING,
                expects_end=look.expects_end,
                looked_at=tx.now,
                progressed_at=progressed_at,
                stalled=stalled,
                stalls=job.stalls + newly,
                attempts=0,
                misses=0,
                trouble=None,
                page_limit=PAGE,
                retry=None,
            )
            return newly

        if await self._database.write(work):
            log.warning(
                "job_stalled", completed=told.completed, total=told.total, hint="no progress; it is looked at all the same"
            )
            self._tell()

    async def _rest(self, trouble: str | None = None) -> None:
        """A settled job that is as it was: a straggling cue, a late look, or a retry that is not to be had, for this `trouble`."""
        job = self._job

        def work(tx: Transaction) -> None:
            done = job.late_looks + (0 if self._cued or job.retry else 1)
            wait = schedule.late_look(done)
            due_at = None if wait is None else max((job.noticed_at or tx.now) + wait, tx.now + schedule.FIRST)
            changes: dict[str, Any] = {"looked_at": tx.now, "late_looks": done, "told": self._told(), "attempts": 0, "misses": 0}
            jobs.finish(tx, job, due_at=due_at, trouble=trouble, **changes, **self._released(tx))
            if job.retry is None:
                history.note(tx, job.id, "unchanged", generation=job.generation, by=job.cued_by or "poll")
            else:
                history.note(tx, job.id, "given up", generation=job.generation, reason=trouble)

        await self._database.write(work)
        if job.retry is None:
            log.info("nothing_new", status=job.status)
            return
        log.warning("retry_given_up", generation=job.generation, hint=trouble or "RECEIVER_RETRY_FAILED allows it no more")
        self._tell()

    async def _put_back(self, wait: float, *, trouble: str, loud: bool = True, **changes: int) -> None:
        """Due again in `wait` seconds; a cue stays one."""
        job = self._job

        def work(tx: Transaction) -> None:
            jobs.finish(tx, job, due_at=tx.now + wait, keep_cue=True, trouble=trouble, **changes)
            history.note(tx, job.id, "trouble", generation=job.generation, reason=trouble, wait=round(wait, 1))

        await self._database.write(work)
        if loud:
            log.warning("put_back", wait=round(wait, 1), hint=trouble)

    async def _missing(self, trouble: str) -> None:
        job = self._job
        if job.state is State.SETTLED and not self._cued:
            await self._park(Seen.MISSING, trouble)  # a late look: Reader has forgotten it, and nobody says otherwise
        else:
            known = job.document is not None or job.submission_id is not None
            await self._miss(Seen.MISSING, trouble, patience=KNOWN_LOOKS if known else LOOKS)

    async def _miss(self, seen: Seen, trouble: str, *, patience: int = LOOKS) -> None:
        """An answer of no use: asked for again for some time, then no more."""
        job = self._job
        if job.misses + 1 < patience:
            await self._put_back(self._backoff(job.misses), trouble=trouble, misses=job.misses + 1)
        else:
            await self._park(seen, trouble)

    async def _park(self, seen: Seen, trouble: str) -> None:
        """Nothing more to be done by ourselves: wait, visibly, for a cue or a person."""
        job = self._job
        state = MOVES[job.state, seen].to

        def work(tx: Transaction) -> None:
            changes: dict[str, Any] = {"state": state, "looked_at": tx.now, "attempts": 0, "misses": 0}
            jobs.finish(tx, job, due_at=None, trouble=trouble, **changes, **self._released(tx))
            history.note(tx, job.id, "parked", generation=job.generation, reason=trouble)

        await self._database.write(work)
        log.warning("parked", hint=trouble)
        if job.held:
            self._tell()  # of the last end there was: no other is to be expected

    def _backoff(self, tried: int) -> float:
        return backoff(tried, base=2.0, cap=600.0, chance=self._clock.chance())

    async def _begin_again(self, reason: str | None = None, **changes: Any) -> None:
        """Throw away what is stored of the reading: void first, so that no crash leaves half of it to go on with; then deleted.

        `reason`: for the job's history.
        """
        self._reading, self._skip = None, 0
        await self._save(self._note("again", reason=reason) if reason else None, result_total=None, **changes)
        job = self._job

        def work(tx: Transaction) -> bool:
            jobs.hold(tx, job, lease=LEASE)
            return results.drop_some(tx, job.id, job.generation)

        while await self._database.write(work):
            pass

    def _note(self, what: history.What, **detail: Any) -> Callable[[Transaction], None]:
        """What writes it into the job's history."""
        job = self._job
        return lambda tx: history.note(tx, job.id, what, generation=job.generation, **detail)

    async def _save(self, also: Callable[[Transaction], None] | None = None, **changes: Any) -> None:
        """Write `changes` and what hydrating has cost so far, and do `also`, in one transaction. Raises `LeaseLostError`.

        Requests are tallied as they leave; which of them hydrated is known only when their page has come.
        """
        job, untallied = self._job, self._job.requests - self._tallied

        def work(tx: Transaction) -> None:
            jobs.save(tx, job, requests=job.requests, **changes)
            budget.count(tx, "hydrate", untallied)
            if also is not None:
                also(tx)

        await self._database.write(work)
        self._job, self._tallied = replace(job, **changes), job.requests


def _note_page(tx: Transaction, job: jobs.Job, page: PagePacker) -> None:
    size = sum(len(data) for data in page.chunks)
    history.note(tx, job.id, "page", generation=job.generation, skip=page.skip, rows=len(page.rows), bytes=size)


def _seen(head: Head) -> dict[str, Any]:
    return {
        "status": head.job.status,
        "completed": head.job.completed or 0,
        "total": head.job.total or 0,
        "document": head.document,
        "heard": None,
    }


def _credits(outcome: settlement.Outcome) -> float:
    used = json.loads(outcome.document).get("creditsUsed")
    return used if isinstance(used, int | float) else 0.0


def _mark(head: Head) -> str:
    return mark(head.job.status, head.job.completed_at, head.job.credits_used or 0)
