"""What tests do to this host: processes, shared memory seen from outside, and stops at any line."""

from __future__ import annotations

import contextlib
import linecache
import os
import signal
import subprocess
import sys
import textwrap
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import jidoka_shm
from jidoka_shm import segment, seqlock
from jidoka_shm.layout import PREFIX
from jidoka_shm.segment import SHM_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Self


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
        self.say("go")

    def say(self, word: str) -> None:
        """Let it read a line that says ``word``."""
        assert self._process.stdin
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def close_input(self) -> None:
        """Let it, and every child of it, read the end of its input."""
        assert self._process.stdin
        self._process.stdin.close()
        # Else communicate() would flush it.
        self._process.stdin = None

    def end(self) -> str:
        """Wait for its end by itself, which must be a clean one, and return what it printed."""
        out, err = self._process.communicate()
        assert (self._process.returncode, err) == (0, "")
        return out

    def rest(self) -> str:
        """Wait for the end of whoever has its output, and return what is still printed."""
        out, err = self._process.communicate()
        assert err == ""
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
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()


def run_script(code: str, *arguments: object) -> str:
    """Run code in a Python process of its own, to a clean end, and return what it printed."""
    with Script(code, *arguments) as script:
        return script.end()


def processes_of(name: str) -> set[int]:
    """Return the pids of the processes that were started with a name."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().rstrip(b"\0").endswith(b"\0" + name.encode()):
                found.add(int(path.parent.name))
    return found


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


def descriptors_of(path: Path) -> list[int]:
    """Return this process's descriptors that lead to ``path``; a mapping keeps one too."""
    found: list[int] = []
    for link in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # the one that the listing itself used
            if str(link.readlink()).removesuffix(" (deleted)") == str(path):
                found.append(int(link.name))
    return found


def stop(pid: int) -> None:
    """Stop a child, and wait until it stands still.

    Its other threads go on until the one that got the signal has stopped them.
    """
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)


# ---------------------------------------------------------------------------- line by line


def do_traced(work: Callable[[], object], trace: Callable[..., object]) -> None:
    """Do ``work`` under a tracer."""
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)


def stop_at_line(number: int, work: Callable[[], object], stop: Callable[[], object]) -> bool:
    """Do ``work``, and call ``stop`` before the package's ``number``-th line in it.

    Returns:
        Whether the work has so many lines. ``stop`` may also raise, or end the process.
    """
    package, left = str(Path(jidoka_shm.__file__).parent), number
    entered: set[tuple[FrameType, int]] = set()

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
        nonlocal left
        if not frame.f_code.co_filename.startswith(package):
            return None
        if event == "line" and can_be_interrupted(frame):
            left -= 1
            if left == 0:
                stop()
        return trace

    def can_be_interrupted(frame: FrameType) -> bool:
        # The interpreter lets no signal handler run at a bare try, nor between the body of a with
        # statement, after which the line of the with comes again, and the call of __exit__. So it
        # has no exception handler there either.
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        place = (frame, frame.f_lineno)
        leaves = line.startswith("with ") and place in entered
        entered.add(place)
        return line != "try:" and not leaves

    try:
        do_traced(work, trace)
    finally:
        # The frame of a generator that an exception left behind would keep it, and all that it
        # knows, where no garbage collection finds it.
        entered.clear()
    return left <= 0


def list_own_names_alone(patch: pytest.MonkeyPatch, name: str) -> None:
    """Have a registry's objects listed as if there were no others, and so in as many lines."""
    patch.setattr(
        segment, "names", lambda: [f"/{PREFIX}{name}{tail}" for tail in sorted(objects_of(name))]
    )


def give_up_in_few_lines(patch: pytest.MonkeyPatch) -> None:
    """Have a whole table given up with stops at the index's ends only, not at each entry."""
    give_up = seqlock.give_up

    def stop_only_at_the_ends(words: memoryview, reach: memoryview, word: int) -> None:
        give_up(words[:2], reach, word)
        for entry in range(2, len(words) - 2):
            words[entry] = word
        give_up(words[-2:], reach[:0], word)

    patch.setattr(seqlock, "give_up", stop_only_at_the_ends)
