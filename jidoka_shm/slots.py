"""The slots of a table: private copies of what a word names, and how to tell a sound one.

Nothing here is a conclusion. A copy may be of a slot that was given back and written anew while
it was copied; ``seqlock.SequenceWords.read`` is what makes it one, and calls the functions here.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from .errors import CorruptRegistry
from .ids import decode_ids
from .layout import (
    MAX_RECORD_SIZE,
    SLOT_BITS,
    SLOT_BODY,
    SLOT_BRIEF,
    SLOT_CHECKED,
    SLOT_CRC_OFFSET,
    SLOT_DTYPE,
    SLOT_HEAD,
    SLOT_HEADER,
    SLOT_HEADER_SIZE,
    SLOT_HEADS,
    SLOT_MASK,
    VERSION_MASK,
    Geometry,
)
from .session import CODE_OF_STATUS, STATUS_OF_CODE, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from mmap import mmap
    from uuid import UUID

    from numpy.typing import NDArray

    from .layout import Memory

Head = tuple[bytes, int, int, int, int, int, int]

#: A slot's head as ``SLOT_HEAD`` unpacks it (id, version, created, updated, pid, payload length,
#: status code), and its payload.
Copy = tuple[Head, bytes]

#: A slot whose content cannot be: its number or length, or a crc that was asked for, is wrong.
DAMAGED: Final[Copy] = ((b"", 0, 0, 0, 0, 0, 0), b"")

#: The crc32 of any bytes and, behind them, their own crc32 in little-endian order: what the crc
#: of a whole header is where its last field is right (the residue of CRC-32/ISO-HDLC).
_SEALED: Final = 0x2144DF1C

#: Ids that ``inspect`` decodes at a time.
_PART: Final = 4096

_pack_body: Final = SLOT_BODY.pack
_checked: Final = cast("Callable[[bytes], tuple[Any, ...]]", SLOT_CHECKED.unpack)
_header: Final = cast("Callable[[bytes], tuple[Any, ...]]", SLOT_HEADER.unpack_from)
_head: Final = cast("Callable[[bytes], Head]", SLOT_HEAD.unpack_from)


def pack_slot(session: Session) -> bytes:
    """Return the bytes of a slot that holds ``session``: header, crcs and payload."""
    payload = session._payload  # noqa: SLF001 - a session's own fields, written to its slot
    raw = _pack_body(
        session.session_id.int.to_bytes(16),
        session.version,
        session._created,  # noqa: SLF001 - a session's own fields, written to its slot
        session._updated,  # noqa: SLF001 - as above
        session.pid or 0,
        len(payload),
        CODE_OF_STATUS[session.status],
        0,
        0,
        zlib.crc32(payload),
        0,
    )
    return b"".join((raw, zlib.crc32(raw).to_bytes(4, "little"), payload))


def unpack_slot(raw: bytes, session_id: UUID) -> Session:
    """Return the session that ``pack_slot`` packed.

    Args:
        raw: what it returned.
        session_id: which session that must be.

    Raises:
        CorruptRegistry: where the bytes are not that session's, or do not fit their crcs.
    """
    if len(raw) >= SLOT_HEADER_SIZE:
        payload = raw[SLOT_HEADER_SIZE:]
        fields = _header(raw)
        found = (fields[0], fields[5], fields[9], fields[11])
        crcs = (zlib.crc32(payload), zlib.crc32(raw[:SLOT_CRC_OFFSET]))
        if found == (session_id.bytes, len(payload), *crcs) and fields[6] in STATUS_OF_CODE:
            return make_session(session_id, (fields[:7], payload))
    reason = f"{len(raw)} bytes that were sent as session {session_id} are not its record"
    raise CorruptRegistry(reason)


class Slots:
    """The slots of one table, over any buffer, to be copied out of."""

    def __init__(self, memory: Memory, geometry: Geometry) -> None:
        # A slice of an mmap is bytes; of a bytearray, in tests, as good as that.
        self.memory = cast("mmap", memory)
        self.begin = geometry.slots_offset
        self.slot_size = geometry.slot_size
        #: Bytes of the longest payload, and where the last slot ends.
        self.limit = MAX_RECORD_SIZE - SLOT_HEADER_SIZE
        self.end = geometry.size
        #: Return the head at an offset of the memory.
        self.unpack_from: Callable[[Memory, int], Head] = SLOT_HEAD.unpack_from
        #: Return id, owner pid and status code at an offset of the memory.
        self.unpack_brief: Callable[[Memory, int], tuple[bytes, int, int]] = SLOT_BRIEF.unpack_from
        self.count = geometry.slot_count
        # frombuffer holds the buffer; an ndarray made with buffer= does not, and reading that
        # after the mapping is gone is a segmentation fault.
        rows = np.frombuffer(memory, np.uint8, -1, geometry.slots_offset)
        self.rows = rows = rows.reshape(geometry.slot_count, geometry.slot_size)
        # As opaque items: numpy gathers structured rows field by field, in ten times the time.
        self._headers: NDArray[Any] = rows[:, :SLOT_HEADER_SIZE].view(f"V{SLOT_HEADER_SIZE}")[:, 0]

    def offset(self, slot: int) -> int:
        """Return where a slot begins in the table's memory, in bytes."""
        return self.begin + slot * self.slot_size

    # The slots are the memory's last part, so unpack_from refuses any slot number that damage
    # made too large; a length is checked by hand, or a slice would be shorter than its record, or
    # as long as the table.

    def copy_head(self, word: int) -> Copy:
        """Return the slot's head, with an empty payload."""
        try:
            return self.unpack_from(self.memory, self.offset(word & SLOT_MASK)), b""
        except struct.error:
            return DAMAGED

    def copy_whole(self, word: int) -> Copy:
        """Return the head and payload of the record that begins in the slot."""
        start = self.begin + (word & SLOT_MASK) * self.slot_size
        try:
            head = self.unpack_from(self.memory, start)
        except struct.error:
            return DAMAGED
        start += SLOT_HEADER_SIZE
        end = start + head[5]
        if head[5] > self.limit or end > self.end:
            return DAMAGED
        return head, self.memory[start:end]

    def copy_row(self, word: int) -> Copy:
        """Return the slot's head, with the bytes of its header in the payload's place."""
        start = self.offset(word & SLOT_MASK)
        raw = self.memory[start : start + SLOT_HEADER_SIZE]
        return (_head(raw), raw) if len(raw) == SLOT_HEADER_SIZE else DAMAGED

    # The same three, but DAMAGED where the header's crc or its version, or the payload's crc, is
    # not what the word promises.

    def copy_row_verified(self, word: int) -> Copy:
        """Return as ``copy_row`` does, once version and header crc are right."""
        copy = self.copy_row(word)
        if copy is DAMAGED:
            return DAMAGED
        head, raw = copy
        sound = head[1] & VERSION_MASK == word >> SLOT_BITS
        return copy if sound and zlib.crc32(raw) == _SEALED else DAMAGED

    def copy_head_verified(self, word: int) -> Copy:
        """Return as ``copy_head`` does, once version and header crc are right."""
        copy = self.copy_row_verified(word)
        return copy if copy is DAMAGED else (copy[0], b"")

    def copy_whole_verified(self, word: int) -> Copy:
        """Return as ``copy_whole`` does, once version and both crcs are right."""
        start = self.begin + (word & SLOT_MASK) * self.slot_size
        raw = self.memory[start : start + SLOT_HEADER_SIZE]
        if len(raw) < SLOT_HEADER_SIZE:
            return DAMAGED
        *head, payload_crc = _checked(raw)
        start += SLOT_HEADER_SIZE
        end = start + head[5]
        if zlib.crc32(raw) != _SEALED or head[1] & VERSION_MASK != word >> SLOT_BITS:
            return DAMAGED
        if head[5] > self.limit or end > self.end:
            return DAMAGED
        payload = self.memory[start:end]
        return (tuple(head), payload) if zlib.crc32(payload) == payload_crc else DAMAGED

    def has(self, words: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return for each word whether there is a slot of its number."""
        return (words & np.uint64(SLOT_MASK)) < self.count

    def copy_headers(self, words: NDArray[np.uint64]) -> NDArray[Any]:
        """Return the headers of many slots, a row a word; the last slot's where there is none."""
        slots = (words & np.uint64(SLOT_MASK)).view(np.int64)
        headers: NDArray[Any] = self._headers[np.minimum(slots, self.count - 1)]
        return headers.view(SLOT_DTYPE)

    def copy_many(self, words: NDArray[np.uint64]) -> list[Copy]:
        """Return what ``copy_whole`` does for each of many words."""
        headers = self.copy_headers(words)
        starts = (words & np.uint64(SLOT_MASK)).view(np.int64) * self.slot_size
        starts += self.begin + SLOT_HEADER_SIZE
        lengths = headers["payload_length"].astype(np.int64)
        beyond = (lengths > self.limit) | (starts + lengths > self.end)
        lengths[~self.has(words) | beyond] = -1
        heads = SLOT_HEADS.iter_unpack(headers.tobytes())
        copies, memory = [], self.memory
        for head, start, length in zip(heads, starts.tolist(), lengths.tolist(), strict=True):
            if length < 0:
                copies.append(DAMAGED)
                continue
            payload = memory[start : start + length]
            copies.append((cast("Head", head), payload))
        return copies

    def copy_many_verified(self, words: NDArray[np.uint64]) -> list[Copy]:
        """Return what ``copy_whole_verified`` does for each of many words."""
        return [self.copy_whole_verified(word) for word in words.tolist()]

    # ------------------------------------------------------------------ soundness

    def inspect(self, words: list[int]) -> Iterator[Session | str]:
        """Yield for each word the session that its slot holds, or what is wrong with it.

        Only for memory at rest: while a writer writes, what is wrong may be the copy.
        """
        for begin in range(0, len(words), _PART):
            these = words[begin : begin + _PART]
            headers = self.copy_headers(np.array(these, np.uint64))
            ids = decode_ids(headers["session_id"].tobytes())
            # One by one, since copies of all records would take as much memory as the registry.
            yield from map(_inspected, ids, map(self.copy_whole_verified, these))


def _inspected(session_id: UUID, copy: Copy) -> Session | str:
    if copy is DAMAGED:
        return "its slot does not fit its crcs or its version"
    try:
        session = make_session(session_id, copy)
        session.payload()
    except (KeyError, CorruptRegistry) as error:
        return f"its slot holds no session ({error})"
    return session


def make_session(session_id: UUID, copy: Copy) -> Session:
    """Return the session that a validated copy holds.

    Raises:
        KeyError: where its status is none.
    """
    (_, version, created, updated, pid, _, status), payload = copy
    return Session(
        session_id, version, STATUS_OF_CODE[status], pid or None, created, updated, payload
    )


def make_sessions(copies: Collection[Copy]) -> list[Session]:
    """Return the sessions that validated copies hold, as ``make_session`` does.

    Raises:
        KeyError: where the status of one is none.
    """
    ids = decode_ids(b"".join([copy[0][0] for copy in copies]))
    statuses, made = STATUS_OF_CODE, []
    # Not by make_session, whose call would be a fifth of a list's time.
    for session_id, copy in zip(ids, copies, strict=True):
        (_, version, created, updated, pid, _, code), payload = copy
        status = statuses[code]
        made.append(Session(session_id, version, status, pid or None, created, updated, payload))
    return made
