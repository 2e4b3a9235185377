"""The gate: a session's process before it is the program.

It waits until the session stands in the registry with this process as its owner, and then becomes
the program, under the same pid. So no program runs without a session: what starts it may be killed
at any moment, and a gate that is not opened then ends.

Run by its path, isolated and without site, so that it imports nothing of the program's.
"""

from __future__ import annotations

import os
import select
import signal
import sys

#: How often a gate looks whether its parent lives, in milliseconds. The end of the channel says so
#: at once, unless a fork of the parent, made at a bad moment, holds the other end.
_LOOK = 1000

#: What a program exits with that cannot be started, as with a shell.
_NOT_STARTED = 127


def main() -> None:
    """Wait, and become the program; the arguments are those that ``Child`` gives."""
    channel, parent, keeps, path, *command = sys.argv[1:]
    if not _is_opened(int(channel), int(parent)):
        sys.exit(_NOT_STARTED)
    if not int(keeps):
        # Closed by the start of the program, which is how its success is noticed.
        os.set_inheritable(int(channel), False)  # noqa: FBT003 - its only form
    _reset_signals()
    try:
        os.execve(path, command, _environment())  # noqa: S606 - no shell is wanted
    except OSError as error:
        os.write(int(channel), b"e%d" % (error.errno or 0))
        sys.exit(_NOT_STARTED)


def _is_opened(channel: int, parent: int) -> bool:
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while not poll.poll(_LOOK):
        if os.getppid() != parent:
            return False
    try:
        return os.read(channel, 1) == b"g"
    except OSError:
        return False


def _reset_signals() -> None:
    """Begin with no signal blocked or ignored, whatever the thread that started this has."""
    # Ignored signals stay ignored in a program; the interpreter itself ignores SIGPIPE.
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _environment() -> dict[bytes, bytes]:
    """Return the environment as it was given: the interpreter adds LC_CTYPE to its own."""
    try:
        with open("/proc/self/environ", "rb") as file:  # noqa: PTH123 - pathlib takes long to load
            block = file.read()
    except OSError:
        return dict(os.environb)
    pairs = [each.partition(b"=") for each in block.split(b"\0")]
    return {key: value for key, _, value in pairs if key}


if __name__ == "__main__":
    main()
