from __future__ import annotations

import contextlib
import gc
import itertools
import linecache
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID, uuid4

import host
import pytest
from host import (
    Script,
    descriptors_of,
    exit_code,
    forked,
    in_child,
    objects_of,
    path_of,
    run_script,
    stop_at_line,
)
from living import descriptors_left
from support import wait_until

from jidoka_shm import (
    CorruptRegistry,
    ForkedHandle,
    FormatMismatch,
    IllegalTransition,
    InvalidMetadata,
    InvalidName,
    InvalidSessionId,
    RecordTooLarge,
    Recovery,
    ReentrantCall,
    RegistryClosed,
    RegistryFull,
    SessionExists,
    SessionManager,
    SessionNotFound,
    SessionReader,
    SessionStatus,
    VersionConflict,
    WriterAlreadyRunning,
    growing,
    processes,
    reactor,
    segment,
    seqlock,
)
from jidoka_shm import manager as manager_module
from jidoka_shm import writes as writes_module
from jidoka_shm.attachment import Attachment
from jidoka_shm.control import ControlWriter
from jidoka_shm.layout import CONTROL_FIELDS, ROOM_TO_END
from jidoka_shm.marks import Instant
from jidoka_shm.registry import Registry
from jidoka_shm.writer import TableWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ABSENT = UUID(int=0xABC)
S = SessionStatus

T = TypeVar("T")


@pytest.fixture(autouse=True)
def _unlinked(name: str) -> Iterator[None]:
    """Remove what the test made under its name."""
    yield
    for tail in objects_of(name):
        segment.unlink(f"/jidoka_shm.{name}{tail}")


@pytest.fixture
def manager(name: str) -> Iterator[SessionManager]:
    """A manager; what is terminated stays for an hour."""
    with _manager(name) as made:
        yield made


def _manager(name: str, **options: Any) -> SessionManager:  # noqa: ANN401 - a manager's own
    return SessionManager(name, **{"capacity": 64, "cleanup_delay": 3600} | options)


def _spellings(session_id: UUID) -> list[UUID | str]:
    text = str(session_id)
    return [session_id, text, text.upper(), session_id.hex, f"session_{text}"]


def _state(manager: SessionManager) -> tuple[object, ...]:
    """Return all that a change would change."""
    return manager.version, dict(manager), manager._registry._deadlines.next(), manager.stats()


# ---------------------------------------------------------------------------- create


def test_a_session_is_created_initializing(manager: SessionManager) -> None:
    before = time.time()
    sid = manager.create_session()
    assert type(sid) is UUID
    assert sid.version == 4
    session = manager[sid]
    assert session.status is S.INITIALIZING
    assert (session.metadata, session.llm_config) == ({}, {})
    assert session.pid is session.error is session.expires_at is None
    assert before - 1 <= session.created_at.timestamp() <= time.time() + 1
    assert session.created_at == session.updated_at


def test_a_session_is_created_with_all_that_it_may_have(manager: SessionManager) -> None:
    sid = uuid4()
    made = manager.create_session({"a": [1]}, {"model": "m"}, os.getpid(), 60, sid)
    assert made == sid
    session = manager[sid]
    assert session.metadata == {"a": [1]}
    assert session.llm_config == {"model": "m"}
    assert session.pid == os.getpid()
    assert session.expires_at == session.created_at + timedelta(seconds=60)


def test_every_spelling_of_an_id_can_be_given(manager: SessionManager) -> None:
    for session_id in map(UUID, ["00000000-0000-0000-0000-00000000000a", "f" * 32]):
        for spelled in _spellings(session_id):
            assert manager.create_session(session_id=spelled) == session_id
            with pytest.raises(SessionExists) as caught:
                manager.create_session(session_id=session_id)
            assert caught.value.session_id == session_id
            manager.terminate_session(spelled)
            with pytest.raises(SessionExists):
                manager.create_session(session_id=spelled)
            manager._registry.table.remove(
                manager._registry.table.look_up(session_id)[0]  # type: ignore[index]
            )


def test_new_ids_differ(manager: SessionManager) -> None:
    assert len({manager.create_session() for _ in range(64)}) == 64


def test_a_full_registry_refuses_and_a_removal_makes_room(name: str) -> None:
    with SessionManager(name, capacity=3, grow=False, cleanup_delay=0) as manager:
        sids = [manager.create_session() for _ in range(3)]
        state = _state(manager)
        with pytest.raises(RegistryFull) as caught:
            manager.create_session()
        assert caught.value.unit == "slots"
        assert _state(manager) == state
        # What is full can still change and end.
        manager.update_session(sids[0], status="active", metadata={"a": 1})
        manager.terminate_session(sids[1])
        wait_until(lambda: sids[1] not in manager)
        manager.create_session()
        assert manager.check() == []


@pytest.mark.parametrize("limit", [128, 512, 1 << 20])
def test_a_record_that_is_too_large_is_refused(name: str, limit: int) -> None:
    with _manager(name, max_record_size=limit) as manager:
        sid = manager.create_session({"a": 1})
        state, much = _state(manager), {"a": "x" * limit}
        for call in (
            lambda: manager.create_session(much),
            lambda: manager.update_session(sid, metadata=much),
            lambda: manager.update_session(sid, llm_config=much),
        ):
            with pytest.raises(RecordTooLarge) as caught:
                call()
            assert caught.value.limit == limit - ROOM_TO_END < caught.value.size
            assert _state(manager) == state
        manager.update_session(sid, metadata={"a": "x" * (limit - 128)})


@pytest.mark.parametrize("error", ["x" * 500, "é" * 500, "x" * 100_000, None, "x"])
@pytest.mark.parametrize("expires", [False, True])
def test_a_session_that_fills_its_slot_ends_all_the_same(
    name: str, error: str | None, *, expires: bool
) -> None:
    with _manager(name, capacity=300, slot_size=256, max_record_size=256) as manager:
        for size in range(300):
            try:
                sid = manager.create_session({"a": "x" * size})
            except RecordTooLarge:
                break
            largest = sid
        if expires:
            manager.update_session(largest, status="active")
            now = Instant(time.time_ns(), time.monotonic_ns())
            manager._registry.terminate(largest, error="expired", now=now)
        else:
            manager.terminate_session(largest, error)
        session = manager[largest]
        assert session.status is S.TERMINATED
        assert session.metadata == {"a": "x" * (size - 1)}
        assert ("expired" if expires else error or "").startswith(session.error or "")
        assert manager.check() == []


# ---------------------------------------------------------------------------- update


def test_what_is_given_changes_and_the_rest_stays(manager: SessionManager) -> None:
    sid = manager.create_session({"a": 1}, {"b": 2}, pid=1, ttl=60)
    created = manager[sid]
    changes: list[dict[str, Any]] = [
        {"status": "active"},
        {"status": S.IDLE},
        {"metadata": {"c": 3}},
        {"metadata": None},
        {"llm_config": {"d": 4}},
        {"llm_config": None},
        {"pid": os.getpid()},
        {"pid": None},
        {"ttl": None},
        {},
    ]
    expected = created.to_dict()
    for number, change in enumerate(changes, start=2):
        for spelled in _spellings(sid)[number % 5 :][:1]:
            updated = manager.update_session(spelled, **change)
        assert updated == manager[sid]
        for field, value in change.items():
            if field == "ttl":
                expected["expires_at"] = None
            elif field in {"metadata", "llm_config"}:
                expected[field] = value or {}
            else:
                expected[field] = value
        expected["updated_at"] = updated.updated_at.isoformat()
        expected["version"] = number
        assert updated.to_dict() == expected
        assert updated.updated_at >= created.updated_at


