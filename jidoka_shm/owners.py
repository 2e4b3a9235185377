"""Owners: which sessions each owner process has, with no look at any process."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .control import Identity


class _Group(NamedTuple):
    """The sessions of one owner; the owner is kept once, not once a session."""

    owner: Identity
    keys: set[int]


class Owners:
    """Which process owns each key, and so which processes are to be watched.

    Attributes:
        arrived: owners that came to have a key since they were last taken out of here.
        departed: owners that lost their last key since then, though they may have arrived again.
            One that comes and goes is in neither.
    """

    def __init__(self) -> None:
        self._group_of: dict[int, _Group] = {}
        self._groups: dict[Identity, _Group] = {}
        self.arrived: set[Identity] = set()
        self.departed: set[Identity] = set()

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[Identity]:
        return iter(self._groups)

    def set(self, key: int, owner: Identity | None) -> None:
        """Make ``owner`` the one process that owns ``key``; None is nobody."""
        group = self._group_of.get(key)
        if group is not None:
            self._leave(key, group)
        if owner is not None:
            self._join(key, owner)

    def count(self, owner: Identity) -> int:
        """Return how many keys an owner has."""
        group = self._groups.get(owner)
        return 0 if group is None else len(group.keys)

    def sessions_of(self, owner: Identity, limit: int | None = None) -> list[int]:
        """Return the keys of an owner, up to ``limit`` of them."""
        group = self._groups.get(owner)
        return [] if group is None else list(islice(group.keys, limit))

    def replace(self, earlier: Owners) -> None:
        """Stand for ``earlier``, of which it is not known how far it was brought.

        All owners arrive again: for one that is watched already that changes nothing.
        """
        self.arrived = set(self._groups)
        self.departed = {*earlier, *earlier.arrived, *earlier.departed} - self.arrived

    def _join(self, key: int, owner: Identity) -> None:
        group = self._groups.get(owner)
        if group is None:
            group = self._groups[owner] = _Group(owner, set())
            # Of those that departed as well: it may have ended, and not be watched any more.
            self.arrived.add(owner)
        group.keys.add(key)
        self._group_of[key] = group

    def _leave(self, key: int, group: _Group) -> None:
        del self._group_of[key]
        group.keys.discard(key)
        if not group.keys:
            del self._groups[group.owner]
            if group.owner in self.arrived:
                self.arrived.discard(group.owner)
            else:
                self.departed.add(group.owner)
