"""The protocol: how one writer commits and any reader reads, with no lock between them.

The index word of a session is the sequence of a seqlock whose writer side is out of place. A writer
never changes a slot that a word refers to:

1. it takes a free slot and writes the record into it, header, crcs and payload;
2. it stores ``2 * version - 1`` in the change word (odd: a commit is under way);
3. it stores the index word, ``version << 24 | slot``. **This one store is the commit.**
4. it stores ``2 * version`` in the change word;
5. the slot that the old word named is free again.

A reader loads the word, copies the slot, loads the word again. Equal words mean that the slot was
not given back in between, so the copy is that version, whole. Versions are never used twice, so
equal words cannot hide a change and a change back. Different words mean: try again.

Why this holds on x86-64: loads are not reordered with loads, nor stores with stores, and
``memoryview.cast("Q")[i]`` is one aligned 8-byte load or store. On a machine that does reorder, a
reader trusts no copy whose version and crcs do not match its word, and both sides fence where
the argument needs it (``WEAK``; argued and model-checked, see docs/guarantees.md).

The change word is an ordinary seqlock over the whole table, for what spans many entries: what was
computed between two loads of one even value is an atomic snapshot, and stays true while the
value stands. When it is odd, also for ever after a kill in mid-commit, nobody waits for it:
readers check each session by its own word.

Nothing else in the package stores to an index word or to the change word.
"""

from __future__ import annotations

import os
import platform
import struct
import threading
from typing import TYPE_CHECKING, Final, TypeVar

from .errors import ReadContended
from .layout import CLOSED, EMPTY, GIVEN_UP_REACH, SLOT_HEADER_SIZE, SLOT_MASK
from .session import STATUS_OF_CODE, Session

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from .slots import Slots

    Words = memoryview[int]
    #: What is given each session that was looked up, by its id.
    Keep = Callable[[UUID, "Found"], None]
    #: Returns a session; nothing, ``()``, where it is not there; None where that is left open.
    QuickLookUp = Callable[[UUID], "Session | tuple[()] | None"]

#: Where a session is (entry, word), and the session.
Found = tuple[int, int, Session]

#: A session's id, its owner's pid or 0, and its status's code, as ``SLOT_BRIEF`` unpacks them.
Brief = tuple[bytes, int, int]

T = TypeVar("T")

#: Whether this machine may reorder loads with loads or stores with stores. The environment
#: variable makes an x86-64 take the same path, so that the whole test suite can run it.
WEAK: Final = (
    platform.machine() not in {"x86_64", "AMD64"}
    or os.environ.get("JIDOKA_SHM_WEAK_MEMORY", "") == "1"
)

#: Tries of one read. Each takes a new commit of the same session within one copy, a microsecond
#: or less; a reader that meets that a thousand times in a row is told instead of kept.
TRIES: Final = 1000


def fence() -> None:
    """Order all loads and stores before against all after, on any machine.

    A release of a lock followed by an acquire that reads it orders what is around them in the
    ARMv8 memory model (its ``aob`` rule, DDI 0487, B2.3). No other thread knows the lock, so this
    never waits.
    """
    # A new one each time: one that a thread kept would be left released by an exception between
    # the last two lines, and fail for ever after.
    lock = threading.Lock()
    lock.acquire()
    lock.release()
    lock.acquire()


class SequenceWords:
    """The index words of one table, each the sequence of its own seqlock.

    Attributes:
        words: the words themselves, in place.
        retries: how often a read met a commit and tried again. Threads may lose a count.
    """

    __slots__ = ("retries", "words")

    def __init__(self, words: Words) -> None:
        self.words = words
        self.retries = 0

    def read(self, entry: int, copy: Callable[[int], T]) -> tuple[int, T | None]:
        """Return an entry's word and what ``copy`` made of it while it stood.

        Args:
            entry: which entry.
            copy: takes the word, returns a private copy of what it names.

        Returns:
            The word with None where it names no slot, else with the copy, which is then whole.

        Raises:
            ReadContended: where ``TRIES`` tries each met a new commit.
        """
        words = self.words
        word = words[entry]
        if word <= CLOSED:
            return word, None
        value = copy(word)
        # Without this load the slot may have been given back and written anew meanwhile: no
        # value, no neighbour and no damage may be concluded from the copy before it.
        again = words[entry]
        if again == word:
            return word, value
        return self._retry(entry, copy, again)

    def _retry(self, entry: int, copy: Callable[[int], T], word: int) -> tuple[int, T | None]:
        """Go on with ``read`` where the word has become ``word`` during the copy."""
        words = self.words
        for _ in range(TRIES):
            self.retries += 1
            if word <= CLOSED:
                return word, None
            value = copy(word)
            again = words[entry]
            if again == word:
                return word, value
            word = again
        raise ReadContended(TRIES)


