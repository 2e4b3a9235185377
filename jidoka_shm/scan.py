"""Scans: all sessions of a table, as an atomic snapshot where no commit came between.

A scan copies the words that are there, then what they name, where that is not known from a scan
before. If the change word did not move meanwhile, that is one state of the registry. If it did, a
second look at the words tells which entries changed, and only these are read again, each by its
own word: then every session is whole and current, and each that lived throughout is there once.
Nobody waits for a quiet moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import seqlock
from .layout import EMPTY, SLOT_DTYPE
from .slots import DAMAGED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .session import Session
    from .table import SessionTable


class Sessions(NamedTuple):
    """The sessions of a table, as one scan found them.

    Attributes:
        change: the change word that they are an atomic snapshot of, else None.
        words: for each index entry the word whose session is known, else ``EMPTY``.
        sessions: these sessions, by entry.
    """

    change: int | None
    words: NDArray[np.uint64]
    sessions: dict[int, Session]


def no_sessions(table: SessionTable) -> Sessions:
    """Return what is known of a table before its first scan."""
    return Sessions(None, np.full(table.geometry.entries, EMPTY, np.uint64), {})


def scan_sessions(table: SessionTable, known: Sessions) -> Sessions:
    """Return all sessions of a table.

    Args:
        table: where they are.
        known: an earlier scan of the same table, which is left as it is. A word never stands for
            two versions, so what is still under the word it had then is not read again.

    Raises:
        TableGone: where the table is no longer the registry's; start over with the next.
        CorruptRegistry: where a slot cannot be.
    """
    before = seqlock.begin_scan(table.change)
    entries = table.differing(known.words)
    words = table.words_of(entries)
    taken = words != EMPTY
    copied = table.copy_many(words[taken])
    atomic = seqlock.end_scan(table.change, before)
    placed = dict(zip(entries.tolist(), words.tolist(), strict=True))
    copies = dict(zip(entries[taken].tolist(), copied, strict=True))
    index = known.words.copy()
    index[entries] = words
    doubtful = [at for at, copy in copies.items() if copy is DAMAGED]
    if not atomic:
        doubtful += table.differing(index).tolist()
    for at in doubtful:
        copies.pop(at, None)
        placed[at], copy = table.read(at, table.copy_whole)
        index[at] = placed[at]
        if copy is not None:
            copies[at] = copy
    made = table.make_sessions(placed, copies)
    sessions = known.sessions.copy()
    for at in placed.keys() - copies.keys():
        sessions.pop(at, None)
    sessions.update(zip(copies, made, strict=True))
    is_snapshot = atomic and not doubtful
    # One word at two entries, which is damage that no crc tells, is met by who verifies.
    if not is_snapshot or table.verify:
        _keep_newest(index, sessions)
    return Sessions(before if is_snapshot else None, index, sessions)


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


def _keep_newest(index: NDArray[np.uint64], sessions: dict[int, Session]) -> None:
    """Forget the sessions that were removed and created again during the scan."""
    places: dict[int, int] = {}
    for at, session in list(sessions.items()):
        # By the number, since a UUID computes its hash anew each time, in Python.
        other = places.setdefault(session.session_id.int, at)
        if other != at:
            # Two entries may have held the one id, each in its time: the later version is live.
            older, newer = sorted((at, other), key=lambda each: sessions[each].version)
            places[session.session_id.int] = newer
            del sessions[older]
            index[older] = EMPTY


def _newest_records(found: Records) -> Records:
    """Return the records less those that were removed and created again during the scan."""
    order = np.argsort(found.rows["version"], kind="stable")
    ids = found.rows["session_id"][order].tolist()
    last = order[list({session_id: at for at, session_id in enumerate(ids)}.values())]
    return Records(None, found.entries[last], found.words[last], found.rows[last])
