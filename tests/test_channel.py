"""Many changes at a time over one connection: cancelled, late, lost with it, and made once."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from host import Script, stop
from loops import cancelled, each_loop, in_each_loop, outcomes, run, turns, until
from services import SILENCE, Peer, Scripted, first_only, frames_of, id_of
from support import wait_until

from jidoka_shm import (
    AsyncSessionClient,
    RegistryClosed,
    SessionExists,
    SessionManager,
    SessionNotFound,
    WriterUnavailable,
)
from jidoka_shm.asked import Asked
from jidoka_shm.failed import pack_error
from jidoka_shm.protocol import (
    PROTOCOL_VERSION,
    Done,
    Failed,
    Hello,
    Refused,
    Unknown,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jidoka_shm.protocol import Reply, Request

NewLoop = Callable[[], asyncio.AbstractEventLoop]

#: A writer in a process of its own, which begins at a word or as soon as its predecessor is dead.
SERVER = """
    import sys
    from jidoka_shm import SessionManager
    print("begun", flush=True)
    wait = {"go": 0, "wait": 60}[input()]
    with SessionManager(sys.argv[1], capacity=256, cleanup_delay=3600, listen=True, wait=wait) as m:
        print("ready", flush=True)
        sys.stdin.read()
        m.unlink()
"""


def server(name: str, word: str = "go") -> Script:
    """Return a writer that listens, in a process of its own."""
    script = Script(SERVER, name)
    assert script.line() == "begun"
    script.say(word)
    if word == "go":
        assert script.line() == "ready"
    return script


def end(script: Script) -> None:
    """End it, with its registry."""
    script.close_input()
    script.end()


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


def patient(service: Scripted) -> AsyncSessionClient:
    """Return a client that waits for longer than any test does."""
    return AsyncSessionClient(service._manager.name, timeout=60)


def allow(client: AsyncSessionClient, seconds: float) -> None:
    """Give each call so long from now on; none is under way."""
    channel = client._channel
    channel._timeout = seconds
    if channel._expiry is not None:
        channel._expiry.cancel()
        channel._expiry = None


class Gate:
    """A service's answer to one request that waits until a test opens it."""

    def __init__(self, service: Scripted) -> None:
        self.asked = threading.Event()
        self.open = threading.Event().set
        self._is_open = self.open.__self__
        self._service = service

    def __call__(self, request: Request) -> Reply:
        self.asked.set()
        assert self._is_open.wait(60)
        return self._service.apply(request)


# ---------------------------------------------------------------------------- one connection


@in_each_loop
async def test_all_are_sent_before_the_first_reply(service: Scripted, tmp_path: Path) -> None:
    """One connection, and no more sends than turns of the loop."""
    count = 500

    def serve(connection: socket.socket) -> None:
        connection.sendall(encode(service.greeting))
        frames = list(itertools.islice(frames_of(connection), count))
        connection.sendall(encode(Done(b"")) * len(frames))
        connection.recv(1)

    with Peer(tmp_path / "peer", serve) as peer:
        service.store_path(peer.path.encode())
        async with patient(service) as client:
            calls = [client.create_session() for _ in range(count)]
            assert len(set(await outcomes(calls))) == count
        assert peer.accepted == 1


@in_each_loop
async def test_each_task_gets_its_own_reply(manager: SessionManager) -> None:
    async with AsyncSessionClient(manager.name, timeout=60) as client:

        async def work(number: int) -> UUID:
            sid = await client.create_session({"number": number})
            for step in range(20):
                session = await client.update_session(sid, metadata={"at": [number, step]})
                assert (session.session_id, session.metadata) == (sid, {"at": [number, step]})
                if number % 5 == 0:
                    with pytest.raises(SessionNotFound) as caught:
                        await client.update_session(UUID(int=number))
                    assert caught.value.session_id == UUID(int=number)
            return sid

        made = await outcomes([work(number) for number in range(50)])
        assert set(made) == set(client)
        assert client.version == 50 * 21


