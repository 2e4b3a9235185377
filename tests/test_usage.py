"""How slots are used: counted by numpy as by hand, beside a writer too, and the best slot size."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any
from unittest.mock import ANY
from uuid import UUID

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import make_writer, reader_of, session
from tables import add, both_ways, copies_of

from jidoka_shm import seqlock, usage
from jidoka_shm.errors import CorruptRegistry, RegistryFull
from jidoka_shm.layout import (
    MAX_RECORD_SIZE,
    MAX_SLOT_SIZE,
    MOVED,
    SLOT_CRC_OFFSET,
    SLOT_HEADER_SIZE,
    SLOT_MASK,
    SPARE_SLOTS,
    Geometry,
    index_word,
)
from jidoka_shm.session import SessionStatus
from jidoka_shm.slots import pack_slot
from jidoka_shm.table import TableGone
from jidoka_shm.usage import Usage, best_slot_size, bytes_with, measure

if TYPE_CHECKING:
    from collections.abc import Callable

    from jidoka_shm.table import SessionTable
    from jidoka_shm.writer import TableWriter

S = SessionStatus


def _of(bytes_: int) -> dict[str, Any]:
    """Return fields that make a record, its header included, of so many bytes."""
    # Beside a text of 256 bytes or more, with its header of three, stand eight in all.
    return {"metadata": {"a": "x" * (bytes_ - 64 - 8)}}


def _slowly(writer: TableWriter) -> Usage:
    """Return what ``measure`` does of a table at rest, slot by slot."""
    size, count = writer.geometry.slot_size, writer.geometry.slot_count
    taken, sizes, rooms, runs, distances = [0] * count, [], [], [], []
    for entry, word in enumerate(writer.index.words):
        if word:
            head, payload = writer.slots.copy_whole(word)
            sizes.append(64 + len(payload))
            rooms.append(sizes[-1] + (0 if head[6] == 5 else 32))
            runs.append(-(-rooms[-1] // size))
            for slot in range(word & SLOT_MASK, (word & SLOT_MASK) + runs[-1]):
                taken[slot] += 1
            distances.append(entry - int.from_bytes(head[0]) % writer.geometry.index_size)
    assert max(taken) <= 1
    free = taken.count(0)
    places = Counter((run - 1).bit_length() for run in runs)
    best = _best_slowly(rooms) if rooms else None
    return Usage(
        version=writer.change[0] // 2,
        sessions=len(sizes),
        slot_size=size,
        slots_used=count - free,
        slots_free=free,
        free_bytes=free * size,
        longest_free_run=max(map(len, "".join(map(str, taken)).split("1"))),
        record_bytes=sum(sizes),
        unused_bytes=sum(runs) * size - sum(sizes),
        run_lengths=tuple(places[at] for at in range(max(places, default=-1) + 1)),
        mean_distance=sum(distances) / len(distances) if distances else 0.0,
        most_distance=max(distances, default=0),
        best_slot_size=best,
        bytes_saved=0 if best is None else _bytes_slowly(rooms, size) - _bytes_slowly(rooms, best),
    )


def _bytes_slowly(rooms: list[int], slot_size: int) -> int:
    return _tenths_slowly(rooms, slot_size) // 10


def _tenths_slowly(rooms: list[int], slot_size: int) -> int:
    runs = [-(-room // slot_size) for room in rooms]
    slots = sum(runs) + (max(runs) if max(runs) > 1 else 0)
    return slots * (slot_size * 10 + 43 * 9)


def _best_slowly(rooms: list[int]) -> int:
    sizes = range(128, max(128, *rooms) + 64, 64)
    return min(sizes, key=lambda size: (_tenths_slowly(rooms, size), -size))


# ---------------------------------------------------------------------------- at rest


@both_ways
def test_an_empty_table_is_free_and_no_slot_size_is_better(*, verify: bool) -> None:
    used = measure(reader_of(make_writer(8, 512), verify=verify))
    assert used == Usage(
        version=0,
        sessions=0,
        slot_size=512,
        slots_used=0,
        slots_free=24,
        free_bytes=24 * 512,
        longest_free_run=24,
        record_bytes=0,
        unused_bytes=0,
        run_lengths=(),
        mean_distance=0.0,
        most_distance=0,
        best_slot_size=None,
        bytes_saved=0,
    )


@both_ways
def test_each_figure_of_a_few_records(*, verify: bool) -> None:
    writer = make_writer(40, 512)
    home = writer.geometry.index_size
    add(writer, 1, 1 + home, metadata={})
    add(writer, 2, **_of(480))
    add(writer, 3, **_of(481))
    add(writer, 4, **_of(2017))
    used = measure(reader_of(writer, verify=verify))
    assert used.run_lengths == (3, 1, 0, 1)
    assert (used.slots_used, used.slots_free, used.longest_free_run) == (10, 46, ANY)
    empty = 64 + 3
    assert used.record_bytes == 2 * empty + 480 + 481 + 2017
    assert used.unused_bytes == 10 * 512 - used.record_bytes
    # The second one of home 1 lies at 2, and pushes those of 2 and 3 by one, too.
    assert (used.mean_distance, used.most_distance) == (0.8, 1)
    assert used == _slowly(writer)


def test_a_terminated_record_needs_no_room_to_end() -> None:
    writer = make_writer(8, 128)
    fields = {"metadata": {"a": "x" * 40}}
    add(writer, 1, status="active", **fields)
    assert measure(writer).run_lengths == (0, 1)
    writer.replace(1, session(writer, 1, status="terminated", **fields))
    assert measure(writer).run_lengths == (1,)


def test_a_value_is_frozen_and_can_be_copied() -> None:
    writer = make_writer()
    add(writer, 1, 2)
    used = measure(writer)
    assert all(copy == used for copy in copies_of(used))
    assert hash(used) == hash(measure(writer))
    with pytest.raises(AttributeError):
        used.sessions = 5  # type: ignore[misc]


_steps = st.lists(
    st.tuples(st.integers(0, 11), st.integers(0, 1500), st.sampled_from([*S])), max_size=30
)


@both_ways
@given(steps=_steps, slot_size=st.sampled_from([128, 192, 512]))
def test_it_is_what_counting_by_hand_finds(
    steps: list[tuple[int, int, SessionStatus]], slot_size: int, *, verify: bool
) -> None:
    writer = make_writer(40, slot_size)
    for number, size, status in steps:
        # Three homes, so that sessions lie apart from theirs.
        key = number % 3 + number // 3 * writer.geometry.index_size
        found = writer.look_up(UUID(int=key))
        made = session(writer, key, status=status, metadata={"a": "x" * size})
        try:
            if found is None:
                writer.insert(made)
            elif size % 3:
                writer.replace(found[0], made)
            else:
                writer.remove(found[0])
        except RegistryFull:
            continue
    assert measure(reader_of(writer, verify=verify)) == _slowly(writer)


# ---------------------------------------------------------------------------- beside a writer


def _met(table: SessionTable, change: Callable[[], object], times: int) -> list[int]:
    """Have each copy of all headers met by a commit, so many times; return what is left of them."""
    left, real = [times], table.slots.copy_headers

    def copy_headers(words: Any) -> Any:  # noqa: ANN401 - numpy's
        copied = real(words)
        if left[0]:
            left[0] -= 1
            change()
        return copied

    table.slots.copy_headers = copy_headers
    return left


@both_ways
def test_a_commit_in_between_makes_it_look_again(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 1, 2)
    table = reader_of(writer, verify=verify)
    left = _met(table, lambda: writer.replace(1, session(writer, 1, **_of(900))), 2)
    assert measure(table) == _slowly(writer)
    assert left == [0]


@both_ways
def test_a_writer_that_leaves_no_moment_is_not_waited_for(*, verify: bool) -> None:
    writer = make_writer(20, 512)
    add(writer, 1, 2, 3)
    sizes = iter([400, 900] * 10)
    table = reader_of(writer, verify=verify)
    left = _met(table, lambda: writer.replace(2, session(writer, 2, **_of(next(sizes)))), 20)
    used = measure(table)
    assert left == [17]
    # What it met was read again, so the figures are those that stand now.
    by_hand = _slowly(writer)
    assert used.version is None
    assert used.run_lengths == by_hand.run_lengths
    assert used.record_bytes == by_hand.record_bytes
    assert used.slots_used + used.slots_free == 20 + SPARE_SLOTS


@both_ways
def test_one_that_moves_meanwhile_counts_once(*, verify: bool) -> None:
    writer = make_writer(20, 128)
    home = writer.geometry.index_size
    near, far = 5, 5 + home
    add(writer, near, far, **_of(400))
    table = reader_of(writer, verify=verify)

    def move() -> None:
        for key in (far, near):
            found = writer.look_up(UUID(int=key))
            if found is not None:
                writer.remove(found[0])
        add(writer, far, near, **_of(400))

    _met(table, move, 20)
    used = measure(table)
    assert (used.sessions, sum(used.run_lengths)) == (2, 2)


@both_ways
def test_a_commit_that_was_cut_short_is_no_reason_to_look_again(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 1)
    seqlock.hold(writer.change, writer.next_version())
    table = reader_of(writer, verify=verify)
    left = _met(table, lambda: None, 5)
    used = measure(table)
    assert (used.version, used.sessions) == (None, 1)
    assert left == [4]


def test_a_table_that_was_given_up_is_gone() -> None:
    writer = make_writer()
    add(writer, 1)
    seqlock.give_up(writer.index.words, writer.reach, MOVED)
    with pytest.raises(TableGone):
        measure(reader_of(writer))


# ---------------------------------------------------------------------------- damage


@given(
    spots=st.lists(
        st.tuples(st.integers(64, 5000), st.binary(min_size=1, max_size=24)),
        min_size=1,
        max_size=6,
    )
)
def test_damage_ends_in_figures_or_in_a_typed_error(spots: list[tuple[int, bytes]]) -> None:
    writer = make_writer(4, 128)
    add(writer, 3, 3 + writer.geometry.index_size)
    memory = writer.slots.memory
    for start, raw in spots:
        at = start % len(memory)
        memory[at : at + len(raw)] = raw[: len(memory) - at]
    try:
        used = measure(reader_of(writer))
    except (CorruptRegistry, TableGone):
        return
    assert used.slots_used + used.slots_free == 4 + SPARE_SLOTS
    assert 0 <= used.longest_free_run <= used.slots_free
    assert used.bytes_saved >= 0


def _put(writer: TableWriter, key: int, slot: int, metadata: dict[str, str]) -> None:
    """Have an entry name a record at a slot that no writer would have given it."""
    packed = pack_slot(session(writer, key, metadata=metadata))
    start = writer.slots.offset(slot)
    writer.slots.memory[start : start + len(packed)] = packed
    writer.index.words[key] = index_word(writer.next_version(), slot)


def test_a_slot_that_two_records_share_is_used_once() -> None:
    writer = make_writer(20, 128)
    add(writer, 1, metadata={"a": "x" * 500})
    first = writer.index.words[1] & SLOT_MASK
    _put(writer, 2, first + 1, {})
    used = measure(reader_of(writer))
    assert used.run_lengths == (1, 0, 0, 1)
    assert (used.slots_used, used.slots_free) == (5, 20 + SPARE_SLOTS - 5)
    assert used.longest_free_run == max(first, 20 + SPARE_SLOTS - first - 5)


def test_a_record_that_ends_beyond_the_table_uses_no_slot_there() -> None:
    writer = make_writer(20, 128)
    # All of its bytes are there, and what is kept for its end is not.
    _put(writer, 2, 20 + SPARE_SLOTS - 1, {"a": "x" * 50})
    used = measure(reader_of(writer))
    assert used.run_lengths == (0, 1)
    assert (used.slots_used, used.longest_free_run) == (1, 20 + SPARE_SLOTS - 1)


@both_ways
def test_a_length_that_no_record_has_is_taken_for_the_longest(*, verify: bool) -> None:
    writer = make_writer(4, 512)
    add(writer, 1)
    start = writer.slots.offset(writer.index.words[1] & SLOT_MASK)
    header = writer.slots.memory[start : start + SLOT_CRC_OFFSET]
    header[44:48] = b"\xff\xff\xff\xff"
    crc = zlib.crc32(header).to_bytes(4, "little")
    writer.slots.memory[start : start + SLOT_HEADER_SIZE] = header + crc
    used = measure(reader_of(writer, verify=verify))
    assert used.record_bytes == MAX_RECORD_SIZE
    assert used.best_slot_size is not None
    assert used.best_slot_size <= MAX_SLOT_SIZE


# ---------------------------------------------------------------------------- the best slot size

_rooms = st.lists(st.integers(96, 3000) | st.integers(96, 400), min_size=1, max_size=12)


@given(rooms=_rooms)
@example([96])
@example([128, 128])
def test_the_best_slot_size_is_the_one_of_the_fewest_bytes(rooms: list[int]) -> None:
    room = np.array(rooms, np.int64)
    best = best_slot_size(room)
    assert best == _best_slowly(rooms)
    assert bytes_with(room, best) == _bytes_slowly(rooms, best)
    # One that a table can have.
    assert Geometry.for_capacity(1, best).slot_size == best


@pytest.mark.parametrize(
    ("rooms", "best"),
    [
        # As small as can be, and as long as the record.
        ([96] * 100, 128),
        ([220] * 100, 256),
        ([4300] * 100, 4352),
        # A few long ones take several slots; many short ones would waste most of a large one.
        ([220] * 900 + [20_000] * 9, 256),
        ([128] * 5 + [1000] * 100, 1024),
    ],
)
def test_which_slot_size_is_best(rooms: list[int], best: int) -> None:
    assert best_slot_size(np.array(rooms, np.int64)) == best


def test_of_two_that_come_to_the_same_the_larger_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without an index a slot costs its bytes alone, so the halves of a slot cost what it does.
    monkeypatch.setattr(usage, "_INDEX_OF_TEN", 0)
    room = np.array([256] * 100 + [1024], np.int64)
    assert bytes_with(room, 128) == bytes_with(room, 256) == 108 * 256
    assert best_slot_size(room) == 256
