"""A manager and the owner processes of its sessions: real processes, which end in every way."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from host import Script, exit_code, forked, in_child
from living import Grandchild, Living, descriptors_left, pidfds
from support import wait_until

from jidoka_shm import OwnerNotAlive, SessionManager, SessionNotFound, SessionReader, processes
from jidoka_shm import reactor as reactor_module
from jidoka_shm.registry import BATCH, Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from jidoka_shm.control import Identity
    from jidoka_shm.reads import SessionReads

KEPT: dict[str, Any] = {"capacity": 128, "cleanup_delay": 3600}


@pytest.fixture
def _no_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be noticed by looking now and then."""
    monkeypatch.setattr(reactor_module, "_WATCH_INTERVAL", 10**6)


@pytest.fixture
def _quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reactor_module, "_WATCH_INTERVAL", 0.005)


no_ticks, quick_ticks = (pytest.mark.usefixtures(each) for each in ("_no_ticks", "_quick_ticks"))


@pytest.fixture
def manager(name: str) -> Iterator[SessionManager]:
    """A manager in whose registry what is terminated stays visible."""
    with SessionManager(name, **KEPT) as made:
        yield made
        made.unlink()


@pytest.fixture
def child() -> Iterator[Living]:
    """A child of this process."""
    with Living() as made:
        yield made


def _error_of(handle: SessionReads, sid: UUID) -> str | None:
    """Wait until a session is terminated and return its error."""
    wait_until(lambda: handle.get_session_status(sid) == "terminated")
    return handle.get_session_info(sid).error


def _wait_for_watches(manager: SessionManager, count: int) -> None:
    """Wait until so many processes are watched, each by a pidfd."""
    wait_until(lambda: len(manager._watches._descriptors) == count == pidfds())


def _wait_until_watched(manager: SessionManager, *pids: int) -> None:
    """Wait until these processes are watched and no others."""
    wait_until(lambda: sorted(_watched(manager)) == sorted(pids))
    _wait_for_watches(manager, len(pids))


def _watched(manager: SessionManager) -> list[int]:
    return [owner.pid for owner in list(manager._watches._descriptors)]


# ---------------------------------------------------------------------------- how it ends


@no_ticks
@pytest.mark.parametrize(
    ("end", "code", "text"),
    [
        (lambda child: child.exit(0), 0, "exited with status 0"),
        (lambda child: child.exit(3), 3, "exited with status 3"),
        (lambda child: child.kill(), -9, "was killed by signal 9 (SIGKILL)"),
    ],
    ids=["exit 0", "exit 3", "SIGKILL"],
)
def test_the_end_of_an_owner_ends_its_sessions_with_an_error_that_says_how(
    manager: SessionManager, child: Living, end: Callable[[Living], None], code: int, text: str
) -> None:
    """P1: it is noticed by a pidfd, with no look at any process now and then."""
    sids = [manager.create_session({"n": n}, pid=child.pid) for n in range(3)]
    manager.update_session(sids[1], status="active")
    others = [manager.create_session(), manager.create_session(pid=os.getpid())]
    _wait_for_watches(manager, 2)
    end(child)
    with SessionReader(manager.name) as reader:
        for number, sid in enumerate(sids):
            assert _error_of(reader, sid) == f"owner process {child.pid} {text}"
            assert reader[sid].metadata == {"n": number}
            with pytest.raises(SessionNotFound):
                reader.get_session_pid(sid)
        assert {sid: reader.get_session_status(sid) for sid in others} == dict.fromkeys(
            others, "initializing"
        )
    # The code that made the child waits for it, and is told how it ended.
    assert child.wait() == code
    _wait_for_watches(manager, 1)
    assert manager.check() == []


@no_ticks
def test_a_session_whose_owner_ended_is_gone_after_the_delay(name: str, child: Living) -> None:
    with SessionManager(name, capacity=8, cleanup_delay=0.05) as manager:
        free = manager._registry.table.free_slots
        sid = manager.create_session(pid=child.pid)
        child.kill()
        wait_until(lambda: sid not in manager)
        assert manager._registry.table.free_slots == free
        manager.unlink()


