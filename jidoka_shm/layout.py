"""The binary format: names, magics, fields, offsets and the geometry of a table. No behaviour.

docs/format.md describes this file for other implementations, and a test compares the two. All
numbers are little-endian; *word* means an aligned unsigned integer of 8 bytes.

Two kinds of shared-memory object make a registry::

    /jidoka_shm.NAME               the control, 4096 bytes
    /jidoka_shm.NAME.GENERATION    one table: header, index, reach, slots

Any change of what stands here raises ``FORMAT_VERSION`` and gets an entry under *Memory format*
in CHANGELOG.md.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidName, shown

if TYPE_CHECKING:
    from mmap import mmap

    #: What a registry may live in.
    Memory = mmap | bytearray

#: A number, or a column of numbers.
N = TypeVar("N", int, NDArray[Any])

FORMAT_VERSION: Final = 3

#: ``b"JIDOKA-C"`` and ``b"JIDOKA-T"``, read as a word; stored last, so a half-made object has none.
CONTROL_MAGIC: Final = int.from_bytes(b"JIDOKA-C", "little")
TABLE_MAGIC: Final = int.from_bytes(b"JIDOKA-T", "little")

# ---------------------------------------------------------------------------- names

PREFIX: Final = "jidoka_shm."
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def check_name(name: object) -> str:
    """Return ``name`` if a registry can be called so.

    Raises:
        InvalidName: otherwise. A dot is refused, so no registry's control is another's table.
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise InvalidName(shown(name))
    # A plain one: the text of an enum's member in a name of an object holds a dot.
    return str.__str__(name)


def control_name(name: str) -> str:
    """Return the name of a registry's control object, as shm_open takes it."""
    return f"/{PREFIX}{name}"


def table_name(name: str, generation: int) -> str:
    """Return the name of one generation's table object, as shm_open takes it."""
    return f"/{PREFIX}{name}.{generation}"


# ---------------------------------------------------------------------------- control

CONTROL_SIZE: Final = 4096

#: Offset in bytes of each field of the control. All are words but the two that are named here.
CONTROL_FIELDS: Final[dict[str, int]] = {
    "magic": 0,
    "format": 8,
    "instance": 16,  # 16 bytes, a UUID in network byte order
    "generation": 32,
    # The change word has a cache line of its own: each commit stores to it twice.
    "change": 64,
    "writer_pid": 128,
    "writer_start": 136,
    "writer_namespace": 144,
    "created": 192,
    "updated": 200,
    "removed": 208,
    "takeovers": 216,
    "dropped": 224,
    "socket_path": 256,  # SOCKET_PATH_SIZE bytes, UTF-8, the rest zero
}
SOCKET_PATH_SIZE: Final = 128

# ---------------------------------------------------------------------------- index words

EMPTY: Final = 0
MOVED: Final = 1
CLOSED: Final = 2

SLOT_BITS: Final = 24
SLOT_MASK: Final = (1 << SLOT_BITS) - 1
VERSION_MASK: Final = (1 << 40) - 1

#: Versions left out where damage to the change word hides how many were used: five days of 10,000
#: commits a second, a 256th of all there are.
LEAP: Final = 1 << 32


def index_word(version: int, slot: int) -> int:
    """Return the word that makes ``slot`` the record of ``version``.

    Versions start at 1, so such a word is above 2**24 and never one of the three others.
    """
    return (version & VERSION_MASK) << SLOT_BITS | slot


# ---------------------------------------------------------------------------- table header

TABLE_HEADER: Final = struct.Struct("<QII16sQIII4xQ")
TABLE_HEADER_SIZE: Final = TABLE_HEADER.size

#: Offset in bytes and struct code of each field of the table header.
TABLE_FIELDS: Final[dict[str, tuple[int, str]]] = {
    "magic": (0, "Q"),
    "format": (8, "I"),
    "crc": (12, "I"),
    "instance": (16, "16s"),
    "generation": (32, "Q"),
    "index_size": (40, "I"),
    "slot_count": (44, "I"),
    "slot_size": (48, "I"),
    "base_version": (56, "Q"),
}

