"""A plain dict in this process: the limit of what a look-up can cost.

What it does not do: no other process sees it, so each has a copy of its own that nothing keeps up
to date; a caller gets the very object that all others get; it ends with its process.
"""

from __future__ import annotations

import functools
import uuid
from typing import TYPE_CHECKING, ClassVar

from benchmarks import records

from .base import Peer

if TYPE_CHECKING:
    from uuid import UUID

    from benchmarks.records import Record


class Dict(Peer):
    """A dict of records."""

    name: ClassVar[str] = "dict"

    def make(self) -> None:
        """Share nothing: each process makes its own."""

    def attach(self) -> None:
        """Make this process's."""
        self.store: dict[UUID, Record] = {key: records.make_record(key) for key in self.ids}

    def close(self) -> None:
        """Leave it to the end of the process."""

    def shared_bytes(self) -> int:
        """Return that nothing is shared."""
        return 0

    @functools.cached_property
    def by_str(self) -> dict[str, Record]:
        """The same by ids that are str."""
        return {str(key): record for key, record in self.store.items()}

    def look_up(self, keys: list[UUID]) -> None:
        """Take each out of the dict."""
        get = self.store.__getitem__
        for key in keys:
            get(key)

    def before_by_text(self, keys: list[str]) -> None:
        """Have the dict that is asked."""
        del keys
        self.by_str  # noqa: B018 - makes it

    def by_text(self, keys: list[str]) -> None:
        """Take each out of a dict that has str as its keys."""
        get = self.by_str.__getitem__
        for key in keys:
            get(key)

    def status(self, keys: list[UUID]) -> None:
        """Take the status of each."""
        store = self.store
        for key in keys:
            store[key].status  # noqa: B018 - what is timed

    def miss(self, keys: list[UUID]) -> None:
        """Ask for what is not there."""
        get = self.store.get
        for key in keys:
            get(key)

    def list_all(self, keys: list[UUID]) -> object:
        """Copy the values into a list."""
        del keys
        return list(self.store.values())

    def count(self, keys: list[UUID]) -> object:
        """Count by status."""
        del keys
        return records.count_statuses(self.store.values())

    def update(self, keys: list[UUID]) -> None:
        """Put a changed record in the place of each."""
        store = self.store
        for key in keys:
            store[key] = records.moved(store[key])

    def before_create(self, keys: list[UUID]) -> None:
        """Take an empty dict."""
        del keys
        self._new: dict[UUID, Record] = {}

    def create(self, keys: list[UUID]) -> None:
        """Put a new record into it."""
        new = self._new
        for _ in keys:
            key = uuid.uuid4()
            new[key] = records.make_record(key)

    def before_terminate(self, keys: list[UUID]) -> None:
        """Take a dict of what is to go."""
        self._new = {key: self.store[key] for key in keys}

    def terminate(self, keys: list[UUID]) -> None:
        """Delete each."""
        new = self._new
        for key in keys:
            del new[key]
