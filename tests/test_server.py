"""The service over real sockets: what a client does wrong is its own trouble and nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import itertools
import logging
import os
import selectors
import shutil
import signal
import socket
import stat
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
import wire
from host import Script, exit_code, forked, in_child, path_of, stop_at_line
from living import Living, descriptors_left, next_descriptor, pidfds
from support import wait_until
from wire import Wire

from jidoka_shm import SessionManager, SessionReader, accepted, descriptors, manager, server
from jidoka_shm import endpoint as endpoint_module
from jidoka_shm import reactor as reactor_module
from jidoka_shm.errors import DirectoryForbidden, RegistryClosed
from jidoka_shm.logs import Seldom
from jidoka_shm.protocol import MAX_FRAME, Done, Failed, Hello, Refused, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jidoka_shm import Session

KEY = UUID(int=1)


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of its own, in which nothing is left."""
    made = Path(tempfile.mkdtemp(prefix="jidoka-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(made))
    yield made
    left = [path.name for path in made.rglob("*.sock")]
    shutil.rmtree(made)
    assert left == []


@pytest.fixture
def service(name: str) -> Iterator[SessionManager]:
    """A manager that listens, with one session."""
    with SessionManager(name, capacity=64, listen=True) as made:
        made.create_session(session_id=KEY)
        yield made
        made.unlink()


def _clients(service: SessionManager) -> int:
    return len(service._serving._server._clients)


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _heartbeats(count: int) -> bytes:
    return b"".join(encode(wire.update(KEY)) for _ in range(count))


def _deafen(service: SessionManager, client: Wire) -> None:
    """Send for a service's one client, which reads nothing, until no more is taken from it."""
    client.socket.settimeout(0)
    connection = next(iter(service._serving._server._clients))
    piece = _heartbeats(200)
    while not connection._is_full:
        with contextlib.suppress(BlockingIOError):
            client.socket.send(piece)


def _refusal(client: Wire) -> str:
    """Return why a client is refused, once the connection has ended."""
    *_, last = client.rest()
    assert isinstance(last, Refused), last
    return last.reason


# ---------------------------------------------------------------------------- what works


def test_changes_over_the_socket_are_seen_by_readers(service: SessionManager, name: str) -> None:
    new = UUID(int=2)
    with Wire(service) as client, SessionReader(name) as reader:
        assert client.hello == Hello(1, service._instance.bytes)
        assert client.ask(wire.create(new, maps=({"a": 1}, {}))) == Done(b"")
        assert reader.get_session_info(new).metadata == {"a": 1}
        assert isinstance(client.ask(wire.update(new, status="active")), Done)
        assert reader.get_session_info(new).status == "active"
        assert client.ask(wire.terminate(new, "done")) == Done(b"")
        assert reader.get_session_info(new).error == "done"
        assert isinstance(client.ask(wire.update(new)), Failed)


def test_a_thousand_requests_in_one_piece_are_answered_in_order(service: SessionManager) -> None:
    with Wire(service) as client:
        client.send(*[wire.update(KEY, metadata={"n": number}) for number in range(1000)])
        replies = [client.reply() for _ in range(1000)]
        versions = [int.from_bytes(reply.record[16:24], "little") for reply in replies]
        assert versions == list(range(versions[0], versions[0] + 1000))
        assert service.get_session_info(KEY).metadata == {"n": 999}


def test_a_resize_comes_after_what_came_before_it_and_before_what_came_after(
    service: SessionManager, name: str
) -> None:
    """In one piece: each request finds the table that those before it made."""
    new = [UUID(int=number) for number in (2, 3)]
    with Wire(service) as client, SessionReader(name) as reader:
        sizes = [wire.resize(1), wire.resize(1), wire.resize(5, 256)]
        client.send(sizes[0], wire.create(new[0]), *sizes[1:], wire.create(new[1]))
        replies = [client.reply() for _ in range(5)]
        stats = reader.stats()
        # It grew for the first session, and had room for the second.
        assert (stats.capacity, stats.slot_size, stats.generation) == (5, 256, 4)
        assert set(reader) == {KEY, *new}
    full = Failed("RegistryFull", [2, 1, "slots"])
    assert replies == [Done(b""), Done(b""), full, Done(b""), Done(b"")]


def test_what_waits_for_its_turn_is_not_overwritten_by_what_others_send(
    service: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = threading.Event()
    # The loop waits in the first answer until both clients have sent all.
    answer = service._serving._server.answer

    def hold(request: object) -> object:
        sent.wait()
        return answer(request)

    monkeypatch.setattr(service._serving._server, "answer", hold)
    other = service.create_session()
    with Wire(service) as one, Wire(service) as two:
        for client, key in ((one, KEY), (two, other)):
            client.send(*[wire.update(key, metadata={"n": number}) for number in range(1000)])
        sent.set()
        for client, key in ((one, KEY), (two, other)):
            keys = {client.reply().record[:16] for _ in range(1000)}
            assert keys == {key.bytes}
            assert service.get_session_info(key).metadata == {"n": 999}


def test_a_deadline_is_kept_beside_clients(service: SessionManager) -> None:
    with Wire(service) as client:
        client.ask(wire.terminate(KEY))
        wait_until(lambda: service.get(KEY) is None)


def test_a_client_that_pipelines_lets_the_others_have_their_turns(
    service: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[int] = []
    turn = accepted.Accepted._turn

    def note(connection: accepted.Accepted) -> None:
        turn(connection)
        served.append(id(connection))

    pause = threading.Event()
    # The loop waits in the first answer until both clients have sent all.
    answer = service._serving._server.answer

    def hold(request: object) -> object:
        pause.wait()
        return answer(request)

    monkeypatch.setattr(accepted.Accepted, "_turn", note)
    service._serving._server.answer = hold
    with Wire(service) as greedy, Wire(service) as modest:
        greedy.send(_heartbeats(1500))
        modest.send(_heartbeats(1))
        pause.set()
        assert isinstance(modest.reply(), Done)
        for _ in range(1500):
            assert isinstance(greedy.reply(), Done)
        # One request each turn at least, and no more than two turns of the other before its own.
        first = next(at for at, who in enumerate(served) if who != served[0])
        assert first <= 2
        # Its reply was written in its own turn, before all these of the other. (When this thread
        # gets to read it says nothing: the loop may be done with all by then.)
        assert served[first + 1 :].count(served[0]) >= 9


def test_no_turn_carries_out_more_than_its_share(
    service: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, inside = [], [0]
    turn, answer = accepted.Accepted._turn, service._serving._server.answer

    def count(request: object) -> object:
        inside[0] += 1
        return answer(request)

    def note(connection: accepted.Accepted) -> None:
        inside[0] = 0
        turn(connection)
        counts.append(inside[0])

    monkeypatch.setattr(accepted.Accepted, "_turn", note)
    service._serving._server.answer = count
    with Wire(service) as client:
        client.send(_heartbeats(1000))
        for _ in range(1000):
            client.reply()
    wait_until(lambda: sum(counts) == 1000)
    assert max(counts) <= accepted._TURN


class Pipe:
    """A transport that a test drives, and what was written to it."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def is_closing(self) -> bool:
        return False

    def is_reading(self) -> bool:
        return True

    def pause_reading(self) -> None:
        """Nothing more comes anyway."""


class Answering:
    """The part of a server that a connection asks."""

    def answer(self, request: object) -> Done:
        return Done(b"")


def test_a_client_that_becomes_ready_again_does_not_get_a_turn_more() -> None:
    async def drive() -> None:
        connection, pipe = accepted.Accepted(Answering()), Pipe()
        connection._transport = pipe
        connection.take(_heartbeats(3 * accepted._TURN))
        assert len(pipe.writes) == 1
        # Its next turn is on its way, so this is not one.
        connection.pause_writing()
        connection.resume_writing()
        assert len(pipe.writes) == 1
        # Where none is, since it came while the client was not ready, this is.
        connection.pause_writing()
        connection._turn()
        assert len(pipe.writes) == 1
        connection.resume_writing()
        assert len(pipe.writes) == 2

    asyncio.run(drive())


@pytest.mark.parametrize("count", [1, 3])
def test_a_reply_that_fills_a_turn_alone_is_given_once(name: str, count: int) -> None:
    with SessionManager(name, capacity=1, slot_size=1 << 20, listen=True) as service:
        service.create_session({"fill": "x" * (1 << 19)}, session_id=KEY)
        before = service.get_session_info(KEY).version
        with Wire(service) as client:
            client.send(_heartbeats(count))
            client.socket.shutdown(socket.SHUT_WR)
            assert [type(reply) for reply in client.rest()] == [Done] * count
        assert service.get_session_info(KEY).version == before + count
        service.unlink()


# ---------------------------------------------------------------------------- what clients do wrong


@pytest.mark.parametrize(
    ("junk", "reason"),
    [
        ((MAX_FRAME + 1).to_bytes(4, "little"), "is the limit"),
        (b"GET / HTTP/1.1\r\n\r\n", "is the limit"),
        (b"\xff" * 100, "is the limit"),
        (wire.frame(b""), "not a message of this protocol"),
        (wire.frame(b"\xc1" * 10), "not a message of this protocol"),
        (wire.frame(b"\x91" * 100_000), "not a message of this protocol"),
        (encode(Done(b"")), "not a message of this protocol"),
    ],
)
def test_garbage_ends_its_own_connection_with_the_reason(
    service: SessionManager, junk: bytes, reason: str
) -> None:
    with Wire(service) as other, Wire(service) as client:
        client.send(wire.update(KEY), junk, wire.terminate(KEY))
        assert isinstance(client.reply(), Done)
        assert reason in _refusal(client)
        # What stood behind it was not carried out.
        assert isinstance(other.ask(wire.update(KEY)), Done)
    wait_until(lambda: _clients(service) == 0)


def test_a_half_frame_and_silence_keep_nobody_waiting(service: SessionManager) -> None:
    with Wire(service) as silent, Wire(service) as other:
        silent.send(encode(wire.update(KEY))[:-1])
        for _ in range(10):
            assert isinstance(other.ask(wire.update(KEY)), Done)
        silent.socket.shutdown(socket.SHUT_WR)
        assert silent.rest() == []


def test_a_frame_that_comes_byte_by_byte_is_answered(service: SessionManager) -> None:
    with Wire(service) as slow, Wire(service) as other:
        for byte in encode(wire.update(KEY)):
            slow.send(bytes([byte]))
            assert isinstance(other.ask(wire.update(KEY)), Done)
        assert isinstance(slow.reply(), Done)


def test_a_half_closed_client_gets_all_its_replies(service: SessionManager) -> None:
    with Wire(service) as client:
        client.send(_heartbeats(1000))
        client.socket.shutdown(socket.SHUT_WR)
        replies = client.rest()
        assert [type(reply) for reply in replies] == [Done] * 1000


def test_a_client_that_vanishes_in_mid_request_disturbs_nobody(service: SessionManager) -> None:
    before = service.get_session_info(KEY).version
    for cut in (1, 3, 4, 10, -1):
        with Wire(service) as client:
            client.send(encode(wire.update(KEY))[:cut])
    for _ in range(20):
        with Wire(service) as client:
            client.send(_heartbeats(300))
    wait_until(lambda: _clients(service) == 0)
    with Wire(service) as client:
        assert isinstance(client.ask(wire.update(KEY)), Done)
    assert before < service.get_session_info(KEY).version <= before + 20 * 300 + 1


def test_a_client_that_never_reads_costs_a_bounded_memory(service: SessionManager) -> None:
    piece = _heartbeats(1000)
    tracemalloc.start()
    try:
        with Wire(service) as other, contextlib.ExitStack() as later:
            first = set(service._serving._server._clients)
            deaf = later.enter_context(Wire(service))
            deaf.socket.settimeout(0)
            left = memoryview(piece * 100)
            before = tracemalloc.get_traced_memory()[0]
            (connection,) = service._serving._server._clients - first
            blocked = 0
            # In each round trip of another client the loop also takes what it would take of this.
            while left and blocked < 50:
                try:
                    left = left[deaf.socket.send(left) :]
                    blocked = 0
                except BlockingIOError:
                    assert isinstance(other.ask(wire.update(KEY)), Done)
                    blocked += 1
            assert connection._is_full
            assert left, "it took 100,000 requests from a client that reads nothing"
            assert connection._transport.get_write_buffer_size() < 2 * accepted._HIGH
            assert tracemalloc.get_traced_memory()[0] - before < 4 * accepted._HIGH
            for _ in range(10):
                assert isinstance(other.ask(wire.update(KEY)), Done)
    finally:
        tracemalloc.stop()


def _largest(key: UUID) -> bytes:
    """Return a request in a frame of the largest size that there may be."""
    few = len(encode(wire.create(key, maps=({"a": "x" * 70_000}, {})))) - 4 - 70_000
    found = encode(wire.create(key, maps=({"a": "x" * (MAX_FRAME - few)}, {})))
    assert len(found) == 4 + MAX_FRAME
    return found


def test_a_frame_of_the_largest_size_is_answered(service: SessionManager) -> None:
    with Wire(service) as client:
        client.send(_largest(UUID(int=2)) + encode(wire.update(KEY)))
        reply = client.reply()
        assert isinstance(reply, Failed)
        assert (reply.error, reply.facts[0] > MAX_FRAME - 100) == ("RecordTooLarge", True)
        assert isinstance(client.reply(), Done)


@pytest.mark.parametrize("missing", [1, MAX_FRAME // 2])
def test_half_a_frame_costs_what_it_holds_for_as_long_as_it_lies_there(
    service: SessionManager, missing: int
) -> None:
    part = _largest(UUID(int=2))[:-missing]
    with Wire(service) as other, contextlib.ExitStack() as later:
        tracemalloc.start()
        later.callback(tracemalloc.stop)
        before = tracemalloc.get_traced_memory()[0]
        slow = [later.enter_context(Wire(service)) for _ in range(4)]
        for each in slow:
            each.send(part)
        buffers = [client._buffer for client in service._serving._server._clients]
        wait_until(lambda: sum(map(len, buffers)) == 4 * len(part))
        # A growing bytearray takes an eighth more than it holds.
        assert tracemalloc.get_traced_memory()[0] - before < 4 * len(part) * 1.2 + (1 << 20)
        assert isinstance(other.ask(wire.update(KEY)), Done)
        later.close()
        wait_until(lambda: _clients(service) == 1)


def test_a_client_that_reads_late_gets_every_reply(service: SessionManager) -> None:
    count = 6000
    with Wire(service) as late:
        writer = threading.Thread(target=late.send, args=(_heartbeats(count),))
        writer.start()
        wait_until(lambda: any(c._is_full for c in service._serving._server._clients))
        versions = [int.from_bytes(late.reply().record[16:24], "little") for _ in range(count)]
        writer.join()
    assert versions == list(range(versions[0], versions[0] + count))


def test_a_request_whose_answer_raises_ends_its_connection_and_no_other(
    service: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    answer = service._serving._server.answer

    def fail(request: object) -> object:
        if request.session_id == bytes(16):
            raise MemoryError
        return answer(request)

    service._serving._server.answer = fail
    bad = encode(wire.terminate(UUID(int=0)))
    with Wire(service) as other:
        for before in (1, accepted._TURN + 1):
            with Wire(service) as client:
                client.send(_heartbeats(before) + bad + _heartbeats(1))
                *replies, last = client.rest()
                assert [type(each) for each in replies] == [Done] * before
                assert last == Refused("this service failed, and its log says how")
        assert isinstance(other.ask(wire.update(KEY)), Done)
    # Once, however often the client comes back with it.
    (record,) = caplog.records
    assert "MemoryError" in caplog.text
    assert record.registry == service.name
    del record
    # It holds the frames, and they the manager.
    caplog.clear()


def test_a_fault_within_a_commit_is_no_answer_and_the_others_notice_nothing(
    service: SessionManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit = service._registry.table.replace

    def fail(entry: int, session: Session) -> Session:
        if session.session_id == bad:
            raise ValueError
        return commit(entry, session)

    bad = service.create_session()
    monkeypatch.setattr(service._registry.table, "replace", fail)
    with Wire(service) as other:
        for _ in range(20):
            with Wire(service) as client:
                assert "this service failed" in _refusal(client.send(wire.update(bad)))
            assert isinstance(other.ask(wire.update(KEY)), Done)
    (record,) = caplog.records
    assert (record.registry, record.client_pid) == (service.name, os.getpid())
    assert "ValueError" in caplog.text
    del record
    caplog.clear()


def test_what_fails_beside_all_requests_is_in_asyncios_log(
    service: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError

    service._reactor._loop.call_soon_threadsafe(fail)
    wait_until(lambda: caplog.records)
    (record,) = caplog.records
    assert (record.name, "ValueError" in caplog.text) == ("asyncio", True)
    del record
    caplog.clear()


# ---------------------------------------------------------------------------- who may come


def test_a_client_too_many_is_refused_until_another_leaves(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with SessionManager(name, capacity=4, listen=True) as service:
        clients: list[Wire] = []
        try:
            clients.extend(Wire(service) for _ in range(manager.MAX_CLIENTS))
            for _ in range(100):
                with Wire(service, greeted=False) as extra:
                    assert "512 clients: close some, or give it a larger" in _refusal(extra)
            assert len(caplog.records) == 1
            clients.pop().__exit__()
            wait_until(lambda: _clients(service) == manager.MAX_CLIENTS - 1)
            clients.append(Wire(service))
        finally:
            for client in clients:
                client.__exit__()
        service.unlink()


def _leave_room(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the next so many descriptors be the last that clients may have."""
    room = next_descriptor(after=count)
    monkeypatch.setattr(descriptors, "room", lambda: room)


def test_descriptors_are_left_to_the_rest_of_the_process(
    service: SessionManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Two for a client that is here too.
    for room in (2, 3):
        _leave_room(monkeypatch, room)
        with Wire(service) as first, Wire(service, greeted=False) as second:
            assert "no descriptor" in _refusal(second)
            assert isinstance(first.ask(wire.update(KEY)), Done)
        wait_until(lambda: _clients(service) == 0)
    (record,) = caplog.records
    assert "no descriptor" in record.getMessage()
    _leave_room(monkeypatch, 0)
    with Wire(service, greeted=False) as client:
        assert "no descriptor" in _refusal(client)


def test_owners_and_clients_share_the_descriptors(
    service: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Living() as one, Living() as other:
        before = pidfds()
        sids = [service.create_session(pid=each.pid) for each in (one, other)]
        wait_until(lambda: len(service._watches._descriptors) == 2)
        assert pidfds() == before + 2
        _leave_room(monkeypatch, 2)
        with Wire(service) as first:
            with Wire(service, greeted=False) as second:
                assert "no descriptor" in _refusal(second)
            for sid in sids:
                service.update_session(sid, pid=None)
            wait_until(lambda: not service._watches._descriptors)
            with Wire(service) as second:
                assert isinstance(second.ask(wire.update(KEY)), Done)
            assert isinstance(first.ask(wire.update(KEY)), Done)


def test_without_descriptors_clients_wait_and_the_log_has_one_line(name: str) -> None:
    """The process has no descriptor left at all: accept fails until there are some again."""
    code = """
        import logging, os, resource, socket, sys, time
        from jidoka_shm import SessionManager
        logging.basicConfig(stream=sys.stdout, format="%(name)s %(message)s", level="WARNING")
        with SessionManager(sys.argv[1], capacity=4, listen=True) as m:
            path = m._serving._endpoint.path
            spare = os.open("/dev/null", os.O_RDONLY)
            clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            used = len(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            for client in clients:
                client.connect(path)
            seen = m._serving._server.seldom
            while not seen._last:
                time.sleep(0.001)
            m.create_session()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for client in clients:
                client.settimeout(30)
                print(len(client.recv(100)), flush=True)
                client.close()
            m.unlink()
    """
    with Script(code, name) as script:
        lines = script.end().splitlines()
    assert lines[1:] == ["30"] * 3
    assert lines[0].startswith("jidoka_shm ")
    assert "accept" in lines[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_and_changes_nothing(
    service: SessionManager, runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(wire.path_of_service(service))
    # The modes would keep it out before; what is tried here is the check behind them.
    for each in (runtime, path.parent, path):
        each.chmod(0o777)

    def intrude() -> None:
        os.setresuid(65_534, 65_534, 65_534)
        for _ in range(5):
            with Wire(str(path), greeted=False) as client:
                with contextlib.suppress(BrokenPipeError):
                    client.send(wire.terminate(KEY))
                (reply,) = client.rest()
                assert isinstance(reply, Refused)
                assert "belongs to the user with uid 0" in reply.reason

    assert in_child(intrude) == 0
    assert service.get_session_info(KEY).status == "initializing"
    (record,) = caplog.records
    assert "of user 65534" in record.getMessage()


def test_a_peer_of_another_uid_is_refused(
    service: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    service._serving._server._uid += 1
    with Wire(service, greeted=False) as client:
        assert "belongs to the user" in _refusal(client)
    assert _clients(service) == 0
    (record,) = caplog.records
    assert record.getMessage().endswith(f"refused process {os.getpid()} of user {os.geteuid()}")


def test_the_log_says_once_what_strangers_repeat(
    service: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(50):
        with Wire(service) as client:
            assert "not a message" in _refusal(client.send(wire.frame(b"\x91\xa4evil")))
    (record,) = caplog.records
    assert record.getMessage() == (
        f"registry {service.name!r}: refused a client: not a message of this protocol: "
        "Invalid value 'evil' - at `$[0]`"
    )


def test_one_registrys_lines_keep_no_others_back(
    service: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    with SessionManager(f"{service.name}-2", capacity=4, listen=True) as other:
        for each in (service, other, service, other):
            with Wire(each) as client:
                _refusal(client.send(wire.frame(b"")))
        assert [record.registry for record in caplog.records] == [service.name, other.name]
        assert {record.client_pid for record in caplog.records} == {os.getpid()}
        other.unlink()


def test_at_debug_clients_and_refused_changes_are_told(
    service: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "jidoka_shm"), Wire(service) as client:
        assert isinstance(client.ask(wire.update(KEY)), Done)
        assert isinstance(client.ask(wire.update(UUID(int=7))), Failed)
        assert isinstance(client.ask(wire.resize(64)), Done)
        assert isinstance(client.ask(wire.resize(8, 100)), Failed)
        client.__exit__()
        wait_until(lambda: _clients(service) == 0)
    start, pid = f"registry {service.name!r}: process {os.getpid()}", os.getpid()
    assert [record.getMessage() for record in caplog.records] == [
        f"{start} is a client, one of 1",
        f"{start}: no update of session {UUID(int=7)}: SessionNotFound",
        f"{start}: no resize to 8 slots: ValueError",
        f"{start} left, clients: 0",
    ]
    assert {(record.registry, record.client_pid) for record in caplog.records} == {
        (service.name, pid)
    }


def test_without_debug_a_request_costs_nothing_for_it(service: SessionManager) -> None:
    with Wire(service):
        (connection,) = service._serving._server._clients
        assert connection._answer is service._serving._server.answer


def test_what_was_kept_back_is_counted_at_the_next_line(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    seldom = Seldom("one", clock=lambda: now[0])
    for moment in (0, 1, 59.9, 60, 61, 120):
        now[0] = moment
        seldom.warning("%s: it came from %s", moment)
        seldom.warning("%s: another")
    texts = [record.getMessage() for record in caplog.records if "it came" in record.getMessage()]
    assert texts == [
        "one: it came from 0",
        "one: it came from 60 (and 2 times before)",
        "one: it came from 120 (and 1 times before)",
    ]


# ---------------------------------------------------------------------------- the end


def test_what_was_received_at_the_close_is_answered(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    aborted: list[object] = []
    monkeypatch.setattr(accepted.Accepted, "abort", aborted.append)
    service = SessionManager(name, capacity=4, listen=True)
    service.create_session(session_id=KEY)
    before, received = service.get_session_info(KEY).version, threading.Event()
    answer, hold = service._serving._server.answer, threading.Event()

    def wait(request: object) -> object:
        received.set()
        hold.wait()
        return answer(request)

    service._serving._server.answer = wait
    with Wire(service) as client, Wire(service) as idle, SessionReader(name) as reader:
        client.send(_heartbeats(500))
        received.wait()
        closing = threading.Thread(target=service.close)
        closing.start()
        hold.set()
        assert [type(reply) for reply in client.rest()] == [Done] * 500
        assert idle.rest() == []
        closing.join()
        assert reader.get_session_info(KEY).version == before + 500
        assert not reader.writer_alive
    # Each connection ended when it was done, and not for want of patience.
    assert aborted == []
    SessionManager(name).unlink()


def test_a_client_that_reads_nothing_does_not_keep_a_manager_from_closing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_LAST", 0.01)
    service = SessionManager(name, capacity=4, listen=True)
    service.create_session(session_id=KEY)
    with Wire(service) as deaf:
        _deafen(service, deaf)
        service.unlink()


def test_a_close_without_descriptors_says_nothing_of_clients_that_were_to_come(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop tries again to accept them, when there is no socket any more."""
    monkeypatch.setattr(asyncio.constants, "ACCEPT_RETRY_DELAY", 0.2)
    monkeypatch.setattr(server, "_LAST", 0.5)
    service = SessionManager(name, capacity=4, listen=True)
    service.create_session(session_id=KEY)
    with Wire(service) as deaf, socket.socket(socket.AF_UNIX) as late:
        _deafen(service, deaf)
        with descriptors_left(0):
            late.connect(wire.path_of_service(service))
            wait_until(lambda: caplog.records)
            service.close()
    SessionManager(name).unlink()
    assert [record.name for record in caplog.records if record.levelno > logging.INFO] == [
        "jidoka_shm"
    ]
    assert "accept" in caplog.records[0].getMessage()


class Clock(selectors.DefaultSelector):
    """A loop's time, which passes at once instead of being waited for."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list:
        self.now += timeout or 0.0
        return super().select(0)


class Deaf:
    """A client that does not end before it is made to."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.ended: float | None = None

    def finish(self) -> None:
        """Let it have what is left."""

    def abort(self) -> None:
        self.ended = self._clock.now


def test_one_that_ends_late_gives_the_others_no_time_more() -> None:
    clock = Clock()
    loop = asyncio.SelectorEventLoop(clock)
    loop.time = lambda: clock.now
    ending = server.Server(
        "r", endpoint_module.Endpoint("r"), instance=bytes(16), answer=None, max_clients=2
    )
    late, deaf = Deaf(clock), Deaf(clock)
    ending._open = {late, deaf}
    loop.call_later(0.9 * server._LAST, ending.dismiss, late)
    loop.run_until_complete(ending.stop())
    loop.close()
    assert late.ended is None
    assert deaf.ended == pytest.approx(server._LAST)


def test_nobody_is_accepted_after_the_close(name: str) -> None:
    service = SessionManager(name, capacity=4, listen=True)
    path = wire.path_of_service(service)
    service.unlink()
    with pytest.raises((FileNotFoundError, ConnectionRefusedError)):
        Wire(path)


@pytest.mark.parametrize("listen", [True, False])
def test_the_control_says_where_a_living_service_listens(name: str, *, listen: bool) -> None:
    first = SessionManager(name, capacity=4, listen=True)
    control = first._own.control
    assert wire.path_of_service(first).endswith(".sock")
    first.close()
    with SessionManager(name, listen=listen) as second:
        path = wire.path_of_service(second)
        assert bool(path) == listen == bool(Path(path).is_socket())
        second.unlink()
    assert control._memory[256] == 0


def test_a_manager_that_nobody_uses_any_more_leaves_its_clients(name: str) -> None:
    gc.collect()
    threads, descriptors = threading.active_count(), _descriptors()
    service = SessionManager(name, capacity=4, listen=True)
    path = wire.path_of_service(service)
    with Wire(service) as client, Wire(service) as busy:
        busy.send(_heartbeats(10))
        del service
        gc.collect()
        assert client.rest() == []
        busy.rest()
    assert not Path(path).exists()
    wait_until(lambda: threading.active_count() == threads)
    gc.collect()
    assert _descriptors() <= descriptors
    SessionManager(name).unlink()


def test_unlinking_ends_with_every_client(service: SessionManager) -> None:
    with Wire(service) as client, Wire(service) as busy:
        busy.send(_heartbeats(300))
        service.unlink()
        assert client.rest() == []
        replies = busy.rest()
        assert {type(reply) for reply in replies} <= {Done}


def test_names_removed_by_hand_end_with_every_client(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = SessionManager(name, capacity=4, listen=True)
    service.create_session(session_id=KEY)
    path = Path(wire.path_of_service(service))
    with Wire(service) as client:
        path_of(name).unlink()
        path_of(name, 1).unlink()
        assert client.rest() == []
    wait_until(lambda: not path.exists())
    with pytest.raises(RegistryClosed):
        service.create_session()
    service.close()


def test_names_removed_by_hand_do_not_take_a_successors_socket(name: str) -> None:
    old = SessionManager(name, capacity=4, listen=True)
    path_of(name).unlink()
    path_of(name, 1).unlink()
    with SessionManager(name, capacity=4, listen=True) as new:
        old.close()
        with Wire(new) as client:
            assert client.hello.instance == new._instance.bytes
        new.unlink()


def test_threads_may_close_at_once_beside_clients(name: str) -> None:
    for _ in range(5):
        service = SessionManager(name, capacity=4, listen=True)
        with Wire(service) as client:
            client.send(_heartbeats(10))
            threads = [threading.Thread(target=service.close) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            client.rest()
    SessionManager(name).unlink()


def test_a_close_in_the_reactors_own_thread_waits_for_nothing(service: SessionManager) -> None:
    """As a finalizer does that runs inside of a client's request."""
    answer = service._serving._server.answer

    def close(request: object) -> object:
        try:
            return answer(request)
        finally:
            service.close()

    service._serving._server.answer = close
    with Wire(service) as client:
        client.send(wire.update(KEY), wire.update(KEY))
        began = time.monotonic()
        replies = client.rest()
        assert [type(reply) for reply in replies] == [Done]
        # The limit of run() would be waited for, by the loop itself.
        assert time.monotonic() - began < reactor_module._LONGEST
    SessionManager(service.name).unlink()


# ---------------------------------------------------------------------------- forks


def test_a_forked_child_holds_no_socket(service: SessionManager) -> None:
    with Wire(service) as client:
        ours = client.socket.fileno()

        def look() -> None:
            found = {
                int(link.name)
                for link in list(Path("/proc/self/fd").iterdir())
                if _is_socket(int(link.name))
            }
            sockets = [fd for fd in found if fd != ours and _is_of_service(fd)]
            assert sockets == []

        assert in_child(look) == 0
        assert isinstance(client.ask(wire.update(KEY)), Done)


def _is_of_service(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as found:
        return found.family == socket.AF_UNIX and str(found.getsockname()).endswith(".sock")


def test_a_parent_goes_on_serving_after_a_childs_close_and_exit(service: SessionManager) -> None:
    with Wire(service) as client:

        def end() -> None:
            began = time.monotonic()
            service.close()
            # The child has no thread that could do anything for it.
            assert time.monotonic() - began < reactor_module._LONGEST

        for _ in range(3):
            assert in_child(end) == 0
            assert isinstance(client.ask(wire.update(KEY)), Done)
            with Wire(service) as another:
                assert isinstance(another.ask(wire.update(KEY)), Done)
        assert Path(wire.path_of_service(service)).is_socket()


def test_a_child_that_ends_as_a_script_does_says_nothing(name: str) -> None:
    code = """
        import os, sys
        sys.path.insert(0, sys.argv[2])
        import wire
        from jidoka_shm import SessionManager
        with SessionManager(sys.argv[1], capacity=4, listen=True) as m:
            key = m.create_session()
            client = wire.Wire(m)
            pid = os.fork()
            if pid == 0:
                client.socket.close()
                sys.exit()
            print(os.waitpid(pid, 0)[1])
            print(type(client.ask(wire.update(key))).__name__)
            client.socket.close()
            m.unlink()
    """
    code = code.replace("os.fork()", "__import__('host').fork()")
    with Script(code, name, Path(__file__).parent) as script:
        assert script.end() == "0\nDone\n"


def test_a_killed_parent_is_seen_by_every_client_although_its_child_sleeps_on(name: str) -> None:
    code = """
        import os, sys, time
        sys.path.insert(0, sys.argv[2])
        import host
        from jidoka_shm import SessionManager
        m = SessionManager(sys.argv[1], capacity=4, listen=True)
        print(m._serving._endpoint.path, flush=True)
        sys.stdin.readline()
        read, write = os.pipe()
        if host.fork() == 0:
            os.write(write, b"x")
            sys.stdin.readline()
            os._exit(0)
        os.read(read, 1)
        print("forked", flush=True)
        time.sleep(1000)
    """
    with Script(code, name, Path(__file__).parent) as script:
        path = script.line()
        clients = [Wire(path) for _ in range(3)]
        script.go()
        assert script.line() == "forked"
        os.kill(script.pid, signal.SIGKILL)
        for client in clients:
            assert client.rest() == []
            client.__exit__()
        # The kernel closes a dead process's descriptors in no order that is promised.
        script.kill()
        with pytest.raises(ConnectionRefusedError):
            Wire(path)
        with SessionManager(name, listen=True, wait=30) as successor:
            assert wire.path_of_service(successor) == path
            with Wire(successor) as client:
                assert isinstance(client.ask(wire.create(KEY)), Done)
            successor.unlink()
        script.close_input()


def test_a_client_that_is_accepted_while_the_service_ends_gets_its_end_too(name: str) -> None:
    here, there = socket.socketpair()
    with SessionManager(name, capacity=4, listen=True) as service, here:
        serving = service._serving._server
        stop = serving.stop

        async def accept_late() -> None:
            await stop()
            loop = asyncio.get_running_loop()
            late = loop.connect_accepted_socket(lambda: accepted.Accepted(serving), there)
            kept.append(loop.create_task(late))

        kept: list[asyncio.Task] = []
        service._reactor.at_end(accept_late)
        service.unlink()
        here.settimeout(30)
        said = b"".join(iter(lambda: here.recv(4096), b""))
        assert said == encode(Refused("this service ends"))


def test_nobody_new_is_accepted_while_a_service_ends(
    service: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes while those are let in who were accepted has nobody to be let in by."""
    path, wait = wire.path_of_service(service), asyncio.sleep
    admitted: list[object] = []

    async def sleep(delay: float) -> None:
        # The last time nobody listens any more; from Python 3.13 on asyncio removes the name, too.
        with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
            late.append(clients.enter_context(socket.socket(socket.AF_UNIX)))
            late[-1].connect(path)
        await wait(delay)

    def admit(*client: object) -> str:
        admitted.append(client)
        return "it is too late"

    late: list[socket.socket] = []
    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(server.Server, "admit", admit)
    with contextlib.ExitStack() as clients:
        service.unlink()
    assert len(late) > server._STEPS
    assert admitted == []


def test_a_start_that_fails_takes_no_socket_from_a_later_child(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket without a name is bound to nothing, and so to no service."""
    monkeypatch.setattr(endpoint_module, "path_of", lambda _: tmp_path / "a file" / "socket")
    (tmp_path / "a file").write_text("")
    with pytest.raises(DirectoryForbidden) as kept:
        SessionManager(name, capacity=4, listen=True)
    here, there = socket.socketpair()
    with here, there:
        child = forked(lambda: there.sendall(b"still there"))
        assert exit_code(child) == 0
        here.settimeout(30)
        assert here.recv(100) == b"still there"
    del kept


def test_forks_beside_clients_that_come_and_go_keep_no_connection_alive(
    service: SessionManager,
) -> None:
    """A child forked at any moment of an accept must not hold the client's end of file back."""
    children = []
    try:
        stop = threading.Event()

        def come_and_go() -> None:
            while not stop.is_set():
                with Wire(service) as client:
                    client.ask(wire.update(KEY))

        threads = [threading.Thread(target=come_and_go) for _ in range(2)]
        for thread in threads:
            thread.start()
        read, write = os.pipe()

        def wait_for_the_end() -> None:
            os.close(write)
            held = [int(link.name) for link in list(Path("/proc/self/fd").iterdir())]
            bad = [fd for fd in held if _is_socket(fd) and _is_of_service(fd)]
            assert bad == []

        children.extend(forked(wait_for_the_end) for _ in range(30))
        os.close(write)
        os.close(read)
        stop.set()
        for thread in threads:
            thread.join()
    finally:
        codes = [exit_code(child) for child in children]
    assert codes == [0] * 30


def _is_socket(descriptor: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        return False


# ---------------------------------------------------------------------------- a start that fails


def _refuse(*_: object) -> None:
    raise OSError(errno.EACCES, "refused")


@pytest.mark.parametrize("found", [False, True])
@pytest.mark.parametrize(
    ("step", "exception"),
    [
        *itertools.product(["directory", "start", "Serving"], [OSError, KeyboardInterrupt]),
        # In the loop's thread, where no KeyboardInterrupt comes.
        ("server", OSError),
    ],
)
def test_a_constructor_that_fails_leaves_nothing(  # noqa: PLR0913, PLR0917 - one a choice
    name: str,
    runtime: Path,
    found: bool,
    exception: type[BaseException],
    step: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if found:
        SessionManager(name, capacity=4).close()
    gc.collect()
    threads, descriptors = threading.active_count(), _descriptors()

    def fail(*_: object, **__: object) -> None:
        raise exception

    async def fail_later(*_: object) -> None:
        raise exception

    places = {
        "directory": (endpoint_module, "_make_private", fail),
        "server": (server.Server, "start", fail_later),
        "start": (manager.Serving, "start", _start_then(exception)),
        "Serving": (manager, "Serving", fail),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*places[step])
        with pytest.raises(exception):
            SessionManager(name, capacity=4, listen=True)
    gc.collect()
    assert threading.active_count() == threads
    assert _descriptors() <= descriptors
    assert list(runtime.rglob("*.sock")) == []
    assert path_of(name).exists() == found
    assert not found or path_of(name).read_bytes()[256] == 0, "the control names a socket"
    with SessionManager(name, capacity=4, listen=True) as service:
        with Wire(service) as client:
            assert isinstance(client.ask(wire.create(KEY)), Done)
        service.unlink()


def _start_then(exception: type[BaseException]) -> object:
    start = manager.Serving.start

    def start_and_fail(serving: manager.Serving, *arguments: object) -> None:
        start(serving, *arguments)
        raise exception

    return start_and_fail


@pytest.mark.parametrize("found", [False, True])
# asyncio's own, of a loop for which there was no descriptor.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_constructor_without_descriptors_leaves_no_name_and_no_writer(
    name: str, *, found: bool
) -> None:
    """However many it lacks: what undoes it needs none."""
    if found:
        SessionManager(name, capacity=4, listen=True).close()
    made: list[SessionManager] = []
    counts = itertools.count()
    while not made:
        with descriptors_left(next(counts)), contextlib.suppress(OSError):
            made.append(SessionManager(name, capacity=4, listen=True))
        gc.collect()
        if not made:
            assert path_of(name).exists() is found
        if found:
            with SessionReader(name) as reader:
                assert reader.writer_alive is bool(made)
    made[0].unlink()
    assert next(counts) > 5


def test_a_directory_of_another_user_is_a_typed_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(directory: Path) -> None:
        raise DirectoryForbidden(str(directory), 1)

    with monkeypatch.context() as patch:
        patch.setattr(endpoint_module, "_make_private", refuse)
        with pytest.raises(DirectoryForbidden):
            SessionManager(name, capacity=4, listen=True)
    assert not path_of(name).exists()


def test_an_interrupt_at_any_line_of_the_services_start_leaves_no_socket(
    name: str, runtime: Path
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    SessionManager(name, capacity=4).close()
    start = manager.Serving.start
    more, number = True, 0

    def start_interrupted(serving: manager.Serving, reactor: reactor_module.Reactor) -> None:
        nonlocal more
        # An interrupt in the finalizer of what an earlier round left would be nobody's to catch.
        gc.collect()
        gc.disable()
        try:
            more = stop_at_line(number, lambda: start(serving, reactor), interrupt)
        finally:
            gc.enable()

    while more:
        number += 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(manager.Serving, "start", start_interrupted)
            try:
                with SessionManager(name, listen=True):
                    pass
            except KeyboardInterrupt:
                assert more
        assert list(runtime.rglob("*.sock")) == [], number
        assert path_of(name).read_bytes()[256] == 0, "the control names a socket"
    assert number > 20
    SessionManager(name).unlink()
