"""Growth: where each session of one table lies in the next, by numpy over all of them at once.

A plan looks at a table that its one writer has at rest, and stores nothing. Sessions that are
placed in the order of their homes need no search: each lies at its home or right after the one
before it, whichever is farther.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import CorruptRegistry, RegistryFull
from .layout import (
    HALVES,
    MAX_DISTANCE,
    SLOT_BITS,
    SLOT_HEADER_SIZE,
    SLOT_MASK,
    VERSION_MASK,
    Geometry,
)

if TYPE_CHECKING:
    from uuid import UUID

    from numpy.typing import NDArray

    from .records import RecordWriter
    from .table import SessionTable


class Plan(NamedTuple):
    """All sessions of a table in the order of their homes in another one, in columns.

    Attributes:
        slots: the first slot of each record where it is.
        sizes: the bytes of each record.
        starts: the first slot of each where it goes.
        runs: how many slots it takes there.
        is_long: whether it takes more than one slot of either table.
        entries: where each session will be.
        words: the index word of each.
        reach: what each home will need.
    """

    slots: NDArray[np.int64]
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]
    runs: NDArray[np.int64]
    is_long: NDArray[np.bool_]
    entries: NDArray[np.int64]
    words: NDArray[np.uint64]
    reach: bytes


def plan(
    table: SessionTable, geometry: Geometry, newcomer: UUID | None = None, *, room: int = 0
) -> Plan:
    """Return how the sessions of a table lie in one of another geometry.

    Args:
        table: where they are; nothing writes to it.
        geometry: of the table that they go to.
        newcomer: an id that must find an entry there, too.
        room: the slots of a record that must find room there, too.

    Raises:
        RegistryFull: where there are more of them than fit, or ids that are not parted there.
        CorruptRegistry: where a word names no record of its version. A recovery drops it.
        TableGone: where a word is one of a table that was given up.
    """
    _, words = table.occupied()
    headers = table.slots.copy_headers(words)
    slots = (words & np.uint64(SLOT_MASK)).astype(np.int64)
    lengths = headers["payload_length"].astype(np.int64)
    before = table.geometry.run_length(lengths, headers["status"])
    _check_soundness(table, words, slots, headers, before)
    homes = homes_of(headers["session_id"].tobytes(), geometry.index_size)
    order = np.argsort(homes, kind="stable")
    homes = homes[order]
    entries, reach = _place(homes, geometry, newcomer)
    runs = geometry.run_length(lengths, headers["status"])[order]
    _check_room(runs, geometry, room)
    starts = np.cumsum(runs) - runs
    return Plan(
        slots=slots[order],
        sizes=lengths[order] + SLOT_HEADER_SIZE,
        starts=starts,
        runs=runs,
        is_long=(before[order] > 1) | (runs > 1),
        entries=entries,
        words=words[order] & ~np.uint64(SLOT_MASK) | starts.astype(np.uint64),
        reach=reach,
    )


def _place(
    homes: NDArray[np.int64], geometry: Geometry, newcomer: UUID | None
) -> tuple[NDArray[np.int64], bytes]:
    """Return the entry of each session, in the order of their homes, and what each home needs."""
    numbers = np.arange(len(homes))
    # Each is after the one before it, so less their numbers the entries never fall.
    entries = np.maximum.accumulate(homes - numbers) + numbers
    distances = entries - homes
    home = -1 if newcomer is None else newcomer.int % geometry.index_size
    taken = np.searchsorted(entries, [home, home + MAX_DISTANCE + 1])
    if (distances > MAX_DISTANCE).any() or (home >= 0 and taken[1] - taken[0] > MAX_DISTANCE):
        raise RegistryFull(1, 0, "entries near the id's home")
    reach = np.zeros(geometry.index_size, np.uint8)
    # The last of a home is the farthest.
    last = np.flatnonzero(np.diff(homes, append=-1))
    reach[homes[last]] = distances[last] + 1
    return entries, reach.tobytes()


def homes_of(ids: bytes, index_size: int) -> NDArray[np.int64]:
    """Return the home entries of many ids.

    Args:
        ids: their bytes, 16 each.
        index_size: how many home entries there are, less than 2**31.
    """
    # As long as the size is, no product below goes beyond 64 bits.
    rests = np.frombuffer(ids, HALVES).astype(np.uint64).reshape(-1, 2) % index_size
    homes = (rests[:, 0] * ((1 << 64) % index_size) + rests[:, 1]) % index_size
    return homes.astype(np.int64)


def _check_soundness(
    table: SessionTable,
    words: NDArray[np.uint64],
    slots: NDArray[np.int64],
    headers: NDArray[Any],
    runs: NDArray[np.int64],
) -> None:
    """Raise ``CorruptRegistry`` where a record cannot be told from others, or be copied whole."""
    sound = table.slots.has(words)
    sound &= headers["version"] & VERSION_MASK == words >> np.uint64(SLOT_BITS)
    sound &= headers["payload_length"] <= table.slots.limit
    order = np.argsort(slots)
    # Each run ends before the next one begins, and the last one in the table.
    nexts = np.append(slots[order][1:], table.geometry.slot_count)
    if not sound.all() or (slots[order] + runs[order] > nexts[: len(slots)]).any():
        reason = "an index word names no record of its version, or one that another word names"
        raise CorruptRegistry(reason)


def _check_room(runs: NDArray[np.int64], geometry: Geometry, room: int) -> None:
    """Raise ``RegistryFull`` where the sessions do not fit, with what must stay free."""
    needed = int(runs.sum()) + slots_for(room, int(runs.max(initial=1)))
    if needed > geometry.capacity:
        raise RegistryFull(needed, geometry.capacity, "slots")


def capacity_for(table: RecordWriter, room: int, limit: int) -> int | None:
    """Return the capacity of the table to go on in, so that a record finds room.

    It may be the same, where what is free is enough and apart.

    Args:
        table: where it finds none.
        room: the slots that it takes.
        limit: the largest capacity that may be gone on to.

    Returns:
        None where no such table has room.
    """
    now = table.geometry.capacity
    used = table.geometry.slot_count - table.free_slots
    needed = used + slots_for(room, table.space.longest)
    # With a quarter of it free, another one need not follow soon.
    if room > 1 and needed <= now - now // 4:
        return now
    capacity = 2 * now
    while capacity < needed:
        capacity *= 2
    capacity = min(capacity, max(now, limit))
    return None if needed > capacity or (room == 1 and capacity == now) else capacity


def slots_for(room: int, longest: int) -> int:
    """Return how many free slots a table must have, beside the spare ones.

    Args:
        room: the slots of a new record, or 0.
        longest: those of the longest there is.
    """
    # The reserve, where any record takes more than one.
    longest = max(room, longest)
    return room + (longest if longest > 1 else 0)
