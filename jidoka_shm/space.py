"""The free slots of a table: single ones, and runs of adjacent ones for longer records.

A record is never overwritten in place, so a change needs the slots of its new record before it
gives back those of the old one. Two rules see to it that a change of status and an end, whose
records grow by no slot, always find them:

* ``SPARE_SLOTS`` single slots stay free, for records of one slot;
* one free run, the *reserve*, is as long as the longest record there is. What finds no other room
  is committed there, and once more in the slots that it came from.

What is free follows from the table, so a writer that takes one up derives it anew. Runs that were
given back are kept by length and put together with their neighbours only where no run is long
enough: a record mostly goes where one of its own length was.
"""

from __future__ import annotations

from collections import Counter, deque
from itertools import chain
from typing import TYPE_CHECKING, Final

import numpy as np

from .layout import SPARE_SLOTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

#: Single slots that are taken from a run at a time. With many of them a slot that was just freed
#: rests for as many commits, and a reader that still copies it seldom has to retry.
_STOCK: Final = 1024


class FreeSlots:
    """Which slots of a table no record occupies.

    Attributes:
        singles: slots for records of one, the one that has rested longest first.
        records: of each record of several slots, its first slot and how many they are.
        longest: the slots of the longest of these records; 0 where there is none.
    """

    def __init__(self, begin: int, end: int, records: dict[int, int]) -> None:
        """Take the slots from ``begin`` to before ``end`` as free.

        Args:
            begin: the first of them.
            end: how many slots there are.
            records: of each record of several slots, its first and how many they are.
        """
        self.singles: deque[int] = deque()
        self.records = records
        self._lengths = Counter(records.values())
        self.longest = max(self._lengths, default=0)
        self._runs: dict[int, deque[int]] = {}
        self._put(begin, end - begin)
        self._stock(SPARE_SLOTS)

    @classmethod
    def of(cls, free: NDArray[np.int64], records: dict[int, int]) -> FreeSlots:
        """Return the slots of a table that was taken up, which ``settle`` makes ready.

        Args:
            free: the free ones.
            records: as above.
        """
        made = cls(0, 0, records)
        made.singles.extend(free.tolist())
        made._gather()
        return made

    def __len__(self) -> int:
        """Return how many slots are free, the spare ones and the reserve included."""
        return len(self.singles) + sum(n * len(starts) for n, starts in self._runs.items())

    def __iter__(self) -> Iterator[int]:
        runs = [range(at, at + n) for n, starts in self._runs.items() for at in starts]
        return chain(self.singles, *runs)

    def runs(self) -> dict[int, int]:
        """Return how many free runs of each length there are, single slots left out."""
        return {n: len(starts) for n, starts in sorted(self._runs.items())}

    # ------------------------------------------------------------------ records of one slot

    def restock(self) -> bool:
        """Return whether a new record of one slot finds one, beside what stays spare."""
        self._stock(_STOCK)
        if len(self.singles) <= SPARE_SLOTS:
            self._gather()
            self._stock(_STOCK)
        return len(self.singles) > SPARE_SLOTS

    def _stock(self, count: int) -> None:
        """Take single slots from runs until there are ``count``; the reserve stays."""
        # The shortest first: the long ones are what long records need.
        for length in sorted(self._runs):
            while length in self._runs and len(self.singles) < count:
                kept = 0 if self._is_spared(length) else self.longest
                taken = min(length - kept, count - len(self.singles))
                if taken <= 0:
                    return
                start = self._pop(length)
                self.singles.extend(range(start, start + taken))
                self._put(start + taken, length - taken)

    def _is_spared(self, length: int) -> bool:
        """Return whether the reserve is another run than the first of this length."""
        if length < self.longest or len(self._runs[length]) > 1:
            return True
        return max(self._runs) > length

    # ------------------------------------------------------------------ records of several slots

    def take(self, length: int) -> int | None:
        """Return the first of adjacent slots for a new record, which are its own then.

        A reserve for it stays as well. None where there are no such slots.
        """
        kept = max(self.longest, length)
        start = self._fit(length, kept)
        if start is None:
            self.settle()
            start = self._fit(length, kept)
        if start is not None:
            self._hold(start, length)
        return start

    def take_instead(self, length: int, old: int) -> int | None:
        """Return as ``take`` does for the next version of a record; the old one's stay taken.

        None for one that takes no more of them means that it is to be committed twice, which is
        cheaper than to look for more room at each change in a full table.

        Args:
            length: the slots of the new record.
            old: the first slot of the old one.
        """
        had = self.records.get(old, 1)
        kept = max(length, self._longest_without(had))
        start = self._fit(length, kept)
        if start is None and kept <= had:
            # The slots that the old record gives back will be the reserve.
            start = self._fit(length, 0)
        elif start is None and length > had:
            # What is refused makes the table grow, so nothing may be overlooked.
            self.settle()
            start = self._fit(length, kept)
        if start is not None:
            self._hold(start, length)
        return start

    def take_apart(self, old: int) -> int | None:
        """Return as ``take`` does for a record that moves, so that what it leaves is the reserve.

        Between ``of`` and ``settle``.

        Args:
            old: the first slot of the record, whose slots stay taken.

        Returns:
            None where no place makes one.
        """
        length = self.length_of(old)
        runs = {start: n for n, starts in self._runs.items() for start in starts}
        runs |= dict.fromkeys(self.singles, 1)
        before = sum([n for start, n in runs.items() if start + n == old])
        after = runs.get(old + length, 0)
        for start, run in runs.items():
            # Of its neighbours' slots it takes those that are farthest from it.
            at = start + run - length if start == old + length else start
            near = start in {old + length, old - run}
            if run >= length and before + after + length * (not near) >= self.longest:
                self.singles = deque(sorted({*self} - {*range(at, at + length)}))
                self._runs = {}
                self._hold(at, length)
                return at
        return None

    def settle(self) -> None:
        """Get ready for changes, after ``of``."""
        self._gather()
        self._stock(SPARE_SLOTS)

    def has_reserve(self) -> bool:
        """Return whether there is a free run as long as the longest record."""
        return self.reserve()[1] >= self.longest

    def length_of(self, start: int) -> int:
        """Return how many slots the record takes that begins at ``start``."""
        return self.records.get(start, 1)

    def reserve(self) -> tuple[int, int]:
        """Return the longest free run, which stays free: its first slot and how many they are."""
        length = max(self._runs, default=0)
        return (self._runs[length][0], length) if length else (0, 0)

    def available(self) -> int:
        """Return how many adjacent slots a new record finds at most, a reserve for it left."""
        lengths = chain.from_iterable([n] * min(count, 2) for n, count in self.runs().items())
        second, first = [0, 0, *lengths][-2:]
        # Out of one run it leaves as much as it takes, or as the longest record, if that is more.
        half = first // 2
        return max(second, half if half >= self.longest else first - self.longest)

    def give_back(self, start: int) -> None:
        """Take the slots of a record that is no more as free."""
        length = self.records.pop(start, 1)
        if length == 1:
            # Of each change of a short record, so without a call.
            self.singles.append(start)
            return
        self._put(start, length)
        self._count(length, -1)
        # What replaced it may have taken a single slot.
        self._stock(SPARE_SLOTS)

    def cut(self, start: int, length: int) -> None:
        """Take the last slots of a record that became shorter, in its place, as free."""
        had = self.records.pop(start)
        # First, for another thread that asks for the longest.
        self._hold(start, length)
        self._count(had, -1)
        self._put(start + length, had - length)

    def _fit(self, length: int, kept: int) -> int | None:
        """Take slots out of the shortest run that will do, and return the first; None where none.

        One does where a run of ``kept`` stays, be it another one or what is left of this.
        """
        lengths = sorted(self._runs)
        for run in lengths:
            other = lengths[-1]
            if run == other and len(self._runs[run]) == 1:
                other = lengths[-2] if len(lengths) > 1 else 0
            if run >= length and max(other, run - length) >= kept:
                start = self._pop(run)
                self._put(start + length, run - length)
                return start
        return None

    # ------------------------------------------------------------------ parts

    def _hold(self, start: int, length: int) -> None:
        if length > 1:
            self.records[start] = length
            self._count(length, 1)

    def _count(self, length: int, step: int) -> None:
        self._lengths[length] += step
        self.longest = max(self.longest, length)
        if not self._lengths[length]:
            self.longest = self._longest_without(length)
            del self._lengths[length]

    def _longest_without(self, length: int) -> int:
        """Return the slots of the longest record but for one of ``length``."""
        if length < self.longest or self._lengths[length] > 1:
            return self.longest
        return max([each for each in self._lengths if each != length], default=0)

    def _pop(self, length: int) -> int:
        """Take a run of this length out, the one that has rested longest."""
        starts = self._runs[length]
        start = starts.popleft()
        if not starts:
            del self._runs[length]
        return start

    def _put(self, start: int, length: int) -> None:
        if length == 1:
            self.singles.append(start)
        elif length:
            self._runs.setdefault(length, deque()).append(start)

    def _gather(self) -> None:
        """Put free slots together with their neighbours."""
        runs = [(start, n) for n, starts in self._runs.items() for start in starts]
        if not self.singles and not runs:
            return
        pairs = np.ones((len(self.singles) + len(runs), 2), np.int64)
        pairs[: len(self.singles), 0] = self.singles
        pairs[len(self.singles) :] = np.array(runs, np.int64).reshape(-1, 2)
        starts, lengths = pairs[np.argsort(pairs[:, 0])].T
        # A run begins where no free slot is right before.
        first = np.flatnonzero(np.append([True], starts[1:] != (starts + lengths)[:-1]))
        begins, lengths = starts[first], np.add.reduceat(lengths, first)
        self.singles = deque(begins[lengths == 1].tolist())
        self._runs = {}
        longer = lengths > 1
        for start, length in zip(begins[longer].tolist(), lengths[longer].tolist(), strict=True):
            self._put(start, length)
