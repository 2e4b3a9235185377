"""``SessionTable``: one table over any buffer, to be read. Probe, look up, check.

A look-up starts at the id's home entry and looks at as many entries as the home's reach says, up
to its farthest session; so a removal just empties its entry, and nothing ever moves. Whatever is
read from the memory is checked against the geometry before it is used: damage ends in
``CorruptRegistry`` or an honest miss, never in a read outside a slot or a loop without end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import numpy as np

from . import seqlock
from .errors import CorruptRegistry
from .layout import (
    CLOSED,
    EMPTY,
    MAX_DISTANCE,
    MOVED,
    SLOT_BITS,
    SLOT_MASK,
    Geometry,
)
from .slots import DAMAGED, Copy, Slots, make_session, make_sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from .layout import Memory
    from .seqlock import Found, Keep, QuickLookUp, Words
    from .session import Session

T = TypeVar("T")

#: How often a copy that its crc contradicts is made again where loads may be reordered. There it
#: may be early, not damaged; elsewhere the word alone vouches for the copy.
_DOUBT_TRIES = 100 if seqlock.WEAK else 0


class TableGone(Exception):  # noqa: N818 - no error: the reader attaches again and goes on
    """Internal: the index says ``MOVED`` or ``CLOSED``."""


class SessionTable:
    """The sessions of one table, as any process may read them while its writer writes."""

    def __init__(
        self, memory: Memory, change: Words, geometry: Geometry, *, verify: bool = False
    ) -> None:
        """Look at a table; nothing is copied.

        Args:
            memory: the whole table object.
            change: the control's change word, a view of one word.
            geometry: the table's, from its header.
            verify: compute the crcs of whatever is read. A machine that may reorder loads always
                does.
        """
        self.geometry = geometry
        self.verify = verify or seqlock.WEAK
        self.slots = Slots(memory, geometry)
        view = memoryview(memory)
        words = view[geometry.index_offset : geometry.reach_offset].cast("Q")
        self.index = seqlock.SequenceWords(words)
        self.change = change
        self.reach = view[geometry.reach_offset : geometry.reach_offset + geometry.index_size]
        self._index_size = geometry.index_size
        # Where these cannot tell, find and look_up can; made of parts, since one that held this
        # object would be a cycle, which keeps the mapping until some garbage collection.
        parts = (self.index, self.reach, self.slots)
        self.quick_glance = seqlock.never_quick if self.verify else seqlock.quick_glance(*parts)
        self._words = np.frombuffer(memory, np.uint64, geometry.entries, geometry.index_offset)
        self.copy_head = self.slots.copy_head_verified if self.verify else self.slots.copy_head
        self.copy_whole = self.slots.copy_whole_verified if self.verify else self.slots.copy_whole
        self.copy_many = self.slots.copy_many_verified if self.verify else self.slots.copy_many
        self.copy_row = self.slots.copy_row_verified if self.verify else self.slots.copy_row

    # ------------------------------------------------------------------ one session

    def make_quick_look_up(self, keep: Keep | None = None) -> QuickLookUp:
        """Return a function that looks up in this table, as ``seqlock.quick_look_up`` says."""
        if self.verify:
            return seqlock.never_quick
        return seqlock.quick_look_up(self.index, self.reach, self.slots, keep)

    def find(self, session_id: UUID, copy: Callable[[int], Copy]) -> tuple[int, int, Copy] | None:
        """Return entry and word of a session and what its slot held then; None if it is not there.

        Args:
            session_id: its id.
            copy: ``copy_whole``, or ``copy_head`` to leave the payload out.

        Raises:
            TableGone: where the table is no longer the registry's.
            CorruptRegistry: where its slot cannot be.
        """
        key = session_id.int
        entry = key % self._index_size
        # Within each look-up, and never remembered: an insert raises it first, so a session that
        # is there throughout is within what is loaded here.
        end = entry + self.reach[entry]
        read = self.index.read
        while entry < end:
            word, found = read(entry, copy)
            if found is not None:
                if found is DAMAGED:
                    word, found = self._read_again(entry, copy)
                if found is not None and found[0][0] == key.to_bytes(16):
                    return entry, word, found
            if word in {MOVED, CLOSED}:
                raise TableGone
            entry += 1
        return None

    def look_up(self, session_id: UUID) -> Found | None:
        """Return entry and word of a session, and the session; None if it is not there.

        Raises:
            TableGone: where the table is no longer the registry's.
            CorruptRegistry: where its slot cannot be.
        """
        found = self.find(session_id, self.copy_whole)
        if found is None:
            return None
        entry, word, copy = found
        return entry, word, self.make_session(session_id, entry, word, copy)

    def make_session(self, session_id: UUID, entry: int, word: int, copy: Copy) -> Session:
        """Return the session that a validated copy holds.

        Raises:
            CorruptRegistry: where it holds none.
        """
        try:
            return make_session(session_id, copy)
        except KeyError:
            reason = f"{_place(entry, word)} has the status code {copy[0][6]}"
            raise CorruptRegistry(reason) from None

    def make_sessions(self, placed: dict[int, int], copies: dict[int, Copy]) -> list[Session]:
        """Return the sessions that validated copies hold.

        Args:
            placed: the word of each entry, of those of ``copies`` at least.
            copies: what was copied for it.

        Raises:
            CorruptRegistry: where one holds none.
        """
        try:
            return make_sessions(copies.values())
        except KeyError:
            for entry, copy in copies.items():
                self.make_session(UUID(bytes=copy[0][0]), entry, placed[entry], copy)
            raise

    def _read_again(self, entry: int, copy: Callable[[int], T]) -> tuple[int, T | None]:
        """Return an entry's word and copy where a first copy was ``DAMAGED``."""
        for _ in range(_DOUBT_TRIES):
            word, found = self.index.read(entry, copy)
            if found is not DAMAGED:
                return word, found
        word = self.index.words[entry]
        reason = f"{_place(entry, word)} holds no session"
        raise CorruptRegistry(reason)

    # ------------------------------------------------------------------ all sessions

    def occupied(self) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
        """Return the entries that name a slot, and a copy of their words.

        A word may be torn while a writer writes: it counts where the change word did not move
        meanwhile, or where a second copy agrees.

        Raises:
            TableGone: where the table is no longer the registry's.
        """
        # Compared first, since numpy looks for what is true in a third of the time.
        entries = np.flatnonzero(self._words != EMPTY)
        words = self.words_of(entries)
        # What was emptied between the two loads names no slot, and no session stayed there.
        there = words != EMPTY
        return (entries, words) if there.all() else (entries[there], words[there])

    def words_of(self, entries: NDArray[np.intp]) -> NDArray[np.uint64]:
        """Return a copy of the words of many entries, each of which may be torn.

        Raises:
            TableGone: where the table is no longer the registry's.
        """
        words: NDArray[np.uint64] = self._words[entries]
        # MOVED and CLOSED alone: of unsigned words, one less than EMPTY is the largest.
        if (words - 1 < CLOSED).any():
            raise TableGone
        return words

    def index_copy(self) -> NDArray[np.uint64]:
        """Return a copy of all index words, each of which may be torn while a writer writes."""
        return self._words.copy()

    def runs_of(self, words: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first slot of each record that a word names, and how many slots it takes."""
        headers = self.slots.copy_headers(words)
        lengths = headers["payload_length"].astype(np.int64)
        starts = (words & np.uint64(SLOT_MASK)).astype(np.int64)
        return starts, self.geometry.run_length(lengths, headers["status"])

    def differing(self, words: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Return the entries whose word is not the one in ``words``, by one look that may be torn.

        One that is missed for that changed beside the look, so the change word moved.
        """
        return np.flatnonzero(self._words != words)

    def read(self, entry: int, copy: Callable[[int], T]) -> tuple[int, T | None]:
        """Return one entry's word and the validated copy of its slot; None where it is empty.

        Args:
            entry: which.
            copy: one of this table's ``copy_...`` functions.

        Raises:
            TableGone: where the table is no longer the registry's.
            CorruptRegistry: where the slot cannot be.
        """
        word, found = self.index.read(entry, copy)
        if found is DAMAGED:
            word, found = self._read_again(entry, copy)
        if found is None and word != EMPTY:
            raise TableGone
        return word, found

    # ------------------------------------------------------------------ invariants

    def check(self) -> list[str]:
        """Return what is wrong with the table, a line each; nothing where all invariants hold.

        It must be at rest: no commit under way in this process or another.
        """
        return list(self._violations())

    def _violations(self) -> Iterator[str]:
        last = seqlock.last_version(self.change)
        sound: list[int] = []
        ids: dict[UUID, int] = {}
        reach: dict[int, int] = {}
        index = self.index_copy()
        for entry in np.flatnonzero((index == MOVED) | (index == CLOSED)).tolist():
            yield f"entry {entry} is {index[entry]}: the table was given up"
        entries = np.flatnonzero(index > CLOSED)
        words = index[entries].tolist()
        found = self.slots.inspect(words)
        for entry, word, session in zip(entries.tolist(), words, found, strict=True):
            if isinstance(session, str):
                yield f"{_place(entry, word)}: {session}"
                continue
            sound.append(entry)
            if ids.setdefault(session.session_id, entry) != entry:
                other = ids[session.session_id]
                yield f"{session.session_id} is at the entries {other} and {entry}"
            if session.version > last:
                yield f"{_place(entry, word)}: newer than the change word's {last}"
            home = session.session_id.int % self._index_size
            if not 0 <= entry - home <= MAX_DISTANCE:
                yield f"{_place(entry, word)}: its id's home is {home}"
            reach[home] = max(reach.get(home, 0), entry - home + 1)
        yield from self._overlaps(np.array(sound, np.intp), index[sound])
        for home in {*reach, *np.flatnonzero(np.frombuffer(bytes(self.reach), np.uint8)).tolist()}:
            if self._is_reach_wrong(self.reach[home], reach.get(home, 0)):
                yield f"reach of {home} is {self.reach[home]}, not {reach.get(home, 0)}"

    def _overlaps(self, entries: NDArray[np.intp], words: NDArray[np.uint64]) -> Iterator[str]:
        starts, runs = self.runs_of(words)
        order = np.argsort(starts, kind="stable")
        starts, entries = starts[order], entries[order]
        ends = starts + runs[order]
        for at in np.flatnonzero(ends[:-1] > starts[1:]).tolist():
            yield f"slot {starts[at + 1]} is of the entries {entries[at]} and {entries[at + 1]}"
        if len(ends) and ends[-1] > self.slots.count:
            yield f"the slots of the entry {entries[-1]} end beyond the table"

    def _is_reach_wrong(self, found: int, needed: int) -> bool:
        # One too high is what a writer leaves that is killed before a commit that raised it, or
        # after one that was to lower it. It costs a look at an entry, and hides nothing.
        return found < needed


def _place(entry: int, word: int) -> str:
    """Return where a record is, for an error."""
    return f"entry {entry}, slot {word & SLOT_MASK}, version {word >> SLOT_BITS}"
