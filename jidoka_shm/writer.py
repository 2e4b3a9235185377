"""``TableWriter``: the only mutator of a table. To what it does to records: grow, recover.

What it keeps in its own memory, the free slots, can be derived from the table, and ``resume`` does
so after a crash as after an interrupted call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID

import numpy as np
from msgspec.structs import replace

from . import seqlock
from .layout import CLOSED, EMPTY, LEAP, MOVED, SLOT_MASK, VERSION_MASK
from .records import RecordWriter
from .slots import make_session, pack_slot
from .space import FreeSlots
from .survey import survey
from .table import TableGone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .control import Identity
    from .growth import Plan
    from .session import Session
    from .survey import Dropped


#: Bytes of short records that ``fill`` copies at a time, or one slot where that is larger.
_PART: Final = 1 << 21


class TableWriter(RecordWriter):
    """The sessions of one table, as its one writer changes them."""

    # ------------------------------------------------------------------ growing

    def fill(self, old: TableWriter, plan: Plan) -> None:
        """Copy all sessions of another table into this one, which is new and nobody's yet.

        Args:
            old: where they are; nothing else writes to it.
            plan: where they go.
        """
        self._copy_short(old, plan)
        self._copy_long(old, plan)
        self._words[plan.entries] = plan.words
        self.reach[:] = plan.reach
        several = plan.runs > 1
        records = zip(plan.starts[several].tolist(), plan.runs[several].tolist(), strict=True)
        self.space = FreeSlots(int(plan.runs.sum()), self.slots.count, dict(records))

    def _copy_short(self, old: TableWriter, plan: Plan) -> None:
        """Copy the records that take no more than one slot of either table."""
        size = min(self.geometry.slot_size, old.geometry.slot_size)
        short = np.flatnonzero(~plan.is_long)
        # In parts, since a copy of all records would take as much memory as the registry.
        part = max(_PART // size, 1)
        for begin in range(0, len(short), part):
            these = short[begin : begin + part]
            self.slots.rows[plan.starts[these], :size] = old.slots.rows[plan.slots[these], :size]

    def _copy_long(self, old: TableWriter, plan: Plan) -> None:
        """Copy the others, one by one."""
        columns = (plan.slots, plan.starts, plan.sizes)
        long = [column[plan.is_long].tolist() for column in columns]
        for slot, start, size in zip(*long, strict=True):
            here, there = self.slots.offset(start), old.slots.offset(slot)
            self.slots.memory[here : here + size] = old.slots.memory[there : there + size]

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
        found = survey(self, visit)
        # Damage to the change word shows in a record that is newer, or in a word that no commit
        # can have left; how many versions came after the newest record is not known then.
        version = found.newest + LEAP if beyond else max(version, found.newest + 1)
        self._repair_reach(found.reach)
        self.space = FreeSlots.of(found.free, found.records)
        seqlock.settle(self.change, version)
        # Counted first: a kill in between leaves too many, and never a request that was carried
        # out looking new.
        self.control.count("dropped", len(found.unsound))
        for dropped in found.unsound:
            # A commit like any other, so that no reader keeps a list that still holds it.
            words = self.index.words
            seqlock.commit(self.change, words, dropped.entry, EMPTY, self.next_version())
        self._restore_reserve(found.last)
        return tuple(found.unsound)

    def _restore_reserve(self, entry: int) -> None:
        """Commit the record at ``entry`` elsewhere, where that leaves a reserve and nothing does.

        A writer that was killed between the two commits of a change left it there.
        """
        space = self.space
        old = self.index.words[entry] & SLOT_MASK
        start = None if space.has_reserve() else space.take_apart(old)
        if start is not None:
            copy = self.slots.copy_whole(self.index.words[entry])
            session = make_session(UUID(bytes=copy[0][0]), copy)
            again = replace(session, version=self.next_version())
            self._commit(entry, again.version, start, pack_slot(again))
            space.give_back(old)
        space.settle()

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
        index = self.index_copy()
        runs = zip(*self.runs_of(index[index > CLOSED]), strict=True)
        used = [slot for start, run in runs for slot in range(start, start + run)]
        if sorted([*used, *self.space]) != list(range(self.slots.count)):
            yield "a slot is neither free nor in use, or both, or twice either"
        if not self.space.has_reserve():
            yield "no free run is as long as the longest record"
