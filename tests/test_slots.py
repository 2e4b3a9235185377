"""Slots: what was packed is copied out whole, and a verified copy takes nothing else for it."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import INSTANCE
from tables import PAYLOAD_CRC_OFFSET, json_maps

from jidoka_shm.errors import CorruptRegistry
from jidoka_shm.layout import (
    MAX_RECORD_SIZE,
    SLOT_CRC_OFFSET,
    SLOT_DTYPE,
    SLOT_HEADER_SIZE,
    SLOT_MASK,
    Geometry,
    index_word,
)
from jidoka_shm.session import STATUS_OF_CODE, Session, SessionStatus
from jidoka_shm.slots import DAMAGED, Slots, make_session, make_sessions, pack_slot, unpack_slot

if TYPE_CHECKING:
    from jidoka_shm.slots import Copy

GEOMETRY = Geometry.for_capacity(1, 256)
SLOT = 3
VERSION = 9
WORD = index_word(VERSION, SLOT)
START = GEOMETRY.slots_offset + SLOT * GEOMETRY.slot_size
SESSION = Session.make(
    session_id=INSTANCE,
    status="idle",
    pid=4242,
    created_at="2026-01-02T03:04:05.000006+00:00",
    metadata={"task": "a", "tags": ["b", None, 1.5]},
    llm_config={"model": "m"},
    error="over",
    version=VERSION,
)
PACKED = pack_slot(SESSION)

PLAIN = ("copy_head", "copy_whole", "copy_row")
VERIFIED = ("copy_head_verified", "copy_whole_verified", "copy_row_verified")
COPIES = (*PLAIN, *VERIFIED)

raws = st.binary(max_size=GEOMETRY.slot_size)

LENGTH_OFFSET = SLOT_DTYPE.fields["payload_length"][1]
MARKER = 0xEE

#: Bytes of payload that fit into the record's first slot, and from there to the table's end.
ONE_SLOT = GEOMETRY.slot_size - SLOT_HEADER_SIZE
LONGEST = GEOMETRY.size - START - SLOT_HEADER_SIZE


def _slots(packed: bytes = PACKED) -> Slots:
    """Return slots that hold ``packed`` at SLOT and the marker in all others."""
    memory = bytearray([MARKER]) * GEOMETRY.size
    memory[START : START + GEOMETRY.slot_size] = packed.ljust(GEOMETRY.slot_size, b"\0")
    return Slots(memory, GEOMETRY)


def _with_crcs(raw: bytes, length: int | None = None) -> bytes:
    """Return a whole slot with the crcs that make it sound, and its payload's length set."""
    slot = bytearray(raw.ljust(GEOMETRY.slot_size, b"\0"))
    if length is not None:
        slot[LENGTH_OFFSET : LENGTH_OFFSET + 4] = length.to_bytes(4, "little")
    (size,) = struct.unpack_from("<I", slot, LENGTH_OFFSET)
    payload = slot[SLOT_HEADER_SIZE : SLOT_HEADER_SIZE + size]
    struct.pack_into("<I", slot, PAYLOAD_CRC_OFFSET, zlib.crc32(payload))
    struct.pack_into("<I", slot, SLOT_CRC_OFFSET, zlib.crc32(slot[:SLOT_CRC_OFFSET]))
    return bytes(slot)


def _of_length(length: int) -> Slots:
    """Return slots whose record at SLOT says that its payload is so long, with crcs that agree."""
    slots = _slots(_with_crcs(PACKED, length))
    payload = bytes(slots.memory[START + SLOT_HEADER_SIZE :][:length])
    struct.pack_into("<I", slots.memory, START + PAYLOAD_CRC_OFFSET, zlib.crc32(payload))
    crc = zlib.crc32(slots.memory[START : START + SLOT_CRC_OFFSET])
    struct.pack_into("<I", slots.memory, START + SLOT_CRC_OFFSET, crc)
    return slots


def _copy(slots: Slots, name: str, word: int = WORD) -> Copy:
    return getattr(slots, name)(word)


def _is_original(name: str, copy: Copy) -> bool:
    return copy is not DAMAGED and copy == _copy(_slots(), name)


