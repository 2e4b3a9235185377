"""Services that do what a test says: over any bytes, and over a manager's real changes."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

from support import INSTANCE

from jidoka_shm.layout import CONTROL_FIELDS, SOCKET_PATH_SIZE
from jidoka_shm.once import OnceOnly
from jidoka_shm.protocol import (
    PROTOCOL_VERSION,
    FrameBuffer,
    Hello,
    Unknown,
    decode_request,
    encode,
)
from jidoka_shm.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from jidoka_shm import SessionManager
    from jidoka_shm.protocol import Reply, Request

GREETING: Final = encode(Hello(PROTOCOL_VERSION, INSTANCE.bytes))


#: What ``Scripted.act`` returns for a request that gets no reply.
SILENCE: Final = Unknown()


class Peer:
    """Listens, and handles each connection with ``serve``, one thread each."""

    def __init__(self, path: Path, serve: Callable[[socket.socket], None]) -> None:
        self.path = str(path)
        self.accepted = 0
        self._serve = serve
        self._threads: list[threading.Thread] = []
        self.connections: list[socket.socket] = []
        self.listen_again()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self.accepted += 1
                self.connections.append(connection)
                self._start(self._handle, connection)

    def _handle(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._serve(connection)

    def listen_again(self) -> None:
        """Listen, at first or after ``stop_listening``."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._start(self._accept, self._listener)

    def stop_listening(self) -> None:
        """Refuse whoever comes from now on."""
        # A close alone would leave the thread that accepts where it is.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)  # noqa: PTH108 - text as a socket has it

    def drop_connections(self) -> None:
        """End every connection."""
        for connection in self.connections:
            # A close alone would leave the thread that reads where it is.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def join_clients(self) -> None:
        """Wait until every connection was served to its end."""
        for thread in self._threads[1:]:
            thread.join()

    def end(self) -> None:
        """End as a process does: nobody listens, and every connection ends. May be repeated."""
        self.stop_listening()
        self.drop_connections()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()


def frames_of(connection: socket.socket) -> Iterator[bytes]:
    """Yield each frame that comes, to the end of the connection."""
    buffer = FrameBuffer()
    while data := connection.recv(1 << 16):
        yield from buffer.feed(data)


class Scripted(Peer):
    """A service whose answers are a manager's, unless ``act`` says something else.

    Attributes:
        requests: what came, in order.
        act: returns the reply to a request; None ends the connection.
        greeting: what it begins with.
    """

    def __init__(self, manager: SessionManager, path: Path) -> None:
        self._manager = manager
        self.succeed()
        self._control = manager._own.control
        self.greeting: Reply = Hello(PROTOCOL_VERSION, self._control.instance.bytes)
        self.requests: list[Request] = []
        self.act: Callable[[Request], Reply | None] = self.apply
        super().__init__(path, self._answer)
        self.publish()

    def succeed(self) -> None:
        """Be the next writer: one that remembers nothing and knows what the memory holds."""
        once = OnceOnly(self._manager._registry, self._manager._own.control)
        self._service = Service(once, self._manager._change, self._manager.resize)

    def publish(self) -> None:
        """Say in the control where it listens."""
        self.store_path(self.path.encode())

    def store_path(self, raw: bytes) -> None:
        """Store any bytes where the control has the path."""
        at = CONTROL_FIELDS["socket_path"]
        self._control._memory[at : at + SOCKET_PATH_SIZE] = raw.ljust(SOCKET_PATH_SIZE, b"\0")

    def apply(self, request: Request) -> Reply:
        """Carry a request out."""
        return self._service.answer(request)

    def _answer(self, connection: socket.socket) -> None:
        connection.sendall(encode(self.greeting))
        for frame in frames_of(connection):
            request = decode_request(frame)
            self.requests.append(request)
            reply = self.act(request)
            if reply is None:
                return
            if reply is SILENCE:
                continue
            connection.sendall(encode(reply))


def first_only(
    service: Scripted, first: Callable[[Request], Reply | None]
) -> Callable[[Request], Reply | None]:
    """Return an ``act`` that does ``first`` for one request, and the usual from then on."""

    def act(request: Request) -> Reply | None:
        service.act = service.apply
        return first(request)

    return act


def sockets() -> set[str]:
    """Return the sockets that this process has open."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(link.readlink()))
    return {target for target in found if target.startswith("socket:")}


def id_of(request: Request) -> UUID:
    """Return the session that a request is about."""
    return UUID(bytes=request.session_id)
