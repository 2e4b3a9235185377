"""``TableWriter``: the only mutator of a table. Put, remove, grow, recover.

Reading is the base, ``SessionTable``; this adds what one process at a time may do. What it keeps
in its own memory (the free slots) can be derived from the table, and ``resume`` does so after a
crash as after an interrupted call.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from . import seqlock
from .errors import RecordTooLarge, RegistryFull
from .layout import (
    EMPTY,
    LEAP,
    MAX_DISTANCE,
    MOVED,
    ROOM_TO_END,
    SLOT_MASK,
    SPARE_SLOTS,
    VERSION_MASK,
    Geometry,
    index_word,
)
from .session import SessionStatus
from .slots import pack_slot
from .table import SessionTable, TableGone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .control import ControlWriter, Identity
    from .growth import Plan
    from .layout import Memory
    from .session import Session


#: Bytes of slots that ``fill`` copies at a time, or one slot where that is larger.
_PART: Final = 1 << 21

#: An attribute of an enumeration costs as much as four of a module.
_TERMINATED: Final = SessionStatus.TERMINATED


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that a recovery could not keep.

    Attributes:
        entry: the index entry it was at.
        reason: what is wrong with it.
    """

    entry: int
    reason: str


class TableWriter(SessionTable):
    """The sessions of one table, as its one writer changes them."""

    def __init__(self, memory: Memory, control: ControlWriter, geometry: Geometry) -> None:
        """Take a table to write: an empty one; one that is not, ``resume`` takes up.

        Args:
            memory: the whole table object.
            control: the registry's control.
            geometry: the table's, from its header.
        """
        super().__init__(memory, control.change, geometry)
        self.control = control
        self._free = deque(range(geometry.slot_count))
        #: What the last commit of a session put into its slot: header, crcs and payload.
        self.packed = b""

    @property
    def free_slots(self) -> int:
        """Slots that no record occupies, the spare ones included."""
        return len(self._free)

    def next_version(self) -> int:
        """Return the version that the next ``insert``, ``replace`` or ``remove`` makes.

        Raises:
            RegistryFull: where the 40 bits of an index word hold no more, after 3.5 years of
                10,000 commits a second.
        """
        version = seqlock.next_version(self.change)
        if version > VERSION_MASK:
            raise RegistryFull(1, 0, "versions of 40 bits")
        return version

    # ------------------------------------------------------------------ changes

    def insert(self, session: Session) -> None:
        """Add a session that is not there, of version ``next_version()``.

        Raises:
            RecordTooLarge: where its record does not fit a slot.
            RegistryFull: where no slot, or no entry near its home, is free. Nothing changed.
        """
        # First: for a record that fits nowhere no room is to be made.
        packed = self._pack(session)
        if len(self._free) <= SPARE_SLOTS:
            raise RegistryFull(1, 0, "slots")
        home = session.session_id.int % self._index_size
        entry = self._empty_entry(home)
        # Raised before the word that needs it, or a look-up would stop short of a session that
        # is there.
        self.reach[home] = max(self.reach[home], entry - home + 1)
        self._commit(entry, session.version, packed)

    def replace(self, entry: int, session: Session) -> None:
        """Put a session's new version, ``next_version()``, in place of the one at ``entry``."""
        packed = self._pack(session)
        old = self.index.words[entry] & SLOT_MASK
        self._commit(entry, session.version, packed)
        # Freed only now: before the word, a reader could copy another record under the old word.
        self._free.append(old)

    def remove(self, entry: int) -> None:
        """Remove the session at ``entry``."""
        words = self.index.words
        old = words[entry]
        home = self._home_of(old)
        seqlock.commit(self.change, words, entry, EMPTY, self.next_version())
        # Lowered only after the word is gone, or a look-up would miss a session still there.
        self._lower_reach(home, entry - home + 1)
        self._free.append(old & SLOT_MASK)

    def _pack(self, session: Session) -> bytes:
        packed = pack_slot(session)
        limit = self.geometry.slot_size
        if session.status is not _TERMINATED:
            limit -= ROOM_TO_END
        if len(packed) > limit:
            raise RecordTooLarge(len(packed), limit)
        return packed

    def _commit(self, entry: int, version: int, packed: bytes) -> None:
        self.packed = packed
        # From the queue's far end: the slot that has rested longest, so that a reader still
        # copying a record just replaced is the least likely to see it overwritten.
        slot = self._free.popleft()
        start = self.slots.offset(slot)
        self.slots.memory[start : start + len(packed)] = packed
        seqlock.commit(self.change, self.index.words, entry, index_word(version, slot), version)

    def _empty_entry(self, home: int) -> int:
        words = self.index.words
        for entry in range(home, home + MAX_DISTANCE + 1):
            if words[entry] == EMPTY:
                return entry
        raise RegistryFull(1, 0, "entries near the id's home")

    def _home_of(self, word: int) -> int:
        return int.from_bytes(self.slots.copy_head(word)[0][0]) % self._index_size

    def _lower_reach(self, home: int, reach: int) -> None:
        """Set a home's reach anew after the session that needed ``reach`` is gone."""
        if self.reach[home] > reach:
            return
        words = self.index.words
        while reach and not (
            words[home + reach - 1] and self._home_of(words[home + reach - 1]) == home
        ):
            reach -= 1
        self.reach[home] = reach

    def revoke(self, gone: Any) -> None:  # noqa: ANN401 - stands where many things did
        """Make each later step of a change that is under way use ``gone``, which raises.

        For a forked child that returns into the change: the memory is its parent's to write.
        """
        self.change = self.index = self.reach = self.slots = self.control = self._words = gone

    # ------------------------------------------------------------------ growing

    def fill(self, old: TableWriter, plan: Plan) -> None:
        """Copy all sessions of another table into this one, which is new and nobody's yet.

        Args:
            old: where they are; nothing else writes to it.
            plan: where they go.
        """
        size = min(self.geometry.slot_size, old.geometry.slot_size)
        # In parts, since a copy of all records would take as much memory as the registry.
        part = max(_PART // size, 1)
        for begin in range(0, len(plan.slots), part):
            slots = plan.slots[begin : begin + part]
            self.slots.rows[begin : begin + len(slots), :size] = old.slots.rows[slots, :size]
        self._words[plan.entries] = plan.words
        self.reach[:] = plan.reach
        self._free = deque(range(len(plan.slots), self.slots.count))

    def follow(self, old: TableWriter, generation: int, adopt: Callable[[], object]) -> None:
        """Become the registry's table. May be repeated where it was interrupted.

        Args:
            old: the one that it is now.
            generation: the number of this one, which is complete and has its name.
            adopt: makes it this process's table, for threads that meet the old one's end.
        """
        self.control.advance(generation)
        adopt()
        # Before the next commit: whoever still looks at the old table would not see that one.
        seqlock.give_up(old.index.words, old.reach, MOVED)

    # ------------------------------------------------------------------ taking up a table

    def resume(self, identity: Identity, visit: Callable[[Session], None]) -> tuple[Dropped, ...]:
        """Make a table that a writer left at any instruction this process's to write.

        Args:
            identity: this process, published as the writer.
            visit: called with each session that is kept.

        Returns:
            The records that had to be dropped: one damaged, or one that doubles another.

        Raises:
            TableGone: where the table was destroyed. It must not come back to life.
        """
        if seqlock.is_ended(self.change, self.index.words):
            raise TableGone
        # From the change word, never from the index: a version that was begun may be in the index
        # or not, and this one, used for no session, is past it either way.
        last = seqlock.last_version(self.change)
        beyond = last > VERSION_MASK + 1
        # No version is burnt behind the last one, or the next takeover would find one more than
        # there are and take the change word for damaged.
        version = min(last, VERSION_MASK) + 1
        if beyond:
            seqlock.end(self.change)
        else:
            seqlock.hold(self.change, version)
        self.control.publish_writer(identity)
        taken, reach, unsound, newest = self._survey(visit)
        # Damage to the change word shows in a record that is newer, or in a word that no commit
        # can have left; how many versions came after the newest record is not known then.
        version = newest + LEAP if beyond else max(version, newest + 1)
        self._repair_reach(reach)
        self._free = deque(np.flatnonzero(np.frombuffer(taken, np.uint8) == 0).tolist())
        seqlock.settle(self.change, version)
        # Counted first: a kill in between leaves too many, and never a request that was carried
        # out looking new.
        self.control.count("dropped", len(unsound))
        for dropped in unsound:
            # A commit like any other, so that no reader keeps a list that still holds it.
            words = self.index.words
            seqlock.commit(self.change, words, dropped.entry, EMPTY, self.next_version())
        return tuple(unsound)

    def _survey(
        self, visit: Callable[[Session], None]
    ) -> tuple[bytearray, bytearray, list[Dropped], int]:
        """Return which slots are taken, each home's reach, what is unsound, the newest version."""
        taken, reach = bytearray(self.slots.count), bytearray(self._index_size)
        unsound: list[Dropped] = []
        ids: set[int] = set()
        newest = 0
        index = self._words.copy()
        entries = np.flatnonzero(index)
        # The newest first, so that of two records of one id the older one is dropped.
        entries = entries[np.argsort(~index[entries], kind="stable")]
        words = index[entries].tolist()
        found = self.slots.inspect(words)
        for entry, word, session in zip(entries.tolist(), words, found, strict=True):
            if isinstance(session, str):
                unsound.append(Dropped(entry, session))
                continue
            key = session.session_id.int
            home = key % self._index_size
            if taken[word & SLOT_MASK] or key in ids:
                unsound.append(Dropped(entry, f"it doubles session {session.session_id}"))
            elif not 0 <= entry - home <= MAX_DISTANCE:
                unsound.append(Dropped(entry, f"it lies too far from its home {home}"))
            else:
                taken[word & SLOT_MASK] = 1
                ids.add(key)
                reach[home] = max(reach[home], entry - home + 1)
                newest = max(newest, session.version)
                visit(session)
        return taken, reach, unsound, newest

    def _repair_reach(self, needed: bytearray) -> None:
        """Store each reach that is not what the sound entries need, once."""
        # Never zeroed first: a look-up that runs meanwhile would stop short of a live session.
        found = np.frombuffer(bytes(self.reach), np.uint8)
        for home in np.flatnonzero(found != needed).tolist():
            self.reach[home] = needed[home]

    def _is_reach_wrong(self, found: int, needed: int) -> bool:
        # A writer that goes on has made them what they must be.
        return found != needed

    def _violations(self) -> Iterator[str]:
        yield from super()._violations()
        used = [word & SLOT_MASK for word in self.index.words if word]
        if sorted([*used, *self._free]) != list(range(self.slots.count)):
            yield "a slot is neither free nor in use, or both, or twice either"