# ---------------------------------------------------------------------------- sound slots


def test_the_header_holds_the_sessions_fields() -> None:
    row = np.frombuffer(PACKED, SLOT_DTYPE, 1)[0]
    names = ("version", "created_at", "updated_at", "pid", "payload_length", "status", "flags")
    made = 1_767_323_045_000_006_000
    assert row["session_id"].tobytes() == INSTANCE.bytes
    assert [row[name].item() for name in names] == [
        VERSION,
        made,
        made,
        4242,
        len(SESSION._payload),
        3,
        0,
    ]


def test_the_crc_of_the_payload_is_its_crc32() -> None:
    row = np.frombuffer(PACKED, SLOT_DTYPE, 1)[0]
    assert row["payload_crc"] == zlib.crc32(PACKED[SLOT_HEADER_SIZE:])


def test_the_crc_of_the_header_is_the_crc32_of_all_before_it() -> None:
    row = np.frombuffer(PACKED, SLOT_DTYPE, 1)[0]
    assert row["header_crc"] == zlib.crc32(PACKED[:SLOT_CRC_OFFSET])


def test_the_payload_follows_the_header() -> None:
    assert PACKED[SLOT_HEADER_SIZE:] == SESSION._payload


HEAD = (
    INSTANCE.bytes,
    VERSION,
    SESSION._created,
    SESSION._updated,
    4242,
    len(SESSION._payload),
    3,
)


@pytest.mark.parametrize("name", ["copy_head", "copy_head_verified"])
def test_a_head_comes_with_an_empty_payload(name: str) -> None:
    assert _copy(_slots(), name) == (HEAD, b"")


@pytest.mark.parametrize("name", ["copy_whole", "copy_whole_verified"])
def test_a_whole_copy_is_head_and_payload(name: str) -> None:
    assert _copy(_slots(), name) == (HEAD, SESSION._payload)


@pytest.mark.parametrize("name", ["copy_row", "copy_row_verified"])
def test_a_row_comes_with_the_bytes_of_its_header(name: str) -> None:
    assert _copy(_slots(), name) == (HEAD, PACKED[:SLOT_HEADER_SIZE])


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_private(name: str) -> None:
    slots = _slots()
    head, raw = _copy(slots, name)
    before = head, bytes(raw)
    slots.memory[START : START + GEOMETRY.slot_size] = bytes(GEOMETRY.slot_size)
    assert (head, bytes(raw)) == before


