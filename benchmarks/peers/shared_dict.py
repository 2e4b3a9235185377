"""shared-memory-dict: one pickle of all records in a block of shared memory.

What it does not do: it has no records of its own; each look-up copies the block and unpickles
everything, each change packs everything again. Without an environment variable it has no lock, and
a reader can meet half a write. It unpickles what it finds in shared memory.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, ClassVar

from shared_memory_dict import SharedMemoryDict

from benchmarks import records

from .base import Peer

if TYPE_CHECKING:
    from uuid import UUID


class SharedDict(Peer):
    """A dict of plain records."""

    name: ClassVar[str] = "shared-memory-dict"
    packages: ClassVar[tuple[str, ...]] = ("shared-memory-dict",)
    largest: ClassVar[int | None] = 10_000
    #: The first process that ends would take the memory with it: Python counts who attached.
    shared: ClassVar[bool] = False

    def _open(self, *, size: int = 1) -> SharedMemoryDict:
        return SharedMemoryDict(f"bench-{self.place.parent.name}-{self.place.name}", size)

    def make(self) -> None:
        """Make a block that holds all records, and some more."""
        self._made: Any = self._open(size=(1 << 16) + 1024 * len(self.ids))
        self._made.update({key: records.make_plain(key) for key in self.ids})

    def attach(self) -> None:
        """Attach another one, as a reader's process would."""
        self.reader: Any = self._open()

    def close(self) -> None:
        """Close it and remove the block."""
        if hasattr(self, "reader"):
            self.reader.shm.close()
        if hasattr(self, "_made"):
            self._made.shm.close()
            self._made.shm.unlink()

    def shared_bytes(self) -> int:
        """Return the size of the block."""
        return int(self._made.shm.size)

    def look_up(self, keys: list[UUID]) -> None:
        """Unpickle everything and take one, each."""
        get = self.reader.__getitem__
        for key in keys:
            get(key)

    def miss(self, keys: list[UUID]) -> None:
        """Unpickle everything, and not find one."""
        get = self.reader.get
        for key in keys:
            get(key)

    def list_all(self, keys: list[UUID]) -> object:
        """Unpickle everything."""
        del keys
        return list(self.reader.values())

    def update(self, keys: list[UUID]) -> None:
        """Change each, packing everything again."""
        made = self._made
        for key in keys:
            made[key] = records.moved_plain(made[key])

    def create(self, keys: list[UUID]) -> None:
        """Add new records, among those that are there."""
        made = self._made
        self._new = [uuid.uuid4() for _ in keys]
        for key in self._new:
            made[key] = records.make_plain(key)

    def after_create(self) -> None:
        """Take out what was put in."""
        for key in self._new:
            del self._made[key]

    def before_terminate(self, keys: list[UUID]) -> None:
        """Put in what is to go."""
        self.create(keys)

    def terminate(self, keys: list[UUID]) -> None:
        """Delete each."""
        del keys
        made = self._made
        for key in self._new:
            del made[key]
