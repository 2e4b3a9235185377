"""UltraDict: each process has a private dict, kept up to date by a stream of changes.

What it does not do: it shares no memory that is read; each process holds a copy of all records,
which a look-up takes what has changed into first. A caller gets the very object that all callers of
the process get. A stream that is full is dumped whole. A process that dies while it writes leaves
its lock. It unpickles what it finds in shared memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from UltraDict import UltraDict

from benchmarks import records

from .plain_dict import DictLike

if TYPE_CHECKING:
    from uuid import UUID


class Ultra(DictLike):
    """One UltraDict that writes, and one that reads."""

    name: ClassVar[str] = "ultradict"
    packages: ClassVar[tuple[str, ...]] = ("UltraDict",)
    largest: ClassVar[int | None] = 100_000

    def make(self) -> None:
        """Make it from all records at once; one by one would stream them."""
        self._made = UltraDict(
            {key: records.make_plain(key) for key in self.ids},
            name=self.named(),
            buffer_size=1 << 22,
            auto_unlink=True,
        )

    def attach(self) -> None:
        """Attach another one, as a reader's process would."""
        self.reader = UltraDict(name=self.named())

    def close(self) -> None:
        """Close both; the one that made the memory removes it."""
        for each in (self.reader, self._made):
            if each is not None:
                each.close()

    def shared_bytes(self) -> int:
        """Return the size of the stream and of the dump."""
        dump = self._made.full_dump_memory
        return int(self._made.buffer_size + (0 if dump is None else dump.size))

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
