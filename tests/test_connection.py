"""One connection: what begins it, what ends it, and that every wait has a deadline."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
import termios
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
from host import exit_code, forked, in_child
from services import GREETING, Peer, frames_of, sockets
from support import INSTANCE, wait_until

from jidoka_shm.connection import Connection, Incompatible, Lost
from jidoka_shm.protocol import (
    MAX_FRAME,
    PROTOCOL_VERSION,
    Done,
    Hello,
    Refused,
    Terminate,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from jidoka_shm.protocol import Reply

REQUEST = encode(Terminate(bytes(16), None, bytes(16), None))
DONE = encode(Done(b""))


def soon(seconds: float = 60) -> float:
    """Return a deadline; the long one only catches hanging."""
    return time.monotonic() + seconds


def greeted_by(serve: Callable[[socket.socket], None], connection: socket.socket) -> None:
    """Greet, then serve."""
    connection.sendall(GREETING)
    serve(connection)


def to_the_end(connection: socket.socket) -> None:
    """Read and say nothing."""
    while connection.recv(1 << 16):
        pass


def answer_each(connection: socket.socket, reply: bytes = DONE) -> None:
    """Answer each frame before the next is read, and wait until the answer is taken."""
    for _ in frames_of(connection):
        connection.sendall(reply)


def say(text: bytes, connection: socket.socket) -> None:
    """Say it, then nothing."""
    connection.sendall(text)
    to_the_end(connection)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a peer listens."""
    return tmp_path / "socket"


# ---------------------------------------------------------------------------- the beginning


def test_a_connection_knows_the_instance_that_it_leads_to(path: Path) -> None:
    with Peer(path, partial(say, GREETING)) as peer:
        assert Connection(peer.path, soon()).instance == INSTANCE


def test_a_greeting_may_come_in_pieces(path: Path) -> None:
    def drip(connection: socket.socket) -> None:
        for at in range(len(GREETING)):
            connection.sendall(GREETING[at : at + 1])
        to_the_end(connection)

    with Peer(path, drip) as peer:
        assert Connection(peer.path, soon()).instance == INSTANCE


def test_another_version_of_the_protocol_is_named(path: Path) -> None:
    other = encode(Hello(PROTOCOL_VERSION + 1, INSTANCE.bytes))
    with Peer(path, partial(say, other)) as peer, pytest.raises(Incompatible) as caught:
        Connection(peer.path, soon())
    assert f"version {PROTOCOL_VERSION + 1} of the protocol" in str(caught.value)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (encode(Refused("too many clients")), "too many clients"),
        (DONE, "began with Done"),
        (b"\x01\0\0\0\xc1", "not a message"),
        ((MAX_FRAME * 100).to_bytes(4, "little"), "is the limit"),
        (b"HTTP/1.1 400 Bad Request\r\n", "is the limit"),
        (GREETING + DONE, "nobody asked"),
    ],
)
def test_what_is_no_greeting_ends_the_connection(path: Path, said: bytes, reason: str) -> None:
    with Peer(path, partial(say, said)) as peer, pytest.raises(Lost, match=reason):
        Connection(peer.path, soon())


def test_an_end_before_the_greeting_is_an_end(path: Path) -> None:
    with Peer(path, socket.socket.close) as peer, pytest.raises(Lost, match="ended"):
        Connection(peer.path, soon())