def test_a_time_to_live_counts_from_its_update(manager: SessionManager) -> None:
    sid = manager.create_session(ttl=60)
    first = manager[sid].expires_at
    session = manager.update_session(sid, ttl=3600)
    assert session.expires_at == session.updated_at + timedelta(seconds=3600) > first


def test_the_same_status_again_is_a_heartbeat(manager: SessionManager) -> None:
    sid = manager.create_session()
    for status in ("initializing", S.INITIALIZING, "active", "active", "terminating"):
        before = manager[sid]
        assert manager.update_session(sid, status=status).version == before.version + 1
        assert manager.update_session(sid, status=status).status == status


def test_a_move_that_is_none_is_refused(manager: SessionManager) -> None:
    sid = manager.create_session()
    state = _state(manager)
    with pytest.raises(IllegalTransition) as caught:
        manager.update_session(sid, status="idle", metadata={"a": 1})
    assert (caught.value.session_id, caught.value.current, caught.value.requested) == (
        sid,
        "initializing",
        "idle",
    )
    assert "active" in caught.value.allowed
    assert _state(manager) == state


def test_an_update_to_terminated_ends_the_session(name: str) -> None:
    with _manager(name, cleanup_delay=0.01) as manager:
        sid = manager.create_session()
        assert manager.update_session(sid, status="terminated").status is S.TERMINATED
        wait_until(lambda: sid not in manager)


def test_only_the_version_that_is_expected_changes(manager: SessionManager) -> None:
    sid = manager.create_session()
    manager.create_session()
    state = _state(manager)
    for wrong in (0, 2, 2**64 - 1):
        with pytest.raises(VersionConflict) as caught:
            manager.update_session(sid, status="active", expected_version=wrong)
        assert (caught.value.expected, caught.value.actual) == (wrong, 1)
        assert _state(manager) == state
    assert manager.update_session(sid, status="active", expected_version=1).version == 3
    with pytest.raises(VersionConflict):
        manager.update_session(sid, status="idle", expected_version=1)


def test_what_is_not_there_cannot_be_changed(manager: SessionManager) -> None:
    ended = manager.create_session()
    manager.terminate_session(ended)
    state = _state(manager)
    for spelled in _spellings(ABSENT):
        for call in (manager.update_session, manager.terminate_session):
            with pytest.raises(SessionNotFound) as caught:
                call(spelled)
            assert caught.value.session_id == ABSENT
    for spelled in _spellings(ended):
        with pytest.raises(SessionNotFound):
            manager.update_session(spelled, status="terminated")
    assert _state(manager) == state


# ---------------------------------------------------------------------------- terminate, expire


def test_a_terminated_session_says_why(manager: SessionManager) -> None:
    sid = manager.create_session()
    manager.terminate_session(str(sid), "it broke")
    assert manager[sid].status is S.TERMINATED
    assert manager[sid].error == "it broke"
    other = manager.create_session()
    manager.terminate_session(other)
    assert manager[other].error is None


def test_a_terminated_session_is_gone_after_the_delay_and_not_before(name: str) -> None:
    with _manager(name, cleanup_delay=0.05) as manager, SessionReader(name) as reader:
        sid = manager.create_session()
        before = time.monotonic()
        manager.terminate_session(sid)
        wait_until(lambda: sid not in reader)
        assert time.monotonic() - before >= 0.05
        assert sid not in manager
        assert len(reader) == 0
        assert manager.stats().removed == 1
        with pytest.raises(SessionNotFound):
            manager.terminate_session(sid)


def test_the_first_end_is_the_one_that_counts(manager: SessionManager) -> None:
    sid = manager.create_session()
    manager.terminate_session(sid, "first")
    state = _state(manager)
    for spelled in _spellings(sid):
        manager.terminate_session(spelled, "second")
    assert manager[sid].error == "first"
    assert _state(manager) == state


def test_a_session_that_expires_says_so(name: str) -> None:
    with _manager(name) as manager, SessionReader(name) as reader:
        before = time.monotonic()
        sid = manager.create_session(ttl=0.05)
        wait_until(lambda: reader[sid].status is S.TERMINATED)
        assert time.monotonic() - before >= 0.05
        assert reader[sid].error == "expired"


def test_a_session_that_expired_goes(name: str) -> None:
    with _manager(name, cleanup_delay=0.01) as manager, SessionReader(name) as reader:
        sid = manager.create_session(ttl=0.01)
        wait_until(lambda: sid not in reader)


def test_an_update_may_move_an_expiry_either_way(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    never, later, sooner, same = [manager.create_session(ttl=1800) for _ in range(4)]
    manager.update_session(never, ttl=None)
    manager.update_session(later, ttl=3600)
    manager.update_session(sooner, ttl=600)
    manager.update_session(same, status="active")

    def ended(seconds: int) -> set[UUID]:
        """Return what has ended so many seconds from now."""
        ns = seconds * 10**9
        now = Instant(time.time_ns() + ns, time.monotonic_ns() + ns)
        monkeypatch.setattr(writes_module, "_now", lambda: now)
        manager._expire()
        return {session.session_id for session in manager.list_sessions("terminated")}

    assert ended(500) == set()
    assert ended(700) == {sooner}
    assert ended(1900) == {sooner, same}
    assert ended(3500) == {sooner, same}
    assert ended(3700) == {sooner, same, later}
    assert ended(10**6) == set()
    assert list(manager) == [never]


def test_nothing_is_cleaned_before_its_time(manager: SessionManager) -> None:
    sids = [manager.create_session() for _ in range(3)]
    for sid in sids:
        manager.terminate_session(sid)
    quick = manager.create_session(ttl=0.01)
    wait_until(lambda: manager[quick].status is S.TERMINATED)
    assert len(manager) == 4


def test_a_deadline_that_meets_damage_keeps_no_other_from_being_met(name: str) -> None:
    with _manager(name) as manager:
        # Ids that are no neighbours, or damage to the one would be in the way to the other.
        damaged = manager.create_session(ttl=0.05, session_id=UUID(int=1))
        sound = manager.create_session(ttl=0.1, session_id=UUID(int=50))
        table = manager._registry.table
        place = table.slots.offset(table.look_up(damaged)[1] & 0xFFFFFF)  # type: ignore[index]
        # A payload that is longer than its slot.
        table.slots.memory[place + 44 : place + 48] = b"\xff" * 4
        wait_until(lambda: manager[sound].status is S.TERMINATED, seconds=5)


def _count_wakes(manager: SessionManager) -> list[object]:
    """Count from now on how often the manager's thread is woken."""
    loop: Any = manager._reactor._loop
    wake = loop.call_soon_threadsafe
    wakes: list[object] = []

    def count_and_wake(*arguments: Any) -> object:  # noqa: ANN401 - whatever it takes
        wakes.append(arguments)
        return wake(*arguments)

    loop.call_soon_threadsafe = count_and_wake
    return wakes


def test_an_earlier_deadline_wakes_the_thread_and_a_later_one_does_not(name: str) -> None:
    with _manager(name, cleanup_delay=1800) as manager:
        wakes = _count_wakes(manager)
        sid = manager.create_session(ttl=3600)
        assert len(wakes) == 1
        manager.create_session(ttl=7200)
        manager.create_session()
        manager.update_session(sid, status="active")
        assert len(wakes) == 1
        manager.terminate_session(sid)
        assert len(wakes) == 2
        manager.create_session(ttl=600)
        assert len(wakes) == 3


def test_a_thousand_terminations_cost_a_wake_or_a_few(name: str) -> None:
    with _manager(name, capacity=1000) as manager:
        sids = [manager.create_session() for _ in range(1000)]
        wakes = _count_wakes(manager)
        for sid in sids:
            manager.terminate_session(sid)
        assert len(wakes) == 1
        assert manager.count_by_status()[S.TERMINATED] == 1000


def test_a_thousand_that_are_due_together_all_go(name: str) -> None:
    with _manager(name, capacity=1000, cleanup_delay=0.01) as manager:
        sids = [manager.create_session() for _ in range(1000)]
        wakes = _count_wakes(manager)
        for sid in sids:
            manager.terminate_session(sid)
        wait_until(lambda: len(manager) == 0)
        assert len(wakes) < 500
        assert manager.check() == []
        assert manager.stats().removed == 1000


# ---------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"capacity": 0}, ValueError),
        ({"capacity": -1}, ValueError),
        ({"capacity": 2**24}, ValueError),
        ({"capacity": 1.5}, TypeError),
        ({"capacity": True}, TypeError),
        ({"capacity": "64"}, TypeError),
        ({"slot_size": 0}, ValueError),
        ({"slot_size": 100}, ValueError),
        ({"slot_size": 64}, ValueError),
        ({"slot_size": 2**24 + 64}, ValueError),
        ({"slot_size": 512.0}, TypeError),
        ({"cleanup_delay": -0.1}, ValueError),
        ({"cleanup_delay": float("nan")}, ValueError),
        ({"cleanup_delay": float("inf")}, ValueError),
        ({"cleanup_delay": 10**400}, ValueError),
        ({"cleanup_delay": "1"}, TypeError),
        ({"cleanup_delay": None}, TypeError),
        ({"mode": 0o777}, ValueError),
        ({"mode": 0o400}, ValueError),
        ({"mode": 0}, ValueError),
        ({"mode": -1}, ValueError),
        ({"mode": 0o4600}, ValueError),
        ({"mode": 0o660}, ValueError),
        ({"mode": 0o602}, ValueError),
        ({"mode": 0o666}, ValueError),
        ({"mode": "0600"}, TypeError),
        ({"mode": True}, TypeError),
        ({"fresh": 1}, TypeError),
        ({"fresh": None}, TypeError),
        ({"wait": -1}, ValueError),
        ({"wait": float("nan")}, ValueError),
        ({"wait": "1"}, TypeError),
        ({"wait": True}, TypeError),
    ],
    ids=lambda value: f"{value!r:.30}" if isinstance(value, dict) else "",
)
def test_an_option_that_cannot_be_is_refused(
    name: str, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(options))):
        SessionManager(name, **options)
    assert objects_of(name) == set()


