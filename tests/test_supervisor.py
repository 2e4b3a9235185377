"""``SessionSupervisor``: sessions with a process each, started, watched and stopped."""

from __future__ import annotations

import functools
import gc
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import agents
import pytest
from agents import (
    ENVIRONMENT,
    READY,
    SLEEP,
    STUBBORN,
    error_of,
    is_running,
    lines,
    processes_with,
    python,
)
from host import Script, in_child, stop, stop_at_line
from support import wait_until

from jidoka_shm import (
    AsyncSessionSupervisor,
    ForkedHandle,
    InvalidMetadata,
    InvalidSessionId,
    RecordTooLarge,
    RegistryClosed,
    RegistryFull,
    SessionClient,
    SessionManager,
    SessionNotStarted,
    SessionNotSupervised,
    SessionReader,
    SessionSupervisor,
    WriterUnavailable,
    children,
    crew,
)
from jidoka_shm import supervisor as supervisor_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from jidoka_shm import Session
    from jidoka_shm.maps import Map


@pytest.fixture
def manager(name: str) -> Iterator[SessionManager]:
    """A manager in whose registry what is terminated stays visible."""
    with SessionManager(name, capacity=64, grow=False, cleanup_delay=3600) as made:
        yield made
        made.unlink()


@pytest.fixture
def supervisor(manager: SessionManager) -> Iterator[SessionSupervisor]:
    """A supervisor over the manager."""
    with SessionSupervisor(manager) as made:
        yield made


def start(supervisor: SessionSupervisor, code: str, *arguments: object, **options: Any) -> UUID:  # noqa: ANN401 - start_session's
    """Start a session that runs Python code."""
    options.setdefault("env", ENVIRONMENT)
    return supervisor.start_session(python(code, *arguments), **options)


# ---------------------------------------------------------------------------- starting


