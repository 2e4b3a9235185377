"""shared-memory-dict: one pickle of all records in a block of shared memory.

What it does not do: it has no records of its own; each look-up copies the block and unpickles
everything, each change packs everything again. Without an environment variable it has no lock, and
a reader can meet half a write. It unpickles what it finds in shared memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from shared_memory_dict import SharedMemoryDict

from benchmarks import records

from .plain_dict import DictLike

if TYPE_CHECKING:
    from uuid import UUID


class SharedDict(DictLike):
    """A dict of plain records, of which a look-up unpickles all."""

    name: ClassVar[str] = "shared-memory-dict"
    packages: ClassVar[tuple[str, ...]] = ("shared-memory-dict",)
    largest: ClassVar[int | None] = 10_000

    def _open(self, *, size: int = 1) -> SharedMemoryDict:
        return SharedMemoryDict(self.named(), size)

    def make(self) -> None:
        """Make a block that holds all records, and some more."""
        self._made = self._open(size=(1 << 16) + 1024 * len(self.ids))
        self._made.update({key: records.make_plain(key) for key in self.ids})

    def attach(self) -> None:
        """Attach another one, as a reader's process would."""
        self.reader = self._open()

    def close(self) -> None:
        """Close it and remove the block."""
        if self.reader is not None:
            self.reader.shm.close()
        if self._made is not None:
            self._made.shm.close()
            self._made.shm.unlink()

    def shared_bytes(self) -> int:
        """Return the size of the block."""
        return int(self._made.shm.size)

    def miss(self, keys: list[UUID]) -> None:
        """Unpickle everything, and not find one."""
        get = self.reader.get
        for key in keys:
            get(key)
