"""A manager's service, from its socket to its end: what is made when, and undone when."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from .endpoint import Endpoint
from .logs import log
from .server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

    from .control import ControlWriter
    from .protocol import Reply, Request
    from .reactor import Reactor


class Serving:
    """Answers the clients of one registry as long as its manager does not stop it."""

    def __init__(
        self,
        name: str,
        *,
        control: ControlWriter,
        answer: Callable[[Request], Reply],
        max_clients: int,
    ) -> None:
        """Take what it is made of. It is ``start`` that listens.

        Args:
            name: the registry's name.
            control: its control.
            answer: carries a request out, in the reactor's thread.
            max_clients: how many clients there may be at once.
        """
        self._control = control
        self._name = name
        self._endpoint = Endpoint(name)
        self._server = Server(
            name,
            self._endpoint,
            instance=control.instance.bytes,
            answer=answer,
            max_clients=max_clients,
        )

    def start(self, reactor: Reactor) -> None:
        """Listen, and say where in the control.

        However this ends, the end of the reactor and ``withdraw`` undo it.

        Args:
            reactor: the loop that answers.

        Raises:
            DirectoryForbidden, OSError: where there can be no socket.
        """
        # First: it closes the socket, which the loop must not find closed by another thread.
        reactor.at_end(self._server.stop)
        self._endpoint.open()
        reactor.run(self._server.start)
        self._control.publish_socket(self._endpoint.path)
        name, path = self._name, self._endpoint.path
        extra = {"registry": name, "path": path}
        log.info("registry %r: clients are answered at %s", name, path, extra=extra)

    def withdraw(self) -> None:
        """Say that nobody answers any more. May be repeated."""
        self._control.publish_socket(None)
        self._endpoint.withdraw()

    def stop(self, reactor: Reactor) -> None:
        """Carry out what came, and end with every client. May be repeated.

        In the reactor's own thread, and in a forked child, it does nothing.
        """
        with contextlib.suppress(RuntimeError, TimeoutError):
            reactor.run(self._server.stop)