def test_a_session_is_active_once_its_process_is_ready(
    manager: SessionManager, supervisor: SessionSupervisor, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    work = functools.partial(agents.tell, str(told), "a", 5)
    sid = supervisor.start_session(work, metadata={"a": 1}, llm_config={"model": "small"})
    session = manager[sid]
    assert (session.status, session.metadata) == ("active", {"a": 1})
    assert session.llm_config == {"model": "small"}
    # It was initializing before, and active when session_ready() returned.
    assert lines(told) == [f"a 5 initializing True active {session.pid}"]
    assert supervisor.sessions() == {sid: session.pid}
    assert len(supervisor) == 1


def test_a_command_is_told_whose_process_it_is(
    manager: SessionManager, supervisor: SessionSupervisor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    environment = {"PATH": os.environ["PATH"], "MINE": "ü", "JIDOKA_READY_FD": "2:2"}
    with out.open("w") as file:
        sid = supervisor.start_session(["env"], env=environment, ready=False, stdout=file)
    error_of(manager, sid)
    expected = {
        f"PATH={os.environ['PATH']}",
        "MINE=ü",
        f"JIDOKA_SHM_NAME={manager.name}",
        f"JIDOKA_SESSION_ID={sid}",
    }
    # Nothing else: no LC_CTYPE of an interpreter's, nor a descriptor that is somebody else's.
    assert set(out.read_text().splitlines()) == expected


def test_without_waiting_a_session_is_active_before_its_program_begins(
    supervisor: SessionSupervisor, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    supervisor.start_session(functools.partial(agents.tell, str(told)), ready=False)
    (line,) = lines(told)
    assert line.startswith("active False active")


def test_a_program_runs_where_it_is_told(
    manager: SessionManager, supervisor: SessionSupervisor, tmp_path: Path
) -> None:
    script = tmp_path / "agent"
    script.write_text("#!/bin/sh\npwd\nreadlink /proc/self/fd/0\necho wrong >&2\n")
    script.chmod(0o755)
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("w") as stdout, err.open("w") as stderr:
        sid = supervisor.start_session(
            ["./agent"], cwd=tmp_path, ready=False, stdout=stdout, stderr=stderr
        )
        error_of(manager, sid)
    assert out.read_text() == f"{tmp_path}\n/dev/null\n"
    assert err.read_text() == "wrong\n"


def test_a_method_of_a_class_can_be_called(supervisor: SessionSupervisor, tmp_path: Path) -> None:
    supervisor.start_session(functools.partial(agents.Agent.run, str(tmp_path / "told")))
    assert lines(tmp_path / "told")[0].startswith("Agent initializing True active")


def test_a_script_starts_functions_of_its_own(
    name: str, tmp_path: Path, manager: SessionManager
) -> None:
    script = tmp_path / "agent_script.py"
    script.write_text(
        "import signal, sys\n"
        "from jidoka_shm import SessionManager, SessionSupervisor, session_ready\n"
        "def work():\n"
        "    session_ready()\n"
        "    signal.pause()\n"
        "if __name__ == '__main__':\n"
        "    with SessionManager(sys.argv[1]) as manager, SessionSupervisor(manager) as sessions:\n"
        "        print(manager[sessions.start_session(work, cwd='/')].status)\n"
        "    manager.unlink()\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", str(script), f"{name}-script"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.stdout, run.stderr, run.returncode) == ("active\n", "", 0)


def test_a_script_that_starts_sessions_as_it_is_imported_starts_no_endless_row(
    name: str, tmp_path: Path
) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import sys\n"
        "from jidoka_shm import SessionClient, SessionSupervisor\n"
        "def work():\n"
        "    pass\n"
        f"with SessionClient({name!r}) as client, SessionSupervisor(client) as sessions:\n"
        "    sessions.start_session(work)\n"
    )
    with SessionManager(name, listen=True) as manager:
        run = subprocess.run(
            [sys.executable, str(script)],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "start sessions under if __name__ == '__main__'" in run.stderr
        assert "SessionNotStarted: no session runs unguarded:work" in run.stderr
        # The script's own, and not one for each process that imported it.
        assert manager.stats().created == 1
        manager.unlink()


def test_a_session_may_start_sessions_before_it_is_ready(
    name: str, supervisor: SessionSupervisor, tmp_path: Path
) -> None:
    code = """
import os, sys
from jidoka_shm import SessionManager, SessionSupervisor, session_ready
with SessionManager(os.environ["JIDOKA_SHM_NAME"] + "-inner") as manager:
    with SessionSupervisor(manager) as inner:
        sid = inner.start_session([sys.executable, "-c", sys.argv[1]])
        print(manager[sid].status, session_ready(), flush=True)
    manager.unlink()
"""
    with (tmp_path / "out").open("w") as out:
        sid = start(supervisor, code, READY, stdout=out)
    assert lines(tmp_path / "out") == ["active True"]
    error_of(supervisor._handle, sid)


def test_a_program_begins_with_no_signal_blocked_or_ignored(
    manager: SessionManager, supervisor: SessionSupervisor, tmp_path: Path
) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with (tmp_path / "out").open("w") as out:
            sid = supervisor.start_session(
                ["grep", "Sig[BI]", "/proc/self/status"], ready=False, stdout=out
            )
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    error_of(manager, sid)
    assert (tmp_path / "out").read_text().split() == ["SigBlk:", "0" * 16, "SigIgn:", "0" * 16]


def test_a_program_inherits_no_descriptor_but_the_one_by_which_it_is_ready(
    supervisor: SessionSupervisor, tmp_path: Path
) -> None:
    code = """
import os, subprocess, sys
from jidoka_shm.ready import session_ready
def say(word):
    print(word, sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(
        f"/proc/self/fd/{fd}")), "JIDOKA_READY_FD" in os.environ, flush=True)
say("before")
session_ready()
say("after")
os.system("ls /proc/self/fd | wc -l; env | grep -c READY")
"""
    leaky = os.open("/dev/null", os.O_RDONLY)
    with (tmp_path / "out").open("w") as out:
        start(supervisor, code, stdout=out)
    os.close(leaky)
    before, after, *grandchild = lines(tmp_path / "out", 4)
    assert after == "after [0, 1, 2] False"
    assert before.startswith("before [0, 1, 2, ")
    assert (before.count(","), before.endswith("True")) == (3, True)
    # ls has one of its own.
    assert grandchild == ["4", "0"]


# ---------------------------------------------------------------------------- starts that fail


def _no_interpreter(tmp_path: Path) -> str:
    """Return a script that can be found and not be executed."""
    script = tmp_path / "script"
    script.write_text("#!/nonexistent/interpreter\n")
    script.chmod(0o755)
    return str(script)


_UNSTARTABLE: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "not found": (SessionNotStarted, "no such program", {"runs": ["no-such-program"]}),
    "not found in its own path": (
        SessionNotStarted,
        "no such program",
        {"runs": ["sleep", "1"], "env": {"PATH": "/nonexistent"}},
    ),
    "not executable": (SessionNotStarted, "no such program", {"runs": ["/etc/passwd"]}),
    "a directory": (SessionNotStarted, "no such program", {"runs": ["/usr"]}),
    "no directory": (SessionNotStarted, "'/nonexistent'", {"runs": SLEEP, "cwd": "/nonexistent"}),
    "a file as directory": (
        SessionNotStarted,
        "'/etc/passwd'",
        {"runs": SLEEP, "cwd": "/etc/passwd"},
    ),
    "a shell's line": (TypeError, "no shell reads it", {"runs": "sleep 5"}),
    "bytes": (TypeError, "no shell reads it", {"runs": b"sleep"}),
    "nothing": (ValueError, "no command", {"runs": []}),
    "an empty name": (ValueError, "no command", {"runs": ["", "5"]}),
    "a number": (TypeError, "something else than str", {"runs": ["sleep", 5]}),
    "a zero byte": (ValueError, "no command", {"runs": ["sleep", "\0"]}),
    "not a sequence": (TypeError, "of type int", {"runs": 5}),
    "a lambda": (ValueError, "cannot be found by its name", {"runs": lambda: None}),
    "a method of an object": (
        ValueError,
        "cannot be found by its name",
        {"runs": threading.Event().wait},
    ),
    "arguments that are no JSON": (
        InvalidMetadata,
        r'arguments\["args"\]\[0\]',
        {"runs": functools.partial(agents.tell, {1})},
    ),
    "an environment that is none": (TypeError, "env is of type list", {"runs": SLEEP, "env": []}),
    "an environment of numbers": (TypeError, "must be str", {"runs": SLEEP, "env": {"A": 1}}),
    "a variable that cannot be": (ValueError, "'A=B'", {"runs": SLEEP, "env": {"A=B": "1"}}),
    "a wrong ready": (TypeError, "ready is of type int", {"runs": SLEEP, "ready": 1}),
    "a wrong timeout": (ValueError, "timeout is -1", {"runs": SLEEP, "timeout": -1}),
    "a lone surrogate": (ValueError, "no command", {"runs": ["sleep", "\ud800"]}),
    "a lone surrogate in the environment": (
        ValueError,
        "no environment can hold",
        {"runs": SLEEP, "env": {"A": "\ud800"}},
    ),
    "a number as directory": (TypeError, "cwd is of type int", {"runs": SLEEP, "cwd": 5}),
    "arguments without end": (
        SessionNotStarted,
        "Argument list too long",
        {"runs": ["echo", "x" * 300_000]},
    ),
    "text as output": (TypeError, "stdout is of type str", {"runs": SLEEP, "stdout": "a"}),
    "a flag as output": (TypeError, "stderr is of type bool", {"runs": SLEEP, "stderr": True}),
    "no descriptor": (SessionNotStarted, "Bad file descriptor", {"runs": SLEEP, "stdout": 999}),
    "a wrong output": (ValueError, "stdout", {"runs": SLEEP, "stdout": subprocess.PIPE}),
    "a wrong error output": (ValueError, "stderr", {"runs": SLEEP, "stderr": subprocess.PIPE}),
}


@pytest.mark.parametrize("case", _UNSTARTABLE)
def test_what_cannot_be_started_changes_nothing(
    manager: SessionManager, supervisor: SessionSupervisor, case: str
) -> None:
    kind, text, options = _UNSTARTABLE[case]
    with pytest.raises(kind, match=text):
        supervisor.start_session(options.pop("runs"), **options)
    assert manager.version == 0
    assert len(supervisor) == 0


@pytest.mark.parametrize("ready", [True, False])
def test_a_program_that_cannot_be_executed_leaves_no_session(
    manager: SessionManager, supervisor: SessionSupervisor, tmp_path: Path, *, ready: bool
) -> None:
    with pytest.raises(SessionNotStarted, match="No such file or directory"):
        supervisor.start_session([_no_interpreter(tmp_path)], ready=ready)
    assert manager.list_sessions() == []
    assert [session.status for session in manager.values()] == ["terminated"]


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        ("import sys; sys.exit(3)", 3, "it exited with status 3 before it was ready"),
        ("pass", 0, "it exited with status 0 before it was ready"),
        ("import os; os.kill(os.getpid(), 9)", -9, r"it was killed by signal 9 \(SIGKILL\)"),
    ],
)
def test_a_process_that_ends_before_it_is_ready_leaves_no_session(
    manager: SessionManager,
    supervisor: SessionSupervisor,
    code: str,
    status: int | None,
    text: str,
) -> None:
    with pytest.raises(SessionNotStarted, match=text) as failed:
        start(supervisor, code)
    assert failed.value.exit_status == status
    assert manager.list_sessions() == []
    assert len(supervisor) == 0


