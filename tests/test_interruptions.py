"""An exception at every line of every change: the session is the old or the new one, no third.

A ``KeyboardInterrupt`` may come at any line, and so may a ``MemoryError``, which ``except
Exception`` catches and the other passes by.
"""

from __future__ import annotations

import itertools
import logging
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import pytest
from host import stop_at_line
from support import wait_until

from jidoka_shm import (
    RecordTooLarge,
    SessionManager,
    SessionNotFound,
    SessionReader,
    processes,
    reactor,
)
from jidoka_shm import writes as writes_module
from jidoka_shm.marks import Instant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jidoka_shm import Session

either_exception = pytest.mark.parametrize("exception", [KeyboardInterrupt, MemoryError])

SECOND = 10**9
#: How long what is terminated stays, and a time to live that no test reaches, in seconds.
DELAY, FOREVER = 3600, 10**9


class Clock:
    """Both clocks, which stand still until they are moved."""

    def __init__(self) -> None:
        self.now = Instant(1_700_000_000 * SECOND, SECOND)

    def move(self, seconds: int) -> None:
        self.now = Instant(self.now.wall + seconds * SECOND, self.now.monotonic + seconds * SECOND)

    def at(self, seconds: int = 0) -> str:
        """Return a time so many seconds ahead, as a session's ``to_dict`` has it."""
        now = datetime.fromtimestamp(self.now.wall // SECOND, UTC)
        return (now + timedelta(seconds=seconds)).isoformat()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all managers, whose own threads do nothing meanwhile."""
    made = Clock()
    monkeypatch.setattr(writes_module, "_now", lambda: made.now)
    monkeypatch.setattr(reactor, "_WATCH_INTERVAL", 10**6)
    # Else an owner that is new would have it make up at once for what an interruption left.
    monkeypatch.setattr(SessionManager, "_turn", lambda _: None)
    return made


@pytest.fixture
def manager(name: str, clock: Clock) -> Iterator[SessionManager]:
    """A manager whose deadlines only come when the test says so."""
    options = {"capacity": 24, "slot_size": 448, "max_record_size": 448}
    with SessionManager(name, cleanup_delay=DELAY, **options) as made:
        yield made
        made.unlink()


class Change(NamedTuple):
    """One change, and what it is to do.

    Attributes:
        do: the call, with a manager and the id of the session.
        to: what is different afterwards, as ``to_dict`` has it, given the clock.
        given: what the session was created with.
    """

    do: Callable[[SessionManager, UUID], object]
    to: Callable[[Clock], dict[str, Any]]
    given: dict[str, Any] = {}  # noqa: RUF012 - read only


def _update(to: dict[str, Any], **fields: Any) -> Change:  # noqa: ANN401 - of an update
    return Change(lambda manager, sid: manager.update_session(sid, **fields), lambda _: to)


def _fill(manager: SessionManager) -> dict[str, Any]:
    """Return the largest metadata that a session can have."""
    low, high = 0, manager.stats().slot_size
    while high - low > 1:
        size = (low + high) // 2
        sid = UUID(int=0xF111)
        try:
            manager.create_session({"fill": "x" * size}, session_id=sid)
        except RecordTooLarge:
            high = size
        else:
            low = size
            _remove(manager, sid)
    return {"fill": "x" * low}


def _remove(manager: SessionManager, sid: UUID) -> None:
    """Remove a session at once, by what a turn of the reactor calls."""
    found = manager._registry.table.look_up(sid)
    if found is not None:
        manager._registry.table.remove(found[0])
        manager._registry._deadlines.set(sid.int, None)
        manager._registry.owners.set(sid.int, None)


CHANGES: dict[str, Change] = {
    "status": _update({"status": "active"}, status="active"),
    "metadata": _update({"metadata": {"b": [2]}}, metadata={"b": [2]}),
    "llm_config": _update({"llm_config": {"m": "n"}}, llm_config={"m": "n"}),
    "maps to nothing": _update({"metadata": {}, "llm_config": {}}, metadata=None, llm_config=None),
    "pid": _update({"pid": 1}, pid=1),
    "pid to nothing": _update({"pid": None}, pid=None),
    "ttl": Change(
        lambda manager, sid: manager.update_session(sid, ttl=5),
        lambda clock: {"expires_at": clock.at(5)},
    ),
    "ttl to nothing": _update({"expires_at": None}, ttl=None),
    "nothing": _update({}),
    "all": Change(
        lambda manager, sid: manager.update_session(
            sid, status="active", metadata={}, llm_config={"x": 1}, pid=1, ttl=7
        ),
        lambda clock: {
            "status": "active",
            "metadata": {},
            "llm_config": {"x": 1},
            "pid": 1,
            "expires_at": clock.at(7),
        },
    ),
    "status to terminated": _update({"status": "terminated"}, status="terminated"),
    "after another interruption": Change(
        lambda manager, sid: (
            setattr(manager, "_interrupted", True),
            manager.update_session(sid, metadata={}),
        ),
        lambda _: {"metadata": {}},
    ),
    "terminate": Change(
        lambda manager, sid: manager.terminate_session(sid),
        lambda _: {"status": "terminated"},
    ),
    "terminate with an error": Change(
        lambda manager, sid: manager.terminate_session(sid, "it broke"),
        lambda _: {"status": "terminated", "error": "it broke"},
    ),
}


def _interrupted(number: int, work: Callable[[], object], exception: type[BaseException]) -> bool:
    """Do ``work`` with ``exception`` before its ``number``-th line; return whether that came."""
    came = []

    def stop() -> None:
        came.append(number)
        raise exception

    try:
        stop_at_line(number, work, stop)
    except exception:
        # Not one of the work's own.
        assert came
    # Nothing on the way may have swallowed it.
    else:
        assert not came
    return bool(came)


def _check_bookkeeping(manager: SessionManager) -> None:
    """Assert that what the manager keeps beside the table is what the table says."""
    assert manager.check() == []
    table = manager._registry.table
    assert table.free_slots == table.slots.count - manager.usage().slots_used
    deadlines = {sid.int: session.payload().deadline for sid, session in manager.items()}
    known = {key: due for key, due in deadlines.items() if due is not None}
    assert manager._registry._deadlines._due == known
    assert manager._registry._deadlines.next() == min(known.values(), default=None)
    owned = {
        sid.int: session.pid
        for sid, session in manager.items()
        if session.pid is not None and session.status != "terminated"
    }
    owners = manager._registry.owners
    assert {key: owner.pid for owner in owners for key in owners.sessions_of(owner)} == owned
    assert {key: group.owner.pid for key, group in owners._group_of.items()} == owned


class Bystanders:
    """Sessions that no interrupted change is of, and so must be as they were."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager
        made = [manager.create_session({"at": at}, ttl=FOREVER) for at in range(3)]
        # Of the homes 1 and 2, so that the session of id 1 lies beyond them and needs a reach.
        size = manager.stats().index_size
        made += [manager.create_session(session_id=UUID(int=size + at)) for at in (1, 2)]
        self._touched = made.pop()
        self._before = {sid: manager[sid] for sid in made}

    def check(self) -> None:
        assert {sid: self._manager[sid] for sid in self._before} == self._before

    def make_a_change(self) -> None:
        """Make the change that is to repair what an interruption left."""
        self._manager.update_session(self._touched, metadata={"at": 4})
        self._manager._expire()


# ---------------------------------------------------------------------------- one session


@either_exception
def test_an_interrupted_create_made_all_of_the_session_or_nothing(
    manager: SessionManager, clock: Clock, exception: type[BaseException]
) -> None:
    sid, bystanders = UUID(int=1), Bystanders(manager)
    outcomes = set()
    with SessionReader(manager.name) as reader:
        for number in itertools.count(1):
            came = _interrupted(
                number,
                lambda: manager.create_session({"a": 1}, {"b": 2}, 1, 60, sid),
                exception,
            )
            after = manager.get(sid)
            outcomes.add(after is not None)
            if after is not None:
                assert after.to_dict() == {
                    "session_id": str(sid),
                    "status": "initializing",
                    "pid": 1,
                    "metadata": {"a": 1},
                    "llm_config": {"b": 2},
                    "created_at": clock.at(),
                    "updated_at": clock.at(),
                    "expires_at": clock.at(60),
                    "error": None,
                    "version": after.version,
                }
            _check_outcome(manager, reader, bystanders, sid, after)
            _remove(manager, sid)
            if not came:
                break
    assert number > 80
    assert outcomes == {False, True}


def _check_outcome(
    manager: SessionManager,
    reader: SessionReader,
    bystanders: Bystanders,
    sid: UUID,
    after: Session | None,
) -> None:
    """Assert that what an interruption left is what everybody sees, and that it stays."""
    assert reader.get(sid) == after
    assert {session.session_id: session for session in reader.values()}.get(sid) == after
    bystanders.check()
    bystanders.make_a_change()
    assert manager.get(sid) == reader.get(sid) == after
    bystanders.check()
    assert manager.version == reader.version is not None
    _check_bookkeeping(manager)


def _run(
    manager: SessionManager, clock: Clock, change: Change, exception: type[BaseException]
) -> int:
    """Interrupt a change at each of its lines and return how many there are."""
    sid, bystanders = UUID(int=1), Bystanders(manager)
    given = {
        "metadata": {"a": 1},
        "llm_config": {"m": 1},
        "pid": os.getpid(),
        "ttl": 600,
    } | change.given
    outcomes = set()
    with SessionReader(manager.name) as reader:
        for number in itertools.count(1):
            manager.create_session(**given, session_id=sid)
            old = manager[sid]
            assert old == reader[sid]
            clock.move(1)
            came = _interrupted(number, lambda: change.do(manager, sid), exception)
            after = manager[sid]
            outcomes.add(after == old)
            if after != old:
                new = old.to_dict() | change.to(clock)
                new |= {"updated_at": clock.at(), "version": after.version}
                assert after.to_dict() == new
                assert after.version > old.version
            _check_outcome(manager, reader, bystanders, sid, after)
            _remove(manager, sid)
            if not came:
                break
    assert outcomes == {False, True}
    return number


@pytest.mark.parametrize(
    ("change", "exception"),
    [
        *((change, KeyboardInterrupt) for change in CHANGES),
        *((change, MemoryError) for change in ("all", "terminate", "after another interruption")),
    ],
)
def test_an_interrupted_change_of_a_session_is_done_or_not_begun(
    manager: SessionManager, clock: Clock, change: str, exception: type[BaseException]
) -> None:
    assert _run(manager, clock, CHANGES[change], exception) > 80


@either_exception
def test_an_interrupted_end_that_has_to_be_cut_is_done_or_not_begun(
    manager: SessionManager, clock: Clock, exception: type[BaseException]
) -> None:
    given = {"metadata": _fill(manager), "llm_config": None, "pid": None, "ttl": None}
    sid = manager.create_session(given["metadata"])
    manager.terminate_session(sid, "x" * 1000)
    error = manager[sid].error
    assert error
    assert len(error) < 1000
    _remove(manager, sid)
    change = Change(
        lambda manager, sid: manager.terminate_session(sid, "x" * 1000),
        lambda _: {"status": "terminated", "error": error},
        given,
    )
    assert _run(manager, clock, change, exception) > 120


def _without_version(session: Session) -> dict[str, Any]:
    return session.to_dict() | {"version": None}


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (lambda manager, sid: manager.update_session(sid, status="active"), 100),
        (lambda manager, sid: manager.update_session(sid, metadata={}), 80),
        (lambda manager, sid: manager.terminate_session(sid, "x" * 1000), 150),
    ],
    ids=["status", "shorter", "end"],
)
def test_an_interrupted_change_of_a_long_record_in_a_full_table_is_done_or_not_begun(
    name: str, clock: Clock, change: Callable[[SessionManager, UUID], Session], lines: int
) -> None:
    """It has no room but the reserve, which the next call finds again."""
    sid, longest, outcomes = UUID(int=1), UUID(int=2), set()
    long = {"metadata": {"a": "x" * 300}, "session_id": sid}
    options = {"capacity": 99, "slot_size": 128, "cleanup_delay": DELAY}
    with SessionManager(name, **options) as manager, SessionReader(name) as reader:
        manager.create_session({"a": "x" * 600}, session_id=longest)
        bystanders = [manager.create_session({"n": n}) for n in range(3)]
        room = manager._registry.table.space.longest
        manager.create_session(**long)
        manager.resize(manager.usage().slots_used + room)
        for number in itertools.count(1):
            clock.move(1)
            old = manager[sid]
            came = _interrupted(number, lambda: change(manager, sid), KeyboardInterrupt)
            after = manager[sid]
            outcomes.add(after == old)
            assert after == reader[sid]
            manager.update_session(longest, status=manager[longest].status)
            # Where it stood in the reserve it was committed once more.
            assert _without_version(manager[sid]) == _without_version(after)
            assert manager[sid] == reader[sid]
            _check_bookkeeping(manager)
            for each in (*bystanders, longest):
                manager.update_session(each)
            _remove(manager, sid)
            manager.create_session(**long)
            if not came:
                break
        assert outcomes == {False, True}
        assert number > lines
        manager.unlink()


