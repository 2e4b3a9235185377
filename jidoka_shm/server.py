"""The service's shell: clients on a Unix socket, in the reactor's loop.

What a client may cost is bounded: one frame that is not whole yet, one piece of what it sent, and
replies up to ``_HIGH`` that it has not read; while it reads none, nothing more is read from it.
What arrives together is carried out together and answered by one write, but for at most
``_TURN`` requests at a time, so that no client keeps the others or a deadline waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
import weakref
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from . import descriptors, forks
from .endpoint import BACKLOG
from .errors import ForkedHandle, RegistryClosed
from .logs import Seldom, log
from .protocol import (
    PROTOCOL_VERSION,
    Failed,
    FrameBuffer,
    Hello,
    ProtocolError,
    Refused,
    decode_request,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .endpoint import Endpoint
    from .protocol import Reply, Request

#: Requests of one client that are carried out before others get their turn.
_TURN: Final = 128

#: Bytes that are received at once.
_RECEIVED: Final = 1 << 18

#: Bytes of replies that may wait for a client to read them.
_HIGH: Final = 1 << 18

#: How long a stop waits for clients to take their last replies, in seconds.
_LAST: Final = 1.0

#: Turns of the loop from accepting a client to ``connection_made``, and one more.
_STEPS: Final = 4

#: Bytes of SO_PEERCRED's answer (struct ucred): pid, uid, gid, four each.
_CREDENTIALS: Final = 12


class Server:
    """The clients of one registry."""

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        *,
        instance: bytes,
        answer: Callable[[Request], Reply],
        max_clients: int,
    ) -> None:
        """Take what answers.

        Args:
            name: the registry's name, for the log.
            endpoint: where it listens, once it is open.
            instance: the registry's instance, 16 bytes.
            answer: carries a request out, in the loop's thread.
            max_clients: how many clients there may be at once.
        """
        self.name = name
        self.seldom = Seldom(name)
        self.answer = answer
        self.buffer = memoryview(bytearray(_RECEIVED))
        self.greeting = encode(Hello(PROTOCOL_VERSION, instance))
        self._endpoint = endpoint
        self._max_clients = max_clients
        self._clients: set[Connection] = set()
        #: Those that were refused as well, until their last bytes are gone.
        self._open: set[Connection] = set()
        self._gone = asyncio.Event()
        self._is_ending = False
        self._server: asyncio.Server | None = None
        self._uid = os.geteuid()
        forks.register(self)

    async def start(self) -> None:
        """Accept clients from now on."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(functools.partial(_log_failure, self.seldom))
        this = weakref.ref(self)
        self._server = await loop.create_unix_server(
            lambda: Connection(cast("Server", this())),
            sock=self._endpoint.listener,
            # It listens once more, and would make it fewer.
            backlog=BACKLOG,
        )

    async def stop(self) -> None:
        """Accept no more, and let each client take the replies that it is owed.

        The listening socket is closed, whether ``start`` was called or not. May be repeated.
        """
        self._is_ending = True
        if self._server is not None:
            await self._finish_accepting()
            self._server.close()
        elif self._endpoint.listener is not None:
            self._endpoint.listener.close()
        for client in list(self._open):
            client.finish()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST):
                while self._open:
                    self._gone.clear()
                    await self._gone.wait()
        for client in list(self._open):
            client.abort()
        # The loop closes a socket in a call of its own, and may make none after this.
        await asyncio.sleep(0)

    async def _finish_accepting(self) -> None:
        """Accept nobody new, and let those who were just accepted come as far as ``admit``.

        asyncio fails to make a client of a server that is closed meanwhile.
        """
        listener = self._endpoint.listener
        if listener is not None and listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(listener)
        for _ in range(_STEPS):
            await asyncio.sleep(0)

    def admit(self, client: Connection, peer: socket.socket) -> str | None:
        """Count a client in; return why not, where it may not come."""
        self._open.add(client)
        if self._is_ending:
            # One that was being accepted when the end began.
            return "this service ends"
        raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS)
        client.pid, uid, _ = memoryview(raw).cast("I")
        who = {"client_pid": client.pid, "client_uid": uid}
        if uid != self._uid:
            text = "registry %r: refused process %d of user %d"
            self.seldom.warning(text, client.pid, uid, **who)
            return f"this service belongs to the user with uid {self._uid}"
        limit = self._max_clients
        if len(self._clients) >= limit:
            self.seldom.warning("registry %r: refused a client beyond %d", limit, **who)
            return f"this service has {limit} clients, and takes no more"
        # Its number counts all that the process has opened, owners' pidfds too.
        if peer.fileno() >= descriptors.room():
            self.seldom.warning("registry %r: refused a client: no descriptor is left", **who)
            return "this service has no descriptor left for another client"
        self._clients.add(client)
        count = len(self._clients)
        text = "registry %r: process %d is a client, one of %d"
        log.debug(text, self.name, client.pid, count, extra={"registry": self.name, **who})
        return None

    def dismiss(self, client: Connection) -> None:
        """Count a client out."""
        if client in self._clients:
            self._clients.remove(client)
            count = len(self._clients)
            text = "registry %r: process %d left, clients: %d"
            extra = {"registry": self.name, "client_pid": client.pid}
            log.debug(text, self.name, client.pid, count, extra=extra)
        self._open.discard(client)
        self._gone.set()

    def after_fork_in_child(self) -> None:
        """Close the child's copies of the sockets, by their descriptors alone.

        What asyncio would do acts on the epoll that both processes share. A copy that stayed open
        would keep the parent's clients from seeing it die.
        """
        if self._endpoint.listener is not None:
            self._endpoint.listener.close()
        for client in self._open:
            client.forget()
        # Before it listens no socket is bound to anything, and there are none of its clients.
        if self._endpoint.path:
            descriptors.blank(self._endpoint.path)


