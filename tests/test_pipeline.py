"""``client.pipeline()``: many changes in one round trip, each with an outcome of its own."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from services import SILENCE, Peer, Scripted, first_only, frames_of, id_of

from jidoka_shm import (
    IllegalTransition,
    InvalidMetadata,
    RegistryClosed,
    SessionClient,
    SessionManager,
    SessionNotFound,
    WriterUnavailable,
)
from jidoka_shm.delivery import Delivery
from jidoka_shm.protocol import Done, Unknown, encode

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from jidoka_shm import Pipeline
    from jidoka_shm.protocol import Reply, Request


@pytest.fixture
def manager(name: str) -> Iterator[SessionManager]:
    """A manager that listens; what is terminated stays for an hour."""
    with SessionManager(name, cleanup_delay=3600, listen=True) as made:
        yield made
        made.unlink()


@pytest.fixture
def service(manager: SessionManager, tmp_path: Path) -> Iterator[Scripted]:
    """A service of the manager, in its own's place, that does what a test says."""
    with Scripted(manager, tmp_path / "socket") as made:
        yield made


@pytest.fixture
def client(manager: SessionManager) -> Iterator[SessionClient]:
    """A client of whichever service says where it is."""
    with SessionClient(manager.name, timeout=60) as made:
        yield made


# ---------------------------------------------------------------------------- collecting


def test_leaving_with_sends_all_and_keeps_the_results(client: SessionClient) -> None:
    with client.pipeline() as changes:
        sid = changes.create_session({"a": 1}, session_id=UUID(int=5))
        assert sid == UUID(int=5)
        changes.update_session(sid, "active")
        other = changes.create_session()
        changes.update_session(sid, metadata={"a": 2}, ttl=60)
        changes.terminate_session(other, "over")
        assert len(changes) == 5
        assert len(client) == 0
    created, active, made, updated, ended = changes.results
    assert (created, made, ended) == (sid, other, None)
    assert (active.status, active.metadata) == ("active", {"a": 1})
    assert updated == client[sid]
    assert client[other].error == "over"
    assert client.version == 5


def test_executing_sends_what_was_collected_since_the_last_time(client: SessionClient) -> None:
    changes = client.pipeline()
    assert changes.execute() == changes.settle() == []
    sid = changes.create_session()
    assert changes.execute() == [sid]
    assert len(changes) == 0
    changes.update_session(sid, status="active")
    (session,) = changes.execute()
    assert session == client[sid]
    with changes:
        changes.terminate_session(sid)
        assert changes.execute() == [None]
    assert changes.results == [None]
    assert client.version == 3


