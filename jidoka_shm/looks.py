"""Looks at one table: which sessions may be different since the last one, and what they are now.

A word never stands for two versions of a session, so one numpy pass that compares the index words
with those of the last look finds every entry that changed; only these are read, each by its own
word. What such an entry held before is looked up by its id, since that session may be at another
entry now. A word that is torn in the pass, or that changes beside it, is met by the next look: the
change word has moved by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import seqlock
from .layout import EMPTY
from .slots import DAMAGED

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from numpy.typing import NDArray

    from .session import Session
    from .slots import Copy
    from .table import SessionTable


class Look(NamedTuple):
    """What one look found.

    Attributes:
        change: the change word before it: whatever is committed later moves that.
        found: the sessions that may be different, as they are now; None where one is gone.
        placed: the word of each entry that was read.
        ids: whose session each of these entries holds, where it holds one.
    """

    change: int
    found: dict[UUID, Session | None]
    placed: dict[int, int]
    ids: dict[int, UUID]


class TableLook:
    """Looks at a table, each from where the last one that was kept had come to."""

    def __init__(self, table: SessionTable, suspects: Iterable[UUID] = ()) -> None:
        """Take a table of which nothing is known.

        Args:
            table: where the sessions are.
            suspects: sessions to look up in any case, until a look is kept: those that were known
                of the registry's last table.
        """
        self._table = table
        self._suspects = set(suspects)
        self._words = np.zeros(table.geometry.entries, np.uint64)
        self._ids: dict[int, UUID] = {}

    def look(self) -> Look:
        """Return what may be different since the last look that was kept.

        Raises:
            TableGone: where the table is no longer the registry's.
            CorruptRegistry: where a slot cannot be.
            ReadContended: where the commits to one session leave no moment to read it.
        """
        table = self._table
        change = seqlock.begin_scan(table.change)
        placed, copies = self._read(table.differing(self._words))
        made = table.make_sessions(placed, copies)
        ids = {at: session.session_id for at, session in zip(copies, made, strict=True)}
        found: dict[UUID, Session | None] = {}
        for session in made:
            # Of two entries that held the one id, each in its time, the later version is live.
            other = found.get(session.session_id)
            if other is None or other.version < session.version:
                found[session.session_id] = session
        known = self._ids
        left = self._suspects | {known[at] for at in placed if at in known}
        for session_id in left - found.keys():
            now = table.look_up(session_id)
            found[session_id] = None if now is None else now[2]
        return Look(change, found, placed, ids)

    def _read(self, entries: NDArray[np.intp]) -> tuple[dict[int, int], dict[int, Copy]]:
        """Return the word of each entry, and what the word names where it names something."""
        table = self._table
        words = table.words_of(entries)
        placed = dict(zip(entries.tolist(), words.tolist(), strict=True))
        taken = words != EMPTY
        copied = table.copy_many(words[taken])
        copies = dict(zip(entries[taken].tolist(), copied, strict=True))
        # A slot may have been given back and written anew while it was copied.
        doubtful = entries[words != table.words_of(entries)].tolist()
        doubtful += [at for at, copy in copies.items() if copy is DAMAGED]
        for at in doubtful:
            copies.pop(at, None)
            placed[at], copy = table.read(at, table.copy_whole)
            if copy is not None:
                copies[at] = copy
        return placed, copies

    def keep(self, look: Look) -> None:
        """Let the next look be compared with this one. May be repeated."""
        words = np.fromiter(look.placed.values(), np.uint64, len(look.placed))
        for at in look.placed:
            if at in look.ids:
                self._ids[at] = look.ids[at]
            else:
                self._ids.pop(at, None)
        self._suspects.clear()
        # Last: cut short before, the same entries are read again.
        self._words[list(look.placed)] = words
