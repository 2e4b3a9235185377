"""What both kinds of supervisor have in common: their children, and how far each has come.

Nothing here waits or changes a session.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol
from uuid import uuid4

from . import forks
from .arguments import check_flag, check_seconds, parse_session_id
from .children import Child, Heard
from .errors import (
    ForkedHandle,
    JidokaError,
    OwnerNotAlive,
    ReentrantCall,
    RegistryClosed,
    SessionNotStarted,
    SessionNotSupervised,
    WriterUnavailable,
)
from .logs import log
from .programs import check_output, to_program
from .session import SessionStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from .children import Output
    from .programs import Runs
    from .session import Session

#: How long a child is given to end whose channel has: the end of both is one event, seen apart.
_ENDING: Final = 1.0

#: How long a killed process is waited for, in seconds; the kernel may be at work for it.
KILLED: Final = 10.0

#: How often a child is looked at for which there is no pidfd, in seconds.
LOOK: Final = 0.05

#: How often it is looked whether a child still has a session, in seconds.
TICK: Final = 0.5

#: How long a process may take to end whose session is over, in seconds.
_GRACE: Final = 5.0


#: What can go wrong with telling the registry of an end. The session's owner is dead by then, so
#: whoever writes next ends it.
UNTOLD: Final = (JidokaError, OSError)

#: What is no error of a close: nobody is to be told where there is no writer, where the manager was
#: closed before, or where a signal handler closes in the middle of a change. It is as above.
SILENT: Final = (RegistryClosed, WriterUnavailable, ReentrantCall)


class Changing(Protocol):
    """What a supervisor needs of a manager or client; of an asyncio one, to be awaited."""

    @property
    def name(self) -> str:
        """The registry's name."""
        ...

    @property
    def create_session(self) -> Callable[..., Any]:
        """Create a session."""
        ...

    @property
    def update_session(self) -> Callable[..., Any]:
        """Change a session."""
        ...

    @property
    def terminate_session(self) -> Callable[..., Any]:
        """End a session."""
        ...

    def get(self, session_id: object, /) -> Session | None:
        """Return a session, or None where it is not there."""
        ...


class Beginning:
    """How far a child has come on its way to be ready, asked whenever something has changed."""

    def __init__(self, child: Child, *, ready: bool, timeout: float) -> None:
        """Begin to wait.

        Args:
            child: who.
            ready: whether it says when it is ready; else its program's start is all.
            timeout: how long it may take, in seconds.
        """
        self._child = child
        self._ready = ready
        self._deadline = time.monotonic() + timeout
        self._late = f"it was not ready within {timeout:g} s"
        self._closed = False

    def left(self) -> float:
        """Return how long to wait at most, in seconds."""
        return max(0.0, self._deadline - time.monotonic())

    def is_over(self) -> bool:
        """Return whether the child is ready.

        Raises:
            SessionNotStarted: where it will not be.
        """
        # Asked before it is heard: what it said before its end counts.
        ended = self._child.has_ended()
        heard = Heard.NOTHING if self._closed else self._child.hear()
        if heard is Heard.READY or (heard is Heard.CLOSED and not self._ready):
            return True
        if heard is Heard.FAILED:
            raise self._failure(os.strerror(self._child.failure or 0))
        if heard is Heard.CLOSED:
            self._note_closed()
        if ended:
            reason = f"it {self._child.manner()} before it was ready"
            raise self._failure(reason)
        if time.monotonic() >= self._deadline:
            raise self._failure(self._late)
        return False

    def _note_closed(self) -> None:
        self._closed = True
        self._child.close_channel()
        self._deadline = min(self._deadline, time.monotonic() + _ENDING)
        self._late = "it closed its descriptor and had not called session_ready()"

    def _failure(self, reason: str) -> SessionNotStarted:
        return SessionNotStarted(self._child.program.text, reason, self._child.exit_status())


