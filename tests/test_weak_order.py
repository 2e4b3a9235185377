"""Weak memory order: a commit's stores, seen in any order that such a machine may show them in.

A commit is made in plain memory, with a look at it at each fence. Between two fences the stores
may become visible in any order, so every subset of them is a state that a reader may meet. A copy
that is made while they do is of one of these states too, each part of it old or new.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import pytest
from msgspec.structs import astuple
from support import make_writer, reader_of, session

from jidoka_shm import seqlock, table
from jidoka_shm.errors import CorruptRegistry
from jidoka_shm.growth import plan
from jidoka_shm.layout import MOVED, SLOT_MASK, Geometry
from jidoka_shm.scan import NO_SESSIONS, scan_sessions
from jidoka_shm.writer import TableWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jidoka_shm.table import SessionTable

SID = UUID(int=5)
CREATED = "2026-01-02T03:04:05.678901+00:00"

#: Bytes that a store, or a part of a copied record, makes visible at once.
PART = 8

#: Where a look-up ends that met a record which is not whole: a reader reads again.
RETRY = "retry"


class State(NamedTuple):
    """What is in memory: the control and the table."""

    control: bytes
    table: bytes


def _state(writer: TableWriter) -> State:
    return State(bytes(writer.control._memory), bytes(writer.slots.memory[:]))


def _show(writer: TableWriter, state: State) -> None:
    writer.control._memory[:] = state.control
    writer.slots.memory[:] = state.table


def _between(before: State, after: State) -> Iterator[State]:
    """Yield each state in which some of the stores that lead from one to the other are visible."""
    places = [
        (which, at)
        for which in range(2)
        for at in range(0, len(before[which]), PART)
        if before[which][at : at + PART] != after[which][at : at + PART]
    ]
    assert len(places) <= 14, "there would be too many states"
    for visible in itertools.product([False, True], repeat=len(places)):
        parts = [bytearray(before.control), bytearray(before.table)]
        for (which, at), shown in zip(places, visible, strict=True):
            if shown:
                parts[which][at : at + PART] = after[which][at : at + PART]
        yield State(*map(bytes, parts))


def _looked_up(looked: SessionTable) -> object:
    """Return the fields of what a look-up finds, None for nothing, or RETRY."""
    try:
        found = looked.look_up(SID)
    except CorruptRegistry:
        return RETRY
    return found and astuple(found[2])


def _listed(looked: SessionTable) -> object:
    """Return the fields of all that a list finds, or RETRY."""
    try:
        sessions = scan_sessions(looked, NO_SESSIONS).sessions
    except CorruptRegistry:
        return RETRY
    return sorted(astuple(one) for one in sessions.values())


def _insert(writer: TableWriter) -> None:
    made = {"created_at": CREATED, "metadata": {"a": "new"}, "pid": 4242}
    writer.insert(session(writer, SID.int, **made))


def _replace(writer: TableWriter) -> None:
    made = {"created_at": CREATED, "metadata": {"a": "newer"}, "status": "active"}
    writer.replace(writer.look_up(SID)[0], session(writer, SID.int, **made))  # type: ignore[index]


def _remove(writer: TableWriter) -> None:
    writer.remove(writer.look_up(SID)[0])  # type: ignore[index]


def _used(*, there: bool, clean: bool = False) -> TableWriter:
    """Return the writer of a table in which another session has the id's home, so reach counts.

    Args:
        there: whether the id is in it.
        clean: whether the free slots are all zero; else they hold older records of the id.
    """
    writer = make_writer(3, 128)
    size = writer.geometry.index_size
    writer.insert(session(writer, SID.int + size, created_at=CREATED))
    _insert(writer)
    for _ in range(writer.slots.count):
        _replace(writer)
    if not there:
        _remove(writer)
    for slot in writer.space if clean else ():
        start = writer.slots.offset(slot)
        writer.slots.memory[start : start + 128] = bytes(128)
    return writer


#: A change, and whether the session is there before it.
CHANGES: dict[str, tuple[Callable[[TableWriter], None], bool]] = {
    "insert": (_insert, False),
    "replace": (_replace, True),
    "remove": (_remove, True),
}


@pytest.fixture(autouse=True)
def _weak(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that reorders, but for the second tries, which would meet the same state again."""
    monkeypatch.setattr(seqlock, "WEAK", True)
    monkeypatch.setattr(table, "_DOUBT_TRIES", 0)


