"""The slots of a table: private copies of what a word names, and how to tell a sound one.

Nothing here is a conclusion. A copy may be of a slot that was given back and written anew while
it was copied; ``seqlock.SequenceWords.read`` is what makes it one, and calls the functions here.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

import msgspec
import numpy as np

from .layout import (
    SLOT_BITS,
    SLOT_CRC_OFFSET,
    SLOT_DTYPE,
    SLOT_HEADER,
    SLOT_HEADER_SIZE,
    SLOT_MASK,
    VERSION_MASK,
    Geometry,
)
from .session import CODE_OF_STATUS, STATUS_OF_CODE, Session, decode_record

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from .layout import Memory

#: What a copied slot yields: the id's 16 bytes, the payload, the owner pid, the status code.
Copy = tuple[bytes, bytes, int, int]

#: A slot whose content cannot be: its number or length, or a crc that was asked for, is wrong.
DAMAGED: Final[Copy] = (b"", b"", 0, 0)

#: id, pid, payload length and status of a slot header: what a look-up wants, in one call.
_BRIEF: Final = struct.Struct("<16s24xIIB").unpack_from


class SlotHeader(NamedTuple):
    """A slot's header, field by field, in the order of its bytes."""

    session_id: bytes
    version: int
    created_at: int
    updated_at: int
    pid: int
    payload_length: int
    status: int
    flags: int
    reserved_16: int
    payload_crc: int
    reserved_32: int
    header_crc: int


def pack_slot(session: Session, payload: bytes) -> bytes:
    """Return the bytes of a slot that holds ``session``: header, crcs and payload."""
    raw = SLOT_HEADER.pack(
        session.session_id.int.to_bytes(16),
        session.version,
        session._created,  # noqa: SLF001 - a record's own fields, written to its slot
        session._updated,  # noqa: SLF001 - as above
        session.pid or 0,
        len(payload),
        CODE_OF_STATUS[session.status],
        0,
        0,
        zlib.crc32(payload),
        0,
        0,
    )[:SLOT_CRC_OFFSET]
    return b"".join((raw, zlib.crc32(raw).to_bytes(4, "little"), payload))


class Slots:
    """The slots of one table, over any buffer, to be copied out of."""

    def __init__(self, memory: Memory, geometry: Geometry) -> None:
        self._memory = memory
        self._begin = geometry.slots_offset
        self._slot_size = geometry.slot_size
        self._limit = geometry.payload_limit
        self.count = geometry.slot_count
        # frombuffer holds the buffer; an ndarray made with buffer= does not, and reading that
        # after the mapping is gone is a segmentation fault.
        rows = np.frombuffer(memory, np.uint8, -1, geometry.slots_offset)
        rows = rows.reshape(geometry.slot_count, geometry.slot_size)
        self._headers: NDArray[Any] = rows[:, :SLOT_HEADER_SIZE].view(SLOT_DTYPE)[:, 0]

    def offset(self, slot: int) -> int:
        """Return where a slot begins in the table's memory, in bytes."""
        return self._begin + slot * self._slot_size

    # The slots are the memory's last part, so unpack_from refuses any slot number that damage
    # made too large; a length is checked by hand, or a slice would reach into the next slot.

    def copy_brief(self, word: int) -> Copy:
        """Return the slot's id, pid and status, with an empty payload."""
        try:
            start = self._begin + (word & SLOT_MASK) * self._slot_size
            session_id, pid, _, status = _BRIEF(self._memory, start)
        except struct.error:
            return DAMAGED
        return session_id, b"", pid, status

    def copy_whole(self, word: int) -> Copy:
        """Return the slot's id, payload, pid and status."""
        start = self._begin + (word & SLOT_MASK) * self._slot_size
        try:
            session_id, pid, length, status = _BRIEF(self._memory, start)
        except struct.error:
            return DAMAGED
        if length > self._limit:
            return DAMAGED
        start += SLOT_HEADER_SIZE
        return session_id, self._memory[start : start + length], pid, status  # type: ignore[return-value]

    def copy_brief_verified(self, word: int) -> Copy:
        """Return as ``copy_brief`` does, but ``DAMAGED`` where version or header crc is wrong."""
        header = self.copy_header(word)
        if header is None:
            return DAMAGED
        return header.session_id, b"", header.pid, header.status

    def copy_whole_verified(self, word: int) -> Copy:
        """Return as ``copy_whole`` does, but ``DAMAGED`` where version or a crc is wrong."""
        header = self.copy_header(word)
        if header is None or header.payload_length > self._limit:
            return DAMAGED
        start = self.offset(word & SLOT_MASK) + SLOT_HEADER_SIZE
        payload = bytes(self._memory[start : start + header.payload_length])
        if zlib.crc32(payload) != header.payload_crc:
            return DAMAGED
        return header.session_id, payload, header.pid, header.status

    def copy_row(self, word: int) -> bytes | Copy:
        """Return the bytes of the slot's header."""
        start = self.offset(word & SLOT_MASK)
        raw = bytes(self._memory[start : start + SLOT_HEADER_SIZE])
        return raw if len(raw) == SLOT_HEADER_SIZE else DAMAGED

    def copy_row_verified(self, word: int) -> bytes | Copy:
        """Return as ``copy_row`` does, but ``DAMAGED`` where version or header crc is wrong."""
        header = self.copy_header(word)
        return DAMAGED if header is None else SLOT_HEADER.pack(*header)

    def copy_header(self, word: int) -> SlotHeader | None:
        """Return the slot's header; None where its crc or its version is wrong."""
        start = self.offset(word & SLOT_MASK)
        raw = bytes(self._memory[start : start + SLOT_HEADER_SIZE])
        if len(raw) < SLOT_HEADER_SIZE:
            return None
        header = SlotHeader._make(SLOT_HEADER.unpack(raw))
        if zlib.crc32(raw[:SLOT_CRC_OFFSET]) != header.header_crc:
            return None
        return header if header.version & VERSION_MASK == word >> SLOT_BITS else None

    def copy_headers(self, words: NDArray[np.uint64]) -> NDArray[Any]:
        """Return the headers of many slots, a row for each word; slot 0's for one too large."""
        slots = words & np.uint64(SLOT_MASK)
        return self._headers[np.where(slots < self.count, slots, 0).astype(np.intp)]

    # ------------------------------------------------------------------ soundness

    def inspect(self, word: int) -> Session | str:
        """Return the session that a word's slot holds, or what is wrong with it.

        Only for memory at rest: while a writer writes, what is wrong may be the copy.
        """
        header = self.copy_header(word)
        if header is None:
            return "its header does not fit its crc or its version"
        copied = self.copy_whole_verified(word)
        if copied is DAMAGED:
            return "its payload does not fit its crc or its slot"
        try:
            session = decode_record(UUID(bytes=header.session_id), copied[1])
        except msgspec.MsgspecError as error:
            return f"its payload is no record ({error})"
        return session if _agree(header, session) else "its header and its payload disagree"


def _agree(header: SlotHeader, session: Session) -> bool:
    """Return whether the fields that stand in both header and payload are the same."""
    return (
        header.version == session.version
        and STATUS_OF_CODE.get(header.status) == session.status
        and (header.pid or None) == session.pid
        and header.created_at == session._created  # noqa: SLF001 - a record's own fields
        and header.updated_at == session._updated  # noqa: SLF001 - as above
    )