@pytest.mark.parametrize("bad", ["", "a.b", "a/b", "..", "x" * 65, "é", "a\n", None, 5, b"a"])
def test_a_name_that_no_registry_can_have_is_refused(bad: Any) -> None:  # noqa: ANN401
    with pytest.raises(InvalidName):
        SessionManager(bad)


_MAPS = [
    ([], InvalidMetadata),
    ("text", InvalidMetadata),
    ({1: 2}, InvalidMetadata),
    ({"a": (1,)}, InvalidMetadata),
    ({"a": {1}}, InvalidMetadata),
    ({"a": float("nan")}, InvalidMetadata),
    ({"a": b"b"}, InvalidMetadata),
    ({"a": object()}, InvalidMetadata),
    ({"a": 2**64}, InvalidMetadata),
]
_PIDS = [
    (0, ValueError),
    (-1, ValueError),
    (2**40, ValueError),
    ("1", TypeError),
    (1.0, TypeError),
    (True, TypeError),
]
_TTLS = [
    (0, ValueError),
    (0.0, ValueError),
    (1e-10, ValueError),
    (-1, ValueError),
    (float("nan"), ValueError),
    (float("inf"), ValueError),
    (10**400, ValueError),
    ("60", TypeError),
    (True, TypeError),
]
_IDS = [("", ValueError), ("x", ValueError), (5, ValueError), (b"", ValueError)]
_STATUSES = [("", ValueError), ("ACTIVE", ValueError), (None, ValueError), (2, ValueError)]
_VERSIONS = [
    (-1, ValueError),
    (2**64, ValueError),
    ("1", TypeError),
    (1.0, TypeError),
    (True, TypeError),
]
_ERRORS = [(5, TypeError), (b"no", TypeError), ("\ud800", ValueError), (["no"], TypeError)]


def _cases(**arguments: list[Any]) -> list[Any]:
    return [
        pytest.param({argument: value}, error, id=f"{argument}-{value!r:.30}")
        for argument, values in arguments.items()
        for value, error in values
    ]


@pytest.mark.parametrize(
    ("arguments", "error"),
    _cases(metadata=_MAPS, llm_config=_MAPS, pid=_PIDS, ttl=_TTLS, session_id=_IDS),
)
def test_an_argument_that_cannot_be_creates_nothing(
    manager: SessionManager, arguments: dict[str, Any], error: type[Exception]
) -> None:
    state = _state(manager)
    with pytest.raises(error, match=next(iter(arguments)).replace("session_id", "session id")):
        manager.create_session(**arguments)
    assert _state(manager) == state
    manager.create_session()


@pytest.mark.parametrize(
    ("arguments", "error"),
    _cases(
        status=_STATUSES,
        metadata=_MAPS,
        llm_config=_MAPS,
        pid=_PIDS,
        ttl=_TTLS,
        expected_version=_VERSIONS,
    ),
)
def test_an_argument_that_cannot_be_updates_nothing(
    manager: SessionManager, arguments: dict[str, Any], error: type[Exception]
) -> None:
    sid = manager.create_session({"a": 1}, {"b": 2}, pid=1, ttl=60)
    state = _state(manager)
    # All else that is given is right, and must not change either.
    right: dict[str, Any] = {"status": "active", "metadata": {}, "llm_config": {}, "ttl": None}
    with pytest.raises(error, match=next(iter(arguments))):
        manager.update_session(sid, **right | arguments)
    assert _state(manager) == state


@pytest.mark.parametrize(("arguments", "error"), _cases(error=_ERRORS))
def test_an_argument_that_cannot_be_terminates_nothing(
    manager: SessionManager, arguments: dict[str, Any], error: type[Exception]
) -> None:
    sid = manager.create_session()
    state = _state(manager)
    with pytest.raises(error, match="error"):
        manager.terminate_session(sid, **arguments)
    assert _state(manager) == state


@pytest.mark.parametrize("value", ["", "x", 5, None, b"0" * 16, [], "0" * 31])
def test_what_is_no_id_changes_nothing(manager: SessionManager, value: Any) -> None:  # noqa: ANN401
    for call in (manager.update_session, manager.terminate_session):
        with pytest.raises(InvalidSessionId):
            call(value)
    assert manager.version == 0


# ---------------------------------------------------------------------------- one writer


def test_a_second_manager_is_refused_in_the_same_process(manager: SessionManager) -> None:
    for options in ({}, {"fresh": True}, {"wait": 0.02}):
        with pytest.raises(WriterAlreadyRunning, match="SessionClient") as caught:
            _manager(manager.name, **options)
        assert caught.value.pid == os.getpid()
    manager.create_session()


def test_a_second_manager_is_refused_in_another_process(manager: SessionManager) -> None:
    """T4: the second writer is refused, by the kernel."""
    code = """
        import sys
        from jidoka_shm import SessionManager, WriterAlreadyRunning
        try:
            SessionManager(sys.argv[1])
        except WriterAlreadyRunning as error:
            print(error.pid)
    """
    assert run_script(code, manager.name) == f"{os.getpid()}\n"


def test_a_manager_may_wait_for_its_predecessor(name: str) -> None:
    first = _manager(name)
    sid = first.create_session()
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(_manager, name, wait=60)
        first.close()
        with second.result() as successor:
            assert sid in successor


# ---------------------------------------------------------------------------- taking over


def test_a_new_registry_has_no_recovery(manager: SessionManager) -> None:
    assert manager.recovery is None
    assert manager.stats().takeovers == 0


