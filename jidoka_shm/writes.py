"""Writing: one change at a time, from any thread, whatever interrupts it; and how it ends.

``SessionWrites`` is what a manager does under its lock. A signal handler or finalizer that comes in
the middle of a change may read and close, and gets an error for another change; after an
exception in the middle of one, what this process knows of the table is made anew.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from . import ownership, processes
from .arguments import check_whole
from .attachment import detached
from .errors import (
    CorruptRegistry,
    ForkedHandle,
    JidokaError,
    ReentrantCall,
    RegistryClosed,
    RegistryNotFound,
)
from .growing import REMOVED, SessionTables
from .layout import Geometry
from .logs import log
from .marks import Instant
from .registry import BATCH
from .table import TableGone
from .watches import describe, is_dead, log_ends

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable
    from uuid import UUID

    from .control import Identity
    from .ownership import Ownership
    from .reactor import Reactor
    from .serving import Serving
    from .watches import Watches

T = TypeVar("T")


_CLOSED: Final = "this manager is closed"


class SessionWrites(SessionTables):
    """Changes to a registry that this process owns."""

    _reactor: Reactor
    _watches: Watches
    _ended: dict[Identity, str]
    #: Looked up once: later on there may be no descriptor left to do so.
    _instance: UUID
    _serving: Serving | None = None
    _finalizer: weakref.finalize[..., Any]
    _lock: threading.RLock
    _interrupted = False
    _close_wanted = False
    _released = False
    _forked = False

    def _change(self, change: Callable[..., T], session_id: UUID, fields: dict[str, Any]) -> T:
        """Make one change, at this moment, and see to the deadline that it may bring."""
        self._refuse_reentry()
        try:
            with self._lock:
                self._prepare()
                try:
                    result = self._attempt(change, session_id, fields)
                except JidokaError:
                    # These are raised before the first store, so nothing was interrupted, but
                    # where what they cut short is a growth that could not be taken back.
                    self._interrupted = self._growing
                    raise
                deadline = self._registry.next_turn()
                self._interrupted = False
        finally:
            # As _close_if_wanted, without the call: this is every change's way.
            if self._close_wanted:
                self.close()
        self._reactor.wake_at(deadline)
        return result

    def _attempt(self, change: Callable[..., T], session_id: UUID, fields: dict[str, Any]) -> T:
        try:
            return change(session_id, now=_now(), **fields)
        except TableGone:
            # Another manager destroyed the table; or a word is damaged, and dropped now.
            self._resume()
            return change(session_id, now=_now(), **fields)

    def _close_if_wanted(self) -> None:
        """Do what a handler's ``close`` in the middle of a call has put off."""
        if self._close_wanted:
            self.close()

    def _refuse_reentry(self) -> None:
        """Raise ``ReentrantCall`` in a signal handler or finalizer that runs inside a change."""
        # The lock itself knows, and forgets however a call ends; a flag of our own could be left
        # standing by an exception between any two of its lines. Condition relies on it too.
        if self._lock._is_owned():  # type: ignore[attr-defined] # noqa: SLF001 - as said
            raise ReentrantCall(self._name)

    def resize(self, capacity: int, slot_size: int | None = None) -> None:
        """Move all sessions to a table of another size, larger or smaller; readers follow.

        Both tables are there for a moment. Whatever ``grow`` and ``max_capacity`` say.

        Args:
            capacity: its slots, of which a session takes one or more.
            slot_size: bytes a slot, a multiple of 64; as before where it is left out.

        Raises:
            RegistryFull: where the sessions do not fit, or /dev/shm has no room.
            ValueError, TypeError: for sizes that no table has.
        """
        capacity = check_whole("capacity", capacity)
        size = None if slot_size is None else check_whole("slot_size", slot_size)
        self._refuse_reentry()
        try:
            with self._lock:
                self._prepare()
                try:
                    self._resize(capacity, size)
                except (JidokaError, ValueError):
                    # As in _change.
                    self._interrupted = self._growing
                    raise
                self._interrupted = False
        finally:
            self._close_if_wanted()

    def _resize(self, capacity: int, slot_size: int | None) -> None:
        now = self._registry.table.geometry
        size = now.slot_size if slot_size is None else slot_size
        geometry = Geometry.for_capacity(capacity, size)
        if geometry != now:
            self._move(geometry)

    def check(self) -> list[str]:
        """Return what is wrong with the registry; as for a reader, and between two changes."""
        self._refuse_reentry()
        try:
            with self._lock:
                # What an interrupt left of this process's own is no fault of the registry's.
                self._prepare()
                self._interrupted = False
                return super().check()
        finally:
            self._close_if_wanted()

    def _prepare(self) -> None:
        """Get ready for a change; the lock is held.

        Raises:
            RegistryClosed, ForkedHandle: where the manager has let go.
        """
        self._view.table  # noqa: B018 - a detached view raises
        if self._interrupted:
            self._resume()
        # Stands until the change has ended whole: after a KeyboardInterrupt or MemoryError it is
        # not known how far this process's own free slots and deadlines were brought.
        self._interrupted = True

    def _turn(self) -> int | None:
        """Do what is due, watch who owns sessions now, and return when to do so again."""
        self._expire()
        try:
            with self._lock:
                if self._closed:
                    return None
                self._watches.follow(self._registry.owners)
                return 0 if self._ended else self._registry.next_turn()
        finally:
            self._close_if_wanted()

    def _expire(self) -> None:
        """Do what is due."""
        try:
            with self._lock:
                try:
                    self._prepare()
                    self._expire_due()
                except (RegistryClosed, ForkedHandle):
                    return
                self._interrupted = False
        finally:
            self._close_if_wanted()

    def _expire_due(self) -> None:
        try:
            self._registry.expire(_now())
            self._reclaim()
        except CorruptRegistry as error:
            # One damaged record must not keep all that is due after it waiting.
            extra = {"registry": self._name}
            log.error("recovering registry %r: %s", self._name, str(error), extra=extra)
            self._resume()
        except TableGone:
            self._resume()

    def _reclaim(self) -> None:
        """Terminate the sessions of owners that have ended, some at a time."""
        self._note_ends()
        room = BATCH
        while self._ended and room > 0:
            owner, error = next(iter(self._ended.items()))
            asked = processes.is_orderly(error)
            done = self._registry.owner_ended(owner, error, _now(), asked=asked, limit=room)
            if done < room:
                del self._ended[owner]
            room -= done

    def _note_ends(self) -> None:
        count = self._registry.owners.count
        ends: dict[Identity, str] = {}
        for owner, error in list(self._watches.ended.items()):
            # Kept here before it is forgotten there: what an exception cuts short goes on later.
            self._ended[owner] = error
            del self._watches.ended[owner]
            if count(owner):
                ends[owner] = error
        if ends:
            log_ends(self._name, ends, sum(map(count, ends)))

    def _reclaim_left(self) -> None:
        """Terminate what a predecessor left of owners that have ended since."""
        dead = [owner for owner in self._registry.owners if is_dead(owner)]
        count = 0
        for owner in dead:
            while done := self._registry.owner_ended(owner, describe(owner, "is gone"), _now()):
                count += done
        if dead:
            text = "registry %r: owner processes gone: %d; sessions terminated: %d"
            extra = {"registry": self._name, "owners": len(dead), "sessions": count}
            log.warning(text, self._name, len(dead), count, extra=extra)

    def _watch(self) -> None:
        """Close the registry for everybody if its names were removed; called by the reactor."""
        if self._released or self._own.is_whole():
            return
        with self._lock:
            # Again, for a growth may have removed the name of the table looked at before.
            if self._closed or self._own.is_whole():
                return
            text = "the names of registry %r were removed: closing it"
            log.error(text, self._name, extra={"registry": self._name})
            self._own.end(self._written())
            self._let_go(REMOVED)
        self._reactor.stop()
        self._release(REMOVED)

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Let go of the registry, which stays as it is for readers and the next manager.

        May be repeated. In a signal handler or finalizer that runs inside one of the manager's
        own calls, it is done when that call ends.
        """
        if self._lock._is_owned():  # type: ignore[attr-defined] # noqa: SLF001 - see above
            self._close_wanted = True
            return
        # Taken once: another thread's close sets it to None.
        serving = self._serving
        if serving is not None:
            # Before anything is refused: what has been read of clients is carried out.
            serving.stop(self._reactor)
        with self._lock:
            self._close_wanted = False
            self._let_go(_CLOSED)
        # Not under the lock, for which the reactor may be waiting in its own thread.
        self._reactor.stop()
        self._release(_CLOSED)

    def _release(self, reason: str) -> None:
        """Let go of lock and memory, once."""
        with self._lock:
            # Under it, or another thread's close could say that the next manager had closed.
            if not self._released:
                release(self._own, self._reactor, self._serving)
                self._finalizer.detach()
                self._released = True
                # A closed manager that is kept must not keep the memory of its registry.
                gone: Any = detached(RegistryClosed, self._name, reason)
                self._own = self._registry = gone
                self._serving = None

    def unlink(self) -> None:
        """Destroy the registry for everybody, and close. May be repeated.

        Raises:
            WriterAlreadyRunning: where this manager was closed and another has the registry now.
            ForkedHandle: in a forked child.
        """
        self._refuse_reentry()
        with self._lock:
            if self._forked:
                raise ForkedHandle(self._name)
            # Not whether it is closed: another thread's close may still hold the registry's lock.
            here = not self._released
            if here:
                # First: what an interrupt leaves of the end must take no change any more.
                self._let_go(_CLOSED)
                self._own.end(self._written())
        if not here:
            with contextlib.suppress(RegistryNotFound):
                ownership.remove(self._name, instance=self._instance)
        self.close()

    def after_fork_in_child(self) -> None:
        """Make every later call in the child raise ``ForkedHandle``."""
        self._forked = self._closed = True
        gone: Any = detached(ForkedHandle, self._name)
        if not self._released:
            # A fork in the middle of a change may return into it here.
            for table in self._written():
                table.revoke(gone)
            self._registry.revoke(gone)
            self._own.control.revoke(gone)
        self._view = self._registry = gone
        # Its loop does not run here, and would be waited for.
        self._serving = None
        self._lock = threading.RLock()
        self._finalizer.detach()


def _now() -> Instant:
    return Instant(time.time_ns(), time.monotonic_ns())


def release(own: Ownership, reactor: Reactor, serving: Serving | None) -> None:
    """Let go of the thread, then of the registry. May be repeated."""
    reactor.stop()
    if own.is_locked():
        if serving is not None:
            serving.withdraw()
        own.control.retire_writer()
        own.release()
