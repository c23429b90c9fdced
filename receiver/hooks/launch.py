"""Becomes the command of a hook, with the results at descriptor 3: `python launch.py DESCRIPTOR|- PROGRAM ARGUMENT…`.

A program of its own between two `exec`s. Nothing else gives a child a descriptor under another number, but for running code in a
fork of our process, which has threads.
"""

import os
import signal
import sys

RESULTS = 3
"""The descriptor at which a command finds its results."""
CANNOT = 127
"""The exit code where there is no such command, as a shell has it."""
CANNOT_RUN = "cannot run "
"""What stderr begins with then."""


def launch(given: str, args: list[str]) -> None:
    """Does not return."""
    if given != "-" and int(given) != RESULTS:
        os.dup2(int(given), RESULTS)
        os.close(int(given))
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python, and so by what it becomes
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(args[0], args)  # noqa: S606 - no shell: that is the point
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        sys.stderr.write(f"{CANNOT_RUN}{args[0]!r}: {reason}\n")
        sys.exit(CANNOT)


if __name__ == "__main__":
    launch(sys.argv[1], sys.argv[2:])
