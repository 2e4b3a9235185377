"""Process identity: who a pid is, so that a later process of the same number is not taken for it.

A process is its pid, its start time and its pid namespace. What cannot be known (another pid
namespace, no /proc) is said to be unknown, never guessed.
"""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Final

from .control import Identity

#: What keeps a process from looking, and says nothing of whom it would look at.
_CANNOT_LOOK: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

#: How a process ends that has done its work, or was asked to end.
WELL: Final = ("exited with status 0", "was killed by signal 15 (SIGTERM)")

#: The same, and how one ends of which nothing is known.
_ORDERLY: Final = ("ended", *WELL)


def own_identity() -> Identity:
    """Return the identity of this process."""
    return identity_of(os.getpid()) or Identity(os.getpid(), 0, own_namespace())


def own_namespace() -> int:
    """Return the inode number of this process's pid namespace; 0 where /proc does not say."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - a third of Path's cost
    except OSError:
        return 0


def identity_of(pid: int) -> Identity | None:
    """Return the identity of a process of this pid namespace, or None where it is not alive."""
    try:
        start = _start_time(pid)
    except OSError:
        return None
    return None if start is None else Identity(pid, start, own_namespace())


def find(pid: int) -> Identity | None:
    """Return the identity of a process of this pid namespace, or None where it is not alive.

    Its start time is 0 where the process is there but /proc does not show it.

    Raises:
        OSError: where no descriptor is left to look. Without a start time nobody would ever know
            that the process has ended.
    """
    try:
        start = _start_time(pid)
    except OSError as error:
        if error.errno in _CANNOT_LOOK:
            raise
        return Identity(pid, 0, own_namespace()) if _exists(pid) else None
    return None if start is None else Identity(pid, start, own_namespace())


def started_at(pid: int) -> int | None:
    """Return the start time of who has a pid, a zombie too, or None where /proc shows nobody."""
    try:
        return _look(pid)[0]
    except OSError:
        return None


def is_alive(identity: Identity) -> bool | None:
    """Return whether a process lives; None where that cannot be known.

    It cannot for a process of another pid namespace, or where /proc does not show it.
    """
    if not identity.namespace or identity.namespace != own_namespace():
        return None
    try:
        return _start_time(identity.pid) == identity.start
    except OSError:
        return None if _exists(identity.pid) else False


def describe_end(found: os.waitid_result | None) -> str:
    """Return how a process ended, as ``waitid`` says it; None where it does not say."""
    if found is None:
        return "ended"
    if found.si_code == os.CLD_EXITED:
        return f"exited with status {found.si_status}"
    return f"was killed by signal {_signal_text(found.si_status)}"


def describe_owner(pid: int, manner: str) -> str:
    """Return the error of a session whose owner ended in some manner."""
    return f"owner process {pid} {manner}"


def is_orderly(manner: str) -> bool:
    """Return whether a process that ended in some manner may have ended because it was asked to.

    An ``error`` that ends with the manner will do as well.
    """
    return manner.endswith(_ORDERLY)


def _signal_text(number: int) -> str:
    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:
        # One of the real-time signals, most of which have no name.
        return f"{number}"


def _exists(pid: int) -> bool:
    """Return whether a pid is in use, by a signal that is not sent."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    except OverflowError:
        # No pid is beyond 31 bits; memory that is damaged may name one.
        return False
    return True


def _start_time(pid: int) -> int | None:
    """Return a process's start time in clock ticks after boot; None where it has ended.

    Raises:
        OSError: where /proc does not show it.
    """
    start, runs = _look(pid)
    return start if runs else None


def _look(pid: int) -> tuple[int, bool]:
    """Return a process's start time, and whether it has not ended.

    proc(5): field 22 of /proc/PID/stat. The second field, the command's name in parentheses, may
    hold spaces and parentheses itself, so the fields are counted from the last parenthesis. A
    zombie (Z) or dead (X) process runs no more.

    Raises:
        OSError: where /proc does not show it.
    """
    text = Path(f"/proc/{pid}/stat").read_bytes()
    fields = text[text.rindex(b")") + 2 :].split()
    return int(fields[19]), fields[0] not in {b"Z", b"X"}