@in_each_loop
async def test_calls_are_applied_in_the_order_in_which_they_were_made(
    manager: SessionManager,
) -> None:
    async with AsyncSessionClient(manager.name, timeout=60) as client:
        sid = await client.create_session()
        calls = [client.update_session(sid, metadata={"n": n}) for n in range(200)]
        sessions = await outcomes(calls)
        assert [session.version for session in sessions] == list(range(2, 202))


@in_each_loop
async def test_what_is_under_way_is_bounded(service: Scripted, tmp_path: Path) -> None:
    """However many tasks call: the rest waits, and is sent once there are replies."""
    limit, count = 1024, 3000
    came: list[bytes] = []
    go = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(encode(service.greeting))
        for frame in frames_of(connection):
            came.append(frame)
            if len(came) == limit:
                go.wait(60)
                connection.sendall(encode(Done(b"")) * limit)
            elif len(came) > limit:
                connection.sendall(encode(Done(b"")))

    with Peer(tmp_path / "peer", serve) as peer:
        service.store_path(peer.path.encode())
        async with patient(service) as client:
            tasks = [asyncio.create_task(client.create_session()) for _ in range(count)]
            await until(lambda: len(came) == limit)
            await turns(50)
            assert len(client._channel._flying) == limit
            # Of what waits, what is cancelled is never sent.
            for task in tasks[2000:]:
                await cancelled(task)
            go.set()
            assert len(set(await outcomes(tasks[:2000]))) == 2000
    assert len(came) == 2000


@in_each_loop
async def test_more_than_all_buffers_hold_goes_through(manager: SessionManager) -> None:
    """And other tasks get their turn before the end of a pipeline that came after them."""
    async with AsyncSessionClient(manager.name, timeout=60) as client:
        changes = client.pipeline()
        sid = changes.create_session()
        for number in range(20_000):
            changes.update_session(sid, metadata={"number": number, "text": "x" * 300})
        other = asyncio.create_task(client.create_session())
        results = await changes.execute()
        assert [session.metadata["number"] for session in results[1:]] == list(range(20_000))
        assert await other in client
        assert client[sid].version >= 20_001


# ---------------------------------------------------------------------------- cancelling


@in_each_loop
async def test_the_late_reply_of_a_cancelled_call_is_dropped(service: Scripted) -> None:
    async with patient(service) as client:
        sid = await client.create_session()
        gate = service.act = Gate(service)
        first = asyncio.create_task(client.update_session(sid, metadata={"n": 1}))
        second = asyncio.create_task(client.update_session(sid, metadata={"n": 2}))
        await until(gate.asked.is_set)
        await cancelled(first)
        third = asyncio.create_task(client.update_session(sid, metadata={"n": 3}))
        await turns()
        gate.open()
        assert [(await task).metadata["n"] for task in (second, third)] == [2, 3]
        # It was made all the same.
        assert client[sid].version == 4
    assert service.accepted == 1