@no_ticks
def test_an_owner_may_be_a_process_of_another_parent(manager: SessionManager) -> None:
    with Grandchild() as other:
        sid = manager.create_session(pid=other.pid)
        _wait_for_watches(manager, 1)
        other.exit()
        assert _error_of(manager, sid) == f"owner process {other.pid} ended"


@no_ticks
def test_a_sessions_new_owner_is_the_one_that_counts(manager: SessionManager) -> None:
    with Living() as one, Living() as other:
        moved = manager.create_session(pid=one.pid)
        freed = manager.create_session(pid=one.pid)
        stays = manager.create_session(pid=one.pid)
        manager.update_session(moved, pid=other.pid)
        manager.update_session(freed, pid=None)
        one.exit(1)
        assert _error_of(manager, stays) == f"owner process {one.pid} exited with status 1"
        assert manager.get_session_status(moved) == "initializing"
        other.exit(2)
        assert _error_of(manager, moved) == f"owner process {other.pid} exited with status 2"
        assert manager.get_session_status(freed) == "initializing"


@no_ticks
def test_the_managers_own_process_may_be_an_owner(manager: SessionManager, child: Living) -> None:
    own, other = manager.create_session(pid=os.getpid()), manager.create_session(pid=child.pid)
    child.kill()
    assert _error_of(manager, other)
    assert manager.get_session_status(own) == "initializing"
    assert manager.get_session_pid(own) == os.getpid()


@no_ticks
def test_an_owner_that_dies_while_its_session_is_made_is_noticed(
    manager: SessionManager, child: Living
) -> None:
    owner = processes.find(child.pid)
    find = processes.find

    def find_and_die(pid: int) -> Identity | None:
        found = find(pid)
        child.kill()
        child.wait()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "find", find_and_die)
        sid = manager.create_session(pid=child.pid)
    assert owner is not None
    assert _error_of(manager, sid) == f"owner process {child.pid} is gone"