def test_an_interrupted_execution_has_no_results(
    client: SessionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the execution before would pass for its own."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    changes = client.pipeline()
    changes.create_session()
    changes.execute()
    changes.create_session()
    monkeypatch.setattr(Delivery, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        changes.execute()
    assert changes.results == []
    assert len(changes) == 0


def test_an_empty_pipeline_asks_nobody(client: SessionClient, service: Scripted) -> None:
    with client.pipeline() as changes:
        pass
    assert changes.execute() == []
    assert service.accepted == 0


def test_a_body_that_raises_sends_nothing(client: SessionClient, service: Scripted) -> None:
    changes = client.pipeline()
    changes.create_session()
    with pytest.raises(LookupError), changes:
        raise LookupError
    assert len(changes) == 0
    changes.create_session()
    with pytest.raises(InvalidMetadata), changes:
        changes.update_session(uuid4(), metadata={"a": {1}})
    assert (service.requests, len(client)) == ([], 0)


def test_a_pipeline_of_a_closed_client_says_so(client: SessionClient) -> None:
    changes = client.pipeline()
    changes.create_session()
    client.close()
    with pytest.raises(RegistryClosed):
        changes.execute()


# ---------------------------------------------------------------------------- failures


def _three_of_five_fail(changes: Pipeline) -> UUID:
    sid = changes.create_session()
    changes.update_session(sid, status="idle")
    changes.update_session(UUID(int=404))
    changes.update_session(sid, status="active")
    changes.terminate_session(UUID(int=405))
    return sid


def test_the_first_error_is_raised_once_all_were_applied(client: SessionClient) -> None:
    changes = client.pipeline()
    with pytest.raises(IllegalTransition) as caught, changes:
        sid = _three_of_five_fail(changes)
    note = "of the pipeline's 5 changes 3 failed: 1, 2, 4 of its results"
    assert caught.value.__notes__ == [note]
    assert client[sid].status == "active"
    kinds = [type(result) for result in changes.results]
    assert kinds == [UUID, IllegalTransition, SessionNotFound, type(client[sid]), SessionNotFound]
    _three_of_five_fail(changes)
    with pytest.raises(IllegalTransition):
        changes.execute()


def test_settling_raises_nothing(client: SessionClient) -> None:
    changes = client.pipeline()
    sid = _three_of_five_fail(changes)
    results = changes.settle()
    assert results is changes.results
    assert results[0] == sid
    assert [isinstance(result, Exception) for result in results] == [0, 1, 1, 0, 1]
    assert results[2].args == (UUID(int=404),)


def test_a_note_of_many_failures_is_short(client: SessionClient) -> None:
    changes = client.pipeline()
    for number in range(1000):
        changes.update_session(UUID(int=number))
    with pytest.raises(SessionNotFound) as caught:
        changes.execute()
    (note,) = caught.value.__notes__
    assert "1000 failed: 0, 1, 2," in note
    assert len(note) < 200


# ---------------------------------------------------------------------------- the round trip


def test_all_are_sent_before_the_first_reply(
    client: SessionClient, service: Scripted, tmp_path: Path
) -> None:
    count = 1000

    def serve(connection: socket.socket) -> None:
        connection.sendall(encode(service.greeting))
        frames = list(itertools.islice(frames_of(connection), count))
        connection.sendall(encode(Done(b"")) * len(frames))

    with Peer(tmp_path / "peer", serve) as peer:
        service.store_path(peer.path.encode())
        changes = client.pipeline()
        sids = [changes.create_session() for _ in range(count)]
        assert changes.execute() == sids


def test_more_than_all_buffers_hold_goes_through(client: SessionClient) -> None:
    """T9: the service stops reading while its replies are not read."""
    changes = client.pipeline()
    sid = changes.create_session()
    for number in range(20_000):
        changes.update_session(sid, metadata={"number": number, "text": "x" * 300})
    results = changes.execute()
    assert [session.metadata["number"] for session in results[1:]] == list(range(20_000))
    assert client[sid].version == 20_001


def test_timeout_bounds_all_of_them_together(name: str, service: Scripted) -> None:
    def dawdle(request: Request) -> Reply:
        time.sleep(0.02)  # each in time, and all of them not
        return service.apply(request)

    service.act = dawdle
    with SessionClient(name, timeout=0.3) as client:
        changes = client.pipeline()
        for _ in range(200):
            changes.create_session(session_id=uuid4())
        begin = time.monotonic()
        results = changes.settle()
        assert time.monotonic() - begin < 2
    made = [result for result in results if isinstance(result, UUID)]
    assert 0 < len(made) < 200
    assert results[: len(made)] == made
    for result in results[len(made) :]:
        assert isinstance(result, WriterUnavailable)
        assert result.outcome_unknown


# ---------------------------------------------------------------------------- exactly once


def _collect(changes: Pipeline) -> tuple[UUID, UUID]:
    """Collect five changes that are five commits, of two sessions."""
    first = changes.create_session({"step": 0})
    changes.update_session(first, "active", metadata={"step": 1})
    second = changes.create_session(session_id=uuid4())
    changes.update_session(first, metadata={"step": 2})
    changes.terminate_session(second, "over")
    return first, second


def _lose(service: Scripted, answered: int, applied: int) -> Callable[[Request], Reply | None]:
    """Return an ``act`` that carries out some, answers fewer, and ends as a killed writer does.

    What comes then is answered by a successor that knows nothing but what stands in the memory.
    """
    seen = itertools.count(1)

    def act(request: Request) -> Reply | None:
        number = next(seen)
        reply = service.apply(request) if number <= applied else None
        if number <= answered:
            return reply
        if number < applied:
            return SILENCE
        service.succeed()
        service.act = service.apply
        return None

    return act


@pytest.mark.parametrize("applied", range(6))
def test_each_is_made_once_wherever_the_writer_dies(
    client: SessionClient, service: Scripted, applied: int
) -> None:
    """It dies with one change unanswered at most."""
    changes = client.pipeline()
    first, second = _collect(changes)
    service.act = _lose(service, max(applied - 1, 0), applied)
    created, active, made, updated, ended = changes.execute()
    assert (created, made, ended) == (first, second, None)
    assert (active.metadata, updated.metadata) == ({"step": 1}, {"step": 2})
    assert (client[first].metadata, client[second].error) == ({"step": 2}, "over")
    assert client.version == 5


@pytest.mark.parametrize(
    ("answered", "applied"), [(a, b) for b in range(6) for a in range(max(b, 1))]
)
def test_what_cannot_be_told_is_unknown_and_all_else_is_made_once(
    client: SessionClient, service: Scripted, answered: int, applied: int
) -> None:
    """Only an update whose record another one of the pipeline has replaced cannot be told."""
    changes = client.pipeline()
    first, second = _collect(changes)
    service.act = _lose(service, answered, applied)
    results = changes.settle()
    unknown = [at for at, result in enumerate(results) if isinstance(result, Exception)]
    # 1 by 3, 2 by 4.
    lost = range(answered, applied)
    assert unknown == [at for at in (1, 2) if at in lost and at + 2 in lost]
    assert all(results[at].outcome_unknown for at in unknown)
    assert (client[first].metadata, client[second].error) == ({"step": 2}, "over")
    assert client.version == 5


def test_what_was_not_handed_over_is_sent_as_new(client: SessionClient, service: Scripted) -> None:
    service.act = first_only(service, lambda _: None)
    changes = client.pipeline()
    for _ in range(1000):
        changes.create_session({"text": "x" * 300})
    sids = changes.execute()
    assert client.version == len(set(sids)) == 1000
    again = [request.again is not None for request in service.requests[1:]]
    assert again == sorted(again, reverse=True)
    assert 0 < sum(again) < 1000


def test_only_what_has_no_reply_is_sent_again(client: SessionClient, service: Scripted) -> None:
    changes = client.pipeline()
    for _ in range(10):
        changes.create_session()
    service.act = _lose(service, 4, 4)
    changes.execute()
    ids = [request.request for request in service.requests]
    assert len(ids) == 5 + 6
    assert ids[4:5] == ids[5:6]
    assert client.version == len(set(ids)) == 10


def test_a_dead_writer_leaves_each_with_an_outcome(
    client: SessionClient, service: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made, unknown, or not made."""
    count = 1000

    def end(request: Request) -> Reply | None:
        if len(service.requests) <= 3:
            return service.apply(request)
        service.stop_listening()
        monkeypatch.setattr(SessionClient, "writer_alive", False)
        return None

    service.act = end
    changes = client.pipeline()
    for number in range(count):
        changes.create_session({"text": "x" * 300}, session_id=UUID(int=number + 1))
    results = changes.settle()
    assert results[:3] == [UUID(int=1), UUID(int=2), UUID(int=3)]
    outcomes = [result.outcome_unknown for result in results[3:]]
    assert outcomes == sorted(outcomes, reverse=True)
    assert outcomes[0]
    assert not outcomes[-1]
    assert all(isinstance(result, WriterUnavailable) for result in results[3:])
    assert len({id(result) for result in results}) == count


def test_one_that_is_unknown_keeps_no_other(client: SessionClient, service: Scripted) -> None:
    unlucky = uuid4()
    service.act = lambda request: Unknown() if id_of(request) == unlucky else service.apply(request)
    changes = client.pipeline()
    sids = [changes.create_session(session_id=sid) for sid in (uuid4(), unlucky, uuid4())]
    results = changes.settle()
    assert results[::2] == sids[::2]
    assert results[1].outcome_unknown
