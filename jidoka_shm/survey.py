"""A survey of a table that its writer left: what is sound, and which slots and reaches that needs.

It looks at a table at rest and stores nothing; the writer that takes the table up goes by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .layout import MAX_DISTANCE, SLOT_MASK

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .session import Session
    from .table import SessionTable


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that a recovery could not keep.

    Attributes:
        entry: the index entry it was at.
        reason: what is wrong with it.
    """

    entry: int
    reason: str


class Survey(NamedTuple):
    """What a table holds.

    Attributes:
        free: the slots that no sound record occupies, ascending.
        records: of each sound record of several slots, its first slot and how many they are.
        reach: what each home needs.
        unsound: the records that cannot be kept.
        newest: the version of the newest sound record, 0 where there is none.
        last: the entry of that record.
    """

    free: NDArray[np.int64]
    records: dict[int, int]
    reach: bytearray
    unsound: list[Dropped]
    newest: int
    last: int


def survey(table: SessionTable, visit: Callable[[Session], None]) -> Survey:
    """Look at all records of a table, the newest first.

    Args:
        table: nothing writes to it.
        visit: called with each session that is sound.
    """
    index_size = table.geometry.index_size
    taken, reach = bytearray(table.geometry.slot_count), bytearray(index_size)
    records: dict[int, int] = {}
    unsound: list[Dropped] = []
    ids: set[int] = set()
    newest = last = 0
    # The newest first, so that of two records of one id the older one is dropped.
    entries, words, runs = _by_version(table)
    found = table.slots.inspect(words)
    for entry, word, run, session in zip(entries, words, runs, found, strict=True):
        if isinstance(session, str):
            unsound.append(Dropped(entry, session))
            continue
        key, slot = session.session_id.int, word & SLOT_MASK
        home = key % index_size
        if slot + run > len(taken):
            unsound.append(Dropped(entry, f"its {run} slots end beyond the table"))
        elif any(taken[slot : slot + run]) or key in ids:
            unsound.append(Dropped(entry, f"it doubles session {session.session_id}"))
        elif not 0 <= entry - home <= MAX_DISTANCE:
            unsound.append(Dropped(entry, f"it lies too far from its home {home}"))
        else:
            taken[slot : slot + run] = b"\1" * run
            if run > 1:
                records[slot] = run
            ids.add(key)
            reach[home] = max(reach[home], entry - home + 1)
            if session.version > newest:
                newest, last = session.version, entry
            visit(session)
    free = np.flatnonzero(np.frombuffer(taken, np.uint8) == 0)
    return Survey(free, records, reach, unsound, newest, last)


def _by_version(table: SessionTable) -> tuple[list[int], list[int], list[int]]:
    """Return the entries that are not empty, the newest word first, the words, and their runs."""
    index = table.index_copy()
    entries = np.flatnonzero(index)
    entries = entries[np.argsort(~index[entries], kind="stable")]
    words = index[entries]
    return entries.tolist(), words.tolist(), table.runs_of(words)[1].tolist()
