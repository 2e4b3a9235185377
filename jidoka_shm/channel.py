"""The changes of one client on an event loop: many at a time over one connection, each once.

Requests are sent as they are asked for. When their connection is lost, those without a reply are
sent again before anything new, one by one and in their order: what became of one change of a
session tells of the next.

All of it runs in calls and callbacks of the loop; there is no task, thread or lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

from .asked import Asked, Trail
from .attachment import POLL
from .batch import how_it_is
from .connection import Lost, greeting_of
from .delivery import pause_after
from .errors import ForeignLoop, JidokaError, WriterUnavailable
from .line import Line
from .link import Search, view_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from .calls import Call, Resizing
    from .control import ControlReader
    from .protocol import Reply
    from .reader import AttachedReads

#: Changes that are under way at a time, and bytes that are put together for one send. A pipeline
#: goes whole, whatever its length.
_WINDOW: Final = 1024
_PIECE: Final = 1 << 16

#: The longest time that a timer of the loop is set to, in seconds: not each loop takes any.
_LONGEST_TIMER: Final = 3600.0

_REPLACED: Final = "another registry has its name now"


class Channel:
    """The way from one client to its registry's service, whichever process that is."""

    _line: Line | None = None
    #: While there is no connection that was greeted, and some call needs one.
    _search: Search | None = None
    _retry: asyncio.TimerHandle | None = None
    _expiry: asyncio.TimerHandle | None = None
    _will_send = False
    #: Of the connection: what it leads to, and the control of that.
    _instance: UUID
    _control: ControlReader
    #: What to wait after the next loss, and why the last one was.
    _pause = 0.0
    _reason: str | None = None

    def __init__(self, reader: AttachedReads, timeout: float) -> None:
        """Bind to the running loop; nothing is connected yet.

        Args:
            reader: who reads the registry.
            timeout: how long a call may take, in seconds.
        """
        self._reader = reader
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        #: Not sent, sent over this connection, and sent over one that was lost; each in order.
        self._waiting: OrderedDict[Asked, None] = OrderedDict()
        self._flying: deque[Asked] = deque()
        self._again: deque[Asked] = deque()
        self._trail = Trail()
        #: Replies that are still to come over this connection.
        self._due = 0

    @property
    def is_stale(self) -> bool:
        """Whether its loop is closed."""
        return self._loop.is_closed()

    def check_loop(self) -> None:
        """Raise ``ForeignLoop`` unless the running loop is its own."""
        running = None
        with contextlib.suppress(RuntimeError):
            running = asyncio.get_running_loop()
        if running is not self._loop:
            raise ForeignLoop(self._reader.name)

    # ------------------------------------------------------------------ calls

    def ask(self, calls: Sequence[Call | Resizing]) -> Asked:
        """Have changes made; each has its outcome within the timeout.

        Raises:
            ForeignLoop: in another loop.
        """
        self.check_loop()
        deadline = self._loop.time() + self._timeout
        asked = Asked(self._reader, calls, self._loop.create_future(), deadline)
        if self._timeout <= 0:
            asked.fail(self._too_late())
            return asked
        self._waiting[asked] = None
        if self._expiry is None:
            self._expire_at(deadline)
        if self._line is None:
            if self._retry is None:
                self._try()
        elif not self._flying:
            self.go_on()
        elif not self._will_send:
            # With what else is asked for in this turn of the loop.
            self._will_send = True
            self._loop.call_soon(self.go_on)
        return asked

    def forget(self, asked: Asked) -> None:
        """Take that nobody waits any more. What is not sent yet never is."""
        asked.is_over = True
        self._waiting.pop(asked, None)

    # ------------------------------------------------------------------ sending

    def go_on(self) -> None:
        """Send what there is to be sent, as much as may be under way."""
        self._will_send = False
        line = self._line
        if line is None or self._search is not None or not line.has_room:
            return
        if self._again and not self._flying:
            self._send_again(line)
        if self._waiting and not self._again and self._due < _WINDOW:
            self._send(line)

    def _send_again(self, line: Line) -> None:
        """Send the first of those that a lost connection carried."""
        while self._again:
            asked = self._again[0]
            if self._is_to_repeat(asked):
                asked.due = self._due = 1
                self._flying.append(asked)
                line.send(asked.frame_again())
                return
            self._again.popleft()
            self._put_first(asked)
        self._trail.clear()

    def _is_to_repeat(self, asked: Asked) -> bool:
        return len(asked.outcomes) < asked.sent and self._belongs_here(asked)

    def _belongs_here(self, asked: Asked) -> bool:
        """Return whether somebody waits for it who asked this registry."""
        try:
            asked.check_instance(self._instance)
        except WriterUnavailable as error:
            asked.fail(error)
        return not asked.is_over

    def _put_first(self, asked: Asked) -> None:
        """Have what is left of it sent before all that waits."""
        if not asked.is_over:
            self._waiting[asked] = None
            self._waiting.move_to_end(asked, last=False)

    def _send(self, line: Line) -> None:
        view = view_of(self._reader)
        if view.control is not self._control and view.identity[0] != self._instance:
            line.close()
            self.lose(Lost(_REPLACED))
            return
        before = how_it_is(self._control)
        pieces: list[bytes] = []
        size = 0
        while self._waiting and self._due < _WINDOW and size < _PIECE:
            asked, _ = self._waiting.popitem(last=False)
            if self._belongs_here(asked):
                frames = asked.begin(before, line.given + size)
                self._flying.append(asked)
                self._trail.add(asked)
                self._due += len(frames)
                pieces += frames
                size += sum(map(len, frames))
        line.send(b"".join(pieces))

    # ------------------------------------------------------------------ the connection

    def take(self, reply: Reply) -> None:
        """Take what the service says next."""
        if self._search is not None:
            self._greet(self._search, reply)
            return
        if not self._flying:
            msg = "it answered what nobody asked"
            raise Lost(msg)
        self._due -= 1
        self._pause, self._reason = 0.0, None
        asked = self._flying[0]
        asked.take(reply)
        if not asked.due:
            self._flying.popleft()
            if not self._again:
                self._trail.note_answered(asked, self._flying[0] if self._flying else None)

    def _greet(self, search: Search, reply: Reply) -> None:
        instance = greeting_of(reply)
        view = view_of(self._reader)
        if not search.fits(instance, view):
            raise Lost(search.reason)
        self._instance, self._control, self._search = instance, view.control, None

    def lose(self, error: Exception) -> None:
        """Take the end of the connection: those without a reply need another one."""
        self._collect()
        self._pursue(functools.partial(self._pause_after, error))

    def _try(self) -> None:
        self._retry = None
        self._pursue(self._connect)

    def _pursue(self, step: Callable[[], float | None]) -> None:
        """Take a step towards a connection, and the next one after the pause that it returns."""
        if not self._is_asked():
            self._search = None
            return
        try:
            pause = step()
        except JidokaError as error:
            self._fail(error)
            return
        if pause is not None:
            self._retry = self._loop.call_later(pause, self._try)

    def _pause_after(self, error: Exception) -> float:
        """Return how long to wait after a connection that ended."""
        if self._search is not None:
            # Before it was greeted.
            self._search.note_failure(error)
            return self._search.pause(listens=True)
        self._reason = str(error)
        # Not after the first loss: the next writer may be there already.
        pause, self._pause = self._pause, pause_after(self._pause)
        return pause

    def _connect(self) -> float | None:
        """Connect, or return how long to wait until the next try."""
        if self._search is None:
            self._search = Search(self._reader.name, self._reader)
        search, problem = self._search, self._reader.follow()
        if problem is not None:
            search.reason = str(problem)
            return POLL
        path = view_of(self._reader).control.socket_path
        if path is not None:
            try:
                self._line = Line(self._loop, path, self)
            except OSError as error:
                search.note_failure(error)
            else:
                return None
        return search.pause(listens=path is not None)

    def _collect(self) -> None:
        """Sort out what the connection carried, which is of no use any more."""
        line, self._line = self._line, None
        flying, self._flying, self._due = self._flying, deque(), 0
        if line is None or self._again:
            # What flew was one that is still the first to be sent again.
            return
        self._trail.hand_out()
        for asked in reversed(flying):
            if asked.leave(line.handed):
                self._again.appendleft(asked)
            else:
                self._put_first(asked)

    def _is_asked(self) -> bool:
        return bool(self._waiting) or any(not asked.is_over for asked in self._again)

    # ------------------------------------------------------------------ ends

    def _expire_at(self, deadline: float) -> None:
        now = self._loop.time()
        self._expiry = self._loop.call_at(min(deadline, now + _LONGEST_TIMER), self._expire)

    def _expire(self) -> None:
        """Give up what has taken too long; the oldest comes first."""
        self._expiry = None
        now = self._loop.time()
        for asked in [*self._again, *self._flying, *self._waiting]:
            if asked.is_over:
                continue
            if asked.deadline > now:
                self._expire_at(asked.deadline)
                return
            self._waiting.pop(asked, None)
            if asked.due and not self._again:
                # The connection goes on, and so does all that it was given.
                asked.sent = len(asked.calls)
            asked.fail(self._too_late())

    def _too_late(self) -> WriterUnavailable:
        reason = None if self._search is None else self._search.reason
        reason = reason or self._reason or f"no answer within {self._timeout:g} s"
        return WriterUnavailable(self._reader.name, reason=reason)

    def _fail(self, error: JidokaError) -> None:
        """Give up all that there is: no connection will come."""
        self._search = None
        for asked in (*self._again, *self._waiting):
            asked.fail(error)
        self._again.clear()
        self._waiting.clear()
        self._trail.clear()

    def close(self, error: JidokaError) -> None:
        """Let go of the service, and give up what is under way with ``error``.

        Raises:
            ForeignLoop: while its loop runs in another thread.
        """
        if self._loop.is_running():
            self.check_loop()
        for timer in (self._retry, self._expiry):
            if timer is not None:
                timer.cancel()
        if self._line is not None:
            self._line.close()
            self._collect()
        # Of a closed loop nobody waits any more.
        if not self._loop.is_closed():
            self._fail(error)
