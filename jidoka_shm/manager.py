"""``SessionManager``: the one writer of a registry, embedded in the process that makes it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar
from uuid import uuid4

from msgspec import UNSET, UnsetType

from . import changes, forks, ownership, processes
from .arguments import check_flag, check_mode, check_seconds, check_whole
from .attachment import Attachment, detached
from .errors import (
    ForkedHandle,
    JidokaError,
    ReentrantCall,
    RegistryClosed,
    RegistryNotFound,
)
from .layout import Geometry, check_name
from .reactor import Reactor
from .reads import SessionReads
from .registry import Instant, Registry
from .session import parse_session_id
from .writer import TableWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self
    from uuid import UUID

    from .maps import Map
    from .ownership import Ownership
    from .session import Session, SessionStatus
    from .writer import Dropped

T = TypeVar("T")

_log = logging.getLogger("jidoka_shm")

_CACHE_SIZE: Final = 65_536


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a manager took over.

    Attributes:
        kept: sessions that are there again, whole.
        dropped: records that were damaged, and why.
        clean: whether the last writer closed; False after a crash.
    """

    kept: int
    dropped: tuple[Dropped, ...]
    clean: bool


class SessionManager(SessionReads):
    """The writer of a registry, and a reader of it like any other.

    All calls may come from any thread. Leaving ``with`` closes the manager and keeps the
    registry: readers go on, and the next manager of the name takes it over.
    """

    def __init__(  # noqa: PLR0913 - options, each by keyword
        self,
        name: str,
        *,
        capacity: int = 16_384,
        slot_size: int = 512,
        cleanup_delay: float = 0.05,
        mode: int = 0o600,
        fresh: bool = False,
        wait: float = 0.0,
    ) -> None:
        """Make a registry, or take over the one that a dead predecessor left.

        Args:
            name: the registry's name, 1 to 64 of letters, digits, ``_`` and ``-``.
            capacity: sessions that fit into a new one; one taken over keeps its own.
            slot_size: bytes a session, a multiple of 64; one taken over keeps its own.
            cleanup_delay: how long a terminated session stays visible, in seconds.
            mode: the mode of the shared memory; 0o640 or 0o644 lets others read.
            fresh: discard what is there, whatever it is.
            wait: how long to wait for a living predecessor to end, in seconds.

        Raises:
            WriterAlreadyRunning: where another manager lives, in this process too.
            RegistryFull: where /dev/shm has no room.
            RegistryForbidden, FormatMismatch, CorruptRegistry: where what is there cannot be
                taken over; ``fresh=True`` discards the last two.
            InvalidName, ValueError, TypeError: for an argument that cannot be.
        """
        self._name = check_name(name)
        geometry = Geometry.for_capacity(
            check_whole("capacity", capacity), check_whole("slot_size", slot_size)
        )
        delay = int(check_seconds("cleanup_delay", cleanup_delay) * 1e9)
        mode, fresh = check_mode(mode), check_flag("fresh", fresh)
        wait = check_seconds("wait", wait)
        self._lock = threading.RLock()
        self._interrupted = self._close_wanted = self._closed = self._forked = False
        self._own, memory, header, found = ownership.claim(
            self._name, geometry, processes.own_identity(), mode=mode, fresh=fresh, wait=wait
        )
        try:
            self._instance = header.instance
            table = TableWriter(memory, self._own.control, header.geometry)
            self._registry = Registry(table, self._own.control, cleanup_delay=delay)
            self._view = Attachment(
                self._own.control, table, is_named=self._own.is_named, cache_size=_CACHE_SIZE
            )
            self._own.discard_others(header.generation)
            self.recovery = self._take_over() if found else None
            me = weakref.ref(self)
            self._reactor = Reactor(
                f"jidoka_shm {self._name}", turn=lambda: _turn(me), watch=lambda: _watch(me)
            )
        except BaseException:
            self._own.release()
            raise
        self._finalizer = weakref.finalize(self, _release, self._own, self._reactor)
        forks.register(self)
        self._reactor.wake_at(self._registry.next_deadline())

    def _take_over(self) -> Recovery:
        """Make what a predecessor left this process's to write."""
        control = self._own.control
        clean = control.writer() is None and control.change[0] % 2 == 0
        kept, dropped = self._registry.resume(processes.own_identity())
        control.count("takeovers")
        recovery = Recovery(kept, dropped, clean)
        _log.log(
            logging.WARNING if dropped else logging.INFO,
            "took over registry %r (%s): %d sessions kept, %d damaged records dropped %s",
            self._name,
            "closed" if clean else "its writer died",
            kept,
            len(dropped),
            list(dropped[:10]),
        )
        return recovery

    # ------------------------------------------------------------------ changes

    def create_session(
        self,
        metadata: Map | None = None,
        llm_config: Map | None = None,
        pid: int | None = None,
        ttl: float | None = None,
        session_id: UUID | str | None = None,
    ) -> UUID:
        """Create a session, initializing, and return its id.

        Args:
            metadata: a map of what JSON holds; empty where it is left out.
            llm_config: the same.
            pid: its owner process.
            ttl: in how many seconds it expires, unless an update moves that; None is never.
            session_id: its id; a new version-4 UUID where it is left out.

        Raises:
            SessionExists: where the id is taken.
            InvalidMetadata, InvalidSessionId, ValueError, TypeError: for a bad argument.
            RecordTooLarge: where the session outgrows a slot.
            RegistryFull: where no slot is free.
        """
        new_id = uuid4() if session_id is None else parse_session_id(session_id)
        fields = changes.for_create(metadata, llm_config, pid, ttl)
        self._change(self._registry.create, new_id, fields)
        return new_id

    def update_session(  # noqa: PLR0913 - one argument a field
        self,
        session_id: UUID | str,
        *,
        status: SessionStatus | str | UnsetType = UNSET,
        metadata: Map | UnsetType | None = UNSET,
        llm_config: Map | UnsetType | None = UNSET,
        pid: int | UnsetType | None = UNSET,
        ttl: float | UnsetType | None = UNSET,
        expected_version: int | None = None,
    ) -> Session:
        """Change what is given and return the session as it is then.

        What is not given stays, None clears, a map replaces the whole map, ``ttl`` counts from
        now. The same status again is no move: a heartbeat, like an update of nothing.

        Args:
            session_id: which session.
            status: what it moves to.
            metadata: its new metadata.
            llm_config: its new model configuration.
            pid: its new owner process.
            ttl: in how many seconds it expires.
            expected_version: change only this version.

        Raises:
            SessionNotFound: where it is not there, or terminated.
            IllegalTransition: where its status may not move so.
            VersionConflict: where it is at another version.
            InvalidMetadata, InvalidSessionId, ValueError, TypeError: for a bad argument.
            RecordTooLarge: where the session outgrows a slot.
        """
        fields = changes.for_update(status, metadata, llm_config, pid, ttl, expected_version)
        return self._change(self._registry.update, parse_session_id(session_id), fields)

    def terminate_session(self, session_id: UUID | str, error: str | None = None) -> None:
        """End a session: it reads as terminated for ``cleanup_delay`` and is gone then.

        Args:
            session_id: which session.
            error: why, if it went wrong.

        Raises:
            SessionNotFound: where it is not there. One still visible as terminated is no error.
        """
        fields = changes.for_terminate(error)
        self._change(self._registry.terminate, parse_session_id(session_id), fields)

    def _change(self, change: Callable[..., T], session_id: UUID, fields: dict[str, Any]) -> T:
        """Make one change, at this moment, and see to the deadline that it may bring."""
        self._refuse_reentry()
        try:
            with self._lock:
                self._prepare()
                try:
                    result = change(session_id, now=_now(), **fields)
                except JidokaError:
                    # These are raised before the first store, so nothing was interrupted.
                    self._interrupted = False
                    raise
                deadline = self._registry.next_deadline()
                self._interrupted = False
        finally:
            if self._close_wanted:
                self.close()
        self._reactor.wake_at(deadline)
        return result

    def _refuse_reentry(self) -> None:
        """Raise ``ReentrantCall`` in a signal handler or finalizer that runs inside a change."""
        # The lock itself knows, and forgets however a call ends; a flag of our own could be left
        # standing by an exception between any two of its lines. Condition relies on it too.
        if self._lock._is_owned():  # type: ignore[attr-defined] # noqa: SLF001 - as said
            raise ReentrantCall(self._name)

    def _prepare(self) -> None:
        """Get ready for a change; the lock is held.

        Raises:
            RegistryClosed, ForkedHandle: where the manager has let go.
        """
        self._view.table  # noqa: B018 - a detached view raises
        if self._interrupted:
            self._registry.resume(processes.own_identity())
        # Stands until the change has ended whole: after a KeyboardInterrupt or MemoryError it is
        # not known how far this process's own free slots and deadlines were brought.
        self._interrupted = True

    def _expire(self) -> int | None:
        """Do what is due and return the next deadline; called by the reactor."""
        with self._lock:
            try:
                self._prepare()
            except (RegistryClosed, ForkedHandle):
                return None
            self._registry.expire(_now())
            self._interrupted = False
            return self._registry.next_deadline()

    def _watch(self) -> None:
        """Close the registry for everybody if its names were removed; called by the reactor."""
        if self._own.is_whole():
            return
        with self._lock:
            _log.error("the names of registry %r were removed: closing it", self._name)
            self._own.revoke(self._registry.table)
            self._let_go("its names were removed from /dev/shm")
        self._reactor.stop()
        self._own.release()

    def _attach_again(self, old: Attachment) -> NoReturn:  # noqa: ARG002 - nothing can follow
        raise RegistryClosed(self._name, "its table was given up")

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Let go of the registry, which stays as it is for readers and the next manager.

        May be repeated. In a signal handler or finalizer that runs inside one of the manager's
        own calls, it is done when that call ends.
        """
        if self._lock._is_owned():  # type: ignore[attr-defined] # noqa: SLF001 - see above
            self._close_wanted = True
            return
        with self._lock:
            self._close_wanted = False
            self._let_go("this manager is closed")
        _release(self._own, self._reactor)

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
            if not self._closed:
                self._own.destroy()
        if self._closed:
            with contextlib.suppress(RegistryNotFound):
                ownership.remove(self._name, instance=self._instance)
        self.close()

    def _let_go(self, reason: str) -> None:
        """Make every later call raise ``RegistryClosed``."""
        if not self._closed:
            self._closed = True
            self._view = detached(RegistryClosed, self._name, reason)

    def after_fork_in_child(self) -> None:
        """Make every later call in the child raise ``ForkedHandle``."""
        self._forked = self._closed = True
        self._view = detached(ForkedHandle, self._name)
        self._lock = threading.RLock()
        self._finalizer.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        msg = (
            "a SessionManager cannot be pickled: it holds the registry's lock; pass its name, and "
            "read with SessionReader or change through SessionClient in the other process"
        )
        raise TypeError(msg)

    def __repr__(self) -> str:
        return f"SessionManager({self._name!r}, {self._summary()})"


def _now() -> Instant:
    return Instant(time.time_ns(), time.monotonic_ns())


# The reactor's thread and the finalizer must not keep a manager alive that nobody uses any more.


def _turn(manager: weakref.ref[SessionManager]) -> int | None:
    alive = manager()
    return None if alive is None else alive._expire()  # noqa: SLF001 - a part of it


def _watch(manager: weakref.ref[SessionManager]) -> None:
    alive = manager()
    if alive is not None:
        alive._watch()  # noqa: SLF001 - a part of it


def _release(own: Ownership, reactor: Reactor) -> None:
    """Let go of the thread, then of the registry. May be repeated."""
    reactor.stop()
    if own.is_locked():
        own.control.retire_writer()
        own.release()
