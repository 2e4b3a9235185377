"""Changes that are sent to a service and waited for, however often the connection is lost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from .batch import Batch, how_it_is
from .connection import Lost
from .errors import JidokaError, WriterUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .batch import Outcome
    from .calls import Call, Resizing
    from .connection import Connection
    from .link import Link
    from .reads import SessionReads

#: Pauses after a connection that was lost without a reply, in seconds: the first, and the longest.
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.05


class Delivery(Batch):
    """The changes of one call, sent in their order until each has its outcome."""

    _pause = 0.0
    _reason: str | None = None

    def __init__(
        self, link: Link, reader: SessionReads, calls: Sequence[Call | Resizing], *, timeout: float
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            link: the way to the service.
            reader: who reads the registry.
            calls: the changes.
            timeout: how long all of them may take together, in seconds.
        """
        super().__init__(reader, calls)
        self._link = link
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout

    def run(self) -> list[Outcome]:
        """Return what each change came to, in order.

        It raises only what interrupts it. In the middle of that nothing is known of the changes.
        """
        outcomes, total = self.outcomes, len(self.calls)
        while len(outcomes) < total:
            try:
                connection = self._link.take(self._reader, self._deadline)
                if self._instance is not connection.instance:
                    self.check_instance(connection.instance)
                while len(outcomes) < self.sent:
                    self._send_again(connection)
                if len(outcomes) < total:
                    self._send_rest(connection)
            except Lost as lost:
                self._link.forget()
                self._reason = str(lost)
                self._rest_after_loss()
            except TimeoutError as error:
                reason = str(error) or self._reason or f"no answer within {self._timeout:g} s"
                self.give_up(WriterUnavailable(self._reader.name, reason=reason))
            except JidokaError as error:
                self.give_up(error)
            else:
                self._link.give(connection)
        return outcomes

    def _rest_after_loss(self) -> None:
        """Wait a moment, but not after the first loss: the next writer may be there already."""
        left = self._deadline - time.monotonic()
        time.sleep(max(0.0, min(self._pause, left)))
        self._pause = pause_after(self._pause)

    def _send_rest(self, connection: Connection) -> None:
        frames = self.frames(how_it_is(connection.control))
        data = b"".join(frames)
        try:
            connection.exchange(data, len(frames), self._deadline, self.settle)
        finally:
            if connection.handed == len(data):
                self.sent = len(self.calls)
            else:
                self.note_handed(frames, connection.handed)

    def _send_again(self, connection: Connection) -> None:
        connection.exchange(self.frame_again(), 1, self._deadline, self.settle)


def pause_after(pause: float) -> float:
    """Return how long to wait after one more loss, where it was ``pause`` after the last one."""
    return min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