@each_loop
@pytest.mark.parametrize("is_first", [True, False])
def test_a_call_may_be_cancelled_at_any_moment(
    service: Scripted, new_loop: NewLoop, *, is_first: bool
) -> None:
    """While it searches, connects, waits to be sent, for its reply; later calls are right."""

    async def main(client: AsyncSessionClient, at: int) -> bool:
        async with client:
            sid = UUID(int=at + 1)
            if is_first:
                service._manager.create_session(session_id=sid)
            else:
                await client.create_session(session_id=sid)
            task = asyncio.create_task(client.update_session(sid, metadata={"at": at}))
            # In real time, as the reply is.
            await turns(at // 4)
            await asyncio.sleep(0.0001 * (at % 4))
            was_done = task.done()
            await cancelled(task)
            for number in range(3):
                session = await client.update_session(sid, metadata={"number": number})
                assert (session.session_id, session.metadata) == (sid, {"number": number})
            assert client[sid].version - service._manager[sid].version == 0
            return was_done

    done = [run(main(patient(service), at), new_loop) for at in range(40)]
    assert not done[0]
    made = [each.request for each in service.requests]
    assert len(made) == len(set(made))


@in_each_loop
async def test_a_call_that_is_cancelled_before_it_is_sent_is_never_made(
    service: Scripted,
) -> None:
    service.store_path(b"/nowhere/at/all")
    async with patient(service) as client:
        tasks = [asyncio.create_task(client.create_session()) for _ in range(3)]
        await turns()
        await cancelled(tasks[0])
        await cancelled(tasks[2])
        service.publish()
        assert await tasks[1] in client
        assert len(client) == 1
        # Nobody waits any more: nobody is looked for.
        service.store_path(b"/nowhere/at/all")
        service.drop_connections()
        await until(lambda: client._channel._line is None)
        last = asyncio.create_task(client.create_session())
        await turns()
        await cancelled(last)
        await until(lambda: client._channel._retry is None)
        assert client._channel._search is None


@in_each_loop
async def test_a_pipeline_may_be_cancelled(service: Scripted) -> None:
    gate = service.act = Gate(service)
    async with patient(service) as client:

        async def work() -> None:
            async with client.pipeline() as changes:
                for _ in range(10):
                    changes.create_session()

        task = asyncio.create_task(work())
        await until(gate.asked.is_set)
        await cancelled(task)
        gate.open()
        sid = await client.create_session()
        assert (await client.update_session(sid)).session_id == sid
        assert len(client) == 11


@in_each_loop
async def test_a_pipeline_that_is_half_sent_may_be_cancelled(service: Scripted) -> None:
    """What the connection was given goes through; its replies are nobody else's."""
    count = 3000
    gate = service.act = Gate(service)
    async with patient(service) as client:
        changes = client.pipeline()
        for _ in range(count):
            changes.create_session({"text": "x" * 300})
        sending = asyncio.create_task(changes.execute())
        await until(gate.asked.is_set)
        assert not client._channel._line.has_room
        other = asyncio.create_task(client.create_session({"other": 1}))
        await turns()
        await cancelled(sending)
        gate.open()
        assert client[await other].metadata == {"other": 1}
        assert len(client) == count + 1
    assert service.accepted == 1


@in_each_loop
async def test_a_timeout_of_the_callers_is_a_cancellation(service: Scripted) -> None:
    gate = service.act = Gate(service)
    async with patient(service) as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.create_session(), 0.01)
        gate.open()
        await client.create_session()


@in_each_loop
async def test_what_is_cancelled_again_and_again_takes_no_room(service: Scripted) -> None:
    service.act = lambda _: SILENCE
    async with patient(service) as client:
        for _ in range(300):
            tasks = [asyncio.create_task(client.create_session()) for _ in range(10)]
            await turns(2)
            for task in tasks:
                task.cancel()
            await outcomes(tasks)
        channel = client._channel
        assert len(channel._waiting) == 0
        assert len(channel._flying) <= 1024
        assert len(channel._trail._sent) <= 1024


# ---------------------------------------------------------------------------- deadlines


@in_each_loop
async def test_a_stopped_writer_is_waited_for_no_longer_than_timeout(name: str) -> None:
    """And its late replies answer no other request, over the same connection."""
    with server(name) as script:
        async with AsyncSessionClient(name, timeout=60) as client:
            sid = await client.create_session()
            allow(client, 0.2)
            stop(script.pid)
            calls = [client.update_session(sid, metadata={"n": n}) for n in range(5)]
            async with asyncio.timeout(10):
                errors = await outcomes(calls)
            for error in errors:
                assert isinstance(error, WriterUnavailable)
                assert (error.outcome_unknown, error.reason) == (True, "no answer within 0.2 s")
            assert client[sid].metadata == {}
            os.kill(script.pid, signal.SIGCONT)
            await until(lambda: client[sid].metadata == {"n": 4})
            line = client._channel._line
            allow(client, 60)
            assert (await client.update_session(sid, metadata={"n": 9})).metadata == {"n": 9}
            assert client._channel._line is line
        end(script)


