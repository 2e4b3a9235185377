"""Watching a registry: by readers, clients and its manager, whatever becomes of the writer."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import signal
import threading
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from host import Script, descriptors_of, in_child, path_of, stop_at_line
from interleavings import Reader
from support import ME, make_writer, wait_until
from support import session as make_session
from tables import add

from jidoka_shm import (
    Change,
    ChangeKind,
    CorruptRegistry,
    ForkedHandle,
    FormatMismatch,
    RegistryClosed,
    SessionClient,
    SessionManager,
    SessionReader,
    segment,
    seqlock,
    watching,
)
from jidoka_shm.control import ControlReader, ControlWriter
from jidoka_shm.header import TableHeader
from jidoka_shm.layout import (
    CLOSED,
    CONTROL_FIELDS,
    CONTROL_MAGIC,
    CONTROL_SIZE,
    MOVED,
    Geometry,
    index_word,
    table_name,
)
from jidoka_shm.table import SessionTable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jidoka_shm import Session
    from jidoka_shm.reads import SessionReads

CREATED, UPDATED, TERMINATED, REMOVED = ChangeKind

#: For what must not end by itself within a test.
LONG = 60.0


@pytest.fixture
def manager(name: str) -> Iterator[SessionManager]:
    """A manager; what is terminated stays for an hour."""
    with SessionManager(name, capacity=64, cleanup_delay=3600) as made:
        yield made
        made.unlink()


@pytest.fixture
def reader(manager: SessionManager) -> Iterator[SessionReader]:
    """A reader of what the manager writes."""
    with SessionReader(manager.name) as made:
        yield made


@pytest.fixture(params=["manager", "reader", "reader that verifies", "client"])
def handle(manager: SessionManager, request: pytest.FixtureRequest) -> Iterator[SessionReads]:
    """One that reads what the manager writes."""
    if request.param == "manager":
        yield manager
    elif request.param == "client":
        with SessionClient(manager.name) as client:
            yield client
    else:
        with SessionReader(manager.name, verify="verifies" in request.param) as reader:
            yield reader


def _kinds(changes: Iterable[Change]) -> list[tuple[str, UUID]]:
    return [(str(kind), session.session_id) for kind, session in changes]


class Model:
    """A dict that does what a watcher tells.

    Attributes:
        sessions: what it holds then.
        told: how many changes it was told of.
    """

    def __init__(self) -> None:
        self.sessions: dict[UUID, Session] = {}
        self.told = 0

    def follow(self, changes: Iterable[Change]) -> None:
        """Do what is told, and see that each change can follow the one before it."""
        for kind, session in changes:
            key, self.told = session.session_id, self.told + 1
            before = self.sessions.get(key)
            assert (kind is CREATED) == (before is None)
            assert before is None or kind is REMOVED or session.version >= before.version
            assert kind is not TERMINATED or session.status == "terminated"
            if kind is REMOVED:
                del self.sessions[key]
            else:
                self.sessions[key] = session


# ---------------------------------------------------------------------------- what is told


def test_it_begins_with_what_is_there(handle: SessionReads, manager: SessionManager) -> None:
    first, second = manager.create_session({"n": 1}), manager.create_session()
    manager.update_session(first, status="active")
    manager.terminate_session(second, error="it failed")
    changes = handle.changes(timeout=0)
    assert _kinds(changes) == [("created", first), ("created", second), ("terminated", second)]
    assert list(changes) == []


def test_each_kind_of_change_is_told_with_the_session(
    handle: SessionReads, manager: SessionManager
) -> None:
    changes = handle.changes(timeout=0)
    sid = manager.create_session({"n": 1})
    assert list(changes) == [Change(CREATED, handle[sid])]
    manager.update_session(sid, metadata={"n": 2})
    assert list(changes) == [Change(UPDATED, handle[sid])]
    manager.terminate_session(sid, error="it failed")
    ended = handle[sid]
    assert list(changes) == [Change(TERMINATED, ended)]
    assert ended.error == "it failed"
    assert list(changes) == []


def test_a_session_that_is_gone_is_told_as_it_was_last(name: str) -> None:
    with SessionManager(name, capacity=8, cleanup_delay=0) as manager:
        sid = manager.create_session({"n": 1})
        changes = manager.changes(timeout=0)
        (created,) = changes
        manager.terminate_session(sid)
        wait_until(lambda: sid not in manager)
        told = list(changes)
        assert told[-1].kind is REMOVED
        assert told[-1].session == (told[0].session if len(told) > 1 else created.session)
        manager.unlink()


def test_what_happened_between_two_looks_is_one_change(
    handle: SessionReads, manager: SessionManager
) -> None:
    sid = manager.create_session()
    changes = handle.changes(timeout=0)
    list(changes)
    for n in range(10):
        manager.update_session(sid, metadata={"n": n})
    assert list(changes) == [Change(UPDATED, handle[sid])]


@pytest.mark.parametrize("verify", [False, True])
def test_what_came_and_went_between_two_looks_is_not_told(*, verify: bool) -> None:
    writer = make_writer()
    reader = Reader(writer, cache_size=0, verify=verify)
    changes = reader.changes(timeout=0)
    add(writer, 1)
    writer.remove(1)
    assert list(changes) == []
    add(writer, 1)
    (created,) = changes
    writer.remove(1)
    add(writer, 1, created_at="2020-01-01T00:00:00Z")
    assert _kinds(changes) == [("removed", UUID(int=1)), ("created", UUID(int=1))]
    assert created.session.version == 3


def test_a_version_says_what_is_known_at_the_beginning(
    handle: SessionReads, manager: SessionManager
) -> None:
    known, updated = manager.create_session(), manager.create_session()
    ended = manager.create_session()
    since = handle.version
    manager.update_session(updated, status="active")
    created = manager.create_session()
    manager.terminate_session(ended)
    changes = handle.changes(timeout=0, since=since)
    assert _kinds(changes) == [("updated", updated), ("created", created), ("terminated", ended)]
    manager.update_session(known)
    assert _kinds(changes) == [("updated", known)]


@pytest.mark.parametrize("since", [None, 10**9, 2**70])
def test_without_a_version_it_begins_with_what_happens_from_now_on(
    handle: SessionReads, manager: SessionManager, since: int | None
) -> None:
    sid = manager.create_session()
    changes = handle.changes(timeout=0, since=since)
    assert len(changes._watch) == 1
    manager.update_session(sid, status="active")
    other = manager.create_session()
    assert _kinds(changes) == [("updated", sid), ("created", other)]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"timeout": True}, TypeError),
        ({"latency": -0.5}, ValueError),
        ({"latency": None}, TypeError),
        ({"since": -1}, ValueError),
        ({"since": 1.0}, TypeError),
        ({"since": True}, TypeError),
    ],
)
def test_an_argument_that_cannot_be_is_refused(
    handle: SessionReads, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(options))):
        handle.changes(**options)


def test_it_says_what_it_is(manager: SessionManager) -> None:
    manager.create_session()
    changes = manager.changes(timeout=0)
    list(changes)
    assert repr(changes) == f"Changes({manager.name!r}, 1 sessions known)"


def test_it_cannot_be_pickled(manager: SessionManager) -> None:
    with pytest.raises(TypeError, match=r"call changes\(\) in the other process"):
        pickle.dumps(manager.changes())


def test_what_a_loop_does_to_the_registry_comes_in_its_turn(manager: SessionManager) -> None:
    ids = [manager.create_session() for _ in range(20)]
    told = []
    for kind, one in manager.changes(timeout=0, latency=0):
        told.append((str(kind), one.session_id))
        if kind is CREATED:
            manager.update_session(one.session_id)
    assert told == [*(("created", sid) for sid in ids), *(("updated", sid) for sid in ids)]


# ---------------------------------------------------------------------------- waiting


def test_it_ends_after_a_time_without_a_change_and_goes_on_when_it_is_iterated_again(
    reader: SessionReader, manager: SessionManager
) -> None:
    changes = reader.changes(timeout=0.02)
    assert list(changes) == []
    sid = manager.create_session()
    # An iterator that has ended has ended.
    with pytest.raises(StopIteration):
        next(changes)
    assert _kinds(changes) == [("created", sid)]


def test_a_change_comes_to_who_waits_for_it(reader: SessionReader, manager: SessionManager) -> None:
    changes = reader.changes(timeout=LONG)
    made: list[UUID] = []
    timer = threading.Timer(0.05, lambda: made.append(manager.create_session()))
    timer.start()
    kind, session = next(changes)
    timer.join()
    assert (kind, [session.session_id]) == (CREATED, made)


@pytest.mark.parametrize("latency", [0, 0.001, 3600])
def test_the_timeout_is_kept_whatever_the_latency(reader: SessionReader, latency: float) -> None:
    # The test's own time limit is below the longest of them.
    assert list(reader.changes(timeout=0.02, latency=latency)) == []


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long a watcher slept each time, by a clock that goes on by nothing else."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(watching.time, "monotonic", lambda: 100.0 + sum(slept))
    return slept


def test_it_looks_as_often_as_its_latency_says(reader: SessionReader, slept: list[float]) -> None:
    assert list(reader.changes(timeout=1.0, latency=0.25)) == []
    assert slept == [0.25] * 4
    slept.clear()
    assert list(reader.changes(timeout=0.3, latency=0.25)) == []
    assert slept == pytest.approx([0.25, 0.05])


def test_a_busy_registry_is_looked_at_no_more_often(
    reader: SessionReader, manager: SessionManager, slept: list[float]
) -> None:
    changes = reader.changes(latency=0.25)
    sid = manager.create_session()
    versions = []
    for _, session in itertools.islice(changes, 5):
        versions.append(session.version)
        manager.update_session(sid)
    assert versions == [1, 2, 3, 4, 5]
    assert slept == [0.25] * 4


class CountedWord:
    """A change word that counts its loads."""

    def __init__(self, word: memoryview) -> None:
        self.word, self.loads = word, 0

    def __getitem__(self, at: int) -> int:
        self.loads += 1
        return self.word[at]


@pytest.mark.usefixtures("slept")
@pytest.mark.parametrize("state", ["even", "odd"])
def test_an_idle_poll_is_one_load_and_a_second_has_one_system_call(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """100 polls a second: a load each; one call to ask for the name; no pass over the index.

    Where a commit was cut short, a second has one pass.
    """
    with SessionReader(manager.name) as reader:
        manager.create_session()
        if state == "odd":
            seqlock.hold(manager._view.table.change, 2)
        changes = reader.changes(timeout=0)
        list(changes)
        list(changes)
        counted = CountedWord(reader._view.table.change)
        reader._view.table.change = counted
        passes, asked = [], []
        differing, is_named = SessionTable.differing, reader._view.is_named
        monkeypatch.setattr(
            SessionTable, "differing", lambda *given: passes.append(1) or differing(*given)
        )
        reader._view.is_named = lambda: asked.append(1) or is_named()
        changes._timeout = 10.0
        monkeypatch.setattr(changes._watch, "_ask_at", watching.time.monotonic() + 0.5)
        assert list(changes) == []
        expected_passes = 0 if state == "even" else 10
        assert (len(passes), len(asked)) == (expected_passes, 10)
        assert counted.loads in {1000, 1001}
        if state == "odd":
            seqlock.settle(manager._view.table.change, 2)


# ---------------------------------------------------------------------------- interrupts


class Stop(Exception):  # noqa: N818 - it is no error
    """What a signal handler raises."""


def test_a_signal_interrupts_a_wait_and_nothing_is_lost(
    reader: SessionReader, manager: SessionManager
) -> None:
    def stop(*_: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        changes = reader.changes()
        timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        timer.start()
        with pytest.raises(Stop):
            next(changes)
        timer.join()
        sid = manager.create_session()
        assert _kinds([next(changes)]) == [("created", sid)]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_ctrl_c_ends_a_wait(manager: SessionManager) -> None:
    script = """
        import sys
        from jidoka_shm import SessionReader
        try:
            changes = SessionReader(sys.argv[1]).changes(latency=0.001)
            next(changes)
            print("ready", flush=True)
            next(changes)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    manager.create_session()
    with Script(script, manager.name) as watcher:
        assert watcher.line() == "ready"
        os.kill(watcher.pid, signal.SIGINT)
        assert watcher.line() == "interrupted"
        watcher.end()


