"""The single writer's names: in which order they are made and removed, under the lock.

=================  ====================================================================
to create          control, lock, leftover tables, table, the control's fields, its magic last
to destroy         odd for ever, ``CLOSED`` in the index, tables' names, the control's last
killed in between  the next writer finds no magic, and creates; or ``CLOSED``, or no table
                   under an odd change word, and finishes the destruction
=================  ====================================================================
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from uuid import uuid4

from . import segment, seqlock
from .control import ControlWriter
from .errors import CorruptRegistry
from .header import TableHeader
from .layout import CLOSED, CONTROL_SIZE, MOVED, control_name, table_name
from .lock import WriterLock, find_control, make_control

if TYPE_CHECKING:
    from collections.abc import Iterator
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
        """Map the control, at its full size.

        Args:
            lock: the registry's lock, taken.
            mode: the mode of its objects, those that are there too.

        Raises:
            RegistryFull: where /dev/shm has no room.
        """
        self.name = lock.name
        self._lock = lock
        self._mode = mode
        self._table: segment.Handle | None = None
        # A descriptor of its own: the lock's is never mapped.
        descriptor = segment.open_writable(control_name(self.name))
        try:
            segment.set_mode(descriptor, mode)
            if segment.size_of(descriptor) < CONTROL_SIZE:
                segment.reserve(descriptor, CONTROL_SIZE)
            self.control = ControlWriter(segment.map_writable(descriptor, CONTROL_SIZE))
        finally:
            os.close(descriptor)

    def is_named(self) -> bool:
        """Return whether the control still has its name."""
        return self._lock.is_named()

    def is_whole(self) -> bool:
        """Return whether control and current table still have their names."""
        return self.is_named() and (self._table is None or self._table.is_named())

    def is_locked(self) -> bool:
        """Return whether this process still holds the lock."""
        return self._lock.descriptor >= 0

    def release(self) -> None:
        """Let go of the lock. May be repeated."""
        self._lock.release()

    # ------------------------------------------------------------------ tables

    def create_table(self, geometry: Geometry, writer: Identity) -> tuple[Memory, TableHeader]:
        """Make the registry's first table, then its control complete: readers may attach."""
        self.control.clear()
        self._discard_tables()
        header = TableHeader(uuid4(), 1, geometry, 0)
        name = table_name(self.name, header.generation)
        handle = segment.Handle(segment.create(name))
        try:
            segment.set_mode(handle.descriptor, self._mode)
            segment.reserve(handle.descriptor, geometry.size)
            memory = segment.map_writable(handle.descriptor, geometry.size)
        except BaseException:
            segment.unlink(name)
            raise
        header.store(memory)
        self.control.initialize(header.instance, header.generation, writer)
        self.control.complete()
        self._table = handle
        return memory, header

    def open_table(self) -> tuple[Memory, TableHeader] | None:
        """Return the current table and its header; None where the registry was destroyed.

        Raises:
            FormatMismatch: where another version of this package made it.
            CorruptRegistry: where the table is there and is not the control's.
        """
        self.control.check_format(self.name)
        generation = self.control.generation
        memory = self._map_table(generation)
        if memory is None:
            if self.control.change[0] % 2 == 0 and list(self._tables()):
                reason = f"the control of {self.name!r} names table {generation}, which is missing"
                raise CorruptRegistry(reason)
            return None
        header = TableHeader.read(memory)
        if header is None or header[:2] != (self.control.instance, generation):
            reason = f"table {generation} of {self.name!r} belongs to another registry"
            raise CorruptRegistry(reason)
        return None if self._is_closed(memory, header.geometry) else (memory, header)

    def _is_closed(self, memory: Memory, geometry: Geometry) -> bool:
        """Return whether a destruction of this table began.

        It holds the change word odd, then stores to the index from the first entry on. An entry
        alone may be damaged, and all sessions must not be given up for that.
        """
        return self.control.change[0] % 2 == 1 and _index(memory, geometry)[0] == CLOSED

    def _map_table(self, generation: int) -> Memory | None:
        try:
            handle = segment.Handle(segment.open_writable(table_name(self.name, generation)))
        except FileNotFoundError:
            return None
        segment.check_owner(handle.descriptor, self.name)
        segment.set_mode(handle.descriptor, self._mode)
        size = segment.size_of(handle.descriptor)
        if generation == self.control.generation:
            self._table = handle
        return segment.map_writable(handle.descriptor, size) if size else None

    def _tables(self) -> Iterator[int]:
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
        for other in self._tables():
            if other != generation:
                self._give_up(other, MOVED)

    def _discard_tables(self) -> None:
        for generation in self._tables():
            self._give_up(generation, CLOSED)

    def _give_up(self, generation: int, word: int) -> None:
        try:
            memory = self._map_table(generation)
            header = None if memory is None else TableHeader.read(memory)
        except CorruptRegistry:
            memory = header = None
        if memory is not None and header is not None:
            seqlock.overwrite(_index(memory, header.geometry), word)
        segment.unlink(table_name(self.name, generation))

    # ------------------------------------------------------------------ the end

    def destroy(self) -> None:
        """Close the registry for everybody and remove its names. May be repeated."""
        if not self.is_named():
            return
        if self.control.is_ours():
            # Odd for ever, before the index: no list that a reader kept outlives its registry.
            seqlock.hold(self.control.change, seqlock.last_version(self.control.change) + 1)
        self._discard_tables()
        segment.unlink(control_name(self.name))

    def end(self, table: SessionTable) -> None:
        """Close the registry for everybody, whether or not its names are still there."""
        if self.is_whole():
            self.destroy()
        else:
            self.revoke(table)

    def revoke(self, table: SessionTable) -> None:
        """Close a registry whose names somebody removed, for everybody who still has it.

        The names may be another registry's by now; only a table that is this one's loses its own.
        """
        change = self.control.change
        seqlock.hold(change, seqlock.last_version(change) + 1)
        seqlock.overwrite(table.index.words, CLOSED)
        if self._table is not None and self._table.is_named():
            segment.unlink(table_name(self.name, self.control.generation))
        if self.is_named():
            segment.unlink(control_name(self.name))


def _index(memory: Memory, geometry: Geometry) -> seqlock.Words:
    return memoryview(memory)[geometry.index_offset : geometry.reach_offset].cast("Q")


def claim(  # noqa: PLR0913 - a manager's own options
    name: str, geometry: Geometry, writer: Identity, *, mode: int, fresh: bool, wait: float
) -> tuple[Ownership, Memory, TableHeader, bool]:
    """Become the writer of a registry, making it where there is none.

    Args:
        name: the registry's name.
        geometry: the sizes of a new one; one that is there keeps its own.
        writer: this process, published as the writer of a new one.
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
                return own, *own.create_table(geometry, writer), False
            opened = None if fresh else own.open_table()
            if opened is not None:
                return own, *opened, True
            own.destroy()
        except BaseException:
            _discard_incomplete(lock)
            lock.release()
            raise
        lock.release()
        fresh = False


def _discard_incomplete(lock: WriterLock) -> None:
    """Remove the names of a registry whose making failed: no reader ever had it."""
    if not segment.is_begun(lock.descriptor):
        for name in list(segment.names()):
            if name.startswith(f"{control_name(lock.name)}."):
                segment.unlink(name)
        segment.unlink(control_name(lock.name))


def remove(name: str, *, instance: UUID | None = None) -> None:
    """Destroy a registry that has no living writer.

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
        if instance is None or own.control.instance == instance:
            own.destroy()
    finally:
        lock.release()
