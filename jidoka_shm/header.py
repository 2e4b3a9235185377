"""The header that each table begins with: packed, completed last, and checked before use."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from . import seqlock
from .errors import CorruptRegistry
from .layout import FORMAT_VERSION, TABLE_HEADER, TABLE_HEADER_SIZE, TABLE_MAGIC, Geometry

if TYPE_CHECKING:
    from .layout import Memory


class TableHeader(NamedTuple):
    """What a table says of itself, once, when it is made."""

    instance: UUID
    generation: int
    geometry: Geometry
    base_version: int

    @classmethod
    def read(cls, memory: Memory) -> TableHeader | None:
        """Return the header that ``memory`` begins with; None where it is not complete yet.

        Raises:
            CorruptRegistry: where it is complete and wrong, or claims another size than there is.
        """
        # First the magic, alone: one copy of it all may hold fields older than the magic in it.
        if len(memory) < TABLE_HEADER_SIZE or memory[:8] == bytes(8):
            return None
        if seqlock.WEAK:
            seqlock.fence()
        raw = bytes(memory[:TABLE_HEADER_SIZE])
        magic, version, crc, instance, generation, *sizes, base_version = TABLE_HEADER.unpack(raw)
        if (magic, version) != (TABLE_MAGIC, FORMAT_VERSION) or crc != _crc(raw):
            reason = "a table's header does not fit its own crc, or this format"
            raise CorruptRegistry(reason)
        geometry = Geometry(index_size=sizes[0], slot_count=sizes[1], slot_size=sizes[2])
        if not geometry.is_sane() or geometry.size != len(memory):
            reason = f"a table's header claims {geometry.size} bytes and there are {len(memory)}"
            raise CorruptRegistry(reason)
        return cls(UUID(bytes=instance), generation, geometry, base_version)

    def store(self, memory: Memory) -> None:
        """Write the header into a new table, its magic last: a table without one is not read."""
        memory[8:TABLE_HEADER_SIZE] = self._pack(_crc(self._pack(0)))[8:]
        if seqlock.WEAK:
            seqlock.fence()
        memoryview(memory)[:8].cast("Q")[0] = TABLE_MAGIC

    def index_of(self, memory: Memory) -> tuple[seqlock.Words, memoryview[int]]:
        """Return the index words and the reach bytes of the table that it is the header of."""
        view, geometry = memoryview(memory), self.geometry
        begin, end = geometry.reach_offset, geometry.reach_offset + geometry.index_size
        return view[geometry.index_offset : begin].cast("Q"), view[begin:end]

    def _pack(self, crc: int) -> bytes:
        sizes = (self.geometry.index_size, self.geometry.slot_count, self.geometry.slot_size)
        fields = (self.instance.bytes, self.generation, *sizes, self.base_version)
        return TABLE_HEADER.pack(TABLE_MAGIC, FORMAT_VERSION, crc, *fields)


def _crc(raw: bytes) -> int:
    """Return the crc32 of a header's bytes after the magic, the crc's own left out."""
    return zlib.crc32(raw[16:], zlib.crc32(raw[8:12]))
