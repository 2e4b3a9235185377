"""Handles and processes: each start method, ``os.fork`` beside threads, and how a child ends."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from host import Script, descriptors_of, exit_code, forked, in_child, objects_of, path_of
from support import wait_until

from jidoka_shm import ForkedHandle, SessionManager, SessionReader, WriterAlreadyRunning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

every_method = pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])

SID = UUID(int=1)


@pytest.fixture
def manager(name: str) -> Iterator[SessionManager]:
    """A manager of one session."""
    with SessionManager(name, capacity=64, cleanup_delay=3600) as made:
        made.create_session({"number": 0}, session_id=SID)
        yield made
        made.unlink()


def _start(method: str, target: Callable[..., object], *arguments: object) -> Any:  # noqa: ANN401
    """Return a child started by a method of multiprocessing."""
    # Its type is one of three, which have no public name in common that has start().
    context: Any = multiprocessing.get_context(method)
    child = context.Process(target=target, args=arguments, daemon=True)
    child.start()
    return child


def _end(child: Any) -> int | None:  # noqa: ANN401 - as above
    """Wait for a child's end and return its exit code."""
    child.join(60)
    code: int | None = child.exitcode
    child.close()
    return code


# ---------------------------------------------------------------------------- each method


def _read(reader: SessionReader, name: str, pipe: Connection) -> None:
    """Send what the reader given and one of the child's own read, whenever asked to."""
    with SessionReader(name) as own:
        while pipe.recv():
            pipe.send(
                [
                    (handle[SID].metadata["number"], len(handle.list_sessions()), handle.version)
                    for handle in (reader, own)
                ]
            )
    reader.close()


@every_method
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_a_reader_reads_in_parent_and_child_before_and_after(
    manager: SessionManager, method: str, *, used: bool
) -> None:
    """P7: all three start methods, and the reader is sent as its name and options."""
    with SessionReader(manager.name, cache_size=5) as reader:
        if used:
            assert reader[SID].metadata == {"number": 0}
            assert len(reader.list_sessions()) == 1
        pipe, end = multiprocessing.Pipe()
        child = _start(method, _read, reader, manager.name, end)
        for number in range(1, 4):
            changed = manager.update_session(SID, metadata={"number": number})
            pipe.send(True)  # noqa: FBT003 - what the child waits for
            assert pipe.recv() == [(number, 1, changed.version)] * 2
            assert reader[SID] == changed
        pipe.send(False)  # noqa: FBT003 - its end
        assert _end(child) == 0
        pipe.close()
        end.close()
        changed = manager.update_session(SID, metadata={"number": 9})
        assert reader[SID] == changed
        assert reader.list_sessions() == [changed]


def _try_manager(manager: SessionManager) -> None:
    for call in (manager.create_session, manager.unlink, lambda: len(manager)):
        with pytest.raises(ForkedHandle, match=manager.name):
            call()
    manager.close()


@every_method
def test_a_manager_goes_into_no_child(manager: SessionManager, method: str) -> None:
    if method == "fork":
        assert _end(_start(method, _try_manager, manager)) == 0
    else:
        with pytest.raises(TypeError, match=r"SessionReader.*SessionClient"):
            _start(method, _try_manager, manager)
    assert objects_of(manager.name) == {"", ".1"}
    assert manager.writer_alive
    manager.create_session()


def _second_manager(name: str) -> None:
    with pytest.raises(WriterAlreadyRunning) as caught:
        SessionManager(name)
    assert caught.value.pid == multiprocessing.parent_process().pid  # type: ignore[union-attr]
    with SessionManager(f"{name}-child", capacity=8, cleanup_delay=0.001) as own:
        sid = own.create_session(ttl=0.001)
        wait_until(lambda: sid not in own)
        own.unlink()


@every_method
def test_a_child_makes_no_second_manager_but_one_of_its_own(
    manager: SessionManager, method: str
) -> None:
    assert _end(_start(method, _second_manager, manager.name)) == 0
    manager.update_session(SID, status="active")


def test_a_readers_pickle_holds_its_name_and_options_and_nothing_else(
    manager: SessionManager,
) -> None:
    """P7: handles pickle as name and options."""
    with SessionReader(manager.name, timeout=2, cache_size=3, verify=True) as reader:
        reader.list_sessions()
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with SessionReader(manager.name, timeout=2, cache_size=3, verify=True) as other:
                assert pickle.dumps(reader, protocol) == pickle.dumps(other, protocol)
            with pickle.loads(pickle.dumps(reader, protocol)) as again:  # noqa: S301 - its own
                assert (again.name, again._options) == (reader.name, reader._options)
                assert again[SID] == reader[SID]


