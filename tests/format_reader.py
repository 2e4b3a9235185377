"""A reader of registries written from docs/format.md alone, as an example for implementers.

It shares nothing with the package: it needs the standard library's access to memory and a clock.
It verifies every copy, as the page asks of machines that may reorder loads.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uuid import UUID

FORMAT_VERSION = 3
CONTROL_MAGIC = int.from_bytes(b"JIDOKA-C", "little")
TABLE_MAGIC = int.from_bytes(b"JIDOKA-T", "little")

CONTROL_SIZE = 4096
#: Fields of the control that are words, as numbers of words.
MAGIC, FORMAT, GENERATION, CHANGE = 0, 1, 4, 8

TABLE_HEADER = struct.Struct("<Q II 16s Q III 4x Q")
SLOT_HEADER = struct.Struct("<16s Qqq II BB 2x I 4x I")
HEADER_SIZE = 64  # of either

EMPTY, MOVED, CLOSED = 0, 1, 2
SLOT_BITS, SLOT_MASK = 24, (1 << 24) - 1
VERSION_MASK = (1 << 40) - 1
MAX_DISTANCE = 254
SPARE_SLOTS = 16
MIN_SLOT_SIZE, MAX_SLOT_SIZE = 128, 1 << 24
MAX_RECORD_SIZE = 1 << 24

STATUSES = {1: "initializing", 2: "active", 3: "idle", 4: "terminating", 5: "terminated"}
PAYLOAD = (
    "metadata",
    "llm_config",
    "expires",
    "error",
    "deadline",
    "owner_start",
    "owner_namespace",
    "request",
)

#: Whether this machine keeps the order of loads, so that a bad copy is damage at once.
ORDERED = os.uname().machine == "x86_64"
DOUBTS = 1 if ORDERED else 100

ROUNDS = 1000
ATTACHMENTS = 8
PAUSE = 0.002

Record = dict[str, Any]


class NotFoundError(Exception):
    """There is no registry of this name."""


class ClosedError(Exception):
    """The registry was destroyed, and no other follows it."""


class OtherFormatError(Exception):
    """The registry has another format version."""


class DamagedError(Exception):
    """The memory holds what no writer stores."""


class ContendedError(Exception):
    """The writer was faster each time."""


class _GoneError(Exception):
    """The table was given up: attach again."""


# ---------------------------------------------------------------------------- to attach


def attach(name: str, timeout: float) -> Reader:
    """Return a reader of a registry, waiting ``timeout`` seconds for it to be there."""
    return Reader(f"/dev/shm/jidoka_shm.{name}", timeout)  # noqa: S108 - where Linux keeps them


def _map(path: str, least: int) -> tuple[mmap.mmap, os.stat_result] | None:
    """Map an object read-only; None where it is smaller than ``least``, so not made yet."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if status.st_size < least:
            return None
        size = status.st_size
        return mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ), status
    finally:
        os.close(descriptor)


class _Control:
    """The control of a registry, complete and of this format."""

    def __init__(self, path: str, memory: mmap.mmap, status: os.stat_result) -> None:
        self.path = path
        self._status = status
        # A word is loaded as a whole here; struct's "<Q" would put it together byte by byte.
        self.words = memoryview(memory)[:CONTROL_SIZE].cast("Q")
        if self.words[MAGIC] != CONTROL_MAGIC or self.words[FORMAT] != FORMAT_VERSION:
            raise OtherFormatError
        self.instance = memory[16:32]
        self.generation = self.words[GENERATION]
        self.identity = self.instance, self.generation

    def change(self) -> int:
        """Load the change word."""
        return self.words[CHANGE]

    def has_name(self) -> bool:
        """Return whether the name still leads here."""
        try:
            return os.path.samestat(os.stat(self.path), self._status)  # noqa: PTH116
        except FileNotFoundError:
            return False


def _open_control(path: str) -> _Control | None:
    """Open the control; None where it is being made."""
    mapped = _map(path, CONTROL_SIZE)
    if mapped is None:
        return None
    memory, status = mapped
    if memoryview(memory)[:8].cast("Q")[0] == 0:
        return None
    return _Control(path, memory, status)


def _open_table(control: _Control) -> _Table | None:
    """Open the table that a control names; None where it is not, or no longer, there."""
    try:
        mapped = _map(f"{control.path}.{control.generation}", HEADER_SIZE)
    except FileNotFoundError:
        return None
    if mapped is None:
        return None
    memory, _ = mapped
    magic = memoryview(memory)[:8].cast("Q")[0]
    if magic == 0:
        return None
    if magic != TABLE_MAGIC:
        raise DamagedError
    table = _Table(control, memory)
    return table if (table.instance, table.generation) == control.identity else None


