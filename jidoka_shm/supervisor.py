"""``SessionSupervisor``: sessions with a process each, which it starts, watches and stops.

What is done in which order, so that whoever is killed at any moment, no session stays without a
process and no program runs without a session:

1. The process is started. It is a gate yet (gate.py), and ends where this one does.
2. The session is created, initializing, with that process as its owner. From here on the end of
   the process is the end of the session: the registry's writer sees to that, not the supervisor.
3. The gate is opened and becomes the program, under the same pid.
4. The program says that it is ready, the session is moved to active, and the program is told.

To stop, the session is moved to terminating first, which is how the writer knows that the end of
its owner was asked for. The supervisor waits for a process only after it has told the registry of
its end, and so after the writer has had its chance to ask how it ended.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import select
import signal
import time
from typing import TYPE_CHECKING, Final

from .arguments import check_seconds
from .crew import (
    KILLED,
    LOOK,
    SILENT,
    TICK,
    UNTOLD,
    Crew,
    ask_to_end,
    check_began,
    check_killed,
)
from .errors import ForkedHandle, IllegalTransition, SessionNotFound, WriterUnavailable
from .keeper import Keeper
from .session import SessionStatus

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping
    from typing import Self
    from uuid import UUID

    from .children import Child, Output
    from .client import SessionClient
    from .crew import Beginning
    from .manager import SessionManager
    from .maps import Map
    from .programs import Runs

#: How long to wait in one go, in seconds. Another thread may let go of a child that has ended, just
#: before this one waits; its descriptor's number may be another file's then, and tells nothing.
_LONGEST: Final = 1.0


class SessionSupervisor(Crew):
    """Starts sessions with a process each, and stops them.

    All calls may come from any thread, and none waits for another. Leaving ``with`` stops all
    sessions that were started here. Those of a supervisor that is killed, or dropped without a
    ``close()``, go on: each belongs to its own process.
    """

    def __init__(self, sessions: SessionManager | SessionClient) -> None:
        """Take what creates and changes the sessions; it stays the caller's to close, later.

        Args:
            sessions: the registry's manager, or a client of its service.

        Raises:
            TypeError: for a reader, or an asyncio client.
        """
        super().__init__(sessions)
        if inspect.iscoroutinefunction(sessions.create_session):
            msg = (
                f"an {type(sessions).__name__} is for an AsyncSessionSupervisor: give this one a "
                "SessionClient"
            )
            raise TypeError(msg)
        self._keeper = Keeper(f"jidoka_shm supervisor {self.name}", self._look)

    def start_session(  # noqa: PLR0913 - options, each by keyword
        self,
        runs: Runs,
        *,
        metadata: Map | None = None,
        llm_config: Map | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        ready: bool = True,
        timeout: float = 30.0,
        stdout: Output = None,
        stderr: Output = None,
    ) -> UUID:
        """Create a session and start its process, and return the session's id once it is active.

        The process finds the registry's name in ``JIDOKA_SHM_NAME`` and its session's id in
        ``JIDOKA_SESSION_ID``. Its input is /dev/null. It leads a process group of its own.

        Args:
            runs: a list of arguments, which no shell reads; or a function at the top level of a
                module, or ``functools.partial`` of one with arguments that JSON holds. A function
                is imported and called in a new interpreter. Others can see the arguments of a
                process; secrets belong into ``env``.
            metadata: the session's metadata.
            llm_config: its model configuration.
            env: all of the process's environment; this process's own where it is left out.
            cwd: the directory that it runs in.
            ready: wait until the program calls ``jidoka_shm.session_ready()``. With False the
                session is active before the program begins.
            timeout: how long that may take, in seconds.
            stdout: where its output goes, as for ``subprocess``; where this process's does.
            stderr: the same.

        Raises:
            SessionNotStarted: where the process cannot be started, ends before it is ready, or
                takes too long, and is killed then. No session stays.
            WriterUnavailable, InvalidMetadata, RecordTooLarge, RegistryFull: as from
                ``create_session``.
            RegistryClosed: where this supervisor is closed.
            ForkedHandle: in a forked child.
            RuntimeError: where the module of a function starts sessions while it is imported.
            ValueError, TypeError: for a bad argument.
        """
        sid, child, beginning = self._prepare(
            runs, env=env, cwd=cwd, ready=ready, timeout=timeout, stdout=stdout, stderr=stderr
        )
        try:
            child.start(self.name, sid)
            # Before the session is there: who sees it may stop it, and a fork lets go of it.
            self._add(sid, child)
            self._handle.create_session(metadata, llm_config, pid=child.pid, session_id=sid)
            if not ready:
                self._activate(sid)
            child.open_gate()
            self._await(beginning, child)
            if ready:
                self._activate(sid)
                child.acknowledge()
            child.close_channel()
            child.starting = False
            self._keeper.begin()
        except BaseException as error:
            self._give_up(sid, child)
            check_began(error, child)
            raise
        return sid

    def _activate(self, sid: UUID) -> None:
        # It may have ended by now, or be on its way, by its own doing or another's.
        with contextlib.suppress(SessionNotFound, IllegalTransition):
            self._handle.update_session(sid, status=SessionStatus.ACTIVE)

    def _await(self, beginning: Beginning, child: Child) -> None:
        while not beginning.is_over():
            _wait([child.pidfd, child.channel], beginning.left())

    def _give_up(self, sid: UUID, child: Child) -> None:
        """Leave nothing of a start that failed."""
        child.close_channel()
        child.signal(signal.SIGKILL)
        _wait_for_ends([child], KILLED)
        with contextlib.suppress(*UNTOLD):
            self._finish(sid, child)

    # ------------------------------------------------------------------ the end

    def stop_session(self, session_id: UUID | str, *, timeout: float = 5.0) -> None:
        """Stop a session: it is terminating, its process gets SIGTERM, and it is terminated.

        Signals go to the process's group. What is left of the group after ``timeout``, or when the
        process itself has ended, gets SIGKILL. A session that is visible as terminated stays as it
        is.

        Args:
            session_id: one that was started here.
            timeout: how long its process may take to end, in seconds.

        Raises:
            SessionNotSupervised: where it was not started here, or has ended and is gone.
            WriterUnavailable: where nobody can be told of its end. Its process has ended, and so
                the next writer ends the session.
            TimeoutError: where even a killed process does not end.
            ForkedHandle: in a forked child.
        """
        seconds = check_seconds("timeout", timeout)
        self._stop(self._find(session_id), seconds)

    def close(self, *, timeout: float = 5.0) -> None:
        """Stop all sessions that were started here, together. May be repeated.

        Args:
            timeout: how long their processes may take to end, in seconds.

        Raises:
            TimeoutError: where even a killed process does not end.
            ForkedHandle: in a forked child.
        """
        seconds = check_seconds("timeout", timeout)
        with self._lock:
            self._check_not_forked()
            self._closed = True
        with contextlib.suppress(*SILENT):
            self._stop(self._copy(), seconds)
        self._keeper.join()

    def _stop(self, stopped: dict[UUID, Child], timeout: float) -> None:
        self._announce(stopped)
        for child in stopped.values():
            ask_to_end(child)
        _wait_for_ends(stopped.values(), timeout)
        for sid, child in stopped.items():
            if not child.has_ended():
                self._kill_late(sid, child, timeout)
        _wait_for_ends(stopped.values(), KILLED)
        try:
            self._finish_all(stopped)
        finally:
            for child in stopped.values():
                check_killed(child)

    def _announce(self, stopped: dict[UUID, Child]) -> None:
        for child in stopped.values():
            child.stopping = True
        # The processes are stopped all the same; what went wrong is met again when they have ended.
        # A writer that does not answer is asked once, or the last process would be asked to end
        # only when the client's timeout was over for each of them.
        for sid in stopped:
            try:
                self._handle.update_session(sid, status=SessionStatus.TERMINATING)
            except WriterUnavailable:
                return
            except UNTOLD:
                continue

    def _finish_all(self, children: dict[UUID, Child]) -> None:
        """See to the ends of those that have ended, and raise what went wrong once all are."""
        wrong: Exception | None = None
        for sid, child in children.items():
            try:
                # As for an announcement. The writer learns of a dead owner by itself.
                if isinstance(wrong, WriterUnavailable):
                    self._release(sid, child)
                else:
                    self._finish(sid, child)
            except UNTOLD as error:
                wrong = error
        if wrong is not None:
            raise wrong

    def _finish(self, sid: UUID, child: Child) -> None:
        """See to the end of a child, unless it lives still. May be repeated, by several threads."""
        if not child.has_ended():
            return
        # What is left of its group has no session any more, whether the writer answers or not.
        child.signal(signal.SIGKILL)
        try:
            with contextlib.suppress(SessionNotFound):
                self._handle.terminate_session(sid, error=child.error())
        finally:
            self._release(sid, child)

    def _release(self, sid: UUID, child: Child) -> None:
        """Let go of a child, unless it lives still."""
        if child.has_ended():
            child.signal(signal.SIGKILL)
            child.reap()
            self._drop(sid)
            self._keeper.ring()

    def _look(self) -> tuple[list[int | None], float]:
        """Do what is due, and return what to wait for; the keeper's thread calls this."""
        # Until it has begun, its end is the failure of its start, which tells why.
        begun = {sid: child for sid, child in self._copy().items() if not child.starting}
        for sid, child in begun.items():
            self._end_if_orphaned(sid, child)
        with contextlib.suppress(*UNTOLD):
            self._finish_all(begun)
        pidfds = [child.pidfd for child in self._copy().values() if not child.starting]
        return pidfds, LOOK if None in pidfds else TICK

    def after_fork_in_child(self) -> None:
        """Let go of the parent's children: every later call raises ``ForkedHandle``."""
        super().after_fork_in_child()
        self._keeper.close_in_child()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        # In a forked child there is nothing to stop, and how it ends is its own.
        with contextlib.suppress(ForkedHandle):
            self.close()


def _wait_for_ends(children: Iterable[Child], seconds: float) -> None:
    """Wait until children have ended, for so long at most."""
    deadline = time.monotonic() + seconds
    for child in children:
        while not child.has_ended() and (left := deadline - time.monotonic()) > 0:
            _wait([child.pidfd], left)


def _wait(descriptors: list[int | None], seconds: float) -> None:
    """Wait until a descriptor is readable, for so long at most."""
    poll, longest = select.poll(), _LONGEST
    for descriptor in descriptors:
        if descriptor is None:
            longest = LOOK
        else:
            poll.register(descriptor, select.POLLIN)
    poll.poll(math.ceil(min(seconds, longest) * 1000))
