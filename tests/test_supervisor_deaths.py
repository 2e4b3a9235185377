"""A supervisor that is killed at any moment: no session without a process, none without a session."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from agents import ENVIRONMENT, SLEEP, error_of, is_running, processes_with, python
from host import exit_code, forked, stop_at_line
from support import wait_until

from jidoka_shm import SessionClient, SessionManager, SessionSupervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

#: What session_ready() does, without the package, which takes a while to load.
QUICK = """
import os, time
channel = int(os.environ["JIDOKA_READY_FD"].split(":")[0])
os.write(channel, b"r")
os.read(channel, 1)
time.sleep(1000)
"""


#: Each variable is looked at, in lines of its own.
FEW = {"PATH": os.environ["PATH"]}

#: A start and a stop have more lines than that, so who is to be killed there is killed.
CERTAIN = 200


@pytest.fixture
def manager(name: str) -> Iterator[SessionManager]:
    """The writer, which is not killed; it leaves no process of the registry's."""
    with SessionManager(name, capacity=64, cleanup_delay=3600, listen=True) as made:
        yield made
        for pid in processes_with(name):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not processes_with(name))
        made.unlink()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _is_gate(pid: int) -> bool:
    with suppress(OSError):
        return b"/gate.py\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _is_settled(manager: SessionManager) -> bool:
    """Return whether each process has a session, each session a process, and no gate is left."""
    processes = processes_with(manager.name)
    owners = {session.pid for session in manager.list_sessions()}
    return processes == owners and not any(map(_is_gate, processes))


def _start(supervisor: SessionSupervisor) -> UUID:
    return supervisor.start_session(python(QUICK), env=FEW)


def _start_at_once(supervisor: SessionSupervisor) -> UUID:
    return supervisor.start_session(SLEEP, env=FEW, ready=False)


def _killed_at(name: str, number: int, work: Callable[[SessionSupervisor], object]) -> int:
    """Have a supervisor killed at a line of its work, and return its exit code."""

    def live() -> None:
        with SessionClient(name) as client:
            supervisor = SessionSupervisor(client)
            stop_at_line(number, lambda: work(supervisor), _kill)

    return exit_code(forked(live))


#: From where its process is started. The last lines are beyond those that there are.
@pytest.mark.parametrize("start", [_start, _start_at_once])
@pytest.mark.parametrize("number", [*range(70, 650, 23), 10_000])
def test_a_start_that_is_killed_leaves_a_session_and_its_process_or_neither(
    manager: SessionManager, name: str, number: int, start: Callable[[SessionSupervisor], UUID]
) -> None:
    code = _killed_at(name, number, start)
    assert code == -signal.SIGKILL or (code == 0 and number > CERTAIN)
    wait_until(lambda: _is_settled(manager))
    if code == 0:
        # Dropped without a close, it leaves its session to its process.
        (session,) = manager.list_sessions()
        assert (session.status, is_running(session.pid or 0)) == ("active", True)


@pytest.mark.parametrize("number", range(20, 430, 23))
def test_a_stop_that_is_killed_leaves_a_session_and_its_process_or_neither(
    manager: SessionManager, name: str, number: int
) -> None:
    def live() -> None:
        with SessionClient(name) as client:
            supervisor = SessionSupervisor(client)
            sid = _start_at_once(supervisor)
            stop_at_line(number, lambda: supervisor.stop_session(sid), _kill)

    code = exit_code(forked(live))
    assert code == -signal.SIGKILL or (code == 0 and number > CERTAIN)
    wait_until(lambda: _is_settled(manager))


def test_sessions_outlive_their_supervisor_and_end_with_their_processes(
    manager: SessionManager, name: str
) -> None:
    def live() -> None:
        supervisor = SessionSupervisor(SessionClient(name))
        for _ in range(3):
            _start(supervisor)
        _kill()

    assert exit_code(forked(live)) == -signal.SIGKILL
    sessions = manager.list_sessions()
    assert [session.status for session in sessions] == ["active"] * 3
    assert processes_with(name) == {session.pid for session in sessions}
    for session in sessions:
        os.kill(session.pid or 0, signal.SIGKILL)
        # Who is nobody's child of the writer's says no more.
        assert error_of(manager, session.session_id) == f"owner process {session.pid} ended"


def test_a_program_that_waits_to_be_active_goes_on_without_its_supervisor(
    manager: SessionManager, name: str, tmp_path: Path
) -> None:
    code = """
import os, signal, sys
from jidoka_shm import session_ready
print(session_ready(), flush=True)
signal.pause()
"""

    class Killed(SessionClient):
        def update_session(self, *_: object, **__: object) -> None:  # type: ignore[override]
            _kill()

    def live() -> None:
        with (tmp_path / "out").open("w") as out:
            SessionSupervisor(Killed(name)).start_session(python(code), stdout=out, env=ENVIRONMENT)

    assert exit_code(forked(live)) == -signal.SIGKILL
    wait_until((tmp_path / "out").read_text)
    assert (tmp_path / "out").read_text() == "False\n"
    assert [session.status for session in manager.list_sessions()] == ["initializing"]


def test_a_gate_ends_though_a_fork_of_its_parent_lives_on(
    manager: SessionManager, name: str
) -> None:
    end, keep = os.pipe()

    class Forking(SessionClient):
        """Forks a process that knows nothing of the gate, and is killed."""

        def create_session(self, *arguments: object, **fields: object) -> UUID:  # type: ignore[override]
            super().create_session(*arguments, **fields)  # type: ignore[arg-type]
            if not os.fork():
                os.close(keep)
                os.read(end, 1)
                os._exit(0)
            _kill()
            raise AssertionError

    def live() -> None:
        supervisor = SessionSupervisor(Forking(name))
        # It is in no list that a fork looks through.
        supervisor.start_session(SLEEP)

    assert exit_code(forked(live)) == -signal.SIGKILL
    wait_until(lambda: processes_with(name) == set() and manager.list_sessions() == [])
    os.close(keep)
    os.close(end)
