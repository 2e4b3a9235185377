"""Whoever else is there: rival writers, readers that stand still, a clock that jumps, names gone."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from host import Script, exit_code, forked, objects_of, path_of, run_script, stop
from support import wait_until

from jidoka_shm import (
    CorruptRegistry,
    RegistryClosed,
    RegistryNotFound,
    SessionManager,
    SessionReader,
    SessionStatus,
    WriterAlreadyRunning,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# ---------------------------------------------------------------------------- rivals

RIVALS, ROUNDS = 8, 200


def test_of_eight_that_start_at_once_exactly_one_wins(name: str) -> None:
    """A5: 8 processes at a barrier, 200 rounds: exactly one wins, none hangs."""
    code = """
        import sys
        from multiprocessing import get_context
        from jidoka_shm import SessionManager, WriterAlreadyRunning

        name, rivals, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        fork = get_context("fork")
        # Broken by whoever waits for longer, so that nobody waits for one that failed.
        barrier = fork.Barrier(rivals, timeout=60)
        winners = fork.Array("i", rounds)

        def compete():
            for number in range(rounds):
                barrier.wait()
                try:
                    # They start from nothing, take over, and discard, in turn.
                    made = SessionManager(name, capacity=8, fresh=number % 3 == 2)
                except WriterAlreadyRunning:
                    made = None
                else:
                    assert (made.recovery is None) == (number % 3 != 1)
                    with winners.get_lock():
                        winners[number] += 1
                    made.create_session({"number": number})
                barrier.wait()
                if made is not None:
                    # What two wrote at once would not be whole.
                    assert made.check() == []
                    if number % 3 == 2:
                        made.unlink()
                    made.close()
                barrier.wait()

        processes = [fork.Process(target=compete) for _ in range(rivals)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        SessionManager(name).unlink()
        print(list(winners) == [1] * rounds)
    """
    assert run_script(code, name, RIVALS, ROUNDS) == "True\n"


def test_of_many_that_wait_for_a_writer_each_gets_its_turn(name: str) -> None:
    """A5: creators that wait for each other do not dead-lock either."""

    def take_a_turn() -> None:
        for _ in range(3):
            with SessionManager(name, capacity=64, wait=60) as made:
                made.create_session()
                assert made.check() == []

    pids = [forked(take_a_turn) for _ in range(RIVALS)]
    assert [exit_code(pid) for pid in pids] == [0] * RIVALS
    with SessionManager(name) as manager:
        assert len(manager) == 3 * RIVALS
        manager.unlink()


def test_a_reader_in_the_writers_own_process_drops_no_lock(name: str) -> None:
    """P6: a reader opened and closed in the writer's process changes nothing."""
    code = """
        import sys
        from jidoka_shm import SessionManager, WriterAlreadyRunning
        for _ in sys.stdin:
            try:
                SessionManager(sys.argv[1])
            except WriterAlreadyRunning as error:
                print(error.pid, flush=True)
    """

    def fail() -> None:
        with pytest.raises(WriterAlreadyRunning):
            SessionManager(name)

    ways: list[Callable[[], object]] = [
        lambda: SessionReader(name).close(),
        lambda: SessionReader(name).list_sessions(),
        lambda: SessionReader(name, verify=True).refresh(),
        lambda: path_of(name).read_bytes(),
        fail,
    ]
    with Script(code, name) as script, SessionManager(name, capacity=8) as manager:
        for way in ways:
            way()
            script.go()
            assert script.line() == str(os.getpid())
            manager.create_session()
        script.close_input()
        assert script.end() == ""
        manager.unlink()


def test_unlinking_and_closing_may_be_repeated_by_two_owners(name: str) -> None:
    """L5: unlink twice, close twice: fine; a reader has no unlink."""
    assert not hasattr(SessionReader, "unlink")
    first = SessionManager(name, capacity=8)
    first.close()
    second = SessionManager(name)
    second.close()
    for _ in range(2):
        for each in (first, second):
            each.unlink()
            each.close()
            assert objects_of(name) == set()


# ---------------------------------------------------------------------------- no waiting for ever


def test_a_writer_waits_for_no_reader(name: str) -> None:
    """T9: every wait has a deadline; the writer never waits for a reader, stopped in mid-read."""
    code = """
        import sys, threading
        from jidoka_shm import JidokaError, SessionReader
        reader = SessionReader(sys.argv[1], cache_size=0)
        print("ready", flush=True)
        try:
            while True:
                for session in reader.list_sessions():
                    reader.get(session.session_id)
        except JidokaError:
            print("closed", flush=True)
    """
    with Script(code, name) as script, SessionManager(name, capacity=64, cleanup_delay=0) as first:
        kept = first.create_session()
        assert script.line() == "ready"
        stop(script.pid)
        for _ in range(500):
            sid = first.create_session({"a": "x" * 300})
            first.update_session(sid, status="active")
            first.terminate_session(sid)
            wait_until(lambda sid=sid: sid not in first)
        first.close()
        with SessionManager(name) as second:
            assert kept in second
            second.unlink()
        assert objects_of(name) == set()
        os.kill(script.pid, signal.SIGCONT)
        assert script.line() == "closed"
        assert script.end() == ""


def test_every_wait_ends_at_its_time(name: str) -> None:
    """T9: each way to wait, for what never comes."""
    with SessionManager(name, capacity=8) as manager:
        manager.create_session()
        reader = SessionReader(name, timeout=0.05)
        waits: list[tuple[type[Exception], Callable[[], object]]] = [
            (RegistryNotFound, lambda: SessionReader(f"{name}-none", timeout=0.05)),
            (WriterAlreadyRunning, lambda: SessionManager(name, wait=0.05)),
        ]
        _assert_they_end(waits)
        manager.unlink()
    # A successor that was killed after its control was there, and before its magic; then one whose
    # table is not.
    path_of(name).write_bytes(bytes(4096))
    _assert_they_end(
        [
            (RegistryNotFound, lambda: SessionReader(name, timeout=0.05)),
            (RegistryNotFound, reader.list_sessions),
        ]
    )
    path_of(name).unlink()
    SessionManager(name, capacity=8).close()
    path_of(name, 1).unlink()
    _assert_they_end(
        [
            (CorruptRegistry, lambda: SessionReader(name, timeout=0.05)),
            (CorruptRegistry, reader.list_sessions),
        ]
    )
    reader.close()
    SessionManager(name, fresh=True).unlink()


def _assert_they_end(waits: list[tuple[type[Exception], Callable[[], object]]]) -> None:
    for error, wait in waits:
        before = time.monotonic()
        with pytest.raises(error):
            wait()
        # The limit only catches a wait without end.
        assert 0.05 <= time.monotonic() - before < 30


# ---------------------------------------------------------------------------- the wall clock


@pytest.mark.parametrize("years", [-50, -1, 1, 50])
def test_a_clock_that_jumps_changes_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    """P4: the wall clock moved by a year: no change."""
    real_time, real_time_ns = time.time, time.time_ns
    moved = years * 365 * 86_400

    def jump() -> None:
        monkeypatch.setattr(time, "time", lambda: real_time() + moved)
        monkeypatch.setattr(time, "time_ns", lambda: real_time_ns() + moved * 10**9)

    with SessionManager(name, capacity=64, cleanup_delay=0.05) as manager:
        reader = SessionReader(name)
        living = manager.create_session({"a": 1}, ttl=3600, pid=os.getpid())
        ended = manager.create_session()
        expiring = manager.create_session(ttl=0.05)
        manager.terminate_session(ended)
        before = manager[living]
        jump()
        wait_until(lambda: ended not in manager and expiring not in manager)
        assert manager[living] == reader[living] == before
        updated = manager.update_session(living, status="active")
        assert updated.expires_at == before.expires_at
        began = time.monotonic()
        after = manager.create_session(ttl=0.05)
        ended = manager.create_session(ttl=3600)
        manager.terminate_session(ended)
        wait_until(lambda: ended not in manager)
        assert time.monotonic() - began >= 0.05
        # Its time to live, and then the delay.
        wait_until(lambda: after not in manager)
        assert time.monotonic() - began >= 0.1
        assert manager.writer_alive
        assert reader.writer_alive
        manager.close()
        # The next one takes the deadlines up as they are.
        with SessionManager(name, cleanup_delay=0.05) as successor:
            assert successor[living] == updated
            assert successor.get_session_status(living) is SessionStatus.ACTIVE
            assert len(successor) == 1
            reader.close()
            successor.unlink()


# ---------------------------------------------------------------------------- names removed


def test_a_reader_tells_removed_from_dead(name: str) -> None:
    """L7: a reader tells "removed" from "writer dead"."""
    code = """
        import sys
        from jidoka_shm import SessionManager
        manager = SessionManager(sys.argv[1], capacity=8)
        print(manager.create_session(), flush=True)
        input()
    """
    # It is killed: all that it had is there.
    with Script(code, name) as script:
        script.line()
        with SessionReader(name) as reader:
            assert reader.writer_alive is True
            script.kill()
            assert reader.writer_alive is False
            reader.refresh()
            assert len(reader.list_sessions()) == 1
            # Then its names are removed as well, and nobody is there to say so.
            for generation in (None, 1):
                path_of(name, generation).unlink()
            for ask in (reader.refresh, reader.list_sessions, lambda: reader.writer_alive):
                with pytest.raises(RegistryClosed):
                    ask()
