"""The way from a client to its registry's service: where it listens, and open connections to it.

Each call takes a connection for itself and gives it back when all its replies are there. So no
call waits for another, there is no lock that a signal handler could meet taken, and a call that
is interrupted loses its connection and nothing else. There are as many connections as calls at
once; a few are kept for the next. Those that a forked child inherits have closed themselves, and
are let go of like any whose service has ended.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

from . import starting
from .connection import Connection, Incompatible, Lost
from .errors import WriterUnavailable

if TYPE_CHECKING:
    from uuid import UUID

    from .attachment import Attachment
    from .reads import SessionReads

#: Connections that are kept while no call needs them.
_KEPT: Final = 8

#: How long a writer that lives must be without a place where it listens before it is taken for one
#: that never does, in seconds. One that will listen says where before it says who it is; one that
#: ends has none for a moment.
_GRACE: Final = 0.1

#: Pauses between two looks at what is not there yet, in seconds: the first, and the longest.
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.02

_SILENT: Final = "it lives and does not listen: make its SessionManager with listen=True"


class Link:
    """Connections to the service of one registry, whichever process it is."""

    def __init__(self, name: str, *, start: bool) -> None:
        """Make a link; nothing is connected yet.

        Args:
            name: the registry's name.
            start: whether to start a service where no writer lives.
        """
        self._name = name
        self._start = start
        self._idle: deque[Connection] = deque()
        self._closed = False

    def take(self, reader: SessionReads, deadline: float) -> Connection:
        """Return a connection to the service of what ``reader`` reads, for one call.

        Args:
            reader: who reads the registry; it is attached anew where that is another now.
            deadline: until when, by the monotonic clock in seconds.

        Raises:
            WriterUnavailable: at once where no writer lives, or one that does not listen.
            RegistryClosed: where the registry is gone, or the reader is closed.
            TimeoutError: at the deadline.
        """
        view = view_of(reader)
        control, identity = view.control, view.identity
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread has taken the last one
                break
            if connection.control is control or connection.instance == identity[0]:
                return connection
        return _Connecting(self._name, reader, deadline, start=self._start).connection()

    def await_started(self, reader: SessionReads, deadline: float) -> None:
        """Connect to a service that was started a moment ago; otherwise as ``take``."""
        search = _Connecting(self._name, reader, deadline, start=False)
        search.has_started()
        self.give(search.connection())

    def give(self, connection: Connection) -> None:
        """Take back a connection whose replies are all there."""
        if len(self._idle) < _KEPT:
            self._idle.append(connection)
        if self._closed:
            self._idle.clear()

    def forget(self) -> None:
        """Let go of all connections that are not in use: their service has ended."""
        self._idle.clear()

    def close(self) -> None:
        """Let go of all connections, those in use when they are given back. May be repeated."""
        self._closed = True
        self._idle.clear()


class Search:
    """One search for a service: what a failed try means, and whether there is one to wait for.

    Attributes:
        reason: why there is none yet, where that is known.
    """

    reason: str | None = None

    def __init__(self, name: str, reader: SessionReads) -> None:
        """Begin.

        Args:
            name: the registry's name.
            reader: who reads the registry.
        """
        self._name = name
        self._reader = reader
        self._silent_since: float | None = None
        self._pause = _FIRST_PAUSE

    def fits(self, instance: UUID, view: Attachment) -> bool:
        """Return whether the service of ``instance`` is that of what is read."""
        if instance == view.identity[0]:
            return True
        # The name leads to another registry by now, or its service is just going.
        self.reason = "another registry's service answers"
        return False

    def note_failure(self, error: Exception) -> None:
        """Take what a try to connect ended in.

        Raises:
            WriterUnavailable: where no other try can do better.
        """
        if isinstance(error, Incompatible | PermissionError):
            raise WriterUnavailable(self._name, reason=str(error)) from None
        if isinstance(error, BlockingIOError):
            self.reason = "it accepts nobody, and no more clients can wait for it"
        else:
            # A path may be a dead writer's, which its successor is about to replace.
            self.reason = str(error)

    def pause(self, *, listens: bool) -> float:
        """Return how long to wait until the next try, in seconds.

        Args:
            listens: whether the writer says where it listens.

        Raises:
            WriterUnavailable: where there is no writer to wait for.
        """
        self._check_writer(listens=listens)
        pause = self._pause
        self._pause = min(2 * pause, _LONGEST_PAUSE)
        return pause

    def _check_writer(self, *, listens: bool) -> None:
        now = time.monotonic()
        if self._reader.writer_alive is False:
            self._do_without()
        elif listens:
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since > _GRACE:
            raise WriterUnavailable(self._name, reason=_SILENT)

    def _do_without(self) -> None:
        """Raise, where no writer lives and none is to come."""
        raise WriterUnavailable(self._name)


class _Connecting(Search):
    """One call's search for a service, which waits."""

    def __init__(self, name: str, reader: SessionReads, deadline: float, *, start: bool) -> None:
        super().__init__(name, reader)
        self._deadline = deadline
        self._may_start = start
        self._started = False

    def has_started(self) -> None:
        """Wait for a writer where none lives: a service was started."""
        self._started = True
        self.reason = starting.silence_of(self._name)

    def connection(self) -> Connection:
        """Return a new connection; otherwise as ``Link.take``."""
        while True:
            view = view_of(self._reader)
            path = view.control.socket_path
            connection = None if path is None else self._connect(path, view)
            if connection is not None:
                return connection
            pause = self.pause(listens=path is not None)
            if time.monotonic() >= self._deadline:
                raise self._too_late()
            time.sleep(pause)

    def _too_late(self) -> TimeoutError:
        return TimeoutError() if self.reason is None else TimeoutError(self.reason)

    def _connect(self, path: str, view: Attachment) -> Connection | None:
        """Return a connection to the service of what is read; None where there is none yet."""
        try:
            connection = Connection(path, self._deadline)
        except TimeoutError:
            raise self._too_late() from None
        except (Incompatible, OSError, Lost) as error:
            self.note_failure(error)
            return None
        if self.fits(connection.instance, view):
            connection.control = view.control
            return connection
        self._reader.refresh()
        return None

    def _do_without(self) -> None:
        if self._started:
            return
        if not self._may_start:
            raise WriterUnavailable(self._name)
        starting.start(self._name, self._deadline)
        self.has_started()


def view_of(reader: SessionReads) -> Attachment:
    """Return what a reader reads by."""
    return reader._view  # noqa: SLF001 - a client's own parts
