"""`serve --workers N`: one process that watches over N others, each of which serves for itself on the one socket they share.

A worker is a fork, made before the app is loaded: it goes on from there as a server of its own would. The one that watches holds the
socket and loads nothing. All it waits for comes as a signal, so there is one place where it waits.
"""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from receiver.clock import Clock
from receiver.logs import identify

_ENDING: Final = {signal.SIGTERM, signal.SIGINT}
_READY: Final = signal.SIGUSR1
_SIGNALS: Final = _ENDING | {_READY, signal.SIGCHLD, signal.SIGALRM}
_APART: Final = 1.0
"""Seconds between two starts of one worker, so that one which cannot start does not take the machine."""
_DRAIN: Final = 9.0
"""Seconds for the workers to end when asked to, each by itself sooner: then they are killed."""

log = structlog.get_logger("receiver")


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker knows of its being one."""

    number: int
    watcher: int
    """The process that watches."""
    lifeline: int
    """A pipe to it, whose end is its end: nobody would be left to end us."""

    def ready(self) -> None:
        """Tell that this one serves."""
        if os.getppid() == self.watcher:
            os.kill(self.watcher, _READY)


def supervise(count: int, listening: socket.socket, clock: Clock) -> Worker | int:
    """Start the workers and watch over them until told to end. Returns more than once, as `fork` does.

    In each worker, a `Worker`. In this process, at the end, an exit code: 0, or the first worker's if that one could not start; it has
    said why, and the others were not tried.
    """
    return _Watch(count, listening, clock).run()


class _Watch:
    def __init__(self, count: int, listening: socket.socket, clock: Clock) -> None:
        self._listening = listening
        self._clock = clock
        self._hold = os.pipe()
        self._waiting = dict.fromkeys(range(1, count + 1), 0.0)
        """Workers that do not run, and when (monotonic seconds) each may be started."""
        self._running: dict[int, tuple[int, float]] = {}
        """Process id → the worker's number, and when it was started."""
        self._proven = False
        """Whether one has ever served: what is wrong with the settings or the app is wrong with all of them."""
        self._ending = False

    def run(self) -> Worker | int:
        for number in _SIGNALS:
            signal.signal(number, _nothing)  # some are thrown away by default, even while they are awaited
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        while self._running or not self._ending:
            if (worker := self._start_due()) is not None:
                return worker
            if (code := self._await()) is not None:
                return code
        return 0

    def _start_due(self) -> Worker | None:
        """Start whom it is time for; in a new process, who it is."""
        now = self._clock.monotonic()
        for number, at in sorted(self._waiting.items()):
            if self._ending or (self._running and not self._proven):
                break
            if at > now:
                continue
            pid = os.fork()
            if pid == 0:
                return self._become(number)
            del self._waiting[number]
            self._running[pid] = (number, now)
        if self._waiting and self._proven and not self._ending:
            signal.setitimer(signal.ITIMER_REAL, max(min(self._waiting.values()) - now, 0.01))
        return None

    def _become(self, number: int) -> Worker:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for all at once; ours comes from who watches
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.close(self._hold[1])
        identify(worker=number)
        return Worker(number, os.getppid(), self._hold[0])

    def _await(self) -> int | None:
        """Take the next signal; an exit code, if it says that there is no use in going on."""
        number = signal.sigwait(_SIGNALS)
        if number == signal.SIGCHLD:
            return self._reap()
        if number == _READY:
            self._proven = True
        elif number in _ENDING:
            self._end()
        elif self._ending:  # the alarm: they have had their time
            log.error("workers_killed", hint=f"they had not ended {_DRAIN:g} s after they were asked to")
            self._tell(signal.SIGKILL)
        return None

    def _reap(self) -> int | None:
        for pid, (number, started) in list(self._running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended == 0:
                continue
            del self._running[pid]
            if self._ending:
                continue
            code = os.waitstatus_to_exitcode(status)
            if not self._proven:
                return max(code, 1)
            log.warning("worker_ended", number=number, pid=pid, code=code, hint="another is started in its place")
            self._waiting[number] = started + _APART
        return None

    def _end(self) -> None:
        if not self._ending:
            self._ending = True
            self._listening.close()  # who comes now is to be refused, not kept waiting
            self._tell(signal.SIGTERM)
            signal.setitimer(signal.ITIMER_REAL, _DRAIN)

    def _tell(self, number: signal.Signals) -> None:
        for pid in self._running:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _nothing(*_: object) -> None:
    """Stands in for a handler."""
