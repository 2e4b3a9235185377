"""Deadlines: what a plain dict would answer, in a heap that stays small."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jidoka_shm.deadlines import Deadlines

moments = st.integers(0, 9)
limits = st.integers(0, 5)
#: A key is set to a time or to None.
settings_of_keys = st.tuples(st.integers(0, 3), moments | st.none())
#: The same, or a question: what is next, or what is due, and how much of it.
steps = st.lists(
    settings_of_keys | st.just(("next",)) | st.tuples(st.just("due"), moments, limits), max_size=40
)


def _made(*items: tuple[int, int | None]) -> Deadlines:
    deadlines = Deadlines()
    for key, when in items:
        deadlines.set(key, when)
    return deadlines


@settings(max_examples=1000)
@given(steps)
@example([(0, 5), (0, 6), (0, 5), ("due", 9, 5)])
def test_the_answers_are_those_of_a_plain_dict(steps: list[tuple]) -> None:
    deadlines, model = Deadlines(), {}
    for step in steps:
        if step[0] == "next":
            assert deadlines.next() == min(model.values(), default=None)
        elif step[0] == "due":
            _, now, limit = step
            found = deadlines.due(now, limit)
            whens = sorted(when for when in model.values() if when <= now)
            assert len(set(found)) == len(found)
            assert [model[key] for key in found] == whens[:limit]
        else:
            deadlines.set(*step)
            model = {key: when for key, when in (model | dict([step])).items() if when is not None}
        assert len(deadlines) == len(model)


@given(st.lists(settings_of_keys), moments, limits)
def test_what_is_due_stays_due(items: list[tuple], now: int, limit: int) -> None:
    deadlines = _made(*items)
    found = deadlines.due(now, limit)
    assert deadlines.due(now, limit) == found


@given(st.lists(settings_of_keys), moments)
def test_asking_in_small_parts_finds_the_same(items: list[tuple], now: int) -> None:
    deadlines = _made(*items)
    found, parts = deadlines.due(now, 100), []
    while part := deadlines.due(now, 2):
        parts += part
        for key in part:
            deadlines.set(key, None)
    assert parts == found


def test_with_nothing_set_nothing_is_due() -> None:
    deadlines = Deadlines()
    assert (len(deadlines), deadlines.next(), deadlines.due(10**18, 10)) == (0, None, [])


def test_a_key_is_due_at_its_time_and_not_before() -> None:
    deadlines = _made((7, 100))
    assert (deadlines.due(99, 10), deadlines.due(100, 10)) == ([], [7])


def test_the_earliest_comes_first_and_no_more_than_asked_for() -> None:
    deadlines = _made((1, 30), (2, 10), (3, 20), (4, 40))
    assert deadlines.due(35, 2) == [2, 3]


@pytest.mark.parametrize("between", [6, 4, None])
def test_a_key_set_back_to_an_earlier_answer_is_due_once(between: int | None) -> None:
    assert _made((1, 5), (1, between), (1, 5)).due(10, 10) == [1]


def test_a_key_that_moved_is_due_at_its_new_time_only() -> None:
    deadlines = _made((1, 5), (1, 50))
    assert (deadlines.next(), deadlines.due(49, 10), deadlines.due(50, 10)) == (50, [], [1])


def test_a_key_that_moved_forward_is_due_earlier() -> None:
    assert _made((1, 50), (1, 5)).due(5, 10) == [1]


def test_a_key_set_to_none_is_never_due() -> None:
    deadlines = _made((1, 5), (1, None))
    assert (len(deadlines), deadlines.next(), deadlines.due(10**18, 10)) == (0, None, [])


def test_none_for_a_key_that_is_not_there_is_no_error() -> None:
    assert len(_made((1, None))) == 0


def _largest(deadlines: Deadlines, moves: int) -> int:
    """Move one key over and over; return how many entries the heap ever held."""
    largest = 0
    for move in range(moves):
        deadlines.set(0, 10**6 + move)
        largest = max(largest, len(deadlines._heap))
    return largest


def test_the_heap_stays_small_while_one_key_moves_100_000_times() -> None:
    assert _largest(Deadlines(), 100_000) <= 100


def test_the_heap_stays_twice_as_long_as_its_keys_while_one_of_them_moves() -> None:
    deadlines = _made(*((key, key) for key in range(1, 1000)))
    assert _largest(deadlines, 100_000) <= 2 * 1000 + 100


def test_the_heap_shrinks_with_its_keys() -> None:
    deadlines = _made(*((key, key) for key in range(10_000)))
    for key in range(10_000):
        deadlines.set(key, None)
    assert len(deadlines._heap) <= 100


def test_the_same_time_again_adds_nothing() -> None:
    deadlines = _made(*[(1, 5)] * 50)
    assert len(deadlines._heap) == 1


def test_moving_a_key_to_and_fro_is_due_once_in_the_end() -> None:
    deadlines = _made(*[(1, 5), (1, 6)] * 1000)
    assert deadlines.due(10, 10) == [1]
