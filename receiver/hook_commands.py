"""What people do about hooks: see how they fare, pause, resume and try one, and have events delivered once more."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from receiver import announce
from receiver.errors import HookError, UnknownHookError, UsageError
from receiver.hooks.target import Delivery
from receiver.store import hook_health, hook_log
from receiver.store import replay as store_replay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from receiver.clock import Clock
    from receiver.hooks.target import Hook
    from receiver.store.engine import Database
    from receiver.store.hook_log import AttemptRow, DeliveryRow, HookRow
    from receiver.store.replay import Part, Selection
    from receiver.store.transaction import Transaction


@dataclass(frozen=True, slots=True)
class Replay:
    """What was made due again, or would be: so many events, so many deliveries of them, and these by hook."""

    events: int
    deliveries: int
    hooks: dict[str, int]


@dataclass(frozen=True, slots=True)
class Went:
    """What became of an event for one hook, and each attempt at it, oldest first."""

    delivery: DeliveryRow
    log: list[AttemptRow]


@dataclass(frozen=True, slots=True)
class Trial:
    """What a hook made of a test event. `answer`: the beginning of what it said."""

    hook: str
    ok: bool
    ms: float
    status: int | None
    error: str | None
    answer: str


async def listed(database: Database) -> list[HookRow]:
    """The hooks, and how they fare."""
    return await database.read(hook_log.all_hooks)


async def deliveries(
    database: Database, *, hook: str | None = None, event: str | None = None, state: str | None = None, limit: int = 20
) -> list[Went]:
    """What went to hooks or waits for them, newest first. Raises `UsageError` for a hook or a state that does not exist."""
    if state is not None and state not in hook_log.STATES:
        raise UsageError(f"no delivery is {state!r}: they are {', '.join(hook_log.STATES)}")

    def work(tx: Transaction) -> list[Went]:
        if hook is not None and hook_log.find_hook(tx, hook) is None:
            raise UnknownHookError.of(hook, [row.name for row in hook_log.all_hooks(tx)])
        found = hook_log.deliveries(tx, hook=hook, event=event, state=state, limit=limit)
        tried = hook_log.attempts(tx, found)
        return [Went(row, tried[row.event_id, row.hook]) for row in found]

    return await database.read(work)


async def pause(database: Database, name: str) -> HookRow:
    """Bring nothing to a hook until it is resumed. Raises `UnknownHookError`."""
    return await _change(database, name, hook_health.pause)


async def resume(database: Database, name: str) -> HookRow:
    """Bring a paused hook what has waited for it. Raises `UnknownHookError`."""
    return await _change(database, name, hook_health.resume)


async def _change(database: Database, name: str, change: Any) -> HookRow:
    def work(tx: Transaction) -> HookRow | list[HookRow]:
        row = hook_log.find_hook(tx, name) if change(tx, name) else None
        return row or hook_log.all_hooks(tx)

    found = await database.write(work)
    if isinstance(found, list):
        raise UnknownHookError.of(name, [row.name for row in found])
    return found


async def replay(database: Database, clock: Clock, chosen: Selection, *, dry_run: bool = False) -> Replay:
    """Have events delivered again that are there by now, under the ids they had. Raises `UsageError` for what nobody can replay."""
    given = [chosen.event is not None, chosen.job is not None, chosen.dead, chosen.since is not None]
    if sum(given) != 1:
        raise UsageError("say what to replay: exactly one of an event, a job, all that is dead, or all since a time")
    if chosen.hook is not None:
        known = [row.name for row in await database.read(hook_log.all_hooks) if row.state != "retired"]
        if chosen.hook not in known:
            raise UnknownHookError.of(chosen.hook, known)
    until, after = clock.steady(), None
    until = await database.read(lambda tx: max(tx.now, until))
    count, by_hook = 0, Counter[str]()
    while True:

        def work(tx: Transaction, after: Any = after) -> Part:
            return store_replay.replay(tx, chosen, until=until, after=after, dry_run=dry_run)

        part = await (database.read(work) if dry_run else database.write(work))
        count += len(part.events)
        by_hook += part.hooks
        if part.after is None:
            if not count:
                await _check_there_is_one(database, chosen)
            return Replay(count, by_hook.total(), dict(sorted(by_hook.items())))
        after = part.after


async def _check_there_is_one(database: Database, chosen: Selection) -> None:
    if chosen.event is None and chosen.job is None:
        return
    if not await database.read(lambda tx: store_replay.exists(tx, chosen)):
        what = f"no event {chosen.event}" if chosen.event is not None else f"no event of job {chosen.job}"
        raise UsageError(f"there is {what} here: an event comes when a job has ended, and goes when retention takes it away")


async def test(hook: Hook, clock: Clock) -> Trial:
    """Send a hook an event that tells of nothing, once. Raises `UsageError` for a handler, which would take it for a real one."""
    if hook.kind == "python":
        raise UsageError(
            f"{hook.name} is a Python handler, which would take a test for the end of a job: "
            f"give it a real event again, with `receiver replay --event ID --hook {hook.name}`"
        )
    event_id, payload = announce.test(clock.wall(), clock.token())

    async def none(_: int) -> AsyncIterator[list[bytes]]:
        return
        yield

    began = clock.monotonic()
    try:
        answer = await hook.target.deliver(Delivery(event_id, payload, 1, none))
    except HookError as error:
        ms = round((clock.monotonic() - began) * 1000, 1)
        return Trial(hook.name, ok=False, ms=ms, status=error.answer, error=str(error), answer=error.excerpt)
    ms = round((clock.monotonic() - began) * 1000, 1)
    return Trial(hook.name, ok=True, ms=ms, status=answer.status, error=None, answer=answer.excerpt)