def test_an_interrupt_before_any_line_of_a_look_loses_nothing() -> None:
    """Nor is anything told twice: what a caller got is what a dict needs to be as the registry."""
    number = 1
    while _interrupted(number):
        number += 1
    assert number > 40


def _interrupted(number: int) -> bool:
    """Interrupt a look before a line, and see what is told; return whether it has so many lines."""
    writer = make_writer()
    made = add(writer, 1, 2, 3)
    changes, model = Reader(writer, cache_size=0, verify=False).changes(timeout=0), Model()
    model.follow(changes)
    writer.remove(1)
    writer.replace(2, make_session(writer, 2, created_at=made[1].created_at))
    add(writer, 4)
    told: list[Change] = []

    def raise_stop() -> None:
        raise Stop

    def tell() -> None:
        # In one line, so that none of the test's own comes between.
        told.extend(itertools.islice(iter(changes), 2))

    interrupted = True
    with contextlib.suppress(Stop):
        interrupted = stop_at_line(number, tell, raise_stop)
    model.follow([*told, *changes])
    assert sorted(model.sessions) == [UUID(int=n) for n in (2, 3, 4)]
    assert model.told == 6
    return interrupted


def test_a_call_out_of_the_middle_of_a_look_is_refused(
    reader: SessionReader, manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = reader.changes(timeout=0)
    differing, refused = SessionTable.differing, []

    def meet(*arguments: Any) -> object:  # noqa: ANN401
        with pytest.raises(ValueError, match="in the middle of a look") as caught:
            next(changes)
        refused.append(caught.value)
        return differing(*arguments)

    sid = manager.create_session()
    monkeypatch.setattr(SessionTable, "differing", meet)
    assert _kinds(changes) == [("created", sid)]
    assert len(refused) == 1


# ---------------------------------------------------------------------------- the handle's end


def test_closing_the_handle_ends_the_iteration(
    handle: SessionReads, manager: SessionManager
) -> None:
    for _ in range(3):
        manager.create_session()
    changes = handle.changes()
    next(changes)
    handle.close()
    # Not even of what it had found already.
    assert list(changes) == []
    assert list(changes) == []
    with pytest.raises(RegistryClosed):
        handle.changes()


def test_closing_a_handle_ends_who_waits_in_another_thread(
    reader: SessionReader, manager: SessionManager
) -> None:
    manager.create_session()
    told: list[Change] = []
    thread = threading.Thread(target=lambda: told.extend(reader.changes()))
    thread.start()
    wait_until(lambda: told or not thread.is_alive())
    reader.close()
    thread.join()
    assert len(told) == 1


def test_a_closed_handle_keeps_no_memory_for_its_watchers(manager: SessionManager) -> None:
    before = len(descriptors_of(path_of(manager.name, 1)))
    reader = SessionReader(manager.name)
    changes = reader.changes(timeout=0)
    reader.close()
    list(changes)
    assert len(descriptors_of(path_of(manager.name, 1))) == before


def test_a_manager_that_is_unlinked_ends_its_own_iteration(name: str) -> None:
    with SessionManager(name, capacity=8) as manager:
        manager.create_session()
        changes = manager.changes()
        next(changes)
        manager.unlink()
        assert list(changes) == []


# ---------------------------------------------------------------------------- threads and forks


def test_each_thread_has_an_iterator_of_its_own(
    reader: SessionReader, manager: SessionManager
) -> None:
    models = [Model() for _ in range(4)]
    threads = [
        threading.Thread(target=lambda model=model: model.follow(reader.changes(latency=0.001)))
        for model in models
    ]
    for thread in threads:
        thread.start()
    ids = [manager.create_session() for _ in range(20)]
    for sid in ids * 5:
        manager.update_session(sid)
    last = {sid: manager[sid].version for sid in ids}
    for model in models:
        wait_until(lambda m=model: {k: s.version for k, s in m.sessions.copy().items()} == last)
    reader.close()
    for thread in threads:
        thread.join()


@pytest.mark.usefixtures("_often_switched")
def test_threads_that_share_one_get_each_change_once(
    reader: SessionReader, manager: SessionManager
) -> None:
    changes = reader.changes(latency=0)
    told: list[list[Change]] = [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda one=one: one.extend(iter(changes.__next__, None)))
        for one in told
    ]

    for thread in threads:
        thread.start()
    ids = [manager.create_session() for _ in range(40)]
    wait_until(lambda: sum(map(len, told)) == len(ids))
    reader.close()
    for thread in threads:
        thread.join()
    kinds = sorted(_kinds(itertools.chain.from_iterable(told)))
    assert kinds == sorted(("created", sid) for sid in ids)


