"""jidoka_shm itself: a manager and readers of its registry.

In the suites a reader stands in the manager's process or in another; its look-ups are the same.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ClassVar

from benchmarks import records
from jidoka_shm import SessionManager, SessionReader

from .base import Peer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

#: What a manager makes where it is not told; a registry of a few sessions is no smaller.
CAPACITY = 16_384


class Embedded(Peer):
    """A manager that this process embeds, and readers."""

    name: ClassVar[str] = "jidoka_shm"
    packages: ClassVar[tuple[str, ...]] = ("msgspec", "numpy", "posix-ipc")

    _manager: SessionManager | None = None
    _other: SessionManager | None = None

    @property
    def registry(self) -> str:
        """The registry's name."""
        return f"bench-{self.place.parent.name}-{self.place.name}"

    @property
    def manager(self) -> SessionManager:
        """The manager of the process that made the registry."""
        assert self._manager is not None  # noqa: S101 - a row of the one that made it
        return self._manager

    def make(self) -> None:
        """Make a registry that holds all the ids."""
        capacity = max(len(self.ids), CAPACITY)
        self._manager = SessionManager(self.registry, capacity=capacity, fresh=True)
        for key in self.ids:
            self._manager.create_session(records.METADATA, records.LLM_CONFIG, session_id=key)

    def attach(self) -> None:
        """Attach a reader that keeps what it finds; the other readers are made when used."""
        self.reader = SessionReader(self.registry)

    def close(self) -> None:
        """Close the readers and destroy the registry."""
        for reader in ("reader", "uncached", "small"):
            if reader in vars(self):
                getattr(self, reader).close()
        if self._manager is not None:
            self._manager.unlink()

    @functools.cached_property
    def uncached(self) -> SessionReader:
        """A reader that keeps nothing."""
        return SessionReader(self.registry, cache_size=0)

    @functools.cached_property
    def small(self) -> SessionReader:
        """A reader that keeps a quarter of the sessions."""
        return SessionReader(self.registry, cache_size=max(len(self.ids) // 4, 1))

    def shared_bytes(self) -> int:
        """Return the size of the table and of the control page."""
        return self.reader.stats().table_bytes + 4096

    def retries(self) -> int:
        """Return how many reads of this process met a commit and tried again."""
        kept = vars(self)
        return sum(kept[each].stats().retries for each in ("reader", "uncached") if each in kept)

    # ------------------------------------------------------------------ reading

    def before_repeated(self, keys: list[UUID]) -> None:
        """Look all up: what other rows have changed since is not what the reader keeps."""
        self.repeated(keys)

    def repeated(self, keys: list[UUID]) -> None:
        """Look up what the reader has kept."""
        get = self.reader.get_session_info
        for key in keys:
            get(key)

    def look_up(self, keys: list[UUID]) -> None:
        """Look up with a reader that keeps nothing."""
        get = self.uncached.get_session_info
        for key in keys:
            get(key)

    by_text = look_up

    def quarter(self, keys: list[UUID]) -> None:
        """Look up with a reader that keeps a quarter of what it is asked for."""
        get = self.small.get_session_info
        for key in keys:
            get(key)

    def status(self, keys: list[UUID]) -> None:
        """Look up the status."""
        get = self.uncached.get_session_status
        for key in keys:
            get(key)

    def owner(self, keys: list[UUID]) -> None:
        """Look up the owner's pid."""
        get = self.uncached.get_session_pid
        for key in keys:
            get(key)

    def miss(self, keys: list[UUID]) -> None:
        """Look for what is not there."""
        get = self.uncached.get
        for key in keys:
            get(key)

    # ------------------------------------------------------------------ all sessions

    def before_list_all(self, keys: list[UUID]) -> None:
        """Commit one change, so that the next list is another one."""
        del keys
        self.reader.list_sessions()
        self.manager.update_session(self.ids[0])

    def list_all(self, keys: list[UUID]) -> object:
        """List after a change."""
        del keys
        return self.reader.list_sessions()

    def before_list_again(self, keys: list[UUID]) -> None:
        """List once."""
        del keys
        self.reader.list_sessions()

    list_again = list_all

    def before_list_first(self, keys: list[UUID]) -> None:
        """Take a reader that has listed nothing yet."""
        del keys
        self._new = SessionReader(self.registry)

    def list_first(self, keys: list[UUID]) -> object:
        """List with it."""
        del keys
        return self._new.list_sessions()

    def after_list_first(self) -> None:
        """Close it."""
        self._new.close()

    def snapshot(self, keys: list[UUID]) -> object:
        """Copy all headers."""
        del keys
        return self.reader.snapshot()

    def count(self, keys: list[UUID]) -> object:
        """Count by status."""
        del keys
        return self.reader.count_by_status()

    # ------------------------------------------------------------------ changes

    def before_update(self, keys: list[UUID]) -> None:
        """Leave the status that nothing moves to, once."""
        del keys
        if self.manager.get_session_status(self.ids[0]) == "initializing":
            for key in self.ids:
                self.manager.update_session(key, records.STATUSES[0])

    def update(self, keys: list[UUID]) -> None:
        """Change each session's status."""
        update = self.manager.update_session
        first = self.manager.get_session_status(keys[0])
        status = records.STATUSES[first == records.STATUSES[0]]
        for key in keys:
            update(key, status)

    def before_create(self, keys: Sequence[UUID]) -> None:
        """Make another registry, which the sessions fit into."""
        capacity = max(len(keys), CAPACITY)
        self._other = SessionManager(f"{self.registry}-new", capacity=capacity, fresh=True)

    def create(self, keys: list[UUID]) -> None:
        """Create sessions."""
        assert self._other is not None  # noqa: S101 - before_create made it
        create = self._other.create_session
        for _ in keys:
            create(records.METADATA, records.LLM_CONFIG)

    def after_create(self) -> None:
        """Destroy it."""
        assert self._other is not None  # noqa: S101 - before_create made it
        self._other.unlink()
        self._other = None

    def before_terminate(self, keys: Sequence[UUID]) -> None:
        """Create what is to be terminated."""
        self.before_create(keys)
        assert self._other is not None  # noqa: S101 - before_create made it
        for key in keys:
            self._other.create_session(records.METADATA, records.LLM_CONFIG, session_id=key)

    def terminate(self, keys: list[UUID]) -> None:
        """Terminate each."""
        assert self._other is not None  # noqa: S101 - before_create made it
        terminate = self._other.terminate_session
        for key in keys:
            terminate(key)

    after_terminate = after_create

    # ------------------------------------------------------------------ beginning

    def start_empty(self, keys: list[UUID]) -> None:
        """Make a registry as large as the one that is taken over, with nothing in it."""
        del keys
        capacity = max(len(self.ids), CAPACITY)
        self._other = SessionManager(f"{self.registry}-new", capacity=capacity, fresh=True)

    after_start_empty = after_create

    def before_take_over(self, keys: list[UUID]) -> None:
        """Leave a registry with all sessions behind, as a writer that ends does."""
        del keys
        self.before_terminate(self.ids)
        assert self._other is not None  # noqa: S101 - it was just made
        self._other.close()

    def take_over(self, keys: list[UUID]) -> None:
        """Take it over."""
        del keys
        self._other = SessionManager(f"{self.registry}-new")

    after_take_over = after_create
