"""What a service manager is told: datagrams to the socket that it names, as sd_notify(3) says."""

from __future__ import annotations

import os
import socket
from typing import Final

from jidoka_shm.logs import log

#: How long a service manager that does not read may keep the service waiting, in seconds.
_PATIENCE: Final = 1.0


def status(text: str) -> None:
    """Say what the service is at.

    Args:
        text: a line for people.
    """
    _send(f"STATUS={text}")


def ready(text: str) -> None:
    """Say that the service answers from now on.

    Args:
        text: a line for people.
    """
    _send(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={text}")


def stopping(text: str) -> None:
    """Say that the service ends.

    Args:
        text: a line for people.
    """
    _send(f"STOPPING=1\nSTATUS={text}")


def _send(state: str) -> None:
    """Send what is said, if anybody asked for it; nobody's not listening stops the service."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # @ stands for the zero byte that an address without a file begins with: no variable holds one.
    where = f"\0{address[1:]}" if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(_PATIENCE)
            sender.connect(where)
            sender.sendall(state.encode())
    except (OSError, ValueError) as error:
        log.warning("the service manager at %r cannot be told: %s", address, error)
