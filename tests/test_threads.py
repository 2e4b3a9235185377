"""Threads that read while the handle is closed, or the registry is replaced under them."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from host import Script, stop_at_line
from support import wait_until

from jidoka_shm import RegistryClosed, SessionManager, SessionNotFound, SessionReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from jidoka_shm.reads import SessionReads

pytestmark = pytest.mark.usefixtures("_often_switched")

#: The sessions of every instance. Each says of which instance it is, in its maps and as its pid.
IDS = [UUID(int=at) for at in range(1, 9)]

#: Ways to read, each to the numbers of the instances that the answer is of.
LOOK_UPS: dict[str, Callable[[SessionReads, UUID], list[int]]] = {
    "session": lambda handle, sid: [handle[sid].metadata["number"]],
    "text": lambda handle, sid: [handle.get_session_info(str(sid)).metadata["number"]],
    "pid": lambda handle, sid: [handle.get_session_pid(sid) or 0],
}
SCANS: dict[str, Callable[[SessionReads], list[int]]] = {
    "list": lambda handle: [each.metadata["number"] for each in handle.list_sessions()],
    "status": lambda handle: [each.pid or 0 for each in handle.list_sessions("initializing")],
    "values": lambda handle: [each.llm_config["number"] for each in handle.values()],
    "items": lambda handle: [each.pid or 0 for _, each in handle.items()],
    "snapshot": lambda handle: handle.snapshot()["pid"].tolist(),
}


def _fill(manager: SessionManager, number: int) -> None:
    for sid in IDS:
        manager.create_session({"number": number}, {"number": number}, number, session_id=sid)


def _run(threads: list[threading.Thread], work: Callable[[], object]) -> None:
    """Do ``work`` while threads run, and wait for their ends."""
    for thread in threads:
        thread.start()
    try:
        work()
    finally:
        for thread in threads:
            thread.join()


# ---------------------------------------------------------------------------- closing


@pytest.mark.parametrize("end", ["close", "unlink"])
@pytest.mark.parametrize("handle", ["manager", "reader"])
def test_threads_may_read_while_the_manager_ends(name: str, handle: str, end: str) -> None:
    """A7: four threads read while a fifth closes: ``RegistryClosed``, never a crash."""
    for _ in range(15):
        manager = SessionManager(name, capacity=16, fresh=True)
        _fill(manager, 1)
        with SessionReader(name, cache_size=2) as reader:
            read_while_it_ends(manager, reader, manager if handle == "manager" else reader, end)
        manager.unlink()


def read_while_it_ends(
    manager: SessionManager, reader: SessionReader, handle: SessionReads, end: str
) -> None:
    failures: list[object] = []
    rounds: list[list[int]] = [[], [], [], []]

    def read(done: list[int]) -> None:
        ways = [lambda: LOOK_UPS["session"](handle, IDS[3]), *_scans(handle)]
        try:
            while True:
                for way in ways:
                    answer = way()
                    if set(answer) != {1} or len(answer) not in {1, len(IDS)}:
                        failures.append(answer)
                done.append(1)
        except RegistryClosed:
            pass
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is a failure
            failures.append(error)

    def end_it() -> None:
        _wait_for_another_round(rounds, failures)
        getattr(manager, end)()
        if handle is reader and end == "close":
            # A reader goes on, until it is closed itself.
            _wait_for_another_round(rounds, failures)
            reader.close()

    _run([threading.Thread(target=read, args=(done,)) for done in rounds], end_it)
    assert failures == []
    for each in (manager, handle):
        with pytest.raises(RegistryClosed):
            each.list_sessions()


def _wait_for_another_round(rounds: list[list[int]], failures: list[object]) -> None:
    """Wait until every thread has ended a round that it began after this call, or one failed."""
    before = [len(done) for done in rounds]

    def ended() -> bool:
        return all(len(done) > old + 1 for done, old in zip(rounds, before, strict=True))

    wait_until(lambda: failures or ended())


def _scans(handle: SessionReads) -> list[Callable[[], list[int]]]:
    return [lambda scan=scan: scan(handle) for scan in SCANS.values()]


# ---------------------------------------------------------------------------- replacing

#: A process that makes one instance after the other, each filled, at each line that it reads.
WRITER = """
    import sys
    from uuid import UUID
    from jidoka_shm import SessionManager, processes
    from jidoka_shm.control import Identity
    # As of a process of which nothing more can be known, so that any number may stand as a pid.
    processes.find = lambda pid: Identity(pid, 0, 0)
    name, way = sys.argv[1:]
    manager = SessionManager(name, capacity=16)
    number = 0
    while True:
        number += 1
        for at in range(1, 9):
            sid, numbered = UUID(int=at), {"number": number}
            if sid in manager:
                manager.update_session(sid, metadata=numbered, llm_config=numbered, pid=number)
            else:
                manager.create_session(numbered, numbered, number, session_id=sid)
        print(number, flush=True)
        if not sys.stdin.readline():
            break
        if way == "unlink":
            manager.unlink()
        manager.close()
        manager = SessionManager(name, capacity=16, fresh=way == "fresh")
    manager.unlink()