# ---------------------------------------------------------------------------- slots

SLOT_HEADER: Final = struct.Struct("<16sQqqIIBBHIII")
SLOT_HEADER_SIZE: Final = SLOT_HEADER.size
#: Bytes of a slot's header that its own crc32 covers: all before it.
SLOT_CRC_OFFSET: Final = 60

#: The part of a slot's header that a look-up wants: id, version, created_at, updated_at, pid,
#: payload_length, status.
SLOT_HEAD: Final = struct.Struct("<16sQqqIIB")

#: All fields before the header's own crc, to be packed.
SLOT_BODY: Final = struct.Struct(SLOT_HEADER.format[:-1])

#: What a copy that is verified needs: as ``SLOT_HEAD``, and then the payload's crc.
SLOT_CHECKED: Final = struct.Struct("<16sQqqIIB3xI8x")

#: The same of many headers that stand one after the other.
SLOT_HEADS: Final = struct.Struct(f"{SLOT_HEAD.format}{SLOT_HEADER_SIZE - SLOT_HEAD.size}x")

#: Of the same header, what a look-up of a status or a pid needs: id, owner pid, status code.
SLOT_BRIEF: Final = struct.Struct("<16s24xI4xB")

#: The same header as a numpy dtype: the columns of ``snapshot()``.
SLOT_DTYPE: Final = np.dtype(
    {
        "names": [
            "session_id",
            "version",
            "created_at",
            "updated_at",
            "pid",
            "payload_length",
            "status",
            "flags",
            "payload_crc",
            "header_crc",
        ],
        "formats": ["V16", "<u8", "<i8", "<i8", "<u4", "<u4", "u1", "u1", "<u4", "<u4"],
        "offsets": [0, 16, 24, 32, 40, 44, 48, 49, 52, 60],
        "itemsize": SLOT_HEADER_SIZE,
    }
)

#: Of an id's 16 bytes, the two halves as numpy takes them for numbers.
HALVES: Final = np.dtype(">u8")

#: A status as the slot header writes it. Position is code; 0 is never written.
STATUS_CODES: Final = ("", "initializing", "active", "idle", "terminating", "terminated")
TERMINATED_CODE: Final = STATUS_CODES.index("terminated")

# ---------------------------------------------------------------------------- geometry

#: The farthest that a session may lie from its home entry: a reach, which counts the entries from
#: the home to its farthest session, both included, is one byte.
MAX_DISTANCE: Final = 254

#: What the reach of each home becomes when its table is given up: anything but 0, which would be
#: a miss without a look at the words that say so.
GIVEN_UP_REACH: Final = 255

#: Slots beyond the capacity. One is what an update in a full table needs (a record is never
#: overwritten in place); with the others a slot that was just freed rests for as many commits
#: as there are, so that a reader still copying it seldom has to retry.
SPARE_SLOTS: Final = 16

#: Bytes of a live record's slots that only the end of its session may take: for its deadline, the
#: word "expired" and what msgpack needs beside them. So an end needs no more slots.
ROOM_TO_END: Final = 32

MAX_CAPACITY: Final = (1 << SLOT_BITS) - SPARE_SLOTS
MIN_SLOT_SIZE: Final = 128
MAX_SLOT_SIZE: Final = 1 << 24

#: Bytes of the longest record, header included: what a reader believes of a length in memory.
MAX_RECORD_SIZE: Final = 1 << 24
ALIGNMENT: Final = 64


def check_capacity(name: str, capacity: int) -> int:
    """Return ``capacity`` where a table can have it; ``ValueError`` where not."""
    if not 1 <= capacity <= MAX_CAPACITY:
        msg = f"{name} is {shown(capacity)}: it must be 1 to {MAX_CAPACITY} slots"
        raise ValueError(msg)
    return capacity


def check_record_size(name: str, size: int) -> int:
    """Return ``size`` where the longest record can be of it; ``ValueError`` where not."""
    if not MIN_SLOT_SIZE <= size <= MAX_RECORD_SIZE:
        msg = f"{name} is {shown(size)}: it must be {MIN_SLOT_SIZE} to {MAX_RECORD_SIZE} bytes"
        raise ValueError(msg)
    return size


