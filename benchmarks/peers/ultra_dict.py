"""UltraDict: each process has a private dict, kept up to date by a stream of changes.

What it does not do: it shares no memory that is read; each process holds a copy of all records,
which a look-up takes what has changed into first. A caller gets the very object that all callers of
the process get. A stream that is full is dumped whole. A process that dies while it writes leaves
its lock. It unpickles what it finds in shared memory.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, ClassVar

from UltraDict import UltraDict

from benchmarks import records

from .base import Peer

if TYPE_CHECKING:
    from uuid import UUID


class Ultra(Peer):
    """One UltraDict that writes, and one that reads."""

    name: ClassVar[str] = "ultradict"
    packages: ClassVar[tuple[str, ...]] = ("UltraDict",)
    largest: ClassVar[int | None] = 100_000
    #: The first process that ends would take the memory with it: Python counts who attached.
    shared: ClassVar[bool] = False

    _made: Any = None

    def make(self) -> None:
        """Make it from all records at once; one by one would stream them."""
        self._made = UltraDict(
            {key: records.make_plain(key) for key in self.ids},
            name=self._named(),
            buffer_size=1 << 22,
            auto_unlink=True,
        )

    def _named(self) -> str:
        return f"bench-{self.place.parent.name}-{self.place.name}"

    def attach(self) -> None:
        """Attach another one, as a reader's process would."""
        self.reader: Any = UltraDict(name=self._named())

    def close(self) -> None:
        """Close both; the one that made the memory removes it."""
        for each in (getattr(self, "reader", None), self._made):
            if each is not None:
                each.close()

    def shared_bytes(self) -> int:
        """Return the size of the stream and of the dump."""
        dump = self._made.full_dump_memory
        return int(self._made.buffer_size + (0 if dump is None else dump.size))

    def look_up(self, keys: list[UUID]) -> None:
        """Take each from the reader."""
        get = self.reader.__getitem__
        for key in keys:
            get(key)

    def status(self, keys: list[UUID]) -> None:
        """Take the status of each."""
        get = self.reader.__getitem__
        for key in keys:
            get(key)["status"]

    def miss(self, keys: list[UUID]) -> None:
        """Ask for what is not there."""
        contains = self.reader.__contains__
        for key in keys:
            contains(key)

    def list_all(self, keys: list[UUID]) -> object:
        """Copy the values."""
        del keys
        return list(self.reader.values())

    def update(self, keys: list[UUID]) -> None:
        """Change each."""
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