def test_a_forked_child_watches_by_an_iterator_of_its_own(
    reader: SessionReader, manager: SessionManager
) -> None:
    sid = manager.create_session()
    inherited = reader.changes(timeout=LONG)
    list(itertools.islice(inherited, 1))
    with inherited._watch._lock:

        def work() -> None:
            changes = reader.changes(timeout=LONG)
            assert _kinds([next(changes)]) == [("created", sid)]
            # One that it inherited goes on from where it was, whoever held its lock.
            manager_free = reader.changes(timeout=0, since=None)
            assert list(manager_free) == []
            inherited._timeout = 0
            assert list(inherited) == []
            with pytest.raises(ForkedHandle):
                manager.changes()

        assert in_child(work) == 0
    manager.update_session(sid)
    assert _kinds([next(inherited)]) == [("updated", sid)]


# ---------------------------------------------------------------------------- writers that die

WRITER = """
    import sys
    from uuid import UUID
    from jidoka_shm import SessionManager

    manager = SessionManager(sys.argv[1], capacity=64, cleanup_delay=0.001)
    ids = [UUID(int=n + 1) for n in range(40)]
    print("ready", flush=True)
    while True:
        for n, sid in enumerate(ids):
            if sid not in manager:
                manager.create_session({"n": n}, session_id=sid)
            elif manager[sid].status != "terminated":
                manager.update_session(sid, metadata={"n": manager.version or 0})
                if (manager.version or 0) % 7 == n % 7:
                    manager.terminate_session(sid, error="x")
"""


