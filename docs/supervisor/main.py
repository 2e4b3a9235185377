"""Starts a session with a process, and stops it."""

import sys
from pathlib import Path

from jidoka_shm import SessionManager, SessionSupervisor

with SessionManager("supervised", fresh=True) as manager:
    with SessionSupervisor(manager) as supervisor:
        sid = supervisor.start_session(
            [sys.executable, "agent.py"], metadata={"project": "jidoka"}, cwd=Path(__file__).parent
        )
        print(manager.get_session_status(sid), supervisor.sessions())
        supervisor.stop_session(sid)
        print(manager[sid].status, manager[sid].error)
    manager.unlink()
