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
        program: what it runs.
        starting: whether who starts it still sees to it, and to its end.
        stopping: whether it is being stopped.
        orphaned: since when its session is known to be over, by the monotonic clock, or None.
        failure: the error number with which its program could not be executed, or None.
    """

    # Of the class, so that one whose making was interrupted can be collected.
    _channel: socket.socket | None = None
    _process: subprocess.Popen[bytes] | None = None
    _pidfd: int | None = None

    def __init__(self, program: Program, *, ready: bool, stdout: Output, stderr: Output) -> None:
        """Take what to start.

        Args:
            program: what the process becomes.
            ready: whether the program says when it is ready.
            stdout: where its output goes.
            stderr: the same.
        """
        self.program = program
        self.starting = True
        self.stopping = False
        self.orphaned: float | None = None
        self.failure: int | None = None
        self._ready = ready
        self._stdout, self._stderr = stdout, stderr
        self._lock = threading.RLock()
        self._ended = self._reaped = False
        self._status: os.waitid_result | None = None

    def start(self, name: str, session_id: UUID) -> None:
        """Start the process, which waits at its gate.

        Args:
            name: the registry's name.
            session_id: its session, which need not be there yet.

        Raises:
            SessionNotStarted: where no process can be started.
        """
        try:
            self._start(name, session_id)
        except OSError as error:
            raise SessionNotStarted(self.program.text, str(error)) from error
        with contextlib.suppress(OSError):
            # Refused by an old kernel, a sandbox, or where no descriptor is left.
            self._pidfd = os.pidfd_open(self.pid)

    def _start(self, name: str, session_id: UUID) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # What the package does with it never waits.
            self._channel.setblocking(False)  # noqa: FBT003 - its only form
            said = name_channel(theirs) if self._ready else ""
            program = self.program
            gate = [_GATE, theirs.fileno(), os.getpid(), int(self._ready), program.path]
            # Kept, and never asked: it would wait for a child before the writer has asked how that
            # ended.
            self._process = subprocess.Popen(  # noqa: S603 - no shell
                [sys.executable, "-I", "-S", *map(str, gate), *program.command],
                stdin=subprocess.DEVNULL,
                stdout=self._stdout,
                stderr=self._stderr,
                cwd=program.directory,
                env=programs.environment_of(program, name, session_id, said),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id, from the gate to the end; 0 before there is a process."""
        return 0 if self._process is None else self._process.pid

    # ------------------------------------------------------------------ the channel

    def open_gate(self) -> None:
        """Let the program begin."""
        self._send(_GO)

    def hear(self) -> Heard:
        """Return what the child has said since this was last asked."""
        channel = self._channel
        if channel is None:
            return Heard.NOTHING
        try:
            said = channel.recv(64)
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
        self._send(KNOWN)

    def close_channel(self) -> None:
        """Hear it no more; a gate that is not open ends."""
        # Taken out first: a number that is closed may be another's by the time of a fork.
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _send(self, word: bytes) -> None:
        channel = self._channel
        if channel is not None:
            # It may have been killed meanwhile, which is noticed as any other end.
            with contextlib.suppress(OSError):
                channel.send(word, socket.MSG_NOSIGNAL)

    # ------------------------------------------------------------------ its end

    def has_ended(self) -> bool:
        """Return whether the child has ended, or never began; it is left to be waited for."""
        with self._lock:
            if not self._ended and self._process is not None:
                try:
                    self._status = os.waitid(os.P_PID, self.pid, _LOOK)
                    self._ended = self._status is not None
                except ChildProcessError:
                    # Some other code of this process has waited for it, or ignores SIGCHLD.
                    self._ended = self._reaped = True
            return self._ended or self._process is None

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
            if not self._reaped and self.pid:
                # EPERM: the program has become another user's.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, number)

    def reap(self) -> None:
        """Wait for a child that has ended, and let go of it. May be repeated."""
        with self._lock:
            if self.has_ended() and self.pid and not self._reaped:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(self.pid, 0)
                self._reaped = True
            self.let_go()

    # ------------------------------------------------------------------ descriptors

    @property
    def pidfd(self) -> int | None:
        """A descriptor that is readable once the child has ended, or None where there is none."""
        return self._pidfd

    @property
    def channel(self) -> int | None:
        """A descriptor that is readable when ``hear`` has news, or None once that is over."""
        channel = self._channel
        # -1 where another thread has just closed it.
        descriptor = -1 if channel is None else channel.fileno()
        return None if descriptor < 0 else descriptor

    def let_go(self) -> None:
        """Let go of it, in a forked child too. May be repeated."""
        if self._process is not None:
            # Or it would be waited for, or warned of, when it is collected.
            self._process.returncode = self.exit_status() or 0
        self._close()

    def _close(self) -> None:
        self.close_channel()
        # As there.
        descriptor, self._pidfd = self._pidfd, None
        if descriptor is not None:
            os.close(descriptor)

    # Of one whose supervisor was dropped. Its process lives on, of which subprocess warns.
    __del__ = _close

    def __repr__(self) -> str:
        return f"Child({self.program.text}, pid={self.pid})"