def test_an_owner_that_starts_again_under_its_pid_is_another(
    manager: SessionManager, child: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P1: an owner that is recorded with another start time than its pid's process is dead."""
    owner = processes.find(child.pid)
    assert owner is not None
    with monkeypatch.context() as patch:
        patch.setattr(processes, "find", lambda _: replace(owner, start=owner.start - 1))
        sid = manager.create_session(pid=child.pid)
    assert _error_of(manager, sid) == f"owner process {child.pid} is gone"


@no_ticks
def test_a_hundred_owners_killed_at_once_leave_nothing(name: str) -> None:
    """P3: 100 sessions are terminated and their slots used again; no state of the dead stays."""
    with SessionManager(name, capacity=100, cleanup_delay=0.02) as manager, ExitStack() as ends:
        free = manager._registry.table.free_slots
        children = [ends.enter_context(Living()) for _ in range(100)]
        sids = [manager.create_session({"pid": each.pid}, pid=each.pid) for each in children]
        assert len(manager) == 100
        _wait_for_watches(manager, 100)
        for each in children:
            each.kill()
        wait_until(lambda: not any(sid in manager for sid in sids))
        _wait_for_watches(manager, 0)
        registry = manager._registry
        assert registry.table.free_slots == free
        kept = (registry.owners, registry._deadlines, manager._ended, manager._watches.ended)
        assert [len(each) for each in kept] == [0] * 4
        for _ in range(100):
            manager.create_session(pid=os.getpid())
        assert manager.check() == []
        manager.unlink()


# ---------------------------------------------------------------------------- who may own


def test_an_owner_that_cannot_be_looked_at_is_an_error_and_nothing_changes(
    manager: SessionManager, child: Living
) -> None:
    """For want of a descriptor: the session would stay for ever."""
    sid = manager.create_session()
    before = manager[sid]
    with descriptors_left(0):
        for change in (
            lambda: manager.create_session(pid=child.pid),
            lambda: manager.update_session(sid, pid=child.pid),
        ):
            with pytest.raises(OSError, match="Too many open files"):
                change()
    assert list(manager.items()) == [(sid, before)]
    manager.update_session(sid, pid=child.pid)
    child.kill()
    assert str(_error_of(manager, sid)).endswith("(SIGKILL)")


@pytest.mark.parametrize("zombie", [False, True])
def test_a_pid_of_nobody_is_refused_and_nothing_changes(
    manager: SessionManager, child: Living, *, zombie: bool
) -> None:
    sid = manager.create_session({"a": 1}, pid=os.getpid())
    wait_until(lambda: not manager._registry.owners.arrived)
    child.become_zombie()
    if not zombie:
        child.wait()
    before = (manager.version, dict(manager), manager._registry.next_turn(), manager.stats())
    for call in (
        lambda: manager.create_session({"b": 2}, pid=child.pid),
        lambda: manager.update_session(sid, status="active", metadata={}, pid=child.pid),
    ):
        with pytest.raises(OwnerNotAlive) as caught:
            call()
        assert caught.value.pid == child.pid
        assert isinstance(caught.value, ValueError)
    assert before == (
        manager.version,
        dict(manager),
        manager._registry.next_turn(),
        manager.stats(),
    )


# ---------------------------------------------------------------------------- takeovers


@pytest.mark.parametrize("end", ["closed", "killed"])
@pytest.mark.parametrize("zombie", [False, True])
def test_owners_that_died_meanwhile_are_found_at_a_takeover(
    name: str, child: Living, caplog: pytest.LogCaptureFixture, end: str, *, zombie: bool
) -> None:
    code = """
        import sys
        from jidoka_shm import SessionManager
        with SessionManager(sys.argv[1], capacity=16, cleanup_delay=3600) as manager:
            for pid in map(int, sys.argv[2:]):
                for _ in range(3):
                    print(manager.create_session(pid=pid or None))
            print("done", flush=True)
            input()
    """
    with Script(code, name, 0, os.getpid(), child.pid) as script:
        sids = list(iter(script.line, "done"))
        if end == "killed":
            script.kill()
        else:
            script.go()
            script.end()
    child.become_zombie(3)
    if not zombie:
        child.wait()
    with (
        caplog.at_level(logging.WARNING, "jidoka_shm"),
        SessionManager(name, **KEPT) as manager,
    ):
        # At once: nobody finds one alive in a registry that has a manager again.
        assert [manager.get_session_status(sid).value for sid in sids] == (
            ["initializing"] * 6 + ["terminated"] * 3
        )
        errors = [manager[sid].error for sid in sids]
        assert errors == [None] * 6 + [f"owner process {child.pid} is gone"] * 3
        assert manager.recovery
        assert manager.recovery.kept == 9
        (line,) = [record.getMessage() for record in caplog.records]
        assert line == f"registry {name!r}: owner processes gone: 1; sessions terminated: 3"
        _wait_for_watches(manager, 1)
        assert manager.check() == []
        manager.unlink()


@no_ticks
def test_owners_that_live_on_are_watched_by_the_next_manager(name: str, child: Living) -> None:
    with SessionManager(name, **KEPT) as manager:
        sid = manager.create_session(pid=child.pid)
    assert pidfds() == 0
    with SessionManager(name, **KEPT) as manager:
        assert manager.get_session_pid(sid) == child.pid
        _wait_for_watches(manager, 1)
        child.exit(3)
        assert _error_of(manager, sid) == f"owner process {child.pid} exited with status 3"
        manager.unlink()


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize(
    ("other", "is_known"),
    [({"start": 1}, True), ({"start": 0}, False), ({"namespace": 1}, False), ({"namespace": 0}, False)],
    ids=str,
)  # fmt: skip
def test_a_takeover_judges_an_owner_by_what_is_recorded_of_it(
    name: str, child: Living, other: dict[str, int], *, is_known: bool, gone: bool
) -> None:
    """P1, P2: another start time is another process; of another pid namespace nothing is known."""
    owner = processes.find(child.pid)
    assert owner is not None
    find = processes.find
    with pytest.MonkeyPatch.context() as patch, SessionManager(name, **KEPT) as manager:
        # Else this manager would come to judge it first.
        manager._reactor.stop()
        patch.setattr(processes, "find", lambda _: replace(owner, **other))
        sid = manager.create_session(pid=child.pid)
        patch.setattr(processes, "find", find)
        living = manager.create_session(pid=os.getpid())
    if gone:
        child.kill()
        child.wait()
    with SessionManager(name, **KEPT) as manager:
        assert (manager.get_session_status(sid) == "terminated") is is_known
        _wait_for_watches(manager, 1)
        assert (manager.get_session_status(sid) == "terminated") is is_known
        assert manager.get_session_status(living) == "initializing"
        manager.unlink()


# ---------------------------------------------------------------------------- without pidfds


@quick_ticks
@pytest.mark.parametrize("refusal", [errno.EMFILE, errno.ENOSYS], ids=errno.errorcode.get)
def test_where_pidfds_are_refused_the_end_of_an_owner_is_noticed_all_the_same(
    manager: SessionManager, child: Living, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    def pidfd_open(_: int) -> int:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    sid, other = manager.create_session(pid=child.pid), manager.create_session(pid=os.getpid())
    wait_until(lambda: len(manager._watches._polled) == 2)
    assert manager.get_session_status(sid) == "initializing"
    child.exit(3)
    assert _error_of(manager, sid) == f"owner process {child.pid} ended"
    assert child.wait() == 3
    assert manager.get_session_status(other) == "initializing"
    wait_until(lambda: len(manager._watches._polled) == 1)


# ---------------------------------------------------------------------------- what it costs


@no_ticks
def test_a_thousand_sessions_of_one_process_cost_one_descriptor_and_a_wake_or_two(
    name: str,
) -> None:
    with SessionManager(name, capacity=1001, cleanup_delay=3600) as manager:
        loop: Any = manager._reactor._loop
        wake, wakes = loop.call_soon_threadsafe, []
        loop.call_soon_threadsafe = lambda *call: (wakes.append(call), wake(*call))
        for _ in range(1000):
            manager.create_session(pid=os.getpid())
        _wait_for_watches(manager, 1)
        manager.create_session(pid=os.getpid())
        # One for the owner; a second where it came between a turn and its end.
        assert 1 <= len(wakes) <= 2
        manager.unlink()


def test_sessions_without_an_owner_wake_nobody(name: str) -> None:
    with SessionManager(name, capacity=8, cleanup_delay=3600) as manager:
        loop: Any = manager._reactor._loop
        wake, wakes = loop.call_soon_threadsafe, []
        loop.call_soon_threadsafe = lambda *call: (wakes.append(call), wake(*call))
        sid = manager.create_session()
        manager.update_session(sid, status="active")
        manager.update_session(sid, pid=None)
        assert (wakes, pidfds()) == ([], 0)
        manager.unlink()


@quick_ticks
@pytest.mark.parametrize("change", ["another", "none", "terminated", "ended"])
def test_a_process_that_owns_nothing_any_more_is_watched_no_longer(
    manager: SessionManager, child: Living, change: str
) -> None:
    sids = [manager.create_session(pid=child.pid) for _ in range(2)]
    _wait_for_watches(manager, 1)
    for sid in sids:
        # By its other session, where this is the second one.
        assert child.pid in _watched(manager)
        if change == "ended":
            manager.terminate_session(sid)
        elif change == "terminated":
            manager.update_session(sid, status="terminated")
        else:
            manager.update_session(sid, pid=1 if change == "another" else None)
    _wait_until_watched(manager, *([1] if change == "another" else []))


@no_ticks
def test_the_many_sessions_of_one_owner_end_some_at_a_time(
    name: str, child: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    owner_ended = Registry.owner_ended

    def count(registry: Registry, *arguments: Any, **limit: int) -> int:  # noqa: ANN401 - its own
        ended.append(owner_ended(registry, *arguments, **limit))
        return ended[-1]

    monkeypatch.setattr(Registry, "owner_ended", count)
    many = 3 * BATCH + 5
    with SessionManager(name, capacity=many, cleanup_delay=3600) as manager:
        for _ in range(many):
            manager.create_session(pid=child.pid)
        child.kill()
        wait_until(lambda: manager.count_by_status()["terminated"] == many)  # type: ignore[index]
        assert (max(ended), sum(ended)) == (BATCH, many)
        manager.unlink()


# ---------------------------------------------------------------------------- logs


@no_ticks
def test_the_log_says_how_an_owner_ended(
    manager: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "jidoka_shm"), Living() as one, Living() as other:
        sids = [manager.create_session(pid=each.pid) for each in (one, other) for _ in range(2)]
        sids.append(manager.create_session(pid=one.pid))
        one.exit(3)
        assert _error_of(manager, sids[0])
        other.kill()
        for sid in sids:
            assert _error_of(manager, sid)
    start = f"registry {manager.name!r}: owner process"
    assert [record.getMessage() for record in caplog.records] == [
        f"{start} {one.pid} exited with status 3; sessions terminated: 3",
        f"{start} {other.pid} was killed by signal 9 (SIGKILL); sessions terminated: 2",
    ]


def _log_together(
    manager: SessionManager, caplog: pytest.LogCaptureFixture, codes: list[int]
) -> tuple[list[int], str]:
    """Have owners end in one turn; return their pids, in order of the log, and its one line."""
    with ExitStack() as later, caplog.at_level(logging.INFO, "jidoka_shm"):
        owners = [later.enter_context(Living()) for _ in codes]
        for each in owners:
            manager.create_session(pid=each.pid)
        _wait_for_watches(manager, len(codes))
        # The loop sees nothing meanwhile.
        ended = threading.Event()
        manager._reactor._loop.call_soon_threadsafe(ended.wait)
        for each, code in zip(owners, codes, strict=True):
            each.become_zombie(code)
        ended.set()
        wait_until(lambda: manager.count_by_status()["initializing"] == 0)
    (record,) = caplog.records
    assert (record.registry, record.owners, record.sessions) == (manager.name, *[len(codes)] * 2)
    assert {*record.owner_pids} <= {each.pid for each in owners}
    return record.owner_pids, f"{record.levelname} {record.getMessage()}"


@no_ticks
@pytest.mark.parametrize("bad", [0, 1])
def test_the_log_has_one_line_for_owners_that_end_together(
    manager: SessionManager, caplog: pytest.LogCaptureFixture, bad: int
) -> None:
    pids, line = _log_together(manager, caplog, [0] * (3 - bad) + [7] * bad)
    for pid in pids:
        assert f"owner process {pid} exited with status" in line
    assert line.startswith("WARNING" if bad else "INFO")
    assert line.endswith(f"exited with status {7 * bad}; sessions terminated: 3") or bad


@no_ticks
def test_the_log_names_the_first_of_many(
    manager: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    pids, line = _log_together(manager, caplog, [0] * 10)
    named = ", ".join(f"owner process {pid} exited with status 0" for pid in pids)
    start = f"INFO registry {manager.name!r}: "
    assert line == f"{start}{named} and 7 more; sessions terminated: 10"


@no_ticks
def test_the_log_says_nothing_of_one_whose_sessions_ended_before_it(
    manager: SessionManager, child: Living, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "jidoka_shm"):
        sid = manager.create_session(pid=child.pid)
        _wait_for_watches(manager, 1)
        manager.terminate_session(sid, "over")
        child.kill()
        _wait_for_watches(manager, 0)
        wait_until(lambda: not (manager._watches.ended or manager._ended))
    assert manager[sid].error == "over"
    assert caplog.records == []


# ---------------------------------------------------------------------------- what goes wrong


@quick_ticks
@pytest.mark.parametrize("step", ["owner_ended", "next_turn", "expire"])
def test_a_turn_that_fails_is_made_up_for(
    manager: SessionManager, child: Living, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    failures: list[int] = []
    original = getattr(Registry, step)

    def fail_at_first(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - its own
        if threading.current_thread() is manager._reactor._thread and len(failures) < 3:
            failures.append(1)
            raise MemoryError
        return original(*arguments, **options)

    # A record kept for a report would keep the traceback, and so the memory.
    monkeypatch.setattr(logging.getLogger("asyncio"), "disabled", True)
    sid = manager.create_session(pid=child.pid)
    _wait_for_watches(manager, 1)
    monkeypatch.setattr(Registry, step, fail_at_first)
    child.exit(3)
    assert _error_of(manager, sid) == f"owner process {child.pid} exited with status 3"
    wait_until(lambda: len(failures) == 3)
    _wait_for_watches(manager, 0)
    assert manager.check() == []


@no_ticks
@pytest.mark.parametrize("exception", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("step", ["_join", "_leave"])
def test_after_an_interrupted_change_the_owners_of_the_table_are_watched(
    manager: SessionManager, exception: type[BaseException], step: str
) -> None:
    with Living() as one, Living() as other:
        sid = manager.create_session(pid=one.pid)
        _wait_for_watches(manager, 1)

        def fail(*_: object) -> None:
            raise exception

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(manager._registry.owners), step, fail)
            with pytest.raises(exception):
                manager.update_session(sid, pid=other.pid)
        assert manager.get_session_pid(sid) == other.pid
        # The next change makes up for it.
        stays = manager.create_session()
        _wait_until_watched(manager, other.pid)
        other.exit(3)
        assert _error_of(manager, sid) == f"owner process {other.pid} exited with status 3"
        assert manager.get_session_status(stays) == "initializing"


@no_ticks
def test_a_session_that_another_change_ended_first_keeps_its_error(
    manager: SessionManager, child: Living
) -> None:
    first, second = (manager.create_session(pid=child.pid) for _ in range(2))
    manager.terminate_session(first, "over")
    child.kill()
    assert str(_error_of(manager, second)).endswith("(SIGKILL)")
    assert manager[first].error == "over"


# ---------------------------------------------------------------------------- ends and forks


@pytest.mark.parametrize("end", ["close", "unlink"])
def test_a_manager_that_ends_lets_go_of_its_watches(name: str, child: Living, end: str) -> None:
    with SessionManager(name, **KEPT) as manager:
        manager.create_session(pid=child.pid)
        manager.create_session(pid=os.getpid())
        _wait_for_watches(manager, 2)
        getattr(manager, end)()
        assert pidfds() == 0
    with SessionManager(name, **KEPT) as manager:
        manager.unlink()


@no_ticks
def test_a_forked_child_holds_no_pidfd_and_the_parent_goes_on(
    manager: SessionManager, child: Living
) -> None:
    sid, other = manager.create_session(pid=child.pid), manager.create_session(pid=os.getpid())
    _wait_for_watches(manager, 2)

    def in_the_child() -> None:
        assert pidfds() == 0
        manager._reactor.stop()

    assert in_child(in_the_child) == 0
    # One that lives on beside the parent, with all that it inherited.
    end, begin = os.pipe()
    sleeper = forked(lambda: (os.close(begin), os.read(end, 1)))
    try:
        _wait_for_watches(manager, 2)
        child.kill()
        assert str(_error_of(manager, sid)).endswith("(SIGKILL)")
        assert manager.get_session_status(other) == "initializing"
        with Living() as later:
            sid = manager.create_session(pid=later.pid)
            later.exit(4)
            assert str(_error_of(manager, sid)).endswith("exited with status 4")
    finally:
        os.close(begin)
        os.close(end)
        assert exit_code(sleeper) == 0


@no_ticks
def test_a_forked_worker_owns_sessions_of_its_parents_manager(manager: SessionManager) -> None:
    ready, tell = os.pipe()
    worker = forked(lambda: (os.write(tell, b"x"), signal.pause()))
    os.read(ready, 1)
    sids = [manager.create_session(pid=worker) for _ in range(3)]
    os.kill(worker, signal.SIGTERM)
    errors = {_error_of(manager, sid) for sid in sids}
    assert errors == {f"owner process {worker} was killed by signal 15 (SIGTERM)"}
    assert exit_code(worker) == -15
    os.close(ready)
    os.close(tell)


@no_ticks
def test_sessions_of_owners_that_come_and_go_for_a_while_all_end(name: str) -> None:
    """P3: owners in turn, each killed at some moment, leave no session and no descriptor."""
    with SessionManager(name, capacity=16, cleanup_delay=0.001) as manager:
        for number in range(60):
            with Living() as one:
                for _ in range(number % 4):
                    manager.create_session(pid=one.pid)
                if number % 2:
                    # Else it is killed before it is watched, or after; as it comes.
                    _wait_for_watches(manager, 1)
            wait_until(lambda: len(manager) == 0)
        _wait_for_watches(manager, 0)
        assert manager.check() == []
        manager.unlink()
