"""A table's header: what was stored is read back, and nothing else is ever taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import INSTANCE

from jidoka_shm.errors import CorruptRegistry
from jidoka_shm.header import TableHeader
from jidoka_shm.layout import FORMAT_VERSION, SPARE_SLOTS, TABLE_HEADER_SIZE, Geometry

GEOMETRY = Geometry.for_capacity(1, 128)
HEADER = TableHeader(INSTANCE, 7, GEOMETRY, 0x0123456789)


def _stored(header: TableHeader = HEADER, size: int | None = None) -> bytearray:
    memory = bytearray(header.geometry.size if size is None else size)
    header.store(memory)
    return memory


@given(
    st.uuids(),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(1, 1000),
    st.integers(2, 8).map(lambda times: 64 * times),
)
def test_what_was_stored_is_read_back(
    instance: object, generation: int, base_version: int, capacity: int, slot_size: int
) -> None:
    geometry = Geometry.for_capacity(capacity, slot_size)
    header = TableHeader(instance, generation, geometry, base_version)
    assert TableHeader.read(_stored(header)) == header


def test_storing_leaves_the_rest_of_the_table_alone() -> None:
    memory = bytearray(b"\xee") * GEOMETRY.size
    HEADER.store(memory)
    assert set(memory[TABLE_HEADER_SIZE:]) == {0xEE}


def test_memory_that_is_all_zero_has_no_header_yet() -> None:
    assert TableHeader.read(bytearray(GEOMETRY.size)) is None


@pytest.mark.parametrize("size", range(TABLE_HEADER_SIZE))
def test_memory_too_short_for_a_header_has_none_yet(size: int) -> None:
    assert TableHeader.read(_stored()[:size]) is None


def test_a_header_without_its_magic_is_not_there_yet() -> None:
    memory = _stored()
    memory[:8] = bytes(8)
    assert TableHeader.read(memory) is None


def test_the_magic_is_stored_after_all_else() -> None:
    seen = []

    class Watched(bytearray):
        def __setitem__(self, place: slice, value: bytes) -> None:
            super().__setitem__(place, value)
            seen.append(TableHeader.read(self))

    memory = Watched(GEOMETRY.size)
    HEADER.store(memory)
    # The magic itself is stored through a view of one word.
    assert seen
    assert set(seen) == {None}
    assert TableHeader.read(memory) == HEADER


def test_each_flipped_bit_is_damage() -> None:
    """A10: each bit of a header, flipped."""
    sound = bytes(_stored())
    for bit in range(8 * TABLE_HEADER_SIZE):
        memory = bytearray(sound)
        memory[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptRegistry, match="does not fit its own crc"):
            TableHeader.read(memory)


@pytest.mark.parametrize("version", [0, FORMAT_VERSION - 1, FORMAT_VERSION + 1, 2**32 - 1])
def test_another_format_version_is_damage_though_its_crc_fits(
    version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("jidoka_shm.header.FORMAT_VERSION", version)
        memory = _stored()
        assert TableHeader.read(memory) == HEADER
    with pytest.raises(CorruptRegistry, match="or this format"):
        TableHeader.read(memory)


@pytest.mark.parametrize("change", [-64, -1, 1, 64])
def test_a_size_other_than_the_memorys_is_damage(change: int) -> None:
    size = GEOMETRY.size
    there = _stored()[: size + change].ljust(size + change, b"\0")
    with pytest.raises(CorruptRegistry, match=f"claims {size} bytes and there are {size + change}"):
        TableHeader.read(there)


@pytest.mark.parametrize(
    "sizes",
    [(0, 24, 512), (37, 0, 512), (37, SPARE_SLOTS, 512), (37, 24, 64), (37, 24, 500), (37, 24, 0)],
)
def test_sizes_that_no_table_can_have_are_damage(sizes: tuple[int, int, int]) -> None:
    names = "index_size", "slot_count", "slot_size"
    geometry = Geometry(**dict(zip(names, sizes, strict=True)))
    memory = _stored(TableHeader(INSTANCE, 1, geometry, 0))
    assert len(memory) == geometry.size
    with pytest.raises(CorruptRegistry, match="claims"):
        TableHeader.read(memory)


def test_the_largest_sizes_that_fit_their_fields_are_damage() -> None:
    geometry = Geometry(index_size=2**32 - 1, slot_count=2**32 - 1, slot_size=2**32 - 1)
    with pytest.raises(CorruptRegistry, match="claims"):
        TableHeader.read(_stored(TableHeader(INSTANCE, 1, geometry, 0), 4096))


@given(st.binary(max_size=2 * TABLE_HEADER_SIZE))
def test_any_bytes_are_no_header_or_damage(raw: bytes) -> None:
    try:
        assert TableHeader.read(bytearray(raw)) is None
    except CorruptRegistry:
        assert len(raw) >= TABLE_HEADER_SIZE


@given(st.integers(0, TABLE_HEADER_SIZE - 1), st.binary(min_size=1, max_size=TABLE_HEADER_SIZE))
def test_a_header_written_over_is_damage_or_the_same(start: int, raw: bytes) -> None:
    memory = _stored()
    memory[start : start + len(raw)] = raw[: TABLE_HEADER_SIZE - start]
    memory = memory[: GEOMETRY.size].ljust(GEOMETRY.size, b"\0")
    try:
        assert TableHeader.read(memory) in {HEADER, None}
    except CorruptRegistry:
        assert memory != _stored()
