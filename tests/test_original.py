"""The Elixir original, behaviour by behaviour, and its faults: docs/migrating.md in tests."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import pickle
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from agents import SLEEP, error_of, is_running, python
from host import Script, exit_code, forked, run_script
from support import wait_until

from jidoka_shm import (
    AsyncSessionClient,
    IllegalTransition,
    RegistryFull,
    Session,
    SessionClient,
    SessionExists,
    SessionManager,
    SessionNotFound,
    SessionNotStarted,
    SessionReader,
    SessionStatus,
    SessionSupervisor,
    WriterAlreadyRunning,
    WriterUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jidoka_shm.reads import SessionReads

INITIALIZING, ACTIVE, IDLE, TERMINATING, TERMINATED = SessionStatus

#: A writer in a process of its own, with one active session. It prints its id, and lives.
WRITER = """
    import sys
    from jidoka_shm import SessionManager
    manager = SessionManager(sys.argv[1], cleanup_delay=3600, listen=True)
    sid = manager.create_session({"project": "jidoka"})
    manager.update_session(sid, status="active")
    print(sid, flush=True)
    sys.stdin.read()
    manager.close()
"""


@pytest.fixture
def manager(name: str) -> Iterator[SessionManager]:
    """A manager as it is without options, which answers clients."""
    with SessionManager(name, listen=True) as made:
        yield made
        made.unlink()


@pytest.fixture
def keeping(name: str) -> Iterator[SessionManager]:
    """A manager in whose registry what is terminated stays visible."""
    with SessionManager(name, cleanup_delay=3600, listen=True) as made:
        yield made
        made.unlink()


def _is_gone(handle: SessionReads, sid: UUID) -> bool:
    return sid not in handle


# ---------------------------------------------------------------------------- behaviours


def test_b1_starting_the_manager_makes_its_registry(name: str) -> None:
    with SessionManager(name) as manager:
        assert manager.recovery is None
        with SessionReader(name) as reader:
            assert reader.list_sessions() == []
        with pytest.raises(WriterAlreadyRunning):
            SessionManager(name)
        manager.unlink()


def test_b2_an_id_is_unique_and_is_found_in_the_originals_spelling(manager: SessionManager) -> None:
    sids = {manager.create_session() for _ in range(100)}
    assert len(sids) == 100
    assert {(type(sid), sid.version) for sid in sids} == {(UUID, 4)}
    sid = sids.pop()
    for spelt in (sid, str(sid), f"session_{sid}"):
        assert manager.get_session_info(spelt).session_id == sid


def test_b3_a_session_has_the_originals_fields_and_three_more(manager: SessionManager) -> None:
    sid = manager.create_session({"a": 1}, {"model": "gpt-4"}, pid=os.getpid(), ttl=60)
    session = manager[sid]
    assert (session.session_id, session.pid, session.status) == (sid, os.getpid(), "initializing")
    assert (session.metadata, session.llm_config) == ({"a": 1}, {"model": "gpt-4"})
    assert isinstance(session.created_at, datetime)
    assert session.updated_at == session.created_at
    assert session.expires_at is not None
    assert session.expires_at > session.created_at
    assert (session.error, session.version) == (None, manager.version)


def test_b4_maps_are_kept_as_given_and_empty_where_not(manager: SessionManager) -> None:
    maps = {"project": "jidoka", "nested": {"list": [1, 2.5, None, True, "ü"], "empty": {}}}
    session = manager[manager.create_session(metadata=maps, llm_config=maps)]
    assert (session.metadata, session.llm_config) == (maps, maps)
    session = manager[manager.create_session()]
    assert (session.metadata, session.llm_config) == ({}, {})


def test_b5_a_session_is_initializing_then_active(manager: SessionManager) -> None:
    sid = manager.create_session()
    assert manager.get_session_status(sid) is INITIALIZING
    assert manager.update_session(sid, status="active").status is ACTIVE
    with SessionSupervisor(manager) as supervisor:
        started = supervisor.start_session(SLEEP, ready=False)
        assert manager.get_session_status(started) is ACTIVE


def test_b6_terminate_returns_nothing_and_an_unknown_id_is_not_found(
    manager: SessionManager,
) -> None:
    assert manager.terminate_session(manager.create_session()) is None
    with pytest.raises(SessionNotFound):
        manager.terminate_session(uuid4())
    with pytest.raises(KeyError):
        manager.terminate_session(f"session_{uuid4()}")


def test_b7_a_terminated_session_is_visible_for_a_moment_and_then_gone(name: str) -> None:
    with SessionManager(name, cleanup_delay=3600) as slow:
        sid = slow.create_session()
        slow.terminate_session(sid)
        assert slow.get_session_status(sid) is TERMINATED
        slow.unlink()
    with SessionManager(name, cleanup_delay=0) as quick:
        sid = quick.create_session()
        quick.terminate_session(sid)
        wait_until(lambda: _is_gone(quick, sid))
        with pytest.raises(SessionNotFound):
            quick.get_session_info(sid)
        quick.unlink()
    assert _default_delay() == 0.05


def _default_delay() -> float:
    delay: float = SessionManager.__init__.__kwdefaults__["cleanup_delay"]
    return delay


def test_b8_a_list_leaves_out_the_terminated(keeping: SessionManager) -> None:
    assert keeping.list_sessions() == []
    kept, ended = keeping.create_session(), keeping.create_session()
    keeping.terminate_session(ended)
    assert [session.session_id for session in keeping.list_sessions()] == [kept]
    assert [session.session_id for session in keeping.list_sessions("terminated")] == [ended]


def test_b9_a_pid_is_a_number_or_none_or_not_found(keeping: SessionManager) -> None:
    sid, owned = keeping.create_session(), keeping.create_session(pid=os.getpid())
    assert keeping.get_session_pid(sid) is None
    assert keeping.get_session_pid(owned) == os.getpid()
    keeping.terminate_session(owned)
    for gone in (owned, uuid4()):
        with pytest.raises(SessionNotFound):
            keeping.get_session_pid(gone)


def test_b10_the_whole_record_is_there_while_terminated_too(keeping: SessionManager) -> None:
    sid = keeping.create_session({"a": 1})
    keeping.terminate_session(sid, error="it failed")
    session = keeping.get_session_info(sid)
    assert (session.status, session.error, session.metadata) == (TERMINATED, "it failed", {"a": 1})
    with pytest.raises(SessionNotFound):
        keeping.get_session_info(uuid4())


def test_b11_twenty_creates_at_once_all_succeed(manager: SessionManager, name: str) -> None:
    barrier = threading.Barrier(20)

    def create(_: int) -> UUID:
        barrier.wait()
        return manager.create_session()

    with ThreadPoolExecutor(20) as pool:
        sids = set(pool.map(create, range(20)))
    assert len(sids) == 20
    # And from processes of their own.
    code = """
        import sys
        from jidoka_shm import SessionClient
        with SessionClient(sys.argv[1]) as client:
            print("ready", flush=True)
            sys.stdin.readline()
            print(client.create_session())
    """
    scripts = [Script(code, name) for _ in range(4)]
    for script in scripts:
        script.line()
    for script in scripts:
        script.go()
    sids |= {UUID(script.end().strip()) for script in scripts}
    assert len(sids) == 24
    assert {session.session_id for session in manager.list_sessions()} == sids


def test_b12_calls_of_every_kind_at_once_all_complete(keeping: SessionManager, name: str) -> None:
    def call() -> None:
        with SessionClient(name) as client:
            for _ in range(25):
                sid = client.create_session({"a": 1})
                assert client.get_session_info(sid).metadata == {"a": 1}
                assert sid in {session.session_id for session in client.list_sessions()}
                client.terminate_session(sid)
                assert client.get_session_status(sid) is TERMINATED

    children = [forked(call) for _ in range(4)]
    assert [exit_code(child) for child in children] == [0] * 4
    assert keeping.count_by_status()[TERMINATED] == 100


def test_b13_the_registry_is_read_without_its_manager(name: str) -> None:
    with Script(WRITER, name) as writer:
        sid = UUID(writer.line())
        with SessionReader(name) as reader:
            assert reader[sid].metadata == {"project": "jidoka"}
            writer.kill()
            assert (reader[sid].status, reader.writer_alive) == (ACTIVE, False)
            assert [session.session_id for session in reader.list_sessions()] == [sid]
    with SessionManager(name) as successor:
        successor.unlink()


#: The original's own table, and the moves by which a crashed session is cleaned here.
_MOVES = {
    INITIALIZING: {ACTIVE, TERMINATED, TERMINATING},
    ACTIVE: {IDLE, TERMINATING, TERMINATED},
    IDLE: {ACTIVE, TERMINATING, TERMINATED},
    TERMINATING: {TERMINATED},
}
_WAYS = {INITIALIZING: [], ACTIVE: [ACTIVE], IDLE: [ACTIVE, IDLE], TERMINATING: [TERMINATING]}


@pytest.mark.parametrize("current", _MOVES)
def test_b14_moves_are_checked(keeping: SessionManager, current: SessionStatus) -> None:
    for wanted in SessionStatus:
        sid = keeping.create_session()
        for step in _WAYS[current]:
            keeping.update_session(sid, status=step)
        if wanted is current or wanted in _MOVES[current]:
            assert keeping.update_session(sid, status=wanted).status is wanted
        else:
            with pytest.raises(IllegalTransition):
                keeping.update_session(sid, status=wanted)
            assert keeping.get_session_status(sid) is current


def test_b15_times_are_utc_and_move_with_each_change(keeping: SessionManager) -> None:
    begin = datetime.now(UTC).replace(microsecond=0)
    sid = keeping.create_session()
    created = keeping[sid]
    assert created.created_at.tzinfo is UTC
    assert begin <= created.created_at <= datetime.now(UTC)
    wait_until(lambda: datetime.now(UTC) > created.updated_at)
    updated = keeping.update_session(sid, status="active")
    assert updated.created_at == created.created_at
    assert updated.updated_at > created.updated_at
    wait_until(lambda: datetime.now(UTC) > updated.updated_at)
    keeping.terminate_session(sid)
    assert keeping[sid].updated_at > updated.updated_at


def test_b16_a_session_is_written_and_read_back(manager: SessionManager) -> None:
    sid = manager.create_session({"a": [1]}, {"b": None}, pid=os.getpid(), ttl=60)
    session = manager.update_session(sid, status="active")
    text = json.dumps(session.to_dict())
    assert Session.make(**json.loads(text)) == session
    assert pickle.loads(pickle.dumps(session)) == session  # noqa: S301 - made in this line


def test_b17_a_session_has_a_process_that_is_started_watched_and_stopped_with_it(
    keeping: SessionManager,
) -> None:
    with SessionSupervisor(keeping) as supervisor:
        stopped, killed = (supervisor.start_session(SLEEP, ready=False) for _ in range(2))
        pid, other = keeping.get_session_pid(stopped), keeping.get_session_pid(killed)
        assert pid is not None
        assert other is not None
        supervisor.stop_session(stopped)
        assert (is_running(pid), keeping.get_session_status(stopped)) == (False, TERMINATED)
        os.kill(other, signal.SIGKILL)
        assert (
            error_of(keeping, killed) == f"owner process {other} was killed by signal 9 (SIGKILL)"
        )


def test_b18_a_client_has_the_same_calls_anywhere(keeping: SessionManager, name: str) -> None:
    code = """
        import sys
        from jidoka_shm import SessionClient, SessionNotFound
        with SessionClient(sys.argv[1]) as client:
            sid = client.create_session(metadata={"a": 1}, llm_config={"b": 2})
            client.update_session(sid, status="active")
            info = client.get_session_info(sid)
            assert (info.status, info.metadata, info.llm_config) == ("active", {"a": 1}, {"b": 2})
            assert client.get_session_pid(sid) is None
            assert [session.session_id for session in client.list_sessions()] == [sid]
            client.terminate_session(sid)
            try:
                client.get_session_pid(sid)
            except SessionNotFound:
                print(sid)
    """
    sid = UUID(run_script(code, name).strip())
    assert keeping.get_session_status(sid) is TERMINATED


def test_b18_an_async_client_has_the_same_calls_anywhere(
    keeping: SessionManager, name: str
) -> None:
    async def call() -> UUID:
        async with AsyncSessionClient(name) as client:
            sid = await client.create_session(metadata={"a": 1}, llm_config={"b": 2})
            await client.update_session(sid, status="active")
            info = client.get_session_info(sid)
            assert (info.status, info.metadata, info.llm_config) == ("active", {"a": 1}, {"b": 2})
            assert client.get_session_pid(sid) is None
            assert [session.session_id for session in client.list_sessions()] == [sid]
            await client.terminate_session(sid)
            with pytest.raises(SessionNotFound):
                client.get_session_pid(sid)
            return sid

    assert keeping.get_session_status(asyncio.run(call())) is TERMINATED


def test_b19_what_becomes_of_sessions_is_told_to_all_and_of_each(
    keeping: SessionManager, name: str
) -> None:
    with SessionReader(name) as one, SessionReader(name) as other:
        listening = [each.changes(timeout=60) for each in (one, other)]
        sid = keeping.create_session()
        seen = [[next(each)] for each in listening]
        keeping.update_session(sid, status="active")
        for each, got in zip(listening, seen, strict=True):
            got.append(next(each))
        keeping.terminate_session(sid)
        for each, got in zip(listening, seen, strict=True):
            got.append(next(each))
    expected = [
        (sid, "created", "initializing"),
        (sid, "updated", "active"),
        (sid, "terminated", "terminated"),
    ]
    for got in seen:
        assert [(one.session.session_id, one.kind, one.session.status) for one in got] == expected


# ---------------------------------------------------------------------------- faults


@pytest.mark.parametrize("status", _WAYS)
def test_fault_a_crashed_session_stays_listed(
    keeping: SessionManager, status: SessionStatus
) -> None:
    child = forked(functools.partial(signal.pause))
    sid = keeping.create_session(pid=child)
    for step in _WAYS[status]:
        keeping.update_session(sid, status=step)
    os.kill(child, signal.SIGKILL)
    # Whatever it was: the original's table forbids the move from active.
    assert error_of(keeping, sid) == f"owner process {child} was killed by signal 9 (SIGKILL)"
    assert keeping.list_sessions() == []
    exit_code(child)


def test_fault_reads_wait_for_a_stop(keeping: SessionManager, name: str) -> None:
    stubborn = python(
        "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "os.write(int(os.environ['JIDOKA_READY_FD'].split(':')[0]), b'r'); signal.pause()"
    )
    with SessionSupervisor(keeping) as supervisor, SessionReader(name) as reader:
        sid = supervisor.start_session(stubborn)
        stopping = threading.Thread(
            target=supervisor.stop_session, args=[sid], kwargs={"timeout": 99}
        )
        stopping.start()
        wait_until(lambda: reader.get_session_status(sid) is TERMINATING)
        # All that the original's one process would have kept waiting.
        assert reader.get_session_info(sid).status is TERMINATING
        assert len(reader.list_sessions()) == 1
        other = keeping.create_session()
        keeping.terminate_session(other)
        with SessionClient(name) as client:
            client.terminate_session(client.create_session())
        assert stopping.is_alive()
        os.kill(reader.get_session_pid(sid) or 0, signal.SIGKILL)
        stopping.join()


def test_fault_a_create_that_fails_leaves_an_entry_for_ever(name: str) -> None:
    with SessionManager(name, capacity=1, grow=False, cleanup_delay=0) as manager:
        sid = manager.create_session()
        for failing in (
            manager.create_session,
            lambda: manager.create_session(session_id=sid),
        ):
            with pytest.raises((RegistryFull, SessionExists)):
                failing()
        assert list(manager) == [sid]
        manager.terminate_session(sid)
        wait_until(lambda: _is_gone(manager, sid))
        with SessionSupervisor(manager) as supervisor, pytest.raises(SessionNotStarted):
            supervisor.start_session(["false"])
        wait_until(lambda: list(manager) == [])
        manager.unlink()


def test_fault_the_table_dies_with_its_process(name: str) -> None:
    with Script(WRITER, name) as writer:
        sid = UUID(writer.line())
        writer.kill()
    with SessionClient(name) as client, pytest.raises(WriterUnavailable):
        client.terminate_session(sid)
    with SessionManager(name) as successor:
        assert successor.recovery is not None
        assert (successor.recovery.kept, successor[sid].status) == (1, ACTIVE)
        successor.unlink()


def test_fault_a_second_terminate_is_an_invalid_transition(keeping: SessionManager) -> None:
    sid = keeping.create_session()
    keeping.terminate_session(sid, error="the first")
    assert keeping.terminate_session(sid, error="the second") is None
    assert keeping[sid].error == "the first"


def test_fault_noticing_a_death_scans_the_whole_table(
    keeping: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(500):
        keeping.create_session()
    child = forked(functools.partial(signal.pause))
    sid = keeping.create_session(pid=child)
    table = keeping._registry.table
    looked: list[object] = []
    look_up = table.look_up

    def count(key: UUID) -> object:
        looked.append(key)
        return look_up(key)

    monkeypatch.setattr(table, "look_up", count)
    with SessionReader(keeping.name, cache_size=0) as reader:
        os.kill(child, signal.SIGKILL)
        exit_code(child)
        error_of(reader, sid)
    assert looked == [sid]