class Crew:
    """A supervisor's children, each under its session's id.

    Attributes:
        name: the registry's name.
    """

    def __init__(self, sessions: Changing) -> None:
        for needed in ("create_session", "update_session", "terminate_session"):
            if not callable(getattr(sessions, needed, None)):
                msg = (
                    f"{type(self).__name__} needs a manager or client, not a "
                    f"{type(sessions).__name__}: it changes sessions"
                )
                raise TypeError(msg)
        self.name: str = sessions.name
        self._handle = sessions
        # A signal handler may come to any line, and stop or close.
        self._lock = threading.RLock()
        self._children: dict[UUID, Child] = {}
        self._closed = self._forked = False
        forks.register(self)

    def sessions(self) -> dict[UUID, int]:
        """Return the sessions whose processes run, each with its pid.

        Raises:
            ForkedHandle: in a forked child.
        """
        return {sid: child.pid for sid, child in self._copy().items() if not child.has_ended()}

    def __len__(self) -> int:
        return len(self.sessions())

    def __bool__(self) -> bool:
        # Or one without sessions would be false.
        return True

    def __repr__(self) -> str:
        if self._forked:
            what = "forked"
        else:
            what = f"{len(self)} sessions" + (", closed" if self._closed else "")
        return f"{type(self).__name__}({self.name!r}, {what})"

    def __reduce__(self) -> NoReturn:
        msg = f"{type(self).__name__} cannot be pickled: its sessions are this process's children"
        raise TypeError(msg)

    def after_fork_in_child(self) -> None:
        """Let go of the parent's children: every later call raises ``ForkedHandle``."""
        self._forked = True
        self._lock = threading.RLock()
        # A gate must not stay shut because this process holds the other end of its channel.
        for child in self._children.values():
            child.let_go()
        self._children = {}

    # ------------------------------------------------------------------ parts

    def _prepare(  # noqa: PLR0913 - options, each by keyword
        self,
        runs: Runs,
        *,
        env: Mapping[str, str] | None,
        cwd: str | os.PathLike[str] | None,
        ready: bool,
        timeout: float,
        stdout: Output,
        stderr: Output,
    ) -> tuple[UUID, Child, Beginning]:
        """Return what is to be started, and an id for its session."""
        self._check_open()
        ready, timeout = check_flag("ready", ready), check_seconds("timeout", timeout)
        check_output("stdout", stdout)
        check_output("stderr", stderr)
        program = to_program(runs, env=env, cwd=cwd)
        child = Child(program, ready=ready, stdout=stdout, stderr=stderr)
        return uuid4(), child, Beginning(child, ready=ready, timeout=timeout)

    def _add(self, sid: UUID, child: Child) -> None:
        with self._lock:
            self._check_open()
            self._children[sid] = child

    def _drop(self, sid: UUID) -> None:
        with self._lock:
            self._children.pop(sid, None)

    def _copy(self) -> dict[UUID, Child]:
        with self._lock:
            self._check_not_forked()
            return dict(self._children)

    def _find(self, session_id: UUID | str) -> dict[UUID, Child]:
        """Return a session's child under its id, or nothing where the session was stopped.

        Raises:
            SessionNotSupervised: where it is none of this supervisor's.
        """
        sid = parse_session_id(session_id)
        child = self._copy().get(sid)
        if child is not None:
            return {sid: child}
        session = self._handle.get(sid)
        if session is None or session.status is not SessionStatus.TERMINATED:
            raise SessionNotSupervised(sid)
        return {}

    def _end_if_orphaned(self, sid: UUID, child: Child) -> None:
        """Have a child end whose session somebody else has ended, or has expired."""
        if child.orphaned is None:
            if child.stopping or self._has_session(sid):
                return
            text = "registry %r: session %s is over: ending its process %d"
            log.info(text, self.name, sid, child.pid, extra=self._extra(sid, child))
            child.orphaned, child.stopping = time.monotonic(), True
            ask_to_end(child)
        elif time.monotonic() >= child.orphaned + _GRACE and not child.has_ended():
            self._kill_late(sid, child, _GRACE)

    def _kill_late(self, sid: UUID, child: Child, timeout: float) -> None:
        """Kill a child that did not end within ``timeout`` seconds."""
        text = "registry %r: process %d of session %s did not end within %g s: killing it"
        extra = self._extra(sid, child)
        log.warning(text, self.name, child.pid, sid, timeout, extra=extra)
        child.signal(signal.SIGKILL)

    def _extra(self, sid: UUID, child: Child) -> dict[str, object]:
        return {"registry": self.name, "session_id": str(sid), "owner_pid": child.pid}

    def _has_session(self, sid: UUID) -> bool:
        try:
            session = self._handle.get(sid)
        except JidokaError:
            # Closed, or destroyed: nothing is known of the session.
            return True
        return session is not None and session.status is not SessionStatus.TERMINATED

    def _check_open(self) -> None:
        self._check_not_forked()
        if self._closed:
            raise RegistryClosed(self.name, "this supervisor is closed")

    def _check_not_forked(self) -> None:
        if self._forked:
            raise ForkedHandle(self.name)


def ask_to_end(child: Child) -> None:
    """Have a child end by SIGTERM; one that is stopped (SIGSTOP) goes on to see it."""
    child.signal(signal.SIGTERM)
    child.signal(signal.SIGCONT)


def check_killed(child: Child) -> None:
    """Raise ``TimeoutError`` where even a killed child does not end."""
    if not child.has_ended():
        msg = f"process {child.pid} was killed and did not end within {KILLED:g} s: try again"
        raise TimeoutError(msg)


def check_began(error: BaseException, child: Child) -> None:
    """Raise ``SessionNotStarted`` where a start failed because the child is dead."""
    if isinstance(error, OwnerNotAlive) and child.has_ended():
        reason = f"it {child.manner()} before it began"
        raise SessionNotStarted(child.program.text, reason, child.exit_status()) from None
