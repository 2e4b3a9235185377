"""How an interpreter ends while a manager or a reader lives in it."""

from __future__ import annotations

import time

import pytest
from host import Script, objects_of, run_script

from jidoka_shm import SessionManager, SessionReader

#: Ends that take longer hang; they take some hundredths of a second.
HANGS = 10.0

BEGIN = """
import gc, sys, threading, time
from jidoka_shm import RegistryClosed, SessionManager, SessionReader

def make(**options):
    return SessionManager(sys.argv[1], **({"capacity": 64, "cleanup_delay": 0.001} | options))
"""

#: What is there when the script comes to its end.
SCENES = {
    "a global manager": "manager = make()",
    "a manager that nobody names": "make()",
    "sessions about to expire": """
manager = make(capacity=3000)
for number in range(2000):
    manager.create_session(ttl=0.0005 * (number % 100) + 0.0001)
""",
    "sessions about to be removed": """
manager = make(capacity=3000, cleanup_delay=0.02)
for sid in [manager.create_session() for _ in range(2000)]:
    manager.terminate_session(sid)
""",
    "a manager in a cycle": """
class Application:
    def __init__(self):
        self.manager, self.me = make(), self
        self.manager.create_session(ttl=60)
application = Application()
""",
    "a dropped cycle with a finalizer": """
class Application:
    def __init__(self):
        self.manager, self.me = make(), self
    def __del__(self):
        # By now its manager may be closed, and no other error may come of it.
        try:
            self.manager.create_session()
        except RegistryClosed:
            pass
        self.manager.close()
gc.disable()
Application()
""",
    "a manager that a thread made": """
made = []
thread = threading.Thread(target=lambda: made.append(make()))
thread.start()
thread.join()
made[0].create_session(ttl=0.001)
""",
    "a manager in a thread's own storage": """
local, ready = threading.local(), threading.Event()
def work():
    local.manager = make()
    local.manager.create_session(ttl=0.001)
    ready.set()
    threading.Event().wait()
threading.Thread(target=work, daemon=True).start()
ready.wait()
""",
    "a manager that exit handlers use": """
import atexit
manager = make()
# Called before and after the one that closes it; what is there already is read either way.
def use():
    try:
        manager.create_session()
    except RegistryClosed:
        pass
atexit.register(use)
make_another = SessionReader(sys.argv[1])
atexit.register(make_another.list_sessions)
""",
    "daemon threads that read": """
manager = make()
reader = SessionReader(sys.argv[1])
sid = manager.create_session({"a": 1})
started = threading.Semaphore(0)
def work(handle):
    first = True
    try:
        while True:
            handle[sid], handle.list_sessions(), handle.snapshot()
            if first:
                started.release()
                first = False
    except RegistryClosed:
        pass
for handle in (manager, reader, manager, reader):
    threading.Thread(target=work, args=(handle,), daemon=True).start()
for _ in range(4):
    started.acquire()
""",
    "a manager inside with": """
with make() as manager:
    manager.create_session(ttl=0.001)
    sys.exit()
""",
    "a class that holds one": """
class Holder:
    manager = make()
    reader = SessionReader(manager.name)
    kept = [manager.snapshot(), iter(manager), manager.items(), reader.values()]
sys.modules["another"] = Holder
""",
}


@pytest.mark.parametrize("scene", SCENES)
def test_an_interpreter_ends_cleanly_and_soon_with_a_manager_in_it(name: str, scene: str) -> None:
    code = f"{BEGIN}{SCENES[scene]}\nprint(time.monotonic(), flush=True)\n"
    if "sys.exit()" in code:
        code = code.replace("    sys.exit()", "    print(time.monotonic(), flush=True); sys.exit()")
    with Script(code, name) as script:
        before = float(script.line())
        # Anything on stderr fails here.
        assert script.end() == ""
        # CLOCK_MONOTONIC is one for all processes.
        assert time.monotonic() - before < HANGS
    assert objects_of(name) == {"", ".1"}
    with SessionManager(name) as successor:
        assert successor.recovery
        assert successor.recovery.clean
        assert successor.recovery.dropped == ()
        assert successor.check() == []
        successor.unlink()


def test_a_process_that_only_attached_takes_nothing_with_it(name: str) -> None:
    """L1: an unrelated reader attaches, reads, exits with empty stderr; a second one attaches."""
    code = """
        import sys
        from jidoka_shm import SessionReader
        reader = SessionReader(sys.argv[1])
        print(len(reader), [session.metadata for session in reader.list_sessions()])
    """
    with SessionManager(name, capacity=8) as manager:
        sid = manager.create_session({"a": 1})
        for _ in range(2):
            assert run_script(code, name) == "1 [{'a': 1}]\n"
            assert objects_of(name) == {"", ".1"}
        with SessionReader(name) as reader:
            assert sid in reader
        manager.unlink()


def test_the_resource_tracker_is_never_started(name: str) -> None:
    """L3: nothing is registered with multiprocessing's resource tracker, which would unlink it."""
    code = """
        import os, sys
        from pathlib import Path
        from jidoka_shm import SessionManager, SessionReader
        for _ in range(2):
            with SessionManager(sys.argv[1], capacity=8) as manager:
                with SessionReader(sys.argv[1]) as reader:
                    manager.terminate_session(manager.create_session())
                    reader.list_sessions()
        manager.unlink()
        assert "multiprocessing.shared_memory" not in sys.modules
        from multiprocessing import resource_tracker
        print(resource_tracker._resource_tracker._fd, resource_tracker._resource_tracker._pid)
        print(Path(f"/proc/self/task/{os.getpid()}/children").read_text())
    """
    assert run_script(code, name) == "None None\n\n"
