"""What is asked for together: what is sent of it, and sent again, and what each change came to.

A request keeps its id, which the record of what it made keeps too. Before it is first sent its
client notes how the registry is, and sends that along when it sends it again: what has not changed
since was not changed by it. Sent and not answered, a change is

==============================  =============================================================
made                            where its id stands in the session's record, in the memory that
                                the client reads itself or in the answer of any later writer
made                            for a session whose id this client made, where it is there
made                            a terminate, where the session is terminated, or was removed since
made                            a resize, where the registry has that size, whoever gave it that
not made                        where the session did not change since
unknown, and an error saying so where somebody changed the session since, or it is gone; where
                                another registry took the name; where no writer comes in time
==============================  =============================================================
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, TypeAlias

from msgspec.structs import replace

from .calls import Call, Resizing
from .errors import JidokaError, SessionExists, WriterUnavailable
from .failed import unpack_error
from .protocol import Again, Create, Done, Failed, ProtocolError, Terminate, Unknown, Update, encode
from .session import SessionStatus
from .slots import unpack_slot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from .control import ControlReader
    from .protocol import Reply, Resize
    from .reads import SessionReads
    from .session import Session

#: What a change came to: what its method returns, or the error that it raises.
Outcome: TypeAlias = "UUID | Session | Exception | None"


class Batch:
    """Changes that are sent in their order until each has its outcome.

    Attributes:
        calls: the changes.
        outcomes: what they came to so far, in order.
        sent: how many were handed over whole, so that a service may have made them.
    """

    sent = 0
    #: How the registry was before they were.
    _before = Again(0, 0)
    #: What they were sent to.
    _instance: UUID | None = None

    def __init__(self, reader: SessionReads, calls: Sequence[Call | Resizing]) -> None:
        """Prepare; nothing is sent yet.

        Args:
            reader: who reads the registry.
            calls: the changes.
        """
        self._reader = reader
        self.calls = calls
        self.outcomes: list[Outcome] = []

    def check_instance(self, instance: UUID) -> None:
        """Raise unless this is the registry that the first of them was sent to."""
        if self._instance is None:
            self._instance = instance
        elif self._instance != instance:
            reason = "another registry has its name now"
            raise WriterUnavailable(self._reader.name, reason=reason)

    # ------------------------------------------------------------------ sending

    def frames(self, before: Again) -> list[bytes]:
        """Return the frames of all that have no outcome, to be sent for the first time.

        Args:
            before: how the registry is, before the first byte of them is sent.
        """
        self._before = before
        return [encode(call.request) for call in self.calls[len(self.outcomes) :]]

    def note_handed(self, frames: Sequence[bytes], handed: int) -> None:
        """Note how many bytes of the first ``frames`` were handed over."""
        done = len(self.calls) - len(frames)
        self.sent = done + _count(frames, handed)

    def frame_again(self) -> bytes:
        """Return the frame of the first that has no outcome, to be sent once more.

        One by one: what one change of a session came to tells of the next.
        """
        call = self.calls[len(self.outcomes)]
        before, session = self._before, self._visible(call)
        if session is not None and self._went_before(session.payload().request):
            # At that version it was made by one that was sent before this one, and not by this
            # one yet.
            before = Again(max(before.version, session.version), before.removed)
        return encode(replace(call.request, again=before))

    def _went_before(self, request: bytes | None) -> bool:
        """Return whether a request was sent before the first that has no outcome."""
        earlier = self.calls[: len(self.outcomes)]
        return any(request == call.request.request for call in earlier)

    # ------------------------------------------------------------------ outcomes

    def settle(self, reply: Reply) -> None:
        """Take the reply to the first change that has none."""
        call = self.calls[len(self.outcomes)]
        outcome: Outcome
        try:
            outcome = _result(call, reply) if type(reply) is Done else self._not_done(call, reply)
        except (JidokaError, ProtocolError) as error:
            outcome = self._unknown(str(error))
        self.outcomes.append(outcome)

    def _not_done(self, call: Call | Resizing, reply: Reply) -> Outcome:
        if type(reply) is Failed:
            error = unpack_error(reply)
            # Sent again, it was this very request that made it: nobody else knows that id.
            again = len(self.outcomes) < self.sent
            taken = again and isinstance(error, SessionExists)
            if taken and isinstance(call, Call) and call.own_id:
                return call.session_id
            return error
        if type(reply) is Unknown:
            return self._from_memory(call, None)
        msg = f"a {type(reply).__name__} in a reply's place"
        raise ProtocolError(msg)

    def give_up(self, error: JidokaError) -> None:
        """Settle all that is left: ``error`` is what keeps it from being made."""
        for at in range(len(self.outcomes), len(self.calls)):
            if at < self.sent:
                outcome = self._from_memory(self.calls[at], _text(error))
            else:
                outcome = type(error)(*error.args)
            self.outcomes.append(outcome)

    def _from_memory(self, call: Call | Resizing, reason: str | None) -> Outcome:
        """Return what a change that was sent came to, as far as the memory says."""
        if isinstance(call, Resizing):
            return None if self._has_size(call.request) else self._unknown(reason)
        if isinstance(call.request, Terminate) and self._has_ended(call):
            return None
        session = self._visible(call)
        if session is not None:
            made = session.payload().request == call.request.request
            if isinstance(call.request, Create) and (made or call.own_id):
                return call.session_id
            if made:
                return session if isinstance(call.request, Update) else None
        return self._unknown(reason)

    def _unknown(self, reason: str | None) -> WriterUnavailable:
        return WriterUnavailable(self._reader.name, outcome_unknown=True, reason=reason)

    def _has_size(self, asked: Resize) -> bool:
        """Return whether the registry has the size that a resize asks for."""
        try:
            # A writer that died in the middle of it may not have told readers of the next table.
            self._reader.refresh()
            found = self._reader.stats()
        except JidokaError:
            return False
        # Another registry's size says nothing of this one.
        is_same = found.instance == self._instance
        size = found.slot_size if asked.slot_size is None else asked.slot_size
        return is_same and (found.capacity, found.slot_size) == (asked.capacity, size)

    def _has_ended(self, call: Call) -> bool:
        """Return whether a session has ended or is gone, which is all that a terminate asks for.

        As ``once`` judges: one that is not there was removed only if any was since.
        """
        try:
            session = self._reader.get(call.session_id)
            view = self._reader._view  # noqa: SLF001 - a client's own parts
        except JidokaError:
            return False
        if session is not None:
            return session.status is SessionStatus.TERMINATED
        # Another registry's counters, where the reader was attached anew, say nothing of this one.
        is_same = view.identity[0] == self._instance
        return is_same and view.control.removals != self._before.removed

    def _visible(self, call: Call | Resizing) -> Session | None:
        """Return the session that a change is of, where it is there to be read."""
        if isinstance(call, Resizing):
            return None
        with contextlib.suppress(JidokaError):
            return self._reader.get(call.session_id)
        return None


def _result(call: Call | Resizing, done: Done) -> Outcome:
    """Return what the method returns that asked for what is done."""
    if isinstance(call, Resizing):
        return None
    if type(call.request) is Update:
        return unpack_slot(done.record, call.session_id)
    return call.session_id if type(call.request) is Create else None


def how_it_is(control: ControlReader) -> Again:
    """Return how a registry is now, for a request that may have to be sent again."""
    # In this order, and both before the first byte: later ones could count what it changes.
    return Again(control.change[0] // 2, control.removals)


def _text(error: JidokaError) -> str | None:
    return error.reason if isinstance(error, WriterUnavailable) else str(error)


def _count(frames: Sequence[bytes], handed: int) -> int:
    """Return how many frames lie within the first ``handed`` bytes of all."""
    ends = itertools.accumulate(map(len, frames))
    return sum(1 for end in ends if end <= handed)
