"""``session_ready``: how the process of a session says that it may be used.

The process has inherited one end of a socket pair, and its environment says which descriptor that
is. The other end is the supervisor's.
"""

from __future__ import annotations

import os
import socket
from typing import Final

from .arguments import check_seconds

#: Where a session's process finds the registry's name and its own session's id.
NAME: Final = "JIDOKA_SHM_NAME"
SESSION_ID: Final = "JIDOKA_SESSION_ID"

#: Where it finds the descriptor, and the socket's inode, which says that it is still that one.
READY_FD: Final = "JIDOKA_READY_FD"

#: What a process says when it is ready, and is told when its session is active.
READY: Final = b"r"
KNOWN: Final = b"k"


def session_ready(*, timeout: float = 30.0) -> bool:
    """Say that this process's session may be used, and wait until it is active.

    For the program of a ``SessionSupervisor.start_session`` that waits for it. Once in a process:
    later calls do nothing, and processes that are started from then on inherit nothing of it.

    Args:
        timeout: how long to wait for the supervisor, in seconds.

    Returns:
        True once the session is active. False where no supervisor waits: the program was started
        in another way, or with ``ready=False``, or the supervisor is gone.

    Raises:
        TimeoutError: where the supervisor does not answer in time.
    """
    seconds = check_seconds("timeout", timeout)
    channel = _take_channel(os.environ.pop(READY_FD, ""))
    if channel is None:
        return False
    with channel:
        channel.settimeout(seconds)
        try:
            # A program may have given SIGPIPE its default back, which would kill it here.
            channel.send(READY, socket.MSG_NOSIGNAL)
            return channel.recv(1) == KNOWN
        except ConnectionError:
            return False
        except (TimeoutError, BlockingIOError):  # the latter with a timeout of 0
            msg = (
                f"the supervisor did not say within {seconds:g} s that this session is active: it "
                "or the registry's writer is busy or stopped; give session_ready() a longer timeout"
            )
            raise TimeoutError(msg) from None


def name_channel(channel: socket.socket) -> str:
    """Return what the environment says of a channel."""
    return f"{channel.fileno()}:{os.fstat(channel.fileno()).st_ino}"


def _take_channel(said: str) -> socket.socket | None:
    """Return the channel that the environment names, or None where it is not there.

    A process that inherits the environment alone may have any file under that number.
    """
    try:
        descriptor, inode = map(int, said.split(":"))
        if os.fstat(descriptor).st_ino != inode:
            return None
        channel = socket.socket(fileno=descriptor)
    except (ValueError, OverflowError, OSError):
        return None
    channel.set_inheritable(False)
    return channel
