"""``RecordWriter``: how records come into a table, are replaced and removed, one commit each.

Reading is the base, ``SessionTable``; this adds what one process at a time may do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from . import seqlock
from .errors import ADJACENT, VERSIONS, RecordTooLarge, RegistryFull
from .layout import (
    CLOSED,
    EMPTY,
    MAX_DISTANCE,
    MAX_RECORD_SIZE,
    ROOM_TO_END,
    SLOT_HEADER_SIZE,
    SLOT_MASK,
    SPARE_SLOTS,
    VERSION_MASK,
    Geometry,
    index_word,
)
from .session import CODE_OF_STATUS, SessionStatus
from .slots import DAMAGED, pack_slot
from .space import FreeSlots
from .table import SessionTable, TableGone

if TYPE_CHECKING:
    from uuid import UUID

    from .control import ControlWriter
    from .layout import Memory
    from .session import Session
    from .slots import Copy

#: An attribute of an enumeration costs as much as four of a module.
_TERMINATED: Final = SessionStatus.TERMINATED


class RecordWriter(SessionTable):
    """The records of one table, as its one writer changes them."""

    def __init__(
        self,
        memory: Memory,
        control: ControlWriter,
        geometry: Geometry,
        *,
        max_record_size: int = MAX_RECORD_SIZE,
    ) -> None:
        """Take a table to write: an empty one; one that is not, ``resume`` takes up.

        Args:
            memory: the whole table object.
            control: the registry's control.
            geometry: the table's, from its header.
            max_record_size: bytes of a record, its header included. Those that are there may be
                longer; they cannot grow.
        """
        super().__init__(memory, control.change, geometry)
        self.control = control
        self.max_record_size = max_record_size
        #: Bytes of a live record that takes one slot, at most.
        self._short = geometry.slot_size - ROOM_TO_END
        self.space = FreeSlots(0, geometry.slot_count, {})
        #: What the last commit of a session put into its slots: header, crcs and payload.
        self.packed = b""

    @property
    def free_slots(self) -> int:
        """Slots that no record occupies, the spare ones and the reserve included."""
        return len(self.space)

    def next_version(self) -> int:
        """Return the version that the next ``insert``, ``replace`` or ``remove`` makes.

        Raises:
            RegistryFull: where the 40 bits of an index word hold no more, after 3.5 years of
                10,000 commits a second.
        """
        version = seqlock.next_version(self.change)
        if version > VERSION_MASK:
            raise RegistryFull(1, 0, VERSIONS)
        return version

    def locate(self, session_id: UUID) -> tuple[int, int, Copy] | None:
        """Return entry and word of a session and its record, verified; None if it is not there.

        For what is to be changed: what is copied on must not get a crc that is right if it is
        damaged. Nobody else stores to these words, so one load of each will do.

        Raises:
            TableGone, CorruptRegistry: as ``find``.
        """
        key = session_id.int
        entry = key % self._index_size
        end = entry + self.reach[entry]
        words, copy, raw = self.index.words, self.slots.copy_whole_verified, key.to_bytes(16)
        while entry < end:
            word = words[entry]
            if word <= CLOSED:
                if word != EMPTY:
                    raise TableGone
            elif (found := copy(word))[0][0] == raw:
                return entry, word, found
            elif found is DAMAGED:
                # It raises, and says what; if the damage has gone meanwhile, once more.
                self.read(entry, copy)
                continue
            entry += 1
        return None

    # ------------------------------------------------------------------ changes

    def insert(self, session: Session) -> None:
        """Add a session that is not there, of version ``next_version()``.

        Raises:
            RecordTooLarge: where its record is longer than any may be.
            RegistryFull: where no slots, or no entry near its home, are free. Nothing changed.
        """
        # First: for a record that fits nowhere no room is to be made.
        packed = self._pack(session)
        length = 1 if len(packed) <= self._short else self._run_length(packed, session)
        home = entry = session.session_id.int % self._index_size
        # Without a call where its home is empty, as mostly.
        if self.index.words[home] != EMPTY:
            entry = self._empty_entry(home)
        slot = self._take_slots(length)
        # Raised before the word that needs it, or a look-up would stop short of a session that
        # is there.
        if self.reach[home] <= entry - home:
            self.reach[home] = entry - home + 1
        self._commit(entry, session.version, slot, packed)

    def replace(self, entry: int, session: Session) -> Session:
        """Put a session's new version, ``next_version()``, in place of the one at ``entry``.

        Returns:
            The session, of a later version where it had to be committed twice.

        Raises:
            RecordTooLarge: where its record is longer than any may be.
            RegistryFull: where it takes more slots than before, and they are not free. Nothing
                changed.
        """
        old = self.index.words[entry] & SLOT_MASK
        packed = self._pack(session, old)
        # Without a call for what is short.
        length = 1 if len(packed) <= self._short else self._run_length(packed, session)
        if length > 1:
            return self._replace_run(entry, session, packed, length, old)
        space = self.space
        # From the queue's far end: the slot that has rested longest, so that a reader still
        # copying a record just replaced is the least likely to see it overwritten.
        self._commit(entry, session.version, space.singles.popleft(), packed)
        # Freed only now: before the word, a reader could copy another record under the old word.
        space.give_back(old)
        return session

    def _replace_run(
        self, entry: int, session: Session, packed: bytes, length: int, old: int
    ) -> Session:
        """Replace by a record of several slots."""
        space = self.space
        start = space.take_instead(length, old)
        if start is not None:
            self._commit(entry, session.version, start, packed)
            space.give_back(old)
            return session
        reserve, found = space.reserve()
        if length > min(space.length_of(old), found):
            raise RegistryFull(length, space.available(), ADJACENT)
        # Twice, or the next one would find no reserve. A crash in between leaves the record there,
        # and its old slots free: resume finds both.
        again = replace(session, version=session.version + 1)
        if again.version > VERSION_MASK:
            raise RegistryFull(2, 1, VERSIONS)
        repacked = pack_slot(again)
        self._commit(entry, session.version, reserve, packed)
        self._commit(entry, again.version, old, repacked)
        space.cut(old, length)
        return again

    def remove(self, entry: int) -> None:
        """Remove the session at ``entry``."""
        words = self.index.words
        old = words[entry]
        home = self._home_of(old)
        seqlock.commit(self.change, words, entry, EMPTY, self.next_version())
        # Lowered only after the word is gone, or a look-up would miss a session still there.
        self._lower_reach(home, entry - home + 1)
        self.space.give_back(old & SLOT_MASK)

    def room_at(self, entry: int) -> int:
        """Return how many bytes the end of the session at ``entry`` finds room for."""
        slot = self.index.words[entry] & SLOT_MASK
        room = self.space.length_of(slot) * self.geometry.slot_size
        return min(room, self._limit_at(slot) + ROOM_TO_END)

    def longest_record(self) -> int:
        """Return how many bytes no record is longer than, after any change."""
        there = max(self.space.longest, 1) * self.geometry.slot_size
        return max(self.max_record_size, there)

    def _pack(self, session: Session, old: int | None = None) -> bytes:
        packed = pack_slot(session)
        if len(packed) > self.max_record_size - ROOM_TO_END:
            limit = self._limit_at(old)
            if session.status is _TERMINATED:
                limit += ROOM_TO_END
            if len(packed) > limit:
                raise RecordTooLarge(len(packed), limit)
        return packed

    def _limit_at(self, slot: int | None) -> int:
        """Return the bytes that a live record may take, in place of the one at ``slot``."""
        # What is there already may stay as long as it is, whatever the limit has become.
        size = 0 if slot is None else SLOT_HEADER_SIZE + self.slots.copy_head(slot)[0][5]
        return max(self.max_record_size - ROOM_TO_END, size)

    def _run_length(self, packed: bytes, session: Session) -> int:
        """Return how many slots a record takes that is not short."""
        code = CODE_OF_STATUS[session.status]
        return self.geometry.run_length(len(packed) - SLOT_HEADER_SIZE, code)

    def _take_slots(self, length: int) -> int:
        """Return the first of the slots for a new record, which are its own then.

        Raises:
            RegistryFull: where there are none.
        """
        space = self.space
        if length == 1:
            if len(space.singles) <= SPARE_SLOTS and not space.restock():
                raise RegistryFull(1, 0, "slots")
            return space.singles.popleft()
        start = space.take(length)
        if start is None:
            raise RegistryFull(length, space.available(), ADJACENT)
        return start

    def _commit(self, entry: int, version: int, slot: int, packed: bytes) -> None:
        self.packed = packed
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
