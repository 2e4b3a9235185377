"""Calls that something comes into half-way: an end, a check, a close, figures of a registry."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import threading
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from host import (
    descriptors_of,
    give_up_in_few_lines,
    list_own_names_alone,
    objects_of,
    path_of,
    stop_at_line,
)

from jidoka_shm import (
    ReentrantCall,
    RegistryClosed,
    SessionManager,
    SessionReader,
    reactor,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SID = UUID(int=1)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no manager's own thread do anything meanwhile."""
    monkeypatch.setattr(reactor, "_WATCH_INTERVAL", 10**6)


def _manager(name: str) -> SessionManager:
    made = SessionManager(name, capacity=8, cleanup_delay=3600)
    made.create_session({"a": 1}, session_id=SID)
    return made


def _interrupted(number: int, work: Callable[[], object], exception: type[BaseException]) -> bool:
    def stop() -> None:
        raise exception

    try:
        return stop_at_line(number, work, stop)
    except exception:
        return True


def _calls(manager: SessionManager) -> Iterator[Callable[[], object]]:
    yield manager.create_session
    yield lambda: manager.update_session(SID, metadata={"a": 2})
    yield lambda: manager.terminate_session(SID)
    yield lambda: manager[SID]
    yield lambda: manager.get_session_status(SID)
    yield manager.list_sessions
    yield lambda: len(manager)


@pytest.mark.parametrize("exception", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("end", ["close", "unlink"])
def test_an_interrupted_end_is_done_or_not_begun_and_can_be_made_again(
    name: str, monkeypatch: pytest.MonkeyPatch, end: str, exception: type[BaseException]
) -> None:
    give_up_in_few_lines(monkeypatch)
    list_own_names_alone(monkeypatch, name)
    for number in itertools.count(1):
        manager = _manager(name)
        with SessionReader(name) as reader:
            reached = _interrupted(number, getattr(manager, end), exception)
            answers = set()
            for call in _calls(manager):
                try:
                    call()
                except RegistryClosed:
                    answers.add("closed")
                else:
                    answers.add("open")
            # One or the other, and whole.
            assert len(answers) == 1, number
            getattr(manager, end)()
            for call in _calls(manager):
                with pytest.raises(RegistryClosed):
                    call()
            if end == "unlink":
                assert objects_of(name) == set()
                with pytest.raises(RegistryClosed):
                    reader.get_session_info(SID)
            assert not [thread for thread in threading.enumerate() if name in thread.name]
        with SessionManager(name) as successor:
            assert (SID in successor) is (end == "close")
            assert successor.check() == []
            successor.unlink()
        # One that comes between taking a descriptor out of its place and closing it loses it. In
        # the other order it would leave one that is closed, and another's by the next close.
        del manager, successor, reader, call
        gc.collect()
        left = [*descriptors_of(path_of(name)), *descriptors_of(path_of(name, 1))]
        assert len(left) <= 1, number
        for descriptor in left:
            os.close(descriptor)
        if not reached:
            break
    assert number > 30


@pytest.mark.parametrize("call", ["check", "_expire", "_turn"])
def test_a_close_inside_a_call_that_holds_the_lock_is_done_when_that_ends(
    name: str, call: str
) -> None:
    for number in itertools.count(1):
        manager = _manager(name)

        def work(manager: SessionManager = manager) -> None:
            with contextlib.suppress(RegistryClosed):
                getattr(manager, call)()

        reached = stop_at_line(number, work, manager.close)
        assert manager._closed is reached, number
        manager.unlink()
        if not reached:
            break


def test_a_check_after_an_interrupted_change_finds_nothing_wrong(name: str) -> None:
    with _manager(name) as manager:
        for number in itertools.count(1):
            reached = _interrupted(
                number, lambda: manager.update_session(SID, metadata={"a": 1}), KeyboardInterrupt
            )
            assert manager.check() == [], number
            manager.update_session(SID, metadata={"a": 2})
            if not reached:
                break
        manager.unlink()


def test_a_check_inside_a_change_finds_nothing_wrong_or_is_refused(name: str) -> None:
    found: list[object] = []

    def check() -> None:
        try:
            found.append(manager.check())
        except ReentrantCall:
            found.append([])

    with _manager(name) as manager:
        for number in itertools.count(1):
            if not stop_at_line(
                number, lambda: manager.update_session(SID, metadata={"a": 1}), check
            ):
                break
        manager.unlink()
    assert [each for each in found if each] == []


def test_figures_are_of_one_instance_whatever_line_it_is_replaced_at(name: str) -> None:
    def make(sessions: int) -> SessionManager:
        made = SessionManager(name, capacity=8 * sessions, fresh=True)
        for _ in range(sessions):
            made.create_session()
        return made

    def replace() -> None:
        managers[0].close()
        managers[0] = make(2)

    managers = [make(1)]
    for number in itertools.count(1):
        managers[0].close()
        managers[0] = make(1)
        with SessionReader(name) as reader:
            stats: list[object] = []

            def ask(reader: SessionReader = reader, stats: list[object] = stats) -> None:
                got = reader.stats()
                stats.append((got.capacity, got.sessions, got.version, got.created))

            reached = stop_at_line(number, ask, replace)
        assert stats[0] in {(8, 1, 1, 1), (16, 2, 2, 2)}, number
        if not reached:
            break
    managers[0].unlink()
