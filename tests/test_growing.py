"""A registry that grows and is resized: its limits, its readers, and what comes into the middle."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import logging
import os
import signal
import threading
import zlib
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from deaths import Child, Steps, kill_this_process, killing_at, stop_at_each_line, stop_this_process
from host import (
    Script,
    descriptors_of,
    exit_code,
    fork,
    forked,
    give_up_in_few_lines,
    list_own_names_alone,
    objects_of,
    path_of,
    stop_at_line,
)
from mutants import Mutant
from support import wait_until

from jidoka_shm import (
    CorruptRegistry,
    ForkedHandle,
    RecordTooLarge,
    ReentrantCall,
    RegistryClosed,
    RegistryFull,
    SessionClient,
    SessionManager,
    SessionNotFound,
    SessionReader,
    growing,
    reactor,
    segment,
)
from jidoka_shm.layout import MAX_CAPACITY, MAX_DISTANCE, SLOT_MASK, Geometry, index_size_for
from jidoka_shm.marks import Instant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deaths import Around

A, B = UUID(int=1), UUID(int=2)


@pytest.fixture(autouse=True)
def _unlinked(name: str) -> Iterator[None]:
    yield
    for tail in objects_of(name):
        segment.unlink(f"/jidoka_shm.{name}{tail}")


def _manager(name: str, **options: Any) -> SessionManager:  # noqa: ANN401 - a manager's own
    return SessionManager(name, **{"capacity": 2, "cleanup_delay": 3600} | options)


def _fill(manager: SessionManager, count: int) -> list[UUID]:
    return [manager.create_session({"n": number}) for number in range(count)]


def _no_room(_: int, __: int, size: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(size))


# ---------------------------------------------------------------------------- by itself


def test_it_doubles_where_a_new_session_finds_no_slot(name: str) -> None:
    with _manager(name) as manager:
        sizes = []
        for number in range(20):
            manager.create_session({"n": number})
            sizes.append(manager.stats().capacity)
            assert manager.check() == []
        assert sizes == [2] * 2 + [4] * 2 + [8] * 4 + [16] * 8 + [32] * 4
        assert sorted(session.metadata["n"] for session in manager.values()) == [*range(20)]
        assert objects_of(name) == {"", f".{manager.stats().generation}"}
        assert manager.stats().generation == 5


def test_it_grows_to_its_limit_and_not_beyond(name: str) -> None:
    with _manager(name, capacity=3, max_capacity=5) as manager:
        _fill(manager, 5)
        before = manager.version
        with pytest.raises(RegistryFull) as caught:
            manager.create_session()
        assert (caught.value.needed, caught.value.unit) == (1, "slots")
        assert (manager.stats().capacity, manager.version) == (5, before)
        assert manager.check() == []


@pytest.mark.parametrize("options", [{"grow": False}, {"max_capacity": 1}])
def test_a_table_of_fixed_size_keeps_it_and_everything_else_goes_on(
    name: str, options: dict[str, object]
) -> None:
    with _manager(name, cleanup_delay=0.05, **options) as manager, SessionReader(name) as reader:
        one, two = _fill(manager, 2)
        for _ in range(3):
            with pytest.raises(RegistryFull):
                manager.create_session()
        for number in range(40):
            manager.update_session(one, status="active", metadata={"n": number})
        # By its time to live, and by a call: in a table without a free slot but the spare ones.
        manager.update_session(one, ttl=0.001)
        manager.terminate_session(two)
        wait_until(lambda: not len(reader))
        assert (reader.stats().capacity, reader.stats().generation) == (2, 1)


def test_ids_that_share_a_home_are_parted(name: str) -> None:
    size = index_size_for(1000)
    with _manager(name, capacity=1000) as manager, SessionReader(name) as reader:
        ids = [UUID(int=size * k + 5) for k in range(MAX_DISTANCE + 20)]
        for sid in ids:
            manager.create_session(session_id=sid)
            assert sid in reader
        assert manager.stats().capacity == 2000
        assert set(reader) == set(ids)
        assert manager.check() == reader.check() == []


def test_ids_that_no_growth_parts_are_refused_and_nothing_grows(name: str) -> None:
    step = index_size_for(1000) * index_size_for(2000)
    with _manager(name, capacity=1000) as manager:
        for k in range(MAX_DISTANCE + 1):
            manager.create_session(session_id=UUID(int=step * k))
        for k in range(5):
            with pytest.raises(RegistryFull) as caught:
                manager.create_session(session_id=UUID(int=step * (1000 + k)))
            assert caught.value.unit == "entries near the id's home"
        assert (manager.stats().capacity, manager.stats().generation) == (1000, 1)
        manager.create_session()


def test_a_record_that_is_too_large_makes_nothing_grow(name: str) -> None:
    with _manager(name, max_record_size=512) as manager:
        _fill(manager, 2)
        with pytest.raises(RecordTooLarge):
            manager.create_session({"a": "x" * 600})
        assert manager.stats().capacity == 2


def test_it_grows_for_a_record_that_finds_no_slots_and_for_one_that_outgrows_its_own(
    name: str,
) -> None:
    with _manager(name) as manager, SessionReader(name) as reader:
        ids = _fill(manager, 2)
        manager.update_session(ids[0], metadata={"a": "x" * 5000})
        # One slot, ten, and a reserve of as many.
        assert reader.stats().capacity == 32
        sid = manager.create_session({"a": "x" * 20_000})
        assert reader.stats().capacity == 128
        texts = {sid: len(session.metadata.get("a", "")) for sid, session in reader.items()}
        assert texts == {ids[0]: 5000, ids[1]: 0, sid: 20_000}
        assert manager.check() == []


def test_free_slots_that_lie_apart_are_put_together_in_the_next_table(name: str) -> None:
    with _manager(name, capacity=40, grow=False, cleanup_delay=0) as manager:
        ids = _fill(manager, 40)
        for sid in ids[::2]:
            manager.terminate_session(sid)
        wait_until(lambda: len(manager) == 20)
        # Of 36 free slots no four are adjacent, but for the spare ones.
        before = manager.usage()
        assert (before.slots_free, before.longest_free_run) == (36, 16)
        with SessionReader(name) as reader:
            sid = manager.create_session({"a": "x" * 4700})
            assert reader[sid].metadata == {"a": "x" * 4700}
            stats = reader.stats()
            assert (stats.capacity, stats.generation, stats.sessions) == (40, 2, 21)
        assert manager.usage().run_lengths == (20, 0, 0, 0, 1)
        assert manager.check() == []


def test_sessions_of_every_length_change_status_expire_and_end_in_a_full_table(name: str) -> None:
    with _manager(name, capacity=64, grow=False) as manager:
        ids = [manager.create_session({"a": "x" * size}) for size in (4000, 1500, 700, 10) * 2]
        with contextlib.suppress(RegistryFull):
            ids.extend(manager.create_session() for _ in range(65))
        # The reserve is free, and the spare ones.
        assert manager.usage().slots_free == 16 + 9
        for sid in ids:
            manager.update_session(sid, status="active")
        for sid in ids[:4]:
            manager.update_session(sid, ttl=0.001)
        wait_until(lambda: all(manager[sid].status == "terminated" for sid in ids[:4]))
        assert {manager[sid].error for sid in ids[:4]} == {"expired"}
        for sid in ids[4:]:
            manager.update_session(sid, status="terminating")
            manager.terminate_session(sid, error="it fell")
        assert {manager[sid].error for sid in ids[4:]} == {"it fell"}
        assert len(manager[ids[4]].metadata["a"]) == 4000
        assert (manager.stats().capacity, manager.stats().generation) == (64, 1)
        assert manager.check() == []


def test_a_service_grows_for_its_clients_each_request_once(name: str) -> None:
    with _manager(name, listen=True) as manager, SessionClient(name) as client:
        with client.pipeline() as changes:
            for number in range(50):
                changes.create_session({"n": number})
        assert sorted(session.metadata["n"] for session in client.values()) == [*range(50)]
        assert client.stats().capacity == manager.stats().capacity == 64


def test_the_log_says_what_it_grew_to(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with _manager(name) as manager, caplog.at_level(logging.INFO, "jidoka_shm"):
        _fill(manager, 3)
    assert caplog.messages == [f"registry {name!r}: 4 slots of 512 bytes now, and 2 before"]


@pytest.mark.parametrize("value", [0, -1, MAX_CAPACITY + 1])
def test_a_limit_that_no_table_has_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match="max_capacity"):
        SessionManager(name, max_capacity=value)
    assert objects_of(name) == set()


@pytest.mark.parametrize("options", [{"max_capacity": "9"}, {"max_capacity": 1.5}, {"grow": 1}])
def test_a_limit_of_another_type_is_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(options))):
        SessionManager(name, **options)


# ---------------------------------------------------------------------------- no room


def test_without_room_the_old_table_stays_and_the_next_change_tries_again(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = Geometry.for_capacity(4, 512).size
    with _manager(name) as manager, SessionReader(name) as reader:
        ids = _fill(manager, 2)
        manager.list_sessions()
        view, version = manager._view, manager.version
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", _no_room)
            for _ in range(3):
                with pytest.raises(RegistryFull) as caught:
                    manager.create_session()
                assert (caught.value.needed, caught.value.unit) == (needed, "bytes of /dev/shm")
                assert caught.value.available > 0
                assert objects_of(name) == {"", ".1"}
            with pytest.raises(RegistryFull):
                manager.resize(100)
            # All else goes on.
            manager.update_session(ids[0], status="active")
            assert (manager._view, manager.version) == (view, version + 1)
            assert reader.check() == manager.check() == []
        manager.create_session()
        assert reader.stats().capacity == 4
        assert len(reader) == 3


def test_without_descriptors_nothing_changes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with _manager(name) as manager:
        _fill(manager, 2)
        with monkeypatch.context() as patch:
            patch.setattr(segment, "create", refuse)
            with pytest.raises(OSError, match="open files"):
                manager.create_session()
        assert manager.check() == []
        manager.create_session()
        assert objects_of(name) == {"", ".2"}


def test_a_takeover_that_cannot_give_up_its_predecessors_table_commits_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader may still be at it, and would not see what the next manager commits."""
    _manager(name).close()
    path_of(name, 2).write_bytes(path_of(name, 1).read_bytes())
    opened = segment.open_writable

    def refuse(what: str) -> int:
        if what.endswith(".2"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(what)

    with monkeypatch.context() as patch:
        patch.setattr(segment, "open_writable", refuse)
        with pytest.raises(OSError, match="open files"):
            _manager(name)
    _manager(name).close()
    assert objects_of(name) == {"", ".1"}


def test_names_that_others_have_taken_are_in_nobodys_way(name: str) -> None:
    with _manager(name) as manager, SessionReader(name) as reader:
        for generation in (2, 3):
            path_of(name, generation).write_bytes(b"another's")
        _fill(manager, 3)
        assert reader.stats().generation == 4
        assert len(reader) == 3
        assert path_of(name, 2).read_bytes() == path_of(name, 3).read_bytes() == b"another's"


# ---------------------------------------------------------------------------- on request


def test_it_is_resized_larger_and_smaller_with_all_sessions(name: str) -> None:
    with _manager(name, grow=False) as manager, SessionReader(name) as reader:
        ids = _fill(manager, 2)
        expected = {sid: reader[sid] for sid in ids}
        for capacity, slot_size in ((100, 512), (100, 128), (2, 1024), (5, 1024), (5, 128)):
            manager.resize(capacity, slot_size)
            for handle in (manager, reader):
                stats = handle.stats()
                assert (stats.capacity, stats.slot_size) == (capacity, slot_size)
                assert dict(handle) == expected
                assert handle.check() == []
        manager.resize(7)
        assert (reader.stats().capacity, reader.stats().slot_size) == (7, 128)
        manager.update_session(ids[0], metadata={"a": "x" * 100})
        manager.resize(9, slot_size=512)
        manager.update_session(ids[0], metadata={"a": "x" * 200})
        assert manager.check() == []


def test_the_size_that_it_has_is_no_move(name: str) -> None:
    with _manager(name) as manager:
        manager.resize(2)
        manager.resize(2, 512)
        assert manager.stats().generation == 1


def test_what_does_not_fit_is_said_and_stays(name: str) -> None:
    with _manager(name, capacity=10) as manager:
        _fill(manager, 5)
        sid = manager.create_session({"a": "x" * 300})
        with pytest.raises(RegistryFull) as full:
            manager.resize(5)
        assert (full.value.needed, full.value.available) == (6, 5)
        with pytest.raises(RegistryFull) as full:
            manager.resize(8, 256)
        # Two slots, and as many for its next version, beside five.
        assert (full.value.needed, full.value.available) == (9, 8)
        assert (manager.stats().generation, manager.stats().capacity) == (1, 10)
        assert manager[sid].metadata["a"] == "x" * 300
        assert not manager._interrupted


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((0,), ValueError),
        ((-1,), ValueError),
        ((MAX_CAPACITY + 1,), ValueError),
        ((8, 100), ValueError),
        ((8, 0), ValueError),
        ((8, 1 << 25), ValueError),
        (("8",), TypeError),
        ((8, 512.0), TypeError),
        ((True,), TypeError),
    ],
)
def test_a_size_that_no_table_has_is_refused(
    name: str, arguments: tuple[Any, ...], error: type[Exception]
) -> None:
    with _manager(name) as manager:
        with pytest.raises(error):
            manager.resize(*arguments)
        assert manager.stats().generation == 1
        assert not manager._interrupted


