"""The process of one session."""

import os
import signal

from jidoka_shm import SessionReader, session_ready

with SessionReader(os.environ["JIDOKA_SHM_NAME"]) as sessions:
    mine = sessions[os.environ["JIDOKA_SESSION_ID"]]
    print(mine.status, mine.metadata["project"], flush=True)
    session_ready()
    signal.pause()  # its work, until SIGTERM ends it
