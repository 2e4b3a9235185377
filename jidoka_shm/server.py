"""The service's shell: who may be a client on its Unix socket, in the reactor's loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import weakref
from typing import TYPE_CHECKING, Any, Final, cast

from . import descriptors, forks
from .accepted import Accepted
from .endpoint import BACKLOG
from .logs import Seldom, log
from .protocol import PROTOCOL_VERSION, Hello, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from .endpoint import Endpoint
    from .protocol import Reply, Request

#: Bytes that are received at once.
_RECEIVED: Final = 1 << 18

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
        self._clients: set[Accepted] = set()
        #: Those that were refused as well, until their last bytes are gone.
        self._open: set[Accepted] = set()
        self._gone = asyncio.Event()
        self._is_ending = False
        self._server: asyncio.Server | None = None
        self._uid = os.geteuid()
        forks.register(self)

    async def start(self) -> None:
        """Accept clients from now on."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(functools.partial(_log_failure, self.seldom, self._endpoint))
        this = weakref.ref(self)
        self._server = await loop.create_unix_server(
            lambda: Accepted(cast("Server", this())),
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

    def admit(self, client: Accepted, peer: socket.socket) -> str | None:
        """Count a client in; return why not, where it may not come."""
        self._open.add(client)
        raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS)
        client.pid, uid, _ = memoryview(raw).cast("I")
        reason = self._reason_against(peer, client.pid, uid)
        if reason is None:
            self._clients.add(client)
            count = len(self._clients)
            text = "registry %r: process %d is a client, one of %d"
            extra = {"registry": self.name, "client_pid": client.pid, "client_uid": uid}
            log.debug(text, self.name, client.pid, count, extra=extra)
        return reason

    def _reason_against(self, peer: socket.socket, pid: int, uid: int) -> str | None:
        who = {"client_pid": pid, "client_uid": uid}
        if self._is_ending:
            # One that was being accepted when the end began.
            return "this service ends"
        if uid != self._uid:
            text = "registry %r: refused process %d of user %d"
            self.seldom.warning(text, pid, uid, **who)
            return f"this service belongs to the user with uid {self._uid}: change as that user"
        limit = self._max_clients
        if len(self._clients) >= limit:
            self.seldom.warning("registry %r: refused a client beyond %d", limit, **who)
            return f"this service has {limit} clients: close some, or give it a larger max_clients"
        # Its number counts all that the process has opened, owners' pidfds too.
        if peer.fileno() >= descriptors.room():
            self.seldom.warning("registry %r: refused a client: no descriptor is left", **who)
            return "this service has no descriptor left for another client: raise its limit of them"
        return None

    def dismiss(self, client: Accepted) -> None:
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


def _log_failure(
    seldom: Seldom, endpoint: Endpoint, loop: asyncio.AbstractEventLoop, context: dict[str, Any]
) -> None:
    error, listener = context.get("exception"), endpoint.listener
    if isinstance(error, OSError):
        # No descriptor is left for a client, and asyncio tries again each second.
        seldom.warning("registry %r: %s: %s", context["message"], str(error))
    # Where it does so after the end there is no socket any more, and nothing to be said.
    elif listener is None or listener.fileno() >= 0 or "_start_serving" not in context["message"]:
        loop.default_exception_handler(context)
