"""How the slots of a table are used, and which slot size would suit the records that it has.

All of it follows from index words and slot headers, which any reader may copy while a writer
writes. What is free is what no record takes: the spare slots and the reserve are within it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from .growth import homes_of, slots_for
from .layout import (
    ALIGNMENT,
    MAX_RECORD_SIZE,
    MAX_SLOT_SIZE,
    MIN_SLOT_SIZE,
    ROOM_TO_END,
    SLOT_HEADER_SIZE,
    SLOT_MASK,
    TERMINATED_CODE,
    Geometry,
)
from .scan import scan_records

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .scan import Records
    from .table import SessionTable

#: Scans before what a busy writer leaves is taken: records that are whole, of no one moment.
_TRIES: Final = 3

#: Bytes that ten slots need in index and reach: 43 home entries of a word and a byte.
_INDEX_OF_TEN: Final = 43 * (8 + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How the slots of a registry are used.

    Attributes:
        version: the commits that it is a snapshot after; None where a writer left no moment for
            one. Then each record counts as it was when it was read, and none counts twice.
        sessions: sessions that are visible, a record each.
        slot_size: bytes a slot.
        slots_used: slots that records take.
        slots_free: slots that no record takes. 16 of them stay free, and where any record takes
            several, as many adjacent ones as the longest does.
        free_bytes: bytes of the free slots.
        longest_free_run: the most free slots that are adjacent.
        record_bytes: bytes of all records, their headers included.
        unused_bytes: bytes behind the records in the slots that they take.
        run_lengths: how many records take 1 slot, 2, 3 to 4, 5 to 8 and so on, to the longest.
        mean_distance: entries between a session and its id's home, on average.
        most_distance: the most of these.
        best_slot_size: the slot size with which these records take the fewest bytes, as
            ``best_slot_size`` counts; None where there are none.
        bytes_saved: how many bytes fewer that is than with ``slot_size``.
    """

    version: int | None
    sessions: int
    slot_size: int
    slots_used: int
    slots_free: int
    free_bytes: int
    longest_free_run: int
    record_bytes: int
    unused_bytes: int
    run_lengths: tuple[int, ...]
    mean_distance: float
    most_distance: int
    best_slot_size: int | None
    bytes_saved: int


def measure(table: SessionTable) -> Usage:
    """Return how the slots of a table are used.

    Raises:
        TableGone: where the table is no longer the registry's.
        CorruptRegistry: where a slot cannot be.
    """
    for _ in range(_TRIES):
        before = table.change[0]
        found = scan_records(table)
        # Where it stands still and is no snapshot, a writer died in mid-commit: it will be none.
        if found.change is not None or table.change[0] == before:
            break
    return usage_of(table.geometry, found)


def usage_of(geometry: Geometry, found: Records) -> Usage:
    """Return how the slots are used of a table that has these records."""
    # Of what memory says no more is believed than can be, or damage would have no end.
    lengths = found.rows["payload_length"].astype(np.int64)
    lengths = np.minimum(lengths, MAX_RECORD_SIZE - SLOT_HEADER_SIZE)
    codes = found.rows["status"]
    runs = geometry.run_length(lengths, codes)
    starts = (found.words & np.uint64(SLOT_MASK)).astype(np.int64)
    gaps = _gaps(starts, runs, geometry.slot_count)
    homes = homes_of(found.rows["session_id"].tobytes(), geometry.index_size)
    distances = found.entries - homes
    sizes = lengths + SLOT_HEADER_SIZE
    room = sizes + ROOM_TO_END * (codes != TERMINATED_CODE)
    free, size = int(gaps.sum()), geometry.slot_size
    best = best_slot_size(room) if len(room) else None
    return Usage(
        version=None if found.change is None else found.change // 2,
        sessions=len(sizes),
        slot_size=size,
        slots_used=geometry.slot_count - free,
        slots_free=free,
        free_bytes=free * size,
        longest_free_run=int(gaps.max(initial=0)),
        record_bytes=int(sizes.sum()),
        unused_bytes=int((runs * size - sizes).sum()),
        run_lengths=_by_length(runs),
        mean_distance=float(distances.mean()) if len(distances) else 0.0,
        most_distance=int(distances.max(initial=0)),
        best_slot_size=best,
        bytes_saved=0 if best is None else bytes_with(room, size) - bytes_with(room, best),
    )


