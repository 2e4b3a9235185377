"""``AsyncSessionSupervisor``: as ``SessionSupervisor``, in a loop and without a thread."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import signal
import threading
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import agents
import pytest
from agents import ENVIRONMENT, READY, SLEEP, STUBBORN, is_running, lines, processes_with, python
from host import in_child

from jidoka_shm import (
    AsyncSessionClient,
    AsyncSessionSupervisor,
    ForkedHandle,
    RecordTooLarge,
    RegistryClosed,
    SessionClient,
    SessionManager,
    SessionNotStarted,
    SessionNotSupervised,
    SessionReader,
    WriterUnavailable,
    asyncsupervisor,
    children,
    crew,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from uuid import UUID

    from jidoka_shm import Session

#: Only catches hanging, in seconds.
LIMIT = 60.0


class Failing:
    """An asyncio client as a supervisor sees it, whose changes fail from when a test says so."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager
        self.name = manager.name
        self.get = manager.get
        self.failing: set[str] = set()

    async def _do(self, which: str, *arguments: Any, **fields: Any) -> Any:  # noqa: ANN401 - as the manager
        await asyncio.sleep(0)
        if which in self.failing:
            raise WriterUnavailable(self.name)
        return getattr(self._manager, which)(*arguments, **fields)

    async def create_session(self, *arguments: Any, **fields: Any) -> UUID:  # noqa: ANN401 - as above
        sid: UUID = await self._do("create_session", *arguments, **fields)
        return sid

    async def update_session(self, *arguments: Any, **fields: Any) -> Session:  # noqa: ANN401 - as above
        session: Session = await self._do("update_session", *arguments, **fields)
        return session

    async def terminate_session(self, *arguments: Any, **fields: Any) -> None:  # noqa: ANN401 - as above
        await self._do("terminate_session", *arguments, **fields)


@pytest.fixture
def manager(name: str) -> Iterator[SessionManager]:
    """A manager in whose registry what is terminated stays visible, and which answers clients."""
    with SessionManager(name, capacity=64, cleanup_delay=3600, listen=True) as made:
        yield made
        made.unlink()


@pytest.fixture(params=["manager", "client"])
def handle(request: pytest.FixtureRequest, manager: SessionManager) -> Any:  # noqa: ANN401 - either
    """What a supervisor takes."""
    return manager if request.param == "manager" else AsyncSessionClient(manager.name)