def test_a_program_that_closes_its_descriptor_will_not_be_ready(
    manager: SessionManager, supervisor: SessionSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "_ENDING", 0.05)
    with pytest.raises(SessionNotStarted, match="it closed its descriptor"):
        start(supervisor, "import os, signal; os.closerange(3, 99); signal.pause()")
    assert processes_with(manager.name) == set()


def test_a_callable_that_raises_says_so_where_errors_go(
    manager: SessionManager, supervisor: SessionSupervisor, tmp_path: Path
) -> None:
    with (tmp_path / "err").open("w") as err, pytest.raises(SessionNotStarted) as failed:
        supervisor.start_session(agents.fail, stderr=err)
    assert failed.value.exit_status == 1
    assert "LookupError: it cannot" in (tmp_path / "err").read_text()
    assert manager.list_sessions() == []


def test_a_process_that_is_not_ready_in_time_is_killed(
    manager: SessionManager, supervisor: SessionSupervisor
) -> None:
    with pytest.raises(SessionNotStarted, match=r"not ready within 0\.1 s"):
        supervisor.start_session(SLEEP, timeout=0.1)
    assert manager.list_sessions() == []
    assert processes_with(manager.name) == set()


@pytest.mark.parametrize("ready", [True, False])
def test_the_end_of_a_start_is_seen_to_by_who_starts(
    manager: SessionManager,
    supervisor: SessionSupervisor,
    monkeypatch: pytest.MonkeyPatch,
    *,
    ready: bool,
) -> None:
    is_over = crew.Beginning.is_over

    def come_after_the_keeper(beginning: crew.Beginning) -> bool:
        wait_until(beginning._child.has_ended)
        supervisor._look()
        return is_over(beginning)

    monkeypatch.setattr(crew.Beginning, "is_over", come_after_the_keeper)
    if ready:
        with pytest.raises(SessionNotStarted, match="exited with status 3") as failed:
            supervisor.start_session(["sh", "-c", "sleep 1000 & exit 3"])
        assert failed.value.exit_status == 3
        wait_until(lambda: processes_with(manager.name) == set())
    else:
        supervisor.start_session(["true"], ready=False)


