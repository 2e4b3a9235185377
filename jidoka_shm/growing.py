"""The table that a manager writes, and how it goes on in a larger or smaller one.

All of it runs under the manager's lock. An exception may come between any two lines of a growth;
``_resume``, which the next call begins with, finishes it where its generation is stored and takes
it back where it is not. Until then readers are right wherever they look: nothing was committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .attachment import Attachment, detached
from .errors import ADJACENT, CorruptRegistry, RegistryClosed, RegistryFull
from .growth import capacity_for, plan
from .layout import Geometry
from .logs import log
from .reads import SessionReads
from .recovery import log_dropped
from .table import TableGone
from .writer import TableWriter

if TYPE_CHECKING:
    from uuid import UUID

    from .control import Identity
    from .header import TableHeader
    from .ownership import Ownership
    from .registry import Registry

_CACHE_SIZE: Final = 65_536

DESTROYED: Final = "another process destroyed it"
REMOVED: Final = "its names were removed from /dev/shm"
_GIVEN_UP: Final = "an index word says that its table was given up"


class SessionTables(SessionReads):
    """The table of a registry that this process owns, and those that follow it."""

    _own: Ownership
    _registry: Registry
    _identity: Identity
    _closed = False
    #: The capacity that a table may grow to by itself.
    _max_capacity: int
    #: Whether a growth was begun and is not finished; from one table to the next, where known.
    _growing = False
    _step: tuple[TableWriter, TableWriter, TableHeader] | None = None

    def _show(self, table: TableWriter) -> None:
        """Make ``table`` the one that this process writes and reads."""
        control = self._own.control
        view = Attachment(control, table, is_named=self._own.is_named, cache_size=_CACHE_SIZE)
        # The writer first: a thread that meets the end of the old table waits for no lock, and
        # what it gets here must be what is written.
        self._registry.table = table
        self._view = view

    def _written(self) -> list[TableWriter]:
        """Return each table that readers may be at."""
        return [self._registry.table, *(self._step or ())[:2]]

    # ------------------------------------------------------------------ growing

    def _make_room(self, newcomer: UUID | None, full: RegistryFull) -> None:
        """Go on in a larger table, or in one where free slots lie together.

        Args:
            newcomer: the id of a new session; None where a record outgrows its slots.
            full: what it met with.

        Raises:
            RegistryFull: where that would be beyond the limit, or /dev/shm has no room.
        """
        table = self._registry.table
        room = full.needed if full.unit == ADJACENT else 1
        capacity = capacity_for(table, room, self._max_capacity)
        if capacity is None:
            raise full
        geometry = Geometry.for_capacity(capacity, table.geometry.slot_size)
        self._move(geometry, newcomer, room)

    def _move(self, geometry: Geometry, newcomer: UUID | None = None, room: int = 0) -> None:
        """Go on in a table of another geometry, with all sessions.

        Raises:
            RegistryFull: where they do not fit. Nothing changed.
        """
        before = self._registry.table.geometry.capacity
        try:
            self._step_to(geometry, newcomer, room)
        except (CorruptRegistry, TableGone) as error:
            reason, why = str(error) or _GIVEN_UP, {"registry": self._name}
            log.error("recovering registry %r: %s", self._name, reason, extra=why)
            self._resume()
            self._step_to(geometry, newcomer, room)
        text = "registry %r: %d slots of %d bytes now, and %d before"
        extra = {"registry": self._name, "capacity": geometry.capacity}
        log.info(text, self._name, geometry.capacity, geometry.slot_size, before, extra=extra)

    def _step_to(self, geometry: Geometry, newcomer: UUID | None, room: int) -> None:
        old = self._registry.table
        where = plan(old, geometry, newcomer, room=room)
        if not self._own.is_named():
            # A name that is made now would be in the way of whoever has the registry's next.
            raise RegistryClosed(self._name, REMOVED)
        self._growing = True
        try:
            memory, header = self._own.create_next(geometry)
            limit = old.max_record_size
            new = TableWriter(memory, self._own.control, geometry, max_record_size=limit)
            self._step = old, new, header
            new.fill(old, where)
            header.store(memory)
            self._finish(old, new, header)
        except BaseException:
            self._settle()
            raise

    def _finish(self, old: TableWriter, new: TableWriter, header: TableHeader) -> None:
        new.follow(old, header.generation, lambda: self._show(new))
        self._own.leave_others()
        self._step = None
        self._growing = False

    def _settle(self) -> None:
        """Finish a growth that an exception cut short, or take it back."""
        generation = self._own.control.generation
        if self._step is not None and generation == self._step[2].generation:
            self._finish(*self._step)
        elif self._growing and self._own.is_named():
            # It has no reader; its name may have been made and not come to be known here.
            self._own.discard_others(generation)
            self._own.leave_others()
        self._step = None
        self._growing = False

    # ------------------------------------------------------------------ after an exception

    def _resume(self) -> None:
        """Make anew what this process knows of the table.

        Raises:
            RegistryClosed: where another manager has destroyed it.
        """
        self._settle()
        try:
            _, dropped = self._registry.resume(self._identity)
        except TableGone:
            self._let_go(DESTROYED)
            raise RegistryClosed(self._name, DESTROYED) from None
        if dropped:
            log_dropped(self._name, dropped)

    def _attach_again(self, old: Attachment) -> None:
        # Another thread's growth has replaced it before any of its words said so.
        if self._view is old:
            raise RegistryClosed(self._name, DESTROYED if self._own.is_named() else REMOVED)

    def _let_go(self, reason: str) -> None:
        """Make every later call raise ``RegistryClosed``."""
        if not self._closed:
            # In this order: an interrupt between the two leaves one that can still be let go.
            self._view = detached(RegistryClosed, self._name, reason)
            self._closed = True

    def refresh(self) -> None:
        """See that the registry still has its name: a manager is at its table all the time.

        Raises:
            RegistryClosed: where nothing bears the name any more.
        """
        view = self._view
        if not view.is_named():
            self._attach_again(view)