def test_a_closed_manager_and_a_child_do_not_resize(name: str) -> None:
    manager = _manager(name)

    def work() -> None:
        with pytest.raises(ForkedHandle):
            manager.resize(10)

    assert exit_code(forked(work)) == 0
    manager.close()
    with pytest.raises(RegistryClosed):
        manager.resize(10)


def test_one_taken_over_grows_to_the_capacity_asked_for_where_there_is_room(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with _manager(name) as manager:
        ids = _fill(manager, 2)
    with SessionReader(name) as reader:
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", _no_room)
            with _manager(name, capacity=10) as manager:
                assert manager.stats().capacity == 2
        assert "2 slots still, not 10" in caplog.text
        with _manager(name, capacity=10) as manager:
            assert manager.recovery is not None
            assert manager.recovery.kept == 2
            assert set(reader) == set(ids)
            assert reader.stats().capacity == 10


# ---------------------------------------------------------------------------- readers


def _looks(reader: SessionReader, sid: UUID) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield each way to see a session of a registry of two."""
    yield "info", lambda: reader.get_session_info(sid).session_id == sid
    yield "get", lambda: reader.get(sid) is not None
    yield "in", lambda: sid in reader
    yield "text", lambda: reader[str(sid)].session_id == sid
    yield "status", lambda: reader.get_session_status(sid) == "initializing"
    yield "pid", lambda: reader.get_session_pid(sid) is None
    yield "list", lambda: sid in {session.session_id for session in reader.list_sessions()}
    yield "by status", lambda: len(reader.list_sessions("initializing")) >= 2
    yield "count", lambda: sum(reader.count_by_status().values()) >= 2
    yield "snapshot", lambda: len(reader.snapshot()) >= 2
    yield "len", lambda: len(reader) >= 2
    yield "iteration", lambda: sid in set(reader)
    yield "items", lambda: dict(reader.items())[sid].session_id == sid
    yield "values", lambda: len(list(reader.values())) >= 2
    yield "stats", lambda: reader.stats().sessions >= 2
    yield "usage", lambda: reader.usage().sessions >= 2
    yield "check", lambda: reader.check() == []
    yield "alive", lambda: reader.writer_alive
    yield "refresh", lambda: reader.refresh() is None


@pytest.mark.parametrize("cache_size", [0, 8])
@pytest.mark.parametrize("verify", [False, True], ids=["plain", "verified"])
def test_every_read_goes_on_whatever_line_a_growth_comes_at(
    name: str, verify: bool, cache_size: int
) -> None:
    """The whole growth between two lines of the read, and a session that is created in it."""
    with _manager(name) as manager:
        _fill(manager, 2)
        sid = next(iter(manager))
        kinds = [kind for kind, _ in _looks(manager, sid)]  # type: ignore[arg-type]
        for kind in kinds:
            with SessionReader(name, cache_size=cache_size, verify=verify) as reader:
                look = dict(_looks(reader, sid))[kind]
                for number in itertools.count(1):
                    look()
                    seen: list[object] = []

                    def grow() -> None:
                        manager.resize(manager.stats().capacity % 7 + 2)

                    def read(look: Callable[[], object] = look, seen: list[object] = seen) -> None:
                        seen.append(look())

                    reached = stop_at_line(number, read, grow)
                    assert seen == [True], (kind, number)
                    if not reached or number > 40:
                        break


def test_a_reader_that_attaches_in_the_middle_of_growths_finds_the_next(name: str) -> None:
    with _manager(name) as manager:
        for number in itertools.count(1):

            def grow() -> None:
                manager.resize(manager.stats().capacity % 7 + 2)

            readers: list[SessionReader] = []

            def attach(readers: list[SessionReader] = readers) -> None:
                # Without a second try, which would hide it.
                readers.append(SessionReader(name, timeout=0))

            reached = stop_at_line(number, attach, grow)
            assert len(readers[0]) == 0
            readers[0].close()
            if not reached:
                break
    assert number > 30


def test_threads_read_through_the_manager_while_it_grows(name: str) -> None:
    with _manager(name) as manager:
        ids = _fill(manager, 2)
        wrong: list[object] = []
        done = threading.Event()

        def look() -> None:
            try:
                while not done.is_set():
                    if ids[0] not in manager or len(manager) < 2:
                        wrong.append("missing")
                    if not {ids[0], ids[1]} <= {s.session_id for s in manager.list_sessions()}:
                        wrong.append("not listed")
                    manager.get_session_status(ids[1])
            except Exception as error:  # noqa: BLE001 - whatever it is
                wrong.append(error)

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(200):
            manager.resize(2 + number % 5)
        done.set()
        for thread in threads:
            thread.join()
        assert wrong == []
        # The memory of a table goes with its last reader.
        gc.collect()
        maps = Path("/proc/self/maps").read_text()
        assert maps.count(f"jidoka_shm.{name}.") == 1


def test_changes_are_told_through_every_growth_and_nothing_of_it(name: str) -> None:
    with _manager(name) as manager, SessionReader(name) as reader:
        told = [handle.changes(timeout=0) for handle in (manager, reader)]
        for number in range(20):
            sid = manager.create_session({"n": number})
            if number % 3 == 0:
                manager.resize(25 + number)
            manager.update_session(sid, status="active")
            manager.resize(40 - number)
            for changes in told:
                assert [change.session.session_id for change in changes] == [sid], number
                assert list(changes) == []
        assert manager.stats().generation > 20


# ---------------------------------------------------------------------------- deaths


def _grow_and_die(name: str, around: Around) -> None:
    """Make a registry of two, stand still, grow it by a third session, and die."""
    manager = _manager(name, fresh=True)
    for sid in (A, B):
        manager.create_session({"n": 0}, session_id=sid)
    patch = pytest.MonkeyPatch()
    give_up_in_few_lines(patch)
    stop_this_process()
    # Of one id each time: where it is put decides how many lines there are.
    around(lambda: manager.create_session(session_id=UUID(int=3)))
    kill_this_process()


def _changed_lines(name: str) -> list[int]:
    """Return the lines of a growth before which the memory is another one."""

    def objects() -> dict[str, bytes]:
        paths: list[Path] = [path_of(name), *map(path_of, [name] * 3, (1, 2, 3))]
        return {path.name: path.read_bytes() for path in paths if path.exists()}

    around: Around = lambda work: stop_at_each_line(work, stop_this_process)  # noqa: E731
    with Child(lambda: _grow_and_die(name, around)) as child:
        child.wait_for_stop()
        steps = Steps(child, objects)
        for _ in steps:
            pass
    return steps.changed


def _kill_at(name: str, line: int) -> None:
    """Kill a growing writer at a line, and go on with the next, beside readers that were there."""
    with Child(lambda: _grow_and_die(name, killing_at(line))) as child:
        child.wait_for_stop()
        with SessionReader(name) as cached, SessionReader(name, cache_size=0) as fresh:
            readers = [cached, fresh]
            for reader in readers:
                assert {A, B} == set(reader) == {s.session_id for s in reader.list_sessions()}
                assert reader[A].metadata == {"n": 0}
            child.go_on()
            child.wait_for_kill()
            readers.append(SessionReader(name, timeout=0))
            left = dict(readers[2])
            assert len(left) in {2, 3}
            for reader in readers:
                assert {A, B} <= set(reader)
                assert reader[A].metadata == {"n": 0}
            with _manager(name) as manager:
                assert manager.recovery is not None
                assert (manager.recovery.kept, manager.recovery.dropped) == (len(left), ())
                assert manager.check() == []
                current = manager.stats()
                assert current.capacity in ({2, 4} if len(left) == 2 else {4})
                assert objects_of(name) == {"", f".{current.generation}"}
                manager.update_session(A, metadata={"n": 1})
                for reader in readers:
                    assert reader[A].metadata == {"n": 1}
                    assert {s.session_id for s in reader.list_sessions()} == set(left)
                    assert reader.get_session_status(B) == "initializing"
                    assert reader.stats().generation == current.generation
                manager.unlink()
            readers[2].close()


def test_a_writer_killed_at_any_store_of_a_growth_is_followed_by_one_that_every_reader_sees(
    name: str,
) -> None:
    lines = _changed_lines(name)
    # At least: made, its size, filled (slots, index, reach), its header, the generation, given up
    # (reach, words), the old name removed, the commit.
    assert len(lines) >= 12
    for line in lines:
        _kill_at(name, line)


def test_without_a_rule_of_growing_a_death_leaves_a_reader_behind(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old name goes after its index says so, or no successor finds what to give up."""
    Mutant(
        "the old table's name is removed after it was given up",
        "growing",
        "SessionTables._finish",
        "new.follow(old, header.generation, lambda: self._show(new))\n    self._own.leave_others()",
        "self._own.control.advance(header.generation)\n"
        "    self._own.leave_others()\n"
        "    new.follow(old, header.generation, lambda: self._show(new))",
    ).apply(monkeypatch)
    lines = _changed_lines(name)

    def kill_at_all() -> None:
        for line in lines:
            _kill_at(name, line)

    with pytest.raises(AssertionError):
        kill_at_all()


def test_a_header_is_complete_before_its_generation(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Mutant(
        "a table is complete before the control names it",
        "growing",
        "SessionTables._step_to",
        "header.store(memory)\n        self._finish(old, new, header)",
        "self._finish(old, new, header)\n        header.store(memory)",
    ).apply(monkeypatch)
    give_up_in_few_lines(monkeypatch)
    with _manager(name, capacity=2) as manager, SessionReader(name) as reader:
        seen: list[object] = []

        def look() -> None:
            with contextlib.suppress(CorruptRegistry):
                seen.append(len(SessionReader(name, timeout=0)))

        for number in itertools.count(1):
            resize = partial(manager.resize, number % 7 + 3)
            if not stop_at_line(number, resize, look):
                break
        assert len(seen) < number - 1
        assert len(reader) == 0


# ---------------------------------------------------------------------------- interruptions


class Interrupted(BaseException):
    """As a KeyboardInterrupt is."""


def _close_lost(name: str) -> None:
    """Close what an exception has lost that came between a descriptor's opening and its keeping."""
    gc.collect()
    left = descriptors_of(path_of(name, 2))
    # By the lines that there are between the two.
    assert len(left) <= 5
    for descriptor in left:
        os.close(descriptor)


@pytest.fixture
def _few_lines(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a growth from two to four take few lines, each of another kind."""
    give_up_in_few_lines(monkeypatch)
    list_own_names_alone(monkeypatch, name)
    made = {size: Geometry.for_capacity(size, 512) for size in (4, 8, 9)}
    sizes = SimpleNamespace(for_capacity=lambda capacity, _: made[capacity])
    monkeypatch.setattr(growing, "Geometry", sizes)


@pytest.mark.usefixtures("_few_lines")
@pytest.mark.parametrize(("exception", "step"), [(Interrupted, 1), (MemoryError, 7)])
def test_an_exception_at_any_line_of_a_growth_leaves_a_manager_that_goes_on(
    name: str, exception: type[BaseException], step: int
) -> None:
    def stop() -> None:
        raise exception

    for number in itertools.count(1, step):
        manager = _manager(name)
        for sid in (A, B):
            manager.create_session({"n": 0}, session_id=sid)
        with SessionReader(name) as reader, SessionReader(name, cache_size=0) as fresh:
            assert len(reader.list_sessions()) == 2
            assert reader[A] == fresh[A]
            reached = True
            with contextlib.suppress(exception):
                reached = stop_at_line(number, manager.create_session, stop)
            # Reads go on at once, the manager's own too.
            for handle in (manager, reader, fresh, reader):
                if handle is manager:
                    handle.refresh()
                assert handle[A].metadata == {"n": 0}
                assert {A, B} <= set(handle)
            manager.update_session(A, metadata={"n": 1})
            for handle in (manager, reader, fresh):
                assert handle[A].metadata == {"n": 1}, number
                assert {A, B} <= {session.session_id for session in handle.list_sessions()}
                assert handle.check() == [], number
            generation = manager.stats().generation
            assert objects_of(name) == {"", f".{generation}"}, number
            _fill(manager, 5)
            assert len(fresh) >= 7
        manager.unlink()
        assert objects_of(name) == set()
        if not reached:
            break
    assert number > 150
    del manager, reader, fresh, handle
    _close_lost(name)


@pytest.mark.usefixtures("_few_lines")
@pytest.mark.parametrize("end", ["unlink", "close"])
def test_a_manager_can_end_after_an_exception_at_any_line_of_a_growth(name: str, end: str) -> None:
    def stop() -> None:
        raise Interrupted

    for number in itertools.count(1, 5):
        manager = _manager(name)
        for sid in (A, B):
            manager.create_session({"n": 0}, session_id=sid)
        with SessionReader(name) as reader:
            assert reader[A]
            reached = True
            with contextlib.suppress(Interrupted):
                reached = stop_at_line(number, manager.create_session, stop)
            late = SessionReader(name, timeout=0)
            getattr(manager, end)()
            if end == "close":
                with _manager(name, capacity=4) as successor:
                    successor.update_session(A, metadata={"n": 1})
                    for handle in (reader, late, successor):
                        assert handle[A].metadata == {"n": 1}
                        assert handle.check() == []
                    assert len(objects_of(name)) == 2
                    successor.unlink()
            assert objects_of(name) == set(), number
            for handle in (reader, late):
                with pytest.raises(RegistryClosed):
                    handle.get_session_info(A)
            late.close()
        if not reached:
            break
    del manager, reader, late, handle
    _close_lost(name)


def test_a_manager_whose_names_are_gone_makes_no_other_under_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reactor, "_WATCH_INTERVAL", 10**6)
    with _manager(name) as manager:
        _fill(manager, 2)
        for tail in objects_of(name):
            path_of(f"{name}{tail}").unlink()
        with pytest.raises(RegistryClosed):
            manager.create_session()
        with pytest.raises(RegistryClosed):
            manager.resize(9)
        assert objects_of(name) == set()


@pytest.mark.usefixtures("_few_lines")
def test_a_call_in_the_middle_of_a_growth_is_refused_and_a_close_is_put_off(name: str) -> None:
    for number in itertools.count(1, 3):
        with _manager(name, fresh=True) as manager, SessionReader(name) as reader:
            _fill(manager, 2)
            answers: list[object] = []

            def call(
                manager: SessionManager = manager,
                reader: SessionReader = reader,
                answers: list[object] = answers,
            ) -> None:
                answers.append((len(reader), len(manager)))
                try:
                    manager.resize(5)
                    answers.append("resized")
                except ReentrantCall:
                    answers.append("refused")
                manager.close()

            reached = True
            # Before it has the lock there is nothing to put the close off for.
            with contextlib.suppress(RegistryClosed):
                reached = stop_at_line(number, manager.create_session, call)
            assert manager._closed is reached
            assert len(reader) == 3 or answers[1:] == ["resized"], number
            assert reader.check() == []
        if not reached:
            break


@pytest.mark.usefixtures("_few_lines")
def test_a_child_that_returns_into_a_growth_changes_nothing(name: str) -> None:
    """A fork by a signal handler, before any line; the parent has gone on when the child does."""
    children, parent = 0, os.getpid()
    for number in itertools.count(1, 2):
        manager = _manager(name, fresh=True)
        for sid in (A, B):
            manager.create_session({"n": 0}, session_id=sid)
        ready, go = os.pipe(), os.pipe()
        child = 0

        def split(
            manager: SessionManager = manager,
            ready: tuple[int, int] = ready,
            go: tuple[int, int] = go,
        ) -> None:
            nonlocal child, children
            # What a child may do in the middle of a commit is said elsewhere.
            if not manager._growing:
                return
            child = fork()
            children += 1
            if not child:
                os.write(ready[1], b"r")
                os.read(go[0], 1)

        reached = False
        try:
            reached = stop_at_line(number, manager.create_session, split)
        except BaseException:
            if os.getpid() == parent:
                raise
            os._exit(0)
        if os.getpid() != parent:
            os._exit(0)
        if child:
            os.read(ready[0], 1)
        manager.update_session(A, metadata={"n": 1})
        manager.resize(9)
        before = {
            path: path_of(name, path).read_bytes() for path in (None, manager._view.identity[1])
        }
        names = objects_of(name)
        os.write(go[1], b"g")
        if child:
            assert exit_code(child) == 0
        after = {path: path_of(name, path).read_bytes() for path in before}
        for descriptor in (*ready, *go):
            os.close(descriptor)
        # But for the name of an object that it was just about to make, for the next to remove.
        assert after == before, number
        assert names <= objects_of(name) <= {*names, ".2"}, number
        with SessionReader(name) as reader:
            assert reader.check() == []
            assert reader[A].metadata == {"n": 1}
        manager.unlink()
        if not reached:
            break
    assert children > 30


def test_names_removed_in_the_middle_of_a_growth_close_every_table(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up_in_few_lines(monkeypatch)
    list_own_names_alone(monkeypatch, name)

    def stop() -> None:
        readers.append(SessionReader(name, timeout=0))
        raise Interrupted

    for number in itertools.count(1, 4):
        manager = _manager(name)
        for sid in (A, B):
            manager.create_session({"n": 0}, session_id=sid)
        readers = [SessionReader(name)]
        assert readers[0][A]
        reached = False
        with contextlib.suppress(Interrupted):
            stop_at_line(number, manager.create_session, stop)
        reached = len(readers) == 2
        for tail in objects_of(name):
            segment.unlink(f"/jidoka_shm.{name}{tail}")
        manager._watch()
        for reader in readers:
            with pytest.raises((RegistryClosed, SessionNotFound)) as caught:
                reader.get_session_info(A)
            assert caught.type is RegistryClosed, number
            reader.close()
        manager.close()
        if not reached:
            break
    del manager, reader, caught
    _close_lost(name)


def test_damage_that_a_growth_meets_is_dropped_and_the_rest_goes_on(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with _manager(name) as manager, SessionReader(name) as reader:
        for sid in (A, B):
            manager.create_session({"n": 0}, session_id=sid)
        table = manager._registry.table
        _, word, _ = table.look_up(B)  # type: ignore[misc]
        # The record's own version.
        table.slots.memory[table.slots.offset(word & 0xFFFFFF) + 16] ^= 0x55
        manager.create_session()
        assert "damaged records dropped" in caplog.text
        assert A in reader
        assert B not in reader
        assert len(reader) == 2
        assert reader.check() == manager.check() == []


def test_the_watch_takes_no_growth_for_a_removal_of_names(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks without the lock first, and may have the old table in hand."""
    give_up_in_few_lines(monkeypatch)
    with _manager(name) as manager:
        for number in itertools.count(1):
            reached = stop_at_line(
                number,
                manager._watch,
                lambda: (
                    manager.resize(manager.stats().capacity % 5 + 2)
                    if not manager._lock._is_owned()  # type: ignore[attr-defined]
                    else None
                ),
            )
            assert not manager._closed, number
            if not reached:
                break


def test_a_signal_that_kills_leaves_no_name_of_a_table_that_was_begun(name: str) -> None:
    """As by the kernel for a lack of memory, in the filling of a large table."""
    code = """
        import sys
        from jidoka_shm import SessionManager, growing
        manager = SessionManager(sys.argv[1], capacity=4)
        for _ in range(4):
            manager.create_session()
        def stop(*_):
            print("filling", flush=True)
            sys.stdin.readline()
        growing.TableWriter.fill = stop
        manager.create_session()
    """
    with Script(code, name) as script:
        assert script.line() == "filling"
        assert objects_of(name) == {"", ".1", ".2"}
        os.kill(script.pid, signal.SIGKILL)
        script.kill()
    with _manager(name, capacity=4) as manager:
        assert len(manager) == 4
        assert objects_of(name) == {"", ".1"}


# ---------------------------------------------------------------------------- for long records

#: Of three slots of 128 bytes, and of two.
_LONG = {"n": 1, "pad": "1" * 230}
_SHORTER = {"n": 0, "pad": "0" * 110}


def _narrow(name: str, **options: Any) -> SessionManager:  # noqa: ANN401 - as above
    return _manager(name, slot_size=128, **options)


def _scatter(manager: SessionManager) -> None:
    """Leave half of all slots free, and no three of them adjacent."""
    ids = [UUID(int=number) for number in range(1, 49)]
    for sid in ids:
        manager.create_session({"n": 0}, session_id=sid)
    table = manager._registry.table

    def ids_at(rest: int) -> list[UUID]:
        words = {sid: table.look_up(sid)[1] for sid in ids}  # type: ignore[index]
        return [sid for sid in ids if (words[sid] & SLOT_MASK) % 3 == rest]

    for sid in ids_at(0):
        manager.update_session(sid, status="active")
    for sid in ids_at(1):
        manager.terminate_session(sid)
    with manager._lock:
        manager._registry.expire(Instant(0, 2**62))
    manager.create_session(_SHORTER, session_id=UUID(int=49))


def _two(manager: SessionManager) -> None:
    manager.create_session({"n": 0}, session_id=A)
    manager.create_session(_SHORTER, session_id=B)


#: A table where a long record finds no room: its capacity, and that of the next.
NO_RUN: dict[str, tuple[int, int, Callable[[SessionManager], None]]] = {
    "compacted": (48, 48, _scatter),
    "grown": (8, 16, _two),
}


def _lengthen_and_die(name: str, kind: str, around: Around) -> None:
    """Make a registry where a long record finds no room, stand still, make one, and die."""
    capacity, _, fill = NO_RUN[kind]
    manager = _narrow(name, capacity=capacity, fresh=True)
    fill(manager)
    patch = pytest.MonkeyPatch()
    give_up_in_few_lines(patch)
    stop_this_process()
    around(lambda: manager.update_session(min(manager), metadata=_LONG))
    kill_this_process()


@pytest.mark.parametrize("kind", NO_RUN)
def test_a_writer_killed_at_any_store_of_making_a_run_is_followed_by_one_that_every_reader_sees(
    name: str, kind: str
) -> None:
    around: Around = lambda work: stop_at_each_line(work, stop_this_process)  # noqa: E731
    with Child(lambda: _lengthen_and_die(name, kind, around)) as child:
        child.wait_for_stop()
        paths = [path_of(name), path_of(name, 1), path_of(name, 2)]
        steps = Steps(child, lambda: [path.read_bytes() for path in paths if path.exists()])
        for _ in steps:
            pass
    assert len(steps.changed) >= 12
    outcomes = [_kill_while_a_run_is_made(name, kind, line) for line in steps.changed]
    assert outcomes == sorted(outcomes)
    # The old table; the new one; the new one, with the long record in it.
    assert set(outcomes) == {(1, 0), (2, 0), (2, 1)}


def _kill_while_a_run_is_made(name: str, kind: str, line: int) -> tuple[int, int]:
    """Kill a writer at a line, and go on with the next, beside readers that were there.

    Returns:
        Which generation there is then, and whether the long record is in it.
    """
    capacity, larger, _ = NO_RUN[kind]
    with Child(lambda: _lengthen_and_die(name, kind, killing_at(line))) as child:
        child.wait_for_stop()
        with SessionReader(name) as cached, SessionReader(name, cache_size=0) as fresh:
            readers = [cached, fresh]
            ids = sorted(cached)
            first, last = ids[0], ids[-1]
            for reader in readers:
                assert set(ids) == {s.session_id for s in reader.list_sessions()}
                assert (reader[first].metadata, reader[last].metadata) == ({"n": 0}, _SHORTER)
            child.go_on()
            child.wait_for_kill()
            readers.append(SessionReader(name, timeout=0))
            left = readers[2][first].metadata
            assert left in ({"n": 0}, _LONG)
            for reader in readers:
                assert set(ids) == set(reader)
                assert (reader[first].metadata, reader[last].metadata) == (left, _SHORTER)
            with _narrow(name, capacity=capacity) as manager:
                assert manager.recovery is not None
                assert (manager.recovery.kept, manager.recovery.dropped) == (len(ids), ())
                assert manager.check() == []
                found = manager.stats()
                assert found.capacity == (capacity if found.generation == 1 else larger)
                assert objects_of(name) == {"", f".{found.generation}"}
                manager.update_session(first, metadata=_LONG | {"n": 2})
                manager.update_session(last, metadata={"n": 3})
                for reader in readers:
                    assert reader[first].metadata == _LONG | {"n": 2}
                    assert reader[last].metadata == {"n": 3}
                    assert {s.session_id for s in reader.list_sessions()} == set(ids)
                    assert reader.stats().generation == 2
                    assert reader.stats().capacity == larger
                assert manager.check() == readers[0].check() == []
                manager.unlink()
            readers[2].close()
    return found.generation, int(left == _LONG)


#: What four processes do beside a registry whose records are of every length: see that nothing is
#: missing, torn, or older than before.
_READ_LONG = """
    import sys
    from uuid import UUID
    from jidoka_shm import SessionReader
    name, *old = sys.argv[1:]
    old = [UUID(text) for text in old]
    cached, fresh = SessionReader(name), SessionReader(name, cache_size=0)
    wrong = looks = 0
    last = dict.fromkeys(old, 0)
    generations = set()

    def see(session):
        global wrong
        n, size, pad = (session.metadata[key] for key in ("n", "size", "pad"))
        wrong += pad != (f"{n}." * size)[:size]
        if session.session_id in last:
            wrong += n < last[session.session_id]
            last[session.session_id] = n

    print("ready", flush=True)
    while True:
        for sid in old:
            for reader in (cached, fresh):
                session = reader.get(sid)
                wrong += session is None
                if session is not None:
                    see(session)
                looks += 1
        listed = {session.session_id: session for session in cached.list_sessions()}
        wrong += len(set(old) - set(listed))
        for session in listed.values():
            see(session)
        generations.add(fresh.stats().generation)
        if fresh.get_session_status(old[0]) == "idle":
            break
    print(wrong, looks, len(generations), flush=True)
"""

#: What a watcher does beside it: keeps what it is told in a dict, and says what that holds.
_WATCH_LONG = """
    import sys, zlib
    from uuid import UUID
    from jidoka_shm import SessionReader
    name, first = sys.argv[1], UUID(sys.argv[2])
    reader = SessionReader(name)
    told = {}

    def take(change):
        if change.kind == "removed":
            del told[change.session.session_id]
        else:
            told[change.session.session_id] = change.session

    changes = reader.changes(timeout=0.05)
    print("ready", flush=True)
    is_last = False
    while True:
        for change in changes:
            take(change)
        # Once more, where the last commit came to be told of in between.
        if is_last:
            break
        is_last = first in told and told[first].status == "idle"
    texts = sorted(f"{s.session_id} {s.version} {s.status} {s.metadata}" for s in told.values())
    print(len(texts), zlib.crc32("".join(texts).encode()), flush=True)
"""

_TWENTY_KIB = 20 << 10


def _of_length(number: int, size: int) -> dict[str, object]:
    return {"n": number, "size": size, "pad": (f"{number}." * size)[:size]}


def _change_at_random(
    manager: SessionManager, rng: Random, number: int, old: list[UUID], others: list[UUID]
) -> None:
    """Create a session, or change or end one, but end none of the old ones."""
    metadata = _of_length(number, rng.randrange(_TWENTY_KIB))
    choice = rng.random()
    if choice < 0.1 and others:
        manager.terminate_session(others.pop(rng.randrange(len(others))))
    elif choice < 0.3:
        manager.update_session(rng.choice(old + others), metadata=metadata)
    else:
        others.append(manager.create_session(metadata))


@pytest.mark.parametrize("seed", [1])
def test_four_readers_and_a_watcher_go_through_ten_growths_of_records_of_any_length(
    name: str, seed: int
) -> None:
    rng = Random(seed)
    with _manager(name, cleanup_delay=0.01) as manager, contextlib.ExitStack() as stack:
        old = [manager.create_session(_of_length(0, 0)) for _ in range(2)]
        readers = [stack.enter_context(Script(_READ_LONG, name, *old)) for _ in range(4)]
        watcher = stack.enter_context(Script(_WATCH_LONG, name, old[0]))
        for script in (*readers, watcher):
            assert script.line() == "ready"
        others: list[UUID] = []
        number = 0
        while manager.stats().generation <= 10:
            number += 1
            _change_at_random(manager, rng, number, old, others)
        wait_until(lambda: len(manager) == len(old) + len(others))
        manager.update_session(old[0], status="active")
        manager.update_session(old[0], status="idle")
        for reader in readers:
            wrong, looks, generations = map(int, reader.line().split())
            assert (wrong, reader.end()) == (0, "")
            assert looks > 0
            assert generations > 1
        texts = [f"{s.session_id} {s.version} {s.status} {s.metadata}" for s in manager.values()]
        told = [len(texts), zlib.crc32("".join(sorted(texts)).encode())]
        assert [*map(int, watcher.line().split())] == told
        assert watcher.end() == ""
        assert manager.check() == []
