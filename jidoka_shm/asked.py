"""What calls of one client asked for over one connection, and in which order it was sent.

Requests are answered in their order, so a reply belongs to the oldest that has none. One that
nobody waits for any more keeps its place until its reply comes, which is dropped.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from .batch import Batch

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from .calls import Call, Resizing
    from .errors import JidokaError
    from .protocol import Again, Reply
    from .reads import SessionReads


class Asked(Batch):
    """What one call asked for.

    Attributes:
        settled: done when each change has its outcome.
        deadline: until when it is waited for, by the loop's clock in seconds.
        is_over: whether nobody waits any more.
        due: replies that are still to come over this connection.
        sent_at: how many were sent before it, by the trail's count.
        answered_at: how many were sent before it was answered.
        order: the ``sent_at`` of requests that a lost connection carried.
    """

    is_over = False
    due = 0
    sent_at = 0
    answered_at = math.inf
    order: Mapping[bytes | None, int] = {}
    _frames: Sequence[bytes] = ()
    #: Where in the connection's bytes they begin.
    _begin = 0

    def __init__(
        self,
        reader: SessionReads,
        calls: Sequence[Call | Resizing],
        settled: asyncio.Future[None],
        deadline: float,
    ) -> None:
        """Take changes.

        Args:
            reader: who reads the registry.
            calls: the changes.
            settled: to be told.
            deadline: until when.
        """
        super().__init__(reader, calls)
        self.settled = settled
        self.deadline = deadline

    def begin(self, before: Again, offset: int) -> Sequence[bytes]:
        """Return the frames of what is left, which are sent now.

        Args:
            before: how the registry is before that.
            offset: how many bytes the connection was given before them.
        """
        self._frames, self._begin = self.frames(before), offset
        self.due = len(self._frames)
        return self._frames

    def leave(self, handed: int) -> bool:
        """Take the end of the connection, and return whether it is to be sent again.

        Args:
            handed: how many of the connection's bytes the kernel took.
        """
        self.due = 0
        self.note_handed(self._frames, handed - self._begin)
        return len(self.outcomes) < self.sent

    def _went_before(self, request: bytes | None) -> bool:
        earlier = self.order.get(request, self.sent_at) < self.sent_at
        return earlier or super()._went_before(request)

    def take(self, reply: Reply) -> None:
        """Take the next reply, which may be one that nobody waits for."""
        self.due -= 1
        if not self.is_over:
            self.settle(reply)
            if len(self.outcomes) == len(self.calls):
                self._end()

    def fail(self, error: JidokaError) -> None:
        """Give up what has no outcome."""
        if not self.is_over:
            self.give_up(error)
            self._end()

    def _end(self) -> None:
        self.is_over = True
        if not self.settled.done():
            self.settled.set_result(None)


class Trail:
    """What was sent in which order, as far as one without a reply may have to know it."""

    def __init__(self) -> None:
        self._sent: deque[Asked] = deque()
        self._count = 0

    def add(self, asked: Asked) -> None:
        """Note what is sent now."""
        asked.sent_at, asked.answered_at = self._count, math.inf
        self._count += 1
        self._sent.append(asked)

    def note_answered(self, asked: Asked, oldest: Asked | None) -> None:
        """Note what has all its replies, and which is the oldest that has not."""
        asked.answered_at = self._count
        # Whatever is sent after an answer knows that version of the registry.
        limit = math.inf if oldest is None else oldest.sent_at
        while self._sent and self._sent[0].answered_at <= limit:
            self._sent.popleft()

    def hand_out(self) -> None:
        """Tell all of them the order: their connection is lost."""
        order: dict[bytes | None, int] = {
            call.request.request: asked.sent_at for asked in self._sent for call in asked.calls
        }
        for asked in self._sent:
            asked.order = order

    def clear(self) -> None:
        """Forget: none of them is without a reply any more."""
        self._sent.clear()
