"""Signal handlers and finalizers that call the manager inside the manager's own calls."""

from __future__ import annotations

import contextlib
import gc
import itertools
import signal
import weakref
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from host import stop_at_line
from support import wait_until

from jidoka_shm import (
    ReentrantCall,
    RegistryClosed,
    SessionManager,
    SessionReader,
    reactor,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jidoka_shm.reads import SessionReads

SID, OTHER = UUID(int=1), UUID(int=2)

#: Every change, each of the session SID.
CHANGES: dict[str, Callable[[SessionManager], object]] = {
    "create": lambda manager: manager.create_session({"new": 1}, ttl=600),
    "update": lambda manager: manager.update_session(SID, status="active", ttl=600),
    "terminate": lambda manager: manager.terminate_session(SID),
}

#: Every other call that takes the manager's lock, or reads.
OTHERS: dict[str, Callable[[SessionManager], object]] = {
    "turn": lambda manager: manager._turn(),
    "watch": lambda manager: manager._watch(),
    "check": lambda manager: manager.check(),
    "look up": lambda manager: manager[OTHER],
    "list": lambda manager: manager.list_sessions(),
    "count": lambda manager: manager.count_by_status(),
    "stats": lambda manager: manager.stats(),
}

every_call = pytest.mark.parametrize("call", [*CHANGES, *OTHERS])


@pytest.fixture
def manager(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SessionManager]:
    """A manager whose own thread does nothing meanwhile."""
    monkeypatch.setattr(reactor, "_WATCH_INTERVAL", 10**6)
    with _manager(name) as made:
        yield made
        made.unlink()


def _manager(name: str, **options: Any) -> SessionManager:  # noqa: ANN401 - a manager's own
    return SessionManager(name, **{"capacity": 8, "cleanup_delay": 3600} | options)


def _remove(manager: SessionManager, sid: UUID) -> None:
    """Remove a session at once, by what a turn of the reactor calls."""
    found = manager._registry.table.look_up(sid)
    if found is not None:
        manager._registry.table.remove(found[0])
        manager._registry._deadlines.set(sid.int, None)


def _read(handle: SessionReads) -> dict[UUID, Any]:
    """Read in every way, and return what was read once all agree."""
    sessions = {session.session_id: session for session in handle.values()}
    assert set(handle) == set(sessions)
    assert len(handle) == len(handle.snapshot()) == sum(handle.count_by_status().values())
    assert {sid: handle[sid] for sid in sessions} == sessions
    assert {sid: handle.get_session_status(sid) for sid in sessions} == {
        sid: session.status for sid, session in sessions.items()
    }
    living = {session.session_id for session in handle.list_sessions()}
    assert living == {sid for sid in sessions if sessions[sid].status != "terminated"}
    return sessions


def _interrupted_by(
    handler: Callable[[], object],
    work: Callable[[], object],
    before: Callable[[], object] = int,
    after: Callable[[], object] = int,
) -> int:
    """Do ``work`` again and again, ``handler`` called before a later line of it each time."""
    for number in itertools.count(1):
        before()
        called = []

        def handle(called: list[int] = called) -> None:
            called.append(1)
            handler()

        stop_at_line(number, work, handle)
        after()
        if not called:
            return number
    raise AssertionError


# ---------------------------------------------------------------------------- signal handlers


@every_call
def test_a_handler_reads_the_old_or_the_new_at_every_line_of_a_call(
    manager: SessionManager, call: str
) -> None:
    manager.create_session({"other": 1}, session_id=OTHER)
    read: list[dict[UUID, Any]] = []
    states: list[dict[UUID, Any]] = []

    def begin() -> None:
        manager.create_session({"a": 1}, session_id=SID)
        states[:] = [_read(manager)]

    def end() -> None:
        states.append(_read(manager))
        assert states[0] == states[1] or call in CHANGES
        for each in read:
            assert each in states
        read.clear()
        for sid in set(states[1]) - {OTHER}:
            _remove(manager, sid)
        assert manager.check() == []

    with SessionReader(manager.name) as reader:
        work = (CHANGES | OTHERS)[call]
        _interrupted_by(
            lambda: read.extend([_read(manager), _read(reader)]),
            lambda: work(manager),
            begin,
            end,
        )


@every_call
@pytest.mark.parametrize("inner", CHANGES)
def test_a_handlers_change_is_refused_or_whole_at_every_line_of_a_call(
    manager: SessionManager, call: str, inner: str
) -> None:
    manager.create_session({"other": 1}, session_id=OTHER)
    outcomes = set()
    changed: list[UUID] = []

    def handler() -> None:
        # Of a session that the call itself is not about.
        try:
            if inner == "create":
                manager.create_session(session_id=UUID(int=5))
            elif inner == "update":
                manager.update_session(OTHER, metadata={"other": 2})
            else:
                manager.terminate_session(OTHER)
        except ReentrantCall:
            outcomes.add("refused")
        else:
            outcomes.add("done")
            changed.append(OTHER)

    def begin() -> None:
        manager.create_session({"a": 1}, session_id=SID)
        changed.clear()

    def end() -> None:
        done = bool(changed)
        assert (UUID(int=5) in manager) is (done and inner == "create")
        assert manager[OTHER].metadata == {"other": 1 + (done and inner == "update")}
        assert (manager[OTHER].status == "terminated") is (done and inner == "terminate")
        assert manager.check() == []
        # What the call itself was to do is done.
        assert len(manager) == 2 + (call == "create") + (done and inner == "create")
        if call in {"update", "terminate"}:
            assert manager[SID].status == {"update": "active", "terminate": "terminated"}[call]
        for sid in list(manager):
            _remove(manager, sid)
        manager.create_session({"other": 1}, session_id=OTHER)

    work = (CHANGES | OTHERS)[call]
    _interrupted_by(handler, lambda: work(manager), begin, end)
    if call in {*CHANGES, "turn"}:
        assert outcomes == {"refused", "done"}
    elif call in {"look up", "list", "count", "stats"}:
        assert outcomes == {"done"}


@pytest.mark.parametrize("call", CHANGES)
def test_a_handlers_close_is_done_by_the_end_of_the_change_it_interrupts(
    name: str, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(reactor, "_WATCH_INTERVAL", 10**6)
    managers: list[SessionManager] = []
    deferred = set()

    def begin() -> None:
        managers[:] = [_manager(name, fresh=True)]
        managers[0].create_session(session_id=SID)

    def close() -> None:
        managers[0].close()
        deferred.add(not managers[0]._closed)

    def work() -> None:
        try:
            CHANGES[call](managers[0])
        except RegistryClosed:
            assert managers[0]._closed

    def end() -> None:
        closed = managers[0]._closed
        managers[0].close()
        with pytest.raises(RegistryClosed):
            len(managers[0])
        with _manager(name) as successor:
            assert successor.recovery
            assert successor.recovery.clean
            assert successor.check() == []
        # The very last round comes to its end with no handler called.
        rounds.append(closed)

    rounds: list[bool] = []
    _interrupted_by(close, work, begin, end)
    assert all(rounds[:-1])
    assert deferred == {False, True}
    managers[0].unlink()


def test_a_handler_reads_at_every_line_of_attaching_again(name: str) -> None:
    manager = _manager(name)
    with SessionReader(name, timeout=5) as reader:
        read: list[bool] = []

        def replace() -> None:
            nonlocal manager
            manager.close()
            manager = _manager(name, fresh=True)
            manager.create_session(session_id=SID)

        def end() -> None:
            assert all(read)
            assert reader.stats().instance == manager._instance

        def look() -> None:
            read.append(SID in reader)

        number = _interrupted_by(look, look, replace, end)
        assert number > 60
        manager.unlink()


def test_a_handler_may_replace_the_registry_while_a_reader_attaches_again(name: str) -> None:
    manager = _manager(name)
    numbers = itertools.count(1)
    with SessionReader(name, timeout=5) as reader:

        def replace() -> None:
            nonlocal manager
            manager.close()
            manager = _manager(name, fresh=True)
            manager.create_session({"number": next(numbers)}, session_id=SID)

        def replace_and_look() -> None:
            replace()
            assert reader[SID] == manager[SID]

        def look() -> None:
            looked.append(reader[SID].metadata["number"])

        def end() -> None:
            # What it found was there at some moment of the look-up, and it has gone on to the last.
            assert first[-1] <= looked[-1] <= manager[SID].metadata["number"]
            assert reader[SID] == manager[SID]

        looked: list[int] = []
        first: list[int] = []

        def begin() -> None:
            replace()
            first.append(manager[SID].metadata["number"])

        assert _interrupted_by(replace_and_look, look, begin, end) > 60
        manager.unlink()


def test_signals_at_a_high_rate_find_every_call_in_order(name: str) -> None:
    outcomes = dict.fromkeys(("done", "refused", "read"), 0)
    ids = [UUID(int=at) for at in range(1, 9)]

    def handler(*_: object) -> None:
        sid = ids[outcomes["read"] % 8]
        for handle in (manager, reader):
            assert handle[sid].metadata["number"] >= 0
            assert len(handle) == 8
            assert {session.session_id for session in handle.values()} == set(ids)
        outcomes["read"] += 1
        try:
            manager.update_session(sid, metadata={"number": outcomes["read"]})
        except ReentrantCall:
            outcomes["refused"] += 1
        else:
            outcomes["done"] += 1

    with _manager(name, cleanup_delay=0.001) as manager, SessionReader(name) as reader:
        for sid in ids:
            manager.create_session({"number": 0}, session_id=sid)
        before = signal.signal(signal.SIGVTALRM, handler)
        # Of the time that this process computes, so that a machine under load changes nothing.
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0005, 0.0005)
        try:
            for number in itertools.count():
                manager.update_session(ids[number % 8], metadata={"number": number})
                if min(outcomes.values()) >= 100:
                    break
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)
        assert manager.check() == []
        table = manager._registry.table
        assert table.free_slots == table.slots.count - 8
        manager.unlink()


