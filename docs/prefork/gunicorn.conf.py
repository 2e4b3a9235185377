"""The writer in gunicorn's master, which no worker's end disturbs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from jidoka_shm import SessionManager

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter


def when_ready(server: Arbiter) -> None:
    """Be the writer from before the first worker on."""
    # A master that is about to end, as after USR2, is waited for.
    server.sessions = SessionManager(os.environ["SESSIONS"], listen=True, wait=10)


def on_exit(server: Arbiter) -> None:
    """Leave the sessions to the next writer."""
    server.sessions.close()
