"""A session's process as its supervisor sees it: started behind its gate, heard, ended, waited for.

Nothing here waits: that is for each kind of supervisor to do in its own way.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from enum import Enum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from . import processes, programs
from .errors import SessionNotStarted
from .ready import KNOWN, READY, name_channel

if TYPE_CHECKING:
    import signal
    from uuid import UUID

    from .programs import Program

    #: Where a program's output goes: as for subprocess, but no pipe, which nobody would read.
    Output = int | IO[bytes] | IO[str] | None

_GATE: Final = str(Path(__file__).with_name("gate.py"))

#: Opens the gate.
_GO: Final = b"g"

#: Asks how a child ended, and leaves it to be waited for.
_LOOK: Final = os.WEXITED | os.WNOHANG | os.WNOWAIT


class Heard(Enum):
    """What a child has said."""

    NOTHING = "nothing"
    #: It may be used.
    READY = "ready"
    #: Its end of the channel is closed: its program has begun without it, or is over.
    CLOSED = "closed"
    #: Its program cannot be executed.
    FAILED = "failed"


class Child:
    """One session's process, in a process group of its own, which it leads.

    Of its own, so that what the terminal sends to the supervisor's group is not sent to the
    sessions, and so that a signal reaches what the program has started as well.

    Attributes:
        pid: its process id, from the gate to the end.
        program: what it runs.
        stopping: whether it is being stopped.
        orphaned: since when its session is known to be over, by the monotonic clock, or None.
        failure: the error number with which its program could not be executed, or None.
    """

    def __init__(  # noqa: PLR0913 - options, each by keyword
        self,
        program: Program,
        name: str,
        session_id: UUID,
        *,
        ready: bool,
        stdout: Output = None,
        stderr: Output = None,
    ) -> None:
        """Start a process that waits at its gate.

        Args:
            program: what it becomes.
            name: the registry's name.
            session_id: its session, which need not be there yet.
            ready: whether its program says when it is ready.
            stdout: where its output goes.
            stderr: the same.

        Raises:
            SessionNotStarted: where no process can be started.
        """
        self.program = program
        self.stopping = False
        self.orphaned: float | None = None
        self.failure: int | None = None
        self._lock = threading.RLock()
        self._ended = self._reaped = False
        self._status: os.waitid_result | None = None
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # What the package does with it never waits.
            self._channel.setblocking(False)  # noqa: FBT003 - its only form
            said = name_channel(theirs) if ready else ""
            gate = [_GATE, theirs.fileno(), os.getpid(), int(ready), program.path]
            try:
                process = subprocess.Popen(  # noqa: S603 - no shell
                    [sys.executable, "-I", "-S", *map(str, gate), *program.command],
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    cwd=program.directory,
                    env=programs.environment_of(program, name, session_id, said),
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except OSError as error:
                self._channel.close()
                raise SessionNotStarted(program.text, str(error)) from error
        self.pid = process.pid
        # Or subprocess would wait for it, before the writer has asked how it ended.
        process.returncode = 0
        self._pidfd = _open_pidfd(self.pid)

    # ------------------------------------------------------------------ the channel

    def open_gate(self) -> None:
        """Let the program begin."""
        # It may have been killed meanwhile, which is noticed as any other end.
        with contextlib.suppress(OSError):
            self._channel.send(_GO, socket.MSG_NOSIGNAL)

    def hear(self) -> Heard:
        """Return what the child has said since this was last asked."""
        try:
            said = self._channel.recv(64)
        except BlockingIOError:
            return Heard.NOTHING
        except OSError:
            return Heard.CLOSED
        if said.startswith(b"e"):
            self.failure = int(said[1:])
            return Heard.FAILED
        return {READY: Heard.READY, b"": Heard.CLOSED}.get(said, Heard.NOTHING)

    def acknowledge(self) -> None:
        """Tell the child that its session is active."""
        with contextlib.suppress(OSError):
            self._channel.send(KNOWN, socket.MSG_NOSIGNAL)

    def close_channel(self) -> None:
        """Hear it no more; a gate that is not open ends."""
        self._channel.close()

    # ------------------------------------------------------------------ its end

    def has_ended(self) -> bool:
        """Return whether the child has ended; it is left to be waited for."""
        with self._lock:
            if not self._ended:
                try:
                    self._status = os.waitid(os.P_PID, self.pid, _LOOK)
                    self._ended = self._status is not None
                except ChildProcessError:
                    # Some other code of this process has waited for it, or ignores SIGCHLD.
                    self._ended = self._reaped = True
            return self._ended

    def manner(self) -> str:
        """Return in words how the child ended."""
        return processes.describe_end(self._status)

    def exit_status(self) -> int | None:
        """Return its exit status, or minus the signal that ended it; None where nobody knows."""
        found = self._status
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def error(self) -> str | None:
        """Return how the child ended as its session's ``error``; None for one that was stopped.

        In the very words of the registry's writer, which may notice it first.
        """
        manner = self.manner()
        asked = self.stopping and processes.is_orderly(manner)
        return None if asked else processes.describe_owner(self.pid, manner)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child's process group, unless the child was waited for."""
        with self._lock:
            # Asked first: once it has been waited for, its number may be another group's.
            self.has_ended()
            if not self._reaped:
                # EPERM: the program has become another user's.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, number)

    def reap(self) -> None:
        """Wait for a child that has ended, and let go of it. May be repeated."""
        with self._lock:
            if self.has_ended() and not self._reaped:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(self.pid, 0)
                self._reaped = True
            self.close()

    # ------------------------------------------------------------------ descriptors

    @property
    def pidfd(self) -> int | None:
        """A descriptor that is readable once the child has ended, or None where there is none."""
        return self._pidfd

    def copy_pidfd(self) -> int | None:
        """Return a copy, to be closed by who waits: others may let go of the child meanwhile."""
        with self._lock:
            return None if self._pidfd is None else _copy(self._pidfd)

    def copy_channel(self) -> int | None:
        """Return a copy of what is readable when ``hear`` has news."""
        with self._lock:
            return None if self._channel.fileno() < 0 else _copy(self._channel.fileno())

    def close(self) -> None:
        """Let go of all descriptors, in a forked child too. May be repeated."""
        self._channel.close()
        # Taken out first: a number that is closed may be another's by the time of a fork.
        descriptor, self._pidfd = self._pidfd, None
        if descriptor is not None:
            os.close(descriptor)

    def __repr__(self) -> str:
        return f"Child({self.program.text}, pid={self.pid})"


def _open_pidfd(pid: int) -> int | None:
    """Return a pidfd of a child, or None where the kernel, a sandbox or a limit refuses it."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _copy(descriptor: int) -> int | None:
    """Return a copy of a descriptor, or None where no more can be had."""
    try:
        return os.dup(descriptor)
    except OSError:
        return None