def _looks_at_fences(writer: TableWriter, change: Callable[[TableWriter], None]) -> list[State]:
    """Return what was in memory before a change, at each of its fences, and after it."""
    states = [_state(writer)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seqlock, "fence", lambda: states.append(_state(writer)))
        change(writer)
    return [*states, _state(writer)]


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("kind", CHANGES)
def test_between_its_fences_a_commit_is_seen_whole_or_not_at_all(kind: str, *, clean: bool) -> None:
    """T2: every weak order that the fences allow: the old record, then the new one, no retry."""
    change, there = CHANGES[kind]
    writer = _used(there=there, clean=clean)
    looked = reader_of(writer, verify=True)
    old = _looked_up(looked), _listed(looked)
    states = _looks_at_fences(writer, change)
    new = _looked_up(looked), _listed(looked)
    assert old != new
    assert len(states) == 4
    allowed = [{str(old)}, {str(old), str(new)}, {str(new)}]
    for (before, after), ends in zip(itertools.pairwise(states), allowed, strict=True):
        seen = set()
        for state in _between(before, after):
            _show(writer, state)
            seen.add(str((_looked_up(looked), _listed(looked))))
        assert seen == ends


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("kind", CHANGES)
def test_without_its_fences_a_commit_is_seen_whole_or_read_again(kind: str, *, clean: bool) -> None:
    """T2: every order of the stores of a commit, the crcs alone to tell: old, new or retry."""
    change, there = CHANGES[kind]
    writer = _used(there=there, clean=clean)
    looked = reader_of(writer, verify=True)
    old, before = _looked_up(looked), _state(writer)
    change(writer)
    new, after = _looked_up(looked), _state(writer)
    seen = set()
    for state in _between(before, after):
        _show(writer, state)
        seen.add(str(_looked_up(looked)))
    assert seen - {RETRY} == {str(old), str(new)}
    # A removal writes no record; of the others some orders show the word before its record.
    assert (RETRY in seen) == (kind != "remove")


def test_a_growth_fences_its_generation_from_what_is_before_and_after() -> None:
    """T2: whoever reads the generation finds the table, and whoever is sent on, the generation."""
    old = _used(there=True)
    geometry = Geometry.for_capacity(6, 128)
    new = TableWriter(bytearray(geometry.size), old.control, geometry)
    looks: list[tuple[bool, int, bool]] = []

    def look() -> None:
        whole = new.look_up(SID) is not None
        looks.append(
            (whole, old.control.generation, any(word == MOVED for word in old.index.words))
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seqlock, "fence", look)
        new.fill(old, plan(old, geometry))
        new.follow(old, 2, lambda: None)
    assert looks == [(True, 1, False), (True, 2, False)]
    assert set(old.index.words) == {MOVED}


@pytest.mark.parametrize("other", [SID.int, 9])
def test_a_slot_written_anew_under_a_word_that_is_late_is_read_again(other: int) -> None:
    """T2: the old word still stands for a reader, its slot holds parts of a later record."""
    writer = _used(there=True)
    looked = reader_of(writer, verify=True)
    old, late = _looked_up(looked), _state(writer)
    slot = looked.look_up(SID)[1] & SLOT_MASK  # type: ignore[index]
    start = writer.slots.offset(slot)
    _replace(writer)
    while writer.space.singles[0] != slot:
        _replace(writer)
    if other == SID.int:
        _replace(writer)
    else:
        writer.insert(session(writer, other, created_at=CREATED, metadata={"other": 1}))
    anew = writer.slots.memory[start : start + 128]
    later = State(late.control, late.table[:start] + anew + late.table[start + 128 :])
    assert later.table != late.table
    seen = set()
    for state in _between(late, later):
        _show(writer, state)
        seen.add(str(_looked_up(looked)))
    assert seen == {str(old), RETRY}