@in_each_loop
async def test_what_was_not_sent_in_time_is_not_made(service: Scripted) -> None:
    service.store_path(b"/nowhere/at/all")
    async with AsyncSessionClient(service._manager.name, timeout=0.05) as client:
        with pytest.raises(WriterUnavailable, match="No such file") as caught:
            await client.create_session()
        assert not caught.value.outcome_unknown
        allow(client, 60)
        service.publish()
        await client.create_session()
        assert len(client) == 1


@in_each_loop
async def test_each_has_a_deadline_of_its_own(service: Scripted) -> None:
    gate = service.act = Gate(service)
    async with AsyncSessionClient(service._manager.name, timeout=0.1) as client:
        first = asyncio.create_task(client.create_session())
        await turns()
        client._channel._timeout = 60
        second = asyncio.create_task(client.create_session())
        with pytest.raises(WriterUnavailable, match=r"within 60 s"):
            await first
        assert not second.done()
        gate.open()
        assert await second in client


@in_each_loop
async def test_a_service_that_drops_each_request_is_left_at_the_deadline(
    service: Scripted,
) -> None:
    service.act = lambda _: None
    async with AsyncSessionClient(service._manager.name, timeout=0.3) as client:
        with pytest.raises(WriterUnavailable) as caught:
            await client.create_session()
        assert caught.value.outcome_unknown
    # Not as fast as it can.
    assert len(service.requests) < 50


@in_each_loop
async def test_what_came_while_the_loop_stood_still_came_in_time(service: Scripted) -> None:
    async with patient(service) as client:
        await client.create_session()
        allow(client, 0.1)
        call = asyncio.create_task(client.update_session(UUID(int=404)))
        await turns(1)
        wait_until(lambda: len(service.requests) == 2)
        late = time.monotonic() + 0.2
        wait_until(lambda: time.monotonic() > late)
        with pytest.raises(SessionNotFound):
            await call


@in_each_loop
async def test_a_service_that_accepts_nobody_is_waited_for_and_said_to(
    service: Scripted, tmp_path: Path
) -> None:
    """One with so many clients waiting already that the kernel takes no more."""
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
        full.bind(str(tmp_path / "full"))
        full.listen(0)
        first.connect(str(tmp_path / "full"))
        service.store_path(str(tmp_path / "full").encode())
        async with AsyncSessionClient(service._manager.name, timeout=0.2) as client:
            with pytest.raises(WriterUnavailable, match="it accepts nobody") as caught:
                await client.create_session()
            assert not caught.value.outcome_unknown
            allow(client, 60)
            call = asyncio.create_task(client.create_session())
            await turns()
            service.publish()
            assert await call in client


# ---------------------------------------------------------------------------- no service


@in_each_loop
async def test_a_writer_that_does_not_listen_is_said_to(name: str) -> None:
    with SessionManager(name) as manager:
        async with AsyncSessionClient(name, timeout=60) as client:
            with pytest.raises(WriterUnavailable, match="listen=True") as caught:
                await client.create_session()
            assert not caught.value.outcome_unknown
            assert len(client) == 0
        manager.unlink()


@in_each_loop
async def test_without_a_writer_a_change_fails_at_once_and_the_next_writer_is_found(
    name: str,
) -> None:
    async def insist() -> None:
        while True:
            with suppress(WriterUnavailable):
                await client.update_session(sid, metadata={"a": 2})
                return

    with server(name) as script:
        async with AsyncSessionClient(name, timeout=60) as client:
            sid = await client.create_session({"a": 1})
            script.kill()
            for _ in range(3):
                with pytest.raises(WriterUnavailable) as caught:
                    await client.update_session(sid, metadata={})
                assert (caught.value.name, caught.value.outcome_unknown) == (name, False)
                assert client[sid].metadata == {"a": 1}
            # Whoever tries without a pause leaves the others their turns.
            insisting = asyncio.create_task(insist())
            await turns()
            with server(name) as successor:
                await insisting
                assert client[sid].metadata == {"a": 2}
                client.close()
                end(successor)


