"""One connection to a registry's service on an event loop: it waits for nothing itself.

The socket is its own and no transport's: so it is known how many bytes the kernel took, which
tells what a service may have carried out, and a forked child lets go of it without the loop.
"""

from __future__ import annotations

import contextlib
import socket
import weakref
from typing import TYPE_CHECKING, Final, Protocol

from . import forks
from .connection import Incompatible, Lost, UnixSocket
from .protocol import MAX_REPLY, FrameBuffer, ProtocolError, Refused, decode_reply

if TYPE_CHECKING:
    import asyncio

    from .protocol import Reply

#: Bytes that one receive takes at most.
_CHUNK: Final = 1 << 16

#: A writer's death must be an error here, also in a program that gave SIGPIPE its default back.
_SEND: Final = getattr(socket, "MSG_NOSIGNAL", 0)


class Owner(Protocol):
    """Who is told what happens to a line, in callbacks of the loop."""

    def take(self, reply: Reply) -> None:
        """Take a reply; ``Lost`` or ``Incompatible`` ends the line."""

    def go_on(self) -> None:
        """Send what there is: the replies of one receive are all taken."""

    def lose(self, error: Exception) -> None:
        """Take the end of the line, and why."""


class Line:
    """A connection that reads whenever there is something to be read.

    Attributes:
        given: how many bytes it was given to send.
        handed: how many of them the kernel took.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, path: str, owner: Owner) -> None:
        """Connect.

        Args:
            loop: the loop that runs.
            path: where the service listens.
            owner: who is told what happens.

        Raises:
            OSError: where nobody listens there; BlockingIOError where too many wait there.
        """
        self.given = self.handed = 0
        self._loop = loop
        self._owner = owner
        self._buffer = FrameBuffer(MAX_REPLY)
        self._unsent = memoryview(b"")
        self._is_writing = False
        # Before there is a descriptor: a thread that forks meanwhile must not leave one behind.
        forks.register(self)
        self._socket = UnixSocket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)  # noqa: FBT003 - the socket's own name for it
        try:
            self._socket.connect(path)
        except BaseException:
            self._socket.let_go()
            raise
        # The loop must not keep a line whose client nobody has any more. It does keep the socket:
        # in one cycle of garbage with its line, it could close itself while the loop watches it.
        loop.add_reader(self._socket.fileno(), _read, weakref.ref(self), self._socket)

    @property
    def has_room(self) -> bool:
        """Whether all that it was given to send was sent."""
        return not self._unsent

    def send(self, data: bytes) -> None:
        """Send as much as the socket takes, and the rest when it can; only where there is room."""
        self.given += len(data)
        self._unsent = memoryview(data)
        self._send_more()

    def _send_more(self) -> None:
        try:
            count = self._socket.send(self._unsent, _SEND)
        except BlockingIOError:
            count = 0
        except OSError:
            # What was answered before the service's end is still there to be read, and then the
            # end, which this makes sure of.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            self._await_room(wanted=False)
            return
        self.handed += count
        self._unsent = self._unsent[count:]
        self._await_room(wanted=bool(self._unsent))

    def _await_room(self, *, wanted: bool) -> None:
        if wanted and not self._is_writing:
            self._loop.add_writer(self._socket.fileno(), _write, weakref.ref(self))
        elif self._is_writing and not wanted:
            self._loop.remove_writer(self._socket.fileno())
        self._is_writing = wanted

    def write(self) -> None:
        """Send more, now that there is room; the loop's callback."""
        self._send_more()

    def read(self) -> None:
        """Take what came; the loop's callback."""
        try:
            data = self._socket.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(Lost(str(error)))
            return
        try:
            self._feed(data)
        except (Lost, Incompatible) as error:
            self._end(error)
        except BaseException as error:
            # Of a signal handler, say: which replies were taken is not known any more.
            self._end(Lost(repr(error)))
            raise
        else:
            self._owner.go_on()

    def _feed(self, data: bytes) -> None:
        if not data:
            msg = "it ended the connection"
            raise Lost(msg)
        try:
            for frame in self._buffer.feed(data):
                reply = decode_reply(frame)
                if type(reply) is Refused:
                    raise Lost(reply.reason)
                self._owner.take(reply)
        except ProtocolError as error:
            raise Lost(str(error)) from None

    def _end(self, error: Exception) -> None:
        self.close()
        self._owner.lose(error)

    def close(self) -> None:
        """Close the connection. May be repeated."""
        descriptor = self._socket.fileno()
        if descriptor >= 0:
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)
            self._socket.let_go()

    def after_fork_in_child(self) -> None:
        """Let go of the parent's connection; the loop's epoll is the parent's as well."""
        inherited = getattr(self, "_socket", None)
        if inherited is not None:
            inherited.let_go()

    def __del__(self) -> None:
        # In any thread, and at any moment. The descriptor must leave the loop before its number is
        # another's; where the loop is closed, the socket closes itself.
        left = getattr(self, "_socket", None)
        if left is not None and left.fileno() >= 0:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_let_go, self._loop, left)


def _read(line: weakref.ref[Line], _: UnixSocket) -> None:
    alive = line()
    if alive is not None:
        alive.read()


def _write(line: weakref.ref[Line]) -> None:
    alive = line()
    if alive is not None:
        alive.write()


def _let_go(loop: asyncio.AbstractEventLoop, left: UnixSocket) -> None:
    loop.remove_reader(left.fileno())
    loop.remove_writer(left.fileno())
    left.let_go()
