"""Processes that live until a test ends them, in the way that it wants."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from host import exit_code, forked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self


class Living:
    """A forked child of the test's own process.

    Attributes:
        pid: its process id.
    """

    def __init__(self) -> None:
        command, self._commands = os.pipe()
        self.pid = forked(lambda: _obey(command, self._commands))
        os.close(command)
        self._waited = False

    def exit(self, code: int = 0) -> None:
        """Have it exit; it stays a zombie until it is waited for."""
        os.write(self._commands, bytes([code]))

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Have a signal kill it; it stays a zombie until it is waited for."""
        os.kill(self.pid, number)

    def become_zombie(self, code: int = 0) -> None:
        """Have it exit, and return when it has."""
        self.exit(code)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def wait(self) -> int:
        """Wait for its end as its parent and return its exit code, or minus its signal."""
        self._waited = True
        return exit_code(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._commands)
        if not self._waited:
            self.kill()
            self.wait()


class Grandchild:
    """A process whose parent has ended, so that it is no child of the test's process.

    Attributes:
        pid: its process id.
    """

    def __init__(self) -> None:
        self._life, self._end = os.pipe()
        said, say = os.pipe()
        assert exit_code(forked(lambda: self._leave_one(say))) == 0
        self.pid = int.from_bytes(os.read(said, 4), "little")
        for descriptor in (said, say, self._life):
            os.close(descriptor)

    def _leave_one(self, say: int) -> None:
        pid = forked(lambda: _obey(self._life, self._end))
        os.write(say, pid.to_bytes(4, "little"))

    def exit(self) -> None:
        """Have it exit."""
        os.write(self._end, b"\0")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._end)


def _obey(command: int, commands: int) -> None:
    """Exit with the code that is read, or where nobody is left to say one."""
    os.close(commands)
    os._exit(int.from_bytes(os.read(command, 1), "little"))


def next_descriptor(after: int = 0) -> int:
    """Return the number that a descriptor will have when so many more have been opened."""
    opened = [os.dup(0) for _ in range(after + 1)]
    for descriptor in opened:
        os.close(descriptor)
    return opened[-1]


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Let this process open so many descriptors more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_descriptor(after=count), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def pidfds() -> int:
    """Return how many pidfds this process has."""
    count = 0
    for link in list(Path("/proc/self/fd").iterdir()):
        try:
            target = str(link.readlink())
        except FileNotFoundError:  # the one that the listing itself used
            continue
        count += "pidfd" in target
    return count