def quick_look_up(  # noqa: C901 - the function inside is one frame, as said
    index: SequenceWords,
    reach: memoryview[int],
    slots: Slots,
    keep: Keep | None = None,
) -> QuickLookUp:
    """Return a function that looks up an id where no commit, no damage and no end comes between.

    It takes the steps of ``SequenceWords.read``, ``Slots.copy_whole`` and ``SessionTable.find`` in
    one frame of local names. On CPython a call costs a tenth of a look-up, and these would be six.

    Args:
        index: the table's index words.
        reach: its reach bytes, one a home entry.
        slots: its slots.
        keep: given each session that is found, with its entry and word; None keeps none.

    Returns:
        A function from an id to its session; to nothing, ``()``, where the id is not in the table;
        or to None where that takes a closer look.
    """
    words, size = index.words, len(reach)
    unpack_from, memory = slots.unpack_from, slots.memory
    begin, slot_size, limit, last = slots.begin, slots.slot_size, slots.limit, slots.end
    statuses = STATUS_OF_CODE

    def look_up(  # noqa: C901, PLR0911 - as said
        session_id: UUID,
    ) -> Session | tuple[()] | None:
        key = session_id.int
        entry = key % size
        end = reach[entry]
        if end == 0:
            return ()
        end += entry
        while entry < end:
            word = words[entry]
            if word > CLOSED:
                start = begin + (word & SLOT_MASK) * slot_size
                try:
                    found, version, created, updated, pid, length, code = unpack_from(memory, start)
                    status = statuses[code]
                except (struct.error, KeyError):
                    return None
                if found == key.to_bytes(16):
                    start += SLOT_HEADER_SIZE
                    stop = start + length
                    if length > limit or stop > last:
                        return None
                    payload = memory[start:stop]
                    # The load that makes it a conclusion, as in ``read``.
                    if words[entry] != word:
                        index.retries += 1
                        return None
                    session = Session(
                        session_id, version, status, pid or None, created, updated, payload
                    )
                    if keep is not None:
                        keep(session_id, (entry, word, session))
                    return session
                # As above: which id the slot holds is a conclusion, too.
                if words[entry] != word:
                    index.retries += 1
                    return None
            elif word != EMPTY:
                return None
            entry += 1
        return ()

    return look_up


def quick_glance(
    index: SequenceWords, reach: memoryview[int], slots: Slots
) -> Callable[[UUID], Brief | tuple[()] | None]:
    """Return a function as ``quick_look_up`` does, which finds status code and owner pid alone.

    The same steps once more: shared, each look-up would pay for a call. It returns the tuple that
    was unpacked, for another one would be a tenth of a status's look-up.
    """
    words, size = index.words, len(reach)
    unpack_brief, memory = slots.unpack_brief, slots.memory
    begin, slot_size = slots.begin, slots.slot_size

    def glance(session_id: UUID) -> Brief | tuple[()] | None:
        key = session_id.int
        entry = key % size
        end = 0
        while True:
            word = words[entry]
            if word > CLOSED:
                try:
                    brief = unpack_brief(memory, begin + (word & SLOT_MASK) * slot_size)
                except struct.error:
                    return None
                if words[entry] != word:
                    index.retries += 1
                    return None
                if brief[0] == key.to_bytes(16):
                    return brief
            elif word != EMPTY:
                return None
            # After the home's word, where most of what is looked for is found.
            end = end or entry + reach[entry]
            entry += 1
            if entry >= end:
                return ()

    return glance


def never_quick(session_id: UUID) -> None:
    """Stand in for a quick look-up where every copy is verified."""


def commit(change: Words, words: Words, entry: int, word: int, version: int) -> None:
    """Make ``word`` the word of ``entry`` as commit number ``version``.

    The slot that ``word`` names must be complete; the one that the old word names must stay as
    it is until this returns.
    """
    # Odd first: without it a list made before this commit could be given again by one reader
    # after another reader has seen the commit's session.
    change[0] = 2 * version - 1
    if WEAK:
        fence()
    words[entry] = word
    if WEAK:
        fence()
    change[0] = 2 * version


def next_version(change: Words) -> int:
    """Return the version that the next commit gets."""
    return change[0] // 2 + 1


def version(change: Words) -> int | None:
    """Return the commits so far; None while one is under way or was cut short."""
    word = change[0]
    return None if word % 2 else word // 2


def last_version(change: Words) -> int:
    """Return the last version that may have been used, by the change word alone.

    After a kill in mid-commit the word is odd: that version may stand in the index or not.
    """
    return (change[0] + 1) // 2


def hold(change: Words, version: int) -> None:
    """Make the change word odd, for what is no commit but must not be read half-done."""
    change[0] = 2 * version - 1
    if WEAK:
        fence()


def settle(change: Words, version: int) -> None:
    """End what ``hold`` began; ``version`` is thereby used up."""
    if WEAK:
        fence()
    change[0] = 2 * version


def end(change: Words) -> None:
    """Make the change word odd for good: no list that a reader kept is given again.

    Not by counting up: what damage put there may leave no room for it.
    """
    change[0] |= 1
    if WEAK:
        fence()


def is_ended(change: Words, words: Words) -> bool:
    """Return whether a destruction of a table began.

    It makes the change word odd, then stores to the index from the first entry on. The first entry
    alone may be damaged, and all sessions must not be given up for that. Where the change word is
    even, since it is another control's that is odd, the second entry must say so as well.
    """
    return words[0] == CLOSED and (change[0] % 2 == 1 or words[1] == CLOSED)


def begin_scan(change: Words) -> int:
    """Return the change word as it is before a scan."""
    before = change[0]
    if WEAK:
        fence()
    return before


def end_scan(change: Words, before: int) -> bool:
    """Return whether nothing was committed since ``begin_scan`` returned ``before``."""
    if WEAK:
        fence()
    after = change[0]
    return before == after and before % 2 == 0


def give_up(words: Words, reach: memoryview[int], word: int) -> None:
    """Store ``word`` (``MOVED`` or ``CLOSED``) in every entry, so that every reader meets it."""
    # First, since a look-up that loads a reach of 0 looks at no word: it would call a session
    # missing that the table no longer knows of. One that is too high only costs looks.
    reach[:] = bytes([GIVEN_UP_REACH]) * len(reach)
    for entry in range(len(words)):
        words[entry] = word