def test_a_program_that_is_over_at_once_was_started_all_the_same(
    manager: SessionManager, supervisor: SessionSupervisor
) -> None:
    # More often than its end and its start are seen in one order alone.
    for _ in range(10):
        sid = supervisor.start_session(["true"], ready=False)
        assert error_of(manager, sid) == f"owner process {manager[sid].pid} exited with status 0"
    code = READY.replace("signal.pause()", "")
    sid = start(supervisor, code)
    assert error_of(manager, sid) == f"owner process {manager[sid].pid} exited with status 0"


def test_a_grandchild_that_holds_the_descriptor_hides_no_end(
    manager: SessionManager, supervisor: SessionSupervisor
) -> None:
    with pytest.raises(SessionNotStarted, match="exited with status 3"):
        supervisor.start_session(["sh", "-c", "sleep 1000 & exit 3"])
    # It was of the same group.
    wait_until(lambda: processes_with(manager.name) == set())


def test_a_session_that_the_registry_refuses_has_no_process(
    name: str, manager: SessionManager, supervisor: SessionSupervisor
) -> None:
    with pytest.raises(RecordTooLarge):
        supervisor.start_session(SLEEP, metadata={"a": "x" * (1 << 20)})
    with pytest.raises(InvalidMetadata):
        supervisor.start_session(SLEEP, metadata={"a": {1}})
    for _ in range(64):
        manager.create_session()
    with pytest.raises(RegistryFull):
        supervisor.start_session(SLEEP)
    assert processes_with(name) == set()


def test_without_descriptors_a_session_is_started_whole_or_not_at_all(
    manager: SessionManager, supervisor: SessionSupervisor
) -> None:
    supervisor.stop_session(supervisor.start_session(SLEEP, ready=False))
    wait_until(lambda: not _keepers())
    started, limits = 0, resource.getrlimit(resource.RLIMIT_NOFILE)
    # What a start needs, descriptor by descriptor.
    taken = len(list(Path("/proc/self/fd").iterdir())) - 1
    try:
        for more in range(20):
            resource.setrlimit(resource.RLIMIT_NOFILE, (taken + more, limits[1]))
            try:
                sid = supervisor.start_session(SLEEP, ready=False)
            except (SessionNotStarted, OSError):
                assert len(supervisor) == 0
            else:
                started += 1
                supervisor.stop_session(sid)
            assert manager.list_sessions() == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert 0 < started < 20