@pytest.mark.parametrize("verify", [False, True])
def test_a_watcher_beside_writers_at_full_speed_that_are_killed_ends_as_the_registry(
    registry: str, *, verify: bool
) -> None:
    """Each of two writers is killed and taken over, the last by one that does nothing else."""
    SessionManager(registry, capacity=64).close()
    model = Model()
    with SessionReader(registry, verify=verify, timeout=LONG) as reader:
        thread = threading.Thread(target=lambda: model.follow(reader.changes(latency=0.001)))
        thread.start()
        for _ in range(2):
            with Script(WRITER, registry) as writer:
                writer.line()
                goal = model.told + 200
                wait_until(lambda goal=goal: model.told >= goal or not thread.is_alive())
                writer.kill()
            # What a killed commit left odd is seen as well, with no writer to say so.
            there = {s.session_id: s.version for s in reader.values()}
            wait_until(lambda there=there: _versions(model) == there)
        with SessionManager(registry, capacity=64, cleanup_delay=3600):
            there = {s.session_id: s.version for s in reader.values()}
            wait_until(lambda: _versions(model) == there)
        assert {s.session_id: s for s in reader.values()} == model.sessions
        reader.close()
        thread.join()


def _versions(model: Model) -> dict[UUID, int]:
    return {key: one.version for key, one in list(model.sessions.items())}


