"""``AsyncSessionSupervisor``: as ``SessionSupervisor``, for an asyncio loop and without a thread.

What is done in which order is in supervisor.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from .arguments import check_seconds
from .client import SessionClient
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
from .errors import ForkedHandle, IllegalTransition, SessionNotFound
from .session import SessionStatus

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping
    from typing import Self
    from uuid import UUID

    from .children import Child, Output
    from .crew import Beginning, Changing
    from .maps import Map
    from .programs import Runs


class AsyncSessionSupervisor(Crew):
    """Starts sessions with a process each, and stops them, in one asyncio loop.

    Leaving ``async with`` stops all sessions that were started here. Those of a supervisor that is
    killed, or whose loop ends without a ``close()``, go on: each belongs to its own process.
    """

    def __init__(self, sessions: Changing) -> None:
        """Take what creates and changes the sessions; it stays the caller's to close, later.

        Args:
            sessions: an asyncio client of the registry's service, or the registry's manager.

        Raises:
            TypeError: for a reader, or a blocking client.
        """
        super().__init__(sessions)
        if isinstance(sessions, SessionClient):
            # It would do, and keep the loop waiting for each reply, or for a writer to come.
            msg = "a SessionClient is for a SessionSupervisor: give this one an AsyncSessionClient"
            raise TypeError(msg)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start_session(  # noqa: PLR0913 - options, each by keyword
        self,
        runs: Runs,
        *,
        metadata: Map | None = None,
        llm_config: Map | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        ready: bool = True,
        timeout: float = 30.0,  # noqa: ASYNC109 - as of SessionSupervisor, and it is in the error
        stdout: Output = None,
        stderr: Output = None,
    ) -> UUID:
        """Create a session and start its process; otherwise as ``SessionSupervisor`` does.

        The loop waits for the start of the interpreter's gate, and for the changes of a manager
        where it has one, and for nothing else. A call that is cancelled leaves neither a session
        nor a process.

        Args:
            runs: a list of arguments, or a function.
            metadata: the session's metadata.
            llm_config: its model configuration.
            env: all of the process's environment; this process's own where it is left out.
            cwd: the directory that it runs in.
            ready: wait until the program calls ``jidoka_shm.session_ready()``.
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
            await _done(
                self._handle.create_session(metadata, llm_config, pid=child.pid, session_id=sid)
            )
            if not ready:
                await self._activate(sid)
            child.open_gate()
            await _begin(beginning, child)
            if ready:
                await self._activate(sid)
                child.acknowledge()
            child.close_channel()
            self._keep(sid, child)
        except BaseException as error:
            await self._give_up(sid, child)
            check_began(error, child)
            raise
        return sid

    async def _activate(self, sid: UUID) -> None:
        # It may have ended by now, or be on its way, by its own doing or another's.
        with contextlib.suppress(SessionNotFound, IllegalTransition):
            await _done(self._handle.update_session(sid, status=SessionStatus.ACTIVE))

    async def _give_up(self, sid: UUID, child: Child) -> None:
        """Leave nothing of a start that failed."""
        child.close_channel()
        child.signal(signal.SIGKILL)
        # A task of its own: a cancellation that comes now must leave nothing either.
        await asyncio.shield(self._begin_task(self._bury(sid, child)))

    async def _bury(self, sid: UUID, child: Child) -> None:
        await _wait_for_ends([child], KILLED)
        with contextlib.suppress(*UNTOLD):
            await self._finish(sid, child)

    # ------------------------------------------------------------------ the end

    async def stop_session(
        self,
        session_id: UUID | str,
        *,
        timeout: float = 5.0,  # noqa: ASYNC109 - as above
    ) -> None:
        """Stop a session and its process; otherwise as ``SessionSupervisor`` does.

        A call that is cancelled may be made again.

        Args:
            session_id: one that was started here.
            timeout: how long its process may take to end, in seconds, until it is killed.

        Raises:
            SessionNotSupervised: where it was not started here, or has ended and is gone.
            WriterUnavailable: where nobody can be told of its end. Its process has ended, and so
                the next writer ends the session.
            TimeoutError: where even a killed process does not end.
            ForkedHandle: in a forked child.
        """
        seconds = check_seconds("timeout", timeout)
        await self._stop(self._find(session_id), seconds)

    async def close(self, *, timeout: float = 5.0) -> None:  # noqa: ASYNC109 - as above
        """Stop all sessions that were started here, together. May be repeated.

        Args:
            timeout: how long their processes may take to end, in seconds.

        Raises:
            TimeoutError: where even a killed process does not end.
            ForkedHandle: in a forked child.
        """
        seconds = check_seconds("timeout", timeout)
        self._check_not_forked()
        self._closed = True
        with contextlib.suppress(*SILENT):
            await self._stop(self._copy(), seconds)
        # Others may have cancelled them.
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _stop(self, stopped: dict[UUID, Child], seconds: float) -> None:
        await asyncio.gather(*[self._announce(sid, child) for sid, child in stopped.items()])
        for child in stopped.values():
            ask_to_end(child)
        await _wait_for_ends(stopped.values(), seconds)
        for sid, child in stopped.items():
            if not child.has_ended():
                self._kill_late(sid, child, seconds)
        await _wait_for_ends(stopped.values(), KILLED)
        try:
            # Together: a writer that does not answer is waited for once.
            ends = [self._finish(sid, child) for sid, child in stopped.items()]
            for wrong in await asyncio.gather(*ends, return_exceptions=True):
                if wrong is not None:
                    raise wrong
        finally:
            for child in stopped.values():
                check_killed(child)

    async def _announce(self, sid: UUID, child: Child) -> None:
        child.stopping = True
        # The process is stopped all the same; what went wrong is met again when it has ended.
        with contextlib.suppress(*UNTOLD):
            await _done(self._handle.update_session(sid, status=SessionStatus.TERMINATING))

    async def _finish(self, sid: UUID, child: Child) -> None:
        """See to the end of a child, unless it lives still. May be repeated."""
        if not child.has_ended():
            return
        # What is left of its group has no session any more.
        child.signal(signal.SIGKILL)
        try:
            with contextlib.suppress(SessionNotFound):
                await _done(self._handle.terminate_session(sid, error=child.error()))
        finally:
            child.reap()
            self._drop(sid)

    def _keep(self, sid: UUID, child: Child) -> None:
        """Have a task that sees to the child's end."""
        self._begin_task(self._see_to(sid, child))

    def _begin_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have a task do work, which ``close`` waits for."""
        task = asyncio.get_running_loop().create_task(work)
        # The loop itself holds no task that waits.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _see_to(self, sid: UUID, child: Child) -> None:
        while not child.has_ended():
            self._end_if_orphaned(sid, child)
            await _wait([child.pidfd], TICK)
        with contextlib.suppress(*UNTOLD):
            await self._finish(sid, child)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # In a forked child there is nothing to stop, and how it ends is its own.
        with contextlib.suppress(ForkedHandle):
            await self.close()


async def _done(result: Any) -> None:  # noqa: ANN401 - what a client or a manager returns
    """Await what an asyncio client returns; a manager has done it already."""
    if inspect.isawaitable(result):
        await result


async def _begin(beginning: Beginning, child: Child) -> None:
    while not beginning.is_over():
        await _wait([child.pidfd, child.channel], beginning.left())


async def _wait_for_ends(children: Iterable[Child], seconds: float) -> None:
    """Wait until children have ended, for so long at most."""
    deadline = time.monotonic() + seconds
    for child in list(children):
        while not child.has_ended() and (left := deadline - time.monotonic()) > 0:
            await _wait([child.pidfd], left)


async def _wait(descriptors: list[int | None], seconds: float) -> None:
    """Wait until a descriptor is readable, for so long at most."""
    # A loop calls one reader a descriptor, and several tasks may wait for one child.
    copies = [descriptor for descriptor in map(_copy, descriptors) if descriptor is not None]
    loop = asyncio.get_running_loop()
    changed = loop.create_future()

    def wake() -> None:
        if not changed.done():
            changed.set_result(None)

    is_told = len(copies) == len(descriptors)
    timer = loop.call_later(seconds if is_told else min(seconds, LOOK), wake)
    try:
        for copy in copies:
            loop.add_reader(copy, wake)
        await changed
    finally:
        timer.cancel()
        for copy in copies:
            loop.remove_reader(copy)
            os.close(copy)


def _copy(descriptor: int | None) -> int | None:
    """Return a copy of a descriptor, or None where there is none, or no more can be had."""
    try:
        return None if descriptor is None else os.dup(descriptor)
    except OSError:
        return None
