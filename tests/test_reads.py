"""Reading, which is the same for every kind of handle: by a manager, and by a reader beside it."""

from __future__ import annotations

import collections.abc
import os
import pickle
import uuid
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any
from unittest.mock import ANY
from uuid import UUID, uuid4

import numpy as np
import pytest
from host import path_of
from tables import MetSlots

from jidoka_shm import (
    CorruptRegistry,
    InvalidSessionId,
    ReadContended,
    RegistryClosed,
    Session,
    SessionManager,
    SessionNotFound,
    SessionReader,
    SessionStatus,
    Usage,
    access,
    attachment,
    reads,
    seqlock,
)
from jidoka_shm.control import Identity
from jidoka_shm.layout import SLOT_DTYPE, STATUS_CODES
from jidoka_shm.table import TableGone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jidoka_shm.reads import SessionReads

ABSENT = UUID(int=0xABC)

#: What is no id, in all its variety.
NO_IDS = ["", "session_", "not an id", 5, None, b"0" * 16, 1.5, [], {}, object(), str(ABSENT)[:-1]]

S = SessionStatus


@pytest.fixture
def manager(name: str) -> Iterator[SessionManager]:
    """A manager; what is terminated stays for an hour."""
    with SessionManager(name, capacity=64, cleanup_delay=3600) as made:
        yield made
        made.unlink()


@pytest.fixture(params=["manager", "reader", "reader without a cache", "reader that verifies"])
def handle(manager: SessionManager, request: pytest.FixtureRequest) -> Iterator[SessionReads]:
    """One that reads what the manager writes: the manager itself, or a reader."""
    if request.param == "manager":
        yield manager
    else:
        size = 0 if "without" in request.param else 65_536
        verify = "verifies" in request.param
        with SessionReader(manager.name, cache_size=size, verify=verify) as reader:
            yield reader


def _spellings(session_id: UUID) -> list[Any]:
    """Return the ways to name a session."""
    text = str(session_id)
    ways = [text, text.upper(), session_id.hex]
    return [session_id, *ways, *(f"session_{way}" for way in ways)]


def _one_of_each(manager: SessionManager) -> dict[SessionStatus, UUID]:
    """Make a session of each status."""
    made = {status: manager.create_session({"status": status.value}) for status in S}
    for status in (S.ACTIVE, S.TERMINATING, S.TERMINATED):
        manager.update_session(made[status], status=status)
    manager.update_session(made[S.IDLE], status=S.ACTIVE)
    manager.update_session(made[S.IDLE], status=S.IDLE)
    return made


# ---------------------------------------------------------------------------- one session


def test_a_session_reads_as_it_was_made(handle: SessionReads, manager: SessionManager) -> None:
    sid = manager.create_session({"a": [1, {"b": None}]}, {"model": "é"}, pid=1, ttl=60)
    session = handle.get_session_info(sid)
    assert session.session_id == sid
    assert session.status is S.INITIALIZING
    assert session.metadata == {"a": [1, {"b": None}]}
    assert session.llm_config == {"model": "é"}
    assert session.pid == 1
    assert session.version == handle.version == 1
    assert session.created_at == session.updated_at
    assert session.expires_at is not None
    assert session.error is None
    with pytest.raises((AttributeError, FrozenInstanceError)):
        session.pid = 2  # type: ignore[misc]


def test_every_spelling_of_an_id_names_its_session(
    handle: SessionReads, manager: SessionManager
) -> None:
    sid = manager.create_session({"a": 1}, pid=1)
    for way in _spellings(sid) * 2:
        assert handle.get_session_info(way) == handle[way] == handle.get(way)
        assert handle[way].session_id == sid
        assert handle.get_session_status(way) is S.INITIALIZING
        assert handle.get_session_pid(way) == 1
        assert way in handle


def test_a_subclass_of_an_id_is_an_id(handle: SessionReads, manager: SessionManager) -> None:
    class Id(uuid.UUID):
        pass

    sid = manager.create_session()
    for _ in range(2):
        assert handle[Id(int=sid.int)].session_id == sid
        assert type(handle[Id(int=sid.int)].session_id) is UUID
        assert Id(int=sid.int) in handle
    assert Id(int=5) not in handle