def test_what_a_manager_closed_is_taken_over_clean(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with _manager(name) as manager:
        sids = [manager.create_session({"number": number}) for number in range(5)]
        manager.terminate_session(sids[4])
        instance = manager._instance
        version = manager.version
    with caplog.at_level(logging.INFO, "jidoka_shm"), _manager(name) as successor:
        assert successor.recovery == Recovery(kept=5, dropped=(), clean=True)
        assert [successor[sid].metadata["number"] for sid in sids] == [0, 1, 2, 3, 4]
        assert successor._instance == instance
        assert successor.version == version + 1
        assert successor.stats().takeovers == 1
        assert successor.check() == []
        assert "(closed): 5 sessions kept" in caplog.text
        assert {record.levelno for record in caplog.records} == {logging.INFO}


@pytest.mark.parametrize("times", [1, 3])
def test_what_a_killed_manager_left_is_taken_over(
    name: str, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    code = """
        import sys
        from jidoka_shm import SessionManager
        manager = SessionManager(sys.argv[1], capacity=64)
        for number in range(10):
            print(manager.create_session({"number": number}, {"model": "m"}, pid=1, ttl=600))
        print("done", flush=True)
        input()
    """
    sids: list[UUID] = []
    for time_ in range(times):
        with Script(code, name) as script:
            sids += map(UUID, iter(script.line, "done"))
            script.kill()
        with SessionReader(name) as reader:
            assert len(reader) == 10 * (time_ + 1)
            assert reader.writer_alive is False
    with caplog.at_level(logging.INFO, "jidoka_shm"), _manager(name) as manager:
        assert manager.recovery == Recovery(kept=10 * times, dropped=(), clean=False)
        assert "its writer died" in caplog.text
        for at, sid in enumerate(sids):
            session = manager[sid]
            assert session.metadata == {"number": at % 10}
            assert session.llm_config == {"model": "m"}
            assert session.pid == 1
            assert session.expires_at is not None
        assert manager.stats().takeovers == times
        assert manager.check() == []


def test_a_commit_that_was_cut_short_is_no_clean_end(name: str) -> None:
    with _manager(name) as manager:
        sid = manager.create_session()
        manager._own.control.change[0] += 1
    with SessionReader(name) as reader:
        assert reader.version is None
        with _manager(name) as successor:
            assert successor.recovery == Recovery(kept=1, dropped=(), clean=False)
            assert sid in reader
            assert reader.version == successor.version == 3
            assert successor.check() == []


def test_damaged_records_are_dropped_and_named(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with _manager(name) as manager, SessionReader(name) as reader:
        sids = [manager.create_session({"number": number}) for number in range(3)]
        assert len(reader.list_sessions()) == 3
        table = manager._registry.table
        entry, word, _ = table.look_up(sids[1])  # type: ignore[misc]
        place = table.slots.offset(word & 0xFFFFFF) + 70
        table.slots.memory[place] ^= 1
        manager.close()
        with caplog.at_level(logging.INFO, "jidoka_shm"), _manager(name) as successor:
            assert successor.recovery is not None
            assert successor.recovery.kept == 2
            assert [dropped.entry for dropped in successor.recovery.dropped] == [entry]
            assert "crc" in successor.recovery.dropped[0].reason
            assert successor.recovery.clean
            assert "1 damaged records dropped" in caplog.text
            levels = [record.levelno for record in caplog.records]
            assert levels == [logging.INFO, logging.WARNING]
            assert sids[1] not in reader
            assert len(reader.list_sessions()) == 2
            assert successor.stats().dropped == 1
            assert successor.check() == []


def test_deadlines_go_on_in_the_next_manager(name: str) -> None:
    code = """
        import sys
        from jidoka_shm import SessionManager
        manager = SessionManager(sys.argv[1], capacity=64, cleanup_delay=0.3)
        print(manager.create_session(ttl=0.3))
        print(sid := manager.create_session())
        print(manager.create_session(ttl=3600), flush=True)
        manager.terminate_session(sid)
        print("done", flush=True)
        input()
    """
    with Script(code, name) as script:
        expiring, ended, living = map(UUID, iter(script.line, "done"))
        script.kill()
    with _manager(name, cleanup_delay=0.01) as manager:
        wait_until(lambda: ended not in manager and expiring not in manager)
        assert manager[living].status is S.INITIALIZING


def test_what_is_taken_over_keeps_its_geometry(name: str) -> None:
    with _manager(name, capacity=8, slot_size=256) as manager:
        manager.create_session()
    for options in ({"capacity": 100, "grow": False}, {"capacity": 4}):
        with _manager(name, slot_size=1024, **options) as successor:
            stats = successor.stats()
            assert (stats.capacity, stats.slot_size, stats.sessions) == (8, 256, 1)


def test_what_is_taken_over_gets_the_mode_asked_for(name: str) -> None:
    _manager(name, mode=0o600).close()
    with _manager(name, mode=0o644):
        assert path_of(name).stat().st_mode & 0o777 == 0o644
        assert path_of(name, 1).stat().st_mode & 0o777 == 0o644


def test_fresh_discards_what_is_there(name: str) -> None:
    with _manager(name) as manager:
        sid = manager.create_session()
    with _manager(name, fresh=True, capacity=8) as successor:
        assert successor.recovery is None
        assert sid not in successor
        assert successor.version == 0
        assert successor.stats().capacity == 8
    with _manager(name, fresh=True) as successor:
        assert successor.recovery is None


def test_fresh_discards_another_format(name: str) -> None:
    _manager(name).close()
    with path_of(name).open("r+b") as file:
        file.seek(CONTROL_FIELDS["format"])
        file.write(b"\x63")
    with pytest.raises(FormatMismatch, match=r"format 99.*fresh=True"):
        _manager(name)
    with _manager(name, fresh=True) as manager:
        assert manager.recovery is None


def test_what_is_corrupt_is_refused_until_it_is_discarded(name: str) -> None:
    _manager(name).close()
    os.truncate(path_of(name, 1), 4096)
    with pytest.raises(CorruptRegistry):
        _manager(name)
    _manager(name, fresh=True).close()


# ---------------------------------------------------------------------------- the end


def test_closing_may_be_repeated_and_keeps_the_registry(name: str) -> None:
    manager = _manager(name)
    sid = manager.create_session()
    thread = manager._reactor._thread
    for _ in range(3):
        manager.close()
    assert not thread.is_alive()
    assert objects_of(name) == {"", ".1"}
    with SessionReader(name) as reader:
        assert sid in reader
        assert reader.writer_alive is False


def test_a_closed_manager_changes_nothing(manager: SessionManager) -> None:
    sid = manager.create_session()
    manager.close()
    for call in (
        manager.create_session,
        lambda: manager.update_session(sid, status="active"),
        lambda: manager.terminate_session(sid),
    ):
        with pytest.raises(RegistryClosed, match="this manager is closed"):
            call()
    with SessionReader(manager.name) as reader:
        assert reader[sid].status is S.INITIALIZING


def test_a_closed_manager_holds_no_memory_and_no_descriptor(name: str) -> None:
    # What is unlinked is memory until its last user goes.
    manager = _manager(name)
    manager.create_session()
    manager.list_sessions()
    manager.unlink()
    assert descriptors_of(path_of(name)) == []
    assert descriptors_of(path_of(name, 1)) == []


def test_several_threads_may_close_at_once(name: str) -> None:
    for _ in range(20):
        manager = _manager(name, capacity=8)
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(manager.close) for _ in range(4)]:
                done.result()
    manager.unlink()


def test_unlinking_destroys_and_closes_and_may_be_repeated(name: str) -> None:
    """L5: unlinking may be repeated."""
    manager = _manager(name)
    sid = manager.create_session()
    with SessionReader(name) as reader:
        assert sid in reader
        for _ in range(3):
            manager.unlink()
            assert objects_of(name) == set()
        with pytest.raises(RegistryClosed, match="destroyed"):
            reader.get_session_info(sid)
    with pytest.raises(RegistryClosed):
        manager.create_session()


def test_unlinking_after_closing_destroys_what_was_left(name: str) -> None:
    manager = _manager(name)
    sid = manager.create_session()
    with SessionReader(name) as reader:
        manager.close()
        assert sid in reader
        manager.unlink()
        manager.unlink()
        assert objects_of(name) == set()
        with pytest.raises(RegistryClosed):
            reader.get_session_info(sid)


def test_unlinking_after_closing_leaves_a_living_successor_alone(name: str) -> None:
    manager = _manager(name)
    manager.close()
    with _manager(name) as successor:
        sid = successor.create_session()
        with pytest.raises(WriterAlreadyRunning):
            manager.unlink()
        assert sid in successor
        successor.create_session()


def test_unlinking_after_closing_leaves_another_instance_alone(name: str) -> None:
    manager = _manager(name)
    manager.close()
    with _manager(name, fresh=True, mode=0o644) as successor:
        sid = successor.create_session()
    manager.unlink()
    assert path_of(name).stat().st_mode & 0o777 == 0o644
    with SessionReader(name) as reader:
        assert sid in reader


@pytest.mark.parametrize("call", ["_watch", "_turn", "create_session", "list_sessions"])
def test_what_comes_while_it_is_unlinked_meets_a_closed_manager(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    manager = _manager(name)
    manager.terminate_session(manager.create_session())
    outcomes: list[object] = []
    close, unlink = manager.close, segment.unlink

    def do() -> None:
        try:
            outcomes.append(getattr(manager, call)())
        except RegistryClosed:
            outcomes.append(None)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is a failure
            outcomes.append(error)

    def close_after_the_others() -> None:
        for thread in threads:
            thread.join()
        close()

    def unlink_while_another_thread_calls(full: str) -> None:
        unlink(full)
        if not threads and full.endswith(name):
            threads.append(threading.Thread(target=do))
            threads[0].start()
            # It has done its call, or it waits for the lock that is held here.
            wait_until(lambda: outcomes or _waits_for_a_lock(threads[0]))

    threads: list[threading.Thread] = []
    monkeypatch.setattr(segment, "unlink", unlink_while_another_thread_calls)
    monkeypatch.setattr(manager, "close", close_after_the_others)
    manager.unlink()
    monkeypatch.undo()
    manager.close()
    assert outcomes == [None]
    assert caplog.text == ""


def _waits_for_a_lock(thread: threading.Thread) -> bool:
    """Return whether a thread is in one of the package's ``with self._lock``."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return False
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return line.strip() == "with self._lock:"


def test_leaving_with_closes_and_keeps_the_registry(name: str) -> None:
    with contextlib.suppress(ZeroDivisionError), _manager(name) as manager:
        sid = manager.create_session()
        raise ZeroDivisionError
    with pytest.raises(RegistryClosed):
        len(manager)
    with SessionReader(name) as reader:
        assert sid in reader


def test_a_manager_that_is_dropped_lets_go(name: str) -> None:
    manager = _manager(name)
    sid = manager.create_session(ttl=3600)
    thread = manager._reactor._thread
    del manager
    gc.collect()
    assert not thread.is_alive()
    with _manager(name) as successor:
        assert successor.recovery == Recovery(kept=1, dropped=(), clean=True)
        assert sid in successor


def test_a_manager_in_a_cycle_lets_go_once_it_is_collected(name: str) -> None:
    class Application:
        def __init__(self) -> None:
            self.manager = _manager(name)
            self.me = self

    Application().manager.create_session()
    gc.collect()
    with _manager(name) as successor:
        assert len(successor) == 1


@pytest.mark.parametrize("ending", ["pass", "sys.exit(0)", "manager.close()", "manager.unlink()"])
def test_an_interpreter_may_end_with_a_living_manager(name: str, ending: str) -> None:
    code = f"""
        import sys
        from jidoka_shm import SessionManager, SessionReader
        manager = SessionManager(sys.argv[1], capacity=64, cleanup_delay=0.001)
        reader = SessionReader(sys.argv[1])
        for sid in [manager.create_session(ttl=3600) for _ in range(20)]:
            manager.terminate_session(sid)
        sid = manager.create_session({{"a": 1}})
        kept = [manager[sid], manager.list_sessions(), manager.snapshot(), iter(manager), reader]
        {ending}
    """
    assert run_script(code, name) == ""
    if "unlink" in ending:
        assert objects_of(name) == set()
    else:
        with _manager(name) as successor:
            assert successor.recovery is not None
            assert successor.recovery.clean
            wait_until(lambda: len(successor.list_sessions()) == 1)


def test_an_interpreter_may_end_while_other_threads_use_the_manager(name: str) -> None:
    code = """
        import sys, threading
        from jidoka_shm import RegistryClosed, SessionManager

        def work(sid):
            try:
                while True:
                    manager.update_session(sid, ttl=60)
                    started.set()
            except RegistryClosed:
                pass

        manager = SessionManager(sys.argv[1], capacity=8)
        started = threading.Event()
        for sid in [manager.create_session() for _ in range(2)]:
            threading.Thread(target=work, args=(sid,), daemon=True).start()
        started.wait()
    """
    assert run_script(code, name) == ""
    with _manager(name) as successor:
        assert len(successor) == 2
        assert successor.check() == []


# ---------------------------------------------------------------------------- failures


class Failed(Exception):  # noqa: N818 - no error of the package
    """Raised on purpose."""


#: What the constructor calls: the object, the function, and which call of it.
STEPS = [
    (segment, "create", 1),
    (segment, "try_lock", 1),
    (segment, "leads_to", 1),
    (segment, "open_writable", 1),
    (segment, "reserve", 1),
    (segment, "map_writable", 1),
    (segment, "create", 2),
    (segment, "reserve", 2),
    (segment, "map_writable", 2),
    (ControlWriter, "initialize", 1),
    (ControlWriter, "complete", 1),
    (manager_module, "TableWriter", 1),
    (manager_module, "Registry", 1),
    (growing, "Attachment", 1),
    (reactor.selectors, "DefaultSelector", 1),
    (reactor.asyncio, "SelectorEventLoop", 1),
    (threading, "Thread", 1),
    (threading.Thread, "start", 1),
    (manager_module.weakref, "finalize", 1),
    (reactor.Reactor, "wake_at", 1),
]


def _fail_at(patch: pytest.MonkeyPatch, target: object, attribute: str, call: int) -> None:
    """Make the ``call``-th call of a function raise."""
    original = getattr(target, attribute)
    calls = itertools.count(1)

    def fail(*arguments: object, **options: object) -> object:
        if next(calls) == call:
            raise Failed
        return original(*arguments, **options)

    patch.setattr(target, attribute, fail)


@pytest.mark.parametrize(("target", "attribute", "call"), STEPS)
def test_a_constructor_that_fails_leaves_no_thread_no_descriptor_and_no_name(
    name: str, monkeypatch: pytest.MonkeyPatch, target: object, attribute: str, call: int
) -> None:
    with monkeypatch.context() as patch:
        _fail_at(patch, target, attribute, call)
        with pytest.raises(Failed):
            _manager(name)
    # While nobody has its lock, an empty control is no registry and may be anybody's.
    if attribute not in {"try_lock", "leads_to"}:
        assert objects_of(name) == set()
    with _manager(name) as manager:
        assert manager.recovery is None


@pytest.mark.parametrize(
    ("target", "attribute", "call"),
    [
        *STEPS[11:],
        (segment, "names", 1),
        (Registry, "resume", 1),
        (TableWriter, "resume", 1),
        (Attachment, "__init__", 1),
    ],
)
def test_a_constructor_that_fails_leaves_what_it_was_to_take_over(
    name: str, monkeypatch: pytest.MonkeyPatch, target: object, attribute: str, call: int
) -> None:
    with _manager(name) as manager:
        sid = manager.create_session({"a": 1})
    with monkeypatch.context() as patch:
        _fail_at(patch, target, attribute, call)
        with pytest.raises(Failed):
            _manager(name)
    assert objects_of(name) == {"", ".1"}
    with _manager(name) as manager:
        assert manager[sid].metadata == {"a": 1}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_registry_of_another_user_is_refused(name: str) -> None:
    code = """
        import os, sys
        from jidoka_shm.manager import SessionManager
        os.setuid(65_534)
        SessionManager(sys.argv[1], capacity=8).close()
    """
    run_script(code, name)
    for fresh in (False, True):
        with pytest.raises(PermissionError, match="uid 65534"):
            _manager(name, fresh=fresh)


# ---------------------------------------------------------------------------- signals


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Have the function given called by the handler of SIGUSR1."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda do: signal.signal(signal.SIGUSR1, lambda *_: do()) and None
    signal.signal(signal.SIGUSR1, before)


def _interrupt_commits(patch: pytest.MonkeyPatch, interrupt: Callable[[], object]) -> None:
    """Have something happen in the middle of the next commit."""
    commit = seqlock.commit

    def commit_interrupted(change: Any, *arguments: Any) -> None:  # noqa: ANN401 - its own
        patch.undo()
        change[0] += 1
        interrupt()
        commit(change, *arguments)

    patch.setattr(seqlock, "commit", commit_interrupted)


def _in_a_commit(patch: pytest.MonkeyPatch) -> None:
    _interrupt_commits(patch, lambda: signal.raise_signal(signal.SIGUSR1))


def test_a_change_from_a_signal_handler_is_refused_and_the_outer_one_is_whole(
    manager: SessionManager,
    monkeypatch: pytest.MonkeyPatch,
    on_signal: Callable[[Callable[[], object]], None],
) -> None:
    caught: list[BaseException] = []
    known = manager.create_session()

    def change() -> None:
        for call in (
            manager.create_session,
            lambda: manager.update_session(known, status="active"),
            lambda: manager.terminate_session(known),
            manager.unlink,
        ):
            try:
                call()
            except ReentrantCall as error:
                caught.append(error)

    on_signal(change)
    _in_a_commit(monkeypatch)
    sid = manager.create_session({"a": 1})
    assert len(caught) == 4
    assert isinstance(caught[0], RuntimeError)
    assert manager.name in str(caught[0])
    assert manager[sid].metadata == {"a": 1}
    assert manager[known].status is S.INITIALIZING
    assert len(manager) == 2
    assert manager.check() == []
    manager.terminate_session(known)


def test_a_read_from_a_signal_handler_works(
    manager: SessionManager,
    monkeypatch: pytest.MonkeyPatch,
    on_signal: Callable[[Callable[[], object]], None],
) -> None:
    known = manager.create_session({"a": 1})
    read: list[object] = []
    on_signal(lambda: read.append((manager[known].metadata, len(manager.list_sessions()))))
    _in_a_commit(monkeypatch)
    manager.create_session()
    assert read == [({"a": 1}, 1)]


def test_a_close_from_a_signal_handler_waits_for_the_change_to_end(
    manager: SessionManager,
    monkeypatch: pytest.MonkeyPatch,
    on_signal: Callable[[Callable[[], object]], None],
) -> None:
    closed: list[bool] = []

    def close() -> None:
        manager.close()
        closed.append(manager._closed)

    on_signal(close)
    _in_a_commit(monkeypatch)
    sid = manager.create_session({"a": 1})
    assert closed == [False]
    with pytest.raises(RegistryClosed, match="this manager is closed"):
        manager.create_session()
    with _manager(manager.name) as successor:
        assert successor.recovery == Recovery(kept=1, dropped=(), clean=True)
        assert successor[sid].metadata == {"a": 1}


@pytest.mark.parametrize("call", ["create_session", "update_session", "terminate_session"])
def test_a_change_with_a_deadline_may_be_the_last_before_the_close(
    manager: SessionManager,
    monkeypatch: pytest.MonkeyPatch,
    on_signal: Callable[[Callable[[], object]], None],
    call: str,
) -> None:
    sid = manager.create_session()
    calls: dict[str, Callable[[], object]] = {
        "create_session": lambda: manager.create_session(ttl=1),
        "update_session": lambda: manager.update_session(sid, ttl=1),
        "terminate_session": lambda: manager.terminate_session(sid),
    }
    on_signal(manager.close)
    _in_a_commit(monkeypatch)
    calls[call]()
    with pytest.raises(RegistryClosed):
        len(manager)


def test_another_thread_may_close_before_a_change_has_returned(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    wake_at = manager._reactor.wake_at

    def close_first(deadline: int | None) -> None:
        thread = threading.Thread(target=manager.close)
        thread.start()
        thread.join()
        wake_at(deadline)

    monkeypatch.setattr(manager._reactor, "wake_at", close_first)
    sid = manager.create_session(ttl=60)
    with SessionReader(manager.name) as reader:
        assert sid in reader


def test_a_close_is_done_though_the_change_it_interrupts_fails(
    manager: SessionManager,
    monkeypatch: pytest.MonkeyPatch,
    on_signal: Callable[[Callable[[], object]], None],
) -> None:
    on_signal(manager.close)

    def fail(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGUSR1)
        raise RecordTooLarge(2, 1)

    monkeypatch.setattr(TableWriter, "insert", fail)
    with pytest.raises(RecordTooLarge):
        manager.create_session()
    with pytest.raises(RegistryClosed, match="this manager is closed"):
        len(manager)


@pytest.mark.parametrize("call", ["check", "_expire", "_turn"])
def test_a_close_in_the_middle_of_any_call_is_done_when_it_ends(
    name: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = _manager(name)
    inside = []

    def be_interrupted(*_: object) -> list[str]:
        manager.close()
        inside.append(manager._closed)
        with pytest.raises(ReentrantCall):
            manager.check()
        return []

    monkeypatch.setattr(TableWriter, "check", be_interrupted)
    monkeypatch.setattr(Registry, "expire", be_interrupted)
    getattr(manager, call)()
    assert False in inside
    with pytest.raises(RegistryClosed):
        len(manager)
    assert manager._released


def test_a_manager_that_cannot_start_its_thread_is_not_taken_for_a_living_writer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _manager(name).close()

    def refuse(_: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            _manager(name)
    with SessionReader(name) as reader:
        assert reader.writer_alive is False
    with _manager(name) as manager:
        assert manager.recovery is not None
        assert manager.recovery.clean


@pytest.mark.parametrize("step", ["runs_of", "_repair_reach"])
def test_an_interrupted_takeover_is_not_taken_for_a_living_writer(
    name: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _manager(name).close()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TableWriter, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            _manager(name)
    with SessionReader(name) as reader:
        assert reader.writer_alive is False
    with _manager(name) as manager:
        assert manager.recovery is not None
        assert not manager.recovery.clean


def test_a_writer_without_descriptors_is_still_known_to_live(manager: SessionManager) -> None:
    with SessionReader(manager.name) as reader:
        with descriptors_left(0):
            manager._interrupted = True
            manager.create_session()
        assert reader.writer_alive is True
        assert reader._view.control.writer() == processes.own_identity()


def test_a_record_that_a_living_manager_drops_is_named(
    manager: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    lost, kept = manager.create_session({"a": 1}), manager.create_session()
    table = manager._registry.table
    entry, word, _ = table.look_up(lost)  # type: ignore[misc]
    table.slots.memory[table.slots.offset(word & 0xFFFFFF) + 64] ^= 1
    manager._interrupted = True
    manager.update_session(kept, status="active")
    assert lost not in manager
    assert f"1 damaged records dropped: [Dropped(entry={entry}, " in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_versions_do_not_begin_anew_once_they_are_used_up(name: str) -> None:
    with _manager(name) as manager:
        sid = manager.create_session()
        manager._own.control.change[0] = 2 * (2**40 - 1)
    for _ in range(3):
        with _manager(name) as heir:
            assert heir[sid].version == 1
            with pytest.raises(RegistryFull, match="versions of 40 bits"):
                heir.create_session()
    with _manager(name, fresh=True) as anew:
        anew.create_session()


def test_an_unlink_beside_a_close_meets_no_lock_of_its_own(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = _manager(name)
    stopping, may_stop = threading.Event(), threading.Event()
    stop = manager._reactor.stop

    def stop_late() -> None:
        if threading.current_thread() is closing:
            stopping.set()
            assert may_stop.wait(30)
        stop()

    monkeypatch.setattr(manager._reactor, "stop", stop_late)
    closing = threading.Thread(target=manager.close)
    closing.start()
    assert stopping.wait(30)
    manager.unlink()
    may_stop.set()
    closing.join()
    assert objects_of(name) == set()


def test_a_watch_after_a_close_that_was_put_off_does_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = _manager(name)
    monkeypatch.setattr(Registry, "expire", lambda *_: manager.close())
    manager._expire()
    assert manager._released
    manager._watch()
    with pytest.raises(RegistryClosed):
        len(manager)


def test_a_counter_at_its_end_stops_no_change(manager: SessionManager) -> None:
    control = manager._own.control
    control._words[CONTROL_FIELDS["created"] // 8] = 2**64 - 1
    sid = manager.create_session()
    assert sid in manager
    assert manager.stats().created == 0


def test_update_takes_its_fields_by_position_too(manager: SessionManager) -> None:
    sid = manager.create_session()
    assert manager.update_session(sid, "active", {"a": 1}).metadata == {"a": 1}


def test_an_interrupt_in_mid_change_is_repaired_by_the_next_call(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = manager.create_session({"a": 1})

    def interrupt() -> None:
        raise KeyboardInterrupt

    for call in (
        manager.create_session,
        lambda: manager.update_session(known, metadata={"a": 1}),
        lambda: manager.terminate_session(manager.create_session()),
    ):
        _interrupt_commits(monkeypatch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            call()
        assert manager.version is None
        assert manager[known].metadata == {"a": 1}
        manager.create_session()
        assert manager.version is not None
        assert manager.check() == []
        assert manager._registry.table.free_slots == 64 + 16 - len(manager)


@pytest.mark.parametrize("call", ["create", "update", "terminate"])
def test_an_interrupt_before_any_line_of_a_change_is_repaired(name: str, call: str) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with _manager(name, capacity=100, cleanup_delay=0.001) as manager:
        calls: dict[str, Callable[[UUID], object]] = {
            "create": lambda _: manager.create_session({"new": True}, ttl=3600),
            "update": lambda sid: manager.update_session(sid, status="active", ttl=1800),
            "terminate": manager.terminate_session,
        }
        for number in itertools.count(1):
            sid, other = [manager.create_session({"number": number}) for _ in range(2)]
            try:
                stop_at_line(number, lambda sid=sid: calls[call](sid), interrupt)
            except KeyboardInterrupt:
                interrupted = True
            else:
                interrupted = False
            # Nothing is lost or half-done, whichever way it went, and all that is to go goes.
            assert manager[other].metadata == {"number": number}
            for each in [*manager]:
                with contextlib.suppress(SessionNotFound):  # it was ended before, and is gone
                    manager.terminate_session(each)
            assert manager.check() == []
            wait_until(lambda: len(manager) == 0, seconds=5)
            if not interrupted:
                break
        assert number > 50


# ---------------------------------------------------------------------------- threads


def test_twenty_threads_may_create_at_once(name: str) -> None:
    def work(at: int) -> list[UUID]:
        sids = [manager.create_session({"at": at, "number": n}) for n in range(20)]
        for sid in sids[:10]:
            manager.update_session(sid, status="active")
        for sid in sids[10:]:
            manager.terminate_session(sid)
        return sids

    with _manager(name, capacity=500) as manager, ThreadPoolExecutor(20) as pool:
        made = [sid for sids in pool.map(work, range(20)) for sid in sids]
        assert len(set(made)) == len(manager) == 400
        counts = manager.count_by_status()
        assert (counts[S.ACTIVE], counts[S.TERMINATED]) == (200, 200)
        assert manager.version == 800
        assert manager.check() == []


def test_one_of_many_creates_of_an_id_succeeds(manager: SessionManager) -> None:
    def create(_: int) -> bool:
        try:
            manager.create_session(session_id=ABSENT)
        except SessionExists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(40))) == 1


def test_one_of_many_updates_of_a_version_succeeds(manager: SessionManager) -> None:
    def update(number: int) -> bool:
        try:
            manager.update_session(sid, metadata={"number": number}, expected_version=1)
        except VersionConflict:
            return False
        return True

    sid = manager.create_session()
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(update, range(40))) == 1


def test_a_check_beside_a_change_of_another_thread_finds_nothing_wrong(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[object] = []
    thread = threading.Thread(target=lambda: outcomes.append(manager.check()))

    def check() -> None:
        thread.start()
        # It has done its check, or it waits for the change to end.
        wait_until(lambda: outcomes or _waits_for_a_lock(thread))

    def commit_beside_a_check(*arguments: Any) -> None:  # noqa: ANN401 - its own
        monkeypatch.undo()
        check()
        commit(*arguments)

    commit = seqlock.commit
    monkeypatch.setattr(seqlock, "commit", commit_beside_a_check)
    manager.create_session()
    thread.join()
    assert outcomes == [[]]


# ---------------------------------------------------------------------------- forks, pickles


def _calls(manager: SessionManager, sid: UUID) -> list[Callable[[], object]]:
    """Return every call that looks at the registry."""
    return [
        manager.create_session,
        lambda: manager.update_session(sid, status="active"),
        lambda: manager.terminate_session(sid),
        manager.unlink,
        lambda: manager.get_session_info(sid),
        lambda: manager.get_session_pid(sid),
        lambda: manager.get_session_status(sid),
        manager.list_sessions,
        manager.count_by_status,
        manager.snapshot,
        manager.stats,
        manager.refresh,
        manager.check,
        lambda: manager.version,
        lambda: manager.writer_alive,
        lambda: manager[sid],
        lambda: manager.get(sid),
        lambda: sid in manager,
        lambda: len(manager),
        lambda: list(manager),
        lambda: list(manager.items()),
        lambda: list(manager.values()),
    ]


def test_a_forked_childs_manager_says_so_in_every_call(manager: SessionManager) -> None:
    sid = manager.create_session()

    def in_the_child() -> None:
        for call in _calls(manager, sid) * 2:
            with pytest.raises(ForkedHandle) as caught:
                call()
            assert caught.value.name == manager.name
        assert "ForkedHandle" in repr(manager)
        manager.close()
        with pytest.raises(ForkedHandle):
            len(manager)

    assert in_child(in_the_child) == 0


@pytest.mark.parametrize("ending", ["close", "with", "drop", "nothing"])
def test_a_forked_childs_end_does_not_disturb_the_parent(name: str, ending: str) -> None:
    with _manager(name, cleanup_delay=0.01) as manager:
        kept = [manager]
        sid = manager.create_session()

        def in_the_child() -> None:
            nonlocal manager
            if ending == "close":
                manager.close()
            elif ending == "with":
                with manager:
                    pass
            elif ending == "drop":
                del manager
                kept.clear()
                gc.collect()

        assert in_child(in_the_child) == 0
        assert objects_of(name) == {"", ".1"}
        with pytest.raises(WriterAlreadyRunning):
            _manager(name)
        manager.terminate_session(sid)
        wait_until(lambda: sid not in manager)
        expiring = manager.create_session(ttl=0.01)
        wait_until(lambda: expiring not in manager)
        assert manager.writer_alive is True


def test_a_forked_child_may_exit_as_processes_do(name: str) -> None:
    code = """
        import os, sys, warnings
        from jidoka_shm import SessionManager
        # That the process has threads is the point.
        warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
        manager = SessionManager(sys.argv[1], capacity=8, cleanup_delay=0.01)
        sid = manager.create_session()
        manager.terminate_session(sid)
        if not (pid := os.fork()):
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert manager.writer_alive
        while sid in manager:
            pass
        manager.unlink()
    """
    assert run_script(code, name) == ""


def test_a_forked_child_may_have_a_manager_of_its_own(manager: SessionManager, name: str) -> None:
    def in_the_child() -> None:
        with _manager(f"{name}-child") as own:
            sid = own.create_session(ttl=0.001)
            wait_until(lambda: own[sid].status is S.TERMINATED)
            own.unlink()

    assert in_child(in_the_child) == 0
    manager.create_session()


def test_a_fork_in_mid_change_leaves_the_child_no_lock(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []

    def in_the_child() -> None:
        with pytest.raises(ForkedHandle):
            manager.create_session()

    _interrupt_commits(monkeypatch, lambda: pids.append(in_child(in_the_child)))
    sid = manager.create_session()
    assert pids == [0]
    assert sid in manager
    assert manager.check() == []


def test_a_child_that_returns_into_a_change_changes_nothing(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory is shared: a change that went on in both would commit one version twice."""
    known = manager.create_session({"n": 0})
    children: list[int] = []
    go, began = os.pipe()
    end, ended = os.pipe()
    insert, replace = TableWriter._commit, TableWriter.replace

    def fork_before(method: Callable[..., T]) -> Callable[..., T]:
        def call(*arguments: Any) -> T:  # noqa: ANN401 - a table's
            if not children:
                pid = host.fork()
                children.append(pid)
                if not pid:
                    os.read(go, 1)
            return method(*arguments)

        return call

    for method, original in (("_commit", insert), ("replace", replace)):
        children.clear()
        monkeypatch.setattr(TableWriter, method, fork_before(original))
        try:
            manager.update_session(known, metadata={"n": 1})
        except ForkedHandle:
            if children == [0]:
                os.write(ended, b"1")
        except BaseException:
            if children == [0]:
                os.write(ended, b"0")
            raise
        finally:
            if children == [0]:
                os._exit(0)
        monkeypatch.setattr(TableWriter, method, original)
        for n in range(20):
            manager.update_session(known, metadata={"n": n})
        os.write(began, b"!")
        assert exit_code(children[0]) == 0
        assert os.read(end, 1) == b"1"
        assert manager[known].metadata == {"n": 19}
        assert manager.check() == []
    for descriptor in (go, began, end, ended):
        os.close(descriptor)


def test_a_child_that_lives_on_does_not_keep_the_registry(name: str) -> None:
    manager = _manager(name)
    end, begin = os.pipe()
    ready, say = os.pipe()

    def in_the_child() -> None:
        os.close(begin)
        os.write(say, b"x")
        os.read(end, 1)

    pid = forked(in_the_child)
    os.read(ready, 1)
    manager.close()
    with _manager(name) as successor:
        successor.create_session()
    os.close(begin)
    assert exit_code(pid) == 0
    for descriptor in (end, ready, say):
        os.close(descriptor)


def test_a_subprocess_inherits_nothing(manager: SessionManager) -> None:
    code = """
import os
for descriptor in range(100):
    try:
        print(os.readlink(f"/proc/self/fd/{descriptor}"))
    except OSError:
        pass
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, close_fds=False
    )
    assert "pipe:" in done.stdout
    assert manager.name not in done.stdout
    assert "eventpoll" not in done.stdout


def test_a_repr_says_what_it_is(manager: SessionManager) -> None:
    assert repr(manager) == f"SessionManager({manager.name!r}, 0 sessions, version 0)"


def test_a_manager_does_not_pickle_and_says_what_does(manager: SessionManager) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match=r"SessionReader.*SessionClient"):
            pickle.dumps(manager, protocol)


# ---------------------------------------------------------------------------- names removed


@pytest.mark.parametrize("generations", [(None,), (1,), (None, 1)])
def test_names_removed_by_hand_close_the_registry_for_everybody(
    name: str, generations: tuple[int | None, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """L7: the writer says that its name is gone, and every reader learns it."""
    with _manager(name) as manager:
        sid = manager.create_session()
        readers = [SessionReader(name) for _ in range(2)]
        readers[0].get_session_info(sid)
        for generation in generations:
            path_of(name, generation).unlink()
        before = time.monotonic()
        wait_until(lambda: manager._closed)
        assert time.monotonic() - before < 5
        assert f"the names of registry {name!r} were removed" in caplog.text
        assert caplog.records[-1].levelno == logging.ERROR
        for reader in readers:
            for _ in range(2):
                with pytest.raises(RegistryClosed):
                    reader.get_session_info(sid)
            with pytest.raises(RegistryClosed):
                reader.list_sessions()
            reader.close()
        for call in (manager.create_session, lambda: len(manager)):
            with pytest.raises(RegistryClosed, match="names were removed"):
                call()
        manager.unlink()
    assert objects_of(name) == set()


@pytest.mark.parametrize("change", ["create", "update", "expire"])
def test_a_table_that_another_manager_destroyed_does_not_come_back_to_life(
    name: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a name's removal and the watch that notices it, a successor may be there."""
    monkeypatch.setattr(reactor, "_WATCH_INTERVAL", 1000)
    with _manager(name) as manager:
        sid = manager.create_session()

        def do() -> None:
            if change == "create":
                manager.create_session(session_id=sid)
            elif change == "update":
                manager.update_session(sid, status="active")
            else:
                manager._interrupted = True
                assert manager._expire() is None
                len(manager)

        table = manager._registry.table
        path_of(name).unlink()
        with _manager(name) as successor:
            assert set(table.index.words) == {2}
            new = successor.create_session(session_id=sid)
            for _ in range(3):
                with pytest.raises(RegistryClosed):
                    do()
            assert set(table.index.words) == {2}
            assert list(successor) == [new]
            assert successor.check() == []
            successor.unlink()


def test_names_removed_by_hand_make_room_for_a_successor(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reactor, "_WATCH_INTERVAL", 0.01)
    with _manager(name) as manager, SessionReader(name) as reader:
        old = manager.create_session()
        assert old in reader
        for path in (path_of(name), path_of(name, 1)):
            path.unlink()
        with _manager(name) as successor:
            sid = successor.create_session()
            wait_until(lambda: manager._closed)
            assert "were removed" in caplog.text
            assert sid in reader
            assert old not in reader
            assert successor.check() == []
            manager.close()
            assert successor.writer_alive is True
            with pytest.raises(WriterAlreadyRunning):
                manager.unlink()
            assert objects_of(name) == {"", ".1"}


def test_unlinking_what_has_lost_its_names_closes_it_for_everybody(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before the manager has noticed by itself.
    monkeypatch.setattr(reactor, "_WATCH_INTERVAL", 3600)
    with _manager(name) as manager, SessionReader(name) as reader:
        sid = manager.create_session()
        assert sid in reader
        for path in (path_of(name), path_of(name, 1)):
            path.unlink()
        manager.unlink()
        with pytest.raises(RegistryClosed):
            reader.get_session_info(sid)
