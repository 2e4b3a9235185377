"""The writer: each change one commit, nothing moved, and a table taken up after any interruption."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import ME, keep_free, make_writer, reader_of, session, successor_of
from tables import add, both_ways, state_of

from jidoka_shm import seqlock
from jidoka_shm.control import Identity
from jidoka_shm.errors import RecordTooLarge, RegistryFull
from jidoka_shm.layout import (
    EMPTY,
    MAX_DISTANCE,
    ROOM_TO_END,
    SLOT_HEADER_SIZE,
    SLOT_MASK,
    SPARE_SLOTS,
    VERSION_MASK,
    index_word,
)
from jidoka_shm.session import Session
from jidoka_shm.slots import pack_slot
from jidoka_shm.writer import TableWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from jidoka_shm.survey import Dropped

OTHER = Identity(5000, 99, 4026532000)


def _get(writer: TableWriter, key: int) -> Session | None:
    found = writer.look_up(UUID(int=key))
    return None if found is None else found[2]


def _slot(writer: TableWriter, entry: int) -> int:
    return writer.index.words[entry] & SLOT_MASK


def _crowd(writer: TableWriter, home: int, count: int, first: int = 0) -> list[Session]:
    """Insert sessions that all have one home."""
    size = writer.geometry.index_size
    return add(writer, *(home + turn * size for turn in range(first, first + count)))


# ---------------------------------------------------------------------------- insert


def test_a_new_table_is_empty_and_all_free() -> None:
    writer = make_writer(8)
    assert (writer.free_slots, writer.next_version()) == (8 + SPARE_SLOTS, 1)
    assert writer.check() == []


@both_ways
def test_an_inserted_session_is_there_for_every_reader(*, verify: bool) -> None:
    writer = make_writer()
    looked = reader_of(writer, verify=verify)
    (made,) = add(writer, 5, metadata={"a": 1})
    assert looked.look_up(UUID(int=5)) == (5, index_word(1, 0), made)


@pytest.mark.parametrize("change", ["insert", "replace", "remove"])
def test_each_change_is_one_version(change: str) -> None:
    writer = make_writer()
    add(writer, 5)
    {
        "insert": lambda: add(writer, 6),
        "replace": lambda: writer.replace(5, session(writer, 5)),
        "remove": lambda: writer.remove(5),
    }[change]()
    assert (writer.change[0], writer.next_version()) == (4, 3)


def test_a_session_takes_the_first_empty_entry_from_its_home() -> None:
    writer = make_writer()
    size = writer.geometry.index_size
    add(writer, 4, 3, 3 + size, 3 + 2 * size)
    places = [writer.look_up(UUID(int=3 + turn * size))[0] for turn in range(3)]
    assert places == [3, 5, 6]


def test_an_entry_that_was_emptied_is_taken_first() -> None:
    writer = make_writer()
    _crowd(writer, 3, 3)
    writer.remove(4)
    _crowd(writer, 3, 1, first=9)
    assert writer.look_up(UUID(int=3 + 9 * writer.geometry.index_size))[0] == 4


def test_no_other_session_moves() -> None:
    writer = make_writer()
    made = _crowd(writer, 3, 5)
    writer.remove(5)
    writer.remove(3)
    places = [writer.look_up(made[turn].session_id)[0] for turn in (1, 3, 4)]
    assert places == [4, 6, 7]


def test_an_insert_takes_one_slot() -> None:
    writer = make_writer(8)
    add(writer, 5, 6)
    assert writer.free_slots == 8 + SPARE_SLOTS - 2


def test_as_many_sessions_fit_as_the_capacity_says() -> None:
    writer = make_writer(8)
    made = add(writer, *range(8))
    with pytest.raises(RegistryFull) as caught:
        add(writer, 100)
    assert caught.value.args == (1, 0, "slots")
    assert [_get(writer, key) for key in range(8)] == made
    assert writer.check() == []


def test_a_full_table_can_still_replace_and_remove() -> None:
    writer = make_writer(8)
    add(writer, *range(8))
    for turn in range(100):
        writer.replace(turn % 8, session(writer, turn % 8))
    writer.remove(3)
    add(writer, 3)
    assert writer.check() == []


@both_ways
@pytest.mark.parametrize("last", [False, True])
def test_255_ids_of_one_home_fit_and_one_more_does_not(*, last: bool, verify: bool) -> None:
    writer = make_writer(400, 128)
    home = writer.geometry.index_size - 1 if last else 3
    made = _crowd(writer, home, MAX_DISTANCE + 1)
    before = state_of(writer)
    for turn in (300, 301, 500):
        with pytest.raises(RegistryFull) as caught:
            _crowd(writer, home, 1, first=turn)
        assert caught.value.args == (1, 0, "entries near the id's home")
    assert state_of(writer) == before
    looked = reader_of(writer, verify=verify)
    assert [looked.look_up(one.session_id)[2] for one in made] == made
    assert writer.check() == []


def test_one_removed_of_255_ids_of_one_home_makes_room_for_one() -> None:
    writer = make_writer(400, 128)
    _crowd(writer, 3, MAX_DISTANCE + 1)
    writer.remove(100)
    _crowd(writer, 3, 1, first=300)
    assert writer.look_up(UUID(int=3 + 300 * writer.geometry.index_size))[0] == 100
    assert writer.check() == []


# ---------------------------------------------------------------------------- sizes


def _of_size(writer: TableWriter, size: int, status: str) -> Session:
    """Return a session whose slot takes so many bytes."""
    made = session(writer, 5, status=status)
    for length in range(size):
        made = session(writer, 5, status=status, metadata={"a": length * "x"})
        if SLOT_HEADER_SIZE + len(made._payload) == size:
            return made
    raise AssertionError


LIMITS = {"idle": 256 - ROOM_TO_END, "terminating": 256 - ROOM_TO_END, "terminated": 256}


@pytest.mark.parametrize("status", LIMITS)
@pytest.mark.parametrize("change", ["insert", "replace"])
def test_the_largest_record_fits(change: str, status: str) -> None:
    writer = make_writer(8, 256)
    if change == "replace":
        add(writer, 5)
        made = _of_size(writer, LIMITS[status], status)
        writer.replace(5, made)
    else:
        made = _of_size(writer, LIMITS[status], status)
        writer.insert(made)
    assert _get(writer, 5) == made
    assert writer.check() == []


@pytest.mark.parametrize("status", LIMITS)
@pytest.mark.parametrize("change", ["insert", "replace"])
def test_a_record_one_byte_too_large_is_refused_and_changes_nothing(
    change: str, status: str
) -> None:
    writer = make_writer(8, 128, max_record_size=256)
    add(writer, *((5, 6) if change == "replace" else (6,)))
    limit = LIMITS[status]
    made = _of_size(writer, limit + 1, status)
    before = state_of(writer)
    with pytest.raises(RecordTooLarge) as caught:
        writer.replace(5, made) if change == "replace" else writer.insert(made)
    assert caught.value.args == (limit + 1, limit, "record")
    assert state_of(writer) == before


def test_a_record_does_not_reach_into_the_next_slot() -> None:
    writer = make_writer(8, 256)
    start = writer.slots.offset(1)
    writer.slots.memory[start : start + 256] = 256 * b"\xee"
    writer.insert(_of_size(writer, 256, "terminated"))
    assert _slot(writer, 5) == 0
    assert writer.slots.memory[start : start + 256] == 256 * b"\xee"


# ---------------------------------------------------------------------------- replace and remove


def test_a_replaced_session_stays_where_it_is() -> None:
    writer = make_writer()
    made = _crowd(writer, 3, 3)
    writer.replace(4, session(writer, made[1].session_id.int))
    assert writer.look_up(made[1].session_id)[0] == 4


def test_a_slot_that_a_word_names_is_never_written() -> None:
    writer = make_writer()
    add(writer, 5, 6)
    for _ in range(100):
        start = writer.slots.offset(_slot(writer, 5))
        before = bytes(writer.slots.memory[start : start + writer.geometry.slot_size])
        writer.replace(5, session(writer, 5))
        after = bytes(writer.slots.memory[start : start + writer.geometry.slot_size])
        assert after == before


def test_a_slot_that_was_freed_rests_for_as_many_commits_as_there_are_spare_ones() -> None:
    writer = make_writer(1)
    add(writer, 5)
    used = [_slot(writer, 5)]
    for _ in range(3 * SPARE_SLOTS):
        writer.replace(5, session(writer, 5))
        used.append(_slot(writer, 5))
    for at in range(len(used) - SPARE_SLOTS):
        assert len(set(used[at : at + SPARE_SLOTS + 1])) == SPARE_SLOTS + 1


def test_a_removal_frees_its_slot_and_empties_its_entry() -> None:
    writer = make_writer(8)
    add(writer, 5)
    writer.remove(5)
    assert (writer.free_slots, writer.index.words[5]) == (8 + SPARE_SLOTS, EMPTY)


# ---------------------------------------------------------------------------- reach


def test_the_reach_of_a_home_is_the_entries_from_it_to_its_farthest_session() -> None:
    writer = make_writer()
    _crowd(writer, 3, 4)
    add(writer, 5, 9)
    assert writer.reach[:11].tolist() == [0, 0, 0, 4, 0, 3, 0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("removed", "reaches"),
    [([6], [3]), ([4], [4]), ([6, 5], [3, 2]), ([5, 6], [4, 2]), ([3, 4, 5, 6], [4, 4, 4, 0])],
)
def test_a_reach_is_lowered_when_its_farthest_session_is_gone(
    removed: list[int], reaches: list[int]
) -> None:
    writer = make_writer()
    _crowd(writer, 3, 4)
    for entry, reach in zip(removed, reaches, strict=True):
        writer.remove(entry)
        assert writer.reach[3] == reach
        assert writer.check() == []


def test_a_reach_is_lowered_past_sessions_of_other_homes() -> None:
    writer = make_writer()
    size = writer.geometry.index_size
    add(writer, 3, 4, 5, 3 + size)
    assert writer.reach[3] == 4
    writer.remove(6)
    assert writer.reach[3] == 1


def test_an_empty_home_keeps_its_reach() -> None:
    writer = make_writer()
    _crowd(writer, 3, 3)
    writer.remove(3)
    assert writer.reach[3] == 3


def _at_commits(
    monkeypatch: pytest.MonkeyPatch, look: Callable[[], object]
) -> list[tuple[object, object]]:
    """Return a list that gets what ``look`` sees before and after each commit."""
    seen, real = [], seqlock.commit

    def commit(*args: object) -> None:
        before = look()
        real(*args)
        seen.append((before, look()))

    monkeypatch.setattr(seqlock, "commit", commit)
    return seen


def test_a_reach_is_raised_before_the_word_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = make_writer()
    _crowd(writer, 3, 2)
    seen = _at_commits(monkeypatch, lambda: writer.reach[3])
    _crowd(writer, 3, 1, first=2)
    assert seen == [(3, 3)]


def test_a_reach_is_lowered_after_the_word_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = make_writer()
    _crowd(writer, 3, 3)
    seen = _at_commits(monkeypatch, lambda: writer.reach[3])
    writer.remove(5)
    assert seen == [(3, 3)]
    assert writer.reach[3] == 2


def test_the_reach_of_a_lone_session_is_raised_and_lowered_around_its_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At its home too: a look-up that loads 0 there loads no word at all."""
    writer = make_writer()
    seen = _at_commits(monkeypatch, lambda: writer.reach[3])
    add(writer, 3)
    writer.remove(3)
    assert seen == [(1, 1), (1, 1)]
    assert writer.reach[3] == 0