def test_a_session_that_is_not_there_is_not_found(handle: SessionReads) -> None:
    for read in (
        handle.get_session_info,
        handle.get_session_pid,
        handle.get_session_status,
        handle.__getitem__,
    ):
        for way in _spellings(ABSENT):
            with pytest.raises(SessionNotFound) as caught:
                read(way)
            assert caught.value.session_id == ABSENT
            assert isinstance(caught.value, KeyError)
    for way in _spellings(ABSENT):
        assert way not in handle
        assert handle.get(way) is None
        assert handle.get(way, 7) == 7


@pytest.mark.parametrize("value", NO_IDS, ids=repr)
def test_what_is_no_id_is_an_error_in_calls_and_nothing_in_a_mapping(
    handle: SessionReads, value: object
) -> None:
    for read in (
        handle.get_session_info,
        handle.get_session_pid,
        handle.get_session_status,
        handle.__getitem__,
    ):
        with pytest.raises(InvalidSessionId):
            read(value)  # type: ignore[arg-type]
    assert value not in handle
    assert handle.get(value) is None
    assert handle.get(value, "default") == "default"


def test_a_terminated_session_can_be_seen_but_has_no_pid(
    handle: SessionReads, manager: SessionManager
) -> None:
    sid = manager.create_session(pid=1)
    assert handle.get_session_pid(sid) == 1
    manager.terminate_session(sid, error="it broke")
    assert handle.get_session_info(sid).status is S.TERMINATED
    assert handle.get_session_info(sid).error == "it broke"
    assert handle.get_session_info(sid).pid == 1
    assert handle.get_session_status(sid) is S.TERMINATED
    for way in _spellings(sid) * 2:
        with pytest.raises(SessionNotFound) as caught:
            handle.get_session_pid(way)
        assert caught.value.session_id == sid
    assert sid in handle


def test_a_session_without_an_owner_has_no_pid(
    handle: SessionReads, manager: SessionManager
) -> None:
    sid = manager.create_session()
    assert handle.get_session_pid(sid) is None
    assert handle.get_session_info(sid).pid is None
    assert handle.get_session_pid(sid) is None


def test_every_change_is_seen_at_once(handle: SessionReads, manager: SessionManager) -> None:
    sid = manager.create_session({"number": 0})
    for number in range(1, 20):
        pid = (os.getpid(), os.getppid())[number % 2]
        changed = manager.update_session(sid, metadata={"number": number}, pid=pid)
        for _ in range(2):
            assert handle[sid] == changed
            assert handle[sid].metadata == {"number": number}
            assert handle.get_session_pid(sid) == pid
            assert handle.version == changed.version == number + 1


def test_a_change_of_a_copy_shows_nowhere(handle: SessionReads, manager: SessionManager) -> None:
    sid = manager.create_session({"list": [1]}, {"a": 1})
    session = handle[sid]
    session.metadata["list"].append(2)
    session.llm_config.clear()
    for again in (session, handle[sid], handle.list_sessions()[0], manager[sid]):
        assert again.metadata == {"list": [1]}
        assert again.llm_config == {"a": 1}


# ---------------------------------------------------------------------------- all of them


def test_what_is_read_is_a_private_copy(handle: SessionReads, manager: SessionManager) -> None:
    """T3: what a session decodes is bytes of its own, which no later commit shows in."""
    sid = manager.create_session({"a": 1}, {"b": 2})
    for read in (
        lambda: handle[sid],
        lambda: handle.get(sid),
        lambda: handle.list_sessions()[0],
        lambda: next(iter(handle.values())),
    ):
        assert type(read()._payload) is bytes
    session = handle[sid]
    for number in range(2 * (64 + 16)):
        manager.update_session(sid, metadata={"a": number + 2})
    assert (session.metadata, session.llm_config) == ({"a": 1}, {"b": 2})