def test_nobody_there_is_an_error_at_once(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Connection(str(path), soon())
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
    with pytest.raises(ConnectionRefusedError):
        Connection(str(path), soon())


# ---------------------------------------------------------------------------- replies


def exchange(connection: Connection, count: int = 1, seconds: float = 60) -> list[Reply]:
    """Send so many requests and return the replies."""
    replies: list[Reply] = []
    connection.exchange(REQUEST * count, count, soon(seconds), replies.append)
    return replies


def test_each_request_gets_its_reply(path: Path) -> None:
    with Peer(path, partial(greeted_by, answer_each)) as peer:
        connection = Connection(peer.path, soon())
        for count in (1, 1, 3, 100):
            assert exchange(connection, count) == [Done(b"")] * count
            assert connection.handed == count * len(REQUEST)


def unread(connection: socket.socket) -> int:
    """Return how many bytes the other side has not read yet."""
    answer = fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


def test_replies_may_come_in_any_pieces(path: Path) -> None:
    replies = [Done(bytes(size)) for size in (0, 1, 40)]
    data = b"".join(map(encode, replies))

    def serve(connection: socket.socket) -> None:
        for number, _ in enumerate(frames_of(connection)):
            at, asked = divmod(number, len(replies))
            if asked == len(replies) - 1:
                connection.sendall(data[: at + 1])
                wait_until(lambda: unread(connection) == 0)
                connection.sendall(data[at + 1 :])

    with Peer(path, partial(greeted_by, serve)) as peer:
        connection = Connection(peer.path, soon())
        for _ in range(len(data) - 1):
            assert exchange(connection, len(replies)) == replies


def test_replies_are_read_while_requests_are_sent(path: Path) -> None:
    """T9: neither side's buffers hold all; a client that only sent would wait for ever."""
    count, reply = 2000, Done(bytes(4000))
    request = encode(Terminate(bytes(16), None, bytes(16), "x" * 2000))
    with Peer(path, partial(greeted_by, partial(answer_each, reply=encode(reply)))) as peer:
        connection = Connection(peer.path, soon())
        replies: list[Reply] = []
        connection.exchange(request * count, count, soon(), replies.append)
        assert replies == [reply] * count
        assert connection.handed == len(request) * count


def test_what_was_answered_before_the_end_is_taken(path: Path) -> None:
    """The service ends in the middle of many, with requests unread and replies on their way."""
    count, answered = 2000, 7
    request = encode(Terminate(bytes(16), None, bytes(16), "x" * 2000))

    def serve(connection: socket.socket) -> None:
        frames = frames_of(connection)
        for _ in range(answered):
            next(frames)
        connection.sendall(DONE * answered)

    with Peer(path, partial(greeted_by, serve)) as peer:
        connection = Connection(peer.path, soon())
        replies: list[Reply] = []
        with pytest.raises(Lost):
            connection.exchange(request * count, count, soon(), replies.append)
        assert replies == [Done(b"")] * answered
        assert answered * len(request) <= connection.handed < count * len(request)


def test_an_end_between_a_look_and_a_send_loses_no_reply(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2000
    request = encode(Terminate(bytes(16), None, bytes(16), "x" * 2000))

    def serve(connection: socket.socket) -> None:
        next(frames_of(connection))
        connection.sendall(DONE)

    with Peer(path, partial(greeted_by, serve)) as peer:
        connection = Connection(peer.path, soon())

        class Late:
            """Looks before the service's end, and says so after it."""

            def register(self, *_: object) -> None:
                pass

            def poll(self, _: float) -> list[tuple[int, int]]:
                peer.join_clients()
                return [(0, select.POLLOUT)]

        monkeypatch.setattr(select, "poll", Late)
        replies: list[Reply] = []
        with pytest.raises(Lost):
            connection.exchange(request * count, count, soon(), replies.append)
        assert replies == [Done(b"")]


def test_what_an_ended_service_cannot_have_got_was_not_handed_over(path: Path) -> None:
    with Peer(path, partial(greeted_by, answer_each)) as peer:
        connection = Connection(peer.path, soon())
        exchange(connection)
        peer.end()
        with pytest.raises(Lost):
            exchange(connection)
        assert connection.handed == 0


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (encode(Refused("closing")), "closing"),
        (DONE + DONE, "nobody asked"),
        (b"\x01\0\0\0\xc1", "not a message"),
        (b"", "ended the connection"),
        (DONE[:-1], "ended the connection"),
    ],
)
def test_what_is_no_reply_ends_the_connection(path: Path, said: bytes, reason: str) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(said)

    with Peer(path, partial(greeted_by, serve)) as peer:
        connection = Connection(peer.path, soon())
        with pytest.raises(Lost, match=reason):
            exchange(connection)


