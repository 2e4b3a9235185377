from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from host import exit_code, forked
from living import descriptors_left

from jidoka_shm import processes
from jidoka_shm.control import Identity

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def child() -> Iterator[int]:
    """The pid of a child process that runs until the test is over."""
    end, begin = os.pipe()
    pid = forked(lambda: (os.close(begin), os.read(end, 1)))
    yield pid
    os.close(begin)
    os.close(end)
    assert exit_code(pid) == 0


def _start_of(pid: int) -> int:
    """Return a process's start time, by a way of its own."""
    text = subprocess.run(
        ["cut", "-d", " ", "-f", "22", f"/proc/{pid}/stat"],  # noqa: S607 - of coreutils
        check=True,
        capture_output=True,
    )
    return int(text.stdout)


def test_this_process_knows_who_it_is() -> None:
    me = processes.own_identity()
    assert me.pid == os.getpid()
    assert me.start == _start_of(os.getpid())
    assert me.namespace == Path("/proc/self/ns/pid").stat().st_ino == processes.own_namespace()
    assert str(me.namespace) in os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path, a text
    assert processes.is_alive(me) is True


def test_another_process_is_somebody_else(child: int) -> None:
    identity = processes.identity_of(child)
    assert identity == Identity(child, _start_of(child), processes.own_namespace())
    assert processes.is_alive(identity) is True


def test_a_process_that_was_waited_for_is_dead() -> None:
    end, begin = os.pipe()
    pid = forked(lambda: os.read(end, 1))
    identity = processes.identity_of(pid)
    assert identity is not None
    os.write(begin, b"x")
    assert exit_code(pid) == 0
    assert processes.identity_of(pid) is None
    assert processes.is_alive(identity) is False
    os.close(end)
    os.close(begin)


def test_a_zombie_is_dead() -> None:
    end, begin = os.pipe()
    pid = forked(lambda: os.read(end, 1))
    identity = processes.identity_of(pid)
    assert identity is not None
    os.write(begin, b"x")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert b") Z " in Path(f"/proc/{pid}/stat").read_bytes()
    assert processes.identity_of(pid) is None
    assert processes.is_alive(identity) is False
    assert exit_code(pid) == 0
    os.close(end)
    os.close(begin)


@pytest.mark.parametrize("command", [") Z 1 (", "a b c d e f g", "))((", ")", " ", "x\ny) Z"])
def test_a_commands_name_misleads_nobody(command: str) -> None:
    me = processes.own_identity()
    before = Path("/proc/self/comm").read_text()
    Path("/proc/self/comm").write_text(command)
    try:
        assert f"({command})" in Path("/proc/self/stat").read_text()
        assert processes.own_identity() == me
        assert processes.is_alive(me) is True
    finally:
        Path("/proc/self/comm").write_text(before.removesuffix("\n"))


def test_a_later_process_of_the_same_pid_is_not_taken_for_it(child: int) -> None:
    """P1: a pid with another start time is another process, and the one asked for is dead."""
    identity = processes.identity_of(child)
    assert identity is not None
    for start in (identity.start - 1, identity.start + 1, 0):
        assert processes.is_alive(replace(identity, start=start)) is False


def test_another_pid_namespace_is_unknown(child: int) -> None:
    """P2: two containers may both have a pid 1; of the other's nothing is known."""
    identity = processes.identity_of(child)
    assert identity is not None
    for namespace in (identity.namespace + 1, 0):
        assert processes.is_alive(replace(identity, namespace=namespace)) is None


def test_the_first_process_of_all_is_alive() -> None:
    init = processes.identity_of(1)
    assert init is not None
    assert processes.is_alive(init) is True


def test_without_a_descriptor_nobody_is_taken_for_somebody_unknown(child: int) -> None:
    """Whose start time is not known is never said to have ended."""
    identity = processes.identity_of(child)
    assert identity is not None
    with descriptors_left(0):
        with pytest.raises(OSError, match="Too many open files"):
            processes.find(child)
        assert processes.is_alive(identity) is None
    assert processes.find(child) == identity


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_process_that_may_not_be_signalled_is_alive() -> None:
    def look() -> None:
        os.setuid(65_534)
        with pytest.raises(PermissionError):
            os.kill(1, 0)
        init = processes.identity_of(1)
        assert init is not None
        assert processes.is_alive(init) is True

    assert exit_code(forked(look)) == 0


