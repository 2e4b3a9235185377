"""Ids: what is made from a number, from chance and from bytes."""

from __future__ import annotations

import uuid
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jidoka_shm.ids import decode_ids, id_of, new_id

EDGES = [UUID(int=0), UUID(int=2**128 - 1), UUID(int=1 << 120)]


@given(st.uuids(version=None))
@example(EDGES[0])
@example(EDGES[1])
def test_the_id_of_a_number_is_its_uuid(one: UUID) -> None:
    made = id_of(one.int)
    assert (type(made), made, hash(made), str(made)) == (UUID, one, hash(one), str(one))
    assert made.is_safe is one.is_safe


@pytest.mark.parametrize("number", [-1, 1 << 128])
def test_a_number_of_more_bits_is_no_id(number: int) -> None:
    with pytest.raises(OverflowError):
        id_of(number)


def test_a_new_id_is_random_but_for_what_says_so() -> None:
    made = [new_id() for _ in range(2000)]
    assert {(one.version, one.variant) for one in made} == {(4, uuid.RFC_4122)}
    assert len(set(made)) == len(made)
    ones, zeros = 0, 0
    for one in made:
        ones |= one.int
        zeros |= ~one.int
    # Each of the 122 other bits is 1 in one of them and 0 in another.
    assert (ones & zeros).bit_count() == 122


@given(st.lists(st.uuids(version=None)))
@example(EDGES)
def test_ids_that_stand_one_after_the_other_are_decoded(ids: list[UUID]) -> None:
    decoded = decode_ids(b"".join([one.bytes for one in ids]))
    assert decoded == ids
    assert {type(one) for one in decoded} <= {UUID}


def test_many_ids_are_decoded() -> None:
    ids = [uuid.uuid4() for _ in range(70_000)]
    assert decode_ids(b"".join([one.bytes for one in ids])) == ids