@pytest.mark.parametrize("kept", [1, 2])
def test_a_commit_that_is_cut_short_beside_a_look_is_told(kept: int) -> None:
    """The writer is killed behind its first store or its second, just when a look has been made."""
    writer = make_writer()
    reader = Reader(writer, cache_size=0, verify=False)
    add(writer, 1)
    changes = reader.changes(timeout=0, latency=0)
    list(changes)
    slot = writer.space.singles[0]
    new = make_session(writer, 2)
    packed = writer._pack(new)
    start = writer.slots.offset(slot)
    writer.slots.memory[start : start + len(packed)] = packed
    seqlock.hold(writer.change, new.version)
    assert list(changes) == []
    writer.reach[2] = 1
    if kept == 2:
        writer.index.words[2] = index_word(new.version, slot)
    assert [one.session for one in changes] == [new][: kept - 1]


def test_a_writer_stopped_in_mid_commit_is_looked_after_once_a_second(
    monkeypatch: pytest.MonkeyPatch, slept: list[float]
) -> None:
    writer = make_writer()
    reader = Reader(writer, cache_size=0, verify=False)
    changes = reader.changes(timeout=5.0)
    seqlock.hold(writer.change, 1)
    passes: list[float] = []
    differing = SessionTable.differing
    monkeypatch.setattr(
        SessionTable, "differing", lambda *given: passes.append(sum(slept)) or differing(*given)
    )
    list(changes)
    # Two at once, then one a second; and none for ever once it has gone on.
    assert len(passes) in {6, 7}
    seqlock.settle(writer.change, 1)
    passes.clear()
    list(changes)
    assert len(passes) == 1


