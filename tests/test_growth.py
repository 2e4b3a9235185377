"""Placing the sessions of one table into the next: against a search for each, and what cannot be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import at, make_registry, make_writer
from tables import add, maps_of

import jidoka_shm
from jidoka_shm.errors import CorruptRegistry, RegistryFull
from jidoka_shm.growth import capacity_for, homes_of, plan
from jidoka_shm.layout import (
    CLOSED,
    MAX_DISTANCE,
    MOVED,
    ROOM_TO_END,
    SLOT_MASK,
    SPARE_SLOTS,
    Geometry,
    index_size_for,
)
from jidoka_shm.seqlock import settle
from jidoka_shm.table import TableGone
from jidoka_shm.writer import TableWriter

if TYPE_CHECKING:
    from types import FrameType

    from numpy.typing import NDArray

    from jidoka_shm.table import SessionTable

ids = st.integers(0, 2**128 - 1)


def _next(old: TableWriter, capacity: int, slot_size: int | None = None) -> TableWriter:
    """Return the table of another size that all sessions of ``old`` were placed into."""
    geometry = Geometry.for_capacity(capacity, slot_size or old.geometry.slot_size)
    new = TableWriter(bytearray(geometry.size), old.control, geometry)
    new.fill(old, plan(old, geometry))
    return new


def _sessions(writer: TableWriter) -> list[object]:
    entries, _ = writer.occupied()
    words = [writer.index.words[entry] for entry in entries.tolist()]
    return sorted((found.session_id, found) for found in writer.slots.inspect(words))  # type: ignore[union-attr]


# ---------------------------------------------------------------------------- where each one lies


@given(st.lists(ids), st.integers(1, 2**27))
def test_a_home_is_the_rest_of_the_whole_id(keys: list[int], size: int) -> None:
    raw = b"".join(key.to_bytes(16) for key in keys)
    assert homes_of(raw, size).tolist() == [key % size for key in keys]


@pytest.mark.parametrize("size", [index_size_for(1), index_size_for(2**24 - SPARE_SLOTS)])
def test_a_home_of_the_largest_ids_and_tables_overflows_nothing(size: int) -> None:
    keys = [2**128 - 1, 2**128 - 2**64, 2**64 - 1, 2**64, 0]
    raw = b"".join(key.to_bytes(16) for key in keys)
    assert homes_of(raw, size).tolist() == [key % size for key in keys]


@given(st.sets(st.integers(0, 60) | ids, min_size=1, max_size=40), st.integers(0, 40))
def test_all_are_there_afterwards_and_nothing_is_out_of_order(keys: set[int], more: int) -> None:
    old = make_writer(40, 128)
    add(old, *keys)
    new = _next(old, len(keys) + more)
    # A table of its own kind: with reaches, free slots and all.
    assert new.check() == []
    assert _sessions(new) == _sessions(old)
    for key in keys:
        assert new.look_up(UUID(int=key))[2] == old.look_up(UUID(int=key))[2]  # type: ignore[index]
    assert new.free_slots == new.slots.count - len(keys)


@given(st.sets(st.integers(0, 30) | ids, max_size=30))
def test_the_farthest_lies_no_farther_than_by_a_search_for_each(keys: set[int]) -> None:
    old = make_writer(40, 128)
    add(old, *keys)
    geometry = Geometry.for_capacity(30, 128)
    taken: set[int] = set()
    farthest = 0
    for key in sorted(keys, key=lambda key: key % geometry.index_size):
        home = key % geometry.index_size
        entry = next(entry for entry in range(home, geometry.entries) if entry not in taken)
        taken.add(entry)
        farthest = max(farthest, entry - home + 1)
    found = plan(old, geometry)
    assert set(found.entries.tolist()) == taken
    assert max(found.reach, default=0) == farthest


def test_a_word_keeps_its_version_and_names_the_slot_of_its_number() -> None:
    old = make_writer(8, 128)
    add(old, 5, 6, 7)
    found = plan(old, Geometry.for_capacity(3, 128))
    assert (found.words & SLOT_MASK).tolist() == [0, 1, 2]
    assert sorted((found.words >> 24).tolist()) == [1, 2, 3]


def test_nothing_is_placed_from_an_empty_table() -> None:
    new = _next(make_writer(8, 128), 1)
    assert (new.check(), len(new.occupied()[0]), new.free_slots) == ([], 0, 17)


def test_an_expired_one_that_is_not_removed_yet_goes_along() -> None:
    old = make_writer(4, 128)
    add(old, 1, 2, status="terminated", error="e")
    assert _sessions(_next(old, 2)) == _sessions(old)


def test_slots_of_another_size_hold_the_same_records() -> None:
    old = make_writer(4, 128)
    add(old, 1, 2, 3, metadata={"a": "b" * 20})
    larger = _next(old, 4, 1024)
    assert _sessions(larger) == _sessions(_next(larger, 3, 128)) == _sessions(old)


def test_placing_is_a_matter_of_passes_and_not_of_sessions() -> None:
    package = str(Path(jidoka_shm.__file__).parent)
    lines = []
    for count in (10, 1000):
        old = make_writer(count, 128)
        add(old, *range(count))
        seen = 0

        def trace(frame: FrameType, event: str, _: object) -> object:
            nonlocal seen
            seen += event == "line"
            return trace if frame.f_code.co_filename.startswith(package) else None

        geometry = Geometry.for_capacity(2 * count, 128)
        new = TableWriter(bytearray(geometry.size), old.control, geometry)
        sys.settrace(trace)
        try:
            new.fill(old, plan(old, geometry))
        finally:
            sys.settrace(None)
        lines.append(seen)
    assert lines[0] == lines[1]


# ---------------------------------------------------------------------------- what cannot be


def test_more_than_fit_are_refused() -> None:
    old = make_writer(8, 128)
    add(old, 1, 2, 3)
    with pytest.raises(RegistryFull) as caught:
        plan(old, Geometry.for_capacity(2, 128))
    assert (caught.value.needed, caught.value.available, caught.value.unit) == (3, 2, "slots")


def _records(table: SessionTable) -> dict[int, bytes]:
    return {
        each.session_id.int: each._payload for each in table.slots.inspect(_words(table).tolist())
    }


def _words(table: SessionTable) -> NDArray[np.uint64]:
    return table.occupied()[1]


@pytest.mark.parametrize("slot_size", [128, 192, 512, 4096])
def test_records_of_every_size_go_to_slots_of_another_size(slot_size: int) -> None:
    old = make_writer(100, 256)
    sizes = [0, 100, 122, 123, 124, 130, 200, 230, 400, 1000, 5000]
    for key, size in enumerate(sizes, 1):
        add(old, key, metadata={"a": "x" * size}, status="idle" if key % 2 else "terminated")
    before = _records(old)
    new = _next(old, 200, slot_size)
    assert _records(new) == before
    assert new.check() == []
    assert new.free_slots == new.slots.count - int(new.runs_of(_words(new))[1].sum())
    # What was apart lies together.
    starts, runs = new.runs_of(np.sort(_words(new) & np.uint64(SLOT_MASK)))
    assert (starts == np.cumsum(runs) - runs).all()


def test_what_must_stay_free_beside_long_records_is_counted() -> None:
    old = make_writer(40, 128)
    add(old, 1, metadata={"a": "x" * 600})
    add(old, 2)
    long = old.space.longest
    # One slot, the record, and a reserve for it.
    plan(old, Geometry.for_capacity(1 + 2 * long, 128))
    with pytest.raises(RegistryFull) as full:
        plan(old, Geometry.for_capacity(2 * long, 128))
    assert (full.value.needed, full.value.available) == (1 + 2 * long, 2 * long)
    # With room for another one that is longer, the reserve is for that.
    plan(old, Geometry.for_capacity(1 + long + 2 * 9, 128), room=9)
    with pytest.raises(RegistryFull):
        plan(old, Geometry.for_capacity(long + 2 * 9, 128), room=9)


@pytest.mark.parametrize(
    ("singles", "long", "room", "limit", "expected"),
    [
        # It doubles, and stops at the limit, where no more than one slot is needed.
        (40, 0, 1, 1000, 80),
        (40, 0, 1, 50, 50),
        (40, 0, 1, 40, None),
        (40, 0, 1, 0, None),
        # Until the record and a reserve for it find room.
        (40, 0, 30, 1000, 160),
        (40, 0, 30, 100, 100),
        (40, 0, 30, 99, None),
        # The reserve is as long as the longest, where that is longer than the new record.
        (1, 10, 5, 1000, 40),
        (1, 10, 20, 1000, 80),
        # In as many slots, where a quarter of them stays free, or there may be no more.
        (10, 0, 10, 1000, 40),
        (11, 0, 10, 1000, 80),
        (11, 0, 10, 40, 40),
        (20, 0, 10, 0, 40),
        (21, 0, 10, 0, None),
    ],
)
def test_the_capacity_to_go_on_with(
    singles: int, long: int, room: int, limit: int, expected: int | None
) -> None:
    table = make_writer(40, 128)
    add(table, *range(singles))
    if long:
        add(table, 99, metadata={"a": "x" * (128 * long - 150)})
        assert table.space.longest == long
    assert capacity_for(table, room, limit) == expected


def test_room_for_its_end_stays_to_each_session_that_lives() -> None:
    # 64 bytes of header, and what msgpack needs around the text.
    text = 256 - ROOM_TO_END - 64 - len(b"\x92\x81\xa1a\xd9\x00\x80")
    for status, size, runs in (
        ("idle", text, 2),
        ("idle", text - 40, 2),
        ("terminated", text - 40, 1),
    ):
        old = make_writer(8, 256)
        add(old, 1, metadata={"a": "x" * size}, status=status)
        assert old.free_slots == old.slots.count - 1
        # 192 bytes hold all of one that has ended, but not of one that is to end.
        new = _next(old, 8, 192)
        assert new.free_slots == new.slots.count - runs


def test_ids_that_are_not_parted_are_refused() -> None:
    old = make_writer(300, 128)
    geometry = Geometry.for_capacity(600, 128)
    both = old.geometry.index_size * geometry.index_size
    add(old, *[both * k for k in range(MAX_DISTANCE + 1)])
    plan(old, geometry)
    # Not even an entry is left for another one of their home; for one beside it there is.
    with pytest.raises(RegistryFull, match="entries near"):
        plan(old, geometry, UUID(int=both * 999))
    plan(old, geometry, UUID(int=both * 999 + 1))
    small = Geometry.for_capacity(299, 128)
    assert small.index_size != old.geometry.index_size
    far = make_writer(600, 128)
    step = small.index_size
    add(far, *[step * k for k in range(MAX_DISTANCE + 2)])
    with pytest.raises(RegistryFull, match="entries near"):
        plan(far, small)


def _rename(writer: TableWriter, slot: int) -> None:
    entry = writer.look_up(UUID(int=1))[0]  # type: ignore[index]
    word = writer.index.words[entry]
    writer.index.words[entry] = word & ~SLOT_MASK | slot


def _damage(writer: TableWriter, offset: int, value: int) -> None:
    slot = writer.look_up(UUID(int=1))[1] & SLOT_MASK  # type: ignore[index]
    writer.slots.memory[writer.slots.offset(slot) + offset] = value


@pytest.mark.parametrize(
    "damage",
    [
        lambda writer: _rename(writer, 99),
        lambda writer: _rename(writer, writer.look_up(UUID(int=2))[1] & SLOT_MASK),
        lambda writer: _damage(writer, 16, 77),
        lambda writer: _damage(writer, 47, 255),
    ],
    ids=["no slot", "another's slot", "version", "length"],
)
def test_a_word_that_names_no_record_is_damage(damage: object) -> None:
    old = make_writer(8, 128)
    add(old, 1, 2)
    damage(old)  # type: ignore[operator]
    with pytest.raises(CorruptRegistry):
        plan(old, Geometry.for_capacity(16, 128))


@pytest.mark.parametrize("word", [MOVED, CLOSED])
def test_a_table_that_was_given_up_is_not_placed_again(word: int) -> None:
    old = make_writer(8, 128)
    add(old, 1)
    old.index.words[200] = word
    with pytest.raises(TableGone):
        plan(old, Geometry.for_capacity(16, 128))


def test_versions_go_on_beyond_a_growth() -> None:
    old = make_writer(8, 128)
    settle(old.change, 2**40 - 10)
    add(old, 1)
    new = _next(old, 16)
    assert new.look_up(UUID(int=1))[2].version == 2**40 - 9  # type: ignore[index]
    add(new, 2)
    assert new.look_up(UUID(int=2))[2].version == 2**40 - 8  # type: ignore[index]


def test_a_registry_without_more_room_says_what_the_table_says() -> None:
    registry = make_registry(make_writer(1, 128))
    fields = {"owner": None, "ttl": None, "now": at(1), **maps_of()}
    registry.create(UUID(int=1), **fields)
    with pytest.raises(RegistryFull, match="1 slots"):
        registry.create(UUID(int=2), **fields)