def _log_failure(seldom: Seldom, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, OSError):
        # No descriptor is left for a client, and asyncio tries again each second.
        seldom.warning("registry %r: %s: %s", context["message"], error)
    else:
        loop.default_exception_handler(context)


class Connection(asyncio.BufferedProtocol):
    """One client.

    Attributes:
        pid: its process.
    """

    _transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.pid = 0
        self._server = server
        self._answer = server.answer
        # Once a client, or each request would pay for a log that nobody reads.
        if log.isEnabledFor(logging.DEBUG):
            self._answer = self._answer_and_log
        self._buffer = FrameBuffer()
        self._frames: Iterator[bytes] = iter(())
        self._is_full = self._is_busy = self._is_waiting = self._is_finishing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet a client, or refuse it."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(_HIGH)
        reason = self._server.admit(self, transport.get_extra_info("socket"))
        if reason is None:
            self._transport.write(self._server.greeting)
        else:
            self._refuse(reason)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's
        """Return where to receive: one place for all, since what is there is taken at once.

        A plain protocol receives into new bytes of 256 KiB, which the system has to map and unmap
        each time: half of what an echo of a small message takes.
        """
        return self._server.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what came."""
        self.take(bytes(self._server.buffer[:nbytes]))

    def take(self, data: bytes) -> None:
        """Carry out what came; nothing more comes before that is done."""
        self._frames = iter(self._buffer.feed(data))
        self._is_busy = True
        self._turn()
        # Not before: most often all is done by now, and each of the two costs a system call.
        if self._is_busy:
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """Wait for the client to read its replies."""
        self._is_full = True

    def resume_writing(self) -> None:
        """Go on."""
        self._is_full = False
        # Else its turn comes anyway, and a second one each round would be more than its share.
        if not self._is_waiting:
            self._turn()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """Forget a client."""
        self._is_busy = False
        self._server.dismiss(self)

    def finish(self) -> None:
        """Close once what came is carried out and the replies are gone."""
        self._is_finishing = True
        if not self._is_busy:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def forget(self) -> None:
        """Close the descriptor in a forked child."""
        sock: Any = self._transport.get_extra_info("socket")
        sock._sock.close()  # noqa: SLF001 - what get_extra_info wraps has no close

    def _turn(self) -> None:
        """Carry out some of what came, and answer it with one write."""
        self._is_waiting = False
        if not self._is_busy or self._is_full or self._transport.is_closing():
            return
        replies: list[bytes] = []
        size = 0
        try:
            for frame in self._frames:
                replies.append(encode(self._answer(decode_request(frame))))
                size += len(replies[-1])
                if len(replies) >= _TURN or size >= _HIGH:
                    self._is_waiting = True
                    self._transport.write(b"".join(replies))
                    asyncio.get_running_loop().call_soon(self._turn)
                    return
        except ProtocolError as error:
            self._transport.write(b"".join(replies))
            text = "registry %r: refused a client: %s"
            self._server.seldom.warning(text, str(error), client_pid=self.pid)
            self._refuse(str(error))
            return
        except (RegistryClosed, ForkedHandle):
            # Its client finds the next writer, and sends again what was not answered.
            self._transport.write(b"".join(replies))
            self._transport.close()
            return
        except Exception:  # noqa: BLE001 - it is logged, whatever it is
            # A client whose request is never answered must not wait for ever, and nobody knows
            # what became of it. What follows it is not to be carried out either.
            self._transport.write(b"".join(replies))
            text = "registry %r: a request could not be carried out"
            self._server.seldom.exception(text, client_pid=self.pid)
            self._refuse("this service failed, and its log says how")
            return
        self._is_busy = False
        self._transport.write(b"".join(replies))
        if self._is_finishing:
            self._transport.close()
        elif not self._transport.is_reading():
            self._transport.resume_reading()

    def _answer_and_log(self, request: Request) -> Reply:
        reply = self._server.answer(request)
        if type(reply) is Failed:
            kind, session_id = type(request).__name__.lower(), str(UUID(bytes=request.session_id))
            text = "registry %r: process %d: no %s of session %s: %s"
            extra = {"registry": self._server.name, "client_pid": self.pid}
            extra |= {"session_id": session_id, "error": reply.error}
            name = self._server.name
            log.debug(text, name, self.pid, kind, session_id, reply.error, extra=extra)
        return reply

    def _refuse(self, reason: str) -> None:
        self._is_busy = False
        self._transport.write(encode(Refused(reason)))
        self._transport.close()