"""


class Watchers:
    """Threads that read in every way, and judge each answer by what was there meanwhile.

    Attributes:
        failures: answers that cannot be.
        stands: the number of the instance that is there and stays; 0 while one is replaced.
    """

    def __init__(self, reader: SessionReader, *, replaced: bool) -> None:
        self.failures: list[object] = []
        self.stands = 0
        self._reader = reader
        self._replaced = replaced
        self._stopped = False
        self._answers = [0] * 4
        ways = [lambda way=way: self._look_up(way) for way in LOOK_UPS.values()]
        self._threads = [
            threading.Thread(target=self._watch, args=(at, [*ways, *_scans(reader)][at::4]))
            for at in range(4)
        ]

    def _look_up(self, way: Callable[[SessionReads, UUID], list[int]]) -> list[int]:
        return [way(self._reader, sid)[0] for sid in IDS[:3]]

    def _watch(self, at: int, ways: list[Callable[[], list[int]]]) -> None:
        last = 0
        while not (self._stopped or self.failures):
            for way in ways:
                before = self.stands
                answer: list[int] | None
                try:
                    answer = way()
                except (RegistryClosed, SessionNotFound):
                    answer = None
                except BaseException as error:  # noqa: BLE001 - whatever it is, it is a failure
                    self.failures.append(error)
                    return
                throughout = before if before == self.stands else 0
                if throughout:
                    self._answers[at] += 1
                if not self._can_be(answer, throughout, last):
                    self.failures.append((at, answer, throughout, last))
                last = max(answer or [last])

    def _can_be(self, answer: list[int] | None, throughout: int, last: int) -> bool:
        """Return whether an answer can be, given what was there and what was read before."""
        if throughout:
            return answer is not None and set(answer) == {throughout} and len(answer) in {3, 8}
        if not self._replaced:
            # The sessions are there all the time.
            return answer is not None and min(answer) >= last - 1 and len(answer) in {3, 8}
        # Nothing, the last instance, or the next, which is filled meanwhile.
        return answer is None or (len(answer) <= 8 and min(answer, default=last) >= last)

    def expect(self, number: int) -> None:
        """Have every thread read several times from an instance that stands meanwhile."""
        before = self._answers.copy()
        self.stands = number
        wait_until(
            lambda: (
                self.failures
                or all(now > old + 4 for now, old in zip(self._answers, before, strict=True))
            )
        )
        self.stands = 0

    def run(self, work: Callable[[], object]) -> None:
        def work_and_stop() -> None:
            try:
                work()
            finally:
                self._stopped = True

        _run(self._threads, work_and_stop)


@pytest.mark.parametrize("way", ["fresh", "unlink", "takeover"])
@pytest.mark.parametrize("verify", [False, True])
def test_threads_read_one_instance_while_another_process_replaces_it(
    name: str, way: str, *, verify: bool
) -> None:
    with Script(WRITER, name, way) as script:
        assert script.line() == "1"
        with SessionReader(name, cache_size=4, verify=verify) as reader:
            watchers = Watchers(reader, replaced=way != "takeover")

            def replace() -> None:
                for number in range(1, 13):
                    watchers.expect(number)
                    script.go()
                    assert script.line() == str(number + 1)

            watchers.run(replace)
            assert watchers.failures == []
        script.close_input()
        assert script.end() == ""


def test_threads_never_miss_a_session_while_writers_are_killed_and_followed(name: str) -> None:
    failures: list[object] = []
    rounds: list[list[int]] = [[], [], [], []]
    stopped = threading.Event()

    def read(reader: SessionReader, done: list[int]) -> None:
        try:
            while not stopped.is_set():
                for sid in IDS:
                    assert reader[sid].session_id == sid
                    assert sid in reader
                for scan in _scans(reader):
                    assert len(scan()) == len(IDS)
                done.append(1)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is a failure
            failures.append(error)

    def kill_and_follow() -> None:
        try:
            for _ in range(3):
                with Script(WRITER, name, "takeover") as script:
                    script.line()
                    script.go()
                    script.line()
                    script.kill()
                    _wait_for_another_round(rounds, failures)
            with SessionManager(name) as manager:
                assert manager.recovery
                assert manager.recovery.kept == len(IDS)
                _wait_for_another_round(rounds, failures)
        finally:
            stopped.set()

    with SessionManager(name, capacity=16) as manager:
        _fill(manager, 1)
    with SessionReader(name, cache_size=4) as reader:
        threads = [threading.Thread(target=read, args=(reader, done)) for done in rounds]
        _run(threads, kill_and_follow)
    assert failures == []
    with SessionManager(name) as manager:
        manager.unlink()


# ---------------------------------------------------------------------------- at every line


@pytest.mark.parametrize(
    ("way", "kept"),
    [
        *((way, True) for way in [*LOOK_UPS, *SCANS, "ids", "count", "len"]),
        # What is read before is kept, a look-up as well as a list.
        *((way, False) for way in ("session", "list")),
    ],
)
def test_an_answer_is_of_one_instance_whatever_line_the_registry_is_replaced_at(
    name: str, way: str, *, kept: bool
) -> None:
    ways: dict[str, Callable[[SessionReader], Any]] = {
        **{key: lambda reader, do=do: do(reader, IDS[2]) for key, do in LOOK_UPS.items()},
        **SCANS,
        "ids": lambda reader: sorted(sid.int for sid in reader),
        "count": lambda reader: reader.count_by_status()["initializing"],  # type: ignore[index]
        "len": len,
    }
    managers = [_make(name, 1)]

    def replace() -> None:
        managers[0].close()
        managers[0] = _make(name, 2)

    with SessionReader(name) as reader:
        read = ways[way]
        first = read(reader)
        replace()
        second = read(reader)
    seen: list[object] = []
    for number in itertools.count(1):
        managers[0].close()
        managers[0] = _make(name, 1)
        with SessionReader(name) as reader:
            if kept:
                read(reader)
            reached = stop_at_line(number, lambda reader=reader: seen.append(read(reader)), replace)
            assert seen[-1] in (first, second)
            assert read(reader) == (second if reached else first)
        if not reached:
            break
    # It changed at one line, and at no other.
    assert seen[0] == second != first
    assert seen.count(first) + seen.count(second) == len(seen) > 3
    managers[0].unlink()


def _make(name: str, number: int) -> SessionManager:
    """Return a new instance that differs from another number's in all that can be read."""
    manager = SessionManager(name, capacity=16, fresh=True)
    for at in range(1, 4 + number):
        numbered = {"number": number}
        manager.create_session(numbered, numbered, number, session_id=UUID(int=at))
    return manager
