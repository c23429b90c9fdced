"""A process of somebody else's, on a leash: fed through pipes that never block us, its last words kept, ended with all it started."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Final, Self

from receiver.hooks import launch
from receiver.hooks.target import EXCERPT

GRACE: Final = 0.3
"""Seconds between SIGTERM and SIGKILL. Few: whoever stops us waits for it too."""
_LAST_WORDS = 0.2
"""Seconds for the rest of stderr to come, once it has ended: what it left behind may hold the pipe open for ever."""


class Words:
    """The last of what a process says."""

    def __init__(self) -> None:
        self._kept = b""

    def __str__(self) -> str:
        return self._kept.decode("utf-8", "replace").strip()

    async def listen(self, said: asyncio.StreamReader) -> None:
        """Until nobody can say anything more."""
        while piece := await said.read(64 * 1024):
            self._kept = (self._kept + piece)[-EXCERPT:]


class Child:
    """A process that runs, in a session of its own. See `started`."""

    stdin: asyncio.StreamWriter
    results: asyncio.StreamWriter | None

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = loop.create_future()
        # Waited for by a thread of its own: event loops differ in how they watch children, and in where they can.
        threading.Thread(target=self._wait, args=(loop,), name=f"child {process.pid}", daemon=True).start()

    async def ended(self) -> int:
        """Its exit code, once it has ended; negative: the signal that ended it."""
        return await asyncio.shield(self._ended)

    async def end(self) -> None:
        """Have it and all of its process group end now, if it has not ended by itself."""
        if self._ended.done():
            return
        try:
            self._signal(signal.SIGTERM)
            await asyncio.wait({self._ended}, timeout=GRACE)
        finally:
            self._signal(signal.SIGKILL)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        code = self._process.wait()
        with suppress(RuntimeError):  # the loop has closed
            loop.call_soon_threadsafe(self._ended.set_result, code)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # none of them is left; macOS says it otherwise
            os.killpg(self._process.pid, number)


@asynccontextmanager
async def started(
    args: Sequence[str], words: Words, *, env: Mapping[str, str], cwd: str | None, results: bool
) -> AsyncIterator[Child]:
    """Start it; it has ended when the context is left. Raises `OSError` if it cannot be started.

    With `results` there is a second pipe, for it to read at descriptor `launch.RESULTS`. What it prints on stdout is dropped.
    """
    theirs, ours = os.pipe() if results else (None, None)
    try:
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - as brief as event loops' own; the words are the operator's, for no shell
            [sys.executable, "-I", "-S", str(Path(launch.__file__)), "-" if theirs is None else str(theirs), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            bufsize=0,
            pass_fds=() if theirs is None else (theirs,),
            start_new_session=True,
            cwd=cwd,
            env=env,
        )
    except BaseException:
        if ours is not None:
            os.close(ours)
        raise
    finally:
        if theirs is not None:
            os.close(theirs)
    child = Child(process)
    async with _Pipes() as pipes:
        listening = None
        try:
            assert process.stdin is not None
            assert process.stderr is not None
            child.results = None if ours is None else await pipes.writer(End(ours))
            child.stdin = await pipes.writer(End.of(process.stdin))
            listening = asyncio.create_task(words.listen(await pipes.reader(End.of(process.stderr))))
            yield child
        finally:
            try:
                await child.end()
                if listening is not None:
                    await asyncio.wait({listening}, timeout=_LAST_WORDS)
            finally:
                if listening is not None:
                    listening.cancel()


class End:
    """Our end of a pipe, closed once: `close` does nothing where its descriptor is closed already, whatever has the number by then.

    uvloop closes the descriptor, and then what it was given. In between the number may be that of a file which another thread has
    just opened: the database's, say, and all that is read or written there fails from then on.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is = self._identity()

    @classmethod
    def of(cls, file: IO[bytes]) -> Self:
        """Instead of `file`, which is closed."""
        descriptor = os.dup(file.fileno())
        file.close()
        return cls(descriptor)

    def fileno(self) -> int:
        """Its descriptor."""
        return self._descriptor

    def close(self) -> None:
        """Unless it is closed."""
        with suppress(OSError):  # there is no such descriptor any more
            if self._identity() == self._is:
                os.close(self._descriptor)

    def _identity(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino


class _Pipes:
    """Our ends of pipes, as streams; closed together, whatever was not written yet."""

    def __init__(self) -> None:
        self._transports: list[asyncio.BaseTransport] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for transport in self._transports:
            if not isinstance(transport, asyncio.WriteTransport):
                transport.close()
            elif not transport.is_closing():  # one that is has nothing left to write, and asyncio's own then cannot abort
                transport.abort()

    async def writer(self, pipe: End) -> asyncio.StreamWriter:
        loop = asyncio.get_running_loop()
        # The stream of a reader is used for its flow control alone: nothing is ever read from it.
        transport, protocol = await loop.connect_write_pipe(lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), pipe)
        transport.set_write_buffer_limits(high=0)  # `drain` returns when all is written
        self._transports.append(transport)
        return asyncio.StreamWriter(transport, protocol, None, loop)

    async def reader(self, pipe: End) -> asyncio.StreamReader:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        self._transports.append(transport)
        return reader