# ---------------------------------------------------------------------------- a turn


@either_exception
def test_an_interrupted_turn_brings_each_session_one_step_on_or_none(
    manager: SessionManager, clock: Clock, exception: type[BaseException]
) -> None:
    bystanders = Bystanders(manager)
    ended, expiring, later = UUID(int=1), UUID(int=17), UUID(int=33)
    outcomes = set()
    with SessionReader(manager.name) as reader:
        for number in itertools.count(1):
            manager.create_session({"a": 1}, ttl=DELAY, session_id=expiring)
            manager.create_session(session_id=ended)
            manager.terminate_session(ended, "it broke")
            manager.create_session(ttl=2 * DELAY, session_id=later)
            before = {sid: manager[sid] for sid in (expiring, ended, later)}
            clock.move(DELAY)
            came = _interrupted(number, manager._expire, exception)
            after = {sid: manager.get(sid) for sid in before}
            expired, removed = after[expiring] != before[expiring], after[ended] is None
            outcomes.add((expired, removed))
            assert removed or after[ended] == before[ended]
            assert after[later] == before[later]
            if expired:
                new = before[expiring].to_dict() | {"status": "terminated", "error": "expired"}
                new |= {"updated_at": clock.at(), "version": after[expiring].version}
                assert after[expiring].to_dict() == new
            assert {sid: reader.get(sid) for sid in before} == after
            bystanders.check()
            # The next turn does the rest, and no step twice.
            bystanders.make_a_change()
            assert manager[expiring].error == "expired"
            if expired:
                assert manager[expiring] == after[expiring]
            with pytest.raises(SessionNotFound):
                manager.get_session_info(ended)
            bystanders.check()
            _check_bookkeeping(manager)
            for sid in (expiring, later):
                _remove(manager, sid)
            if not came:
                break
    assert number > 150
    assert outcomes >= {(False, False), (True, True)}
    assert len(outcomes) == 3