# ---------------------------------------------------------------------------- beside threads


class Busy:
    """Threads that do one thing over and over.

    Attributes:
        rounds: how often each was done.
        failures: what any of them raised.
    """

    def __init__(self) -> None:
        self.rounds: dict[str, int] = {}
        self.failures: list[BaseException] = []
        self._stopped = False
        self._threads: list[threading.Thread] = []

    def start(self, **works: Callable[[], object]) -> None:
        """Start a thread for each thing to do."""
        for kind, work in works.items():
            self.rounds[kind] = 0
            self._threads.append(threading.Thread(target=self._run, args=(kind, work)))
            self._threads[-1].start()

    def _run(self, kind: str, work: Callable[[], object]) -> None:
        try:
            while not self._stopped:
                work()
                self.rounds[kind] += 1
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is a failure
            self.failures.append(error)

    def wait(self) -> None:
        """Wait until each was done again, or one failed."""
        old = self.rounds.copy()
        wait_until(lambda: self.failures or all(self.rounds[kind] > old[kind] for kind in old))

    def stop(self) -> None:
        self._stopped = True
        for thread in self._threads:
            thread.join()


def test_a_fork_beside_busy_threads_gives_the_child_all_that_it_may_have(name: str) -> None:
    """P7: a reader works in a forked child, whatever other threads did at that moment."""
    busy = Busy()

    def change() -> None:
        sid = manager.create_session({"a": 1}, ttl=60)
        manager.update_session(SID, metadata={"number": busy.rounds["changes"]})
        manager.terminate_session(sid)
        wait_until(lambda: sid not in manager)

    def attach() -> None:
        with SessionReader(name) as other:
            assert SID in other
        with reader._lock:
            reader.refresh()

    def in_the_child() -> None:
        for _ in range(2):
            assert reader[SID].metadata["number"] >= 0
            assert SID in {session.session_id for session in reader.list_sessions()}
        # It may have been held by a thread that is not here.
        assert reader._lock.acquire(timeout=30)
        reader._lock.release()
        with SessionReader(name) as own:
            assert own[SID].metadata["number"] >= 0
        with pytest.raises(ForkedHandle):
            manager.create_session()
        with pytest.raises(WriterAlreadyRunning):
            SessionManager(name)
        assert in_child(lambda: reader[SID]) == 0

    before = sys.getswitchinterval()
    with SessionManager(name, capacity=64, cleanup_delay=0) as manager:
        manager.create_session({"number": 0}, session_id=SID)
        with SessionReader(name, cache_size=2) as reader:
            busy.start(reader=lambda: (reader[SID], reader.list_sessions()))
            busy.start(manager=lambda: (manager[SID], manager.count_by_status()))
            busy.start(changes=change, attaching=attach)
            sys.setswitchinterval(1e-5)
            try:
                for _ in range(25):
                    busy.wait()
                    assert in_child(in_the_child) == 0
            finally:
                sys.setswitchinterval(before)
                busy.stop()
        assert busy.failures == []
        assert manager.check() == []
        manager.unlink()


def test_a_thread_may_fork_while_another_changes_and_a_child_may_live_on(
    manager: SessionManager,
) -> None:
    pids: list[int] = []
    end, begin = os.pipe()
    # Its mapping lives on in the child as well.
    reader = SessionReader(manager.name)

    def in_the_child() -> None:
        os.close(begin)
        os.read(end, 1)
        assert descriptors_of(path_of(manager.name)) != []
        assert SID in reader
        with pytest.raises(ForkedHandle):
            manager.list_sessions()

    thread = threading.Thread(target=lambda: pids.extend(forked(in_the_child) for _ in range(5)))
    thread.start()
    while thread.is_alive() or len(manager) < 20:
        manager.create_session()
        if len(manager) > 60:
            break
    thread.join()
    manager.close()
    with SessionManager(manager.name, capacity=64) as successor:
        assert SID in successor
        os.close(begin)
        os.close(end)
        assert [exit_code(pid) for pid in pids] == [0] * 5
        assert successor.writer_alive
        with pytest.raises(WriterAlreadyRunning):
            SessionManager(manager.name)
    reader.close()