def _is_prime(number: int) -> bool:
    """Return whether ``number`` is prime, by trial division (at most 8,500 steps here)."""
    return number > 1 and all(number % d for d in range(2, int(number**0.5) + 1))


def _near_power_of_two(number: int) -> bool:
    """Return whether ``number`` is within 5% of a power of two."""
    below = 1 << (number.bit_length() - 1)
    return any(abs(number - power) * 20 <= power for power in (below, 2 * below))


def index_size_for(capacity: int) -> int:
    """Return how many home entries a table of ``capacity`` slots has.

    The first prime at or above 4.3 times the capacity (a load of 23%) that is farther than 5%
    from a power of two. A prime spreads ids that share low bits; close to a power of two,
    version-1 and version-6 ids, whose time stands in their high bits, fall on few homes.
    """
    size = -(-43 * capacity // 10)
    while _near_power_of_two(size) or not _is_prime(size):
        size += 1
    return size


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The sizes of one table, in entries, slots and bytes, and where its parts begin."""

    index_size: int
    slot_count: int
    slot_size: int

    @classmethod
    def for_capacity(cls, capacity: int, slot_size: int) -> Geometry:
        """Return the geometry of a table of ``capacity`` slots and the spare ones.

        Args:
            capacity: slots, 1 to 2**24 less the spare ones.
            slot_size: bytes a slot, header included; a multiple of 64.

        Raises:
            ValueError: where either is outside its limits.
        """
        check_capacity("capacity", capacity)
        if not MIN_SLOT_SIZE <= slot_size <= MAX_SLOT_SIZE or slot_size % ALIGNMENT:
            msg = (
                f"slot_size is {shown(slot_size)}: it must be a multiple of {ALIGNMENT} from "
                f"{MIN_SLOT_SIZE} to {MAX_SLOT_SIZE} bytes"
            )
            raise ValueError(msg)
        return cls(
            index_size=index_size_for(capacity),
            slot_count=capacity + SPARE_SLOTS,
            slot_size=slot_size,
        )

    @property
    def capacity(self) -> int:
        """Slots, the spare ones left out: how many sessions of one slot each fit."""
        return self.slot_count - SPARE_SLOTS

    def run_length(self, payload_length: N, status_code: N) -> N:
        """Return how many adjacent slots a record takes, or each of many records.

        Args:
            payload_length: bytes of its payload, or a column of them, of 64 bits.
            status_code: its status's code, or a column of them.
        """
        size = SLOT_HEADER_SIZE + payload_length + ROOM_TO_END * (status_code != TERMINATED_CODE)
        # Upside down, since what is divided away must be rounded up.
        run: N = -(-size // self.slot_size)
        return run

    @property
    def entries(self) -> int:
        """Index entries: the homes, and room beyond the last one, so that nothing wraps.

        Any reach, even 255 of the last home, leads to an entry within.
        """
        return self.index_size + MAX_DISTANCE

    @property
    def index_offset(self) -> int:
        """Where the index begins, in bytes."""
        return TABLE_HEADER_SIZE

    @property
    def reach_offset(self) -> int:
        """Where the reach bytes begin."""
        return self.index_offset + 8 * self.entries

    @property
    def slots_offset(self) -> int:
        """Where slot 0 begins."""
        return -(-(self.reach_offset + self.index_size) // ALIGNMENT) * ALIGNMENT

    @property
    def size(self) -> int:
        """Bytes of the whole table object."""
        return self.slots_offset + self.slot_count * self.slot_size

    def is_sane(self) -> bool:
        """Return whether a table can have these sizes; bytes read from memory may say anything."""
        return (
            self.index_size > 0
            and SPARE_SLOTS < self.slot_count <= 1 << SLOT_BITS
            and MIN_SLOT_SIZE <= self.slot_size <= MAX_SLOT_SIZE
            and self.slot_size % ALIGNMENT == 0
        )