def test_a_list_is_of_the_living_unless_a_status_is_asked_for(
    handle: SessionReads, manager: SessionManager
) -> None:
    made = _one_of_each(manager)
    living = set(made.values()) - {made[S.TERMINATED]}
    assert {session.session_id for session in handle.list_sessions()} == living
    for status, sid in made.items():
        for spelled in (status, status.value):
            assert [s.session_id for s in handle.list_sessions(spelled)] == [sid]
            assert handle.list_sessions(status=spelled)[0].status is status


@pytest.mark.parametrize("status", ["", "ACTIVE", "gone", 1, b"active", [], S])
def test_a_list_of_no_status_is_an_error(handle: SessionReads, status: object) -> None:
    with pytest.raises(ValueError, match=r"is no status: use one of initializing, active"):
        handle.list_sessions(status)  # type: ignore[arg-type]


def test_a_list_is_fresh_each_time_and_equal_while_nothing_changes(
    handle: SessionReads, manager: SessionManager
) -> None:
    for number in range(10):
        manager.create_session({"number": number})
    for status in (None, "initializing", "active"):
        first, second = handle.list_sessions(status), handle.list_sessions(status)
        assert first == second
        assert first is not second
        first.clear()
        second.append(None)  # type: ignore[arg-type]
        assert len(handle.list_sessions(status)) == (0 if status == "active" else 10)


