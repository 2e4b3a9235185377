"""``SessionClient``: reads as a reader, changes made once, and what happens when the writer ends."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import msgspec
import pytest
from host import Script, exit_code, forked, in_child, run_script, stop
from msgspec import UNSET, Raw
from msgspec.structs import replace
from services import Scripted, first_only, id_of, sockets
from support import taking_less_than, wait_until

from jidoka_shm import (
    IllegalTransition,
    InvalidMetadata,
    InvalidName,
    InvalidSessionId,
    OwnerNotAlive,
    RecordTooLarge,
    RegistryClosed,
    RegistryFull,
    RegistryNotFound,
    SessionClient,
    SessionExists,
    SessionManager,
    SessionNotFound,
    SessionReader,
    SessionStatus,
    VersionConflict,
    WriterUnavailable,
    calls,
    link,
    seqlock,
)
from jidoka_shm.connection import Connection
from jidoka_shm.failed import pack_error
from jidoka_shm.protocol import (
    PROTOCOL_VERSION,
    Done,
    Failed,
    Fields,
    Hello,
    Refused,
    Unknown,
)
from jidoka_shm.serving import Serving
from jidoka_shm.writer import TableWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from jidoka_shm.protocol import Reply, Request

#: A writer in a process of its own. It prints a line for each one that it reads.
SERVER = """
    import sys
    from jidoka_shm import SessionManager
    with SessionManager(sys.argv[1], capacity=64, cleanup_delay=3600, listen=True):
        print("ready", flush=True)
        sys.stdin.read()
