"""Growth: where each session of one table lies in the next, by numpy over all of them at once.

A plan looks at a table that its one writer has at rest, and stores nothing. Sessions that are
placed in the order of their homes need no search: each lies at its home or right after the one
before it, whichever is farther.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from .errors import CorruptRegistry, RecordTooLarge, RegistryFull
from .layout import (
    HALVES,
    MAX_DISTANCE,
    ROOM_TO_END,
    SLOT_BITS,
    SLOT_HEADER_SIZE,
    SLOT_MASK,
    STATUS_CODES,
    VERSION_MASK,
    Geometry,
)

if TYPE_CHECKING:
    from uuid import UUID

    from numpy.typing import NDArray

    from .table import SessionTable

_TERMINATED: Final = STATUS_CODES.index("terminated")


class Plan(NamedTuple):
    """All sessions of a table in the order of their homes in another one, in columns.

    Attributes:
        slots: where each record is; it will be in the slot of its number here.
        entries: where each session will be.
        words: the index word of each.
        reach: what each home will need.
    """

    slots: NDArray[np.int64]
    entries: NDArray[np.int64]
    words: NDArray[np.uint64]
    reach: bytes


def plan(table: SessionTable, geometry: Geometry, newcomer: UUID | None = None) -> Plan:
    """Return how the sessions of a table lie in one of another geometry.

    Args:
        table: where they are; nothing writes to it.
        geometry: of the table that they go to.
        newcomer: an id that must find an entry there, too.

    Raises:
        RegistryFull: where there are more of them than fit, or ids that are not parted there.
        RecordTooLarge: where the record of one does not fit a slot.
        CorruptRegistry: where a word names no record of its version. A recovery drops it.
        TableGone: where a word is one of a table that was given up.
    """
    _, words = table.occupied()
    headers = table.slots.copy_headers(words)
    slots = (words & np.uint64(SLOT_MASK)).astype(np.int64)
    _check_soundness(table, words, slots, headers)
    _check_room(headers, geometry)
    homes = homes_of(headers["session_id"].tobytes(), geometry.index_size)
    order = np.argsort(homes, kind="stable")
    homes = homes[order]
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
    words = words[order] & ~np.uint64(SLOT_MASK) | numbers.astype(np.uint64)
    return Plan(slots[order], entries, words, reach.tobytes())


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
) -> None:
    """Raise ``CorruptRegistry`` where a record cannot be told from others, or be copied whole."""
    sound = table.slots.has(words)
    sound &= headers["version"] & VERSION_MASK == words >> np.uint64(SLOT_BITS)
    sound &= headers["payload_length"] <= table.geometry.payload_limit
    if not sound.all() or len(np.unique(slots)) < len(slots):
        reason = "an index word names no record of its version, or one that another word names"
        raise CorruptRegistry(reason)


def _check_room(headers: NDArray[Any], geometry: Geometry) -> None:
    """Raise where the sessions do not fit: all of them, or one of them its slot."""
    if len(headers) > geometry.capacity:
        raise RegistryFull(len(headers), geometry.capacity, "slots")
    sizes = headers["payload_length"].astype(np.int64) + SLOT_HEADER_SIZE
    # Only the end of a session may take what is kept for it.
    limits = geometry.slot_size - ROOM_TO_END * (headers["status"] != _TERMINATED)
    over = sizes - limits
    if len(over) and over.max() > 0:
        worst = int(over.argmax())
        raise RecordTooLarge(int(sizes[worst]), int(limits[worst]))
