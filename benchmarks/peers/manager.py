"""``multiprocessing.Manager``: a dict in a server process, and proxies of it.

What it does not do: each look-up is a round trip, with a pickle each way; an update is two, and two
writers can lose one of theirs; all ends with the server's process.
"""

from __future__ import annotations

import uuid
from multiprocessing.managers import DictProxy, SyncManager
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks import records

from .base import Peer
from .private import private_bytes

if TYPE_CHECKING:
    from uuid import UUID

AUTHKEY = b"benchmarks"

_sessions: dict[UUID, dict[str, Any]] = {}
_created: dict[UUID, dict[str, Any]] = {}


class _Server(SyncManager):
    """A server of two dicts, by name, for whichever process connects."""


_Server.register("sessions", callable=lambda: _sessions, proxytype=DictProxy)
_Server.register("created", callable=lambda: _created, proxytype=DictProxy)


class Manager(Peer):
    """A server of plain records."""

    name: ClassVar[str] = "manager"

    _made = False

    def _connection(self) -> Any:  # noqa: ANN401 - a manager's methods are registered at run time
        return _Server(address=str(self.place / "socket"), authkey=AUTHKEY)

    def make(self) -> None:
        """Start the server and fill its dict."""
        self._server = self._connection()
        self._server.start()
        self._made = True
        self.attach()
        self.sessions.update({key: records.make_plain(key) for key in self.ids})

    def attach(self) -> None:
        """Connect."""
        client = self._connection()
        client.connect()
        self.sessions: Any = client.sessions()
        self.created: Any = client.created()

    def close(self) -> None:
        """End the server in the process that started it."""
        if self._made:
            self._server.shutdown()

    def shared_bytes(self) -> int:
        """Return the memory of the server's process."""
        return private_bytes(self._server._process.ident)  # noqa: SLF001 - no name says its pid

    def look_up(self, keys: list[UUID]) -> None:
        """Ask for each."""
        get = self.sessions.__getitem__
        for key in keys:
            get(key)

    def status(self, keys: list[UUID]) -> None:
        """Ask for each and take its status."""
        get = self.sessions.__getitem__
        for key in keys:
            get(key)["status"]

    def miss(self, keys: list[UUID]) -> None:
        """Ask for what is not there."""
        get = self.sessions.get
        for key in keys:
            get(key)

    def list_all(self, keys: list[UUID]) -> object:
        """Ask for all."""
        del keys
        return self.sessions.values()

    def count(self, keys: list[UUID]) -> object:
        """Ask for all and count them by status."""
        found: dict[str, int] = {}
        for record in self.list_all(keys):  # type: ignore[attr-defined]
            found[record["status"]] = found.get(record["status"], 0) + 1
        return found

    def update(self, keys: list[UUID]) -> None:
        """Ask for each, change it and send it back."""
        get, put = self.sessions.__getitem__, self.sessions.__setitem__
        for key in keys:
            put(key, records.moved_plain(get(key)))

    def create(self, keys: list[UUID]) -> None:
        """Send new records."""
        put = self.created.__setitem__
        for _ in keys:
            key = uuid.uuid4()
            put(key, records.make_plain(key))

    def after_create(self) -> None:
        """Take out what was put in."""
        self.created.clear()

    def create_pipelined(self, keys: list[UUID]) -> None:
        """Send all in one round trip."""
        new = [uuid.uuid4() for _ in keys]
        self.created.update({key: records.make_plain(key) for key in new})

    after_create_pipelined = after_create

    def before_terminate(self, keys: list[UUID]) -> None:
        """Put in what is to go."""
        self.created.update({key: records.make_plain(key) for key in keys})

    def terminate(self, keys: list[UUID]) -> None:
        """Have each deleted."""
        delete = self.created.__delitem__
        for key in keys:
            delete(key)
