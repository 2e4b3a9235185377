"""The single writer's names: in which order they are made and removed, under the lock.

=================  ====================================================================
to create          control, lock, leftover tables, table, the control's fields, its magic last
to grow            next table, its magic last, the generation, ``MOVED`` in the old index, its name
to destroy         odd for ever, ``CLOSED`` in the index, tables' names, the control's last
killed in between  the next writer finds no magic, and creates; or a table of another generation,
                   and gives it up; or ``CLOSED``, or no table under an odd change word, and
                   finishes the destruction
=================  ====================================================================
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from uuid import uuid4

from . import segment, seqlock
from .control import ControlWriter
from .errors import CorruptRegistry, RegistryForbidden
from .header import TableHeader
from .layout import CLOSED, CONTROL_SIZE, MOVED, control_name, table_name
from .lock import WriterLock, find_control, make_control
from .logs import log

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from uuid import UUID

    from .control import Identity
    from .layout import Geometry, Memory
    from .table import SessionTable


class Ownership:
    """A registry whose lock this process holds.

    Attributes:
        control: the registry's control.
    """

    def __init__(self, lock: WriterLock, *, mode: int) -> None:
        """Map the control; one that is not complete is brought to its full size.

        Args:
            lock: the registry's lock, taken.
            mode: the mode of its objects, those that are taken over too.

        Raises:
            RegistryFull: where /dev/shm has no room.
        """
        self.name = lock.name
        self._lock = lock
        self._mode = mode
        #: The tables that this process has made or taken, by generation.
        self._tables: dict[int, segment.Handle] = {}
        # A descriptor of its own: the lock's is never mapped.
        descriptor = segment.open_writable(control_name(self.name))
        try:
            self.control = ControlWriter(_map_control(descriptor))
        finally:
            os.close(descriptor)

    def is_named(self) -> bool:
        """Return whether the control still has its name."""
        return self._lock.is_named()

    def is_whole(self) -> bool:
        """Return whether control and current table still have their names."""
        table = self._tables.get(self.control.generation)
        return self.is_named() and (table is None or table.is_named())

    def is_locked(self) -> bool:
        """Return whether this process still holds the lock."""
        return self._lock.descriptor >= 0

    def release(self) -> None:
        """Let go of the lock. May be repeated."""
        self._lock.release()

    def retire(self, writer: Identity) -> None:
        """Say that nobody writes any more, where the control says that ``writer`` does."""
        if self.control.writer() == writer:
            self.control.retire_writer()

    # ------------------------------------------------------------------ tables

    def create_table(
        self, geometry: Geometry, writer: Identity, path: str | None
    ) -> tuple[Memory, TableHeader]:
        """Make the registry's first table, then its control complete: readers may attach."""
        segment.set_mode(self._lock.descriptor, self._mode)
        self.control.clear()
        self._discard_tables()
        memory, generation = self._make_table(1, geometry)
        header = TableHeader(uuid4(), generation, geometry, 0)
        header.store(memory)
        self.control.initialize(header.instance, header.generation, writer)
        self.control.publish_socket(path)
        self.control.complete()
        return memory, header

    def create_next(self, geometry: Geometry) -> tuple[Memory, TableHeader]:
        """Make a table to grow into, and return its memory and the header that completes it.

        Raises:
            RegistryFull: where /dev/shm has no room.
        """
        memory, generation = self._make_table(self.control.generation + 1, geometry)
        return memory, TableHeader(self.control.instance, generation, geometry, 0)

    def _make_table(self, first: int, geometry: Geometry) -> tuple[Memory, int]:
        """Make a table, all zero, of the first generation from ``first`` on that can be made."""
        generation = first
        while True:
            try:
                handle = segment.Handle(segment.create(table_name(self.name, generation)))
                break
            except FileExistsError:
                # Another user's, or it would not be there any more: it cannot be removed.
                generation += 1
        try:
            segment.set_mode(handle.descriptor, self._mode)
            segment.reserve(handle.descriptor, geometry.size)
            memory = segment.map_writable(handle.descriptor, geometry.size)
        except BaseException:
            self._remove_name(handle, generation)
            raise
        self._tables[generation] = handle
        return memory, generation

    def leave_others(self) -> None:
        """Remove the names of the tables that this process wrote before the current one.

        Their indexes say so already: without a name no successor would find one to give it up.
        """
        current = self.control.generation
        for generation in [number for number in self._tables if number != current]:
            self._remove_name(self._tables[generation], generation)
            del self._tables[generation]

    def _remove_name(self, table: segment.Handle, generation: int) -> None:
        # Not in a child that was forked meanwhile, nor where the names are another registry's.
        if self.is_named() and table.is_named():
            segment.unlink(table_name(self.name, generation))

    def open_table(self) -> tuple[Memory, TableHeader] | None:
        """Return the current table and its header; None where the registry was destroyed.

        Raises:
            FormatMismatch: where another version of this package made it.
            CorruptRegistry: where the table is there and is not the control's.
        """
        self.control.check_format(self.name)
        segment.set_mode(self._lock.descriptor, self._mode)
        generation = self.control.generation
        memory = self._map_table(generation)
        if memory is None:
            if self.control.change[0] % 2 == 0 and list(self._generations()):
                reason = f"the control of {self.name!r} names table {generation}, which is missing"
                raise CorruptRegistry(reason)
            return None
        header = TableHeader.read(memory)
        if header is None or header[:2] != (self.control.instance, generation):
            reason = f"table {generation} of {self.name!r} belongs to another registry"
            raise CorruptRegistry(reason)
        ended = seqlock.is_ended(self.control.change, header.index_of(memory)[0])
        return None if ended else (memory, header)

    def _map_table(self, generation: int) -> Memory | None:
        try:
            handle = segment.Handle(segment.open_writable(table_name(self.name, generation)))
        except FileNotFoundError:
            return None
        except PermissionError:
            raise RegistryForbidden(self.name, None) from None
        segment.check_owner(handle.descriptor, self.name)
        segment.set_mode(handle.descriptor, self._mode)
        size = segment.size_of(handle.descriptor)
        if generation == self.control.generation:
            self._tables[generation] = handle
        return segment.map_writable(handle.descriptor, size) if size else None

    def _generations(self) -> Iterator[int]:
        """Yield the generation of each table of this name."""
        prefix = table_name(self.name, 0)[:-1]
        for name in list(segment.names()):
            generation = name.removeprefix(prefix)
            if name.startswith(prefix) and generation.isdecimal():
                yield int(generation)

    def discard_others(self, generation: int) -> None:
        """Give up every table but the current one, for good.

        ``MOVED`` goes over an index before the name is removed and before anything is committed
        elsewhere: a reader that still looks there is sent to the current table.
        """
        for other in self._generations():
            if other != generation:
                self._give_up(other, MOVED)

    def _discard_tables(self) -> None:
        for generation in self._generations():
            self._give_up(generation, CLOSED)

    def _give_up(self, generation: int, word: int) -> None:
        try:
            memory = self._map_table(generation)
            header = None if memory is None else TableHeader.read(memory)
        except CorruptRegistry:
            memory = header = None
        except OSError as error:
            # Another user's, or no object at all. Any user may make any name, and none may keep
            # a registry from being started or ended.
            table, extra = table_name(self.name, generation), {"registry": self.name}
            if segment.is_own(table):
                # Its readers would stay with it: no descriptor is left, or no memory.
                raise
            log.warning("%s is left alone: %s", table, str(error), extra=extra)
            return
        if memory is not None and header is not None:
            seqlock.give_up(*header.index_of(memory), word)
        segment.unlink(table_name(self.name, generation))

    # ------------------------------------------------------------------ the end

    def destroy(self) -> None:
        """Close the registry for everybody and remove its names. May be repeated."""
        if not self.is_named():
            return
        if self.control.is_ours():
            # Before the index: no list that a reader kept outlives its registry.
            seqlock.end(self.control.change)
        self._discard_tables()
        segment.unlink(control_name(self.name))

    def end(self, tables: Iterable[SessionTable]) -> None:
        """Close the registry for everybody, whether or not its names are still there."""
        if self.is_whole():
            self.destroy()
        else:
            self.revoke(tables)

    def revoke(self, tables: Iterable[SessionTable]) -> None:
        """Close a registry whose names somebody removed, for everybody who still has it.

        The names may be another registry's by now; only tables that are this one's lose their own.
        """
        seqlock.end(self.control.change)
        for table in tables:
            seqlock.give_up(table.index.words, table.reach, CLOSED)
        for generation, handle in self._tables.items():
            if handle.is_named():
                segment.unlink(table_name(self.name, generation))
        if self.is_named():
            segment.unlink(control_name(self.name))


