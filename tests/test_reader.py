from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from operator import gt
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from host import Script, descriptors_of, exit_code, forked, in_child, path_of
from support import wait_until

from jidoka_shm import (
    InvalidName,
    ReadContended,
    RegistryClosed,
    RegistryNotFound,
    SessionManager,
    SessionNotFound,
    SessionReader,
    ownership,
    reactor,
)
from jidoka_shm import reader as reader_module
from jidoka_shm.errors import FormatMismatch
from jidoka_shm.layout import SLOT_BITS, SLOT_MASK, SPARE_SLOTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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


def _successor(name: str, **options: Any) -> SessionManager:  # noqa: ANN401 - a manager's own
    return SessionManager(name, capacity=64, cleanup_delay=3600, **options)


# ---------------------------------------------------------------------------- opening


def test_a_reader_waits_for_its_registry(name: str) -> None:
    found: list[SessionReader] = []
    thread = threading.Thread(target=lambda: found.append(SessionReader(name, timeout=60)))
    thread.start()
    with SessionManager(name, capacity=8) as manager:
        sid = manager.create_session()
        thread.join()
        assert sid in found[0]
        manager.unlink()
    found[0].close()


@pytest.mark.parametrize("timeout", [0, 0.0, 0.01])
def test_a_reader_makes_no_registry(name: str, timeout: float) -> None:
    with pytest.raises(RegistryNotFound) as caught:
        SessionReader(name, timeout=timeout)
    assert (caught.value.name, caught.value.timeout) == (name, timeout)
    assert isinstance(caught.value, FileNotFoundError)
    assert not path_of(name).exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": float("inf")}, ValueError),
        ({"timeout": 10**400}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"timeout": None}, TypeError),
        ({"timeout": True}, TypeError),
        ({"cache_size": -1}, ValueError),
        ({"cache_size": 1.5}, TypeError),
        ({"cache_size": True}, TypeError),
        ({"verify": 1}, TypeError),
        ({"verify": "no"}, TypeError),
    ],
)
@pytest.mark.usefixtures("manager")
def test_an_option_that_cannot_be_is_refused(
    name: str, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(options))):
        SessionReader(name, **options)


@pytest.mark.parametrize("bad", ["", "a.b", "a/b", "x" * 65, "é", "a\n", None, 5, b"a"])
def test_a_name_that_no_registry_can_have_is_refused(bad: Any) -> None:  # noqa: ANN401
    with pytest.raises(InvalidName):
        SessionReader(bad)


def test_a_foreign_format_is_named(name: str) -> None:
    path_of(name).write_bytes(b"\xff" * 4096)
    try:
        with pytest.raises(FormatMismatch):
            SessionReader(name)
    finally:
        path_of(name).unlink()


# ---------------------------------------------------------------------------- closing


def test_leaving_with_closes(manager: SessionManager) -> None:
    with SessionReader(manager.name) as reader:
        assert len(reader) == 0
    with pytest.raises(RegistryClosed, match="this reader is closed"):
        len(reader)


def test_a_closed_reader_holds_no_memory_and_no_descriptor(manager: SessionManager) -> None:
    sid = manager.create_session()
    before = {path: len(descriptors_of(path)) for path in _paths(manager.name)}
    reader = SessionReader(manager.name)
    reader.get_session_info(sid)
    reader.list_sessions()
    reader.snapshot()
    assert {path: len(descriptors_of(path)) for path in before} != before
    # At once, with no garbage collection: what is unlinked is memory until its last user goes.
    reader.close()
    assert {path: len(descriptors_of(path)) for path in before} == before


def test_a_reader_that_is_dropped_holds_nothing_either(manager: SessionManager) -> None:
    before = {path: len(descriptors_of(path)) for path in _paths(manager.name)}
    SessionReader(manager.name).list_sessions()
    assert {path: len(descriptors_of(path)) for path in before} == before


def _paths(name: str) -> list[Any]:
    return [path_of(name), path_of(name, 1)]


def test_a_reader_outlives_its_manager(manager: SessionManager, reader: SessionReader) -> None:
    sid = manager.create_session({"a": 1}, pid=1)
    manager.close()
    assert reader[sid].metadata == {"a": 1}
    assert reader.get_session_pid(sid) == 1
    assert [session.session_id for session in reader.list_sessions()] == [sid]
    assert reader.writer_alive is False