# ---------------------------------------------------------------------------- a table


class _Table:
    """One table: its sizes, checked, and its parts."""

    def __init__(self, control: _Control, memory: mmap.mmap) -> None:
        raw = memory[:HEADER_SIZE]
        fields = TABLE_HEADER.unpack(raw)
        _, version, crc, self.instance, self.generation, *sizes, _ = fields
        if crc != zlib.crc32(raw[8:12] + raw[16:]) or version != FORMAT_VERSION:
            raise DamagedError
        self.index_size, self.slot_count, self.slot_size = sizes
        if not (
            self.index_size > 0
            and SPARE_SLOTS < self.slot_count <= 1 << SLOT_BITS
            and MIN_SLOT_SIZE <= self.slot_size <= MAX_SLOT_SIZE
            and self.slot_size % 64 == 0
        ):
            raise DamagedError
        self.entries = self.index_size + MAX_DISTANCE
        self.reach_offset = HEADER_SIZE + 8 * self.entries
        self.slots_offset = (self.reach_offset + self.index_size + 63) // 64 * 64
        if self.slots_offset + self.slot_count * self.slot_size != len(memory):
            raise DamagedError
        self.control = control
        self.memory = memory
        self.index = memoryview(memory)[HEADER_SIZE : self.reach_offset].cast("Q")

    def home(self, key: bytes) -> int:
        """Return the home entry of an id."""
        return int.from_bytes(key, "big") % self.index_size

    def reach(self, home: int) -> int:
        """Load how many entries there are from a home to its farthest session, both included."""
        return self.memory[self.reach_offset + home]

    def read(self, entry: int) -> tuple[bytes, bytes] | None:
        """Return a private copy of header and payload; None where the entry is empty."""
        doubts = 0
        word = self.index[entry]
        for _ in range(ROUNDS):
            if word == EMPTY:
                return None
            if word in {MOVED, CLOSED}:
                raise _GoneError
            copy = self._copy(word)
            # Before this load nothing may be concluded from the copy, not even damage.
            again = self.index[entry]
            if again != word:
                word = again
                continue
            if copy is not None and _is_sound(word, *copy):
                return copy
            doubts += 1
            if doubts == DOUBTS:
                raise DamagedError
        raise ContendedError

    def _copy(self, word: int) -> tuple[bytes, bytes] | None:
        """Return header and payload of the record that a word names; None where it names none."""
        slot = word & SLOT_MASK
        if slot >= self.slot_count or word <= SLOT_MASK:
            return None
        start = self.slots_offset + slot * self.slot_size
        header = self.memory[start : start + HEADER_SIZE]
        length = SLOT_HEADER.unpack(header)[5]
        start += HEADER_SIZE
        # The last slot is the last of the memory. A slice beyond it would be short, and no error.
        if length > MAX_RECORD_SIZE - HEADER_SIZE or start + length > len(self.memory):
            return None
        return header, self.memory[start : start + length]


def _is_sound(word: int, header: bytes, payload: bytes) -> bool:
    """Return whether a copy is what its word promises."""
    *_, payload_crc, header_crc = fields = SLOT_HEADER.unpack(header)
    return (
        fields[1] & VERSION_MASK == word >> SLOT_BITS
        and header_crc == zlib.crc32(header[:60])
        and payload_crc == zlib.crc32(payload)
    )


def decode_slot(header: bytes, payload: bytes) -> Record:
    """Return the session that a sound copy holds."""
    key, version, created, updated, pid, _, status, *_ = SLOT_HEADER.unpack(header)
    elements = Unpacker(payload).whole()
    if status not in STATUSES or not isinstance(elements, list):
        raise DamagedError
    if len(elements) < 2 or not all(isinstance(each, dict) for each in elements[:2]):
        raise DamagedError
    elements += [None] * (len(PAYLOAD) - len(elements))
    return {
        "session_id": key,
        "version": version,
        "created_at": created,
        "updated_at": updated,
        "pid": pid or None,
        "status": STATUSES[status],
        **dict(zip(PAYLOAD, elements, strict=False)),
    }


# ---------------------------------------------------------------------------- the reader


