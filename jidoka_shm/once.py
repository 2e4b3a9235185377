"""Changes that a client may send again: each is made once, or it is said that nobody can tell.

A request has an id, and the record that a request makes keeps it. A request that is sent again,
because its reply was lost with the connection or the writer, is judged by what stands in the table:

==========================================  =============================================
the session's record has its id             it was made: the record is the answer
the session did not change since            it was not made: it is made now
the session changed since, by another id    unknown: the id may have been overwritten; but a
                                            terminate was not made, since the session lives
the session is not there                    it was not made, where no session was removed since;
                                            else a terminate was, and of others it is unknown
==========================================  =============================================

What this writer did itself it remembers for a while, so only a request that its predecessor may
have carried out can be unknown.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from .protocol import Done, Unknown
from .slots import pack_slot

if TYPE_CHECKING:
    from uuid import UUID

    from .control import ControlReader
    from .marks import Instant
    from .protocol import Again, Reply
    from .registry import Registry

#: Requests that are remembered, the latest: a connection that breaks has fewer under way.
_REMEMBERED: Final = 4096

_UNKNOWN: Final = Unknown()
_NO_RECORD: Final = Done(b"")


class OnceOnly:
    """The changes of a registry, for requests that may come more than once."""

    def __init__(self, registry: Registry, control: ControlReader) -> None:
        """Take a registry to change.

        Args:
            registry: its rules.
            control: its counters.
        """
        self._registry = registry
        self._control = control
        self._replies: OrderedDict[bytes, Reply] = OrderedDict()

    def create(
        self,
        session_id: UUID,
        *,
        request: bytes,
        again: Again | None,
        now: Instant,
        **fields: Any,  # noqa: ANN401 - those of Registry.create
    ) -> Reply:
        """Create a session as ``Registry.create`` does, unless this request did so before.

        Args:
            session_id: its id.
            request: the request's id, 16 bytes.
            again: how the registry was when the request was first sent; None the first time.
            now: the time.
            fields: the rest of the session.
        """
        known = None if again is None else self._known(session_id, request, again)
        if known is not None:
            return known
        self._registry.create(session_id, request=request, now=now, **fields)
        return self._remember(request, _NO_RECORD)

    def update(
        self,
        session_id: UUID,
        *,
        request: bytes,
        again: Again | None,
        now: Instant,
        **fields: Any,  # noqa: ANN401 - those of Registry.update
    ) -> Reply:
        """Update a session as ``Registry.update`` does; otherwise as ``create``."""
        known = None if again is None else self._known(session_id, request, again)
        if known is not None:
            return known
        self._registry.update(session_id, request=request, now=now, **fields)
        return self._remember(request, Done(self._registry.table.packed))

    def terminate(
        self,
        session_id: UUID,
        *,
        request: bytes,
        again: Again | None,
        now: Instant,
        error: str | None,
    ) -> Reply:
        """Terminate a session as ``Registry.terminate`` does; otherwise as ``create``."""
        if again is not None:
            session = self._registry.find(session_id)
            removed = self._removed_since(again)
            if request in self._replies or (session is None and removed):
                return _NO_RECORD
            # One that lives was not terminated; but it may be another one of the same id by now.
            if session is not None and removed and session.version > again.version:
                return _UNKNOWN
        self._registry.terminate(session_id, request=request, error=error, now=now)
        return self._remember(request, _NO_RECORD)

    def _known(self, session_id: UUID, request: bytes, again: Again) -> Reply | None:
        """Return the answer to a request that was carried out, or of which that is unknown."""
        reply = self._replies.get(request)
        if reply is not None:
            return reply
        session = self._registry.find(session_id)
        if session is None:
            return _UNKNOWN if self._removed_since(again) else None
        if session.version <= again.version:
            return None
        if session.payload().request == request:
            return Done(pack_slot(session))
        return _UNKNOWN

    def _removed_since(self, again: Again) -> bool:
        """Return whether any session was removed since a request was first sent."""
        counters = self._control.counters()
        return counters["removed"] + counters["dropped"] != again.removed

    def _remember(self, request: bytes, reply: Reply) -> Reply:
        self._replies[request] = reply
        if len(self._replies) > _REMEMBERED:
            self._replies.popitem(last=False)
        return reply
