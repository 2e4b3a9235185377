"""What the processes of sessions do in tests, and how a test hears of it: lines in a file."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from support import wait_until

import jidoka_shm
from jidoka_shm import SessionReader, session_ready

if TYPE_CHECKING:
    from jidoka_shm.reads import SessionReads

#: The environment of programs that import the package.
ENVIRONMENT: Final = os.environ | {"PYTHONPATH": str(Path(jidoka_shm.__file__).parents[1])}

#: Says that it is ready, and lives.
READY: Final = """
import signal
from jidoka_shm.ready import session_ready
assert session_ready()
signal.pause()
"""

#: Is ready, and takes no notice of SIGTERM.
STUBBORN: Final = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + READY

#: A program that needs nothing of Python, and lives.
SLEEP: Final = ["sleep", "1000"]


def python(code: str, *arguments: object) -> list[str]:
    """Return the command that runs code."""
    return [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]


def report(path: str, *words: object) -> None:
    """Append a line to a file, whole."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(" ".join(map(str, words)) + "\n")


def lines(path: Path, count: int = 1) -> list[str]:
    """Wait until a file has so many lines and return them."""
    wait_until(lambda: path.exists() and path.read_text().count("\n") >= count)
    return path.read_text().splitlines()


def is_running(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes_with(name: str) -> set[int]:
    """Return the processes in whose environment stands a registry's name, zombies left out."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"JIDOKA_SHM_NAME={name}".encode() in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
    return {pid for pid in found if is_running(pid)}


def error_of(handle: SessionReads, sid: object) -> str | None:
    """Wait until a session is terminated and return its error."""
    wait_until(lambda: handle[sid].status == "terminated")
    return handle[sid].error


# ---------------------------------------------------------------------------- callables


def tell(path: str, *words: object, status: int | None = None) -> None:
    """Say what it was called with and what its session was like, and live or end."""
    with SessionReader(os.environ["JIDOKA_SHM_NAME"]) as reader:
        sid = os.environ["JIDOKA_SESSION_ID"]
        before = reader.get_session_status(sid)
        ready = session_ready()
        report(path, *words, before, ready, reader.get_session_status(sid), os.getpid())
    if status is not None:
        sys.exit(status)
    signal.pause()


class Agent:
    """Has a method that can be found by its name."""

    @classmethod
    def run(cls, path: str) -> None:
        tell(path, cls.__name__)


def fail() -> None:
    """Raise, before it is ready."""
    msg = "it cannot"
    raise LookupError(msg)