class Reader:
    """Look-ups and lists.

    Attributes:
        snapshot: the change word that the last list is an atomic snapshot of, or None.
    """

    snapshot: int | None = None

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._attach(None)

    def change(self) -> int:
        """Load the change word."""
        return self._table.control.change()

    def look_up(self, session_id: UUID) -> Record | None:
        """Return a session, or None where it is not there."""
        for _ in range(ATTACHMENTS):
            try:
                return self._look_up(session_id.bytes)
            except _GoneError:
                self._attach(self._table)
        raise ContendedError

    def list(self) -> list[Record]:
        """Return all sessions, the terminated too."""
        for _ in range(ATTACHMENTS):
            try:
                if self._table.control.has_name():
                    return self._list()
            except _GoneError:
                pass
            self._attach(self._table)
        raise ContendedError

    def _look_up(self, key: bytes) -> Record | None:
        table = self._table
        home = table.home(key)
        for entry in range(home, home + table.reach(home)):
            copy = table.read(entry)
            if copy is not None and copy[0][:16] == key:
                return decode_slot(*copy)
        return None

    def _list(self) -> list[Record]:
        table = self._table
        before = table.control.change()
        copies = [table.read(entry) for entry in range(table.entries)]
        after = table.control.change()
        # On other machines this would take a fence after the first load and before the second.
        is_snapshot = ORDERED and before == after and before % 2 == 0
        self.snapshot = before if is_snapshot else None
        newest: dict[bytes, Record] = {}
        for record in [decode_slot(*copy) for copy in copies if copy is not None]:
            # One that was removed and created again meanwhile may have been met twice.
            other = newest.get(record["session_id"])
            if other is None or other["version"] < record["version"]:
                newest[record["session_id"]] = record
        return [*newest.values()]

    def _attach(self, old: _Table | None) -> None:
        """Attach, or attach again where ``old`` was given up."""
        deadline = time.monotonic() + self._timeout
        while True:
            table = self._try_to_attach(old)
            if table is not None:
                self._table = table
                return
            if time.monotonic() >= deadline:
                raise NotFoundError
            time.sleep(PAUSE)

    def _try_to_attach(self, old: _Table | None) -> _Table | None:
        try:
            control = _open_control(self._path)
        except FileNotFoundError:
            if old is not None:
                raise ClosedError from None
            return None
        if control is None:
            return None
        if old is not None and control.identity == old.control.identity:
            raise ClosedError
        return _open_table(control)


# ---------------------------------------------------------------------------- msgpack


#: Values that are their own code.
CONSTANTS = {
    0xC0: None,
    0xC2: False,
    0xC3: True,
    **{code: code for code in range(0x80)},
    **{code: code - 0x100 for code in range(0xE0, 0x100)},
}

#: The forms of numbers.
NUMBERS = {
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}

#: Kinds whose code holds the size.
SHORT = {
    **{0x80 + size: ("map", size) for size in range(0x10)},
    **{0x90 + size: ("array", size) for size in range(0x10)},
    **{0xA0 + size: ("str", size) for size in range(0x20)},
}

#: Kinds whose size follows, and its form.
LONG = {
    0xC4: ("bin", ">B"),
    0xD9: ("str", ">B"),
    0xDA: ("str", ">H"),
    0xDB: ("str", ">I"),
    0xDC: ("array", ">H"),
    0xDD: ("array", ">I"),
    0xDE: ("map", ">H"),
    0xDF: ("map", ">I"),
}

#: The payload's array, and a map that is 32 deep.
MAX_DEPTH = 33


class Unpacker:
    """A decoder of the msgpack that occurs in payloads."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def whole(self) -> object:
        """Return the one value that the data is."""
        value = self._value(0)
        if self._at != len(self._data):
            raise DamagedError
        return value

    def _take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) < count:
            raise DamagedError
        self._at += count
        return taken

    def _number(self, form: str) -> Any:  # noqa: ANN401 - an int or a float
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _value(self, depth: int) -> object:
        code = self._take(1)[0]
        if code in CONSTANTS:
            return CONSTANTS[code]
        if code in NUMBERS:
            return self._number(NUMBERS[code])
        if code in SHORT:
            return self._sized(*SHORT[code], depth)
        if code in LONG:
            kind, form = LONG[code]
            return self._sized(kind, self._number(form), depth)
        raise DamagedError

    def _sized(self, kind: str, size: int, depth: int) -> object:
        if kind == "bin":
            return self._take(size)
        if kind == "str":
            try:
                return self._take(size).decode()
            except UnicodeDecodeError:
                raise DamagedError from None
        if depth == MAX_DEPTH:
            raise DamagedError
        if kind == "array":
            return [self._value(depth + 1) for _ in range(size)]
        return {self._key(): self._value(depth + 1) for _ in range(size)}

    def _key(self) -> str:
        key = self._value(MAX_DEPTH)
        if not isinstance(key, str):
            raise DamagedError
        return key
