"""Changes that are sent to a service, each made exactly once however often it is sent.

A request keeps its id, which the record of what it made keeps too. Before it is first sent its
client notes how the registry is, and sends that along when it sends it again: what has not changed
since was not changed by it. Sent and not answered, a change is

==============================  =============================================================
made                            where its id stands in the session's record, in the memory that
                                the client reads itself or in the answer of any later writer
made                            for a session whose id this client made, where it is there
not made                        where the session did not change since
unknown, and an error saying so where somebody changed the session since, or it is gone; where
                                another registry took the name; where no writer comes in time
==============================  =============================================================
"""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec.structs import replace

from .connection import Lost
from .errors import JidokaError, SessionExists, WriterUnavailable
from .protocol import (
    Again,
    Create,
    Done,
    Failed,
    ProtocolError,
    Unknown,
    Update,
    encode,
    unpack_error,
)
from .slots import unpack_slot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from .calls import Call
    from .connection import Connection
    from .link import Link
    from .protocol import Reply
    from .reads import SessionReads
    from .session import Session

#: What a change came to: what its method returns, or the error that it raises.
Outcome: TypeAlias = "UUID | Session | Exception | None"

#: Pauses after a connection that was lost without a reply, in seconds: the first, and the longest.
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.05


class Delivery:
    """The changes of one call, sent in their order until each has its outcome."""

    #: How many were handed over whole, so that a service may have made them.
    _sent = 0
    #: How the registry was before they were.
    _before = Again(0, 0)
    #: What they were sent to.
    _instance: UUID | None = None
    _pause = 0.0
    _reason: str | None = None

    def __init__(
        self, link: Link, reader: SessionReads, calls: Sequence[Call], *, timeout: float
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            link: the way to the service.
            reader: who reads the registry.
            calls: the changes.
            timeout: how long all of them may take together, in seconds.
        """
        self._link = link
        self._reader = reader
        self._calls = calls
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._outcomes: list[Outcome] = []

    def run(self) -> list[Outcome]:
        """Return what each change came to, in order.

        It raises only what interrupts it. In the middle of that nothing is known of the changes.
        """
        while len(self._outcomes) < len(self._calls):
            try:
                connection = self._link.take(self._reader, self._deadline)
                self._check_instance(connection)
                self._exchange(connection)
            except Lost as lost:
                self._link.forget()
                self._reason = str(lost)
                self._rest_after_loss()
            except TimeoutError as error:
                reason = str(error) or self._reason or f"no answer within {self._timeout:g} s"
                self._give_up(WriterUnavailable(self._reader.name, reason=reason))
            except JidokaError as error:
                self._give_up(error)
            else:
                self._link.give(connection)
        return self._outcomes

    def _check_instance(self, connection: Connection) -> None:
        """Raise unless it leads to the registry that the first of them was sent to."""
        if self._instance is None:
            self._instance = connection.instance
        elif self._instance != connection.instance:
            reason = "another registry has its name now"
            raise WriterUnavailable(self._reader.name, reason=reason)

    def _rest_after_loss(self) -> None:
        """Wait a moment, but not after the first loss: the next writer may be there already."""
        left = self._deadline - time.monotonic()
        time.sleep(max(0.0, min(self._pause, left)))
        self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)

    # ------------------------------------------------------------------ sending

    def _exchange(self, connection: Connection) -> None:
        # One by one: what the first of two changes of one session came to tells of the second.
        while len(self._outcomes) < self._sent:
            self._send_again(connection)
        if len(self._outcomes) < len(self._calls):
            self._send_rest(connection)

    def _send_rest(self, connection: Connection) -> None:
        at = len(self._outcomes)
        control = connection.control
        # In this order, and both before the first byte: later ones could count what it changes.
        self._before = Again(control.change[0] // 2, control.removals)
        frames = [encode(call.request) for call in self._calls[at:]]
        data = b"".join(frames)
        try:
            connection.exchange(data, len(frames), self._deadline, self._settle)
        finally:
            whole = connection.handed == len(data)
            self._sent = len(self._calls) if whole else at + _count(frames, connection.handed)

    def _send_again(self, connection: Connection) -> None:
        at = len(self._outcomes)
        call = self._calls[at]
        before, session = self._before, self._visible(call)
        if session is not None:
            request = session.payload().request
            if any(request == earlier.request.request for earlier in self._calls[:at]):
                # At that version it was made by one that was sent before this one, and not by
                # this one yet.
                before = Again(max(before.version, session.version), before.removed)
        frame = encode(replace(call.request, again=before))
        connection.exchange(frame, 1, self._deadline, self._settle)

    # ------------------------------------------------------------------ outcomes

    def _settle(self, reply: Reply) -> None:
        """Take the reply to the first change that has none."""
        call = self._calls[len(self._outcomes)]
        try:
            outcome = _value(call, reply) if type(reply) is Done else self._not_done(call, reply)
        except (JidokaError, ProtocolError) as error:
            reason = str(error)
            outcome = WriterUnavailable(self._reader.name, outcome_unknown=True, reason=reason)
        self._outcomes.append(outcome)

    def _not_done(self, call: Call, reply: Reply) -> Outcome:
        if type(reply) is Failed:
            error = unpack_error(reply)
            # Sent again, it was this very request that made it: nobody else knows that id.
            again = len(self._outcomes) < self._sent
            taken = again and call.own_id and isinstance(error, SessionExists)
            return call.session_id if taken else error
        if type(reply) is Unknown:
            return self._from_memory(call, None)
        msg = f"a {type(reply).__name__} in a reply's place"
        raise ProtocolError(msg)

    def _give_up(self, error: JidokaError) -> None:
        """Settle all that is left: ``error`` is what keeps it from being made."""
        for at in range(len(self._outcomes), len(self._calls)):
            if at < self._sent:
                outcome = self._from_memory(self._calls[at], _text(error))
            else:
                outcome = type(error)(*error.args)
            self._outcomes.append(outcome)

    def _from_memory(self, call: Call, reason: str | None) -> Outcome:
        """Return what a change that was sent came to, as far as the memory says."""
        session = self._visible(call)
        if session is not None:
            made = session.payload().request == call.request.request
            if isinstance(call.request, Create) and (made or call.own_id):
                return call.session_id
            if made:
                return session if isinstance(call.request, Update) else None
        return WriterUnavailable(self._reader.name, outcome_unknown=True, reason=reason)

    def _visible(self, call: Call) -> Session | None:
        """Return the session that a change is of, where it is there to be read."""
        with contextlib.suppress(JidokaError):
            return self._reader.get(call.session_id)
        return None


def _value(call: Call, done: Done) -> Outcome:
    """Return what a call of its kind returns."""
    if isinstance(call.request, Update):
        return unpack_slot(done.record, call.session_id)
    return call.session_id if isinstance(call.request, Create) else None


def _text(error: JidokaError) -> str | None:
    return error.reason if isinstance(error, WriterUnavailable) else str(error)


def _count(frames: Sequence[bytes], handed: int) -> int:
    """Return how many frames lie within the first ``handed`` bytes of all."""
    ends = itertools.accumulate(map(len, frames))
    return sum(1 for end in ends if end <= handed)
