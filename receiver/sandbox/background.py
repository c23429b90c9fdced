"""The sandbox in a thread of its own, for tests that have no event loop, or whose loop comes and goes with each test."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine, Iterator, MutableMapping
from types import TracebackType
from typing import Any, Final, Self

from receiver.sandbox.faults import Faults
from receiver.sandbox.server import Sandbox

_START: Final = 30.0
_PATIENCE: Final = 30.0


class BackgroundSandbox:
    """A `Sandbox` with plain methods, callable from any thread. Takes what `Sandbox` takes."""

    def __init__(self, **settings: Any) -> None:
        self._sandbox = Sandbox(**settings)
        self._thread = threading.Thread(target=self._run, name="reader-sandbox", daemon=True)
        self._started: concurrent.futures.Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = concurrent.futures.Future()

    def __enter__(self) -> Self:
        """Serve. Raises what entering a `Sandbox` raises."""
        self._thread.start()
        self._started.result(_START)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        """Stop, and wait for it."""
        loop, stop = self._started.result()
        loop.call_soon_threadsafe(stop.set)
        self._thread.join()

    @property
    def url(self) -> str:
        """The base URL."""
        return self._sandbox.url

    @property
    def api_key(self) -> str:
        """The key it accepts."""
        return self._sandbox.api_key

    @property
    def secret(self) -> str:
        """The secret of webhooks made by `register`."""
        return self._sandbox.secret

    @property
    def faults(self) -> MutableMapping[str, Any]:
        """The switches that are set: `reader.faults["lose"] = 0.5`, `del reader.faults["lose"]`, `.clear()`.

        Assign a dict to set exactly those. Raises `FaultError`.
        """
        return _LiveFaults(self._sandbox.faults, self._call)

    @faults.setter
    def faults(self, settings: dict[str, Any]) -> None:
        self._call(lambda: self._sandbox.faults.replace(settings))

    def ledger(self, since: float = 0) -> dict[str, Any]:
        """What truly happened."""
        report: dict[str, Any] = self._call(lambda: self._sandbox.ledger(since))
        return report

    def register(self, url: str, *events: str, secret: str | None = "") -> None:
        """Register a webhook, signed with `secret` unless another, or None, is given."""
        self._call(lambda: self._sandbox.register(url, *events, secret=secret))

    def settled(self, timeout: float = _PATIENCE) -> None:
        """Wait until every job has ended and every delivery is through or given up. Raises `TimeoutError`."""
        self._wait(self._sandbox.settled(), timeout)

    def until(self, condition: Callable[[dict[str, Any]], bool], timeout: float = _PATIENCE) -> None:
        """Wait until the condition holds for the ledger. Raises `TimeoutError`."""
        self._wait(self._sandbox.until(lambda: condition(self._sandbox.ledger())), timeout)

    def _call(self, call: Callable[[], Any]) -> Any:
        """Call it in the sandbox's thread, where its state may be touched; here when there is none yet, or no longer."""
        if not self._thread.is_alive():
            return call()

        async def run() -> Any:
            return call()

        loop, _ = self._started.result()
        return asyncio.run_coroutine_threadsafe(run(), loop).result(_PATIENCE)

    def _wait(self, what: Coroutine[Any, Any, None], timeout: float) -> None:
        loop, _ = self._started.result()
        waiting = asyncio.run_coroutine_threadsafe(what, loop)
        try:
            waiting.result(timeout)
        except TimeoutError:
            waiting.cancel()
            raise

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as exc:  # noqa: BLE001 - whoever waits for the start is told whatever it is
            if not self._started.done():
                self._started.set_exception(exc)

    async def _serve(self) -> None:
        stop = asyncio.Event()
        async with self._sandbox:
            self._started.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()


class _LiveFaults(MutableMapping[str, Any]):
    """The switches of a sandbox in another thread, as they stand: holds those that are set, and knows the others' defaults."""

    def __init__(self, faults: Faults, call: Callable[[Callable[[], Any]], Any]) -> None:
        self._faults = faults
        self._call = call

    def __getitem__(self, name: str) -> Any:
        return self._call(lambda: self._faults[name])

    def __setitem__(self, name: str, given: Any) -> None:
        self._call(lambda: self._faults.__setitem__(name, given))

    def __delitem__(self, name: str) -> None:
        self._call(lambda: self._faults.__delitem__(name))

    def __contains__(self, name: object) -> bool:
        return name in self._active()

    def __iter__(self) -> Iterator[str]:
        return iter(self._active())

    def __len__(self) -> int:
        return len(self._active())

    def __repr__(self) -> str:
        return repr(self._active())

    def clear(self) -> None:
        """Switch everything back."""
        self._call(self._faults.clear)

    def _active(self) -> dict[str, Any]:
        active: dict[str, Any] = self._call(lambda: self._faults.active)
        return active