def test_interrupts_at_a_high_rate_leave_all_in_order(name: str) -> None:
    came: list[int] = []

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def change() -> None:
        """Bring a session through all its life."""
        sid = manager.create_session({"a": 1}, ttl=600)
        manager.update_session(sid, status="active", metadata={"a": 2})
        manager.terminate_session(sid)
        manager._expire()

    def change_until_interrupted() -> None:
        try:
            # Of the time that this process computes; each time at another place.
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.0002 + len(came) * 1e-6)
            while True:
                change()
        except KeyboardInterrupt:
            came.append(1)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    before = signal.signal(signal.SIGVTALRM, interrupt)
    with _manager(name, capacity=500, cleanup_delay=0) as manager, SessionReader(name) as reader:
        kept = manager.create_session({"kept": 1})
        other = manager.create_session({"other": 1})
        session = manager[kept]
        for _ in range(200):
            change_until_interrupted()
            # The next change repairs what was cut short.
            manager.update_session(other, metadata={"other": 2})
            assert manager[kept] == reader[kept] == session
            assert manager.check() == []
        manager.unlink()
    signal.signal(signal.SIGVTALRM, before)
    assert len(came) == 200


# ---------------------------------------------------------------------------- finalizers


class Cycle:
    """Garbage that only the cyclic collector finds, wherever that comes to run."""

    def __init__(self, do: Callable[[], object] = int) -> None:
        self.me = self
        self.do = do

    def __del__(self) -> None:
        self.do()