def _map_control(descriptor: int) -> Memory:
    """Return a control's memory; a copy of one too small to be a registry's, which stays as is."""
    if segment.size_of(descriptor) < CONTROL_SIZE:
        if segment.is_begun(descriptor):
            return bytearray(os.pread(descriptor, CONTROL_SIZE, 0).ljust(CONTROL_SIZE, b"\0"))
        segment.reserve(descriptor, CONTROL_SIZE)
    return segment.map_writable(descriptor, CONTROL_SIZE)


def claim(  # noqa: PLR0913 - a manager's own options
    name: str,
    geometry: Geometry,
    writer: Identity,
    *,
    path: str | None,
    mode: int,
    fresh: bool,
    wait: float,
) -> tuple[Ownership, Memory, TableHeader, bool]:
    """Become the writer of a registry, making it where there is none.

    Args:
        name: the registry's name.
        geometry: the sizes of a new one; one that is there keeps its own.
        writer: this process, published as the writer of a new one.
        path: where the writer is going to listen; None where it is not. It is published before
            the writer is, so that no client takes one that is not that far for one that never is.
        mode: the mode of its objects.
        fresh: discard what is there, whatever it is.
        wait: how long to wait for a living writer to end, in seconds.

    Returns:
        The ownership, the table's memory and header, and whether they were there already.

    Raises:
        WriterAlreadyRunning: where a writer lives.
        RegistryForbidden: where it is another user's.
        RegistryFull: where /dev/shm has no room for a new one.
        FormatMismatch, CorruptRegistry: where what is there cannot be taken over.
    """
    while True:
        lock = WriterLock(name, wait=wait, open_control=make_control)
        try:
            own = Ownership(lock, mode=mode)
            if not own.control.is_complete():
                return own, *own.create_table(geometry, writer, path), False
            opened = None if fresh else own.open_table()
            if opened is not None:
                own.control.publish_socket(path)
                return own, *opened, True
            own.destroy()
        except BaseException:
            try:
                _discard_incomplete(lock)
            finally:
                lock.release()
            raise
        lock.release()
        fresh = False


def _discard_incomplete(lock: WriterLock) -> None:
    """Remove the names of a registry whose making failed: no reader ever had it."""
    if not segment.is_begun(lock.descriptor):
        # First, for it needs no descriptor, and there may be none left.
        segment.unlink(control_name(lock.name))
        for name in list(segment.names()):
            if name.startswith(f"{control_name(lock.name)}.") and segment.is_own(name):
                segment.unlink(name)


def remove(name: str, *, instance: UUID | None = None) -> bool:
    """Destroy a registry that has no living writer; return whether it did.

    Args:
        name: the registry's name.
        instance: destroy only this creation of it; None is whichever is there.

    Raises:
        WriterAlreadyRunning: where a writer lives.
        RegistryNotFound: where there is none.
    """
    lock = WriterLock(name, wait=0, open_control=find_control)
    try:
        own = Ownership(lock, mode=segment.mode_of(lock.descriptor))
        wanted = instance in {None, own.control.instance}
        if wanted:
            own.destroy()
        return wanted
    finally:
        lock.release()
