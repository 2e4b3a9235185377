"""Scans: all sessions of a table, as an atomic snapshot where no commit came between.

A scan copies the words that are there, then what they name. If the change word did not move
meanwhile, that is one state of the registry. If it did, a second copy of the words tells which
entries changed, and only these are read again, each by its own word: then every session is whole
and current, and each that lived throughout is there once. Nobody waits for a quiet moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import seqlock
from .layout import SLOT_DTYPE
from .slots import DAMAGED

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from numpy.typing import NDArray

    from .session import Session
    from .table import SessionTable


def scan_sessions(
    table: SessionTable, known: Mapping[int, Session]
) -> tuple[int | None, dict[int, Session]]:
    """Return all sessions of a table, each under its index word.

    Args:
        table: where they are.
        known: sessions under their words, from an earlier scan of the same table. A word never
            stands for two versions, so these are not read again.

    Returns:
        The change word that they are an atomic snapshot of, else None.

    Raises:
        TableGone: where the table is no longer the registry's; start over with the next.
        CorruptRegistry: where a slot cannot be.
    """
    before = seqlock.begin_scan(table.change)
    entries, words = table.occupied()
    placed = dict(zip(entries.tolist(), words.tolist(), strict=True))
    new = {at: word for at, word in placed.items() if word not in known}
    copied = table.copy_many(np.fromiter(new.values(), np.uint64, len(new)))
    copies = dict(zip(new, copied, strict=True))
    atomic = seqlock.end_scan(table.change, before)
    doubtful = [at for at, copy in copies.items() if copy is DAMAGED]
    if not atomic:
        doubtful += _changed(table, entries, words).tolist()
    for at in doubtful:
        placed.pop(at, None)
        copies.pop(at, None)
        word, copy = table.read(at, table.copy_whole)
        if copy is not None:
            placed[at], copies[at] = word, copy
    sessions = {word: known[word] for at, word in placed.items() if at not in copies}
    made = table.make_sessions(placed, copies)
    sessions.update(zip([placed[at] for at in copies], made, strict=True))
    if atomic and not doubtful:
        return before, sessions
    return None, _newest(sessions)


class Records(NamedTuple):
    """The slot headers of all sessions of a table, and where each is.

    Attributes:
        change: the change word that they are an atomic snapshot of, else None.
        entries: the index entry of each.
        words: its word there.
        rows: its header.
    """

    change: int | None
    entries: NDArray[np.intp]
    words: NDArray[np.uint64]
    rows: NDArray[Any]


def scan_headers(table: SessionTable) -> tuple[int | None, NDArray[Any]]:
    """Return the slot headers of all sessions, a row each; otherwise as ``scan_sessions``."""
    found = scan_records(table)
    return found.change, found.rows


def scan_records(table: SessionTable) -> Records:
    """Return the slot headers of all sessions and where they are; as ``scan_headers``."""
    before = seqlock.begin_scan(table.change)
    entries, words = table.occupied()
    rows = table.slots.copy_headers(words)
    atomic = seqlock.end_scan(table.change, before)
    doubtful = entries if table.verify else entries[~table.slots.has(words)]
    if atomic and not len(doubtful):
        return Records(before, entries, words, rows)
    if not atomic:
        doubtful = np.union1d(doubtful, _changed(table, entries, words))
    again = [(at, *table.read(at, table.copy_row)) for at in doubtful.tolist()]
    there = [(at, word, copy[1]) for at, word, copy in again if copy is not None]
    kept = ~np.isin(entries, doubtful)
    fresh = np.frombuffer(b"".join([raw for _, _, raw in there]), SLOT_DTYPE)
    found = Records(
        before,
        np.append(entries[kept], np.array([at for at, _, _ in there], np.intp)),
        np.append(words[kept], np.array([word for _, word, _ in there], np.uint64)),
        np.concatenate([rows[kept], fresh], dtype=SLOT_DTYPE),
    )
    if atomic and seqlock.end_scan(table.change, before):
        return found
    return _newest_records(found)


def count_sessions(table: SessionTable) -> int:
    """Return how many sessions a table has, as of one moment where no commit came between."""
    before = seqlock.begin_scan(table.change)
    count = len(table.occupied()[0])
    # One that was removed and created again meanwhile may have been at both its entries.
    return count if seqlock.end_scan(table.change, before) else len(scan_headers(table)[1])


def _changed(
    table: SessionTable, entries: NDArray[np.intp], words: NDArray[np.uint64]
) -> NDArray[np.intp]:
    """Return the entries on which a second copy of the index does not agree."""
    first, second = np.zeros((2, table.geometry.entries), np.uint64)
    first[entries] = words
    later, second_words = table.occupied()
    second[later] = second_words
    return np.flatnonzero(first != second)


def _newest(sessions: dict[int, Session]) -> dict[int, Session]:
    """Return the sessions less those that were removed and created again during the scan."""
    words: dict[UUID, int] = {}
    for word, session in sessions.items():
        # Two entries may have held the one id, each in its time: the later version is the live one.
        words[session.session_id] = max(word, words.get(session.session_id, 0))
    return {word: sessions[word] for word in words.values()}


def _newest_records(found: Records) -> Records:
    """Return the records less those that were removed and created again during the scan."""
    order = np.argsort(found.rows["version"], kind="stable")
    ids = found.rows["session_id"][order].tolist()
    last = order[list({session_id: at for at, session_id in enumerate(ids)}.values())]
    return Records(None, found.entries[last], found.words[last], found.rows[last])