@pytest.fixture
def collector() -> Iterator[Callable[[int], None]]:
    """Give what makes the collector run once so many more objects were made."""
    before = gc.get_threshold()
    yield gc.set_threshold
    gc.set_threshold(*before)


@pytest.mark.parametrize("way", ["__del__", "finalize"])
def test_a_finalizer_reads_and_changes_or_is_refused(
    name: str, collector: Callable[[int], None], way: str
) -> None:
    outcomes = dict.fromkeys(("done", "refused"), 0)
    # So that it comes to run at every place of the calls.
    objects = itertools.cycle(range(1, 100))
    kept, failures = UUID(int=1), []

    def finalize() -> None:
        # In whatever thread and call the collector runs; whatever it raises would be lost.
        try:
            assert manager[kept].metadata["kept"] > 0
            assert kept in {session.session_id for session in manager.list_sessions()}
            manager.update_session(kept, metadata={"kept": 2})
        except ReentrantCall:
            outcomes["refused"] += 1
        except BaseException as error:  # noqa: BLE001 - as said
            failures.append(error)
        else:
            outcomes["done"] += 1

    def drop() -> None:
        if way == "__del__":
            Cycle(finalize)
        else:
            weakref.finalize(Cycle(), finalize).atexit = False
        collector(next(objects))

    with _manager(name, cleanup_delay=0) as manager:
        manager.create_session({"kept": 1}, session_id=kept)
        while min(outcomes.values()) < 50 and not failures:
            drop()
            sid = manager.create_session({"a": 1})
            drop()
            manager.update_session(sid, status="active")
            drop()
            manager.terminate_session(sid)
            # Its removal is by the manager's own thread, which the collector may meet too.
            wait_until(lambda sid=sid: sid not in manager)
        gc.collect()
        assert failures == []
        assert manager.check() == []
        manager.unlink()


def test_a_finalizers_close_is_done_when_the_change_ends(
    name: str, collector: Callable[[int], None]
) -> None:
    deferred = set()
    for objects in range(1, 1000):
        manager = _manager(name)

        def close(manager: SessionManager = manager) -> None:
            manager.close()
            deferred.add(not manager._closed)

        manager.create_session(session_id=SID)
        with contextlib.suppress(RegistryClosed):
            while True:
                Cycle(close)
                collector(objects)
                manager.update_session(SID, metadata={"a": 1})
        with pytest.raises(RegistryClosed):
            len(manager)
        with _manager(name) as successor:
            assert SID in successor
            successor.unlink()
        if deferred == {False, True}:
            break
    assert deferred == {False, True}
