"""The binary format: frozen bytes, fields that agree and do not overlap, geometry, names, homes."""

from __future__ import annotations

import functools
import itertools
import math
import random
import re
import struct
import uuid
from fractions import Fraction
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import INSTANCE

from jidoka_shm import layout
from jidoka_shm.errors import InvalidName
from jidoka_shm.header import TableHeader
from jidoka_shm.layout import (
    CLOSED,
    CONTROL_FIELDS,
    CONTROL_SIZE,
    EMPTY,
    MAX_CAPACITY,
    MAX_DISTANCE,
    MAX_SLOT_SIZE,
    MIN_SLOT_SIZE,
    MOVED,
    SLOT_CRC_OFFSET,
    SLOT_DTYPE,
    SLOT_HEAD,
    SLOT_HEADER,
    SLOT_HEADER_SIZE,
    SLOT_MASK,
    SPARE_SLOTS,
    TABLE_FIELDS,
    TABLE_HEADER,
    TABLE_HEADER_SIZE,
    Geometry,
    check_name,
    control_name,
    index_size_for,
    index_word,
    table_name,
)
from jidoka_shm.maps import encode_map
from jidoka_shm.session import Payload, Session, SessionStatus
from jidoka_shm.slots import pack_slot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Those that the trial division is done with at once; the largest has tests of its own.
capacities = st.integers(1, 50_000)
slot_sizes = st.integers(2, MAX_SLOT_SIZE // 64).map(lambda times: 64 * times)

# ---------------------------------------------------------------------------- frozen bytes


def test_the_header_of_a_table_is_frozen() -> None:
    """A10: the golden bytes of a table's header."""
    geometry = Geometry(index_size=277, slot_count=80, slot_size=512)
    memory = bytearray(geometry.size)
    TableHeader(INSTANCE, 7, geometry, 0x0123456789).store(memory)
    assert memory[:TABLE_HEADER_SIZE].hex(" ", -8) == (
        "4a49444f4b412d54 03000000c9165cf1 0f0e0d0c0b0a4908 8706050403020100 "
        "0700000000000000 1501000050000000 0002000000000000 8967452301000000"
    )


def _full_session() -> Session:
    payload = Payload(
        metadata=encode_map({"task": "a", "n": [1, 2.5, None, True]}, "metadata"),
        llm_config=encode_map({"model": "m"}, "llm_config"),
        expires=1_700_000_060_000_000_000,
        error="over",
        deadline=60_000_000_000,
        owner_start=77,
        owner_namespace=4_026_531_836,
        request=bytes(range(16)),
    )
    return Session(
        session_id=INSTANCE,
        version=0x0102030405060708,
        status=SessionStatus.TERMINATED,
        pid=4242,
        _created=1_700_000_000_000_001_000,
        _updated=1_700_000_000_000_002_000,
        _payload=payload.encode(),
    )


def test_a_slot_is_frozen() -> None:
    """A10: the golden bytes of a slot."""
    assert pack_slot(_full_session()).hex(" ", -8) == (
        "0f0e0d0c0b0a4908 8706050403020100 0807060504030201 e8032a36fe9c9717 "
        "d0072a36fe9c9717 9210000050000000 0500000081f47751 000000004f5f4b12 "
        "9882a47461736ba1 61a16e9401cb4004 000000000000c0c3 81a56d6f64656ca1 "
        "6dcf17979d0c2e71 5800a46f766572cf 0000000df8475800 4dceeffffffcc410 "
        "0001020304050607 08090a0b0c0d0e0f"
    )


def test_a_slot_of_a_new_session_is_frozen() -> None:
    session = Session(INSTANCE, 1, SessionStatus.INITIALIZING, None, 1000, 1000, b"\x92\x80\x80")
    assert pack_slot(session).hex(" ", -8) == (
        "0f0e0d0c0b0a4908 8706050403020100 0100000000000000 e803000000000000 "
        "e803000000000000 0000000003000000 01000000e7aeedd7 000000003b643328 "
        "928080"
    )


def test_a_slot_of_a_time_before_1970_is_frozen() -> None:
    session = Session(INSTANCE, 1, SessionStatus.IDLE, None, -1000, -(2**63), b"\x92\x80\x80")
    assert pack_slot(session)[24:40].hex(" ", -8) == "18fcffffffffffff 0000000000000080"


def test_the_control_is_frozen() -> None:
    assert CONTROL_FIELDS == {
        "magic": 0,
        "format": 8,
        "instance": 16,
        "generation": 32,
        "change": 64,
        "writer_pid": 128,
        "writer_start": 136,
        "writer_namespace": 144,
        "created": 192,
        "updated": 200,
        "removed": 208,
        "takeovers": 216,
        "dropped": 224,
        "socket_path": 256,
    }


def test_the_numbers_are_frozen() -> None:
    assert layout.FORMAT_VERSION == 3
    assert layout.CONTROL_MAGIC == 0x432D414B4F44494A
    assert layout.TABLE_MAGIC == 0x542D414B4F44494A
    assert (EMPTY, MOVED, CLOSED) == (0, 1, 2)
    assert (layout.SLOT_BITS, layout.VERSION_MASK) == (24, 2**40 - 1)
    assert (MAX_DISTANCE, layout.GIVEN_UP_REACH) == (254, 255)
    assert (SPARE_SLOTS, layout.ROOM_TO_END) == (16, 32)
    assert layout.ALIGNMENT == 64
    assert (CONTROL_SIZE, TABLE_HEADER_SIZE, SLOT_HEADER_SIZE) == (4096, 64, 64)
    assert (MAX_CAPACITY, MIN_SLOT_SIZE, MAX_SLOT_SIZE) == (16_777_200, 128, 16_777_216)
    assert layout.MAX_RECORD_SIZE == 16_777_216


def test_the_codes_of_the_statuses_are_frozen() -> None:
    codes = ("", "initializing", "active", "idle", "terminating", "terminated")
    assert codes == layout.STATUS_CODES


@pytest.mark.parametrize(
    ("capacity", "size"),
    [
        (1, 5),
        (8, 37),
        (64, 277),
        (100, 431),
        (1000, 4327),
        (1024, 4409),
        (4096, 17_623),
        (10_000, 43_003),
        (16_384, 70_457),
        (65_536, 281_807),
        (100_000, 430_007),
        (262_144, 1_127_221),
        (1_000_000, 4_404_047),
        (1_048_576, 4_508_879),
        (MAX_CAPACITY, 72_141_967),
    ],
)
def test_the_index_size_of_a_capacity_is_frozen(capacity: int, size: int) -> None:
    assert index_size_for(capacity) == size


@pytest.mark.parametrize(
    ("capacity", "slot_size", "offsets"),
    [
        (8, 128, (64, 2392, 2432, 5504)),
        (16_384, 512, (64, 565_752, 636_224, 9_033_024)),
        (1_048_576, 512, (64, 36_073_128, 40_582_016, 577_461_120)),
    ],
)
def test_the_parts_of_a_table_are_frozen(
    capacity: int, slot_size: int, offsets: tuple[int, ...]
) -> None:
    made = Geometry.for_capacity(capacity, slot_size)
    assert (made.index_offset, made.reach_offset, made.slots_offset, made.size) == offsets


# ---------------------------------------------------------------------------- fields that agree


def _fields(layout: struct.Struct) -> list[tuple[int, str]]:
    """Return offset and code of each field of a struct; padding is none."""
    fields, at = [], 0
    assert layout.format.startswith("<")
    for count, code in re.findall(r"(\d*)([A-Za-z])", layout.format):
        size = struct.calcsize(f"<{count}{code}")
        if code == "s":
            fields.append((at, count + code))
        elif code != "x":
            each = struct.calcsize(f"<{code}")
            fields += [(start, code) for start in range(at, at + size, each)]
        at += size
    assert at == layout.size
    return fields


def _columns() -> dict[str, tuple[int, np.dtype]]:
    return {name: (at, kind) for name, (kind, at) in SLOT_DTYPE.fields.items()}


def _overlaps(extents: Iterable[tuple[int, int]]) -> bool:
    """Return whether any of some offsets with sizes reaches into the next."""
    pairs = itertools.pairwise(sorted(extents))
    return any(at + size > following for (at, size), (following, _) in pairs)


def test_the_fields_of_a_table_header_are_those_of_its_struct() -> None:
    assert list(TABLE_FIELDS.values()) == _fields(TABLE_HEADER)


def test_the_head_of_a_slot_is_where_its_header_begins() -> None:
    assert SLOT_HEADER.format.startswith(SLOT_HEAD.format)


def test_each_column_stands_where_a_field_of_the_slot_header_stands() -> None:
    fields = {at: struct.calcsize(f"<{code}") for at, code in _fields(SLOT_HEADER)}
    for name, (at, kind) in _columns().items():
        assert fields[at] == kind.itemsize, name


def test_each_column_has_the_sign_of_its_field() -> None:
    codes = dict(_fields(SLOT_HEADER))
    for name, (at, kind) in _columns().items():
        if kind.kind != "V":
            assert (kind.kind == "i") == codes[at].islower(), name


def test_the_columns_are_as_long_as_the_header() -> None:
    assert SLOT_DTYPE.itemsize == SLOT_HEADER.size == SLOT_HEADER_SIZE


def test_columns_do_not_overlap() -> None:
    assert not _overlaps((at, kind.itemsize) for at, kind in _columns().values())


def test_the_crc_stands_where_its_column_says() -> None:
    assert _columns()["header_crc"][0] == SLOT_CRC_OFFSET


def test_the_crc_of_a_slot_header_is_its_last_field() -> None:
    assert _fields(SLOT_HEADER)[-1] == (SLOT_CRC_OFFSET, "I")


def test_a_packed_slot_reads_alike_as_a_head_and_as_columns() -> None:
    packed = pack_slot(_full_session())
    row = np.frombuffer(packed, SLOT_DTYPE, 1)[0]
    names = "session_id", "version", "created_at", "updated_at", "pid", "payload_length", "status"
    assert SLOT_HEAD.unpack_from(packed) == tuple(row[name].item() for name in names)


def _control_extents() -> dict[str, tuple[int, int]]:
    sizes = {"instance": 16, "socket_path": layout.SOCKET_PATH_SIZE}
    return {name: (at, sizes.get(name, 8)) for name, at in CONTROL_FIELDS.items()}


def test_the_fields_of_the_control_do_not_overlap() -> None:
    assert not _overlaps(_control_extents().values())


def test_the_fields_of_the_control_lie_inside_it() -> None:
    assert all(0 <= at <= at + size <= CONTROL_SIZE for at, size in _control_extents().values())


def test_the_words_of_the_control_are_aligned() -> None:
    assert all(at % 8 == 0 for at in CONTROL_FIELDS.values())


def test_the_change_word_has_a_cache_line_of_its_own() -> None:
    change = CONTROL_FIELDS["change"] // 64
    for name, (at, size) in _control_extents().items():
        assert name == "change" or not at // 64 <= change <= (at + size - 1) // 64


# ---------------------------------------------------------------------------- index words


@pytest.mark.parametrize(
    ("version", "slot", "word"),
    [
        (1, 0, 0x0000000001_000000),
        (1, 1, 0x0000000001_000001),
        (2, SLOT_MASK, 0x0000000002_FFFFFF),
        (0xABCDEF0123, 0x456789, 0xABCDEF0123_456789),
        (2**40 - 1, SLOT_MASK, 0xFFFFFFFFFF_FFFFFF),
        (2**40 + 5, 3, 0x0000000005_000003),
    ],
)
def test_the_word_of_a_version_and_slot_is_frozen(version: int, slot: int, word: int) -> None:
    assert index_word(version, slot) == word


@given(st.integers(1, 2**40 - 1), st.integers(0, SLOT_MASK))
def test_a_word_keeps_version_and_slot_and_is_none_of_the_others(version: int, slot: int) -> None:
    word = index_word(version, slot)
    assert (word >> 24, word & SLOT_MASK) == (version, slot)
    assert CLOSED < word < 2**64


# ---------------------------------------------------------------------------- geometry


def _sieve(limit: int) -> list[int]:
    marks = bytearray([1]) * limit
    marks[:2] = b"\0\0"
    for number in range(2, int(limit**0.5) + 1):
        marks[number * number :: number] = bytes(len(range(number * number, limit, number)))
    return [number for number, mark in enumerate(marks) if mark]


PRIMES = _sieve(8600)
POWERS = [2**exponent for exponent in range(29)]


def _qualifies(number: int) -> bool:
    """Return whether a number is prime and farther than 5% from each power of two."""
    far = all(100 * abs(number - power) > 5 * power for power in POWERS)
    return far and all(number % prime for prime in PRIMES if prime * prime <= number)


@given(capacities)
@example(1_000_000)
@example(1_048_576)
@example(MAX_CAPACITY)
def test_the_index_size_is_the_first_number_from_4_3_times_on_that_qualifies(
    capacity: int,
) -> None:
    least = math.ceil(Fraction("4.3") * capacity)
    first = next(number for number in itertools.count(least) if _qualifies(number))
    assert index_size_for(capacity) == first


@pytest.mark.parametrize("exponent", range(9, 21))
def test_no_index_size_lies_within_5_percent_of_a_power_of_two(exponent: int) -> None:
    power = 2**exponent
    within = index_size_for(power * 10 // 43)
    assert within == next(n for n in itertools.count(power * 105 // 100) if _qualifies(n))


@given(capacities, slot_sizes)
def test_the_parts_of_a_table_follow_one_another(capacity: int, slot_size: int) -> None:
    made = Geometry.for_capacity(capacity, slot_size)
    assert made.index_offset >= TABLE_HEADER_SIZE
    assert made.reach_offset >= made.index_offset + 8 * (made.index_size + MAX_DISTANCE)
    assert made.slots_offset >= made.reach_offset + made.index_size
    assert made.size == made.slots_offset + made.slot_count * made.slot_size


@given(capacities, slot_sizes)
def test_the_parts_of_a_table_are_aligned(capacity: int, slot_size: int) -> None:
    made = Geometry.for_capacity(capacity, slot_size)
    assert made.index_offset % 8 == 0
    assert made.slots_offset % 64 == 0
    assert made.slot_size % 64 == 0


@given(capacities, slot_sizes)
def test_a_geometry_keeps_what_it_was_made_for(capacity: int, slot_size: int) -> None:
    made = Geometry.for_capacity(capacity, slot_size)
    assert (made.capacity, made.slot_size) == (capacity, slot_size)
    assert made.entries == made.index_size + MAX_DISTANCE


@given(capacities, slot_sizes)
def test_a_geometry_that_was_made_is_sane(capacity: int, slot_size: int) -> None:
    assert Geometry.for_capacity(capacity, slot_size).is_sane()


@given(capacities, slot_sizes)
def test_the_farthest_entry_that_a_byte_of_reach_leads_to_is_the_last(
    capacity: int, slot_size: int
) -> None:
    made = Geometry.for_capacity(capacity, slot_size)
    last_home = made.index_size - 1
    assert last_home + 255 == made.entries == (made.reach_offset - made.index_offset) / 8


def test_each_slot_of_the_largest_table_has_a_number() -> None:
    assert Geometry.for_capacity(MAX_CAPACITY, 128).slot_count - 1 == SLOT_MASK


@pytest.mark.parametrize(
    "sizes",
    [
        {"index_size": 0},
        {"slot_count": 0},
        {"slot_count": SPARE_SLOTS},
        {"slot_count": 2**24 + 1},
        {"slot_size": 0},
        {"slot_size": 64},
        {"slot_size": 127},
        {"slot_size": 130},
        {"slot_size": MAX_SLOT_SIZE + 64},
    ],
    ids=str,
)
def test_sizes_that_no_table_can_have_are_not_sane(sizes: dict[str, int]) -> None:
    sound = {"index_size": 37, "slot_count": 24, "slot_size": 512}
    assert Geometry(**sound).is_sane()
    assert not Geometry(**sound | sizes).is_sane()


@pytest.mark.parametrize("capacity", [1, MAX_CAPACITY])
@pytest.mark.parametrize("slot_size", [MIN_SLOT_SIZE, MAX_SLOT_SIZE])
def test_the_limits_themselves_are_taken(capacity: int, slot_size: int) -> None:
    assert Geometry.for_capacity(capacity, slot_size).capacity == capacity


@pytest.mark.parametrize("capacity", [0, -1, MAX_CAPACITY + 1, 2**64])
def test_a_capacity_outside_the_limits_is_refused(capacity: int) -> None:
    text = f"^capacity is {capacity}: it must be 1 to 16777200 slots$"
    with pytest.raises(ValueError, match=text):
        Geometry.for_capacity(capacity, 512)


@pytest.mark.parametrize("slot_size", [0, -64, 64, 127, 129, 500, MAX_SLOT_SIZE + 64])
def test_a_slot_size_outside_the_limits_is_refused(slot_size: int) -> None:
    text = f"^slot_size is {slot_size}: it must be a multiple of 64 from 128 to 16777216 bytes$"
    with pytest.raises(ValueError, match=text):
        Geometry.for_capacity(8, slot_size)


def _index_bytes(made: Geometry) -> int:
    return made.reach_offset - made.index_offset + made.index_size


@functools.cache
def _geometries() -> list[Geometry]:
    """Return tables for 64 to 1,000,000 sessions: small ones, beside a power of two, and random."""
    rng = random.Random(64)
    beside = [2**n * 19 // 86 + d for n in range(9, 22) for d in (-1, 0, 1)]
    among = [rng.randint(64, 100_000) for _ in range(200)]
    chosen = [*range(64, 400), *beside, *among, 1_000_000]
    return [Geometry.for_capacity(c, 512) for c in chosen if 64 <= c <= 1_000_000]


def test_index_and_reach_take_at_most_48_bytes_a_slot_from_231_sessions_on() -> None:
    # Below that, the room at the end of the index (2,032 bytes whatever the capacity) weighs more.
    for made in _geometries():
        assert made.capacity < 231 or _index_bytes(made) <= 48 * made.slot_count, made


def test_index_and_reach_take_at_most_57_bytes_a_slot_from_64_sessions_on() -> None:
    assert all(_index_bytes(made) <= 57 * made.slot_count for made in _geometries())


def test_index_and_reach_less_the_room_at_the_end_take_at_most_44_bytes_a_slot() -> None:
    for made in _geometries():
        assert _index_bytes(made) - 8 * MAX_DISTANCE <= 44 * made.slot_count, made


# ---------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", ["a", "Z", "0", "-", "_", "a-b_C9", "x" * 64, "-rf", "__init__", "0" * 64]
)
def test_a_name_is_taken_as_it_is(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a.b",
        ".",
        "..",
        "a/b",
        "/a",
        "a\n",
        "\na",
        "a b",
        " ",
        "a\0",
        "x" * 65,
        "caf\u00e9",
        "\u0430",  # a Cyrillic a
        "\u0661",  # an Arabic 1
        "\uff11",  # a full-width 1
        "\u212a",  # the Kelvin sign, which lower-cases to k
        "\u017f",  # the long s, which upper-cases to S
        "\ud800",
        b"a",
        bytearray(b"a"),
        None,
        1,
        ["a"],
        UUID(int=0),
    ],
    ids=ascii,
)
def test_what_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(InvalidName) as caught:
        check_name(name)
    assert caught.value.name == repr(name)[:80]


@given(st.text(), st.integers(0))
def test_no_table_has_the_name_of_a_control(name: str, generation: int) -> None:
    table = table_name("a", generation)
    try:
        assert control_name(check_name(name)) != table
    except InvalidName:
        assert re.fullmatch("[A-Za-z0-9_-]{1,64}", name, re.ASCII) is None


def test_the_names_of_objects_are_frozen() -> None:
    assert control_name("agents") == "/jidoka_shm.agents"
    assert table_name("agents", 12) == "/jidoka_shm.agents.12"


# ---------------------------------------------------------------------------- homes

COUNT = 16_384


def _distances(ids: Iterable[int]) -> tuple[int, float]:
    """Return the longest and the mean distance from home, each id in the first empty entry."""
    made = Geometry.for_capacity(COUNT, 512)
    taken = bytearray(made.entries)
    distances = []
    for key in ids:
        home = key % made.index_size
        entry = taken.index(0, home)
        taken[entry] = 1
        distances.append(entry - home)
    assert len(distances) == COUNT
    return max(distances), sum(distances) / COUNT


def _ticks(rng: random.Random, step: int) -> Iterator[int]:
    """Yield the 100-ns ticks since 1582 of a burst: each ``step`` later, or up to -``step``."""
    now = 0x1F0_0000_0000_0000 + rng.getrandbits(48)
    for _ in range(COUNT):
        yield now
        now += step if step > 0 else rng.randint(1, -step)


def _version_1(ticks: int, clock_seq: int, node: int) -> int:
    low, middle, high = ticks & 0xFFFF_FFFF, ticks >> 32 & 0xFFFF, ticks >> 48
    clock = clock_seq >> 8 & 0x3F | 0x80, clock_seq & 0xFF
    return UUID(fields=(low, middle, high | 0x1000, *clock, node)).int


def _version_6(ticks: int, clock_seq: int, node: int) -> int:
    clock = clock_seq & 0x3FFF | 0x8000
    return ticks >> 12 << 80 | 0x6000 + (ticks & 0xFFF) << 64 | clock << 48 | node


def _version_7(milliseconds: int, a: int, b: int) -> int:
    return milliseconds << 80 | 0x7000 + a << 64 | 2 << 62 | b


#: Ticks from one id to the next: as fast as the standard library makes them, a fixed pace, and
#: a pace that varies up to so many.
PACES = [1, 2, 7, 10, 16, 100, 256, 1000, 10_000, -3, -20, -300]


def _worst(bursts: Iterable[Iterable[int]]) -> int:
    return max(_distances(ids)[0] for ids in bursts)


def test_the_generators_make_ids_of_their_versions() -> None:
    one, six = (
        UUID(int=make(0x1EC9414C232AB00, 0x33C8, 0x9F6BDECED846))
        for make in (_version_1, _version_6)
    )
    seven = UUID(int=_version_7(0x017F22E279B0, 0xCC3, 0x18C4DC0C0C07398F))
    # The examples of RFC 9562, appendix A.
    assert str(one) == "c232ab00-9414-11ec-b3c8-9f6bdeced846"
    assert str(six) == "1ec9414c-232a-6b00-b3c8-9f6bdeced846"
    assert str(seven) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


def test_random_ids_lie_at_most_0_3_from_home_in_the_mean() -> None:
    rng = random.Random(4)
    for _ in range(8):
        ids = [UUID(int=rng.getrandbits(128), version=4).int for _ in range(COUNT)]
        longest, mean = _distances(ids)
        assert longest <= 18
        assert mean <= 0.3


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("make", [_version_1, _version_6])
def test_a_burst_of_timed_ids_lies_at_most_18_from_home(make: object, pace: int) -> None:
    rng = random.Random(pace)
    for _ in range(6):
        clock_seq, node = rng.getrandbits(14), rng.getrandbits(48)
        longest, _ = _distances(make(ticks, clock_seq, node) for ticks in _ticks(rng, pace))
        assert longest <= 18


@pytest.mark.parametrize("make", [_version_1, _version_6])
def test_bursts_of_several_processes_lie_at_most_18_from_home(make: object) -> None:
    rng = random.Random(16)
    sources = [(rng.getrandbits(14), rng.getrandbits(48)) for _ in range(8)]
    ids = [make(ticks, *sources[at % 8]) for at, ticks in enumerate(_ticks(rng, -20))]
    assert _distances(ids)[0] <= 18


def test_a_burst_of_this_machines_version_1_ids_lies_at_most_18_from_home() -> None:
    assert _distances(uuid.uuid1().int for _ in range(COUNT))[0] <= 18


@pytest.mark.parametrize("a_millisecond", [1, 20, 1000, COUNT])
def test_a_burst_of_version_7_ids_lies_at_most_18_from_home(a_millisecond: int) -> None:
    # RFC 9562, 6.2: random bits; a counter in front of random bits; one random number counted up.
    rng = random.Random(a_millisecond)
    start = 1_700_000_000_000 + rng.getrandbits(36)
    times = [start + at // a_millisecond for at in range(COUNT)]
    fixed = rng.getrandbits(61)
    bursts = [
        [_version_7(time, rng.getrandbits(12), rng.getrandbits(62)) for time in times],
        [_version_7(t, at % 4096, rng.getrandbits(62)) for at, t in enumerate(times)],
        [_version_7(t, at % 4096, fixed) for at, t in enumerate(range(start, start + COUNT))],
        [_version_7(start, fixed & 0xFFF, fixed + at) for at in range(COUNT)],
    ]
    assert _worst(bursts) <= 18


@pytest.mark.parametrize("shift", [0, 1, 16, 24, 32, 48, 64, 96, 111])
def test_counted_ids_lie_at_most_18_from_home(shift: int) -> None:
    assert _distances(UUID(int=at << shift).int for at in range(COUNT))[0] <= 18
