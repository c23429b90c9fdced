"""The Python handlers of this process, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from receiver.errors import UsageError
from receiver.hooks.event import Event, EventHandler, Handler, PlainHandler
from receiver.hooks.plain import in_thread

Given = TypeVar("Given", bound=Handler | PlainHandler | EventHandler)
"""What a user registers, and has back as it was."""

TYPES: Final = ("job.completed", "job.failed", "job.cancelled", "job.stalled")
"""The event types there are."""


@dataclass(frozen=True, slots=True)
class PythonHook:
    """A handler and what it wants to hear. `timeout`: seconds for each call; `slots`: how many at once."""

    name: str
    events: tuple[str, ...]
    handler: Handler
    timeout: float | None = None
    slots: int = 8


class Registry:
    """Filled by `@receiver.on(...)` while the user's module is imported."""

    def __init__(self) -> None:
        self._hooks: dict[str, PythonHook] = {}

    def on(
        self, *events: str, name: str | None = None, timeout: float | None = None, concurrency: int = 8
    ) -> Callable[[Given], Given]:
        """Decorate a function `(event, results)` or `(event)`: an async one, or a plain one, which runs in a thread.

        Without `name`, deliveries go by its module and qualified name. Raises `UsageError` for an unknown event, a name that is
        taken, or what cannot be called like this.
        """
        unknown = [event for event in events if event not in TYPES]
        if unknown or not events:
            raise UsageError(
                f"@on takes one or more of {', '.join(TYPES)}" + (f", not {', '.join(map(str, unknown))}" if unknown else "")
            )

        if timeout is not None and not timeout > 0:
            raise UsageError(f"timeout is in seconds, more than 0, not {timeout!r}")
        if concurrency < 1:
            raise UsageError(f"concurrency is how many calls may run at once, at least 1, not {concurrency!r}")

        def register(handler: Given) -> Given:
            # `module.function`: the same after a restart, so what waits for it finds it again.
            chosen = name or _name_of(handler)
            if chosen in self._hooks:
                raise UsageError(f"a handler named {chosen!r} is registered already: give this one a name=")
            called: Any = handler if _takes_results(handler) else _without_results(handler)
            called = called if _is_async(handler) else in_thread(called)
            self._hooks[chosen] = PythonHook(chosen, events, called, timeout, concurrency)
            return handler

        return register

    def __getitem__(self, name: str) -> PythonHook:
        return self._hooks[name]

    def __contains__(self, name: str) -> bool:
        return name in self._hooks

    def all(self) -> list[PythonHook]:
        """Every handler."""
        return list(self._hooks.values())


def _name_of(handler: Callable[..., Any]) -> str:
    try:
        return f"{handler.__module__}.{handler.__qualname__}"
    except AttributeError:
        raise UsageError(f"{handler!r} has no name of its own: give it one with name=") from None


def _takes_results(handler: Callable[..., Any]) -> bool:
    """Whether it is called with (event, results), rather than with (event). Raises `UsageError` if it cannot be called at all."""
    called = getattr(handler, "__qualname__", repr(handler))
    form = f"write it as `async def {getattr(handler, '__name__', 'handler')}(event, results)`"
    if _of_kind(handler, inspect.isgeneratorfunction) or _of_kind(handler, inspect.isasyncgenfunction):
        raise UsageError(f"the handler {called} is a generator, which nobody would run: {form}, without yield")
    try:
        signature = inspect.signature(handler)
    except ValueError:  # something built in, which does not tell
        return True
    for arguments in (("event", "results"), ("event",)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments) == 2
    raise UsageError(f"the handler {called} cannot be called with (event, results): {form}")


def _without_results(handler: Callable[..., Any]) -> Callable[[Event, Any], Any]:
    def called(event: Event, results: Any) -> Any:
        del results
        return handler(event)

    return called


def _is_async(handler: Callable[..., Any]) -> bool:
    return _of_kind(handler, inspect.iscoroutinefunction)


def _of_kind(handler: Callable[..., Any], kind: Callable[[object], bool]) -> bool:
    return kind(handler) or kind(getattr(handler, "__call__", None))  # noqa: B004 - an object's method, not whether it has one