@either_exception
def test_an_interrupted_end_of_an_owner_ends_each_of_its_sessions_once(
    manager: SessionManager, clock: Clock, exception: type[BaseException]
) -> None:
    bystanders, owner = Bystanders(manager), processes.own_identity()
    sids = [UUID(int=at) for at in (1, 17, 33)]
    outcomes = set()
    with SessionReader(manager.name) as reader:
        for number in itertools.count(1):
            for sid in sids:
                manager.create_session({"a": 1}, pid=owner.pid, session_id=sid)
            before = {sid: manager[sid] for sid in sids}
            clock.move(1)
            # As its end is noted.
            manager._watches.ended[owner] = "it ended"
            came = _interrupted(number, manager._expire, exception)
            after = {sid: manager[sid] for sid in sids}
            ended = [sid for sid in sids if after[sid] != before[sid]]
            outcomes.add(len(ended))
            assert {sid: reader.get(sid) for sid in sids} == after
            # The next turn does the rest, and no step twice.
            bystanders.make_a_change()
            assert [manager[sid].error for sid in sids] == ["it ended"] * 3
            assert {sid: manager[sid] for sid in ended} == {sid: after[sid] for sid in ended}
            assert (manager._ended, manager._watches.ended) == ({}, {})
            bystanders.check()
            _check_bookkeeping(manager)
            for sid in sids:
                _remove(manager, sid)
            if not came:
                break
    assert number > 150
    assert outcomes == {0, 1, 2, 3}


def test_a_turn_that_its_own_thread_could_not_end_is_made_up_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expire = SessionManager._expire
    next_line: list[int] = []
    done: list[int] = []

    def fail() -> None:
        done.append(1)
        raise MemoryError

    def expire_and_fail(manager: SessionManager) -> int | None:
        if not next_line:
            return expire(manager)
        stop_at_line(next_line.pop(), lambda: expire(manager), fail)
        done.append(0)
        return expire(manager)

    # A record kept for a report would keep the traceback, and so the memory.
    monkeypatch.setattr(logging.getLogger("asyncio"), "disabled", True)
    monkeypatch.setattr(reactor, "_WATCH_INTERVAL", 0.002)
    monkeypatch.setattr(SessionManager, "_expire", expire_and_fail)
    with SessionManager(name, capacity=8, cleanup_delay=0) as manager:
        for number in itertools.count(1):
            manager.create_session(ttl=1e-6)
            next_line.append(number)
            wait_until(lambda: done and len(manager) == 0)
            assert manager.check() == []
            if not done.pop():
                break
        manager.unlink()
    assert number > 20
