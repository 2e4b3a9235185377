"""File descriptors: how many a registry's clients and owners may come to, and a child's copies.

A new descriptor has the lowest number that is free. So its number says how many are in use at
least, whatever else the process, another registry in it too, has opened.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
import sys
from typing import Final

#: Descriptors that are left to the rest of the process.
_RESERVE: Final = 64


def room() -> int:
    """Return the number from which on all descriptors are left to the rest of the process."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else max(0, limit - _RESERVE)


def blank(path: str) -> None:
    """Let each socket of this process that is bound to ``path`` go, and keep its number in use.

    One that the loop's thread was just accepting or closing at a fork is in nobody's list. What
    holds it may close the number some day, which must not be another file's by then.
    """
    with contextlib.suppress(OSError):
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
            with contextlib.suppress(OSError):
                if _is_bound_to(int(name), path):
                    os.dup2(nothing, int(name), inheritable=False)
        os.close(nothing)


def _is_bound_to(descriptor: int, path: str) -> bool:
    # Looked at first: of a copy of what is no socket, such as the lock, a socket cannot be made.
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as found:
        return bool(found.getsockname() == path)
