"""Scans: all sessions of a table, as an atomic snapshot where no commit came between.

A scan copies the words that are there, then what they name, where that is not known from a scan
before. If the change word did not move meanwhile, that is one state of the registry. If it did, a
second look at the words tells which entries changed, and only these are read again, each by its
own word: then every session is whole and current, and each that lived throughout is there once.
Nobody waits for a quiet moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

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
        entries: the index entry of each, the least first.
        words: its word there.
        sessions: the sessions, by entry.
    """

    change: int | None
    entries: NDArray[np.intp]
    words: NDArray[np.uint64]
    sessions: dict[int, Session]

    def is_unknown(self, entries: NDArray[np.intp], words: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return for each of some entries whether the session of its word is not among these."""
        if np.array_equal(entries, self.entries):
            differs: NDArray[np.bool_] = words != self.words
            return differs
        # One more behind the last, EMPTY, for entries that are greater than all of these.
        at = np.searchsorted(self.entries, entries)
        known, word = np.append(self.entries, -1)[at], np.append(self.words, EMPTY)[at]
        unknown: NDArray[np.bool_] = (known != entries) | (word != words)
        return unknown


#: What is known of a table before its first scan.
NO_SESSIONS: Final = Sessions(None, np.empty(0, np.intp), np.empty(0, np.uint64), {})


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
    entries, words = table.occupied()
    unknown = known.is_unknown(entries, words)
    new, named = entries.compress(unknown), words.compress(unknown)
    copied = table.copy_many(named)
    atomic = seqlock.end_scan(table.change, before)
    placed = dict(zip(new.tolist(), named.tolist(), strict=True))
    copies = dict(zip(placed, copied, strict=True))
    doubtful = [at for at, copy in copies.items() if copy is DAMAGED]
    if not atomic:
        doubtful += _changed(table, entries, words).tolist()
    for at in doubtful:
        copies.pop(at, None)
        placed[at], copy = table.read(at, table.copy_whole)
        if copy is not None:
            copies[at] = copy
    made = table.make_sessions(placed, copies)
    sessions = known.sessions.copy()
    for at in [*_missing(known.entries, entries), *(placed.keys() - copies.keys())]:
        sessions.pop(at, None)
    sessions.update(zip(copies, made, strict=True))
    is_snapshot = atomic and not doubtful
    doubles = [] if is_snapshot and not table.verify else _forget_doubles(sessions)
    if doubtful or doubles:
        read = {at: placed[at] for at in doubtful}
        entries, words = _with(entries, words, read, without=doubles)
    return Sessions(before if is_snapshot else None, entries, words, sessions)


def _missing(before: NDArray[np.intp], now: NDArray[np.intp]) -> list[int]:
    """Return which of some entries are not among others; both the least first."""
    if np.array_equal(before, now):
        return []
    missing: list[int] = before[np.append(now, -1)[np.searchsorted(now, before)] != before].tolist()
    return missing


def _with(
    entries: NDArray[np.intp],
    words: NDArray[np.uint64],
    read: dict[int, int],
    *,
    without: list[int],
) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
    """Return entries and words with those that were read, and less those that name no session."""
    placed = dict(zip(entries.tolist(), words.tolist(), strict=True)) | read
    for at in without:
        del placed[at]
    there = sorted(at for at, word in placed.items() if word != EMPTY)
    return np.array(there, np.intp), np.array([placed[at] for at in there], np.uint64)


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
    later, later_words = table.occupied()
    new = Sessions(None, entries, words, {}).is_unknown(later, later_words)
    return np.append(later[new], np.array(_missing(entries, later), np.intp))


def _forget_doubles(sessions: dict[int, Session]) -> list[int]:
    """Take out of some sessions those whose id is there twice, but for the newest.

    Two entries may have held the one id, each in its time: the later version is live. Damage may
    have put one word into two entries as well, of which no crc tells.

    Returns:
        Their entries.
    """
    # By the number, since a UUID computes its hash anew each time, in Python.
    if len({one.session_id.int for one in sessions.values()}) == len(sessions):
        return []
    newest: dict[int, int] = {}
    for at in sorted(sessions, key=lambda at: sessions[at].version):
        newest[sessions[at].session_id.int] = at
    older = sorted(sessions.keys() - set(newest.values()))
    for at in older:
        del sessions[at]
    return older


def _newest_records(found: Records) -> Records:
    """Return the records less those that were removed and created again during the scan."""
    order = np.argsort(found.rows["version"], kind="stable")
    ids = found.rows["session_id"][order].tolist()
    last = order[list({session_id: at for at, session_id in enumerate(ids)}.values())]
    return Records(None, found.entries[last], found.words[last], found.rows[last])