def test_a_gate_that_is_killed_is_a_session_that_was_not_started(
    manager: SessionManager, supervisor: SessionSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = manager.create_session

    def kill_first(metadata: Map, llm_config: Map, pid: int, *, session_id: UUID) -> UUID:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return create(metadata, llm_config, pid, session_id=session_id)

    monkeypatch.setattr(manager, "create_session", kill_first)
    with pytest.raises(SessionNotStarted, match=r"killed by signal 9 \(SIGKILL\) before it began"):
        supervisor.start_session(SLEEP)
    assert manager.version == 0


# ---------------------------------------------------------------------------- stopping


def test_a_stopped_session_is_terminated_without_an_error(
    manager: SessionManager, supervisor: SessionSupervisor
) -> None:
    sid = start(supervisor, READY)
    pid = manager[sid].pid
    assert supervisor.stop_session(f"session_{sid}") is None
    assert (manager[sid].status, manager[sid].error) == ("terminated", None)
    assert not Path(f"/proc/{pid}").exists()
    assert supervisor.sessions() == {}
    # As terminate_session, while it is visible.
    supervisor.stop_session(sid)


def test_a_process_is_asked_before_it_is_killed(
    manager: SessionManager, supervisor: SessionSupervisor, tmp_path: Path
) -> None:
    code = """
import os, signal, sys
from jidoka_shm import SessionReader, session_ready
def end(*_):
    with SessionReader(os.environ["JIDOKA_SHM_NAME"]) as reader:
        print(reader.get_session_status(os.environ["JIDOKA_SESSION_ID"]), flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
session_ready()
while True:
    signal.pause()
"""
    with (tmp_path / "out").open("w") as out:
        sid = start(supervisor, code, stdout=out)
    supervisor.stop_session(sid, timeout=60)
    assert (tmp_path / "out").read_text() == "terminating\n"
    assert manager[sid].error is None


def test_what_does_not_end_in_time_is_killed(
    manager: SessionManager, supervisor: SessionSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    sid = start(supervisor, STUBBORN)
    pid = manager[sid].pid
    supervisor.stop_session(sid, timeout=0.05)
    assert manager[sid].error == f"owner process {pid} was killed by signal 9 (SIGKILL)"
    assert f"process {pid} of session {sid} did not end within 0.05 s: killing it" in caplog.text


def test_a_process_that_ends_badly_when_it_is_stopped_says_so(
    manager: SessionManager, supervisor: SessionSupervisor
) -> None:
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(3))" + READY
    sid = start(supervisor, code)
    pid = manager[sid].pid
    supervisor.stop_session(sid)
    assert manager[sid].error == f"owner process {pid} exited with status 3"


def test_a_stop_reaches_what_the_process_has_started(
    name: str, supervisor: SessionSupervisor
) -> None:
    sid = supervisor.start_session(["sh", "-c", "sleep 1000 & sleep 1000"], ready=False)
    wait_until(lambda: len(processes_with(name)) == 3)
    supervisor.stop_session(sid, timeout=60)
    wait_until(lambda: processes_with(name) == set())


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_what_a_process_leaves_behind_is_killed(
    manager: SessionManager, supervisor: SessionSupervisor, tmp_path: Path, end: str
) -> None:
    code = "import subprocess, sys; subprocess.Popen(sys.argv[1:])" + READY
    left = python(
        "import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); signal.pause()"
    )
    with (tmp_path / "out").open("w") as out:
        sid = start(supervisor, code, *left, stdout=out)
        lines(tmp_path / "out")
    if end == "stopped":
        supervisor.stop_session(sid, timeout=60)
    else:
        os.kill(manager[sid].pid or 0, signal.SIGKILL)
    wait_until(lambda: processes_with(manager.name) == set())


def test_a_suspended_process_goes_on_to_end(
    manager: SessionManager, supervisor: SessionSupervisor
) -> None:
    # One that has a handler: the kernel itself ends one that has none.
    sid = start(supervisor, "import signal, sys; signal.signal(15, lambda *_: sys.exit())" + READY)
    os.kill(manager[sid].pid or 0, signal.SIGSTOP)
    supervisor.stop_session(sid, timeout=60)
    assert manager[sid].error is None


def test_twenty_stops_at_once_and_none_waits_for_another(
    manager: SessionManager, supervisor: SessionSupervisor
) -> None:
    stubborn = start(supervisor, STUBBORN)
    sids = [supervisor.start_session(SLEEP, ready=False) for _ in range(19)]
    ended: list[UUID] = []

    def stop(sid: UUID) -> None:
        supervisor.stop_session(sid, timeout=100)
        ended.append(sid)

    threads = [threading.Thread(target=stop, args=[sid]) for sid in (stubborn, *sids)]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join()
    # All others have ended, and what else there is to call works, while the first waits.
    assert set(ended) == set(sids)
    assert {manager[sid].status for sid in sids} == {"terminated"}
    assert manager[stubborn].status == "terminating"
    another = supervisor.start_session(SLEEP, ready=False)
    assert set(supervisor.sessions()) == {stubborn, another}
    supervisor.stop_session(another)
    assert threads[0].is_alive()
    os.kill(manager[stubborn].pid or 0, signal.SIGKILL)
    threads[0].join()
    assert ended[-1] == stubborn


def test_several_threads_may_stop_one_session(
    manager: SessionManager, supervisor: SessionSupervisor
) -> None:
    sid = start(supervisor, STUBBORN)
    failed: list[BaseException] = []

    def stop(timeout: float) -> None:
        try:
            supervisor.stop_session(sid, timeout=timeout)
        except BaseException as error:  # noqa: BLE001 - shown below
            failed.append(error)

    threads = [threading.Thread(target=stop, args=[seconds]) for seconds in (100, 100, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert "SIGKILL" in (manager[sid].error or "")


def test_only_what_was_started_here_is_stopped_here(
    manager: SessionManager, supervisor: SessionSupervisor
) -> None:
    sid = manager.create_session()
    with pytest.raises(SessionNotSupervised, match="terminate_session") as failed:
        supervisor.stop_session(sid)
    assert failed.value.session_id == sid
    with pytest.raises(SessionNotSupervised):
        supervisor.stop_session(uuid4())
    with pytest.raises(InvalidSessionId):
        supervisor.stop_session("nonsense")
    with pytest.raises(ValueError, match="timeout"):
        supervisor.stop_session(sid, timeout=-1)
    with SessionSupervisor(manager) as other:
        mine = other.start_session(SLEEP, ready=False)
        with pytest.raises(SessionNotSupervised):
            supervisor.stop_session(mine)
        assert manager[mine].status == "active"


# ---------------------------------------------------------------------------- ends by themselves


def test_the_end_of_a_process_is_the_end_of_its_session(
    manager: SessionManager, supervisor: SessionSupervisor, tmp_path: Path
) -> None:
    sid = supervisor.start_session(functools.partial(agents.tell, str(tmp_path / "a"), status=3))
    pid = manager[sid].pid
    assert error_of(manager, sid) == f"owner process {pid} exited with status 3"
    # No zombie stays, though nobody calls.
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    wait_until(lambda: supervisor.sessions() == {} and not _keepers())


def _keepers() -> list[str]:
    return [each.name for each in threading.enumerate() if "supervisor" in each.name]


def test_many_ends_at_once_are_all_seen_to(
    manager: SessionManager, supervisor: SessionSupervisor
) -> None:
    sids = [supervisor.start_session(SLEEP, ready=False) for _ in range(20)]
    pids = [manager[sid].pid or 0 for sid in sids]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    errors = [error_of(manager, sid) for sid in sids]
    assert errors == [f"owner process {pid} was killed by signal 9 (SIGKILL)" for pid in pids]
    wait_until(lambda: len(supervisor) == 0 and not any(map(is_running, pids)))


@pytest.mark.parametrize("end", ["terminated", "expired"])
def test_the_end_of_a_session_is_the_end_of_its_process(
    manager: SessionManager,
    supervisor: SessionSupervisor,
    name: str,
    end: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor_module, "TICK", 0.01)
    sid = supervisor.start_session(SLEEP, ready=False)
    if end == "terminated":
        manager.terminate_session(sid, error="enough")
    else:
        manager.update_session(sid, ttl=0.001)
    wait_until(lambda: processes_with(name) == set())
    wait_until(lambda: len(supervisor) == 0)
    assert manager[sid].error == ("enough" if end == "terminated" else "expired")


def test_a_process_that_does_not_end_with_its_session_is_killed(
    manager: SessionManager,
    supervisor: SessionSupervisor,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor_module, "TICK", 0.01)
    monkeypatch.setattr(crew, "_GRACE", 0.01)
    sid = start(supervisor, STUBBORN)
    manager.terminate_session(sid)
    wait_until(lambda: processes_with(name) == set())


def test_another_wait_for_any_child_takes_nothing_from_a_supervisor(
    manager: SessionManager, supervisor: SessionSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It comes first, and takes the status with it: also where the supervisor looks just now.
    monkeypatch.setattr(supervisor, "_finish", lambda *_: None)
    sid = supervisor.start_session(SLEEP, ready=False)
    pid = manager[sid].pid or 0
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0) == (pid, signal.SIGKILL)
    monkeypatch.undo()
    supervisor.stop_session(sid)
    assert manager[sid].status == "terminated"
    assert len(supervisor) == 0


def test_a_child_of_somebody_elses_is_left_to_be_waited_for(supervisor: SessionSupervisor) -> None:
    own = subprocess.Popen(["/bin/sh", "-c", "exit 7"])
    supervisor.stop_session(supervisor.start_session(SLEEP, ready=False))
    assert own.wait() == 7


def test_children_that_the_kernel_waits_for_are_seen_to_end(
    manager: SessionManager, supervisor: SessionSupervisor
) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        sid = supervisor.start_session(SLEEP, ready=False)
        supervisor.stop_session(sid)
        assert manager[sid].status == "terminated"
        with pytest.raises(SessionNotStarted, match="it ended before it was ready"):
            supervisor.start_session(["false"])
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_where_pidfds_are_refused_ends_are_looked_for(
    manager: SessionManager, supervisor: SessionSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> int:
        raise PermissionError

    # The writer's watch goes on with those that it has.
    monkeypatch.setattr(children.os, "pidfd_open", refuse)
    sid, other = start(supervisor, READY), supervisor.start_session(SLEEP, ready=False)
    os.kill(manager[other].pid or 0, signal.SIGKILL)
    wait_until(lambda: set(supervisor.sessions()) == {sid} == set(supervisor._children))
    supervisor.stop_session(sid, timeout=60)
    with pytest.raises(SessionNotStarted, match="status 1"):
        supervisor.start_session(["false"])


# ---------------------------------------------------------------------------- closing


def test_leaving_stops_all_sessions_together(manager: SessionManager, name: str) -> None:
    with SessionSupervisor(manager) as supervisor:
        sids = [supervisor.start_session(SLEEP, ready=False) for _ in range(3)]
        sids.append(start(supervisor, STUBBORN))
        supervisor.close(timeout=0.1)
        assert {manager[sid].status for sid in sids} == {"terminated"}
        assert [manager[sid].error for sid in sids[:3]] == [None] * 3
        assert processes_with(name) == set()
        assert _keepers() == []
        with pytest.raises(RegistryClosed, match="this supervisor is closed"):
            supervisor.start_session(SLEEP)
        supervisor.close()
    assert repr(supervisor) == f"SessionSupervisor({name!r}, 0 sessions, closed)"


def test_a_manager_that_was_closed_before_leaves_no_process(name: str) -> None:
    with SessionManager(name) as manager:
        supervisor = SessionSupervisor(manager)
        sid = supervisor.start_session(SLEEP, ready=False)
        pid = manager[sid].pid
    assert is_running(pid or 0)
    with pytest.raises(RegistryClosed):
        supervisor.stop_session(sid)
    assert not is_running(pid or 0)
    supervisor.close()
    # Its owner being dead, the next writer ends it.
    with SessionManager(name, cleanup_delay=3600) as successor:
        assert error_of(successor, sid) == f"owner process {pid} is gone"
        successor.unlink()


def test_a_close_in_the_middle_of_a_start_ends_both(
    manager: SessionManager, supervisor: SessionSupervisor, name: str
) -> None:
    failed: list[BaseException] = []

    def try_to_start() -> None:
        try:
            supervisor.start_session(SLEEP)
        except SessionNotStarted as error:
            failed.append(error)

    thread = threading.Thread(target=try_to_start)
    thread.start()
    wait_until(lambda: len(supervisor) == 1)
    supervisor.close()
    thread.join()
    assert "killed by signal 15 (SIGTERM) before it was ready" in str(failed[0])
    assert processes_with(name) == set()


@pytest.mark.parametrize("number", range(5, 600, 24))
def test_a_signal_handler_may_close_at_any_line_of_a_start(
    manager: SessionManager, name: str, number: int
) -> None:
    supervisor = SessionSupervisor(manager)
    work = functools.partial(supervisor.start_session, SLEEP, ready=False)
    with suppress(SessionNotStarted, RegistryClosed):
        stop_at_line(number, work, supervisor.close)
    supervisor.close()
    # Those that a start made in the middle of a close end with their owners.
    wait_until(lambda: manager.list_sessions() == [])
    assert processes_with(name) == set()


# One end of a pair that was made and not yet kept is closed by its collection, with a warning.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("number", range(0, 600, 24))
def test_an_interrupt_at_any_line_of_a_start_leaves_nothing(
    manager: SessionManager, name: str, number: int
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    # The lines of what others left to be collected are no lines of a start.
    gc.collect()
    with SessionSupervisor(manager) as supervisor:
        work = functools.partial(supervisor.start_session, SLEEP, ready=False)
        with suppress(KeyboardInterrupt):
            stop_at_line(number, work, interrupt)
    wait_until(lambda: manager.list_sessions() == [])
    assert processes_with(name) == set()


@pytest.mark.parametrize("number", range(3, 400, 40))
def test_an_interrupt_at_any_line_of_a_stop_can_be_followed_by_another_stop(
    manager: SessionManager, name: str, number: int
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    gc.collect()
    with SessionSupervisor(manager) as supervisor:
        sid = supervisor.start_session(SLEEP, ready=False)
        with suppress(KeyboardInterrupt):
            stop_at_line(number, lambda: supervisor.stop_session(sid), interrupt)
        # Or its process has ended, and the writer is about to end the session.
        with suppress(SessionNotSupervised):
            supervisor.stop_session(sid)
        assert processes_with(name) == set()
    wait_until(lambda: manager.list_sessions() == [])


# ---------------------------------------------------------------------------- clients


@pytest.fixture
def service(name: str) -> Iterator[SessionManager]:
    """A manager that listens."""
    with SessionManager(name, capacity=64, cleanup_delay=3600, listen=True) as made:
        yield made
        made.unlink()


def test_a_client_supervises_as_a_manager_does(service: SessionManager, name: str) -> None:
    with SessionClient(name) as client, SessionSupervisor(client) as supervisor:
        sid = start(supervisor, READY)
        assert service[sid].status == "active"
        supervisor.stop_session(sid)
        assert (service[sid].status, service[sid].error) == ("terminated", None)
        with pytest.raises(SessionNotStarted, match="status 1"):
            supervisor.start_session(["false"])


def test_without_a_writer_a_session_is_stopped_and_the_caller_told(name: str) -> None:
    with Script(
        """
        import sys
        from jidoka_shm import SessionManager
        with SessionManager(sys.argv[1], listen=True) as manager:
            print("ready", flush=True)
            sys.stdin.read()
        """,
        name,
    ) as writer:
        writer.line()
        with SessionClient(name) as client, SessionSupervisor(client) as supervisor:
            sid, other = (supervisor.start_session(SLEEP, ready=False) for _ in range(2))
            pid = client[sid].pid or 0
            writer.kill()
            with pytest.raises(WriterUnavailable):
                supervisor.stop_session(sid)
            assert not is_running(pid)
            with pytest.raises(WriterUnavailable):
                supervisor.start_session(SLEEP)
            supervisor.close()
            assert processes_with(name) == set()
    with SessionManager(name, cleanup_delay=3600) as successor:
        for each in (sid, other):
            assert error_of(successor, each) is not None
        successor.unlink()


class Watched(SessionManager):
    """A manager in whose registry each new session is stopped by whoever sees it first."""

    supervisor: SessionSupervisor

    def create_session(self, *arguments: Any, **fields: Any) -> UUID:  # noqa: ANN401 - as it is
        sid = super().create_session(*arguments, **fields)
        self.supervisor.stop_session(sid)
        return sid


def test_a_session_can_be_stopped_as_soon_as_it_is_seen(name: str) -> None:
    with Watched(name, capacity=64, cleanup_delay=3600) as manager:
        with SessionSupervisor(manager) as supervisor:
            manager.supervisor = supervisor
            with pytest.raises(SessionNotStarted):
                supervisor.start_session(SLEEP, ready=False)
            assert not supervisor.sessions()
        (session,) = manager.list_sessions("terminated")
        assert session.error is None
        manager.unlink()


class Counted(SessionClient):
    """A client that counts what it is asked for."""

    updates = ends = 0

    def update_session(self, *arguments: Any, **fields: Any) -> Session:  # noqa: ANN401 - as it is
        self.updates += 1
        return super().update_session(*arguments, **fields)

    def terminate_session(self, *arguments: Any, **fields: Any) -> None:  # noqa: ANN401 - as it is
        self.ends += 1
        super().terminate_session(*arguments, **fields)


def test_a_writer_that_does_not_answer_is_waited_for_once_and_not_once_a_session(name: str) -> None:
    with Script(
        """
        import sys
        from jidoka_shm import SessionManager
        with SessionManager(sys.argv[1], listen=True, fresh=True) as manager:
            print("ready", flush=True)
            sys.stdin.read()
            manager.unlink()
        """,
        name,
    ) as writer:
        writer.line()
        with Counted(name, timeout=0.2) as client, SessionSupervisor(client) as supervisor:
            for _ in range(8):
                supervisor.start_session(SLEEP, ready=False)
            before = client.updates
            stop(writer.pid)
            try:
                supervisor.close()
            finally:
                os.kill(writer.pid, signal.SIGCONT)
            assert processes_with(name) == set()
            assert not supervisor.sessions()
            assert client.updates - before == 1
            # By the caller, and by the thread that sees to ends: to the first alone, and to the rest.
            assert client.ends < 8
            wait_until(lambda: not client.list_sessions())
        writer.close_input()
        writer.end()


def test_only_what_changes_sessions_can_be_supervised(manager: SessionManager, name: str) -> None:
    with SessionReader(name) as reader, pytest.raises(TypeError, match="not a SessionReader"):
        SessionSupervisor(reader)  # type: ignore[arg-type]

    class Awaited:
        name = "a"

        async def create_session(self) -> None: ...

        update_session = terminate_session = create_session

    with pytest.raises(TypeError, match="for an AsyncSessionSupervisor"):
        SessionSupervisor(Awaited())  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- forks and copies


def test_a_forked_child_has_no_supervisor(
    manager: SessionManager, supervisor: SessionSupervisor
) -> None:
    sid = supervisor.start_session(SLEEP, ready=False)
    calls: list[Callable[[], object]] = [
        supervisor.sessions,
        supervisor.close,
        lambda: supervisor.start_session(SLEEP),
        lambda: supervisor.stop_session(sid),
        lambda: len(supervisor),
    ]

    def work() -> None:
        for call in calls:
            with pytest.raises(ForkedHandle, match="belongs to the parent"):
                call()
        assert "forked" in repr(supervisor)
        # As of every handle: a child that ends inside of the parent's block ends in its own way.
        supervisor.__exit__(None, None, None)

    assert in_child(work) == 0
    # The parent's goes on, and so does what it has started.
    assert manager[sid].status == "active"
    supervisor.stop_session(sid)
    assert manager[sid].error is None


def test_a_supervisor_cannot_be_pickled(supervisor: SessionSupervisor) -> None:
    with pytest.raises(TypeError, match="this process's children"):
        pickle.dumps(supervisor)


def test_a_supervisor_shows_how_many_it_has(supervisor: SessionSupervisor, name: str) -> None:
    assert supervisor
    supervisor.start_session(SLEEP, ready=False)
    assert repr(supervisor) == f"SessionSupervisor({name!r}, 1 sessions)"
    with pytest.raises(TypeError, match="needs a manager or client"):
        AsyncSessionSupervisor(5)  # type: ignore[arg-type]