@in_each_loop
async def test_a_refusal_is_given_as_the_reason(service: Scripted) -> None:
    service.greeting = Refused("too many clients")
    async with AsyncSessionClient(service._manager.name, timeout=0.5) as client:
        with pytest.raises(WriterUnavailable) as caught:
            await client.create_session()
        assert (caught.value.reason, caught.value.outcome_unknown) == ("too many clients", False)


@in_each_loop
async def test_a_service_of_another_version_is_an_error_at_once(service: Scripted) -> None:
    service.greeting = Hello(PROTOCOL_VERSION + 1, bytes(16))
    async with patient(service) as client:
        with pytest.raises(WriterUnavailable, match="use one version of jidoka_shm everywhere"):
            await client.create_session()


@in_each_loop
async def test_a_service_of_another_registry_is_not_asked(service: Scripted) -> None:
    right, service.greeting = service.greeting, Hello(PROTOCOL_VERSION, bytes(16))
    async with patient(service) as client:
        call = asyncio.create_task(client.create_session())
        await until(lambda: service.accepted > 1)
        assert service.requests == []
        service.greeting = right
        assert await call in client


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"\0/tmp/x", b"x" * 128, b"."])
def test_damage_to_the_path_is_no_service(service: Scripted, raw: bytes) -> None:
    service.store_path(raw)

    async def main() -> None:
        async with AsyncSessionClient(service._manager.name, timeout=0.2) as client:
            with pytest.raises(WriterUnavailable) as caught:
                await client.create_session()
            assert caught.value.reason
            allow(client, 60)
            service.publish()
            await client.create_session()

    run(main())


# ---------------------------------------------------------------------------- exactly once


def before(service: Scripted) -> Callable[[Request], Reply | None]:
    """Return an ``act`` that ends the connection before a request is carried out, once."""
    return first_only(service, lambda _: None)


def after(service: Scripted) -> Callable[[Request], Reply | None]:
    """Return an ``act`` that ends the connection after a request is carried out, once."""

    def act(request: Request) -> None:
        service.apply(request)

    return first_only(service, act)


@each_loop
@pytest.mark.parametrize("loss", [before, after])
def test_a_lost_connection_leaves_each_change_made_once(
    service: Scripted, new_loop: NewLoop, loss: Callable[..., Any]
) -> None:
    async def main() -> None:
        async with patient(service) as client:
            service.act = loss(service)
            sid = await client.create_session({"a": 1})
            assert (client.version, client[sid].version) == (1, 1)
            service.act = loss(service)
            assert await client.update_session(sid, status="active") == client[sid]
            service.act = loss(service)
            await client.terminate_session(sid, "over")
            assert (client.version, client[sid].error) == (3, "over")

    run(main(), new_loop)
    sent = service.requests
    assert [request.request for request in sent[::2]] == [each.request for each in sent[1::2]]
    assert [request.again for request in sent[::2]] == [None] * 3
    assert [request.again.version for request in sent[1::2]] == [0, 1, 2]


@each_loop
@pytest.mark.parametrize(
    ("answered", "applied"), [(0, 0), (0, 1), (0, 30), (1, 15), (7, 8), (15, 15), (29, 30)]
)
def test_of_many_tasks_each_change_is_made_once(
    service: Scripted, new_loop: NewLoop, answered: int, applied: int
) -> None:
    """Wherever the connection is lost, and whatever was carried out by then."""
    service.act = _lose(service, answered, applied)

    async def main() -> None:
        async with patient(service) as client:
            calls = [client.create_session({"n": n}) for n in range(30)]
            made = await outcomes(calls)
            assert [client[sid].metadata["n"] for sid in made] == list(range(30))
            assert client.version == 30

    run(main(), new_loop)


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


