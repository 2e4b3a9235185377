"""Fixtures for every test: a name of its own, and nothing left behind."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import sys
import threading
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from hypothesis import settings

from jidoka_shm.segment import SHM_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from commands import Command
    from supervised import Place

#: What the names of this run begin with. The pid alone would meet the names of a killed run.
_RUN = f"t{os.getpid()}-{uuid4().hex[:8]}-"

# No database: a run depends on nothing that an earlier one left. No deadline: machines are busy.
settings.register_profile("jidoka_shm", database=None, deadline=None)
settings.load_profile("jidoka_shm")

# A shell leaves SIGINT ignored in what it starts in the background, and so it would be in each
# process that a test interrupts: such a test would wait for an end that never comes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_numbers = itertools.count()

pytest.register_assert_rewrite("commands", "deaths", "host", "support")

Held = dict[str, dict[Any, str]]


@pytest.fixture
def name() -> str:
    """A registry name that no other test of any run has."""
    return f"{_RUN}{next(_numbers)}"


@pytest.fixture
def registry(name: str) -> Iterator[str]:
    """A registry name of which nothing is left at the end, whoever made it."""
    # Not before its assertions are rewritten.
    from host import objects_of, path_of, processes_of  # noqa: PLC0415 - as said

    yield name
    # A service that a client started is nobody's child.
    for pid in processes_of(name):
        os.kill(pid, signal.SIGKILL)
    for tail in objects_of(name):
        Path(f"{path_of(name)}{tail}").unlink()


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Where the services of this process, and of those that it starts, listen."""
    from supervised import Place  # noqa: PLC0415 - as above

    with Place() as place:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(place.path))
        yield place


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process."""
    from commands import Ended  # noqa: PLC0415 - as above

    return lambda *arguments: Ended.of(capsys, arguments)


@pytest.fixture
def _often_switched() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves shared memory, a process, a thread or a descriptor behind."""
    before = _held()
    yield
    # All other fixtures are finished. What they gave to the test is not in use any more; where a run
    # is interrupted, nothing is there to be let go of.
    if request.node.funcargs:
        request.node.funcargs.clear()
    left = _new(before)
    if any(left.values()):
        # Cyclic garbage, such as a caught exception with the frames that it went through, may
        # hold a descriptor for a while; that is no leak.
        gc.collect()
        left = _new(before)
    if any(left.values()):
        _clean(left)
        texts = [f"{kind}: {', '.join(held.values())}" for kind, held in left.items() if held]
        pytest.fail(f"left behind {'; '.join(texts)}")


def _held() -> Held:
    """Return what this process holds, kind by kind, each with a text that tells what it is."""
    return {
        "objects": {path: path.name for path in SHM_DIRECTORY.glob(f"*{_RUN}*")},
        "processes": {pid: f"{pid} ({_command(pid)})" for pid in _children()},
        "threads": {thread: thread.name for thread in threading.enumerate()},
        "descriptors": {(fd, to): f"{fd} -> {to}" for fd, to in _descriptors().items()},
    }


def _new(before: Held) -> Held:
    """Return what this process holds and did not hold before."""
    now = _held()
    if len(now["descriptors"]) <= len(before["descriptors"]) or hasattr(sys, "last_value"):
        # One may have been closed and another opened in its place. The frames of a test that
        # failed are kept (pytest leaves them here), with all that they hold.
        now["descriptors"] = {}
    return {
        kind: {key: text for key, text in held.items() if key not in before[kind]}
        for kind, held in now.items()
    }


def _clean(left: Held) -> None:
    """Remove what would disturb the tests that follow."""
    for path in left["objects"]:
        path.unlink(missing_ok=True)
    for pid in left["processes"]:
        # A child that nobody has waited for, so the pid is still its own.
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _children() -> set[int]:
    """Return the pids of this process's children, zombies included."""
    pids: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            pids.update(map(int, (task / "children").read_text().split()))
    # multiprocessing's own servers stay on purpose, one of each kind a run.
    return pids - {resource_tracker._resource_tracker._pid, forkserver._forkserver._forkserver_pid}


def _command(pid: int) -> str:
    """Return what a process runs."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        command = b""
    return command.replace(b"\0", b" ").decode(errors="replace")[:200] or "ended, not waited for"


def _descriptors() -> dict[int, str]:
    """Return where each open descriptor leads."""
    found: dict[int, str] = {}
    for path in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # the one that the listing itself used
            found[int(path.name)] = str(path.readlink())
    # How this process holds on to the servers named above.
    tracker, server = resource_tracker._resource_tracker, forkserver._forkserver
    return {
        descriptor: target
        for descriptor, target in found.items()
        if descriptor not in {tracker._fd, server._forkserver_alive_fd}
    }


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many interleavings were checked, how many writers died, and what was called."""
    stepper = sys.modules.get("stepper")
    if stepper is not None and stepper.TOTALS["schedules"]:
        terminalreporter.write_line(
            f"{stepper.TOTALS['schedules']:,} interleavings checked, "
            f"by {stepper.TOTALS['outcomes']:,} runs to a different end"
        )
    deaths = sys.modules.get("deaths")
    for line in [] if deaths is None else deaths.FIGURES:
        terminalreporter.write_line(line)
    callers = sys.modules.get("callers")
    for line in [] if callers is None else callers.FIGURES:
        terminalreporter.write_line(line)