def test_a_list_scans_once_while_nothing_changes(
    handle: SessionReads, manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans: list[None] = []
    scan = attachment.scan_sessions

    def count_and_scan(*arguments: Any) -> object:  # noqa: ANN401 - a scan's own
        scans.append(None)
        return scan(*arguments)

    monkeypatch.setattr(attachment, "scan_sessions", count_and_scan)
    for changes in range(1, 4):
        manager.create_session()
        for _ in range(3):
            handle.list_sessions()
            handle.list_sessions("active")
            list(handle.values())
        assert len(scans) == changes


def test_a_list_follows_every_change(handle: SessionReads, manager: SessionManager) -> None:
    assert handle.list_sessions() == []
    sids = [manager.create_session({"number": number}) for number in range(5)]
    assert sorted(s.metadata["number"] for s in handle.list_sessions()) == [0, 1, 2, 3, 4]
    manager.update_session(sids[2], metadata={"number": 20})
    assert sorted(s.metadata["number"] for s in handle.list_sessions()) == [0, 1, 3, 4, 20]
    manager.terminate_session(sids[0])
    assert sorted(s.metadata["number"] for s in handle.list_sessions()) == [1, 3, 4, 20]
    assert [s.session_id for s in handle.list_sessions("terminated")] == [sids[0]]


def test_what_is_listed_is_what_is_looked_up(handle: SessionReads, manager: SessionManager) -> None:
    for number in range(30):
        manager.create_session({"number": number}, pid=1)
    for session in handle.list_sessions():
        assert handle[session.session_id] == session


def test_sessions_are_counted_by_status(handle: SessionReads, manager: SessionManager) -> None:
    assert handle.count_by_status() == dict.fromkeys(S, 0)
    _one_of_each(manager)
    manager.create_session()
    assert handle.count_by_status() == dict.fromkeys(S, 1) | {S.INITIALIZING: 2}
    assert list(handle.count_by_status()) == list(S)
    assert all(type(count) is int for count in handle.count_by_status().values())


def test_a_snapshot_has_a_row_for_each_session(
    handle: SessionReads, manager: SessionManager
) -> None:
    assert len(handle.snapshot()) == 0
    made = _one_of_each(manager)
    manager.update_session(made[S.ACTIVE], pid=os.getpid())
    rows = handle.snapshot()
    assert len(rows) == 5
    for row in rows:
        session = handle[UUID(bytes=row["session_id"].tobytes())]
        assert row["version"] == session.version
        assert STATUS_CODES[row["status"]] == session.status
        assert row["pid"] == (session.pid or 0)
        assert row["created_at"] == session._created
        assert row["updated_at"] == session._updated
        assert row["payload_length"] == len(session._payload)


@pytest.mark.parametrize("under_way", [False, True])
def test_a_snapshot_has_the_slot_headers_columns_as_they_lie_there(
    handle: SessionReads, manager: SessionManager, *, under_way: bool
) -> None:
    sids = [manager.create_session() for _ in range(3)]
    change = manager._own.control.change
    change[0] += under_way
    rows = handle.snapshot()
    change[0] -= under_way
    assert rows.dtype == SLOT_DTYPE
    assert {rows[at : at + 1].tobytes()[:16] for at in range(3)} == {sid.bytes for sid in sids}


def test_a_snapshot_is_a_copy(handle: SessionReads, manager: SessionManager) -> None:
    sid = manager.create_session(pid=1)
    rows = handle.snapshot()
    before = rows.copy()
    manager.update_session(sid, pid=os.getpid())
    assert (rows == before).all()
    rows["pid"] = 3
    assert manager[sid].pid == handle[sid].pid == os.getpid()
    assert handle.snapshot()["pid"].tolist() == [os.getpid()]


def test_there_is_no_order_but_each_session_once(
    handle: SessionReads, manager: SessionManager
) -> None:
    sids = [manager.create_session() for _ in range(50)]
    for listed in (
        [session.session_id for session in handle.list_sessions()],
        list(handle),
        [UUID(bytes=row.tobytes()) for row in handle.snapshot()["session_id"]],
    ):
        assert len(listed) == 50
        assert set(listed) == set(sids)


# ---------------------------------------------------------------------------- a mapping


def test_it_is_a_mapping_of_all_that_can_be_seen(
    handle: SessionReads, manager: SessionManager
) -> None:
    made = _one_of_each(manager)
    assert isinstance(handle, collections.abc.Mapping)
    assert len(handle) == 5
    assert set(handle) == set(handle.keys()) == set(made.values())
    assert all(type(sid) is UUID for sid in handle)
    assert dict(handle) == {sid: manager[sid] for sid in made.values()}
    assert dict(handle.items()) == dict(handle)
    assert {session.session_id for session in handle.values()} == set(made.values())
    assert len(handle.items()) == len(handle.values()) == len(handle.keys()) == 5
    assert (made[S.IDLE], handle[made[S.IDLE]]) in handle.items()
    assert (made[S.IDLE], handle[made[S.ACTIVE]]) not in handle.items()
    assert handle[made[S.IDLE]] in handle.values()
    assert made[S.TERMINATED] in handle.keys()  # noqa: SIM118 - the view is what is tested


def test_an_empty_one_is_false(handle: SessionReads, manager: SessionManager) -> None:
    assert not handle
    assert (list(handle), list(handle.items()), list(handle.values())) == ([], [], [])
    manager.create_session()
    assert handle


def test_sessions_may_vanish_while_it_is_iterated(
    handle: SessionReads, manager: SessionManager
) -> None:
    sids = [manager.create_session({"number": number}) for number in range(20)]
    table = manager._registry.table
    for view in (handle.keys(), handle.values(), handle.items()):
        there = len(sids)
        for number, _ in enumerate(view, start=1):
            if number % 4 == 0:
                table.remove(table.look_up(sids.pop())[0])  # type: ignore[index]
        assert number == there
    assert set(handle) == set(sids)


class _Spoiler:
    """Equals nothing, and removes a session each time that it is asked."""

    def __init__(self, remove: Callable[[], object]) -> None:
        self.remove, self.asked = remove, 0

    def __eq__(self, other: object) -> bool:
        self.asked += 1
        self.remove()
        return False

    __hash__ = None  # type: ignore[assignment]


def test_sessions_may_vanish_while_a_view_is_searched(
    handle: SessionReads, manager: SessionManager
) -> None:
    sids = [manager.create_session() for _ in range(20)]
    table = manager._registry.table

    def remove() -> None:
        table.remove(table.look_up(sids.pop())[0])  # type: ignore[index]

    spoiler = _Spoiler(lambda: [remove() for _ in range(3 if len(sids) > 10 else 0)])
    assert spoiler not in handle.values()
    assert spoiler.asked == 20
    gone = handle[sids[0]]
    spoiler = _Spoiler(remove)
    assert (sids[0], spoiler) not in handle.items()
    assert spoiler.asked == 1
    table.remove(table.look_up(gone.session_id)[0])  # type: ignore[index]
    assert gone not in handle.values()
    assert (gone.session_id, gone) not in handle.items()


def test_a_view_holds_what_it_yields_and_nothing_else(
    handle: SessionReads, manager: SessionManager
) -> None:
    sid, other = manager.create_session({"a": 1}), manager.create_session({"a": 2})
    session = handle[sid]
    assert session in handle.values()
    assert (sid, session) in handle.items()
    assert (str(sid), session) in handle.items()
    assert (other, session) not in handle.items()
    assert (ABSENT, session) not in handle.items()
    assert (ABSENT, None) not in handle.items()
    assert ANY in handle.values()
    assert (sid, ANY) in handle.items()
    assert (ABSENT, ANY) not in handle.items()
    assert Session.make(session_id=ABSENT) not in handle.values()
    changed = manager.update_session(sid, metadata={"a": 3})
    assert session not in handle.values()
    assert (sid, session) not in handle.items()
    assert changed in handle.values()
    assert (sid, changed) in handle.items()


@pytest.mark.parametrize("value", NO_IDS, ids=repr)
def test_a_view_holds_nothing_of_what_cannot_be_in_it(
    handle: SessionReads, manager: SessionManager, value: object
) -> None:
    session = handle[manager.create_session()]
    assert value not in handle.keys()  # noqa: SIM118 - the view is what is tested
    assert value not in handle.values()
    assert value not in handle.items()
    for item in ((value, session), (value, None), (session, value), (session.session_id, value)):
        assert item not in handle.items()
        assert item not in handle.values()
    for item in ((), (session.session_id,), (session.session_id, session, 1)):
        assert item not in handle.items()
    assert [session.session_id, session] not in handle.items()


def test_a_match_takes_a_session_by_its_id(handle: SessionReads, manager: SessionManager) -> None:
    sid = manager.create_session({"a": 1})
    match {"handle": handle}:
        case {"handle": collections.abc.Mapping() as found}:
            assert found[sid].metadata == {"a": 1}


def test_a_handle_equals_itself_alone(handle: SessionReads, manager: SessionManager) -> None:
    manager.create_session()
    with SessionReader(manager.name) as other:
        assert dict(other) == dict(handle)
        assert other != handle
        assert handle == handle  # noqa: PLR0124 - itself is what it equals
        assert handle != dict(handle)
        assert len({handle, other, handle}) == 2
        assert hash(handle) == hash(handle)


def test_a_repr_names_registry_and_state(handle: SessionReads, manager: SessionManager) -> None:
    manager.create_session()
    kind = type(handle).__name__
    assert repr(handle) == f"{kind}({manager.name!r}, 1 sessions, version 1)"
    handle.close()
    assert repr(handle) == f"{kind}({manager.name!r}, RegistryClosed)"


# ---------------------------------------------------------------------------- the registry


def test_the_version_counts_commits(handle: SessionReads, manager: SessionManager) -> None:
    assert handle.version == 0
    sid = manager.create_session()
    assert handle.version == 1
    manager.update_session(sid, status="active")
    manager.terminate_session(sid)
    assert handle.version == 3
    manager.terminate_session(sid)
    assert handle.version == 3


def test_there_is_no_version_while_a_commit_is_under_way(
    handle: SessionReads, manager: SessionManager
) -> None:
    sid = manager.create_session({"a": 1})
    change = manager._own.control.change
    change[0] += 1
    assert handle.version is None
    assert handle.stats().version is None
    # All else goes on, also for ever: nobody waits for an even word.
    assert handle[sid].metadata == {"a": 1}
    for _ in range(2):
        assert [session.session_id for session in handle.list_sessions()] == [sid]
        assert handle.count_by_status()[S.INITIALIZING] == 1
        assert list(handle) == [sid]
    assert "version None" in repr(handle)
    change[0] -= 1
    assert handle.version == 1


def test_a_list_made_while_a_commit_is_under_way_is_not_given_again(
    handle: SessionReads, manager: SessionManager
) -> None:
    sid = manager.create_session({"a": 1})
    change = manager._own.control.change
    change[0] += 1
    assert len(handle.list_sessions()) == 1
    table = manager._registry.table
    entry = table.look_up(sid)[0]  # type: ignore[index]
    table.index.words[entry] = 0
    assert handle.list_sessions() == []
    assert list(handle.values()) == []
    change[0] += 1


def test_a_living_writer_is_alive(handle: SessionReads) -> None:
    assert handle.writer_alive is True


def test_a_writer_that_is_gone_is_not_alive(handle: SessionReads, manager: SessionManager) -> None:
    control = manager._own.control
    me = control.writer()
    assert me is not None
    control.publish_writer(Identity(me.pid, me.start + 1, me.namespace))
    assert handle.writer_alive is False
    control.retire_writer()
    assert handle.writer_alive is False
    control.publish_writer(Identity(me.pid, me.start, me.namespace + 1))
    assert handle.writer_alive is None
    control.publish_writer(me)
    assert handle.writer_alive is True


def test_half_an_identity_of_a_killed_writer_is_not_waited_for(
    handle: SessionReads, manager: SessionManager
) -> None:
    control = manager._own.control
    me = control.writer()
    assert me is not None
    control.change[0] += 1
    control.publish_writer(Identity(me.pid, 1, me.namespace))
    assert handle.writer_alive is False
    control.change[0] -= 1
    control.publish_writer(me)


def test_figures_tell_what_there_is_and_what_happened(
    handle: SessionReads, manager: SessionManager
) -> None:
    sids = [manager.create_session() for _ in range(3)]
    manager.update_session(sids[0], status="active")
    manager.terminate_session(sids[1])
    table = manager._registry.table
    stats = handle.stats()
    assert stats.name == handle.name == manager.name
    assert stats.instance == manager._instance
    assert stats.generation == 1
    assert stats.version == 5
    assert stats.sessions == 3
    assert (stats.created, stats.updated, stats.removed) == (3, 2, 0)
    assert (stats.takeovers, stats.dropped) == (0, 0)
    assert (stats.capacity, stats.slot_size) == (64, 512)
    assert stats.index_size == table.geometry.index_size
    assert stats.table_bytes == path_of(manager.name, 1).stat().st_size
    assert stats.retries == 0
    before = stats.cached
    for sid in sids:
        handle.get_session_info(sid)
    assert handle.stats().cached in {before, before + 3}
    assert pickle.loads(pickle.dumps(stats)) == stats  # noqa: S301 - its own
    with pytest.raises(FrozenInstanceError):
        stats.sessions = 4  # type: ignore[misc]


def test_usage_tells_how_the_slots_are_used(handle: SessionReads, manager: SessionManager) -> None:
    for size in (0, 300, 600):
        manager.create_session({"text": "x" * size})
    used = handle.usage()
    assert isinstance(used, Usage)
    assert (used.version, used.sessions, used.slot_size) == (3, 3, 512)
    assert (used.slots_used, used.slots_free, used.run_lengths) == (4, 64 + 16 - 4, (2, 1))
    assert used == manager.usage()


def _meet_a_commit(handle: SessionReads, commit: Callable[[], object]) -> None:
    """Let the next copy that the handle makes of a slot be met by a commit."""
    view = handle._view
    table = view.table
    left = [commit]

    def commit_once() -> None:
        if left:
            left.pop()()

    def met(copy: Callable[[int], object]) -> Callable[[int], object]:
        def call(word: int) -> object:
            copied = copy(word)
            commit_once()
            return copied

        return call

    if table.verify:
        table.copy_whole = met(table.slots.copy_whole_verified)  # type: ignore[assignment]
        table.copy_head = met(table.slots.copy_head_verified)  # type: ignore[assignment]
    else:
        slots: Any = MetSlots(table.slots, commit_once)
        view.quick_look_up = seqlock.quick_look_up(table.index, table.reach, slots)
        view.quick_glance = seqlock.quick_glance(table.index, table.reach, slots)


@pytest.mark.parametrize(
    "way", ["get_session_info", "get", "get_session_status", "get_session_pid"]
)
def test_look_ups_that_met_a_commit_are_counted_as_retries(
    handle: SessionReads, manager: SessionManager, way: str
) -> None:
    sid = manager.create_session(pid=1)
    before = handle.stats().retries
    for number in range(1, 11):
        # What is kept of the session must not spare the look-up.
        manager.update_session(sid, metadata={"number": number})
        _meet_a_commit(handle, lambda: manager.update_session(sid, metadata={"met": True}))
        assert getattr(handle, way)(sid) == getattr(manager, way)(sid)
        assert handle.stats().retries - before >= number
    assert handle.stats().retries - before < 20


def test_a_refresh_of_what_is_the_same_still_does_nothing(
    handle: SessionReads, manager: SessionManager
) -> None:
    sid = manager.create_session()
    session, view = handle[sid], handle._view
    handle.refresh()
    assert handle._view is view
    assert handle[sid] == session


def test_a_sound_registry_has_nothing_wrong(handle: SessionReads, manager: SessionManager) -> None:
    assert handle.check() == []
    _one_of_each(manager)
    assert handle.check() == []


def test_a_damaged_registry_has_something_wrong(
    handle: SessionReads, manager: SessionManager
) -> None:
    sid = manager.create_session({"a": 1})
    table = manager._registry.table
    entry, word, _ = table.look_up(sid)  # type: ignore[misc]
    place = table.slots.offset(word & 0xFFFFFF) + 16
    table.slots.memory[place] ^= 1
    assert [line for line in handle.check() if f"entry {entry}, " in line]
    table.slots.memory[place] ^= 1
    for reach in (2, 255):
        table.reach[entry] = reach
        wrong = [f"reach of {entry} is {reach}, not 1"]
        # A writer that was killed in the middle of a change may leave it so.
        assert handle.check() == (wrong if handle is manager else [])
    table.reach[entry] = 0
    assert handle.check() == [f"reach of {entry} is 0, not 1"]
    table.reach[entry] = 1
    assert handle.check() == []


def test_a_check_needs_a_moment_without_a_commit(
    handle: SessionReads, manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = handle._view.table
    check, change = table.check, manager._own.control.change
    commits = iter([True, True, False])

    def check_beside_a_writer() -> list[str]:
        problems = check()
        if next(commits, True):
            change[0] += 2
        return problems

    monkeypatch.setattr(table, "check", check_beside_a_writer)
    assert handle.check() == []
    with pytest.raises(ReadContended) as caught:
        handle.check()
    assert caught.value.tries == reads._CHECKS
    assert next(commits, "none left") == "none left"


@pytest.mark.parametrize("code", [0, 6, 255])
def test_a_status_that_cannot_be_is_damage(
    name: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without crcs, which would find it first.
    monkeypatch.setattr(seqlock, "WEAK", False)
    with SessionManager(name, capacity=8) as manager, SessionReader(name) as reader:
        sid = manager.create_session()
        table = manager._registry.table
        word = table.look_up(sid)[1]  # type: ignore[index]
        table.slots.memory[table.slots.offset(word & 0xFFFFFF) + 48] = code
        for handle in (manager, reader):
            for read in (handle.get_session_info, handle.get_session_status):
                with pytest.raises(CorruptRegistry, match=f"status code {code}"):
                    read(sid)
            with pytest.raises(CorruptRegistry, match=f"status code {code}"):
                handle.list_sessions()
        manager.unlink()


# ---------------------------------------------------------------------------- the end


def _reads_of(handle: SessionReads, sid: UUID) -> list[Callable[[], object]]:
    """Return every read that has to look at the memory."""
    return [
        lambda: handle.get_session_info(sid),
        lambda: handle.get_session_info(str(sid)),
        lambda: handle.get_session_pid(sid),
        lambda: handle.get_session_status(sid),
        lambda: handle[sid],
        lambda: handle.get(sid),
        lambda: handle.get(sid, 7),
        lambda: sid in handle,
        lambda: len(handle),
        lambda: bool(handle),
        lambda: list(handle),
        lambda: list(handle.keys()),
        lambda: list(handle.values()),
        lambda: list(handle.items()),
        lambda: (sid, None) in handle.items(),
        lambda: Session.make(session_id=sid) in handle.values(),
        lambda: 5 in handle.values(),
        handle.list_sessions,
        lambda: handle.list_sessions("active"),
        handle.count_by_status,
        handle.snapshot,
        lambda: handle.writer_alive,
        handle.stats,
        handle.usage,
        handle.refresh,
        handle.check,
    ]


def test_a_closed_handle_says_so_in_every_call(
    handle: SessionReads, manager: SessionManager
) -> None:
    sid = manager.create_session()
    for read in _reads_of(handle, sid):
        read()
    handle.close()
    handle.close()
    no_id: list[Callable[[], object]] = [
        lambda: "no id" in handle,
        lambda: handle.get("no id"),
        lambda: handle.get_session_info("no id"),
        lambda: handle.get_session_pid("no id"),
        lambda: handle.get_session_status("no id"),
        lambda: ("no id", None) in handle.items(),
        lambda: 5 in handle.items(),
    ]
    for read in [*_reads_of(handle, sid) * 2, *no_id, lambda: handle.version]:
        with pytest.raises(RegistryClosed, match=f"{manager.name}.*is closed"):
            read()
    assert handle.name == manager.name


def test_a_destroyed_registry_is_closed_in_every_call(
    handle: SessionReads, manager: SessionManager
) -> None:
    sid = manager.create_session()
    for read in _reads_of(handle, sid):
        read()
    manager.unlink()
    for read in _reads_of(handle, sid) * 2:
        with pytest.raises(RegistryClosed, match=manager.name):
            read()


def test_what_was_returned_outlives_its_handle_and_its_registry(
    handle: SessionReads, manager: SessionManager
) -> None:
    """D1: all that was returned can be touched after the close."""
    sid = manager.create_session({"a": [1, 2]}, {"b": "x" * 100}, pid=1, ttl=60)
    session, listed, values = handle[sid], handle.list_sessions(), list(handle.values())
    rows, counts, stats = handle.snapshot(), handle.count_by_status(), handle.stats()
    views = handle.keys(), handle.values(), handle.items()
    iterators = [iter(view) for view in views]
    for iterator in iterators:
        next(iterator)
    handle.close()
    manager.unlink()
    for kept in (session, *listed, *values):
        assert kept.metadata == {"a": [1, 2]}
        assert kept.llm_config == {"b": "x" * 100}
        assert kept.to_dict()["pid"] == 1
        assert kept == pickle.loads(pickle.dumps(kept))  # noqa: S301 - its own
        assert str(sid) in repr(kept)
    assert rows["pid"].tolist() == [1]
    assert (rows.copy() == rows).all()
    assert np.array(rows["session_id"]).tobytes() == sid.bytes
    assert counts[S.INITIALIZING] == 1
    assert stats.sessions == 1
    for iterator in iterators:
        assert list(iterator) == []
    for view in views:
        with pytest.raises(RegistryClosed):
            list(view)


def test_a_table_that_is_given_up_again_and_again_ends_in_an_error(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SessionReader(manager.name) as reader:
        view = reader._view

        def gone(*_: object) -> Session:
            raise TableGone

        for step in ("look_up", "find", "occupied"):
            monkeypatch.setattr(view.table, step, gone)
        view.quick_look_up = view.quick_glance = seqlock.never_quick
        attached = []
        monkeypatch.setattr(reader, "_attach_again", attached.append)
        for read in (
            reader.get_session_info,
            reader.get_session_status,
            lambda _: reader.list_sessions(),
        ):
            with pytest.raises(ReadContended) as caught:
                read(uuid4())
            assert caught.value.tries == len(attached) == access.ATTACHMENTS
            attached.clear()
