"""Who is told of ends: can each hook be reached, and how has it fared."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from receiver.cli.checks.database import HookState, Known
from receiver.cli.checks.line import Line, fail, ok, warn
from receiver.settings import HookSettings, Settings
from receiver.telling import count

_WITHIN: Final = 5.0
_WELL: Final = {
    "python": "is a handler in a server",
    "http": "can be reached",
    "command": "can be run",
    "broker": "fared well so far",
}
_PORTS: Final = {"http": 80, "https": 443}


async def look(settings: Settings, known: Known) -> list[Line]:
    """Nothing is sent to them: a connection is made, and for a command its program looked for."""
    configured = {hook.name: hook for hook in settings.receiver_hooks}
    troubles = await asyncio.gather(*(_trouble(hook) for hook in configured.values()))
    past = await known()
    states = {state.name: state for state in past.hooks} if past else {}
    lines = [_line(name, trouble, states.get(name)) for name, trouble in zip(configured, troubles, strict=True)]
    lines += [_line(name, None, state) for name, state in states.items() if state.kind == "python"]
    return lines or [ok("hooks", "none are set: results are stored, and nobody is told (RECEIVER_HOOKS, or `@receiver.on`)")]


def _line(hook: str, trouble: str | None, state: HookState | None) -> Line:
    name = f"hook:{hook}"
    if trouble is not None:
        return fail(name, trouble, "its events wait, and are brought again and again: see RECEIVER_HOOKS, and whether it runs")
    if state is None:
        return ok(name, "can be reached, and no server has been started with it yet")
    if state.paused is not None:
        return warn(name, f"is paused: {state.paused}", "its events wait: mend it, then `receiver hooks resume`")
    if state.failures:
        return warn(
            name,
            f"the last {count(state.failures, 'attempt')} failed",
            "its events are brought again; `receiver hooks deliveries` shows what it said",
        )
    if state.dead:
        return warn(
            name,
            f"{count(state.dead, 'event')} of its were given up",
            "`receiver hooks deliveries` shows why, and `receiver replay --dead` brings them again",
        )
    return ok(name, _WELL[state.kind])


async def _trouble(hook: HookSettings) -> str | None:
    """Why it cannot be reached."""
    if hook.exec is not None:
        found = shutil.which(hook.exec[0], path=None if hook.cwd is None or "/" not in hook.exec[0] else hook.cwd)
        return None if found or hook.cwd is not None else f"there is no program {hook.exec[0]} to run"
    parts = urlsplit(hook.url or "")
    port = parts.port or _PORTS.get(parts.scheme)
    if parts.hostname is None or port is None:
        return None
    try:
        async with asyncio.timeout(_WITHIN):
            context = ssl.create_default_context() if parts.scheme == "https" else None
            _, writer = await asyncio.open_connection(parts.hostname, port, ssl=context)
            writer.close()
            with suppress(OSError, ssl.SSLError):
                await writer.wait_closed()
    except (OSError, TimeoutError) as error:
        why = getattr(error, "verify_message", None) or getattr(error, "strerror", None) or type(error).__name__
        return f"{parts.hostname} port {port} cannot be reached ({why})"
    return None