# ---------------------------------------------------------------------------- new instances


def test_a_reader_goes_on_with_the_next_manager_of_its_registry(
    manager: SessionManager, reader: SessionReader
) -> None:
    sid = manager.create_session({"a": 1})
    view = reader._view
    assert reader[sid].metadata == {"a": 1}
    manager.close()
    with _successor(manager.name) as successor:
        other = successor.create_session()
        assert reader[sid].metadata == {"a": 1}
        assert other in reader
        assert reader.writer_alive is True
        assert reader._view is view


@pytest.mark.parametrize("way", ["fresh", "unlink"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_reader_attaches_to_a_new_instance_by_itself(
    manager: SessionManager, way: str, *, cached: bool
) -> None:
    reads: list[Callable[[SessionReader, UUID], object]] = [
        lambda reader, sid: reader[sid],
        lambda reader, sid: reader[str(sid)],
        lambda reader, sid: reader.get(sid),
        lambda reader, sid: reader.get_session_pid(sid),
        lambda reader, sid: reader.get_session_status(sid),
        lambda reader, _: len(reader.list_sessions()),
        lambda reader, sid: list(reader) == [sid] or None,
        lambda reader, sid: sid in reader or None,
        lambda reader, _: len(reader),
        lambda reader, _: len(reader.snapshot()),
        lambda reader, _: reader.count_by_status()["initializing"],  # type: ignore[index]
        lambda reader, _: reader.stats().sessions,
        lambda reader, _: reader.writer_alive or None,
        lambda reader, _: not reader.check(),
    ]
    old = manager.create_session()
    readers = [SessionReader(manager.name) for _ in reads]
    if cached:
        for reader in readers:
            reader.get_session_info(old)
            reader.list_sessions()
    if way == "unlink":
        manager.unlink()
    manager.close()
    with _successor(manager.name, fresh=way == "fresh") as successor:
        sid = successor.create_session(pid=1)
        for reader, read in zip(readers, reads, strict=True):
            # Versions repeat across instances: what is kept of the old one must not count.
            assert read(reader, sid)
            assert old not in reader
            assert reader.version == successor.version
            assert reader.stats().instance == successor._instance
            reader.close()
        successor.unlink()


def test_a_kept_list_is_not_given_for_another_instance(name: str) -> None:
    first = _successor(name)
    first.create_session({"of": "the first"})
    with SessionReader(name) as reader:
        assert reader.list_sessions()[0].metadata == {"of": "the first"}
        first.close()
        with _successor(name, fresh=True) as second:
            second.create_session({"of": "the second"})
            assert reader.list_sessions()[0].metadata == {"of": "the second"}
            second.unlink()


def test_a_reader_of_a_destroyed_registry_says_so_and_finds_the_next_one(
    manager: SessionManager, reader: SessionReader
) -> None:
    sid = manager.create_session()
    assert sid in reader
    manager.unlink()
    for _ in range(3):
        with pytest.raises(RegistryClosed, match="destroyed"):
            reader.get_session_info(sid)
        with pytest.raises(RegistryClosed, match="destroyed"):
            reader.list_sessions()
    with _successor(manager.name) as successor:
        again = successor.create_session(session_id=sid)
        assert reader[again].version == 1
        assert len(reader) == 1
        successor.unlink()
        with pytest.raises(RegistryClosed, match="destroyed"):
            len(reader)


def test_names_removed_by_hand_are_learnt_by_whatever_asks_for_the_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks: list[Callable[[SessionReader], object]] = [
        lambda reader: reader.refresh(),
        lambda reader: reader.list_sessions(),
        lambda reader: reader.writer_alive,
        lambda reader: reader.stats(),
        lambda reader: reader.usage(),
        lambda reader: reader.check(),
        len,
    ]
    # A manager that does not notice, so that it is left to the readers.
    monkeypatch.setattr(reactor, "_WATCH_INTERVAL", 3600)
    with _successor(name) as manager:
        sid = manager.create_session()
        readers = [SessionReader(name) for _ in asks]
        for path in _paths(name):
            path.unlink()
        for reader, ask in zip(readers, asks, strict=True):
            assert sid in reader
            with pytest.raises(RegistryClosed):
                ask(reader)
            # A look-up makes no system call, and so it goes on until the registry is closed.
            assert sid in reader
            reader.close()


def test_a_refresh_finds_what_took_the_name(name: str) -> None:
    first = _successor(name)
    old = first.create_session()
    with SessionReader(name) as reader:
        assert old in reader
        for path in _paths(name):
            path.unlink()
        with _successor(name) as second:
            sid = second.create_session()
            assert old in reader
            reader.refresh()
            assert old not in reader
            assert sid in reader
            second.unlink()
    first.close()


def test_attaching_again_waits_for_a_registry_that_is_being_made(
    manager: SessionManager, reader: SessionReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    sid = manager.create_session()
    assert sid in reader
    manager.unlink()
    complete = ownership.ControlWriter.complete
    answers: list[bool] = []

    def complete_once_a_reader_waits(control: Any) -> None:  # noqa: ANN401 - a control
        thread = threading.Thread(target=lambda: answers.append(sid in reader))
        waiting.append(thread)
        thread.start()
        assert entered.wait(30)
        assert not answers
        complete(control)

    def enter_and_attach(*arguments: Any) -> object:  # noqa: ANN401 - whatever it takes
        entered.set()
        return attach_again(*arguments)

    entered = threading.Event()
    attach_again = reader_module.attach_again
    monkeypatch.setattr(reader_module, "attach_again", enter_and_attach)
    waiting: list[threading.Thread] = []
    monkeypatch.setattr(ownership.ControlWriter, "complete", complete_once_a_reader_waits)
    with _successor(manager.name) as successor:
        waiting[0].join()
        assert answers == [False]
        assert reader.stats().instance == successor._instance
        successor.unlink()


def test_threads_that_attach_again_at_once_do_not_wait_for_each_other(
    manager: SessionManager, reader: SessionReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach_again = reader_module.attach_again
    all_attach = threading.Barrier(4, timeout=30)

    def meet_and_attach(*arguments: Any) -> object:  # noqa: ANN401 - whatever it takes
        all_attach.wait()
        return attach_again(*arguments)

    monkeypatch.setattr(reader_module, "attach_again", meet_and_attach)
    manager.close()
    found = []
    with _successor(manager.name, fresh=True) as successor:
        sid = successor.create_session()
        threads = [threading.Thread(target=lambda: found.append(reader[sid])) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == 4 * [successor[sid]]
        successor.unlink()


def test_a_signal_handler_may_read_while_the_reader_attaches_again(
    manager: SessionManager, reader: SessionReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach_again = reader_module.attach_again
    inside = []

    def be_interrupted(*arguments: Any) -> object:  # noqa: ANN401 - whatever it takes
        if not inside:
            inside.append(None)
            inside.append(reader.get(sid))
        return attach_again(*arguments)

    monkeypatch.setattr(reader_module, "attach_again", be_interrupted)
    manager.close()
    with _successor(manager.name, fresh=True) as successor:
        sid = successor.create_session()
        assert reader.get(sid) == inside[1] == successor[sid]
        successor.unlink()


def test_a_close_while_it_attaches_again_stands(
    manager: SessionManager, reader: SessionReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach_again = reader_module.attach_again

    def attach_while_another_thread_closes(*arguments: Any) -> object:  # noqa: ANN401
        attached = attach_again(*arguments)
        thread = threading.Thread(target=reader.close)
        thread.start()
        thread.join(1)
        return attached

    monkeypatch.setattr(reader_module, "attach_again", attach_while_another_thread_closes)
    manager.close()
    with _successor(manager.name, fresh=True) as successor:
        with contextlib.suppress(RegistryClosed, SessionNotFound):
            reader.get_session_info(uuid4())
        with pytest.raises(RegistryClosed, match="this reader is closed"):
            len(reader)
        successor.unlink()


# ---------------------------------------------------------------------------- threads


@pytest.mark.usefixtures("_often_switched")
def test_threads_may_read_while_another_closes(manager: SessionManager) -> None:
    """A7: four threads read while a fifth closes: ``RegistryClosed``, never a crash."""
    sids = [manager.create_session({"number": number}) for number in range(40)]
    failures: list[BaseException] = []

    def read(reader: SessionReader, rounds: list[int]) -> None:
        try:
            for number in itertools.cycle(range(40)):
                assert reader[sids[number]].metadata == {"number": number}
                assert len(reader.list_sessions()) == 40
                assert sids[number] in reader
                assert len(reader.snapshot()) == 40
                rounds.append(number)
        except RegistryClosed:
            pass
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is a failure
            failures.append(error)

    for _ in range(20):
        reader, rounds = SessionReader(manager.name, cache_size=8), [[], [], [], []]
        threads = [threading.Thread(target=read, args=(reader, done)) for done in rounds]
        for thread in threads:
            thread.start()
        wait_until(lambda rounds=rounds: failures or all(rounds))
        reader.close()
        for thread in threads:
            thread.join()
    assert failures == []


class Lookers:
    """Four threads that look, each in its way, for the one session that is said to be there."""

    def __init__(self, reader: SessionReader) -> None:
        self.failures: list[object] = []
        self._there: tuple[int, UUID] | None = None
        self._looks = [0] * 4
        self._stopped = threading.Event()
        ways: list[Callable[[UUID], object]] = [
            lambda sid: reader[sid].metadata["number"],
            lambda sid: sid in reader,
            lambda sid: [session.session_id for session in reader.list_sessions()] == [sid],
            lambda sid: list(reader) == [sid],
        ]
        self._threads = [
            threading.Thread(target=self._look, args=(at, way)) for at, way in enumerate(ways)
        ]
        for thread in self._threads:
            thread.start()

    def _look(self, at: int, way: Callable[[UUID], object]) -> None:
        while not self._stopped.is_set():
            there = self._there
            if there is None:
                continue
            try:
                answer = way(there[1])
            except (RegistryClosed, SessionNotFound) as error:
                answer = error
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is a failure
                self.failures.append(error)
            # What was said to be there before and after was there throughout.
            if self._there is there:
                self._looks[at] += 1
                if answer is not True and answer != there[0]:
                    self.failures.append((at, there, answer))

    def expect(self, number: int, sid: UUID) -> None:
        """Have every thread look for a session that is there until this returns."""
        before = self._looks.copy()
        self._there = (number, sid)
        wait_until(lambda: self.failures or all(map(gt, self._looks, before)))
        self._there = None

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.usefixtures("_often_switched")
def test_threads_may_read_while_their_registry_is_replaced(name: str) -> None:
    manager = _successor(name)
    with SessionReader(name, cache_size=8) as reader:
        lookers = Lookers(reader)
        try:
            for number in range(2, 60):
                sid = manager.create_session({"number": number})
                lookers.expect(number, sid)
                manager.close()
                manager = _successor(name, fresh=True)
        finally:
            lookers.stop()
            manager.unlink()
    assert lookers.failures == []


# ---------------------------------------------------------------------------- other processes


def test_a_reader_pickles_as_its_name_and_options(manager: SessionManager) -> None:
    sid = manager.create_session({"a": 1})
    with SessionReader(manager.name, timeout=5, cache_size=7, verify=True) as reader:
        data = pickle.dumps(reader)
    assert len(data) < 500
    with pickle.loads(data) as again:  # noqa: S301 - its own
        assert again._options == reader._options
        assert again.name == manager.name
        assert again[sid].metadata == {"a": 1}


def test_a_closed_reader_pickles_as_well(manager: SessionManager, reader: SessionReader) -> None:
    reader.close()
    with pickle.loads(pickle.dumps(reader)) as again:  # noqa: S301 - its own
        assert len(again) == len(manager) == 0


def test_a_subclass_pickles_as_itself(manager: SessionManager) -> None:
    with OwnReader(manager.name) as reader, pickle.loads(pickle.dumps(reader)) as again:  # noqa: S301
        assert type(again) is OwnReader


class OwnReader(SessionReader):
    """Somebody's own kind of reader."""


def test_unpickling_where_nothing_is_left_is_an_error(name: str) -> None:
    with _successor(name) as manager, SessionReader(name, timeout=0) as reader:
        data = pickle.dumps(reader)
        manager.unlink()
    with pytest.raises(RegistryNotFound):
        pickle.loads(data)  # noqa: S301 - its own


def test_a_spawned_process_reads_by_what_it_is_sent(manager: SessionManager) -> None:
    """P7: a reader that is sent to a spawned process reads there."""
    sid = manager.create_session({"a": [1, 2]}, pid=os.getpid())
    with (
        SessionReader(manager.name) as reader,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        there = pool.submit(SessionReader.get_session_info, reader, sid).result()
        assert there == manager[sid]
        assert there.metadata == {"a": [1, 2]}
        assert pool.submit(SessionReader.list_sessions, reader).result() == [there]
        assert pool.submit(SessionReader.stats, reader).result().version == manager.version
        missed = pool.submit(SessionReader.get_session_info, reader, UUID(int=5)).exception()
        assert isinstance(missed, SessionNotFound)
        assert missed.session_id == UUID(int=5)


def test_a_forked_child_reads_on(manager: SessionManager, reader: SessionReader) -> None:
    """P7: a reader works in a forked child."""
    sid = manager.create_session({"a": 1})
    assert reader[sid].metadata == {"a": 1}
    end, begin = os.pipe()

    def read() -> None:
        os.read(end, 1)
        assert reader[sid].metadata == {"a": 2}
        assert len(reader.list_sessions()) == 1
        reader.close()

    pid = forked(read)
    manager.update_session(sid, metadata={"a": 2})
    os.write(begin, b"x")
    assert exit_code(pid) == 0
    os.close(end)
    os.close(begin)
    assert reader[sid].metadata == {"a": 2}


def test_a_forked_child_attaches_again_though_another_thread_was_doing_so(
    manager: SessionManager, reader: SessionReader
) -> None:
    def read() -> None:
        assert len(reader) == 1

    manager.close()
    with _successor(manager.name, fresh=True) as successor:
        successor.create_session()
        with reader._lock:
            assert in_child(read) == 0
        successor.unlink()


def test_a_reader_in_another_process_sees_each_change(name: str) -> None:
    code = """
        import sys
        from jidoka_shm import SessionReader
        with SessionReader(sys.argv[1], timeout=30) as reader:
            for line in sys.stdin:
                print([(s.metadata, s.status.value, s.pid) for s in reader.values()], flush=True)
    """
    with Script(code, name) as script, SessionManager(name, capacity=8) as manager:
        seen = []
        sid = manager.create_session({"a": 1})
        script.go()
        seen.append(script.line())
        manager.update_session(sid, status="active", pid=1)
        script.go()
        seen.append(script.line())
        manager.unlink()
        script.close_input()
        assert script.end() == ""
    assert seen == ["[({'a': 1}, 'initializing', None)]", "[({'a': 1}, 'active', 1)]"]


def test_a_check_beside_a_busy_writer_is_right_or_says_that_it_was_contended(name: str) -> None:
    code = """
        import sys, threading
        from jidoka_shm import RegistryFull, SessionManager
        stop = threading.Event()
        threading.Thread(target=lambda: (sys.stdin.read(), stop.set())).start()
        with SessionManager(sys.argv[1], capacity=1_024, cleanup_delay=0) as manager:
            print("ready", flush=True)
            while not stop.is_set():
                try:
                    manager.terminate_session(manager.create_session())
                except RegistryFull:
                    pass
            manager.unlink()
    """
    with Script(code, name) as script:
        assert script.line() == "ready"
        with SessionReader(name) as reader:
            for _ in range(2000):
                with contextlib.suppress(ReadContended):
                    assert reader.check() == []
        script.close_input()
        assert script.end() == ""


def test_no_load_of_a_live_word_sees_what_no_commit_stored(
    manager: SessionManager, reader: SessionReader
) -> None:
    """T1: beside a writer at full speed, versions only grow, and no word is ever empty or torn."""
    sid = manager.create_session()
    words, change = reader._view.words, reader._view.table.change
    (entry,) = (at for at, word in enumerate(words) if word)
    slots = manager.stats().capacity + SPARE_SLOTS

    def load() -> None:
        last, commits = words[entry], 0
        while commits < 20_000:
            word, begun = words[entry], change[0]
            assert word >> SLOT_BITS >= last >> SLOT_BITS
            assert word & SLOT_MASK < slots
            # The word was loaded first: no commit after it is older than it.
            assert begun + 1 >= 2 * (word >> SLOT_BITS)
            commits += word != last
            last = word

    child = forked(load)
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        manager.update_session(sid)
    assert exit_code(child) == 0
