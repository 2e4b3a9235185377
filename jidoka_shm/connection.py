"""One connection to a registry's service: blocking, with a deadline, used by one call at a time.

In the usual case a change is one send and one receive. Many at once are sent as far as the
socket takes them, and replies are read in between: with both sides' buffers full and both only
sending, neither would go on.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from typing import TYPE_CHECKING, Final
from uuid import UUID

from . import forks
from .protocol import (
    MAX_REPLY,
    PROTOCOL_VERSION,
    FrameBuffer,
    Hello,
    ProtocolError,
    Refused,
    decode_reply,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .control import ControlReader
    from .protocol import Reply

#: Bytes that one receive takes at most.
_CHUNK: Final = 1 << 16

#: Nothing waits but ``poll``, which alone keeps its deadline when signals interrupt it, and a
#: socket with a timeout of its own would ask the kernel twice as often.
_NO_WAIT: Final = socket.MSG_DONTWAIT if sys.platform == "linux" else 0

#: A writer's death must be an error here, also in a program that gave SIGPIPE its default back.
_SEND: Final = _NO_WAIT | getattr(socket, "MSG_NOSIGNAL", 0)


#: The longest wait in seconds, 24 days: poll(2) takes no more milliseconds than an int holds.
_LONGEST: Final = 2_147_483.0


class Lost(Exception):  # noqa: N818 - as the errors of errors.py
    """Internal: the connection has come to its end, and is of no use any more."""


class Incompatible(Exception):  # noqa: N818 - as above
    """Internal: the service speaks another version of the protocol."""


class UnixSocket(socket.socket):
    """A socket that is closed with its last user; the usual one would warn of that."""

    def __del__(self) -> None:
        self.let_go()

    def let_go(self) -> None:
        """Close the descriptor and nothing else: a shutdown would end the parent's connection."""
        descriptor = self.detach()
        if descriptor >= 0:
            os.close(descriptor)


class Connection:
    """A connection whose service has said what it serves.

    Attributes:
        instance: the registry's instance that the service writes.
        control: the control of that instance.
        handed: how many bytes of the last exchange the kernel took.
    """

    instance: UUID
    control: ControlReader

    def __init__(self, path: str, deadline: float) -> None:
        """Connect and read the service's first message.

        Args:
            path: where it listens.
            deadline: until when, by the monotonic clock in seconds.

        Raises:
            OSError: where nobody listens there; TimeoutError at the deadline.
            Lost: where the service refuses, or ends.
            Incompatible: where it speaks another version of the protocol.
        """
        self.handed = 0
        self._sends = True
        self._buffer = FrameBuffer(MAX_REPLY)
        # Before there is a descriptor: a thread that forks meanwhile must not leave one behind.
        forks.register(self)
        self._socket = UnixSocket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_left(deadline))
        self._socket.connect(path)
        self._socket.setblocking(True)  # noqa: FBT003 - the socket's own name for it
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)
        self._await(1, deadline, self._greet)

    def _greet(self, reply: Reply) -> None:
        self.instance = greeting_of(reply)

    def exchange(
        self, data: bytes, count: int, deadline: float, take: Callable[[Reply], None]
    ) -> None:
        """Send requests and hand each reply to ``take``, in order, as soon as it is there.

        Args:
            data: the requests' frames, one behind the other.
            count: how many there are.
            deadline: until when, by the monotonic clock in seconds.
            take: takes a reply.

        Raises:
            TimeoutError: at the deadline. A late reply would be taken for another request's, so
                the connection is of no use any more.
            Lost: where the connection ends before the last reply.
        """
        self.handed = 0
        # What cannot be answered in time is not sent.
        left = _left(deadline)
        try:
            self._send(data)
            if self.handed < len(data):
                while self._sends and self.handed < len(data):
                    count -= self._send_more(data, count, deadline, take)
                left = _left(deadline)
            if self._readable.poll(left * 1000):
                count -= self._receive(count, take)
        except OSError as error:
            raise _lost(error) from None
        if count:
            self._await(count, deadline, take)

    def _send(self, data: bytes | memoryview) -> None:
        """Send as much as the socket takes."""
        try:
            self.handed += self._socket.send(data, _SEND)
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            # What was answered before the service's end is still there to be read.
            self._sends = False

    def _send_more(
        self, data: bytes, most: int, deadline: float, take: Callable[[Reply], None]
    ) -> int:
        """Wait until there is something to read or room to send, and do it.

        Returns:
            How many replies were taken.
        """
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLOUT)
        ((_, events),) = poll.poll(_left(deadline) * 1000) or ((0, 0),)
        if not events:
            raise TimeoutError
        if events & ~select.POLLOUT:
            return self._receive(most, take)
        self._send(memoryview(data)[self.handed :])
        return 0

    def _await(self, count: int, deadline: float, take: Callable[[Reply], None]) -> None:
        """Receive so many replies."""
        try:
            while count > 0:
                if not self._readable.poll(_left(deadline) * 1000):
                    raise TimeoutError
                count -= self._receive(count, take)
        except OSError as error:
            raise _lost(error) from None

    def _receive(self, most: int, take: Callable[[Reply], None]) -> int:
        """Receive once and return how many replies that completed, of ``most`` that are due."""
        data = self._socket.recv(_CHUNK, _NO_WAIT)
        if not data:
            msg = "it ended the connection"
            raise Lost(msg)
        count = 0
        try:
            for frame in self._buffer.feed(data):
                reply = decode_reply(frame)
                if type(reply) is Refused:
                    raise Lost(reply.reason)
                if count == most:
                    # It would be taken for the next request's.
                    msg = "it answered what nobody asked"
                    raise Lost(msg)
                take(reply)
                count += 1
        except ProtocolError as error:
            raise Lost(str(error)) from None
        return count

    def after_fork_in_child(self) -> None:
        """Let go of the parent's connection."""
        inherited = getattr(self, "_socket", None)
        if inherited is not None:
            inherited.let_go()


def greeting_of(reply: Reply) -> UUID:
    """Return the instance that a service names in its first message.

    Raises:
        Lost: where that is something else.
        Incompatible: where it speaks another version of the protocol.
    """
    if not isinstance(reply, Hello):
        msg = f"it began with {type(reply).__name__}"
        raise Lost(msg)
    if reply.protocol != PROTOCOL_VERSION:
        msg = (
            f"the service speaks version {reply.protocol} of the protocol, this package "
            f"{PROTOCOL_VERSION}: use one version of jidoka_shm everywhere"
        )
        raise Incompatible(msg)
    return UUID(bytes=reply.instance)


def _left(deadline: float) -> float:
    """Return how long there is until then, in seconds.

    Raises:
        TimeoutError: where none is left.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, _LONGEST)


def _lost(error: OSError) -> Exception:
    """Return what an error of a connected socket means."""
    # Without the system's text, which says no more.
    return TimeoutError() if isinstance(error, TimeoutError) else Lost(str(error))
