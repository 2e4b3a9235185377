"""A manager's service, from its socket to its end: what is made when, and undone when."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from .endpoint import Endpoint
from .logs import log
from .once import OnceOnly
from .server import Server
from .service import Service

if TYPE_CHECKING:
    from collections.abc import Callable

    from .control import ControlWriter
    from .protocol import Reply
    from .reactor import Reactor
    from .registry import Registry

#: Clients at once.
MAX_CLIENTS: Final = 512


class Serving:
    """Answers the clients of one registry as long as its manager does not stop it."""

    def __init__(  # noqa: PLR0913 - what a service is made of, each by keyword
        self,
        name: str,
        *,
        control: ControlWriter,
        registry: Registry,
        reactor: Reactor,
        change: Callable[..., Reply],
        max_clients: int,
    ) -> None:
        """Listen, and say where in the control.

        Args:
            name: the registry's name.
            control: its control.
            registry: its rules.
            reactor: the loop that answers.
            change: makes one change of the registry, at this moment.
            max_clients: how many clients there may be at once.

        Raises:
            RegistryForbidden, OSError: where there can be no socket.
        """
        self._control = control
        self._endpoint = Endpoint(name)
        with contextlib.ExitStack() as undo:
            undo.callback(self._endpoint.listener.close)
            undo.callback(self._endpoint.withdraw)
            service = Service(OnceOnly(registry, control), change)
            self._server = Server(
                name,
                self._endpoint.listener,
                instance=control.instance.bytes,
                answer=service.answer,
                max_clients=max_clients,
            )
            reactor.at_end(self._server.stop)
            reactor.run(self._server.start())
            control.publish_socket(self._endpoint.path)
            log.info("registry %r: clients are answered at %s", name, self._endpoint.path)
            undo.pop_all()

    def withdraw(self) -> None:
        """Say that nobody answers any more; those who are connected still are."""
        self._control.publish_socket(None)
        self._endpoint.withdraw()

    def stop(self, reactor: Reactor) -> None:
        """Carry out what came, and end with every client. May be repeated."""
        with contextlib.suppress(RuntimeError, TimeoutError):
            reactor.run(self._server.stop())