def test_the_same_process_has_the_same_identity_after_an_exec() -> None:
    code = (
        "import sys; from jidoka_shm import processes; print(processes.own_identity(), flush=True)"
    )
    again = f"import os, sys; {code}; os.execv(sys.executable, [sys.executable, '-c', {code!r}])"
    root = str(Path(processes.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", again],
        env=os.environ | {"PYTHONPATH": root},
        check=True,
        capture_output=True,
        text=True,
    )
    first, second = done.stdout.splitlines()
    assert first == second


# ---------------------------------------------------------------------------- without /proc


def _refuse(monkeypatch: pytest.MonkeyPatch, error: type[OSError]) -> None:
    """Make every read of /proc/PID/stat fail."""

    def read_bytes(_: Path) -> bytes:
        raise error

    monkeypatch.setattr(Path, "read_bytes", read_bytes)


def test_without_proc_a_process_still_knows_its_pid(monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(_: str) -> os.stat_result:
        raise FileNotFoundError

    _refuse(monkeypatch, FileNotFoundError)
    monkeypatch.setattr(os, "stat", stat)
    assert processes.own_identity() == Identity(os.getpid(), 0, 0)


def test_without_proc_nobody_is_called_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(_: str) -> os.stat_result:
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        _refuse(patch, FileNotFoundError)
        patch.setattr(os, "stat", stat)
        alive = processes.is_alive(processes.own_identity())
    assert alive is None


def test_a_process_that_proc_hides_is_not_called_dead(
    child: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As /proc mounted with hidepid=1 answers about another user's process.
    identity = processes.identity_of(child)
    assert identity is not None
    with monkeypatch.context() as patch:
        _refuse(patch, PermissionError)
        alive = processes.is_alive(identity)
    assert alive is not False


def test_who_has_a_pid_is_found_and_a_zombie_or_nobody_is_not(child: int) -> None:
    assert processes.find(child) == processes.identity_of(child)
    assert processes.find(os.getpid()) == processes.own_identity()
    zombie = forked(lambda: None)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
    assert processes.find(zombie) is None
    assert exit_code(zombie) == 0
    assert processes.find(zombie) is None
    assert processes.find(2**22 + 1) is None


def test_one_that_proc_hides_is_found_without_a_start(
    child: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _refuse(patch, PermissionError)
        found, nobody = processes.find(child), processes.find(2**22 + 1)
    assert found == Identity(child, 0, processes.own_namespace())
    assert nobody is None


def test_a_zombie_still_tells_when_it_started() -> None:
    end, begin = os.pipe()
    pid = forked(lambda: os.read(end, 1))
    start = _start_of(pid)
    assert processes.started_at(pid) == start
    os.write(begin, b"x")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert processes.started_at(pid) == start
    assert exit_code(pid) == 0
    assert processes.started_at(pid) is None
    os.close(end)
    os.close(begin)


@pytest.mark.parametrize("pid", [2**22 + 1, 2**31, 2**40, 2**64 - 1])
def test_a_number_that_no_pid_can_be_is_nobody(pid: int) -> None:
    assert processes.is_alive(Identity(pid, 1, processes.own_namespace())) is False


def test_two_namespaces_that_are_unknown_are_not_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "own_namespace", lambda: 0)
    assert processes.is_alive(Identity(os.getpid(), 1, 0)) is None


# ---------------------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("code", "text", "orderly"),
    [
        (0, "exited with status 0", True),
        (10, "exited with status 10", False),
        (-15, "was killed by signal 15 (SIGTERM)", True),
        (-9, "was killed by signal 9 (SIGKILL)", False),
        (-40, "was killed by signal 40", False),
    ],
)
def test_an_end_has_its_words(code: int, text: str, *, orderly: bool) -> None:
    pid = forked(lambda: os._exit(code) if code >= 0 else os.kill(os.getpid(), -code))
    found = os.waitid(os.P_PID, pid, os.WEXITED)
    assert processes.describe_end(found) == text
    assert processes.is_orderly(processes.describe_owner(pid, text)) is orderly


def test_an_end_of_which_nothing_is_known_may_have_been_orderly() -> None:
    assert processes.describe_end(None) == "ended"
    assert processes.is_orderly(processes.describe_owner(5, "ended"))
    # Of a process that was gone when it was looked for, nobody can tell.
    assert not processes.is_orderly(processes.describe_owner(5, "is gone"))