"""

#: How long a call that fails at once may take, in seconds: less than any timeout here.
AT_ONCE = 2.0


def server(name: str) -> Script:
    """Return a writer that listens, in a process of its own."""
    script = Script(SERVER, name)
    assert script.line() == "ready"
    return script


@pytest.fixture
def _removed(name: str) -> Iterator[None]:
    """Remove the registry of a test whose writers are other processes."""
    yield
    with SessionManager(name, wait=60) as manager:
        manager.unlink()


@pytest.fixture
def manager(name: str) -> Iterator[SessionManager]:
    """A manager that does not listen; what is terminated stays for an hour."""
    with SessionManager(name, capacity=64, cleanup_delay=3600) as made:
        yield made
        made.unlink()


@pytest.fixture
def listening(name: str) -> Iterator[SessionManager]:
    """A manager that listens."""
    options = {"capacity": 64, "cleanup_delay": 3600, "max_record_size": 512}
    with SessionManager(name, listen=True, **options) as made:
        yield made
        made.unlink()


@pytest.fixture
def service(manager: SessionManager, tmp_path: Path) -> Iterator[Scripted]:
    """A service of the manager that does what a test says."""
    with Scripted(manager, tmp_path / "socket") as made:
        yield made


@pytest.fixture
def client(name: str, service: Scripted) -> Iterator[SessionClient]:
    """A client of the scripted service."""
    with SessionClient(name, timeout=60) as made:
        yield made


# ---------------------------------------------------------------------------- calls


def test_a_client_changes_and_reads_what_it_changed(listening: SessionManager) -> None:
    with SessionClient(listening.name) as client:
        sid = client.create_session({"a": 1}, {"model": "small"}, os.getpid(), 3600)
        created = client[sid]
        assert (created.metadata, created.llm_config) == ({"a": 1}, {"model": "small"})
        assert (created.pid, created.status) == (os.getpid(), "initializing")
        assert created.expires_at is not None
        session = client.update_session(sid, "active", metadata={"b": 2}, pid=None, ttl=None)
        assert session == client[sid] == listening[sid]
        assert (session.status, session.pid, session.metadata) == ("active", None, {"b": 2})
        assert (session.llm_config, session.expires_at) == ({"model": "small"}, None)
        assert client.terminate_session(f"session_{sid}", "over") is None
        assert (client[sid].status, client[sid].error) == ("terminated", "over")
        client.terminate_session(sid)


def test_an_id_may_be_given(listening: SessionManager) -> None:
    with SessionClient(listening.name) as client:
        assert client.create_session(session_id=str(UUID(int=7))) == UUID(int=7)
        assert client.create_session() != client.create_session()


def test_a_client_is_a_reader(listening: SessionManager) -> None:
    sid = listening.create_session()
    with SessionClient(listening.name, cache_size=0) as client:
        assert isinstance(client, SessionReader)
        assert list(client) == [sid]
        assert client.writer_alive
        assert client.version == listening.version
        assert client.list_sessions() == listening.list_sessions()
        assert repr(client).startswith(f"SessionClient({listening.name!r}, 1 sessions")


_GONE = UUID(int=404)

#: Changes that fail, on a registry with a session 1, active, and 2, terminated.
_REFUSED: dict[str, tuple[type[Exception], Callable[[Any], object]]] = {
    "taken": (SessionExists, lambda h: h.create_session(session_id=UUID(int=1))),
    "taken by the terminated": (SessionExists, lambda h: h.create_session(session_id=UUID(int=2))),
    "gone": (SessionNotFound, lambda h: h.update_session(_GONE, status="idle")),
    "terminated": (SessionNotFound, lambda h: h.update_session(UUID(int=2))),
    "no end of what is gone": (SessionNotFound, lambda h: h.terminate_session(_GONE)),
    "no such move": (
        IllegalTransition,
        lambda h: h.update_session(UUID(int=1), status="initializing"),
    ),
    "another version": (
        VersionConflict,
        lambda h: h.update_session(UUID(int=1), expected_version=99),
    ),
    "grown too large": (
        RecordTooLarge,
        lambda h: h.update_session(UUID(int=1), llm_config={"a": "x" * 1000}),
    ),
    "no id": (InvalidSessionId, lambda h: h.update_session("nonsense")),
    "no id to create": (InvalidSessionId, lambda h: h.create_session(session_id="nonsense")),
    "no id to end": (InvalidSessionId, lambda h: h.terminate_session(5)),
    "no map": (InvalidMetadata, lambda h: h.create_session({"a": {1, 2}})),
    "no map in an update": (
        InvalidMetadata,
        lambda h: h.update_session(UUID(int=1), metadata={"a": [b""]}),
    ),
    "no status": (ValueError, lambda h: h.update_session(UUID(int=1), status="gone")),
    "no pid": (ValueError, lambda h: h.create_session(pid=0)),
    "no number": (TypeError, lambda h: h.create_session(pid="1")),
    "no time": (ValueError, lambda h: h.update_session(UUID(int=1), ttl=0)),
    "no text": (ValueError, lambda h: h.terminate_session(UUID(int=1), "\ud800")),
    "no version": (ValueError, lambda h: h.update_session(UUID(int=1), expected_version=-1)),
    "more than the size": (RegistryFull, lambda h: h.resize(1)),
    "no size": (ValueError, lambda h: h.resize(0)),
    "no size of a slot": (ValueError, lambda h: h.resize(8, 100)),
    "no number of sessions": (TypeError, lambda h: h.resize("8")),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_a_client_raises_what_a_manager_raises(listening: SessionManager, case: str) -> None:
    kind, change = _REFUSED[case]
    listening.create_session(session_id=UUID(int=1))
    listening.update_session(UUID(int=1), status="active")
    listening.create_session(session_id=UUID(int=2))
    listening.terminate_session(UUID(int=2))
    version = listening.version
    with pytest.raises(kind) as theirs:
        change(listening)
    with SessionClient(listening.name) as client, pytest.raises(kind) as ours:
        change(client)
    assert (type(ours.value), ours.value.args) == (type(theirs.value), theirs.value.args)
    assert str(ours.value) == str(theirs.value)
    assert listening.version == version


def test_a_full_registry_and_a_dead_owner_are_what_they_are_for_a_manager(name: str) -> None:
    dead = forked(lambda: None)
    exit_code(dead)
    with SessionManager(name, capacity=1, grow=False, listen=True) as manager:
        with SessionClient(name) as client:
            with pytest.raises(OwnerNotAlive):
                client.create_session(pid=dead)
            client.create_session()
            with pytest.raises(RegistryFull, match="1 slots"):
                client.create_session()
        manager.unlink()


def test_a_new_session_whose_record_is_too_long_is_refused(listening: SessionManager) -> None:
    with pytest.raises(RecordTooLarge) as theirs:
        listening.create_session({"a": "x" * 1000})
    with SessionClient(listening.name) as client, pytest.raises(RecordTooLarge) as ours:
        client.create_session({"a": "x" * 1000})
    # The record of one that a client asks for keeps the request's id as well.
    assert ours.value.limit == theirs.value.limit
    assert theirs.value.size <= ours.value.size <= theirs.value.size + 32


def test_a_bad_argument_is_refused_before_anything_is_sent(
    client: SessionClient, service: Scripted
) -> None:
    for case in ("no map", "no id to end", "no status", "no size", "no size of a slot"):
        kind, change = _REFUSED[case]
        with pytest.raises(kind):
            change(client)
    assert service.requests == []
    assert service.accepted == 0


@pytest.mark.parametrize("size", [1 << 20, 1 << 24])
def test_what_no_request_can_carry_is_too_large_at_once(
    client: SessionClient, service: Scripted, size: int
) -> None:
    sid = client.create_session()
    with pytest.raises(RecordTooLarge) as caught:
        client.create_session({"a": "x" * size})
    assert caught.value.size > size
    assert (caught.value.limit, caught.value.place) == (1 << 20, "request")
    assert "slot" not in str(caught.value)
    with pytest.raises(RecordTooLarge):
        client.update_session(sid, metadata={"a": "x" * (size // 2)}, llm_config={"a": "x" * size})
    # An end's reason is cut by the writer, whatever its length.
    client.terminate_session(sid, "é" * size)
    assert set(client[sid].error or "") == {"é"}
    assert len(service.requests) == 2


def test_a_version_that_is_none_of_64_bits_is_refused_as_it_was_given(
    listening: SessionManager,
) -> None:
    sid = listening.create_session()
    with SessionClient(listening.name) as client:
        for handle in (listening, client):
            with pytest.raises(ValueError, match=f"expected_version is {2**64}: "):
                handle.update_session(sid, expected_version=2**64)
            with pytest.raises(VersionConflict) as caught:
                handle.update_session(sid, expected_version=2**64 - 1)
            assert (caught.value.expected, caught.value.actual) == (2**64 - 1, 1)


# ---------------------------------------------------------------------------- opening


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": -1}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"cache_size": -1}, ValueError),
        ({"start": 1}, TypeError),
    ],
)
def test_an_option_that_cannot_be_is_refused(
    name: str, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        SessionClient(name, **options)


def test_a_client_makes_no_registry(name: str) -> None:
    with pytest.raises(RegistryNotFound):
        SessionClient(name, timeout=0.01)
    with pytest.raises(InvalidName):
        SessionClient("a.b")


def test_loading_a_client_loads_no_loop() -> None:
    code = """
        import sys
        from jidoka_shm import SessionClient
        print(sorted({"asyncio", "click", "rich", "jidoka_shm.manager"} & set(sys.modules)))
    """
    assert run_script(code) == "[]\n"


def test_a_client_pickles_as_its_name_and_options(listening: SessionManager) -> None:
    with SessionClient(listening.name, timeout=7.5, cache_size=3) as client:
        sid = client.create_session()
        with pickle.loads(pickle.dumps(client)) as copy:  # noqa: S301 - made right here
            assert type(copy) is SessionClient
            assert (copy._options, copy._start) == (client._options, False)
            assert copy.update_session(sid, status="active") == client[sid]


# ---------------------------------------------------------------------------- no service


def test_a_writer_that_does_not_listen_is_said_to(manager: SessionManager) -> None:
    sid = manager.create_session()
    with SessionClient(manager.name, timeout=60) as client:
        with taking_less_than(AT_ONCE), pytest.raises(WriterUnavailable) as caught:
            client.create_session()
        assert "listen=True" in str(caught.value)
        assert not caught.value.outcome_unknown
        assert client[sid].status == "initializing"


#: Where a manager that is going to listen may be held up: a new one, and one that takes over.
_SLOW: dict[str, tuple[Any, str]] = {
    "made": (SessionManager, "_make_serving"),
    "read": (TableWriter, "_repair_reach"),
    "taken over": (SessionManager, "_reclaim_left"),
    "about to listen": (Serving, "start"),
}


@pytest.mark.parametrize("place", _SLOW)
def test_a_writer_that_is_not_ready_to_listen_is_waited_for(
    name: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slowly it takes over; nor is one that closed before it any different."""
    owner, method = _SLOW[place]
    if place != "made":
        SessionManager(name, capacity=64).close()
    waits, goes_on = threading.Event(), threading.Event()
    work = getattr(owner, method)

    def wait(*arguments: object) -> object:
        waits.set()
        assert goes_on.wait(30)
        return work(*arguments)

    tries = 0

    def connect(path: str, deadline: float) -> Connection:
        nonlocal tries
        tries += 1
        if tries == 5:
            goes_on.set()
        return Connection(path, deadline)

    monkeypatch.setattr(owner, method, wait)
    monkeypatch.setattr(link, "Connection", connect)
    # The next look of one that takes silence for an answer is the last.
    monkeypatch.setattr(link, "_GRACE", -1)
    made: list[SessionManager] = []
    thread = threading.Thread(
        target=lambda: made.append(SessionManager(name, capacity=64, listen=True))
    )
    thread.start()
    try:
        assert waits.wait(30)
        with SessionClient(name, timeout=60) as client:
            client.create_session()
    finally:
        goes_on.set()
        thread.join()
        with made[0] as manager:
            found = len(manager)
            manager.unlink()
    assert found == 1