@each_loop
@pytest.mark.parametrize(
    ("answered", "applied"), [(0, 0), (0, 2), (1, 2), (0, 3), (2, 3), (0, 4), (3, 4)]
)
def test_a_resize_among_changes_is_made_and_keeps_none_from_being_known(
    service: Scripted, new_loop: NewLoop, answered: int, applied: int
) -> None:
    """Wherever the connection is lost, and whatever was carried out by then."""

    async def main() -> None:
        async with patient(service) as client:
            sids = await outcomes([client.create_session() for _ in range(2)])
            service.act = _lose(service, answered, applied)
            calls = [client.update_session(sid, metadata={"n": 1}) for sid in sids]
            calls.insert(1, client.resize(100))
            calls.insert(3, client.resize(200, 256))
            first, small, second, large = await outcomes(calls)
            assert [first.metadata, second.metadata] == [{"n": 1}] * 2
            assert (small, large) == (None, None)
            stats = client.stats()
            assert (stats.capacity, stats.slot_size, stats.version) == (200, 256, 4)
            assert [client[sid] for sid in sids] == [first, second]

    run(main(), new_loop)


@in_each_loop
async def test_without_a_writer_the_size_tells_whether_a_resize_was_made(
    service: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(request: Request) -> None:
        if request.capacity == 8:
            service.apply(request)
        service.stop_listening()
        monkeypatch.setattr(AsyncSessionClient, "writer_alive", False)

    async with patient(service) as client:
        service.act = end
        await client.resize(8)
        assert client.stats().capacity == 8
        monkeypatch.undo()
        service.listen_again()
        with pytest.raises(WriterUnavailable) as caught:
            await client.resize(9)
        assert caught.value.outcome_unknown


@in_each_loop
async def test_a_resize_that_is_cancelled_is_made_all_the_same(service: Scripted) -> None:
    gate = Gate(service)
    service.act = first_only(service, gate)
    async with patient(service) as client:
        resizing = asyncio.create_task(client.resize(8))
        await until(gate.asked.is_set)
        await cancelled(resizing)
        later = asyncio.create_task(client.create_session())
        gate.open()
        assert await later in client
        assert client.stats().capacity == 8


@each_loop
@pytest.mark.parametrize(
    ("answered", "applied"), [(a, b) for b in range(6) for a in range(max(b, 1))]
)
def test_only_what_another_call_has_replaced_cannot_be_told(
    service: Scripted, new_loop: NewLoop, answered: int, applied: int
) -> None:
    """Five tasks change one session; what one of them is known to have made tells of the next."""

    async def main() -> None:
        async with patient(service) as client:
            sid = await client.create_session()
            service.act = _lose(service, answered, applied)
            calls = [client.update_session(sid, metadata={"n": n}) for n in range(5)]
            results = await outcomes(calls)
            unknown = [at for at, result in enumerate(results) if isinstance(result, Exception)]
            assert unknown == list(range(answered, applied - 1))
            assert all(results[at].outcome_unknown for at in unknown)
            assert client[sid].metadata == {"n": 4}
            assert client.version == 6

    run(main(), new_loop)


@in_each_loop
async def test_a_call_that_was_answered_or_cancelled_tells_of_the_next_as_well(
    service: Scripted,
) -> None:
    """Those that were sent before another, and answered after it was sent."""
    for is_cancelled in (False, True):
        async with patient(service) as client:
            sid = await client.create_session()
            gate = service.act = Gate(service)
            first = asyncio.create_task(client.update_session(sid, metadata={"n": 1}))
            await until(gate.asked.is_set)
            second = asyncio.create_task(client.update_session(sid, metadata={"n": 2}))
            await until(lambda: len(client._channel._flying) == 2)
            service.act = before(service)
            service.succeed()
            if is_cancelled:
                await cancelled(first)
            gate.open()
            assert (await second).version == client.version
            assert client[sid].metadata == {"n": 2}


@in_each_loop
async def test_what_is_cancelled_is_not_sent_again(service: Scripted) -> None:
    lost = threading.Event()

    def act(request: Request) -> Reply | None:
        lost.wait(60)
        return None

    async with patient(service) as client:
        service.act = act
        tasks = [asyncio.create_task(client.create_session({"n": n})) for n in range(3)]
        await until(lambda: service.requests)
        await cancelled(tasks[1])
        service.act = service.apply
        lost.set()
        await outcomes([tasks[0], tasks[2]])
        assert sorted(session.metadata["n"] for session in client.values()) == [0, 2]


@in_each_loop
async def test_what_was_not_handed_over_is_sent_as_new(service: Scripted) -> None:
    """A pipeline that is larger than the buffers is lost with one request; so is what follows."""
    service.act = before(service)
    async with patient(service) as client:
        changes = client.pipeline()
        for _ in range(1000):
            changes.create_session({"text": "x" * 300})
        sending = asyncio.create_task(changes.execute())
        await turns(1)
        sid = await client.create_session()
        assert len(set(await sending)) == 1000
        assert client.version == len(client) == 1001
    again = [request.again is not None for request in service.requests[1:]]
    assert again == sorted(again, reverse=True)
    assert 0 < sum(again) < 1000
    assert id_of(service.requests[-1]) == sid


@in_each_loop
async def test_a_connection_lost_while_it_repeats_repeats_the_rest(service: Scripted) -> None:
    left = 12

    def act(request: Request) -> Reply | None:
        nonlocal left
        left -= 1
        reply = service.apply(request)
        return reply if left <= 0 or left % 3 == 0 else None

    service.act = act
    async with patient(service) as client:
        made = await outcomes([client.create_session() for _ in range(20)])
        assert client.version == len(set(made)) == 20
    assert service.accepted == 9


@in_each_loop
async def test_an_unknown_outcome_is_said_to_be(service: Scripted) -> None:
    async with patient(service) as client:
        sid = await client.create_session()
        for reply in (Unknown(), Done(b"no slot"), Failed("NoSuchError", [])):
            service.act = lambda _: reply  # noqa: B023 - called right here
            with pytest.raises(WriterUnavailable) as caught:
                await client.update_session(sid)
            assert caught.value.outcome_unknown


@in_each_loop
async def test_an_own_id_that_is_taken_is_its_own_after_a_loss(service: Scripted) -> None:
    async with patient(service) as client:
        replies = iter([None, pack_error(SessionExists(UUID(int=1)))])
        service.act = lambda request: service.apply(request) and next(replies)
        assert await client.create_session() in client


@in_each_loop
async def test_a_reply_that_nobody_asked_for_ends_the_connection(
    service: Scripted, tmp_path: Path
) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(encode(service.greeting) + encode(Done(b"")))
        connection.recv(1)

    with Peer(tmp_path / "peer", serve) as peer:
        service.store_path(peer.path.encode())
        async with AsyncSessionClient(service._manager.name, timeout=0.5) as client:
            with pytest.raises(WriterUnavailable, match="what nobody asked"):
                await client.create_session()


@in_each_loop
async def test_what_the_memory_shows_to_be_made_needs_no_writer(name: str) -> None:
    """Made, unknown, and not made, at once, when the writer dies with all of them."""
    with server(name) as script:
        async with AsyncSessionClient(name, timeout=60) as client:
            sids = [await client.create_session() for _ in range(3)]
            stop(script.pid)
            calls = [client.update_session(sid, metadata={"a": 1}) for sid in sids]
            tasks = [asyncio.create_task(call) for call in calls]
            await until(lambda: len(client._channel._flying) == 3)
            script.kill()
            for error in await outcomes(tasks):
                assert isinstance(error, WriterUnavailable)
                assert error.outcome_unknown
            with server(name) as successor:
                assert (await client.update_session(sids[0], status="active")).metadata == {}
                client.close()
                end(successor)


@in_each_loop
async def test_another_registry_under_the_name_leaves_an_outcome_unknown(
    name: str, tmp_path: Path
) -> None:
    with SessionManager(name) as first:
        sid = first.create_session()
        with Scripted(first, tmp_path / "1") as service:
            seconds: list[SessionManager] = []

            def replace(_: Request) -> None:
                service.stop_listening()
                first.unlink()
                seconds.append(SessionManager(name, listen=True))

            async with AsyncSessionClient(name, timeout=60) as client:
                service.act = replace
                with pytest.raises(WriterUnavailable) as caught:
                    await client.update_session(sid)
                assert caught.value.outcome_unknown
                (second,) = seconds
                assert await client.create_session() in second
                second.unlink()
                with pytest.raises(RegistryClosed):
                    await client.create_session()


@in_each_loop
async def test_a_connection_to_the_last_registry_is_not_used_for_the_next(
    name: str, tmp_path: Path
) -> None:
    first = SessionManager(name)
    with Scripted(first, tmp_path / "1") as service:
        async with AsyncSessionClient(name, timeout=60) as client:
            await client.create_session()
            first.unlink()
            with SessionManager(name, listen=True) as second:
                client.refresh()
                assert await client.create_session() in second
                second.unlink()
            assert len(service.requests) == 1


@in_each_loop
async def test_an_end_that_nobody_waits_for_is_noticed(service: Scripted, tmp_path: Path) -> None:
    async with patient(service) as client:
        await client.create_session()
        service.end()
        await until(lambda: client._channel._line is None)
        with Scripted(service._manager, tmp_path / "another") as successor:
            await client.create_session()
            assert [request.again for request in successor.requests] == [None]


@in_each_loop
async def test_what_fails_while_replies_are_taken_mixes_up_none(
    service: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the exception of a signal handler: the rest of them is asked for again."""
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: errors.append(what))
    take = Asked.take
    chances = iter([True, True, False])

    def take_or_fail(asked: Asked, reply: Reply) -> None:
        if not next(chances, True):
            raise LookupError
        take(asked, reply)

    monkeypatch.setattr(Asked, "take", take_or_fail)
    async with patient(service) as client:
        made = await outcomes([client.create_session({"n": n}) for n in range(9)])
        assert [client[sid].metadata["n"] for sid in made] == list(range(9))
        assert client.version == 9
    assert service.accepted == 2
    assert len(errors) == 1


# ---------------------------------------------------------------------------- kill -9


@each_loop
def test_a_writer_that_is_killed_under_fifty_tasks_loses_and_repeats_nothing(
    name: str, new_loop: NewLoop
) -> None:
    """Four times, with a successor that waits for its death or comes a little later."""
    deaths, tasks_at_once = 4, 50

    async def work(
        client: AsyncSessionClient, sid: UUID, done: list[int], go_on: list[int]
    ) -> None:
        """Count up in one session, of one version only: made twice, it is a conflict."""
        session = client[sid]
        while go_on:
            number, version = session.metadata["n"] + 1, session.version
            possible = {number}
            try:
                await client.update_session(sid, metadata={"n": number}, expected_version=version)
            except WriterUnavailable as error:
                possible = {number - 1, number} if error.outcome_unknown else {number - 1}
                await asyncio.sleep(0.001)
            # Nobody else changes this session.
            session = client[sid]
            assert session.metadata["n"] in possible
            done[0] += 1
        assert client[sid] == session

    async def main() -> None:
        scripts = [server(name)]
        try:
            async with AsyncSessionClient(name, timeout=30) as client:
                sids = await outcomes(
                    [client.create_session({"n": 0}) for _ in range(tasks_at_once)]
                )
                go_on, done = [1], [0]
                tasks = [asyncio.create_task(work(client, sid, done, go_on)) for sid in sids]
                for death in range(deaths):
                    seen = done[0]
                    await until(lambda: done[0] > seen + 200)  # noqa: B023 - run right here
                    if death % 2:
                        # It is there before the death; the other comes into an empty place.
                        scripts.append(server(name, "wait"))
                    scripts[death].kill()
                    if death % 2:
                        assert scripts[-1].line() == "ready"
                    else:
                        scripts.append(server(name))
                await until(lambda: done[0] > seen + 400)
                go_on.clear()
                await asyncio.gather(*tasks)
                assert sum(session.metadata["n"] for session in client.values()) > 0
        finally:
            for script in scripts[:-1]:
                with script:
                    pass
            with scripts[-1]:
                end(scripts[-1])

    run(main(), new_loop)
