"""Changes that a client may send again: each is made once, or it is said that nobody can tell.

A request has an id, and the record that a request makes keeps it. A request that is sent again,
because its reply was lost with the connection or the writer, is judged by what stands in the table.
Of these the first that is so counts:

==========================================  =============================================
the session is not there                    unknown, where any session was removed since; else it
                                            was not made: it is made now
the session did not change since            it was not made: it is made now
the session's record has its id             it was made: the record is the answer
the session changed since, by another id    unknown: the id may have been overwritten
==========================================  =============================================

A terminate asks for less, that the session is terminated or gone:

==========================================  =============================================
no session was removed since                it is made now; one that is terminated stays as it is
the session is not there                    done
the session lives, and changed since        unknown: it may be another one of the same id
the session is anything else                it is made now, as above
==========================================  =============================================

A resize asks for a size, which the registry may have already: it is made now, and then changes
nothing where it was made before and the size is the same still.

What this writer did itself it remembers for a while, so mostly only a request that its predecessor
may have carried out is unknown. What it remembers also answers a request that comes late, after it
was sent again over another connection, and what a repeated one failed with it fails with again.

A change that the manager's own process makes keeps the id in the record, so the record that
answers a repeated update may be a later one than the update made.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from .errors import JidokaError
from .failed import pack_error
from .layout import SLOT_HEADER_SIZE
from .protocol import Done, Unknown
from .session import SessionStatus
from .slots import pack_slot

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from .control import ControlReader
    from .marks import Instant
    from .protocol import Again, Reply
    from .registry import Registry
    from .session import Session

    Known = Reply | None
    Judge = Callable[[Session | None, bytes, Again], Known]

#: Requests that are remembered, the latest: a connection that breaks has fewer under way.
_REMEMBERED: Final = 4096

#: Bytes of the records that answer them; one may have 16 MiB.
_REMEMBERED_BYTES: Final = 8 << 20

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
        self._bytes = 0

    @property
    def longest(self) -> int:
        """The bytes of a record's payload, at most; of what is there, too."""
        return self._registry.table.longest_record() - SLOT_HEADER_SIZE

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

        def make() -> Reply:
            self._registry.create(session_id, request=request, now=now, **fields)
            return _NO_RECORD

        return self._once(self._judge_change, session_id, request, again, make)

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

        def make() -> Reply:
            self._registry.update(session_id, request=request, now=now, **fields)
            return Done(self._registry.table.packed)

        return self._once(self._judge_change, session_id, request, again, make)

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

        def make() -> Reply:
            self._registry.terminate(session_id, request=request, error=error, now=now)
            return _NO_RECORD

        return self._once(self._judge_end, session_id, request, again, make)

    def resize(self, make: Callable[[], object], *, request: bytes, again: Again | None) -> Reply:
        """Resize the registry by ``make``, unless this writer did so for this request before.

        Args:
            make: moves it to the size that is asked for, if that is another.
            request: the request's id, 16 bytes.
            again: how the registry was when the request was first sent; None the first time.
        """

        def resize() -> Reply:
            make()
            return _NO_RECORD

        return self._replies.get(request) or self._make(request, again, resize)

    def _once(
        self,
        judge: Judge,
        session_id: UUID,
        request: bytes,
        again: Again | None,
        make: Callable[[], Reply],
    ) -> Reply:
        known = self._known(judge, session_id, request, again)
        return known or self._make(request, again, make)

    def _make(self, request: bytes, again: Again | None, make: Callable[[], Reply]) -> Reply:
        try:
            reply = make()
        except JidokaError as error:
            # A repeated request has an original that may still come, and then must not succeed.
            if again is not None:
                self._remember(request, pack_error(error))
            raise
        return self._remember(request, reply)

    def _known(self, judge: Judge, session_id: UUID, request: bytes, again: Again | None) -> Known:
        """Return the answer to a request that is not to be carried out, or None."""
        # Of one that comes for the first time too. What was sent over a connection that the client
        # has left may lie there unread until its repetition has been answered over the next one,
        # and then must not change anything behind the answer.
        reply = self._replies.get(request)
        if reply is not None or again is None:
            return reply
        reply = judge(self._registry.find(session_id), request, again)
        return None if reply is None else self._remember(request, reply)

    def _judge_change(self, session: Session | None, request: bytes, again: Again) -> Known:
        """Return what became of a creation or an update; None where it was not made."""
        if session is None:
            return _UNKNOWN if self._removed_since(again) else None
        if session.version <= again.version:
            return None
        if session.payload().request == request:
            return Done(pack_slot(session))
        return _UNKNOWN

    def _judge_end(self, session: Session | None, _: bytes, again: Again) -> Known:
        """Return what became of a terminate; None where it was not made, or is none to make."""
        if not self._removed_since(again):
            return None
        if session is None:
            return _NO_RECORD
        # One that lives was not terminated; but it may be another one of the same id by now.
        lives = session.status is not SessionStatus.TERMINATED
        return _UNKNOWN if lives and session.version > again.version else None

    def _removed_since(self, again: Again) -> bool:
        """Return whether any session was removed since a request was first sent."""
        return self._control.removals != again.removed

    def _remember(self, request: bytes, reply: Reply) -> Reply:
        replies = self._replies
        replies[request] = reply
        self._bytes += _size(reply)
        while len(replies) > _REMEMBERED or self._bytes > _REMEMBERED_BYTES:
            self._bytes -= _size(replies.popitem(last=False)[1])
        return reply


def _size(reply: Reply) -> int:
    return len(reply.record) if type(reply) is Done else 0
