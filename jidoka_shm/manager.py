"""``SessionManager``: the one writer of a registry, embedded in the process that makes it."""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from msgspec import UNSET, UnsetType

from . import changes, endpoint, forks, ownership, processes
from .arguments import (
    CAPACITY,
    CLEANUP_DELAY,
    MAX_CAPACITY,
    MAX_CLIENTS,
    MAX_RECORD_SIZE,
    MODE,
    SLOT_SIZE,
    check_flag,
    check_mode,
    check_seconds,
    check_whole,
    parse_session_id,
)
from .errors import RegistryClosed, RegistryFull
from .ids import new_id
from .layout import Geometry, check_capacity, check_name, check_record_size
from .logs import log
from .once import OnceOnly
from .reactor import Reactor
from .recovery import Recovery
from .registry import Registry
from .service import Service
from .serving import Serving
from .watches import Watches
from .writer import TableWriter
from .writes import SessionWrites, release

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self
    from uuid import UUID

    from .maps import Map
    from .session import Session, SessionStatus

T = TypeVar("T")


class SessionManager(SessionWrites):
    """The writer of a registry, and a reader of it like any other.

    All calls may come from any thread. Leaving ``with`` closes the manager and keeps the
    registry: readers go on, and the next manager of the name takes it over.
    """

    def __init__(  # noqa: PLR0913 - options, each by keyword
        self,
        name: str,
        *,
        capacity: int = CAPACITY,
        slot_size: int = SLOT_SIZE,
        max_capacity: int = MAX_CAPACITY,
        max_record_size: int = MAX_RECORD_SIZE,
        grow: bool = True,
        cleanup_delay: float = CLEANUP_DELAY,
        mode: int = MODE,
        fresh: bool = False,
        listen: bool = False,
        wait: float = 0.0,
        max_clients: int = MAX_CLIENTS,
    ) -> None:
        """Make a registry, or take over the one that a dead predecessor left.

        Args:
            name: the registry's name, 1 to 64 of letters, digits, ``_`` and ``-``.
            capacity: slots of a new one, of which a session takes one or more; one taken over that
                has fewer grows to it.
            slot_size: bytes a slot, a multiple of 64; one taken over keeps its own.
            max_capacity: slots that it may grow to by itself, where a record finds no room. One
                that is larger keeps its size.
            max_record_size: bytes of the longest record, 128 to 2**24; what one taken over holds
                may be longer.
            grow: whether it may grow at all. Where not, one taken over keeps its size, too.
            cleanup_delay: how long a terminated session stays visible, in seconds.
            mode: the mode of the shared memory, of one taken over too; 0o640 or 0o644 lets others
                read.
            fresh: discard what is there, whatever it is.
            listen: answer a ``SessionClient`` in any other process of this user.
            wait: how long to wait for a living predecessor to end, in seconds.
            max_clients: clients that may be connected at once.

        Raises:
            WriterAlreadyRunning: where another manager lives, in this process too.
            RegistryFull: where /dev/shm has no room.
            RegistryForbidden, FormatMismatch, CorruptRegistry: where what is there cannot be
                taken over; ``fresh=True`` discards the last two.
            DirectoryForbidden, OSError: where it cannot ``listen``.
            InvalidName, ValueError, TypeError: for an argument that cannot be.
        """
        self._name = check_name(name)
        geometry = Geometry.for_capacity(
            check_whole("capacity", capacity), check_whole("slot_size", slot_size)
        )
        max_capacity = check_capacity("max_capacity", check_whole("max_capacity", max_capacity))
        record_size = check_whole("max_record_size", max_record_size)
        max_record_size = check_record_size("max_record_size", record_size)
        self._max_capacity = max_capacity if check_flag("grow", grow) else 0
        delay = int(check_seconds("cleanup_delay", cleanup_delay) * 1e9)
        mode, fresh = check_mode(mode), check_flag("fresh", fresh)
        listen, wait = check_flag("listen", listen), check_seconds("wait", wait)
        max_clients = check_whole("max_clients", max_clients)
        self._lock = threading.RLock()
        self._identity = processes.own_identity()
        path = str(endpoint.path_of(self._name)) if listen else None
        self._own, memory, header, found = ownership.claim(
            self._name,
            geometry,
            self._identity,
            path=path,
            mode=mode,
            fresh=fresh,
            wait=wait,
        )
        with contextlib.ExitStack() as undo:
            undo.callback(self._own.release)
            if not found:
                undo.callback(self._own.destroy)
            undo.callback(self._own.control.publish_socket, None)
            self._instance = header.instance
            table = TableWriter(
                memory, self._own.control, header.geometry, max_record_size=max_record_size
            )
            if not found:
                # First, for it needs no descriptor, and there may be none left to destroy it with.
                undo.callback(self._own.revoke, [table])
            self._registry = Registry(
                table,
                self._own.control,
                cleanup_delay=delay,
                grow=_weakly(self._make_room),
            )
            self._show(table)
            self._watches, self._ended = Watches(self._name), {}
            # Undone after the reactor's thread has ended.
            undo.callback(self._own.retire, self._identity)
            self.recovery = self._take_over(header.generation) if found else None
            if found and grow:
                self._enlarge(geometry.capacity)
            self._reactor = Reactor(
                f"jidoka_shm {self._name}",
                turn=_weakly(self._turn),
                watch=_weakly(self._watch),
                watches=self._watches,
            )
            undo.callback(self._reactor.stop)
            if listen:
                self._serving = self._make_serving(max_clients)
                # First, so that an interrupt at any line of its start leaves no socket behind.
                undo.callback(self._serving.withdraw)
                self._serving.start(self._reactor)
            self._finalizer = weakref.finalize(
                self, release, self._own, self._reactor, self._serving
            )
            forks.register(self)
            self._reactor.wake_at(self._registry.next_turn())
            undo.pop_all()

    def _take_over(self, generation: int) -> Recovery:
        """Make what a predecessor left this process's to write."""
        self._own.discard_others(generation)
        control = self._own.control
        clean = control.writer() is None and control.change[0] % 2 == 0
        kept, dropped = self._registry.resume(self._identity)
        control.count("takeovers")
        recovery = Recovery(kept, dropped, clean)
        recovery.log(self._name)
        self._reclaim_left()
        return recovery

    def _enlarge(self, capacity: int) -> None:
        """Give what was taken over the room that is asked for, if there is any."""
        now = self._registry.table.geometry
        if capacity > now.capacity:
            try:
                self._move(Geometry.for_capacity(capacity, now.slot_size))
            except RegistryFull as full:
                text = "registry %r: %d slots still, not %d: %s"
                extra = {"registry": self._name, "capacity": now.capacity}
                log.warning(text, self._name, now.capacity, capacity, str(full), extra=extra)

    def _make_serving(self, max_clients: int) -> Serving:
        name, control = self._name, self._own.control
        change, resize = _while_alive(name, self._change), _while_alive(name, self.resize)
        service = Service(OnceOnly(self._registry, control), change, resize)
        return Serving(name, control=control, answer=service.answer, max_clients=max_clients)

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
            pid: its owner process. When that ends, however it ends, the session is terminated
                with an ``error`` that says so.
            ttl: in how many seconds it expires, unless an update moves that; None is never.
            session_id: its id; a new version-4 UUID where it is left out.

        Raises:
            SessionExists: where the id is taken.
            OwnerNotAlive: where no process of this pid namespace has the pid.
            OSError: where no descriptor is left to look at ``pid``.
            InvalidMetadata, InvalidSessionId, ValueError, TypeError: for a bad argument.
            RecordTooLarge: where its record is longer than ``max_record_size``.
            RegistryFull: where there is no room, nor can be made any.
        """
        key = new_id() if session_id is None else parse_session_id(session_id)
        fields = changes.for_create(metadata, llm_config, pid, ttl)
        self._change(self._registry.create, key, fields)
        return key

    def update_session(  # noqa: PLR0913, PLR0917 - one argument a field
        self,
        session_id: UUID | str,
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
            pid: its new owner process; the one before is of no account any more.
            ttl: in how many seconds it expires.
            expected_version: change only this version.

        Raises:
            SessionNotFound: where it is not there, or terminated.
            IllegalTransition: where its status may not move so.
            VersionConflict: where it is at another version.
            OwnerNotAlive: where no process of this pid namespace has the pid.
            OSError: where no descriptor is left to look at ``pid``.
            InvalidMetadata, InvalidSessionId, ValueError, TypeError: for a bad argument.
            RecordTooLarge: where its record becomes longer than ``max_record_size``.
            RegistryFull: where it takes more slots than before, and there is no room, nor can be
                made any. A change of status takes no more.
        """
        fields = changes.for_update(status, metadata, llm_config, pid, ttl, expected_version)
        return self._change(self._registry.update, parse_session_id(session_id), fields)

    def terminate_session(self, session_id: UUID | str, error: str | None = None) -> None:
        """End a session: it reads as terminated for ``cleanup_delay`` and is gone then.

        Args:
            session_id: which session.
            error: why, if it went wrong; where there is no room for it, cut to what is left of the
                session's slots.

        Raises:
            SessionNotFound: where it is not there. One still visible as terminated is no error.
            InvalidSessionId, ValueError, TypeError: for a bad argument.
        """
        fields = changes.for_terminate(error)
        self._change(self._registry.terminate, parse_session_id(session_id), fields)

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


def _weakly(method: Callable[..., T]) -> Callable[..., T | None]:
    """Return ``method`` as long as its object lives, then nothing.

    The reactor's thread must not keep a manager alive that nobody uses any more.
    """
    reference = weakref.WeakMethod(method)

    def call(*arguments: Any) -> T | None:  # noqa: ANN401 - the method's own
        alive = reference()
        return None if alive is None else alive(*arguments)

    return call


def _while_alive(name: str, method: Callable[..., T]) -> Callable[..., T]:
    """Return ``method`` as long as its object lives, then what raises ``RegistryClosed``."""
    reference = weakref.WeakMethod(method)

    def call(*arguments: Any) -> T:  # noqa: ANN401 - the method's own
        alive = reference()
        if alive is None:
            raise RegistryClosed(name, "its manager is gone")
        return alive(*arguments)

    return call
