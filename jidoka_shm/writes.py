"""Writing: one change at a time, from any thread, whatever interrupts it; and how it ends.

``SessionWrites`` is what a manager does under its lock. A signal handler or finalizer that comes in
the middle of a change may read and close, and gets an error for another change; after an
exception in the middle of one, what this process knows of the table is made anew.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from . import ownership, processes
from .attachment import detached
from .errors import (
    CorruptRegistry,
    ForkedHandle,
    JidokaError,
    ReentrantCall,
    RegistryClosed,
    RegistryNotFound,
)
from .logs import log
from .marks import Instant
from .reads import SessionReads
from .recovery import log_dropped
from .registry import BATCH, Registry
from .table import TableGone
from .watches import describe, is_dead, log_ends

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable
    from uuid import UUID

    from .attachment import Attachment
    from .control import Identity
    from .ownership import Ownership
    from .reactor import Reactor
    from .serving import Serving
    from .watches import Watches

T = TypeVar("T")


_CLOSED: Final = "this manager is closed"
_DESTROYED: Final = "another process destroyed it"
_REMOVED: Final = "its names were removed from /dev/shm"


class SessionWrites(SessionReads):
    """Changes to a registry that this process owns."""

    _own: Ownership
    _registry: Registry
    _reactor: Reactor
    _watches: Watches
    _ended: dict[Identity, str]
    #: Looked up once: later on there may be no descriptor left to do so.
    _identity: Identity
    _instance: UUID
    _serving: Serving | None = None
    _finalizer: weakref.finalize[..., Any]
    _lock: threading.RLock
    _interrupted = False
    _close_wanted = False
    _closed = False
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
                    # These are raised before the first store, so nothing was interrupted.
                    self._interrupted = False
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

    def _resume(self) -> None:
        """Make anew what this process knows of the table.

        Raises:
            RegistryClosed: where another manager has destroyed it.
        """
        try:
            _, dropped = self._registry.resume(self._identity)
        except TableGone:
            self._let_go(_DESTROYED)
            raise RegistryClosed(self._name, _DESTROYED) from None
        if dropped:
            log_dropped(self._name, dropped)

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
            if self._closed:
                return
            text = "the names of registry %r were removed: closing it"
            log.error(text, self._name, extra={"registry": self._name})
            self._own.end(self._registry.table)
            self._let_go(_REMOVED)
        self._reactor.stop()
        self._release(_REMOVED)

    def _attach_again(self, old: Attachment) -> NoReturn:  # noqa: ARG002 - nothing can follow
        raise RegistryClosed(self._name, _DESTROYED if self._own.is_named() else _REMOVED)

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
                self._own.end(self._registry.table)
        if not here:
            with contextlib.suppress(RegistryNotFound):
                ownership.remove(self._name, instance=self._instance)
        self.close()

    def _let_go(self, reason: str) -> None:
        """Make every later call raise ``RegistryClosed``."""
        if not self._closed:
            # In this order: an interrupt between the two leaves one that can still be let go.
            self._view = detached(RegistryClosed, self._name, reason)
            self._closed = True

    def after_fork_in_child(self) -> None:
        """Make every later call in the child raise ``ForkedHandle``."""
        self._forked = self._closed = True
        gone: Any = detached(ForkedHandle, self._name)
        if not self._released:
            # A fork in the middle of a change may return into it here.
            self._registry.revoke(gone)
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
