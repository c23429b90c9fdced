"""The pages of hooks: which there are, how they fare, what waits for them, what was given up; and what can be done about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from receiver.errors import UnknownHookError
from receiver.store import hook_log, overview

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from receiver.store.engine import Database
    from receiver.store.transaction import Transaction
    from receiver.web.dashboard.access import Visitor
    from receiver.web.dashboard.render import Templates

_SAID = {
    "pause": "Nothing is brought to it until it is resumed. What comes meanwhile waits.",
    "resume": "What waits is brought to it from now on.",
    "replay": "Its dead letters are to be delivered once more.",
}


@dataclass(frozen=True, slots=True)
class Hooks:
    """`store()` is the database; `version` compares what is shown."""

    store: Callable[[], Database]
    templates: Templates
    version: Callable[[Transaction, str], str]

    async def listed(self, request: Request, visitor: Visitor) -> Response:
        """All that were ever declared."""

        def work(tx: Transaction) -> tuple[list[overview.Hook], float, str]:
            return overview.all_hooks(tx), tx.now, self.version(tx, "hooks")

        found, now, version = await self.store().read(work)
        return self.templates.page(request, "hooks", visitor, live=f"hooks {version}", found=found, now=now, many=overview.MANY)

    async def one(self, request: Request, visitor: Visitor) -> Response:
        """`?name=`: how it fares, and its deliveries with each attempt."""
        query = request.query_params
        name = query.get("name", "")

        def work(tx: Transaction) -> dict[str, Any]:
            known = overview.all_hooks(tx)
            hook = next((hook for hook in known if hook.name == name), None)
            if hook is None:
                raise UnknownHookError.of(name, [hook.name for hook in known])
            lists = {
                "Dead letters": overview.dead(tx, name) if hook.dead else [],
                "Waiting": overview.waiting(tx, name) if hook.waiting else [],
                "Latest": overview.latest(tx, name),
            }
            rows = [row for listed in lists.values() for row in listed]
            tried = hook_log.attempts(tx, rows)
            return {"hook": hook, "lists": lists, "tried": tried, "now": tx.now, "version": self.version(tx, "hooks")}

        values = await self.store().read(work)
        live = f"hooks {values.pop('version')}"
        said = _SAID.get(query.get("done", ""))
        return self.templates.page(request, "hook", visitor, live=live, said=said, many=overview.MANY, **values)