def run(
    handle: Any,  # noqa: ANN401 - what the fixture gives
    work: Callable[[AsyncSessionSupervisor], Coroutine[Any, Any, None]],
) -> None:
    """Do work in a loop of its own, with a supervisor; no thread is started for it."""
    before = threading.enumerate()

    async def supervised() -> None:
        async with AsyncExitStack() as stack:
            if isinstance(handle, AsyncSessionClient):
                await stack.enter_async_context(handle)
            supervisor = await stack.enter_async_context(AsyncSessionSupervisor(handle))
            await asyncio.wait_for(work(supervisor), LIMIT)
            assert threading.enumerate() == before
        # One that has just ended is taken out at the loop's next turn.
        assert all(task.done() for task in supervisor._tasks)

    asyncio.run(supervised())


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition; the limit of ``run`` catches hanging."""
    while not condition():  # noqa: ASYNC110 - processes set no event
        await asyncio.sleep(0.001)


def is_there(pid: int | None) -> bool:
    """Return whether a process is there, if as a zombie."""
    return Path(f"/proc/{pid}").exists()


async def start(supervisor: AsyncSessionSupervisor, code: str) -> UUID:
    """Start a session that runs Python code."""
    return await supervisor.start_session(python(code), env=ENVIRONMENT)


# ---------------------------------------------------------------------------- starting, stopping


def test_a_session_lives_from_start_to_stop(
    manager: SessionManager,
    handle: Any,  # noqa: ANN401 - either
    tmp_path: Path,
) -> None:
    async def work(supervisor: AsyncSessionSupervisor) -> None:
        told = tmp_path / "told"
        call = functools.partial(agents.tell, str(told), "a")
        sid = await supervisor.start_session(call, metadata={"a": 1}, llm_config={"b": 2})
        session = manager[sid]
        assert (session.status, session.metadata) == ("active", {"a": 1})
        assert session.llm_config == {"b": 2}
        assert lines(told) == [f"a initializing True active {session.pid}"]
        assert supervisor.sessions() == {sid: session.pid}
        assert repr(supervisor) == f"AsyncSessionSupervisor({manager.name!r}, 1 sessions)"
        await supervisor.stop_session(sid)
        assert (manager[sid].status, manager[sid].error) == ("terminated", None)
        assert not is_there(session.pid)
        # As terminate_session, while it is visible.
        await supervisor.stop_session(sid)

    run(handle, work)


def test_a_session_may_be_active_at_once(
    manager: SessionManager,
    handle: Any,  # noqa: ANN401 - either
) -> None:
    async def work(supervisor: AsyncSessionSupervisor) -> None:
        sid = await supervisor.start_session(SLEEP, ready=False)
        assert manager[sid].status == "active"

    run(handle, work)


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        (["no-such-program"], "no such program"),
        (["false"], "it exited with status 1 before it was ready"),
        (SLEEP, r"not ready within 0\.2 s"),
    ],
)
def test_a_start_that_fails_leaves_nothing(
    manager: SessionManager,
    handle: Any,  # noqa: ANN401 - either
    runs: list[str],
    text: str,
) -> None:
    async def work(supervisor: AsyncSessionSupervisor) -> None:
        with pytest.raises(SessionNotStarted, match=text):
            await supervisor.start_session(runs, timeout=0.2 if runs is SLEEP else 30)
        with pytest.raises(RecordTooLarge):
            await supervisor.start_session(SLEEP, metadata={"a": "x" * (1 << 20)})
        assert manager.list_sessions() == []
        assert processes_with(manager.name) == set()
        assert len(supervisor) == 0

    run(handle, work)


def test_the_loop_goes_on_while_starts_and_stops_wait(
    manager: SessionManager,
    handle: Any,  # noqa: ANN401 - either
) -> None:
    async def work(supervisor: AsyncSessionSupervisor) -> None:
        starting = asyncio.create_task(supervisor.start_session(SLEEP, timeout=LIMIT))
        stubborn, *sids = await asyncio.gather(
            start(supervisor, STUBBORN),
            *[supervisor.start_session(SLEEP, ready=False) for _ in range(5)],
        )
        stopping = asyncio.create_task(supervisor.stop_session(stubborn, timeout=LIMIT))
        await asyncio.gather(*[supervisor.stop_session(sid, timeout=LIMIT) for sid in sids])
        assert {manager[sid].status for sid in sids} == {"terminated"}
        assert not starting.done()
        assert not stopping.done()
        os.kill(manager[stubborn].pid or 0, signal.SIGKILL)
        await stopping
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert processes_with(manager.name) == set()
        assert manager.list_sessions() == []

    run(handle, work)


def test_what_does_not_end_in_time_is_killed(
    manager: SessionManager,
    handle: Any,  # noqa: ANN401 - either
) -> None:
    async def work(supervisor: AsyncSessionSupervisor) -> None:
        sid = await start(supervisor, STUBBORN)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(supervisor.stop_session(sid, timeout=LIMIT), 0.01)
        # A stop that was cancelled may be made again.
        assert manager[sid].status == "terminating"
        await supervisor.stop_session(sid, timeout=0.01)
        assert "SIGKILL" in (manager[sid].error or "")

    run(handle, work)


def test_only_what_was_started_here_is_stopped_here(manager: SessionManager) -> None:
    async def work(supervisor: AsyncSessionSupervisor) -> None:
        sid = manager.create_session()
        with pytest.raises(SessionNotSupervised):
            await supervisor.stop_session(sid)
        with pytest.raises(ValueError, match="timeout"):
            await supervisor.stop_session(sid, timeout=-1)

    run(manager, work)


# ---------------------------------------------------------------------------- ends


def test_the_end_of_a_process_is_the_end_of_its_session(
    manager: SessionManager,
    handle: Any,  # noqa: ANN401 - either
    tmp_path: Path,
) -> None:
    async def work(supervisor: AsyncSessionSupervisor) -> None:
        call = functools.partial(agents.tell, str(tmp_path / "told"), status=3)
        sid = await supervisor.start_session(call)
        pid = manager[sid].pid
        await until(lambda: not is_there(pid))
        assert manager[sid].error == f"owner process {pid} exited with status 3"
        assert supervisor.sessions() == {}

    run(handle, work)


def test_the_end_of_a_session_is_the_end_of_its_process(
    manager: SessionManager,
    handle: Any,  # noqa: ANN401 - either
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asyncsupervisor, "TICK", 0.01)
    monkeypatch.setattr(crew, "_GRACE", 0.01)

    async def work(supervisor: AsyncSessionSupervisor) -> None:
        for sid in (await start(supervisor, READY), await start(supervisor, STUBBORN)):
            manager.terminate_session(sid)
        await until(lambda: processes_with(manager.name) == set())
        await until(lambda: len(supervisor) == 0)

    run(handle, work)


def test_where_pidfds_are_refused_ends_are_looked_for(
    manager: SessionManager,
    handle: Any,  # noqa: ANN401 - either
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: int) -> int:
        raise PermissionError

    monkeypatch.setattr(children.os, "pidfd_open", refuse)

    async def work(supervisor: AsyncSessionSupervisor) -> None:
        sid = await start(supervisor, READY)
        other = await supervisor.start_session(SLEEP, ready=False)
        os.kill(manager[other].pid or 0, signal.SIGKILL)
        await until(lambda: set(supervisor._children) == {sid})
        await supervisor.stop_session(sid)

    run(handle, work)


def test_a_stop_that_cannot_be_told_of_is_a_stop_all_the_same(manager: SessionManager) -> None:
    handle = Failing(manager)

    async def work(supervisor: AsyncSessionSupervisor) -> None:
        sid = await supervisor.start_session(SLEEP, ready=False)
        pid = manager[sid].pid or 0
        handle.failing |= {"update_session", "terminate_session"}
        with pytest.raises(WriterUnavailable):
            await supervisor.stop_session(sid)
        assert not is_running(pid)
        await supervisor.close()

    run(handle, work)


class Watched(AsyncSessionClient):
    """A client in whose registry each new session is stopped by whoever sees it first."""

    supervisor: AsyncSessionSupervisor

    async def create_session(self, *arguments: Any, **fields: Any) -> UUID:  # noqa: ANN401 - as it is
        sid = await super().create_session(*arguments, **fields)
        await self.supervisor.stop_session(sid)
        return sid


def test_a_session_can_be_stopped_as_soon_as_it_is_seen(manager: SessionManager) -> None:
    client = Watched(manager.name)

    async def work(supervisor: AsyncSessionSupervisor) -> None:
        client.supervisor = supervisor
        with pytest.raises(SessionNotStarted):
            await supervisor.start_session(SLEEP, ready=False)
        assert not supervisor.sessions()
        (session,) = manager.list_sessions("terminated")
        assert session.error is None

    run(client, work)


class Together:
    """A handle that answers the ends of sessions once so many are asked for at a time."""

    def __init__(self, manager: SessionManager, count: int) -> None:
        self.name = manager.name
        self.get = manager.get
        self.create_session = manager.create_session
        self.update_session = manager.update_session
        self._manager = manager
        self._waiting = count
        self._all_there = asyncio.Event()

    async def terminate_session(self, sid: UUID, *, error: str | None) -> None:
        self._waiting -= 1
        if self._waiting <= 0:
            self._all_there.set()
        await self._all_there.wait()
        self._manager.terminate_session(sid, error=error)


def test_the_ends_of_all_sessions_are_told_together(manager: SessionManager) -> None:
    async def work() -> None:
        # By the close and, of each, by the task that sees to its end.
        async with AsyncSessionSupervisor(Together(manager, 10)) as supervisor:
            sids = [await supervisor.start_session(SLEEP, ready=False) for _ in range(5)]
        assert {manager[sid].status for sid in sids} == {"terminated"}

    asyncio.run(asyncio.wait_for(work(), LIMIT))


def test_a_cancellation_in_the_middle_of_a_start_that_fails_leaves_nothing(
    manager: SessionManager,
    handle: Any,  # noqa: ANN401 - either
) -> None:
    async def work(supervisor: AsyncSessionSupervisor) -> None:
        starting = asyncio.create_task(supervisor.start_session(SLEEP, timeout=LIMIT))
        await until(supervisor.sessions)
        (pid,) = supervisor.sessions().values()
        for _ in range(3):
            starting.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await starting
        await until(lambda: not is_there(pid))
        await until(lambda: not manager.list_sessions())

    run(handle, work)


# ---------------------------------------------------------------------------- the end, forks


def test_leaving_stops_all_sessions_together(
    manager: SessionManager,
    handle: Any,  # noqa: ANN401 - either
) -> None:
    async def work(supervisor: AsyncSessionSupervisor) -> None:
        sids = [await supervisor.start_session(SLEEP, ready=False) for _ in range(3)]
        await supervisor.close(timeout=0.1)
        assert {manager[sid].status for sid in sids} == {"terminated"}
        with pytest.raises(RegistryClosed, match="this supervisor is closed"):
            await supervisor.start_session(SLEEP)
        await supervisor.close()

    run(handle, work)


def test_a_loop_that_ends_without_a_close_leaves_its_sessions_to_their_processes(
    manager: SessionManager,
) -> None:
    sids: list[UUID] = []

    async def forget() -> None:
        supervisor = AsyncSessionSupervisor(manager)
        sids.append(await supervisor.start_session(SLEEP, ready=False))

    def run_and_collect() -> None:
        asyncio.run(forget())
        gc.collect()

    with pytest.warns(ResourceWarning, match="is still running"):
        run_and_collect()
    pid = manager[sids[0]].pid or 0
    assert (manager[sids[0]].status, is_running(pid)) == ("active", True)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_forked_child_has_no_supervisor(
    manager: SessionManager,
    handle: Any,  # noqa: ANN401 - either
) -> None:
    async def work(supervisor: AsyncSessionSupervisor) -> None:
        sid = await supervisor.start_session(SLEEP, ready=False)

        def child() -> None:
            for refused in (
                lambda: supervisor.start_session(SLEEP),
                lambda: supervisor.stop_session(sid),
                supervisor.close,
            ):
                with pytest.raises(ForkedHandle):
                    refused().send(None)

        assert in_child(child) == 0
        assert manager[sid].status == "active"

    run(handle, work)


def test_only_what_changes_sessions_can_be_supervised(manager: SessionManager, name: str) -> None:
    with SessionReader(name) as reader, pytest.raises(TypeError, match="not a SessionReader"):
        AsyncSessionSupervisor(reader)  # type: ignore[arg-type]
    with SessionClient(name) as client, pytest.raises(TypeError, match="an AsyncSessionClient"):
        AsyncSessionSupervisor(client)