def test_a_slot_is_complete_before_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = make_writer()
    made = session(writer, 5)
    word = index_word(1, 0)
    seen = _at_commits(monkeypatch, lambda: next(writer.slots.inspect([word])))
    writer.insert(made)
    assert seen == [(made, made)]


@pytest.mark.parametrize("change", ["replace", "remove"])
def test_a_slot_is_freed_after_its_word_is_gone(
    monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    writer = make_writer()
    add(writer, 5)
    seen = _at_commits(monkeypatch, lambda: 0 in writer.space)
    if change == "replace":
        writer.replace(5, session(writer, 5))
    else:
        writer.remove(5)
    assert seen == [(False, False)]
    assert 0 in writer.space


@given(st.data())
def test_any_changes_leave_a_sound_table_with_what_a_dict_would_hold(data: st.DataObject) -> None:
    writer = make_writer(6, 128)
    size = writer.geometry.index_size
    keys = [home + turn * size for home in (3, 4, size - 1) for turn in range(3)]
    model: dict[int, Session] = {}
    for key in data.draw(st.lists(st.sampled_from(keys), max_size=30)):
        found = writer.look_up(UUID(int=key))
        assert (found is None) == (key not in model)
        made = session(writer, key)
        if found is None and len(model) < 6:
            writer.insert(made)
            model[key] = made
        elif found is not None and data.draw(st.booleans()):
            writer.replace(found[0], made)
            model[key] = made
        elif found is not None:
            writer.remove(found[0])
            del model[key]
        assert writer.check() == []
    for key in keys:
        assert _get(writer, key) == model.get(key)


# ---------------------------------------------------------------------------- check


def _lose_a_slot(writer: TableWriter) -> None:
    writer.space.singles.pop()


def _free_twice(writer: TableWriter) -> None:
    writer.space.singles.append(writer.space.singles[0])


def _free_what_is_used(writer: TableWriter) -> None:
    writer.space.singles.append(2)


def _free_what_is_not_there(writer: TableWriter) -> None:
    writer.space.singles.append(writer.slots.count)


@pytest.mark.parametrize(
    "break_it", [_lose_a_slot, _free_twice, _free_what_is_used, _free_what_is_not_there]
)
def test_a_writer_that_lost_count_of_its_slots_says_so(
    break_it: Callable[[TableWriter], None],
) -> None:
    writer = make_writer()
    add(writer, 10, 47, 5)
    assert writer.check() == []
    break_it(writer)
    assert writer.check() == ["a slot is neither free nor in use, or both, or twice either"]
    assert reader_of(writer).check() == []


def test_a_writer_without_a_reserve_says_so() -> None:
    writer = make_writer(20, 128)
    add(writer, 10, metadata={"a": "x" * 500})
    free = sorted(writer.space)
    keep_free(writer, free)
    assert writer.check() == ["no free run is as long as the longest record"]
    assert reader_of(writer).check() == []


# ---------------------------------------------------------------------------- taking up


def _resume(
    writer: TableWriter, identity: Identity = OTHER
) -> tuple[TableWriter, list[Session], tuple[Dropped, ...]]:
    """Return a next writer, the sessions that it kept, and what it dropped."""
    fresh, kept = successor_of(writer), []
    dropped = fresh.resume(identity, kept.append)
    assert fresh.check() == []
    return fresh, sorted(kept, key=lambda session: session.version), dropped


def test_an_empty_table_is_taken_up() -> None:
    fresh, kept, dropped = _resume(make_writer(8))
    assert (kept, dropped, fresh.free_slots) == ([], (), 8 + SPARE_SLOTS)


def test_a_sound_table_is_taken_up_whole() -> None:
    writer = make_writer(8)
    made = [*_crowd(writer, 3, 3), *add(writer, 20)]
    writer.remove(4)
    fresh, kept, dropped = _resume(writer)
    assert (kept, dropped) == ([made[0], made[2], made[3]], ())
    assert sorted(fresh.space) == sorted(writer.space)


def test_taking_up_a_sound_table_changes_no_index_word_and_no_reach() -> None:
    writer = make_writer()
    _crowd(writer, 3, 3)
    _, before, _ = state_of(writer)
    fresh, _, _ = _resume(writer)
    assert state_of(fresh)[1] == before


def test_the_next_writer_is_published() -> None:
    writer = make_writer()
    assert writer.control.writer() == ME
    _resume(writer)
    assert writer.control.writer() == OTHER


def test_taking_up_burns_one_version() -> None:
    writer = make_writer()
    add(writer, 5, 6)
    fresh, _, _ = _resume(writer)
    assert (fresh.change[0], fresh.next_version()) == (6, 4)


def test_the_change_word_is_odd_while_a_table_is_taken_up() -> None:
    writer = make_writer()
    add(writer, 5, 6)
    fresh, seen = successor_of(writer), []
    fresh.resume(OTHER, lambda _: seen.append((fresh.change[0], fresh.control.writer())))
    # One version, 3, for all of it, and the new writer's name in it.
    assert seen == 2 * [(5, OTHER)]


class _Killed(BaseException):
    """Stands for the end of the process."""


def _cut(writer: TableWriter, monkeypatch: pytest.MonkeyPatch, stores: int) -> Callable:
    """Let the next commit make so many of its three stores, and no more."""

    def commit(change: object, words: object, entry: int, word: int, version: int) -> None:
        if stores > 0:
            change[0] = 2 * version - 1
        if stores > 1:
            words[entry] = word
        if stores > 2:
            change[0] = 2 * version
        raise _Killed

    def change(work: Callable[[], object]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(seqlock, "commit", commit)
            with pytest.raises(_Killed):
                work()

    assert writer.change[0] % 2 == 0
    return change


#: Changes of a table with 3, 40 (at 4) and 5 in it; then the keys there, before and after.
CUTS: dict[str, tuple[Callable[[TableWriter], object], set[int], set[int]]] = {
    "insert": (lambda writer: add(writer, 9), {3, 40, 5}, {3, 40, 5, 9}),
    "insert far": (lambda writer: add(writer, 77), {3, 40, 5}, {3, 40, 5, 77}),
    "replace": (lambda w: w.replace(4, session(w, 40, status="active")), {3, 40, 5}, {3, 40, 5}),
    "remove": (lambda writer: writer.remove(4), {3, 40, 5}, {3, 5}),
}


@pytest.mark.parametrize("stores", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", CUTS)
def test_a_change_cut_off_at_any_store_is_there_or_not_as_its_word_says(
    monkeypatch: pytest.MonkeyPatch, kind: str, stores: int
) -> None:
    writer = make_writer()
    add(writer, 3, 40, 5)
    change, before, after = CUTS[kind]
    _cut(writer, monkeypatch, stores)(lambda: change(writer))
    fresh, kept, dropped = _resume(writer)
    assert {one.session_id.int for one in kept} == (after if stores > 1 else before)
    assert dropped == ()
    assert {one.session_id.int: one for one in kept} == {
        key: _get(fresh, key) for key in (after if stores > 1 else before)
    }


@pytest.mark.parametrize("stores", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", CUTS)
def test_no_version_that_may_have_been_used_is_used_again(
    monkeypatch: pytest.MonkeyPatch, kind: str, stores: int
) -> None:
    writer = make_writer()
    add(writer, 3, 40, 5)
    begun = writer.next_version() if stores else writer.next_version() - 1
    _cut(writer, monkeypatch, stores)(lambda: CUTS[kind][0](writer))
    fresh, kept, _ = _resume(writer)
    assert fresh.next_version() == begun + 2
    assert all(one.version <= begun for one in kept)


def test_a_take_over_cut_off_is_taken_over_in_turn() -> None:
    writer = make_writer()
    made = add(writer, 3, 40)
    first = successor_of(writer)

    def die(_: Session) -> None:
        raise _Killed

    with pytest.raises(_Killed):
        first.resume(OTHER, die)
    assert first.change[0] == 5
    fresh, kept, _ = _resume(writer)
    assert kept == made
    assert fresh.next_version() == 5


def test_versions_only_grow_over_many_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    writer, versions = make_writer(), []
    for turn in range(12):
        versions.append(writer.next_version())
        add(writer, 3)
        versions.append(writer.next_version())
        writer.remove(3)
        if turn % 3 == 0:
            _cut(writer, monkeypatch, turn % 4)(lambda writer=writer: add(writer, 5))
            if _get(writer, 5) is not None:
                versions.append(_get(writer, 5).version)
        writer, kept, _ = _resume(writer)
        for one in kept:
            writer.remove(writer.look_up(one.session_id)[0])
    assert versions == sorted(set(versions))


# ---------------------------------------------------------------------------- what is repaired


@pytest.mark.parametrize("reach", [1, 2, 3, 100, 255])
def test_a_reach_too_high_is_lowered(reach: int) -> None:
    writer = make_writer()
    _crowd(writer, 3, 2)
    writer.reach[3], writer.reach[20] = max(reach, 2), reach
    fresh, _, dropped = _resume(writer)
    assert (fresh.reach[3], fresh.reach[20], dropped) == (2, 0, ())


@both_ways
def test_a_reach_too_low_is_raised(*, verify: bool) -> None:
    writer = make_writer()
    made = _crowd(writer, 3, 3)
    writer.reach[3] = 0
    fresh, kept, dropped = _resume(writer)
    assert (fresh.reach[3], kept, dropped) == (3, made, ())
    assert reader_of(fresh, verify=verify).look_up(made[2].session_id)[2] == made[2]


class _Watched(bytearray):
    """Reach bytes that log each store."""

    def __init__(self, raw: memoryview) -> None:
        super().__init__(raw)
        self.stores: list[tuple[int, int]] = []

    def __setitem__(self, at: int, value: int) -> None:
        super().__setitem__(at, value)
        self.stores.append((at, value))


def test_each_reach_that_differs_is_stored_once_and_no_other() -> None:
    writer = make_writer()
    _crowd(writer, 3, 3)
    _crowd(writer, 10, 2)
    writer.reach[3], writer.reach[20] = 1, 7
    fresh = successor_of(writer)
    fresh.reach = _Watched(fresh.reach)
    fresh.resume(OTHER, lambda _: None)
    assert sorted(fresh.reach.stores) == [(3, 3), (20, 0)]


def _damage(offset: int) -> Callable[[TableWriter], None]:
    def damage(writer: TableWriter) -> None:
        writer.slots.memory[writer.slots.offset(_slot(writer, 4)) + offset] ^= 1

    return damage


def _double_word(writer: TableWriter) -> None:
    writer.index.words[6] = writer.index.words[4]


def _double_id(writer: TableWriter) -> None:
    add(writer, 40)


def _too_far(writer: TableWriter) -> None:
    writer.index.words[4 + MAX_DISTANCE + 5], writer.index.words[4] = writer.index.words[4], EMPTY


def _before_home(writer: TableWriter) -> None:
    writer.index.words[2], writer.index.words[4] = writer.index.words[4], EMPTY


def _no_slot(writer: TableWriter) -> None:
    writer.index.words[4] |= SLOT_MASK


def _other_version(writer: TableWriter) -> None:
    writer.index.words[4] += 1 << 24


def _version_0(writer: TableWriter) -> None:
    writer.index.words[6] = SLOT_MASK


#: What is done to a table with 3, 40 (at 4) and 20 in it; where a record is dropped, why, and
#: which keys stay.
UNSOUND: dict[str, tuple[Callable[[TableWriter], None], int, str, set[int]]] = {
    "a header damaged": (_damage(30), 4, "does not fit its crcs", {3, 20}),
    "an id damaged": (_damage(15), 4, "does not fit its crcs", {3, 20}),
    "a payload damaged": (_damage(64), 4, "does not fit its crcs", {3, 20}),
    "a slot number too large": (_no_slot, 4, "does not fit its crcs", {3, 20}),
    "another version": (_other_version, 4, "does not fit its crcs", {3, 20}),
    "version 0": (_version_0, 6, "does not fit its crcs", {3, 40, 20}),
    "a slot twice": (
        _double_word,
        6,
        "doubles session 00000000-0000-0000-0000-000000000028",
        {3, 40, 20},
    ),
    "an id twice": (
        _double_id,
        4,
        "doubles session 00000000-0000-0000-0000-000000000028",
        {3, 40, 20},
    ),
    "too far from home": (_too_far, 263, "too far from its home 3", {3, 20}),
    "before its home": (_before_home, 2, "too far from its home 3", {3, 20}),
}


@pytest.mark.parametrize("kind", UNSOUND)
def test_what_is_unsound_is_dropped_and_the_rest_is_kept(kind: str) -> None:
    break_it, entry, reason, keys = UNSOUND[kind]
    writer = make_writer()
    add(writer, 3, 40, 20)
    break_it(writer)
    fresh, kept, dropped = _resume(writer)
    assert [(one.entry, reason in one.reason) for one in dropped] == [(entry, True)]
    assert fresh.index.words[entry] == EMPTY
    assert sorted(one.session_id.int for one in kept) == sorted(keys)
    assert fresh.free_slots == fresh.geometry.slot_count - len(keys)


@pytest.mark.parametrize("kind", UNSOUND)
def test_a_record_is_dropped_by_a_commit_of_its_own(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    writer = make_writer()
    add(writer, 3, 40, 20)
    UNSOUND[kind][0](writer)
    version = writer.next_version()
    seen = _at_commits(monkeypatch, lambda: writer.change[0])
    fresh, _, dropped = _resume(writer)
    # One version is burnt by taking up; the commit of the drop has the next.
    assert seen == [(2 * version, 2 * version + 2)]
    assert fresh.next_version() == version + 1 + len(dropped)


@pytest.mark.parametrize("kind", UNSOUND)
def test_what_was_dropped_can_be_created_again(kind: str) -> None:
    writer = make_writer()
    add(writer, 3, 40, 20)
    UNSOUND[kind][0](writer)
    fresh, _, _ = _resume(writer)
    for key in (40, 77):
        if _get(fresh, key) is None:
            add(fresh, key)
    assert fresh.check() == []


def test_a_session_that_was_dropped_is_not_visited() -> None:
    writer = make_writer()
    add(writer, 3, 40)
    _damage(30)(writer)
    _, kept, _ = _resume(writer)
    assert [one.session_id.int for one in kept] == [3]


def test_everything_may_be_unsound() -> None:
    writer = make_writer(8)
    add(writer, *range(8))
    begin = writer.slots.begin
    writer.slots.memory[begin:] = bytes(len(writer.slots.memory) - begin)
    fresh, kept, dropped = _resume(writer)
    assert (kept, len(dropped), fresh.free_slots) == ([], 8, 8 + SPARE_SLOTS)


@given(
    st.lists(
        st.tuples(st.integers(64, 10**6), st.binary(min_size=1, max_size=24)),
        min_size=1,
        max_size=8,
    )
)
def test_a_table_written_over_anywhere_is_sound_once_taken_up(
    spots: list[tuple[int, bytes]],
) -> None:
    writer = make_writer(3, 128)
    made = [*_crowd(writer, 3, 2), *add(writer, 8)]
    memory = writer.slots.memory
    for start, raw in spots:
        at = 64 + start % (len(memory) - 64)
        memory[at : at + len(raw)] = raw[: len(memory) - at]
    fresh, kept, _ = _resume(writer)
    assert all(one in made for one in kept)
    assert [_get(fresh, one.session_id.int) for one in kept] == kept


# ---------------------------------------------------------------------------- records of several slots


def _long(writer: TableWriter, key: int, slots: int, **fields: object) -> Session:
    """Return a session whose record takes so many slots of 128 bytes."""
    return session(writer, key, metadata={"a": "x" * (128 * slots - 150)}, **fields)


@both_ways
@pytest.mark.parametrize("slots", [1, 2, 3, 40])
def test_a_record_of_several_slots_is_read_as_one(slots: int, *, verify: bool) -> None:
    writer = make_writer(100, 128)
    made = _long(writer, 5, slots)
    writer.insert(made)
    assert writer.free_slots == 100 + SPARE_SLOTS - slots
    assert reader_of(writer, verify=verify).look_up(UUID(int=5)) == writer.look_up(UUID(int=5))
    assert _get(writer, 5) == made
    assert writer.check() == reader_of(writer).check() == []
    writer.remove(5)
    assert writer.free_slots == 100 + SPARE_SLOTS
    assert writer.check() == []


@pytest.mark.parametrize("before", [1, 2, 5])
@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_record_becomes_longer_and_shorter(before: int, after: int) -> None:
    writer = make_writer(100, 128)
    writer.insert(_long(writer, 5, before))
    made = _long(writer, 5, after)
    assert writer.replace(5, made) is made
    assert _get(writer, 5) == made
    assert writer.free_slots == 100 + SPARE_SLOTS - after
    assert writer.check() == []


def _full_of(*lengths: int) -> TableWriter:
    """Return a writer whose table has no slot but those that must stay free."""
    writer = make_writer(sum(lengths) + max(lengths), 128)
    for key, slots in enumerate(lengths, 1):
        writer.insert(_long(writer, key, slots))
    with pytest.raises(RegistryFull):
        writer.insert(session(writer, 99))
    return writer


@pytest.mark.parametrize("key", [1, 2, 3])
def test_each_record_of_a_full_table_can_change_for_ever(key: int) -> None:
    writer = _full_of(7, 3, 1)
    slots = (7, 3, 1)[key - 1]
    entry = writer.look_up(UUID(int=key))[0]  # type: ignore[index]
    for _ in range(50):
        made = writer.replace(entry, _long(writer, key, slots))
        assert _get(writer, key) == made
        assert made.version == writer.change[0] // 2
        assert writer.check() == []
    assert writer.free_slots == SPARE_SLOTS + 7


def test_a_record_shorter_than_the_reserve_is_committed_twice_and_stays_where_it_was() -> None:
    writer = _full_of(7, 3)
    entry, word, _ = writer.look_up(UUID(int=2))  # type: ignore[misc]
    before = writer.change[0]
    made = writer.replace(entry, _long(writer, 2, 3))
    assert writer.change[0] == before + 4
    assert writer.index.words[entry] == index_word(made.version, word & SLOT_MASK)
    # The packed record, which answers a client, is of the version that stands.
    assert writer.packed == pack_slot(made)


def test_no_two_versions_are_left_for_a_change_that_takes_two() -> None:
    writer = _full_of(7, 3)
    seqlock.settle(writer.change, VERSION_MASK - 1)
    before = state_of(writer)
    with pytest.raises(RegistryFull, match="versions of 40 bits"):
        writer.replace(writer.look_up(UUID(int=2))[0], _long(writer, 2, 3))  # type: ignore[index]
    assert state_of(writer) == before


@pytest.mark.parametrize("slots", [4, 8])
def test_a_record_that_outgrows_a_full_table_is_refused_and_changes_nothing(slots: int) -> None:
    writer = _full_of(7, 3, 1)
    before = state_of(writer)
    for key in (2, 3):
        with pytest.raises(RegistryFull, match=f"needs {slots} adjacent slots"):
            writer.replace(key, _long(writer, key, slots))
    assert state_of(writer) == before


@pytest.mark.parametrize(
    ("longest", "moves"),
    # The spare slots lie together, and are a reserve for a record of 7; for one of 20 they are not.
    [(7, False), (20, True)],
)
def test_a_change_cut_short_between_its_two_commits_leaves_a_reserve_to_the_next_writer(
    longest: int, *, moves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = (longest, 3, 1)
    writer = _full_of(*lengths)
    commit = seqlock.commit

    def once(*arguments: object) -> None:
        commit(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(seqlock, "commit", once)
    made = _long(writer, 2, 3, status="idle")
    with pytest.raises(KeyboardInterrupt):
        writer.replace(2, made)
    monkeypatch.undo()
    reserve = _slot(writer, 2)
    fresh, kept, dropped = _resume(writer)
    assert (_slot(fresh, 2) != reserve) is moves
    assert ([each.session_id.int for each in kept], dropped) == ([1, 3, 2], ())
    found = _get(fresh, 2)
    assert found is not None
    assert (found.status, found.metadata) == (made.status, made.metadata)
    assert (found.version > made.version) is moves
    for key in (1, 2, 3):
        fresh.replace(key, _long(fresh, key, lengths[key - 1]))
    assert fresh.check() == []


def test_what_is_longer_than_the_limit_has_become_may_change_and_end_and_not_grow() -> None:
    writer = make_writer(100, 128)
    made = session(writer, 5, metadata={"a": "x" * 1000})
    writer.insert(made)
    strict = TableWriter(writer.slots.memory, writer.control, writer.geometry, max_record_size=600)
    strict.resume(OTHER, lambda _: None)
    for status in ("active", "terminating", "terminated"):
        strict.replace(5, session(strict, 5, metadata=made.metadata, status=status))
    with pytest.raises(RecordTooLarge):
        strict.insert(session(strict, 6, metadata={"a": "x" * 600}))
    assert strict.room_at(5) >= len(pack_slot(made))


def test_a_record_that_ends_beyond_the_table_is_dropped_and_named() -> None:
    writer = make_writer(100, 128)
    last = writer.slots.count - 1
    writer.insert(session(writer, 5))
    # All of its bytes are there, and what is kept for its end is not.
    packed = pack_slot(session(writer, 6, metadata={"a": "x" * (128 - 64 - 9)}))
    assert 128 - 32 < len(packed) <= 128
    start = writer.slots.offset(last)
    writer.slots.memory[start : start + len(packed)] = packed
    seqlock.commit(writer.change, writer.index.words, 6, index_word(2, last), 2)
    writer.reach[6] = 1
    assert reader_of(writer).check() == ["the slots of the entry 6 end beyond the table"]
    _, kept, dropped = _resume(writer)
    assert [each.session_id.int for each in kept] == [5]
    assert [each.entry for each in dropped] == [6]