# ---------------------------------------------------------------------------- how a child ends

#: A process that forks one that ends in its way, and goes on.
FORK = """
    import atexit, gc, os, sys, warnings
    from multiprocessing import get_context
    from jidoka_shm import ForkedHandle, SessionManager, SessionReader, WriterAlreadyRunning

    # That the process has threads is the point.
    warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
    name, ending = sys.argv[1:]
    me = os.getpid()

    def at_exit():
        if os.getpid() != me:
            manager.close()
            try:
                manager.unlink()
            except ForkedHandle:
                os.write(said, b"atexit")

    def work():
        assert reader[sid].metadata == {"a": 1}
        manager.__exit__()

    atexit.register(at_exit)
    manager = SessionManager(name, capacity=8, cleanup_delay=0.01)
    reader = SessionReader(name)
    sid = manager.create_session({"a": 1})
    heard, said = os.pipe()
    if ending == "multiprocessing":
        child = get_context("fork").Process(target=work)
        child.start()
        pid = child.pid
    else:
        pid = os.fork()
        if pid == 0:
            work()
            if ending == "exit":
                sys.exit(0)
            if ending == "raise":
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                raise ZeroDivisionError
            if ending == "collect":
                del manager
                gc.collect()
                atexit.unregister(at_exit)
            if ending == "_exit":
                os._exit(0)
"""

#: What the parent finds afterwards.
FOLLOW = """
    if pid != 0:
        if ending == "multiprocessing":
            child.join()
            code = child.exitcode
        else:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(said)
        print(code, os.read(heard, 100).decode())
        assert manager.writer_alive and sid in reader
        assert {tail for tail in os.listdir("/dev/shm") if name in tail} == {
            f"jidoka_shm.{name}", f"jidoka_shm.{name}.1"
        }
        try:
            SessionManager(name)
        except WriterAlreadyRunning as error:
            assert error.pid == me
        else:
            raise AssertionError("the lock is free")
        # Its own thread is still there.
        manager.terminate_session(sid)
        while sid in reader:
            pass
        manager.unlink()
"""


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("return", "0 atexit"),
        ("exit", "0 atexit"),
        ("raise", "1 atexit"),
        ("collect", "0 "),
        ("_exit", "0 "),
        ("multiprocessing", "0 "),
    ],
)
def test_a_child_that_ends_takes_nothing_with_it(name: str, ending: str, said: str) -> None:
    """P5: a forked child does not release the parent's lock, however it ends."""
    with Script(FORK + FOLLOW, name, ending) as script:
        assert script.end() == f"{said}\n"


@pytest.mark.parametrize("way", ["os", "multiprocessing"])
def test_a_killed_writers_child_keeps_nothing_and_ends_without_a_trace(name: str, way: str) -> None:
    """P5: the lock is free at once after SIGKILL, though a child has the control mapped."""
    code = """
        import os, sys, warnings
        from multiprocessing import get_context
        from jidoka_shm import ForkedHandle, SessionManager, SessionReader

        warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
        name, way = sys.argv[1:]

        def sleep():
            own = SessionReader(name)
            print("asleep", flush=True)
            os.read(0, 1)
            # Whoever writes by now, the readers go on.
            assert own[sid].metadata == reader[sid].metadata == {"number": 2}
            try:
                manager.unlink()
            except ForkedHandle:
                print("refused", flush=True)

        manager = SessionManager(name, capacity=8)
        reader = SessionReader(name)
        sid = manager.create_session({"number": 1})
        print(sid, flush=True)
        if way == "os":
            if os.fork() == 0:
                sleep()
                # As a process does: with its finalizers.
                sys.exit(0)
        else:
            get_context("fork").Process(target=sleep).start()
        # The input is the child's.
        os.close(0)
        while True:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    """
    with Script(code, name, way) as script:
        sid = UUID(script.line())
        assert script.line() == "asleep"
        script.kill()
        # With no wait at all.
        with SessionManager(name, capacity=8) as manager:
            assert manager.recovery
            assert (manager.recovery.kept, manager.recovery.clean) == (1, False)
            manager.update_session(sid, metadata={"number": 2})
            script.close_input()
            assert script.line() == "refused"
            assert script.rest() == ""
            assert manager.writer_alive
            assert objects_of(name) == {"", ".1"}
            with pytest.raises(WriterAlreadyRunning):
                SessionManager(name)
            manager.unlink()
