"""Command hooks: a program that is run for each event, for those who have a script and want no server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from receiver.errors import HookError, ResultsPrunedError
from receiver.hooks import launch
from receiver.hooks.child import Child, Words, started
from receiver.hooks.target import Answer, Delivery

RESULTS_FILE: Final = "{results_file}"
"""Where a command wants its results in a file: in an argument, this stands for the file's path."""
_RESULTS_OPTION = "--results-file"
"""As the last argument, it gets the path after it."""
NEVER, LATER = os.EX_DATAERR, os.EX_TEMPFAIL
"""Exit codes, 65 and 75: this event is of no use, ever; not now."""
LATER_BY = 60.0
"""Seconds."""
_LINE = 200
"""Characters of its last line that go into the error."""
_BATCH = 50


class CommandTarget:
    """Runs `args`, never through a shell: the event on its stdin, the results at descriptor 3 or in a file. It must exit with 0.

    `timeout`: seconds, after which it is killed with all that it started. `env` comes on top of our own environment, of which
    nothing that is set for Receiver itself is passed on.
    """

    def __init__(self, name: str, args: Sequence[str], *, timeout: float, cwd: str | None, env: Mapping[str, str]) -> None:
        self._name = name
        self._args = (*args, RESULTS_FILE) if args[-1] == _RESULTS_OPTION else tuple(args)
        self._timeout = timeout
        self._cwd = cwd
        self._env = dict(env)

    @property
    def place(self) -> str:
        """The program alone: arguments may hold secrets."""
        return self._args[0]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    async def deliver(self, delivery: Delivery) -> Answer:
        """Run it: exit code 0 is a success. See `Target`."""
        words = Words()
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                code = await self._run(delivery, words)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise HookError(f"did not end within {self._timeout:g} s, and was killed", excerpt=str(words)) from error
        except ResultsPrunedError as error:
            raise HookError(str(error), final=True, blamed=False) from error  # to try again would bring nothing back
        except OSError as error:
            raise HookError(f"cannot run {self.place!r}: {error.strerror}: {error.filename or ''}".rstrip(": ")) from error
        if code == 0:
            return Answer(excerpt=str(words))
        raise _failure(code, str(words))

    async def _run(self, delivery: Delivery, words: Words) -> int:
        event: dict[str, Any] = {"id": delivery.event_id} | json.loads(delivery.payload)
        told = json.dumps(event, ensure_ascii=False).encode() + b"\n"
        env = _inherited() | self._env | _about(event, self._name, delivery.attempt)
        if not any(RESULTS_FILE in arg for arg in self._args):
            env["RECEIVER_RESULTS_FD"] = str(launch.RESULTS)
            async with started(self._args, words, env=env, cwd=self._cwd, results=True) as child:
                return await _fed(child, told, delivery)
        with tempfile.TemporaryDirectory(prefix="receiver-", ignore_cleanup_errors=True) as folder:
            path = Path(folder, "results.jsonl")
            await _write(path, delivery)
            env["RECEIVER_RESULTS_FILE"] = str(path)
            args = [arg.replace(RESULTS_FILE, str(path)) for arg in self._args]
            async with started(args, words, env=env, cwd=self._cwd, results=False) as child:
                return await _fed(child, told, delivery)


async def _fed(child: Child, told: bytes, delivery: Delivery) -> int:
    """Its exit code. It may leave unread what it does not want, but not miss a part unnoticed: what breaks off ends it."""
    feeding = asyncio.create_task(_feed(child, told, delivery))
    ending = asyncio.create_task(child.ended())
    try:
        await asyncio.wait({feeding, ending}, return_when=asyncio.FIRST_COMPLETED)
        if feeding.done():
            feeding.result()
        return await ending
    finally:
        feeding.cancel()
        ending.cancel()
        await asyncio.gather(feeding, ending, return_exceptions=True)


async def _feed(child: Child, told: bytes, delivery: Delivery) -> None:
    await asyncio.gather(_say(child.stdin, told), _stream(child.results, delivery))


async def _say(pipe: asyncio.StreamWriter, told: bytes) -> None:
    with suppress(OSError):  # closed at the other end: it need not be read
        pipe.write(told)
        await pipe.drain()
    pipe.close()


async def _stream(pipe: asyncio.StreamWriter | None, delivery: Delivery) -> None:
    if pipe is None:
        return
    async for lines in _lines(delivery):
        try:
            pipe.write(lines)
            await pipe.drain()
        except OSError:
            break
    pipe.close()


async def _write(path: Path, delivery: Delivery) -> None:
    with path.open("wb") as file:
        async for lines in _lines(delivery):
            await asyncio.to_thread(file.write, lines)


async def _lines(delivery: Delivery) -> AsyncIterator[bytes]:
    """The results as JSON lines, some at a time. Line breaks are allowed between JSON's tokens only, where a space does as well."""
    async for batch in delivery.batches(_BATCH):
        yield b"".join([result.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n" for result in batch])


def _inherited() -> dict[str, str]:
    """Our environment without what is set for us: keys, signing secrets, the database's address and its password."""
    ours = ("READER_", "RECEIVER_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours) and name != "PGPASSWORD"}


def _about(event: Mapping[str, Any], hook: str, attempt: int) -> dict[str, str]:
    return {
        "RECEIVER_EVENT_ID": event["id"],
        "RECEIVER_EVENT_TYPE": event["type"],
        "RECEIVER_JOB_ID": event["data"]["job"]["id"],
        "RECEIVER_GENERATION": str(event["data"]["generation"]),
        "RECEIVER_HOOK": hook,
        "RECEIVER_ATTEMPT": str(attempt),
    }


def _failure(code: int, words: str) -> HookError:
    if code == launch.CANNOT and words.startswith(launch.CANNOT_RUN):
        return HookError(words.splitlines()[-1])
    how = f"ended by {_signal_name(-code)}" if code < 0 else f"exit code {code}"
    if words:
        how += f": {words.splitlines()[-1][:_LINE]}"  # where most programs name the reason
    if code == LATER:
        return HookError(how, again_in=LATER_BY, excerpt=words)
    return HookError(how, final=code == NEVER, blamed=code != NEVER, excerpt=words)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
