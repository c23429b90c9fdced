"""Both event streams, as chunks of text/event-stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from receiver.reader.shapes import TERMINAL
from receiver.sandbox.engine import Engine
from receiver.sandbox.jobs import Job
from receiver.sandbox.pulse import Pulse
from receiver.sandbox.render import encode, result
from receiver.sandbox.wire import hang_up

_PING = b": ping\n\n"


def _event(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


class StreamCut(Exception):  # noqa: N818 - not a failure of ours: the connection is to break off here
    """The `stream_cut` fault struck."""


class EventStream(Response):
    """text/event-stream from an iterator of chunks, until it ends or its reader leaves."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[bytes, None], engine: Engine) -> None:
        super().__init__(None, headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._chunks = chunks
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        pump = asyncio.ensure_future(self._pump(send))
        leave = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({pump, leave}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (pump, leave):
                task.cancel()
            ended, _ = await asyncio.gather(pump, leave, return_exceptions=True)
        if isinstance(ended, StreamCut):
            await hang_up(self._engine, scope, receive, reset=False)
        elif isinstance(ended, Exception):
            raise ended

    async def _pump(self, send: Send) -> None:
        async with contextlib.aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class JobStream:
    """One job's own stream: progress, page and error as they come, done at the end; then it closes."""

    def __init__(self, engine: Engine, job: Job) -> None:
        self._engine = engine
        self._job = job
        self._run = job.round
        self._sent = 0
        self._told: tuple[str, int] | None = None
        self._deaf = engine.faults.next_strikes("stream_deaf", job.id) is not None
        self._earlier: list[int] = []
        if engine.faults.choice("replay_stream") == "new":
            self._sent = job.round.done(engine.now())
        elif job.round.number > 1:
            others = {*job.round.pages, *job.round.untried}
            self._earlier = [index for index in range(job.request.count) if index not in others]

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Until the job ends, or the sandbox closes. Raises `StreamCut`."""
        engine, job = self._engine, self._job
        yield b": stream\n\n"
        while not engine.closing.is_set():
            now = engine.now()
            if not self._deaf:
                for chunk in self._news(now):
                    yield chunk
                    if engine.faults.next_strikes("stream_cut", job.id):
                        raise StreamCut
                if job.status(now) in TERMINAL:
                    yield _event("done", self._progress(now))
                    return
            if not await self._wait(now):
                yield _PING

    def _news(self, now: float) -> Iterator[bytes]:
        job, run = self._job, self._job.round
        if run is not self._run:  # queued again: what it reads anew is news
            self._run, self._sent = run, 0
        done = run.done(now)
        state = (job.status(now), done)
        if state != self._told:
            self._told = state
            yield _event("progress", self._progress(now))
        while self._earlier:
            yield self._page(self._earlier.pop(0))
        while self._sent < done:
            self._sent += 1
            yield self._page(run.pages[self._sent - 1])

    def _page(self, index: int) -> bytes:
        error, _ = self._job.outcome(index)
        if error is None:
            return _event("page", result(self._job, index, self._engine.faults))
        return _event("error", encode({"url": self._job.url(index), "error": error}))

    def _progress(self, now: float) -> bytes:
        view = self._job.view(now)
        return encode({"status": view.status, "completed": view.completed, "total": view.total})

    async def _wait(self, now: float) -> bool:
        """Until there may be news; False when it is time for a ping instead."""
        engine, run = self._engine, self._job.round
        done = run.done(now)
        if now < run.started_at:
            due = run.started_at
        elif done < len(run.pages) and run.fatal is None:
            due = min(run.finish(done), run.ends_at)
        else:
            due = run.ends_at
        # Bunched a little: a page a millisecond would otherwise be a wake-up a millisecond.
        wait = max(due - now, 0.01) + 0.001
        ping = self._deaf or wait > engine.options.ping
        moved = engine.director.moved.setdefault(self._job.id, Pulse())
        try:
            async with asyncio.timeout(engine.options.ping if ping else wait):
                await moved.next()
        except TimeoutError:
            return not ping
        return True


async def workspace_stream(engine: Engine) -> AsyncGenerator[bytes, None]:
    """The workspace's stream: until the sandbox closes. Raises `StreamCut`."""
    deaf = engine.faults.next_strikes("stream_deaf", "workspace") is not None
    queue = engine.director.watch()
    try:
        yield b": stream\n\n"
        while not engine.closing.is_set():
            try:
                async with asyncio.timeout(engine.options.ping):
                    name, data = await queue.get()
            except TimeoutError:
                yield _PING
                continue
            if deaf or not name:
                continue
            yield _event(name, msgspec.json.encode(data))
            if engine.faults.next_strikes("stream_cut", "workspace"):
                raise StreamCut
    finally:
        engine.director.unwatch(queue)
