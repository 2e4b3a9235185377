"""A peer whose store is used like a dict of plain records, by a writer and a reader of it."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks import records

from .base import Peer

if TYPE_CHECKING:
    from uuid import UUID


class DictLike(Peer):
    """The rows of one that writes, and of one that reads, each used like a dict."""

    #: The first process that ends would take the memory with it: Python counts who attached.
    shared: ClassVar[bool] = False

    _made: Any = None
    reader: Any = None

    def named(self) -> str:
        """Return what its shared memory is called."""
        return f"bench-{self.place.parent.name}-{self.place.name}"

    def look_up(self, keys: list[UUID]) -> None:
        """Take each from the reader."""
        get = self.reader.__getitem__
        for key in keys:
            get(key)

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
