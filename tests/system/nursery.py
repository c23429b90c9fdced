"""Runs commands of `receiver`, each in a process of its own, without each of them loading everything anew.

Started as a program by the kit. A request comes over a Unix socket; the command runs in a fork of this process, by the very
function that the installed `receiver` calls, and its process id and then its exit code are sent back.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
from importlib import import_module
from typing import Any

import receiver.cli


def main(path: str) -> None:
    """Serve until standard input is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for name, *_ in receiver.cli.COMMANDS:
        receiver.cli.load(name)
    import_module("receiver.app")
    gc.freeze()  # else each fork copies all that is loaded, to look for garbage in it as it ends
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            readable, _, _ = select.select([listening, sys.stdin], [], [])
            if sys.stdin in readable:
                return
            connection, _ = listening.accept()
            with connection:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    listening.close()
                    attend(connection)
                    return


def attend(connection: socket.socket) -> None:
    """See one command through. Returns in its own process only if it ends without leaving."""
    asked = json.loads(connection.makefile().readline())
    child = os.fork()
    if child == 0:
        connection.close()
        run(asked)
    else:
        connection.sendall(b"%d\n" % child)
        _, status = os.waitpid(child, 0)
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def run(asked: dict[str, Any]) -> None:
    """Be the command."""
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    for number, (path, flags) in enumerate(zip(asked["files"], (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY), strict=True)):
        os.dup2(os.open(path, flags | os.O_CREAT, 0o600), number)
    sys.argv = ["receiver", *asked["args"]]
    receiver.cli.main()


if __name__ == "__main__":
    main(sys.argv[1])