# ---------------------------------------------------------------------------- another table


def _grow(manager: SessionManager, capacity: int) -> None:
    """Do what a writer does that grows: a larger table, the generation, MOVED, the old name."""
    table, control = manager._view.table, manager._own.control
    geometry = Geometry.for_capacity(capacity, 512)
    generation = control.generation + 1
    descriptor = segment.create(table_name(manager.name, generation))
    try:
        segment.reserve(descriptor, geometry.size)
        memory = segment.map_writable(descriptor, geometry.size)
    finally:
        os.close(descriptor)
    grown = SessionTable(memory, table.change, geometry)
    for slot, one in enumerate(manager.values()):
        _, word, _ = table.look_up(one.session_id)
        home = one.session_id.int % geometry.index_size
        at = next(n for n in range(home, home + 255) if grown.index.words[n] == 0)
        start, old = grown.slots.offset(slot), table.slots.offset(word & 0xFFFFFF)
        memory[start : start + 512] = table.slots.memory[old : old + 512]
        grown.index.words[at] = index_word(one.version, slot)
        grown.reach[home] = max(grown.reach[home], at - home + 1)
    TableHeader(control.instance, generation, geometry, 0).store(memory)
    control._words[CONTROL_FIELDS["generation"] // 8] = generation
    seqlock.give_up(table.index.words, table.reach, MOVED)
    segment.unlink(table_name(manager.name, generation - 1))


def test_a_table_that_grows_is_followed(registry: str) -> None:
    """What happened between the last look and the growth is told."""
    with (
        SessionManager(registry, capacity=16, cleanup_delay=0) as manager,
        SessionReader(registry) as reader,
    ):
        ids = [manager.create_session({"n": n}) for n in range(10)]
        changes = reader.changes(timeout=0)
        list(changes)
        manager.update_session(ids[3], status="active")
        manager.terminate_session(ids[5])
        wait_until(lambda: ids[5] not in manager)
        _grow(manager, 64)
        assert _kinds(changes) == [("removed", ids[5]), ("updated", ids[3])]
        assert list(changes) == []


def test_nothing_is_told_of_a_growth_itself(registry: str) -> None:
    with SessionManager(registry, capacity=16) as manager, SessionReader(registry) as reader:
        for _ in range(10):
            manager.create_session()
        changes = reader.changes(timeout=0)
        list(changes)
        _grow(manager, 64)
        assert len(reader.list_sessions()) == 10
        assert list(changes) == []


def test_a_growth_that_is_met_half_way_is_waited_for(
    registry: str, monkeypatch: pytest.MonkeyPatch, slept: list[float]
) -> None:
    """The reader has loaded one generation and finds no table of it any more."""
    with SessionManager(registry, capacity=16) as manager, SessionReader(registry) as reader:
        sid = manager.create_session()
        changes = reader.changes(timeout=0.5)
        list(changes)
        manager.update_session(sid)
        _grow(manager, 64)
        with monkeypatch.context() as patch:
            patch.setattr(ControlReader, "generation", property(lambda _: 3))
            assert list(changes) == []
        assert _kinds(changes) == [("updated", sid)]


def test_a_control_that_goes_on_naming_no_table_is_damage(
    registry: str, slept: list[float]
) -> None:
    with SessionManager(registry, capacity=16) as manager, SessionReader(registry) as reader:
        sid = manager.create_session()
        changes = reader.changes(timeout=5.0)
        next(changes)
        control = manager._own.control
        control._words[CONTROL_FIELDS["generation"] // 8] = 7
        words = manager._view.table.index.words
        before = words.tolist()
        seqlock.give_up(words, bytearray(), MOVED)
        # The change word, which a growth leaves as it is, moves with the next commit.
        seqlock.settle(control.change, 9)
        with pytest.raises(CorruptRegistry, match="table 7"):
            next(changes)
        assert 1.0 <= sum(slept) < 1.1
        # Once that is mended it goes on, and tells of nothing again.
        control._words[CONTROL_FIELDS["generation"] // 8] = 1
        for entry, word in enumerate(before):
            words[entry] = word
        manager.update_session(sid)
        assert _kinds([next(changes)]) == [("updated", sid)]


# ---------------------------------------------------------------------------- another registry


def test_the_next_registry_of_the_name_is_followed(registry: str) -> None:
    """P6: versions begin again, and an id may be another session's."""
    first = UUID(int=1)
    with SessionManager(registry, capacity=8) as manager, SessionReader(registry) as reader:
        manager.create_session({"of": 1}, session_id=first)
        other = manager.create_session()
        changes = reader.changes(timeout=0)
        list(changes)
        manager.close()
        with SessionManager(registry, capacity=32, fresh=True) as heir:
            heir.create_session({"of": 2}, session_id=first)
            told = list(changes)
            assert _kinds(told) == [("removed", first), ("removed", other), ("created", first)]
            assert [one.session.metadata for one in told] == [{"of": 1}, {}, {"of": 2}]
            heir.update_session(first)
            assert _kinds(changes) == [("updated", first)]
            heir.unlink()


def test_the_next_registry_is_looked_at_though_it_has_had_as_many_commits(registry: str) -> None:
    with SessionReader(_left(registry, 2)) as reader:
        changes = reader.changes(timeout=0)
        list(changes)
        with SessionManager(registry, capacity=8, fresh=True) as heir:
            ids = [heir.create_session() for _ in range(2)]
            assert _kinds(changes)[2:] == [("created", sid) for sid in ids]
            assert heir.version == 2


def test_a_registry_that_is_gone_has_no_sessions_and_the_next_is_waited_for(
    registry: str,
) -> None:
    with SessionReader(_left(registry, 2)) as reader:
        changes = reader.changes(timeout=LONG, latency=0.001)
        told = list(itertools.islice(changes, 2))
        SessionManager(registry).unlink()
        told += itertools.islice(changes, 2)
        assert [one.kind for one in told] == [CREATED, CREATED, REMOVED, REMOVED]
        with pytest.raises(RegistryClosed):
            reader.list_sessions()
        with pytest.raises(RegistryClosed):
            reader.changes()
        # Half-made by one that was killed, and then made.
        memory = bytearray(CONTROL_SIZE)
        path_of(registry).write_bytes(memory)
        changes._timeout = 0.05
        assert list(changes) == []
        changes._timeout = LONG
        waiting = iter(changes)
        ids: list[UUID] = []

        def make() -> None:
            with SessionManager(registry, capacity=8) as manager:
                ids.append(manager.create_session())

        timer = threading.Timer(0.02, make)
        timer.start()
        assert _kinds([next(waiting)]) == [("created", ids[0])]
        timer.join()


def _left(name: str, count: int) -> str:
    """Leave a registry of some sessions that nobody writes, and return its name."""
    with SessionManager(name, capacity=8) as manager:
        for _ in range(count):
            manager.create_session()
    return name


def test_waiting_for_the_next_registry_takes_no_longer_than_the_timeout(
    registry: str, slept: list[float]
) -> None:
    """Nor does what is half-made, for which a reader's other calls wait."""
    with SessionReader(_left(registry, 1), timeout=LONG) as reader:
        changes = reader.changes(timeout=3.0)
        next(changes)
        SessionManager(registry).unlink()
        # Its control is complete and held odd, and there is no table: a destruction cut short.
        memory = bytearray(CONTROL_SIZE)
        ControlWriter(memory).initialize(UUID(int=5), 1, ME)
        seqlock.hold(ControlWriter(memory).change, 1)
        path_of(registry).write_bytes(CONTROL_MAGIC.to_bytes(8, "little") + memory[8:])
        assert [one.kind for one in changes] == [REMOVED]
        assert 3.0 <= sum(slept) < 5.0
        reader.close()
        assert list(changes) == []


def test_names_that_are_removed_while_no_writer_lives_are_noticed_within_a_second(
    registry: str, slept: list[float]
) -> None:
    with SessionReader(_left(registry, 1)) as reader:
        changes = reader.changes(timeout=5.0)
        next(changes)
        for generation in (None, 1):
            path_of(registry, generation).unlink()
        # Nothing was stored anywhere: only the name tells.
        assert next(changes).kind is REMOVED
        assert sum(slept) <= 1.1
        with SessionManager(registry, capacity=8) as manager:
            sid = manager.create_session()
            assert _kinds([next(changes)]) == [("created", sid)]


def test_the_next_registry_is_looked_for_every_50_ms(registry: str, slept: list[float]) -> None:
    with SessionReader(_left(registry, 1)) as reader:
        changes = reader.changes(timeout=1.0)
        next(changes)
        SessionManager(registry).unlink()
        assert next(changes).kind is REMOVED
        slept.clear()
        tries: list[int] = []
        attach = reader._attach_at_once
        reader._attach_at_once = lambda old: tries.append(1) or attach(old)
        assert list(changes) == []
        assert 19 <= len(tries) <= 22


def test_a_look_that_fails_is_not_made_again_at_once(registry: str, slept: list[float]) -> None:
    with SessionReader(_left(registry, 1)) as reader:
        changes = reader.changes(timeout=5.0)
        next(changes)
        SessionManager(registry).unlink()
        path_of(registry).write_bytes(b"\xff" * CONTROL_SIZE)
        for turn in range(5):
            with pytest.raises(FormatMismatch):
                next(changes)
            assert len(slept) >= turn


def test_the_next_registry_of_a_foreign_format_is_an_error(registry: str) -> None:
    with SessionReader(_left(registry, 1)) as reader:
        changes = reader.changes(timeout=0)
        next(changes)
        SessionManager(registry).unlink()
        path_of(registry).write_bytes(b"\xff" * CONTROL_SIZE)
        for _ in range(2):
            with pytest.raises(FormatMismatch):
                next(iter(changes))


def test_a_damaged_word_that_is_mended_ends_nothing() -> None:
    """A reader cannot tell it from the end of the registry; where it was none, all comes again."""
    writer = make_writer()
    add(writer, 1, 2)
    reader = Reader(writer, cache_size=0, verify=False)
    changes, model = reader.changes(timeout=0), Model()
    model.follow(changes)
    words = writer.index.words
    word, words[1] = words[1], CLOSED
    changes._watch._change = 0
    model.follow(changes)
    assert model.sessions == {}
    words[1] = word
    model.follow(changes)
    assert model.sessions == {}
    # It looks again once a second.
    changes._watch._ask_at = 0.0
    model.follow(changes)
    assert model.sessions == dict(reader)


def test_a_lost_registry_is_looked_at_again_once_a_second(
    registry: str, monkeypatch: pytest.MonkeyPatch, slept: list[float]
) -> None:
    with SessionReader(_left(registry, 1)) as reader:
        changes = reader.changes(timeout=5.0)
        next(changes)
        seqlock.give_up(_writable(registry), bytearray(), CLOSED)
        changes._watch._change = 0
        assert next(changes).kind is REMOVED
        passes: list[int] = []
        differing = SessionTable.differing
        monkeypatch.setattr(
            SessionTable, "differing", lambda *given: passes.append(1) or differing(*given)
        )
        assert list(changes) == []
        assert 4 <= len(passes) <= 6


def _writable(name: str) -> memoryview:
    """Return the index words of a registry's table, to be stored to."""
    descriptor = segment.open_writable(table_name(name, 1))
    try:
        memory = segment.map_writable(descriptor, segment.size_of(descriptor))
    finally:
        os.close(descriptor)
    header = TableHeader.read(memory)
    assert header is not None
    geometry = header.geometry
    return memoryview(memory)[geometry.index_offset : geometry.reach_offset].cast("Q")


# ---------------------------------------------------------------------------- errors


def test_a_look_that_fails_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = make_writer()
    reader = Reader(writer, cache_size=0, verify=True)
    changes = reader.changes(timeout=0)
    (made,) = add(writer, 1)
    at = writer.slots.offset(writer.index.words[1] & 0xFFFFFF) + 20
    writer.slots.memory[at] ^= 1
    for _ in range(2):
        with pytest.raises(CorruptRegistry):
            list(changes)
    writer.slots.memory[at] ^= 1
    assert list(changes) == [Change(CREATED, made)]