@given(json_maps, st.sampled_from(SessionStatus), st.none() | st.integers(1, 2**22))
def test_a_session_is_the_same_in_its_slot(
    metadata: dict, status: SessionStatus, pid: int | None
) -> None:
    session = Session.make(metadata=metadata, status=status, pid=pid, version=VERSION)
    packed = pack_slot(session)
    geometry = Geometry.for_capacity(1, -(-len(packed) // 64) * 64 + 64)
    slots = Slots(bytearray(geometry.size), geometry)
    start = slots.offset(SLOT)
    slots.memory[start : start + len(packed)] = packed
    assert next(slots.inspect([WORD])) == session


@pytest.mark.parametrize("created", ["1677-09-21T00:12:44+00:00", "1969-12-31T23:59:59.999999Z"])
def test_a_time_before_1970_is_the_same_in_its_slot(created: str) -> None:
    session = Session.make(created_at=created, version=VERSION)
    assert next(_slots(pack_slot(session)).inspect([WORD])) == session


def test_no_owner_is_pid_0_in_the_slot() -> None:
    session = Session.make(version=VERSION)
    slots = _slots(pack_slot(session))
    assert slots.copy_head(WORD)[0][4] == 0
    assert make_session(session.session_id, slots.copy_whole(WORD)).pid is None


def test_the_headers_of_many_slots_are_copied_at_once() -> None:
    slots = _slots()
    slots.memory[GEOMETRY.slots_offset : GEOMETRY.slots_offset + len(PACKED)] = PACKED
    rows = slots.copy_headers(np.array([WORD, index_word(1, 0)], np.uint64))
    # Field by field: numpy leaves out what is between the fields.
    assert rows.tolist() == 2 * np.frombuffer(PACKED, SLOT_DTYPE, 1).tolist()


def test_the_copied_headers_are_private() -> None:
    slots = _slots()
    rows = slots.copy_headers(np.array([WORD], np.uint64))
    slots.memory[START : START + GEOMETRY.slot_size] = bytes(GEOMETRY.slot_size)
    assert rows["version"].tolist() == [VERSION]


def test_slots_hold_their_memory() -> None:
    slots = _slots()
    # A buffer that is held cannot be resized; one that is not would be read after its end.
    with pytest.raises(BufferError):
        slots.memory.extend(b"\0")


# ---------------------------------------------------------------------------- many at once

MANY = [("copy_many", "copy_whole"), ("copy_many_verified", "copy_whole_verified")]
each_many = pytest.mark.parametrize(("many", "one"), MANY, ids=["plain", "verified"])


def _agree(slots: Slots, words: list[int], many: str, one: str) -> list[Copy]:
    """Return the copies of many words, once they are what a copy of each alone is."""
    copies = getattr(slots, many)(np.array(words, np.uint64))
    alone = [_copy(slots, one, word) for word in words]
    assert copies == alone
    # By identity: that is how a scan tells a copy to be made again.
    assert [copy is DAMAGED for copy in copies] == [copy is DAMAGED for copy in alone]
    return copies


@each_many
def test_many_copies_are_what_each_alone_is(many: str, one: str) -> None:
    slots, words = _slots(), []
    for slot in range(0, GEOMETRY.slot_count, 2):
        session = Session.make(metadata={"slot": slot * "x"}, pid=slot + 1, version=slot + 5)
        packed, start = pack_slot(session), slots.offset(slot)
        slots.memory[start : start + len(packed)] = packed
        words.append(index_word(slot + 5, slot))
    copies = _agree(slots, [*words[::-1], words[2], *words], many, one)
    assert not [copy for copy in copies if copy is DAMAGED]
    assert _agree(slots, [], many, one) == []


@each_many
def test_of_many_copies_only_the_damaged_are(many: str, one: str) -> None:
    count = GEOMETRY.slot_count
    beyond = [index_word(VERSION, slot) for slot in (count, count + 1, SLOT_MASK)]
    slots, last = _slots(), GEOMETRY.slots_offset + (count - 1) * GEOMETRY.slot_size
    # A sound one, which must not be given for those beyond it.
    slots.memory[last : last + len(PACKED)] = PACKED
    copies = _agree(slots, [WORD, *beyond, WORD, 2**64 - 1, WORD], many, one)
    assert [copy is DAMAGED for copy in copies] == [False, True, True, True, False, True, False]


@each_many
@given(
    contents=st.lists(raws, min_size=1, max_size=4),
    words=st.lists(st.integers(3, 2**64 - 1), max_size=8),
)
def test_many_copies_of_any_bytes_are_what_each_alone_is(
    contents: list[bytes], words: list[int], many: str, one: str
) -> None:
    slots = _slots()
    for slot, raw in enumerate(contents):
        start = slots.offset(slot)
        slots.memory[start : start + len(raw)] = raw
    named = [index_word(VERSION, slot) for slot in range(GEOMETRY.slot_count)]
    _agree(slots, [*named, *words], many, one)


@each_many
@given(length=st.integers(0, 2**32 - 1) | st.integers(0, 2 * GEOMETRY.slot_size))
@example(length=LONGEST)
@example(length=LONGEST + 1)
def test_many_copies_of_any_length_are_what_each_alone_is(length: int, many: str, one: str) -> None:
    slots = _of_length(length)
    for head, payload in _agree(slots, [WORD, WORD], many, one):
        assert (head == DAMAGED[0]) == (length > LONGEST)
        assert len(payload) == (0 if length > LONGEST else length)


@each_many
def test_many_copies_are_private(many: str, one: str) -> None:
    slots = _slots()
    ((head, payload),) = _agree(slots, [WORD], many, one)
    slots.memory[START : START + GEOMETRY.slot_size] = bytes(GEOMETRY.slot_size)
    assert (head, payload) == (HEAD, SESSION._payload)


def test_no_flipped_bit_is_verified_among_many() -> None:
    slots = _slots()
    for bit in range(8 * len(PACKED)):
        slots.memory[START + bit // 8] ^= 1 << bit % 8
        (copy,) = _agree(slots, [WORD], *MANY[1])
        assert copy is DAMAGED, bit
        slots.memory[START + bit // 8] ^= 1 << bit % 8


# ---------------------------------------------------------------------------- flipped bits


@pytest.mark.parametrize("name", VERIFIED)
def test_no_flipped_bit_of_the_header_is_verified(name: str) -> None:
    slots = _slots()
    for bit in range(8 * SLOT_HEADER_SIZE):
        slots.memory[START + bit // 8] ^= 1 << bit % 8
        assert _copy(slots, name) is DAMAGED, bit
        slots.memory[START + bit // 8] ^= 1 << bit % 8


def test_no_flipped_bit_of_the_payload_is_verified() -> None:
    slots = _slots()
    for bit in range(8 * SLOT_HEADER_SIZE, 8 * len(PACKED)):
        slots.memory[START + bit // 8] ^= 1 << bit % 8
        assert slots.copy_whole_verified(WORD) is DAMAGED, bit
        slots.memory[START + bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("name", COPIES)
def test_what_follows_the_payload_does_not_matter(name: str) -> None:
    noise = bytes([MARKER]) * (GEOMETRY.slot_size - len(PACKED))
    assert _is_original(name, _copy(_slots(PACKED + noise), name))


@pytest.mark.parametrize("name", ["copy_head_verified", "copy_row_verified"])
def test_a_header_is_verified_without_its_payload(name: str) -> None:
    slots = _slots()
    slots.memory[START + SLOT_HEADER_SIZE] ^= 1
    assert _is_original(name, _copy(slots, name))


@pytest.mark.parametrize("name", VERIFIED)
def test_no_version_but_the_words_is_verified(name: str) -> None:
    for bit in range(40):
        assert _copy(_slots(), name, WORD ^ 1 << 24 + bit) is DAMAGED, bit


@pytest.mark.parametrize("name", VERIFIED)
def test_a_version_beyond_40_bits_is_verified_by_its_low_bits(name: str) -> None:
    session = Session.make(version=(5 << 40) + VERSION)
    assert _copy(_slots(pack_slot(session)), name) is not DAMAGED


def test_each_flipped_bit_is_found_by_inspection() -> None:
    slots = _slots()
    for bit in range(8 * len(PACKED)):
        slots.memory[START + bit // 8] ^= 1 << bit % 8
        assert isinstance(next(slots.inspect([WORD])), str), bit
        slots.memory[START + bit // 8] ^= 1 << bit % 8


# ---------------------------------------------------------------------------- any bytes


@given(raws)
def test_a_verified_copy_of_any_bytes_is_damaged(raw: bytes) -> None:
    slots = _slots(raw)
    assert all(_copy(slots, name) is DAMAGED for name in VERIFIED)


@given(raws)
def test_a_plain_copy_of_any_bytes_is_of_those_bytes_or_damaged(raw: bytes) -> None:
    slots, slot = _slots(raw), raw.ljust(GEOMETRY.slot_size, b"\0")
    head, payload = slots.copy_whole(WORD)
    assert slots.copy_row(WORD)[1] == slot[:SLOT_HEADER_SIZE]
    assert head == DAMAGED[0] or slot[SLOT_HEADER_SIZE:].startswith(bytes(payload))


@given(raws, st.integers(0, ONE_SLOT), st.sampled_from([*STATUS_OF_CODE, 0, 6, 255]))
@example(bytes(SLOT_HEADER_SIZE) + b"\x94\x80\x80\xc0\xa1\xff", 6, 1)  # no UTF-8
@example(bytes(SLOT_HEADER_SIZE) + b"\x92" + b"\x91" * 191, 192, 1)
@example(bytes(SLOT_HEADER_SIZE) + b"\xdd\xff\xff\xff\xff", 5, 1)
def test_any_bytes_with_right_crcs_are_a_session_or_what_is_wrong(
    raw: bytes, length: int, status: int
) -> None:
    slot = bytearray(raw.ljust(GEOMETRY.slot_size, b"\0"))
    slot[16:24] = VERSION.to_bytes(8, "little")
    slot[48] = status
    found = next(_slots(_with_crcs(slot, length)).inspect([WORD]))
    assert isinstance(found, Session | str)


@given(st.integers(0, GEOMETRY.slot_size - 1), st.binary(min_size=1, max_size=40))
def test_a_slot_written_over_is_the_original_or_damaged(start: int, raw: bytes) -> None:
    slot = bytearray(PACKED.ljust(GEOMETRY.slot_size, b"\0"))
    slot[start : start + len(raw)] = raw
    slots = _slots(bytes(slot[: GEOMETRY.slot_size]))
    for name in VERIFIED:
        copy = _copy(slots, name)
        assert copy is DAMAGED or _is_original(name, copy)


@given(st.integers(2**24, 2**64 - 1))
def test_any_word_is_copied_or_damaged(word: int) -> None:
    slots = _slots()
    for name in VERIFIED:
        assert _copy(slots, name, word) is DAMAGED or word == WORD
    for name in PLAIN:
        assert (_copy(slots, name, word) is DAMAGED) or word & SLOT_MASK < GEOMETRY.slot_count


# ---------------------------------------------------------------------------- numbers too large


@pytest.mark.parametrize("slot", [GEOMETRY.slot_count, GEOMETRY.slot_count + 1, SLOT_MASK])
@pytest.mark.parametrize("name", COPIES)
def test_a_slot_number_too_large_is_damage(name: str, slot: int) -> None:
    assert _copy(_slots(), name, index_word(VERSION, slot)) is DAMAGED


@pytest.mark.parametrize("name", COPIES)
def test_a_slot_number_too_large_is_damage_at_version_0_too(name: str) -> None:
    # No word has that version, but a damaged one may say so.
    assert _copy(_slots(), name, SLOT_MASK) is DAMAGED


@pytest.mark.parametrize("name", COPIES)
def test_the_last_slot_is_no_damage(name: str) -> None:
    slots = _slots()
    last = GEOMETRY.slot_count - 1
    start = slots.offset(last)
    slots.memory[start : start + len(PACKED)] = PACKED
    assert _is_original(name, _copy(slots, name, index_word(VERSION, last)))


TOO_LONG = [LONGEST + 1, LONGEST + GEOMETRY.slot_size, 2**31, 2**32 - 1]


@pytest.mark.parametrize("length", TOO_LONG)
@pytest.mark.parametrize("name", ["copy_whole", "copy_whole_verified"])
def test_a_length_too_large_is_damage(name: str, length: int) -> None:
    assert _copy(_slots(_with_crcs(PACKED, length)), name) is DAMAGED


def test_a_length_that_no_record_has_is_damage_however_large_the_table() -> None:
    slots = _slots(_with_crcs(PACKED, MAX_RECORD_SIZE - SLOT_HEADER_SIZE + 1))
    slots.end = 1 << 40
    for name in ("copy_whole", "copy_whole_verified"):
        assert _copy(slots, name) is DAMAGED


@pytest.mark.parametrize("name", ["copy_whole", "copy_whole_verified"])
@pytest.mark.parametrize("length", [ONE_SLOT, ONE_SLOT + 1, LONGEST])
def test_a_record_goes_on_in_the_slots_behind_its_first(name: str, length: int) -> None:
    slots = _of_length(length)
    payload = _copy(slots, name)[1]
    assert payload == slots.memory[START + SLOT_HEADER_SIZE :][:length]
    assert (MARKER in payload) == (length > ONE_SLOT)


@given(st.integers(0, 2**32 - 1) | st.integers(LONGEST - 9, LONGEST + 9))
def test_no_length_leads_out_of_the_table(length: int) -> None:
    for name in ("copy_whole", "copy_whole_verified"):
        head, payload = _copy(_of_length(length), name)
        assert (head == DAMAGED[0]) == (length > LONGEST)
        assert len(payload) == (0 if length > LONGEST else length)


# ---------------------------------------------------------------------------- what it holds


@pytest.mark.parametrize("code", [0, 6, 255])
def test_a_status_that_is_none_makes_no_session(code: int) -> None:
    copy = (*HEAD[:6], code), b"\x92\x80\x80"
    with pytest.raises(KeyError):
        make_session(UUID(int=1), copy)


@pytest.mark.parametrize("code", [0, 6, 255])
def test_a_status_that_is_none_is_found_by_inspection(code: int) -> None:
    slot = bytearray(PACKED)
    slot[48] = code
    assert "no session" in next(_slots(_with_crcs(slot)).inspect([WORD]))


def test_a_payload_that_is_none_is_found_by_inspection() -> None:
    slot = _with_crcs(PACKED[:SLOT_HEADER_SIZE] + b"\x05", 1)
    assert "no session" in next(_slots(slot).inspect([WORD]))


def test_a_damaged_copy_is_no_session() -> None:
    with pytest.raises(KeyError):
        make_session(UUID(int=1), DAMAGED)


def test_many_sessions_are_made_as_each_alone_is() -> None:
    made = [
        Session.make(status=status, pid=pid, version=version, metadata={"n": version})
        for version, (status, pid) in enumerate(
            [(status, pid) for status in SessionStatus for pid in (None, 1, 2**22)], start=1
        )
    ]
    slots = [_slots(pack_slot(session)) for session in made]
    copies = [each.copy_whole(WORD) for each in slots]
    sessions = make_sessions(copies)
    assert sessions == made
    assert [(one.pid, one._created) for one in sessions] == [
        (one.pid, one._created) for one in made
    ]
    assert all(type(one.session_id) is UUID for one in sessions)
    assert make_sessions([]) == []


@pytest.mark.parametrize("code", [0, 6, 255])
@pytest.mark.parametrize("at", range(3))
def test_one_status_that_is_none_makes_no_sessions(at: int, code: int) -> None:
    copies = 3 * [(HEAD, SESSION._payload)]
    assert make_sessions(copies) == 3 * [SESSION]
    copies[at] = (*HEAD[:6], code), SESSION._payload
    with pytest.raises(KeyError):
        make_sessions(copies)


@pytest.mark.parametrize("part", [1, 2, 3, 4, 5])
def test_inspection_in_parts_yields_one_for_each_word(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its own, whichever of them is the last of a part, and whichever is damaged."""
    monkeypatch.setattr("jidoka_shm.slots._PART", part)
    slots, none = _slots(), WORD + 1
    whole = next(slots.inspect([WORD]))
    assert isinstance(whole, Session)
    for count in range(8):
        words = [none if at % 3 == 1 else WORD for at in range(count)]
        found = list(slots.inspect(words))
        assert [one if one == whole else type(one) for one in found] == [
            whole if word == WORD else str for word in words
        ]


def test_inspection_copies_no_record_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """One may have 16 MiB, whatever the size of a slot."""
    slots, copied = _slots(), []
    monkeypatch.setattr(slots, "copy_whole_verified", lambda word: copied.append(word) or DAMAGED)
    found = slots.inspect([WORD] * 10_000)
    for seen in range(1, 4):
        next(found)
        assert len(copied) == seen


# ---------------------------------------------------------------------------- sent as bytes


def _is_refused(raw: bytes, session_id: UUID = SESSION.session_id) -> bool:
    try:
        unpack_slot(raw, session_id)
    except CorruptRegistry:
        return True
    return False


def test_what_was_packed_is_unpacked() -> None:
    assert unpack_slot(PACKED, SESSION.session_id) == SESSION


def test_another_session_is_refused() -> None:
    with pytest.raises(CorruptRegistry, match=str(UUID(int=1))):
        unpack_slot(PACKED, UUID(int=1))


def test_no_flipped_bit_is_unpacked() -> None:
    for bit in range(8 * len(PACKED)):
        raw = bytearray(PACKED)
        raw[bit // 8] ^= 1 << bit % 8
        assert _is_refused(bytes(raw)), bit


def test_no_other_length_is_unpacked() -> None:
    assert all(_is_refused(PACKED[:end]) for end in range(len(PACKED)))
    assert _is_refused(PACKED + b"\0")


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_refused(raw: bytes) -> None:
    assert _is_refused(raw)
