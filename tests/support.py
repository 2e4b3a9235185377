"""What several test modules use: tables in plain memory, processes, and waiting."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

import jidoka_shm
from jidoka_shm.control import ControlWriter, Identity
from jidoka_shm.layout import CONTROL_SIZE, PREFIX, Geometry
from jidoka_shm.registry import Instant, Registry
from jidoka_shm.segment import SHM_DIRECTORY
from jidoka_shm.session import Session
from jidoka_shm.table import SessionTable
from jidoka_shm.writer import TableWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Self

INSTANCE = UUID("0f0e0d0c-0b0a-4908-8706-050403020100")
ME = Identity(4242, 77, 4026531836)


def make_writer(capacity: int = 8, slot_size: int = 512) -> TableWriter:
    """Return a writer of an empty table in a bytearray, as of a new registry."""
    control = ControlWriter(bytearray(CONTROL_SIZE))
    control.initialize(INSTANCE, 1, ME)
    control.complete()
    geometry = Geometry.for_capacity(capacity, slot_size)
    return TableWriter(bytearray(geometry.size), control, geometry)


def reader_of(writer: TableWriter, *, verify: bool = False) -> SessionTable:
    """Return another look at a writer's memory."""
    return SessionTable(writer.slots.memory, writer.change, writer.geometry, verify=verify)


def successor_of(writer: TableWriter) -> TableWriter:
    """Return a new writer of the same memory, with nothing of the old one's own."""
    return TableWriter(writer.slots.memory, writer.control, writer.geometry)


def make_registry(writer: TableWriter, *, cleanup_delay: int = 50) -> Registry:
    """Return the rules over a writer; the delay is in nanoseconds."""
    return Registry(writer, writer.control, cleanup_delay=cleanup_delay)


def at(moment: int) -> Instant:
    """Return the moment on both clocks, in nanoseconds; the wall clock a million seconds ahead."""
    return Instant(moment + 10**15, moment)


def session(writer: TableWriter, key: int, **fields: object) -> Session:
    """Return a session of the writer's next version, as yet nowhere."""
    return Session.make(session_id=UUID(int=key), version=writer.next_version(), **fields)


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for a condition; the limit only catches hanging."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


# ---------------------------------------------------------------------------- processes


def fork() -> int:
    """Fork, and return what ``os.fork`` does, where to fork with threads is the point."""
    with warnings.catch_warnings():
        # From 3.12 on; it is issued in the parent, when the child is there already.
        warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
        return os.fork()


def forked(work: Callable[[], object]) -> int:
    """Return the pid of a forked child that does ``work`` and nothing else."""
    pid = fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - no exception may go on into the parent's frames
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def exit_code(pid: int) -> int:
    """Wait for a child and return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(work: Callable[[], object]) -> int:
    """Do ``work`` in a forked child and return its exit code: 1 where it raised."""
    return exit_code(forked(work))


class Script:
    """A Python process of its own that talks with the test, a line at a time.

    Warnings are errors in it, and so is any output on stderr, unless it is killed.
    """

    def __init__(self, code: str, *arguments: object) -> None:
        root = str(Path(jidoka_shm.__file__).parents[1])
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": root},
        )
        self.pid = self._process.pid

    def line(self) -> str:
        """Return the next line that it prints."""
        assert self._process.stdout
        text = self._process.stdout.readline()
        if not text:
            self.end()
            pytest.fail("it ended without another line")
        return text.rstrip("\n")

    def go(self) -> None:
        """Let it read a line."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def end(self) -> str:
        """Wait for its end by itself, which must be a clean one, and return what it printed."""
        out, err = self._process.communicate()
        assert (self._process.returncode, err) == (0, "")
        return out

    def kill(self) -> None:
        """Kill it and wait for its end."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            self.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def run_script(code: str, *arguments: object) -> str:
    """Run code in a Python process of its own, to a clean end, and return what it printed."""
    with Script(code, *arguments) as script:
        return script.end()


# ---------------------------------------------------------------------------- shared memory


def path_of(name: str, generation: int | None = None) -> Path:
    """Return where Linux keeps a registry's control, or one of its tables."""
    tail = "" if generation is None else f".{generation}"
    return SHM_DIRECTORY / f"{PREFIX}{name}{tail}"


def objects_of(name: str) -> set[str]:
    """Return the objects of a registry: what follows the registry's name in each one's own."""
    start = f"{PREFIX}{name}"
    found = [path.name for path in SHM_DIRECTORY.iterdir()]
    return {
        text.removeprefix(start) for text in found if text == start or text.startswith(f"{start}.")
    }


# ---------------------------------------------------------------------------- line by line


def stop_at_line(number: int, work: Callable[[], object], stop: Callable[[], object]) -> bool:
    """Do ``work``, and call ``stop`` before the package's ``number``-th line in it.

    Returns:
        Whether the work has so many lines. ``stop`` may also raise, or end the process.
    """
    package, left = str(Path(jidoka_shm.__file__).parent), number

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
        nonlocal left
        if not frame.f_code.co_filename.startswith(package):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                stop()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return left <= 0
