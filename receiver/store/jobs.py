"""The jobs: known, due, leased, and written only by who holds the newest fence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Self

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Double,
    Row,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql

from receiver.core.lifecycle import State
from receiver.core.retrying import Retry
from receiver.core.schedule import FIRST, RECENT, Outlook
from receiver.errors import LeaseLostError
from receiver.store.many import TRUE, members
from receiver.store.tables import jobs, outcomes
from receiver.store.transaction import Transaction, per_dialect

Source = Literal["submit", "track", "webhook", "stream"]
Discoverer = Literal["webhook", "poll", "stream"]

_AGAIN_ALIVE = 60.0
"""Seconds after it was noticed to have ended at which a sign of life means a retry, rather than a straggler."""
_STREAM_WAITS = 1.0
"""Seconds that an end told by the stream waits for its webhook to tell it too."""
_LATELY = 86400.0
"""Seconds for which an end tells whether webhooks arrive."""

_UNPARKED = case(
    (jobs.c.state != State.PARKED, jobs.c.state),
    (jobs.c.generation > jobs.c.settled_generation, State.HYDRATING),
    else_=State.WATCHING,
)
"""A parked job that is due again goes on as what it was: its pages stored so far are not asked for again."""


@dataclass(frozen=True, slots=True)
class Job:
    """A row of `jobs`. See the table for what the columns mean."""

    id: str
    state: State
    status: str
    completed: int
    total: int
    document: bytes | None
    source: str
    tracked_at: float
    submission_id: str | None
    generation: int
    settled_generation: int
    mark: str | None
    result_total: int | None
    restarts: int
    requests: int
    page_limit: int
    noticed_at: float | None
    discovered_by: Discoverer | None
    told: bool
    due_at: float | None
    expects_end: bool
    cue: int
    claimed_cue: int
    cued_by: Discoverer | None
    looked_at: float | None
    progressed_at: float | None
    heard: int | None
    stalls: int
    stalled: bool
    late_looks: int
    attempts: int
    misses: int
    trouble: str | None
    retry: Retry | None
    retries: int
    held: bool
    refetch: bool
    lease_owner: str | None
    lease_until: float | None
    fence: int

    @classmethod
    def of(cls, row: Row[Any]) -> Self:
        """From a whole row."""
        values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
        retry = None if values["retry"] is None else Retry(values["retry"])
        return cls(**values | {"state": State(values["state"]), "retry": retry})


def cue(tx: Transaction, cues: Mapping[str, float | None], *, by: Literal["webhook", "stream"]) -> None:
    """The one door: make the jobs known, and those that may have ended due.

    `cues`: by job id, the seconds in which to look at one that is said to have ended; None where one is only said to be.

    A job is written only if that changes when or how it is looked at, so a burst of deliveries for one job is one write. The cue
    counter tells a worker that is just looking at the job that something came meanwhile.
    """
    if cues:
        # In one order everywhere, so that two replicas' batches never wait for each other in a ring.
        given = {job_id: cues[job_id] for job_id in sorted(cues)}
        tx.execute(_cue(tx), {"cues": json.dumps(given), "by": by} | ({} if tx.is_postgresql else {"now": tx.now}))


@per_dialect
def _cue(insert: Any) -> Any:
    given = members("cues", insert)
    ended = given.c.value.is_not(None)
    # PostgreSQL's own clock is asked in the statement: to ask before it would be one more round trip, for each group of deliveries.
    server = cast(func.extract("epoch", func.clock_timestamp()), Double)
    now: ColumnElement[float] = server if insert is postgresql.insert else bindparam("now", type_=Double)
    rows = {
        "id": given.c.key,
        "state": literal(State.WATCHING),
        "source": bindparam("by", type_=Text),
        "tracked_at": now,
        "due_at": now + func.coalesce(cast(given.c.value, Double), FIRST),
        "cue": literal(1),
        "cued_by": case((ended, bindparam("by", type_=Text)), else_=None),
    }
    statement = insert(jobs).from_select(list(rows), select(*rows.values()).where(TRUE))
    new = statement.excluded
    # A job that is due by then, for a cue that no look has answered, needs no other.
    sooner = or_(jobs.c.due_at.is_(None), jobs.c.due_at > new.due_at, jobs.c.cue == jobs.c.claimed_cue)
    told = and_(new.cued_by.is_not(None), or_(sooner, jobs.c.cued_by.is_(None)))
    revived = and_(
        new.cued_by.is_(None),
        sooner,
        or_(jobs.c.state == State.SETTLED, jobs.c.state == State.PARKED),  # IN does not go with many rows at once
        or_(jobs.c.noticed_at.is_(None), jobs.c.noticed_at < new.tracked_at - _AGAIN_ALIVE),
    )
    return statement.on_conflict_do_update(
        index_elements=[jobs.c.id],
        set_={
            "state": _UNPARKED,
            "due_at": case((jobs.c.due_at < new.due_at, jobs.c.due_at), else_=new.due_at),
            "cue": jobs.c.cue + 1,
            "cued_by": case((new.cued_by == "webhook", new.cued_by), else_=func.coalesce(jobs.c.cued_by, new.cued_by)),
        },
        where=or_(told, revived),
    )


def overheard(tx: Transaction, job_id: str, *, ended: bool, completed: int | None = None) -> bool:
    """Take in what the stream tells; whether that makes the job due sooner. `completed`: how far it is, for who watches it.

    The webhook tells the same a moment before or after. Each of them alone is enough, and both together shall cost one look: an
    end waits a little for its webhook, and says nothing new of a job that is being looked at, or was seen to end just now.
    """
    job = get(tx, job_id)
    if job is not None:
        if job.noticed_at is not None and job.noticed_at > tx.now - _AGAIN_ALIVE and job.state is not State.WATCHING:
            return False
        if not ended and job.state in {State.WATCHING, State.HYDRATING}:
            if completed is not None and completed > max(job.completed, job.heard or 0):
                tx.execute(update(jobs).where(jobs.c.id == job.id).values(heard=completed))
            return False
        if ended and (job.cued_by is not None or (job.due_at is not None and job.due_at <= tx.now)):
            return False
    cue(tx, {job_id: _STREAM_WAITS if ended else None}, by="stream")
    return True


def track(
    tx: Transaction,
    job_id: str,
    *,
    source: Source,
    submission_id: str | None = None,
    total: int = 0,
    wait: float = 0.0,
    document: dict[str, Any] | None = None,
) -> Job:
    """Know of a job and look at it in `wait` seconds; one already known is looked at then at the latest, parked or not.

    `document`: what Reader answered when it was started. Of a job known already it says nothing new: it may be older than a look.
    """
    due_at = tx.now + wait
    values = {
        "id": job_id,
        "state": State.WATCHING,
        "source": source,
        "tracked_at": tx.now,
        "due_at": due_at,
        "total": total,
    }
    if document is not None and isinstance(status := document.get("status"), str):
        values |= {"status": status, "document": json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")}
    # Asked for where values stand: SQLAlchemy gives tables within ON CONFLICT no schema.
    statement = tx.insert(jobs).values(**values, submission_id=submission_id, refetch=_is_pruned(job_id))
    statement = statement.on_conflict_do_update(
        index_elements=[jobs.c.id],
        set_={
            "state": _UNPARKED,
            "due_at": case((jobs.c.due_at < due_at, jobs.c.due_at), else_=due_at),
            "cue": jobs.c.cue + 1,
            "submission_id": func.coalesce(jobs.c.submission_id, statement.excluded.submission_id),
            "refetch": or_(jobs.c.refetch, statement.excluded.refetch),
        },
    ).returning(jobs)
    return Job.of(tx.execute(statement).one())


def _is_pruned(job_id: str) -> ColumnElement[bool]:
    """The results that readers would see are gone: who tracks the job wants them again."""
    o = outcomes.c
    shown = and_(o.job_id == jobs.c.id, o.generation == jobs.c.settled_generation, o.pruned_at.is_not(None))
    return exists(select(jobs.c.id).join(outcomes, shown).where(jobs.c.id == job_id, jobs.c.state == State.SETTLED))


def sweep(tx: Transaction, *, within: float = 0.0) -> int:
    """Have every job under way looked at in so many seconds, if not sooner: what tells of ends may have failed. How many there are."""
    watched = and_(jobs.c.state == State.WATCHING, jobs.c.due_at > tx.now + within)
    # In the order in which batches of deliveries touch them, so that neither waits for the other in a ring.
    ordered = select(jobs.c.id).where(watched).order_by(jobs.c.id).with_for_update()
    return tx.execute(update(jobs).where(jobs.c.id.in_(ordered)).values(due_at=tx.now + within)).rowcount


def claim(tx: Transaction, *, owner: str, lease: float) -> Job | None:
    """Take the job longest due, for `lease` seconds; None if none is. Those with a cue go first."""
    # Each walk ends at the first job it finds, and the second is made only where the first finds none. As one, ordered by both, it
    # would look at every job that is due.
    due = select(jobs.c.id).where(jobs.c.due_at <= tx.now, _free(tx)).order_by(jobs.c.due_at).limit(1)
    due = due.with_for_update(skip_locked=True)
    # In the order of the index of cued ones, to the last column: SQLite would as soon walk along that of all.
    cued = due.where(jobs.c.cued_by.is_not(None)).order_by(jobs.c.cued_by)
    first = func.coalesce(cued.scalar_subquery(), due.scalar_subquery())
    statement = (
        update(jobs)
        .where(jobs.c.id == first)
        .values(lease_owner=owner, lease_until=tx.now + lease, fence=jobs.c.fence + 1, claimed_cue=jobs.c.cue)
        .returning(jobs)
    )
    row = tx.execute(statement).one_or_none()
    return None if row is None else Job.of(row)


def hold(tx: Transaction, job: Job, *, lease: float) -> None:
    """Renew the lease; everything else in this transaction happens only if it is still ours. Raises `LeaseLostError`."""
    _guarded(tx, job, {"lease_until": tx.now + lease})


def save(tx: Transaction, job: Job, **changes: Any) -> None:
    """Write `changes` in the midst of the work. Raises `LeaseLostError`."""
    _guarded(tx, job, changes)


def give_back(tx: Transaction, job: Job) -> None:
    """Let go of what was broken off, due as it was: whoever comes next goes on from there, at once. Raises `LeaseLostError`.

    If nothing came of it, it stands behind all that is due by now: one whose answers take longer than a pass would be broken off in
    each of them, and keep everything else from its turn.
    """
    moved = jobs.c.requests != job.requests
    _guarded(tx, job, {"lease_owner": None, "lease_until": None, "due_at": case((moved, jobs.c.due_at), else_=tx.now)})


def finish(tx: Transaction, job: Job, *, due_at: float | None, keep_cue: bool = False, **changes: Any) -> None:
    """Write `changes`, give the lease back, and have the job looked at again at `due_at`. Raises `LeaseLostError`.

    If a cue came since the job was claimed, it is due at once instead, and not parked: what we saw may be older than what it tells of.
    `keep_cue`: the cue that made it due is not answered yet.
    """
    cued = jobs.c.cue > job.claimed_cue
    if changes.get("state") == State.PARKED:
        changes["state"] = case((cued, jobs.c.state), else_=State.PARKED)
    _guarded(
        tx,
        job,
        changes
        | {
            "lease_owner": None,
            "lease_until": None,
            "due_at": case((cued, tx.now), else_=due_at),
            "cued_by": jobs.c.cued_by if keep_cue else case((cued, jobs.c.cued_by), else_=None),
            "refetch": jobs.c.refetch if keep_cue else and_(cued, jobs.c.refetch),
        },
    )


def _guarded(tx: Transaction, job: Job, values: dict[str, Any]) -> None:
    # The owner too: once the lease was given back, a renewal that comes late must not take it again.
    ours = and_(jobs.c.id == job.id, jobs.c.fence == job.fence, jobs.c.lease_owner == job.lease_owner)
    if tx.execute(update(jobs).where(ours).values(**values)).rowcount != 1:
        raise LeaseLostError(f"another worker has taken job {job.id} over")


def next_due(tx: Transaction) -> float | None:
    """Seconds until a job can be claimed (negative: one can be); None if none will.

    That includes the end of each lease: its holder may be dead, and nobody else would tell of the job.
    """
    due = select(func.min(jobs.c.due_at)).where(jobs.c.due_at.is_not(None), _free(tx))
    # What is leased was due: said here, so that only the first few rows of the index are read.
    leased = select(func.min(jobs.c.lease_until)).where(jobs.c.due_at <= tx.now, jobs.c.lease_until > tx.now)
    soonest = [at for at in tx.execute(select(due.scalar_subquery(), leased.scalar_subquery())).one() if at is not None]
    return min(soonest) - tx.now if soonest else None


def _free(tx: Transaction) -> ColumnElement[bool]:
    return or_(jobs.c.lease_until.is_(None), jobs.c.lease_until <= tx.now)


def outlook(tx: Transaction, *, budget: float, stream_up: bool) -> Outlook:
    """What the schedule goes by for all jobs: how many there are, and how the last ones ended that webhooks tell of.

    `budget`: requests a minute that are ours. `stream_up`: Reader's workspace stream is being followed, and
    will tell of the next ones too.
    """
    watched, ended, told, lasted = tx.execute(_outlook(), {"since": tx.now - _LATELY, "stream_up": stream_up}).one()
    return Outlook(watched, ended, told, lasted, budget=budget)


@cache
def _outlook() -> Select[Any]:
    # A cancelled job sends no webhook; one that we know from a webhook proves nothing of those that get lost.
    # Spelt out, as the index has it: of a parameter a database need not know that the index holds all it asks for.
    tells = (jobs.c.status != "cancelled", text("source <> 'webhook'"))
    lately = (
        select(jobs.c.told, jobs.c.discovered_by, (jobs.c.noticed_at - jobs.c.tracked_at).label("lasted"))
        .where(jobs.c.noticed_at > bindparam("since"), *tells)
        .order_by(jobs.c.noticed_at.desc())
        .limit(RECENT)
        .subquery()
    )
    watched = select(func.count()).where(jobs.c.state == State.WATCHING).scalar_subquery()
    by_stream = and_(bindparam("stream_up", type_=Boolean), lately.c.discovered_by == "stream")
    told = func.count(case((or_(lately.c.told, by_stream), 1)))
    return select(watched, func.count(), told, func.coalesce(func.max(lately.c.lasted), 0.0)).select_from(lately)


def get(tx: Transaction, job_id: str) -> Job | None:
    """One job."""
    row = tx.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
    return None if row is None else Job.of(row)


def listing(tx: Transaction, *, status: str | None = None, skip: int = 0, limit: int = 20) -> tuple[list[Job], int]:
    """Jobs by Reader's `status` (or our state), newest first, and how many there are in all."""
    chosen: Select[Any] = select(jobs)
    count = select(func.count()).select_from(jobs)
    if status is not None:
        condition = (jobs.c.state if status in set(State) else jobs.c.status) == status
        chosen, count = chosen.where(condition), count.where(condition)
    rows = tx.execute(chosen.order_by(jobs.c.tracked_at.desc(), jobs.c.id).offset(skip).limit(limit))
    return [Job.of(row) for row in rows], tx.execute(count).scalar_one()


def unknown(tx: Transaction, job_ids: Iterable[str]) -> set[str]:
    """Which of `job_ids` are not tracked."""
    wanted = set(job_ids)
    return wanted - set(tx.execute(select(jobs.c.id).where(jobs.c.id.in_(wanted))).scalars())
