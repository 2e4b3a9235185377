"""Free slots: nobody's slot is given twice, and what must stay free stays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jidoka_shm.layout import SPARE_SLOTS
from jidoka_shm.space import FreeSlots


def _lengths(space: FreeSlots) -> list[int]:
    """Return the free runs, neighbours put together, the longest first, by the slots alone."""
    found: list[list[int]] = []
    for slot in sorted(space):
        if found and found[-1][-1] == slot - 1:
            found[-1].append(slot)
        else:
            found.append([slot])
    return sorted(map(len, found), reverse=True)


def _full(count: int, *lengths: int) -> tuple[FreeSlots, list[int]]:
    """Return slots with records of these lengths, and the first slot of each."""
    space = FreeSlots(0, count, {})
    starts = [space.take(length) for length in lengths]
    assert None not in starts
    return space, starts  # type: ignore[return-value]


# ---------------------------------------------------------------------------- single slots


def test_all_slots_are_free_at_first() -> None:
    space = FreeSlots(3, 100, {})
    assert sorted(space) == [*range(3, 100)]
    assert len(space) == 97


def test_a_slot_that_was_given_back_rests_the_longest() -> None:
    space = FreeSlots(0, 100, {})
    first = space.singles.popleft()
    space.give_back(first)
    others = [space.singles.popleft() for _ in range(SPARE_SLOTS - 1)]
    assert first not in others
    assert space.singles.popleft() == first


def test_more_single_slots_come_from_runs_until_the_spare_ones_are_left() -> None:
    space = FreeSlots(0, 5000, {})
    taken = []
    while len(space.singles) > SPARE_SLOTS or space.restock():
        taken.append(space.singles.popleft())
    assert len(set(taken)) == 5000 - SPARE_SLOTS
    assert len(space) == SPARE_SLOTS
    space.give_back(taken.pop())
    assert len(space.singles) > SPARE_SLOTS


def test_single_slots_leave_the_reserve_alone() -> None:
    space, _ = _full(100, 7)
    while len(space.singles) > SPARE_SLOTS or space.restock():
        space.singles.popleft()
    assert (len(space), space.reserve()[1]) == (SPARE_SLOTS + 7, 7)


# ---------------------------------------------------------------------------- runs


def test_a_long_record_leaves_a_reserve_of_its_length() -> None:
    space = FreeSlots(0, SPARE_SLOTS + 19, {})
    assert space.take(10) is None
    assert space.available() == 9
    start = space.take(9)
    assert start is not None
    assert sorted({*space} | {*range(start, start + 9)}) == [*range(SPARE_SLOTS + 19)]
    assert space.reserve()[1] >= 9
    assert space.take(2) is None


def test_a_run_of_its_length_is_taken_before_a_longer_one() -> None:
    space, (first, _, third, _) = _full(200, 5, 5, 9, 9)
    space.give_back(third)
    space.give_back(first)
    assert (space.take(5), space.take(9)) == (first, third)


def test_what_lies_side_by_side_is_put_together_where_it_is_needed() -> None:
    space, starts = _full(SPARE_SLOTS + 44, *[4] * 10)
    assert space.take(8) is None
    for start in starts[:6]:
        space.give_back(start)
    # 24 side by side and 4 as before: 8 of them, and a reserve of 8.
    assert space.take(8) is not None
    assert space.has_reserve()


def test_what_lies_apart_is_not_enough() -> None:
    space, starts = _full(SPARE_SLOTS + 44, *[4] * 10)
    for start in starts[1::2]:
        space.give_back(start)
    assert len(space) == SPARE_SLOTS + 24
    assert space.take(9) is None
    assert space.available() <= 8
    assert space.take(4) is not None


@pytest.mark.parametrize("length", [2, 3, 4])
def test_a_record_that_grows_by_nothing_may_use_what_it_had_as_the_reserve(length: int) -> None:
    space, (start,) = _full(SPARE_SLOTS + 8, 4)
    taken = space.take_instead(length, start)
    assert taken is not None
    space.give_back(start)
    assert space.has_reserve()
    assert len(space) == SPARE_SLOTS + 8 - length


def test_a_shorter_record_finds_only_the_reserve_of_a_longer_one() -> None:
    space, (long, short) = _full(SPARE_SLOTS + 7 + 3 + 7, 7, 3)
    assert space.take_instead(3, short) is None
    assert space.take_instead(4, short) is None
    assert space.take_instead(7, long) is not None


def test_a_record_cut_in_its_place_frees_its_last_slots() -> None:
    space, (start,) = _full(100, 9)
    before = len(space)
    space.cut(start, 4)
    assert (len(space), space.longest, space.length_of(start)) == (before + 5, 4, 4)
    assert {*range(start + 4, start + 9)} <= {*space}
    space.cut(start, 1)
    assert (space.longest, space.length_of(start)) == (0, 1)


@given(st.lists(st.integers(2, 9), max_size=9), st.data())
def test_whatever_comes_and_goes_no_slot_is_lost_or_given_twice(
    lengths: list[int], data: st.DataObject
) -> None:
    space = FreeSlots(0, SPARE_SLOTS + 40, {})
    there: dict[int, int] = {}
    for length in lengths:
        if there and data.draw(st.booleans()):
            start = data.draw(st.sampled_from(sorted(there)))
            space.give_back(start)
            del there[start]
        free = _lengths(space)
        start = space.take(length)
        if start is not None:
            there[start] = length
        else:
            # Neither one run for both nor two: nothing else would do, beside the spare slots.
            longest = max(length, *there.values(), 0)
            assert free[0] < length + longest + SPARE_SLOTS
            assert len(free) < 2 or free[0] < longest + SPARE_SLOTS or free[1] < length
        slots = [slot for at, n in there.items() for slot in range(at, at + n)]
        assert sorted([*space, *slots]) == [*range(SPARE_SLOTS + 40)]
        assert space.records == there
        assert space.longest == max(there.values(), default=0)
        assert space.has_reserve()
        assert len(space.singles) >= SPARE_SLOTS


# ---------------------------------------------------------------------------- taken up


def test_a_record_of_one_slot_may_move_to_a_single_one() -> None:
    """As where damage brought back a record that stood in what is the reserve now."""
    space = FreeSlots.of(np.array([5, 7, 20], np.int64), {0: 3})
    assert space.take_apart(6) == 20
    space.give_back(6)
    space.settle()
    assert space.has_reserve()
    assert sorted(space) == [5, 6, 7]


def test_what_was_taken_up_is_put_together_and_made_ready() -> None:
    free = np.array([*range(3), *range(10, 50)], np.int64)
    space = FreeSlots.of(free, {5: 4})
    assert space.runs() == {3: 1, 40: 1}
    space.settle()
    assert sorted(space) == free.tolist()
    assert (len(space.singles), space.longest) == (SPARE_SLOTS, 4)
    assert space.reserve()[1] >= 4


def test_a_full_table_is_taken_up() -> None:
    space = FreeSlots.of(np.array([], np.int64), {})
    space.settle()
    assert (len(space), space.restock(), space.take(2)) == (0, False, None)


def _move_apart(free: list[int], old: int, length: int, expected: int | None) -> None:
    records = {50: 7} if length == 1 else {old: length, 50: 7}
    space = FreeSlots.of(np.array(free, np.int64), records)
    assert not space.has_reserve()
    assert space.take_apart(old) == expected
    if expected is not None:
        space.give_back(old)
        space.settle()
        assert space.has_reserve()
        assert sorted(space) == sorted(
            {*free, *range(old, old + length)} - {*range(expected, expected + length)}
        )


@pytest.mark.parametrize(
    ("free", "old", "expected"),
    [
        # The record of 3 at 10 stands at the beginning of the reserve, 10 to 16; it was at 30.
        ([*range(13, 17), *range(30, 33)], 10, 30),
        # It was right before the reserve.
        ([*range(7, 10), *range(13, 17)], 10, 7),
        # Of the slots beside it, those that are farthest from it.
        ([*range(6, 10), *range(13, 16)], 10, 6),
        ([*range(8, 10), *range(13, 18)], 10, 15),
        # No place for it leaves 7 together.
        ([*range(13, 16), *range(30, 33)], 10, None),
        ([*range(14, 18), *range(30, 33)], 10, None),
    ],
)
def test_a_record_in_the_reserve_moves_to_where_it_leaves_one(
    free: list[int], old: int, expected: int | None
) -> None:
    _move_apart(free, old, 3, expected)


def test_a_record_of_one_slot_in_the_reserve_moves_too() -> None:
    """No writer leaves that, and damage may."""
    _move_apart([*range(10, 13), *range(14, 17), 30], 13, 1, 30)