def _gaps(starts: NDArray[np.int64], runs: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the lengths of the runs of slots that no record takes."""
    order = np.argsort(starts)
    # Two records may share a slot where they were read at two moments.
    taken = np.maximum.accumulate(np.append(0, (starts + runs)[order]))
    gaps = np.append(starts[order], count) - taken
    return gaps[gaps > 0]


def _by_length(runs: NDArray[np.int64]) -> tuple[int, ...]:
    """Return how many runs have a length of 1, 2, 3 to 4, 5 to 8 and so on."""
    # 2**n has n + 1 bits, and what is one less has n: the bits of one less are the place.
    places = np.frexp((runs - 1).astype(np.float64))[1]
    return tuple(np.bincount(places).tolist()) if len(runs) else ()


def bytes_with(room: NDArray[np.int64], slot_size: int) -> int:
    """Return the bytes that records take in slots of a size: slots, index, reach, and the reserve.

    The spare slots do not count: beside many records they are nothing, and beside a few they would
    ask for slots as small as can be, whatever the records are.

    Args:
        room: bytes of each record, its header and its room to end included.
        slot_size: bytes a slot.
    """
    runs = -(-room // slot_size)
    slots = int(runs.sum()) + slots_for(0, int(runs.max(initial=0)))
    return slots * (10 * slot_size + _INDEX_OF_TEN) // 10


def best_slot_size(room: NDArray[np.int64]) -> int:
    """Return the slot size with which records take the fewest bytes, as ``bytes_with`` counts.

    Bytes alone decide. Whether a record takes one slot or several is of no account by itself, for
    its slots are adjacent, and a reader copies it at once; but each slot more brings 38.7 bytes of
    index and reach. Of two sizes that come to the same it is the larger.

    Args:
        room: bytes of each record, one at least, its header and its room to end included.
    """
    # In units of what a slot size is a multiple of: a record of so many bytes needs all of them.
    needed = -(-room // ALIGNMENT)
    longest = int(needed.max())
    first, last = MIN_SLOT_SIZE // ALIGNMENT, MAX_SLOT_SIZE // ALIGNMENT
    units = np.arange(first, min(max(longest, first), last) + 1)
    slots = _slots_with(len(needed) - np.cumsum(np.bincount(needed)), units)
    runs = -(-longest // units)
    slots += runs * (runs > 1)
    tenths = slots * (10 * ALIGNMENT * units + _INDEX_OF_TEN)
    # argmin is the first of equals, and the larger one is wanted.
    return int(units[::-1][tenths[::-1].argmin()]) * ALIGNMENT


def _slots_with(longer: NDArray[np.int64], units: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many slots records take with slots of so many units, for each of many such sizes.

    Args:
        longer: how many records are longer than 0 units, than 1, and so on to none.
        units: those of each slot size, ascending and without gaps.
    """
    # A record takes a slot for each multiple of the slot's units, 0 too, that it is longer than.
    slots = np.zeros(len(units), np.int64)
    # Of small slots all multiples at once; of large ones, which have few, all sizes at once.
    small = int(np.searchsorted(units, len(longer) ** 0.5))
    slots[:small] = [longer[::unit].sum() for unit in units[:small].tolist()]
    large, multiple = units[small:], 0
    while len(large):
        slots[small : small + len(large)] += longer[large * multiple]
        multiple += 1
        large = large[large * multiple < len(longer)]
    return slots