def test_a_writer_that_will_not_listen_is_known_while_it_takes_over(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the one before it was killed, and left the place where it listened."""

    def die() -> None:
        manager = SessionManager(name, capacity=64, listen=True)
        os.kill(manager._own.control.writer().pid, signal.SIGKILL)

    assert in_child(die) == -signal.SIGKILL
    reasons: list[str | None] = []
    work = SessionManager._reclaim_left

    def ask(manager: SessionManager) -> None:
        with SessionClient(name, timeout=60) as client:
            with taking_less_than(AT_ONCE), pytest.raises(WriterUnavailable) as caught:
                client.create_session()
            assert not caught.value.outcome_unknown
            reasons.append(caught.value.reason)
        work(manager)

    monkeypatch.setattr(SessionManager, "_reclaim_left", ask)
    SessionManager(name).unlink()
    assert len(reasons) == 1
    assert "listen=True" in str(reasons)


@pytest.mark.usefixtures("_removed")
@pytest.mark.parametrize("end", ["closed", "killed"])
def test_without_a_writer_a_change_fails_at_once_and_reads_go_on(name: str, end: str) -> None:
    with server(name) as script, SessionClient(name, timeout=60) as client:
        sid = client.create_session({"a": 1})
        if end == "killed":
            script.kill()
        else:
            script.close_input()
            script.end()
        for _ in range(3):
            with taking_less_than(AT_ONCE), pytest.raises(WriterUnavailable) as caught:
                client.update_session(sid, metadata={})
            assert (caught.value.name, caught.value.outcome_unknown) == (name, False)
            assert client[sid].metadata == {"a": 1}
        with server(name):
            assert client.update_session(sid, metadata={"a": 2}).metadata == {"a": 2}


def test_a_new_writer_is_found_without_a_new_client(
    client: SessionClient, service: Scripted, manager: SessionManager, tmp_path: Path
) -> None:
    """On another path than the last one, and the request goes there as a new one."""
    sid = client.create_session()
    service.end()
    with Scripted(manager, tmp_path / "another") as successor:
        client.update_session(sid, status="active")
        assert [request.again for request in successor.requests] == [None]


@pytest.mark.parametrize(
    "raw", [b"", b"\xff\xfe", b"\0/tmp/x", b"x" * 128, b"/nowhere/at/all", b"."]
)
def test_damage_to_the_path_is_no_service(name: str, service: Scripted, raw: bytes) -> None:
    service.store_path(raw)
    with SessionClient(name, timeout=0.2) as client:
        with pytest.raises(WriterUnavailable) as caught:
            client.create_session()
        assert caught.value.reason
        service.publish()
        client.create_session()


def test_a_service_that_comes_to_listen_in_time_is_waited_for(name: str, service: Scripted) -> None:
    """A writer that took over a moment ago still has the path of the one before it there."""
    service.store_path(b"/nowhere/at/all")
    publisher = threading.Timer(0.3, service.publish)
    publisher.start()
    with SessionClient(name, timeout=60) as client:
        client.create_session()
    publisher.join()


def test_a_service_that_accepts_nobody_is_waited_for_and_said_to(
    name: str, service: Scripted, tmp_path: Path
) -> None:
    """One with so many clients waiting already that the kernel takes no more."""
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
        full.bind(str(tmp_path / "full"))
        full.listen(0)
        first.connect(str(tmp_path / "full"))
        service.store_path(str(tmp_path / "full").encode())
        with SessionClient(name, timeout=0.2) as client:
            with pytest.raises(WriterUnavailable, match="it accepts nobody") as caught:
                client.create_session()
            assert not caught.value.outcome_unknown
            service.publish()
            client.create_session()


def test_a_refusal_is_given_as_the_reason(name: str, service: Scripted) -> None:
    service.greeting = Refused("too many clients")
    with SessionClient(name, timeout=0.1) as client, pytest.raises(WriterUnavailable) as caught:
        client.create_session()
    assert (caught.value.reason, caught.value.outcome_unknown) == ("too many clients", False)


# ---------------------------------------------------------------------------- exactly once


def before(service: Scripted) -> Callable[[Request], Reply | None]:
    """Return an ``act`` that ends the connection before a request is carried out, once."""
    return first_only(service, lambda _: None)


def after(service: Scripted) -> Callable[[Request], Reply | None]:
    """Return an ``act`` that ends the connection after a request is carried out, once."""

    def act(request: Request) -> None:
        service.apply(request)

    return first_only(service, act)


each_loss = pytest.mark.parametrize("loss", [before, after])


@each_loss
def test_a_lost_connection_leaves_each_change_made_once(
    client: SessionClient, service: Scripted, loss: Callable[..., Any]
) -> None:
    service.act = loss(service)
    sid = client.create_session({"a": 1})
    assert (client.version, client[sid].version) == (1, 1)
    service.act = loss(service)
    assert client.update_session(sid, status="active") == client[sid]
    assert client.version == 2
    service.act = loss(service)
    client.terminate_session(sid, "over")
    assert (client.version, client[sid].error) == (3, "over")
    # Each was sent again under its own id, with how the registry was before it was first sent.
    sent = service.requests
    assert len(sent) == 6
    assert [request.request for request in sent[::2]] == [each.request for each in sent[1::2]]
    assert len({request.request for request in sent}) == 3
    assert [request.again for request in sent[::2]] == [None] * 3
    assert [request.again.version for request in sent[1::2]] == [0, 1, 2]


@each_loss
def test_a_connection_that_is_lost_again_and_again_makes_each_change_once(
    client: SessionClient, service: Scripted, loss: Callable[..., Any]
) -> None:
    left = 12

    def act(request: Request) -> Reply | None:
        nonlocal left
        left -= 1
        if left == 0:
            service.act = service.apply
        loss(service)(request)
        service.act = service.apply if left == 0 else act
        return None

    service.act = act
    sid = client.create_session()
    assert (client.version, list(client)) == (1, [sid])


def test_what_was_not_handed_over_whole_goes_to_the_next_writer_as_new(
    client: SessionClient, service: Scripted
) -> None:
    sid = client.create_session()
    service.drop_connections()
    client.update_session(sid, status="active")
    assert [request.again for request in service.requests] == [None, None]


def test_an_error_is_the_same_after_a_lost_connection(
    client: SessionClient, service: Scripted
) -> None:
    service.act = before(service)
    with pytest.raises(SessionNotFound) as caught:
        client.update_session(_GONE)
    assert caught.value.args == (_GONE,)


def test_an_unknown_outcome_is_said_to_be(client: SessionClient, service: Scripted) -> None:
    sid = client.create_session()
    service.act = lambda _: Unknown()
    for change in (
        lambda: client.update_session(sid),
        # It lives, so nothing says that this was made.
        lambda: client.terminate_session(sid),
        lambda: client.create_session(session_id=sid),
        client.create_session,
    ):
        with pytest.raises(WriterUnavailable) as caught:
            change()
        assert caught.value.outcome_unknown
        assert "may or may not have been made" in str(caught.value)


def test_a_session_whose_id_the_client_made_is_known_to_be_its_own(
    client: SessionClient, service: Scripted, manager: SessionManager
) -> None:
    """Even when its record was written again since, so that no writer can tell."""

    def make_and_change(request: Request) -> Reply:
        service.apply(request)
        manager.update_session(id_of(request), status="active")
        return reply

    for reply in (Unknown(), None):
        service.act = make_and_change
        if reply is None:
            service.act = first_only(service, make_and_change)
        sid = client.create_session()
        assert client[sid].status == "active"
    taken = pack_error(SessionExists(UUID(int=1)))
    replies = iter([None, taken])
    service.act = lambda request: service.apply(request) and next(replies)
    client.create_session()
    assert len(client) == 3


def test_a_given_id_that_is_taken_is_taken(client: SessionClient, service: Scripted) -> None:
    sid = client.create_session()
    with pytest.raises(SessionExists):
        client.create_session(session_id=sid)
    service.act = before(service)
    with pytest.raises(SessionExists):
        client.create_session(session_id=sid)


def test_what_the_memory_shows_to_be_made_needs_no_writer(
    name: str, service: Scripted, client: SessionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record keeps the id of the request that made it, and the client reads it itself."""

    def make_and_end(request: Request) -> None:
        service.apply(request)
        service.stop_listening()
        monkeypatch.setattr(SessionClient, "writer_alive", False)

    sid = uuid4()
    for change, result in (
        (lambda: client.create_session(session_id=sid), lambda: sid),
        (lambda: client.update_session(sid, status="active"), lambda: client[sid]),
        (lambda: client.terminate_session(sid, "over"), lambda: None),
    ):
        service.act = make_and_end
        assert change() == result()
        monkeypatch.undo()
        service.listen_again()
    assert client.version == 3


def test_a_writer_that_dies_with_a_request_leaves_its_outcome_unknown(
    client: SessionClient, service: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    sid = client.create_session()

    def end(_: Request) -> None:
        service.stop_listening()
        monkeypatch.setattr(SessionClient, "writer_alive", False)

    service.act = end
    with taking_less_than(AT_ONCE), pytest.raises(WriterUnavailable) as caught:
        client.update_session(sid)
    assert caught.value.outcome_unknown


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("answers", [False, True])
def test_a_session_that_is_over_is_what_a_terminate_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, gone: bool, answers: bool
) -> None:
    """Whoever ended it, and whether a writer cannot tell or none is left to ask."""
    delay = 0.01 if gone else 3600
    with SessionManager(name, cleanup_delay=delay) as manager, SessionClient(name) as client:
        sid = manager.create_session()
        with Scripted(manager, tmp_path / "1") as service:

            def end(_: Request) -> Reply | None:
                manager.terminate_session(sid)
                if gone:
                    wait_until(lambda: sid not in client)
                if answers:
                    return Unknown()
                service.stop_listening()
                monkeypatch.setattr(SessionClient, "writer_alive", False)
                return None

            service.act = end
            client.terminate_session(sid)
            assert (sid in client) != gone
        manager.unlink()


def test_a_session_that_never_was_is_none_that_a_terminate_ended(
    client: SessionClient, service: Scripted
) -> None:
    service.act = lambda _: Unknown()
    with pytest.raises(WriterUnavailable) as caught:
        client.terminate_session(uuid4())
    assert caught.value.outcome_unknown


def test_the_next_writer_answers_what_the_last_one_was_asked(name: str, tmp_path: Path) -> None:
    """Of the same registry, in another process's life: what it took over says what was made."""
    with SessionManager(name, cleanup_delay=3600) as first:
        sid = first.create_session()
        with Scripted(first, tmp_path / "1") as service, SessionClient(name, timeout=60) as client:
            asked = threading.Event()

            def make_and_end(request: Request) -> None:
                service.apply(request)
                service.stop_listening()
                asked.set()

            service.act = make_and_end
            results: list[object] = []
            thread = threading.Thread(
                target=lambda: results.append(client.update_session(sid, metadata={"a": 1}))
            )
            # Alive as far as the client can tell, so that it waits for the next.
            client.__class__ = _Patient
            thread.start()
            assert asked.wait(30)
            service.end()
            first.close()
            with SessionManager(name, listen=True) as second:
                thread.join()
                assert results == [second[sid]]
                assert second[sid].version == 2
                second.unlink()


class _Patient(SessionClient):
    """A client that takes every writer for alive."""

    writer_alive = True  # type: ignore[assignment]


def test_another_registry_under_the_name_leaves_an_outcome_unknown(
    name: str, tmp_path: Path
) -> None:
    with SessionManager(name) as first, SessionClient(name, timeout=60) as client:
        sid = first.create_session()
        with Scripted(first, tmp_path / "1") as service:
            seconds: list[SessionManager] = []

            def replace(_: Request) -> None:
                service.stop_listening()
                first.unlink()
                seconds.append(SessionManager(name, listen=True))

            service.act = replace
            with pytest.raises(WriterUnavailable) as caught:
                client.update_session(sid)
            assert caught.value.outcome_unknown
            assert caught.value.reason == "another registry has its name now"
        (second,) = seconds
        assert client.create_session() in second
        second.unlink()


def test_a_registry_made_anew_between_two_calls_is_gone_on_with(name: str) -> None:
    with SessionManager(name, listen=True) as first, SessionClient(name, timeout=60) as client:
        client.create_session()
        first.unlink()
        with pytest.raises(RegistryClosed):
            client.create_session()
        with SessionManager(name, listen=True) as second:
            sid = client.create_session()
            assert list(second) == list(client) == [sid]
            second.unlink()


def test_a_connection_to_the_last_registry_is_not_used_for_the_next(
    name: str, tmp_path: Path
) -> None:
    first = SessionManager(name)
    with Scripted(first, tmp_path / "1") as service, SessionClient(name, timeout=60) as client:
        client.create_session()
        first.unlink()
        with SessionManager(name, listen=True) as second:
            client.refresh()
            assert client.create_session() in second
            second.unlink()
        assert len(service.requests) == 1


def test_a_service_of_another_registry_is_not_asked(name: str, service: Scripted) -> None:
    right, service.greeting = service.greeting, Hello(PROTOCOL_VERSION, bytes(16))
    with SessionClient(name, timeout=0.1) as client:
        with pytest.raises(WriterUnavailable, match="another registry's service") as caught:
            client.create_session()
        assert not caught.value.outcome_unknown
        assert service.requests == []
        service.greeting = right
        client.create_session()


def test_a_service_of_another_version_is_an_error_at_once(name: str, service: Scripted) -> None:
    service.greeting = Hello(PROTOCOL_VERSION + 1, bytes(16))
    with SessionClient(name, timeout=60) as client:
        with taking_less_than(AT_ONCE), pytest.raises(WriterUnavailable) as caught:
            client.create_session()
        assert "use one version of jidoka_shm everywhere" in str(caught.value)


def test_a_registry_destroyed_with_a_request_leaves_its_outcome_unknown(
    name: str, tmp_path: Path
) -> None:
    with SessionManager(name) as manager, SessionClient(name, timeout=60) as client:
        sid = manager.create_session()
        with Scripted(manager, tmp_path / "1") as service:

            def destroy(_: Request) -> None:
                service.stop_listening()
                manager.unlink()

            service.act = destroy
            with pytest.raises(WriterUnavailable) as caught:
                client.update_session(sid)
            assert caught.value.outcome_unknown


@pytest.mark.parametrize(
    "reply",
    [
        Done(b"no slot"),
        Failed("NoSuchError", []),
        Failed("VersionConflict", [1]),
    ],
)
def test_a_reply_that_makes_no_sense_leaves_its_outcome_unknown(
    client: SessionClient, service: Scripted, reply: Reply
) -> None:
    sid = client.create_session()
    service.act = lambda _: reply
    with pytest.raises(WriterUnavailable) as caught:
        client.update_session(sid)
    assert caught.value.outcome_unknown
    assert caught.value.reason


# ---------------------------------------------------------------------------- a resize


def size_of(handle: SessionReader) -> tuple[int, int, int]:
    """Return capacity, slot size and generation."""
    handle.refresh()
    stats = handle.stats()
    return stats.capacity, stats.slot_size, stats.generation


def test_a_client_resizes_and_reads_on(listening: SessionManager) -> None:
    with SessionClient(listening.name) as client, SessionReader(listening.name) as reader:
        sid = client.create_session({"a": 1})
        assert client.resize(100) is None
        for generation, sizes in enumerate(((2,), (2, 256), (7, 1024)), start=3):
            client.resize(*sizes)
            expected = (*sizes, 512)[:2]
            for handle in (client, reader, listening):
                assert size_of(handle) == (*expected, generation)
                assert handle[sid].metadata == {"a": 1}
                assert handle.check() == []
        client.update_session(sid, status="active")
        assert reader[sid].status == "active"


def test_the_size_that_it_has_is_no_change(listening: SessionManager) -> None:
    with SessionClient(listening.name) as client:
        client.resize(64)
        client.resize(64, 512)
        assert size_of(client) == (64, 512, 1)


@each_loss
def test_a_lost_connection_leaves_a_resize_made_once(
    client: SessionClient, service: Scripted, loss: Callable[..., Any]
) -> None:
    sid = client.create_session()
    service.act = loss(service)
    client.resize(8, 256)
    assert size_of(client) == (8, 256, 2)
    assert list(client) == [sid]
    _, first, again = service.requests
    assert (first.again, again.again.version) == (None, 1)
    assert replace(again, again=None) == first


@pytest.mark.parametrize(("successor", "found"), [(False, (16, 512, 3)), (True, (8, 512, 4))])
def test_a_resize_that_another_one_followed_is_made_again_by_a_next_writer_alone(
    client: SessionClient,
    service: Scripted,
    manager: SessionManager,
    *,
    successor: bool,
    found: tuple[int, int, int],
) -> None:
    """The writer that made it knows so; the next one gives the registry the size asked for."""

    def make_and_lose(request: Request) -> None:
        service.apply(request)
        manager.resize(16)
        if successor:
            service.succeed()

    service.act = first_only(service, make_and_lose)
    client.resize(8)
    assert size_of(client) == found


@pytest.mark.parametrize("made", [True, False])
def test_without_a_writer_the_size_tells_whether_a_resize_was_made(
    client: SessionClient, service: Scripted, monkeypatch: pytest.MonkeyPatch, *, made: bool
) -> None:
    client.create_session()

    def end(request: Request) -> None:
        if made:
            service.apply(request)
        service.stop_listening()
        monkeypatch.setattr(SessionClient, "writer_alive", False)

    service.act = end
    if made:
        client.resize(8)
        assert size_of(client) == (8, 512, 2)
    else:
        with taking_less_than(AT_ONCE), pytest.raises(WriterUnavailable) as caught:
            client.resize(8)
        assert caught.value.outcome_unknown
        assert size_of(client) == (64, 512, 1)


def test_a_resize_that_a_death_cut_short_behind_its_commit_is_made(
    client: SessionClient, service: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No word of the old table says so, and the next writer goes on in the new one."""
    client.create_session()

    def die(*_: object) -> None:
        raise InterruptedError

    def end(request: Request) -> None:
        monkeypatch.setattr(seqlock, "give_up", die)
        with pytest.raises(InterruptedError):
            service.apply(request)
        service.stop_listening()
        monkeypatch.setattr(SessionClient, "writer_alive", False)

    service.act = end
    client.resize(8)
    monkeypatch.undo()
    assert size_of(client) == (8, 512, 2)


@pytest.mark.usefixtures("_removed")
def test_without_a_service_nothing_is_resized(name: str) -> None:
    with server(name) as script, SessionClient(name, timeout=60) as client:
        client.create_session()
        script.kill()
        with taking_less_than(AT_ONCE), pytest.raises(WriterUnavailable) as caught:
            client.resize(8)
        assert not caught.value.outcome_unknown
        assert size_of(client) == (64, 512, 1)
        with server(name):
            client.resize(8)
            assert size_of(client) == (8, 512, 2)


def test_another_registry_of_the_size_is_not_the_one_that_was_resized(
    name: str, tmp_path: Path
) -> None:
    with SessionManager(name) as first, SessionClient(name, timeout=60) as client:
        with Scripted(first, tmp_path / "1") as service:
            seconds: list[SessionManager] = []

            def replace_it(_: Request) -> None:
                service.stop_listening()
                first.unlink()
                seconds.append(SessionManager(name, capacity=8, listen=True))

            service.act = replace_it
            with pytest.raises(WriterUnavailable) as caught:
                client.resize(8)
            assert caught.value.outcome_unknown
            assert caught.value.reason == "another registry has its name now"
        (second,) = seconds
        second.unlink()


@pytest.mark.usefixtures("_removed")
def test_clients_and_a_reader_go_on_beside_resizes(name: str) -> None:
    """Two clients change and a reader reads while a third one resizes, again and again."""
    with server(name) as script, SessionReader(name, verify=True) as reader:
        ended = threading.Event()
        made: dict[UUID, int] = {}
        failed: list[BaseException] = []

        def change() -> None:
            with SessionClient(name, timeout=60) as client:
                sid, count = client.create_session({"n": 0}), 0
                while not ended.is_set():
                    count += 1
                    assert client.update_session(sid, metadata={"n": count}).metadata["n"] == count
                    assert client[sid].metadata == {"n": count}
                    made[sid] = count

        def read() -> None:
            wait_until(lambda: len(made) == 2)
            last = dict.fromkeys(made, 0)
            while not ended.is_set():
                found = {session.session_id: session for session in reader.list_sessions()}
                assert found.keys() == last.keys()
                for sid in last:
                    seen = reader[sid].metadata["n"]
                    assert last[sid] <= found[sid].metadata["n"] <= seen
                    last[sid] = seen

        def work(what: Callable[[], None]) -> None:
            try:
                what()
            except BaseException as error:  # noqa: BLE001 - the test's own thread raises it
                failed.append(error)

        threads = [threading.Thread(target=work, args=(what,)) for what in (change, change, read)]
        for thread in threads:
            thread.start()
        try:
            with SessionClient(name, timeout=60) as client:
                wait_until(lambda: failed or len(made) == 2)
                for number in range(30):
                    before = dict(made)
                    client.resize(*((8, 256), (500, 1024), (3, 512))[number % 3])
                    wait_until(lambda b=before: failed or all(made[sid] > b[sid] for sid in b))
                    assert failed == []
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert failed == []
        assert {sid: reader[sid].metadata["n"] for sid in made} == made
        assert size_of(reader) == (3, 512, 31)
        script.kill()


class Held:
    """Resizes of a manager that wait, once they have begun, until a test lets them go on."""

    def __init__(self, manager: SessionManager, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        move = manager._move

        def wait(*given: Any) -> None:  # noqa: ANN401 - the manager's own
            self.begun.set()
            assert self.may_end.wait(60)
            move(*given)

        monkeypatch.setattr(manager, "_move", wait)


def test_what_waits_for_a_resize_is_made_after_it_and_reads_wait_for_nothing(
    listening: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody takes the writer for gone: not who asks for the first time, nor who has a service."""
    held, name = Held(listening, monkeypatch), listening.name
    with SessionClient(name, timeout=60) as client, SessionClient(name, timeout=60) as other:
        sid = client.create_session()
        results: list[object] = []
        changes = (
            lambda: client.update_session(sid, metadata={"a": 1}),
            lambda: other.create_session({"b": 1}),
            lambda: SessionClient(name, timeout=60, start=True).resize(16),
        )
        resizing = threading.Thread(target=lambda: client.resize(8))
        resizing.start()
        try:
            assert held.begun.wait(30)
            threads = [threading.Thread(target=lambda c=c: results.append(c())) for c in changes]
            for thread in threads:
                thread.start()
            # A client whose time is over first; the others have theirs meanwhile.
            with SessionClient(name, timeout=0.3) as hasty, pytest.raises(WriterUnavailable):
                hasty.update_session(sid)
            assert (results, client[sid].metadata, len(other)) == ([], {}, 1)
            assert size_of(other) == (64, 512, 1)
        finally:
            held.may_end.set()
            resizing.join()
        for thread in threads:
            thread.join()
        assert len(results) == 3
        assert (client[sid].metadata, len(client)) == ({"a": 1}, 2)
        assert size_of(client) == (16, 512, 3)


def test_a_resize_that_takes_longer_than_its_client_waits_is_made_once(
    listening: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for the same size again waits for it."""
    held = Held(listening, monkeypatch)
    with SessionClient(listening.name, timeout=0.3) as hasty:
        with pytest.raises(WriterUnavailable) as caught:
            hasty.resize(8)
        assert caught.value.outcome_unknown
        assert caught.value.reason == "no answer within 0.3 s"
    goes_on = threading.Timer(0.3, held.may_end.set)
    goes_on.start()
    with SessionClient(listening.name, timeout=60) as client:
        client.resize(8)
        assert size_of(client) == (8, 512, 2)
    goes_on.join()


# ---------------------------------------------------------------------------- deadlines


@pytest.mark.usefixtures("_removed")
def test_a_stopped_writer_is_waited_for_no_longer_than_timeout(name: str) -> None:
    """T9: and its late reply answers no other request."""
    with server(name) as script, SessionClient(name, timeout=0.2) as client:
        sid = client.create_session()
        stop(script.pid)
        with taking_less_than(AT_ONCE), pytest.raises(WriterUnavailable) as caught:
            client.update_session(sid, metadata={"a": 1})
        assert caught.value.outcome_unknown
        assert caught.value.reason == "no answer within 0.2 s"
        with pytest.raises(WriterUnavailable):
            client.update_session(sid, metadata={"a": 2})
        assert client[sid].metadata == {}
        os.kill(script.pid, signal.SIGCONT)
        wait_until(lambda: client[sid].metadata == {"a": 1})
        with SessionClient(name, timeout=60) as patient:
            assert patient.update_session(sid, metadata={"a": 3}).metadata == {"a": 3}
        script.kill()


def test_a_service_that_drops_each_request_is_left_at_the_deadline(
    name: str, service: Scripted
) -> None:
    service.act = lambda _: None
    with SessionClient(name, timeout=0.3) as client:
        with taking_less_than(AT_ONCE), pytest.raises(WriterUnavailable) as caught:
            client.create_session()
        assert caught.value.outcome_unknown
    # Not as fast as it can.
    assert len(service.requests) < 50


@pytest.mark.parametrize("timeout", [0, 0.0])
def test_no_time_at_all_is_too_little(name: str, listening: SessionManager, timeout: float) -> None:
    with SessionClient(name, timeout=timeout) as client, pytest.raises(WriterUnavailable):
        client.create_session()


# ---------------------------------------------------------------------------- threads, signals


def test_threads_share_a_client(listening: SessionManager) -> None:
    with SessionClient(listening.name, timeout=60) as client:
        made: list[UUID] = []

        def work(number: int) -> None:
            sid = client.create_session({"number": number})
            for step in range(20):
                session = client.update_session(sid, metadata={"number": number, "step": step})
                assert session.session_id == sid
                assert session.metadata == {"number": number, "step": step}
            made.append(sid)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(made)) == 8
        assert client.version == 8 * 21


def test_a_call_waits_for_no_other(client: SessionClient, service: Scripted) -> None:
    """One that its service leaves waiting keeps nobody else."""
    asked, answer = threading.Event(), threading.Event()

    def wait(request: Request) -> Reply:
        asked.set()
        answer.wait(60)
        return service.apply(request)

    service.act = first_only(service, wait)
    thread = threading.Thread(target=client.create_session)
    thread.start()
    assert asked.wait(30)
    client.create_session()
    assert len(client) == 1
    answer.set()
    thread.join()
    assert len(client) == 2


def test_idle_connections_are_few(client: SessionClient, service: Scripted) -> None:
    at_once = 20
    barrier = threading.Barrier(at_once)

    def meet(request: Request) -> Reply:
        barrier.wait(60)
        return service.apply(request)

    service.act = meet
    threads = [threading.Thread(target=client.create_session) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert service.accepted == at_once
    assert len(client._link._idle) == 8
    service.act = service.apply
    client.create_session()
    assert service.accepted == at_once


def test_what_a_dead_service_leaves_idle_is_let_go(
    client: SessionClient, service: Scripted
) -> None:
    barrier = threading.Barrier(4)

    def meet(request: Request) -> Reply:
        barrier.wait(60)
        return service.apply(request)

    service.act = meet
    threads = [threading.Thread(target=client.create_session) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(client._link._idle) == 4
    service.act = service.apply
    service.drop_connections()
    client.create_session()
    assert len(client._link._idle) == 1


def test_a_signal_handler_may_change_in_the_middle_of_a_change(
    client: SessionClient, service: Scripted
) -> None:
    inner: list[UUID] = []

    def handle(*_: object) -> None:
        inner.append(client.create_session({"from": "handler"}))

    def interrupt(request: Request) -> Reply:
        # Its thread waits for this reply.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        wait_until(lambda: inner)
        return service.apply(request)

    previous = signal.signal(signal.SIGUSR1, handle)
    try:
        service.act = first_only(service, interrupt)
        outer = client.create_session({"from": "call"})
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert client[outer].metadata == {"from": "call"}
    assert client[inner[0]].metadata == {"from": "handler"}


def test_an_interrupted_call_leaves_no_reply_for_the_next(
    client: SessionClient, service: Scripted
) -> None:
    sid = client.create_session()

    class Interrupt(BaseException):
        pass

    def handle(*_: object) -> None:
        raise Interrupt

    def interrupt(request: Request) -> Reply:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        return service.apply(request)

    previous = signal.signal(signal.SIGUSR1, handle)
    try:
        service.act = first_only(service, interrupt)
        with pytest.raises(Interrupt):
            client.update_session(sid, metadata={"a": 1})
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert client.update_session(sid, metadata={"a": 2}).metadata == {"a": 2}


# ---------------------------------------------------------------------------- forks, the end


def test_a_forked_child_makes_its_own_connection(client: SessionClient, service: Scripted) -> None:
    """P7: and the parent's goes on."""
    sid = client.create_session()
    assert service.accepted == 1

    def change() -> None:
        assert client.update_session(sid, status="active").status is SessionStatus.ACTIVE

    assert in_child(change) == 0
    assert service.accepted == 2
    assert client.update_session(sid, status="idle").status is SessionStatus.IDLE
    assert service.accepted == 2
    assert client.version == 3


def test_a_child_forked_in_the_middle_of_a_change_makes_it_no_second_time(
    client: SessionClient, service: Scripted
) -> None:
    """It returns into the call, and sends the same request again."""
    sid = client.create_session()
    parent, children = os.getpid(), []

    def handle(*_: object) -> None:
        pid = os.fork()
        if pid:
            children.append(pid)

    def interrupt(request: Request) -> Reply:
        reply = service.apply(request)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        wait_until(lambda: children)
        return reply

    previous = signal.signal(signal.SIGUSR1, handle)
    code = 1
    try:
        service.act = first_only(service, interrupt)
        session = client.update_session(sid, metadata={"a": 1})
        code = 0 if session.version == 2 else 1
    finally:
        if os.getpid() != parent:
            os._exit(code)
        signal.signal(signal.SIGUSR1, previous)
    assert [exit_code(pid) for pid in children] == [0]
    assert (session.version, client.version) == (2, 2)
    assert len({request.request for request in service.requests}) == 2


def test_a_closed_client_holds_nothing_and_says_so(listening: SessionManager) -> None:
    before = sockets()
    client = SessionClient(listening.name)
    client.create_session()
    client.close()
    client.close()
    wait_until(lambda: sockets() == before)
    for call in (
        client.create_session,
        lambda: client.update_session(uuid4()),
        lambda: len(client),
    ):
        with pytest.raises(RegistryClosed):
            call()


def test_a_client_that_is_dropped_holds_nothing_either(listening: SessionManager) -> None:
    before = sockets()
    client = SessionClient(listening.name)
    client.create_session()
    del client
    wait_until(lambda: sockets() == before)


def test_a_close_in_the_middle_of_a_change_lets_it_end(
    client: SessionClient, service: Scripted
) -> None:
    before = sockets()

    def close(request: Request) -> Reply:
        client.close()
        return service.apply(request)

    service.act = close
    sid = client.create_session()
    assert id_of(service.requests[0]) == sid
    assert len(client._link._idle) == 0
    service.end()
    assert sockets() <= before


def test_a_map_is_checked_that_fits_only_since_the_slots_became_larger(name: str) -> None:
    """What is too long for a slot is passed on unread, for the table to refuse."""
    with (
        SessionManager(name, capacity=8, slot_size=256, listen=True) as manager,
        SessionClient(name) as client,
    ):
        sid = client.create_session()
        manager.resize(8, 4096)
        no_map = Raw(msgspec.msgpack.encode(["x" * 900]))
        call = calls.to_update(sid, *[UNSET] * 5, None)
        bad = call._replace(request=replace(call.request, fields=Fields(metadata=no_map)))
        (outcome,) = client._deliver((bad,))
        assert isinstance(outcome, InvalidMetadata)
        assert client[sid].metadata == {}
        assert client.update_session(sid, metadata={"a": "x" * 900}).metadata == {"a": "x" * 900}
        manager.unlink()