def test_no_reply_is_taken_that_is_not_due(path: Path) -> None:
    """It would settle the request behind the one that it answers a second time."""

    def serve(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(DONE + DONE)

    taken: list[object] = []
    with Peer(path, partial(greeted_by, serve)) as peer:
        connection = Connection(peer.path, soon())
        with pytest.raises(Lost, match="nobody asked"):
            connection.exchange(REQUEST, 1, soon(), taken.append)
    assert len(taken) == 1


# ---------------------------------------------------------------------------- deadlines


def test_a_silent_service_is_waited_for_no_longer_than_said(path: Path) -> None:
    with Peer(path, to_the_end) as peer, pytest.raises(TimeoutError):
        Connection(peer.path, soon(0.05))
    with Peer(path, partial(say, GREETING)) as peer:
        connection = Connection(peer.path, soon())
        with pytest.raises(TimeoutError):
            exchange(connection, seconds=0.05)


def test_a_service_that_does_not_accept_is_waited_for_no_longer_than_said(path: Path) -> None:
    """Whether the kernel still takes connections for it or not."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        for _ in range(3):
            # TimeoutError where it took one, BlockingIOError where it takes no more.
            with pytest.raises((TimeoutError, BlockingIOError)):
                Connection(str(path), soon(0.05))


def test_a_service_that_reads_nothing_is_waited_for_no_longer_than_said(path: Path) -> None:
    done = threading.Event()
    with Peer(path, partial(greeted_by, lambda _: done.wait())) as peer:
        connection = Connection(peer.path, soon())
        with pytest.raises(TimeoutError):
            exchange(connection, 100_000, seconds=0.05)
        assert 0 < connection.handed < 100_000 * len(REQUEST)
        done.set()


def test_a_deadline_may_be_farther_away_than_the_kernel_waits(path: Path) -> None:
    replies: list[Reply] = []
    with Peer(path, partial(greeted_by, answer_each)) as peer:
        connection = Connection(peer.path, soon(100 * 366 * 86_400))
        connection.exchange(REQUEST, 1, soon(100 * 366 * 86_400), replies.append)
    assert replies == [Done(b"")]


def test_a_reply_that_comes_byte_by_byte_moves_no_deadline(path: Path) -> None:
    def drip(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall((1 << 20).to_bytes(4, "little"))
        while True:
            connection.sendall(b"x")
            wait_until(lambda: unread(connection) == 0)

    with Peer(path, partial(greeted_by, drip)) as peer:
        connection = Connection(peer.path, soon())
        with pytest.raises(TimeoutError):
            exchange(connection, seconds=0.1)
        del connection


def test_signals_move_no_deadline(path: Path) -> None:
    """A profiler's timer interrupts each wait long before its end."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    with Peer(path, partial(say, GREETING)) as peer:
        connection = Connection(peer.path, soon())
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        try:
            with pytest.raises(TimeoutError):
                exchange(connection, seconds=0.1)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("begun", [False, True])
def test_a_deadline_that_is_over_is_over(path: Path, begun: bool) -> None:
    with Peer(path, partial(greeted_by, answer_each)) as peer:
        if begun:
            connection = Connection(peer.path, soon())
            with pytest.raises(TimeoutError):
                exchange(connection, seconds=0)
        else:
            with pytest.raises(TimeoutError):
                Connection(peer.path, soon(0))


# ---------------------------------------------------------------------------- descriptors


def test_a_connection_is_closed_with_its_last_user(path: Path) -> None:
    with Peer(path, to_the_end) as peer:
        before = sockets()
        with pytest.raises(TimeoutError):
            Connection(peer.path, soon(0.01))
        peer.end()
        assert sockets() <= before


def test_a_dead_service_is_an_error_where_sigpipe_has_its_default(path: Path) -> None:
    with Peer(path, partial(greeted_by, answer_each)) as peer:
        connection = Connection(peer.path, soon())
        peer.end()

        def send() -> None:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            # The fork has closed this process's copy.
            theirs, connection._socket = socket.socketpair()
            theirs.close()
            with pytest.raises(Lost):
                exchange(connection)

        assert in_child(send) == 0


def test_a_child_lets_go_of_its_parents_connection(path: Path) -> None:
    """P5: the service sees its client's end though a child of the client lives on."""
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        answer_each(connection)
        ended.set()

    with Peer(path, partial(greeted_by, serve)) as peer:
        connections = [Connection(peer.path, soon())]
        reading, writing = os.pipe()

        def live() -> None:
            os.close(writing)
            # Nothing of the parent's connection may be used here.
            with pytest.raises(Lost):
                exchange(connections[0])
            os.read(reading, 1)

        pid = forked(live)
        assert exchange(connections[0]) == [Done(b"")]
        connections.clear()
        assert ended.wait(30)
        os.close(writing)
        os.close(reading)
        assert exit_code(pid) == 0
