"""Look-ups, damage that ends in a typed error, and a check that names each broken invariant."""

from __future__ import annotations

import random
import zlib
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support import make_writer, reader_of, session
from tables import PAYLOAD_CRC_OFFSET, add, both_ways

from jidoka_shm import seqlock, table
from jidoka_shm.errors import CorruptRegistry, ReadContended
from jidoka_shm.layout import (
    CLOSED,
    EMPTY,
    MAX_DISTANCE,
    MOVED,
    SLOT_CRC_OFFSET,
    SLOT_MASK,
    index_word,
)
from jidoka_shm.session import Session
from jidoka_shm.slots import DAMAGED
from jidoka_shm.table import SessionTable, TableGone
from jidoka_shm.writer import TableWriter

if TYPE_CHECKING:
    from collections.abc import Callable


def _get(looked: SessionTable, key: int) -> Session | None:
    found = looked.look_up(UUID(int=key))
    return None if found is None else found[2]


def _start(writer: TableWriter, entry: int) -> int:
    """Return where the slot of an entry begins."""
    return writer.slots.offset(writer.index.words[entry] & SLOT_MASK)


# ---------------------------------------------------------------------------- looking up


@both_ways
def test_nothing_is_found_in_an_empty_table(*, verify: bool) -> None:
    looked = reader_of(make_writer(), verify=verify)
    assert [_get(looked, key) for key in range(100)] == 100 * [None]


@both_ways
def test_a_session_is_found_with_its_entry_and_word(*, verify: bool) -> None:
    writer = make_writer()
    (made,) = add(writer, 5, metadata={"a": 1}, pid=4242)
    assert reader_of(writer, verify=verify).look_up(UUID(int=5)) == (
        5,
        index_word(made.version, 0),
        made,
    )


@both_ways
def test_the_newest_version_is_found(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 5)
    looked = reader_of(writer, verify=verify)
    for status in ("active", "idle", "active"):
        changed = session(writer, 5, status=status)
        writer.replace(5, changed)
        assert _get(looked, 5) == changed


@both_ways
def test_a_removed_session_is_not_found(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 5)
    looked = reader_of(writer, verify=verify)
    writer.remove(5)
    assert _get(looked, 5) is None


@both_ways
def test_many_sessions_are_found_and_no_others(*, verify: bool) -> None:
    writer = make_writer(500, 128)
    rng = random.Random(7)
    keys = [rng.getrandbits(128) for _ in range(500)]
    made = add(writer, *keys)
    looked = reader_of(writer, verify=verify)
    assert [_get(looked, key) for key in keys] == made
    assert not any(_get(looked, rng.getrandbits(128)) for _ in range(2000))
    assert looked.check() == []


@both_ways
@pytest.mark.parametrize("key", [0, 2**128 - 1, 1 << 120, 37, 36])
def test_any_id_is_found(key: int, *, verify: bool) -> None:
    writer = make_writer()
    (made,) = add(writer, key)
    assert _get(reader_of(writer, verify=verify), key) == made


def _crowd(writer: TableWriter, home: int, count: int) -> list[Session]:
    """Insert sessions that all have one home."""
    size = writer.geometry.index_size
    return add(writer, *(home + turn * size for turn in range(count)))


@both_ways
@pytest.mark.parametrize("last_home", [False, True])
def test_a_session_is_found_at_each_distance_from_home(*, verify: bool, last_home: bool) -> None:
    writer = make_writer(MAX_DISTANCE + 1, 128)
    size = writer.geometry.index_size
    home = size - 1 if last_home else 3
    made = _crowd(writer, home, MAX_DISTANCE + 1)
    looked = reader_of(writer, verify=verify)
    for distance, one in enumerate(made):
        assert looked.look_up(one.session_id)[::2] == (home + distance, one)
    assert looked.check() == []


@both_ways
@pytest.mark.parametrize("last_home", [False, True])
def test_a_miss_at_the_farthest_reach_is_a_miss(*, verify: bool, last_home: bool) -> None:
    writer = make_writer(MAX_DISTANCE + 1, 128)
    size = writer.geometry.index_size
    home = size - 1 if last_home else 3
    _crowd(writer, home, MAX_DISTANCE + 1)
    assert _get(reader_of(writer, verify=verify), home + 1000 * size) is None


@both_ways
def test_a_look_up_goes_past_what_is_empty(*, verify: bool) -> None:
    writer = make_writer()
    made = _crowd(writer, 3, 4)
    for distance in range(3):
        writer.remove(3 + distance)
    assert _get(reader_of(writer, verify=verify), made[3].session_id.int) == made[3]


def _loaded(looked: SessionTable, key: int) -> int:
    """Return how many entries a look-up reads."""
    count = 0
    real = looked.index.read

    class Counted:
        words = looked.index.words

        def read(self, entry: int, copy: Callable) -> object:
            nonlocal count
            count += 1
            return real(entry, copy)

    looked.index = Counted()
    looked.look_up(UUID(int=key))
    return count


@both_ways
@pytest.mark.parametrize(("crowd", "loads"), [(0, 0), (1, 1), (2, 2), (7, 7)])
def test_a_miss_goes_no_farther_than_the_reach(crowd: int, loads: int, *, verify: bool) -> None:
    writer = make_writer()
    _crowd(writer, 3, crowd)
    key = 3 + 1000 * writer.geometry.index_size
    assert _loaded(reader_of(writer, verify=verify), key) == loads


@both_ways
def test_a_miss_is_short_again_once_what_was_far_is_gone(*, verify: bool) -> None:
    writer = make_writer()
    _crowd(writer, 3, 7)
    for distance in range(6, 0, -1):
        writer.remove(3 + distance)
    assert _loaded(reader_of(writer, verify=verify), 3 + 1000 * writer.geometry.index_size) == 1


def test_a_look_up_reads_as_few_entries_among_100_000_sessions_as_among_10() -> None:
    """D8: what a look-up costs does not grow with what is stored."""
    means = []
    for sessions in (10, 100_000):
        writer, rng = make_writer(sessions, 128), random.Random(8)
        keys = [rng.getrandbits(128) for _ in range(sessions)]
        (made,) = add(writer, keys[0])
        for key in keys[1:]:
            # A whole session made for each would take most of the time.
            writer.insert(replace(made, session_id=UUID(int=key), version=writer.next_version()))
        ids = [*rng.choices(keys, k=2000), *(rng.getrandbits(128) for _ in range(2000))]
        loads = [_loaded(reader_of(writer, verify=True), key) for key in ids]
        assert max(loads) <= 16
        means.append(sum(loads) / len(loads))
    assert 0 < means[0] < 1
    assert means[1] < 1.25 * means[0]


@both_ways
@pytest.mark.parametrize("head", [False, True])
def test_find_returns_what_the_copy_made(*, verify: bool, head: bool) -> None:
    writer = make_writer()
    (made,) = add(writer, 5)
    looked = reader_of(writer, verify=verify)
    copy = looked.copy_head if head else looked.copy_whole
    entry, word, (fields, payload) = looked.find(UUID(int=5), copy)
    assert (entry, word) == (5, writer.index.words[5])
    assert fields[:2] == (UUID(int=5).bytes, made.version)
    assert payload == (b"" if head else made._payload)


@both_ways
def test_find_misses_what_is_not_there(*, verify: bool) -> None:
    looked = reader_of(make_writer(), verify=verify)
    assert looked.find(UUID(int=5), looked.copy_head) is None


@both_ways
def test_a_quick_look_up_never_says_what_a_look_up_does_not(*, verify: bool) -> None:
    writer = make_writer(300, 128)
    rng = random.Random(5)
    keys = [rng.getrandbits(128) for _ in range(300)]
    add(writer, *keys)
    looked = reader_of(writer, verify=verify)
    for key in [*keys, *(rng.getrandbits(128) for _ in range(300))]:
        found, exact = looked.make_quick_look_up()(UUID(int=key)), looked.look_up(UUID(int=key))
        assert found is None or found == (exact[2] if exact else ())


def test_a_table_that_verifies_has_no_short_cut() -> None:
    assert reader_of(make_writer(), verify=True).make_quick_look_up() is seqlock.never_quick


def test_a_weak_machine_always_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seqlock, "WEAK", True)
    assert reader_of(make_writer()).verify


# ---------------------------------------------------------------------------- beside a writer


def _met(looked: SessionTable, commit: Callable[[], object], times: int = 1) -> None:
    """Let the next copies of a slot each be met by a commit."""
    real, left = looked.copy_whole, times

    def copy(word: int) -> object:
        nonlocal left
        copied = real(word)
        if left:
            left -= 1
            commit()
        return copied

    looked.copy_whole = copy


@both_ways
def test_a_look_up_that_a_commit_came_into_finds_the_newer_version(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 5)
    looked = reader_of(writer, verify=verify)
    _met(looked, lambda: writer.replace(5, session(writer, 5, status="active")))
    assert _get(looked, 5).status == "active"
    assert looked.index.retries == 1


@both_ways
def test_a_look_up_that_a_removal_came_into_finds_nothing(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 5)
    looked = reader_of(writer, verify=verify)
    _met(looked, lambda: writer.remove(5))
    assert _get(looked, 5) is None


@both_ways
def test_a_look_up_of_what_was_moved_meanwhile_says_that_the_table_is_gone(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 5)
    looked = reader_of(writer, verify=verify)
    _met(looked, lambda: seqlock.give_up(writer.index.words, writer.reach, MOVED))
    with pytest.raises(TableGone):
        looked.look_up(UUID(int=5))


@both_ways
def test_a_look_up_that_always_meets_a_commit_ends_in_an_error(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 5)
    looked = reader_of(writer, verify=verify)
    _met(looked, lambda: writer.replace(5, session(writer, 5)), 10**6)
    with pytest.raises(ReadContended):
        looked.look_up(UUID(int=5))


@both_ways
@pytest.mark.parametrize("word", [MOVED, CLOSED])
@pytest.mark.parametrize("there", [False, True])
def test_a_table_that_was_given_up_is_gone(word: int, *, there: bool, verify: bool) -> None:
    writer = make_writer()
    if there:
        add(writer, 5)
    looked = reader_of(writer, verify=verify)
    seqlock.give_up(writer.index.words, writer.reach, word)
    for look in (
        lambda: looked.look_up(UUID(int=5)),
        lambda: looked.find(UUID(int=5), looked.copy_head),
        lambda: looked.read(5, looked.copy_whole),
        looked.occupied,
    ):
        with pytest.raises(TableGone):
            look()


@both_ways
@pytest.mark.parametrize("word", [MOVED, CLOSED])
def test_a_table_that_is_half_given_up_is_gone_for_what_comes_to_it(
    word: int, *, verify: bool
) -> None:
    writer = make_writer()
    made = _crowd(writer, 3, 3)
    writer.index.words[4] = word
    looked = reader_of(writer, verify=verify)
    assert _get(looked, 3) == made[0]
    with pytest.raises(TableGone):
        looked.look_up(made[2].session_id)
    with pytest.raises(TableGone):
        looked.occupied()


# ---------------------------------------------------------------------------- read


@both_ways
def test_a_read_returns_word_and_copy(*, verify: bool) -> None:
    writer = make_writer()
    (made,) = add(writer, 5)
    looked = reader_of(writer, verify=verify)
    word, (fields, payload) = looked.read(5, looked.copy_whole)
    assert (word, fields[1], payload) == (writer.index.words[5], 1, made._payload)


@both_ways
def test_a_read_of_an_empty_entry_is_none(*, verify: bool) -> None:
    looked = reader_of(make_writer(), verify=verify)
    assert looked.read(5, looked.copy_whole) == (EMPTY, None)


@both_ways
def test_a_copy_of_the_words_is_private(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 5, 9)
    words = [writer.index.words[entry] for entry in (5, 9)]
    entries, copied = reader_of(writer, verify=verify).occupied()
    writer.remove(5)
    assert (entries.tolist(), copied.tolist()) == ([5, 9], words)


@both_ways
def test_a_word_that_became_empty_within_a_copy_is_not_in_it(
    monkeypatch: pytest.MonkeyPatch, *, verify: bool
) -> None:
    """It would name slot 0 to whoever copies what the words name."""
    writer = make_writer()
    add(writer, 5, 9)
    looked = reader_of(writer, verify=verify)
    real = np.flatnonzero

    def remove_between(words: object) -> object:
        entries = real(words)
        monkeypatch.undo()
        writer.remove(5)
        return entries

    monkeypatch.setattr(np, "flatnonzero", remove_between)
    entries, words = looked.occupied()
    assert (entries.tolist(), words.tolist()) == ([9], [writer.index.words[9]])


# ---------------------------------------------------------------------------- damage


@both_ways
def test_a_slot_number_too_large_is_damage(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 5)
    writer.index.words[5] = index_word(1, SLOT_MASK)
    with pytest.raises(CorruptRegistry, match="entry 5, slot 16777215, version 1 holds no"):
        reader_of(writer, verify=verify).look_up(UUID(int=5))


@both_ways
@pytest.mark.parametrize("length", [24 * 512 - 63, 2**24 - 63, 2**32 - 1])
def test_a_length_too_large_is_damage(length: int, *, verify: bool) -> None:
    writer = make_writer()
    add(writer, 5)
    start = _start(writer, 5)
    writer.slots.memory[start + 44 : start + 48] = length.to_bytes(4, "little")
    header = writer.slots.memory[start : start + SLOT_CRC_OFFSET]
    writer.slots.memory[start + 60 : start + 64] = zlib.crc32(header).to_bytes(4, "little")
    looked = reader_of(writer, verify=verify)
    with pytest.raises(CorruptRegistry, match="entry 5, slot 0, version 1 holds no session"):
        looked.look_up(UUID(int=5))


def _set_status(writer: TableWriter, entry: int, code: int) -> None:
    """Give a slot another status, with the crcs that it then has."""
    start = _start(writer, entry)
    writer.slots.memory[start + 48] = code
    header = writer.slots.memory[start : start + SLOT_CRC_OFFSET]
    writer.slots.memory[start + 60 : start + 64] = zlib.crc32(header).to_bytes(4, "little")


@both_ways
@pytest.mark.parametrize("code", [0, 6, 255])
def test_a_status_that_is_none_is_damage(code: int, *, verify: bool) -> None:
    writer = make_writer()
    add(writer, 5)
    _set_status(writer, 5, code)
    with pytest.raises(CorruptRegistry, match=f"has the status code {code}"):
        reader_of(writer, verify=verify).look_up(UUID(int=5))


@both_ways
def test_many_sessions_are_those_that_were_copied(*, verify: bool) -> None:
    writer = make_writer()
    made = add(writer, 1, 2, 40)
    looked = reader_of(writer, verify=verify)
    placed = {entry: writer.index.words[entry] for entry in (1, 2, 3)}
    copies = {entry: looked.copy_whole(word) for entry, word in placed.items()}
    assert looked.make_sessions(placed, copies) == made
    assert looked.make_sessions(placed, {}) == []


@both_ways
@pytest.mark.parametrize(
    ("entry", "place"), [(1, "1, slot 0, version 1"), (3, "3, slot 2, version 3")]
)
@pytest.mark.parametrize("code", [0, 6, 255])
def test_the_place_of_a_status_that_is_none_is_named_among_many(
    entry: int, place: str, code: int, *, verify: bool
) -> None:
    writer = make_writer()
    add(writer, 1, 2, 40)
    _set_status(writer, entry, code)
    looked = reader_of(writer, verify=verify)
    placed = {entry: writer.index.words[entry] for entry in (1, 2, 3)}
    copies = {entry: looked.copy_whole(word) for entry, word in placed.items()}
    with pytest.raises(CorruptRegistry, match=f"entry {place} has the status code {code}"):
        looked.make_sessions(placed, copies)


def test_no_flipped_bit_of_a_slot_is_found_verified() -> None:
    writer = make_writer()
    (made,) = add(writer, 5, metadata={"a": [1, 2.5]})
    looked, start = reader_of(writer, verify=True), _start(writer, 5)
    for bit in range(8 * (64 + len(made._payload))):
        writer.slots.memory[start + bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptRegistry):
            looked.look_up(UUID(int=5))
        writer.slots.memory[start + bit // 8] ^= 1 << bit % 8
    assert _get(looked, 5) == made


@both_ways
@pytest.mark.parametrize("home", [0, 20, 36])
def test_a_reach_too_large_is_a_miss(home: int, *, verify: bool) -> None:
    """The farthest that a byte can say, from the last home too, lies within the index."""
    writer = make_writer()
    writer.reach[home] = 255
    assert writer.geometry.index_size == 37
    assert _get(reader_of(writer, verify=verify), home) is None


@both_ways
def test_a_word_of_another_session_is_a_miss(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 5)
    writer.index.words[9] = writer.index.words[5]
    looked = reader_of(writer, verify=verify)
    assert _get(looked, 9) is None
    assert _get(looked, 5) is not None


def _tables() -> tuple[TableWriter, list[Session]]:
    writer = make_writer(2, 128)
    return writer, add(writer, 5, 5 + writer.geometry.index_size)


SIZE = _tables()[0].geometry.size


@both_ways
@given(
    spots=st.lists(
        st.tuples(st.integers(64, SIZE - 1), st.binary(min_size=1, max_size=24)), max_size=6
    ),
    reach=st.none() | st.integers(0, 255),
)
def test_a_look_up_in_memory_written_over_ends_well_or_in_a_typed_error(
    spots: list[tuple[int, bytes]], reach: int | None, *, verify: bool
) -> None:
    writer, made = _tables()
    memory = writer.slots.memory
    for start, raw in spots:
        memory[start : start + len(raw)] = raw[: len(memory) - start]
    if reach is not None:
        writer.reach[:] = bytes([reach]) * len(writer.reach)
    looked = reader_of(writer, verify=verify)
    for key in (*range(writer.geometry.index_size), made[1].session_id.int):
        for look in (looked.look_up, looked.make_quick_look_up()):
            try:
                found = look(UUID(int=key))
            except (CorruptRegistry, TableGone):
                continue
            if found and looked.verify:
                assert found[2] in made


@both_ways
@given(raw=st.binary(max_size=SIZE - 64))
def test_a_look_up_in_any_bytes_ends_well_or_in_a_typed_error(raw: bytes, *, verify: bool) -> None:
    writer = make_writer(2, 128)
    memory = writer.slots.memory
    memory[64 : 64 + len(raw)] = raw
    looked = reader_of(writer, verify=verify)
    for key in range(writer.geometry.index_size):
        for look in (looked.look_up, looked.make_quick_look_up()):
            try:
                found = look(UUID(int=key))
            except (CorruptRegistry, TableGone):
                continue
            assert not found or (not looked.verify and isinstance(found[2], Session))


class _Script(list):
    """Words of which each load first does the next of some steps."""

    steps: list[Callable[[], object]]

    def __getitem__(self, at: int) -> int:
        if self.steps:
            self.steps.pop(0)()
        return super().__getitem__(at)


def _doubting(
    monkeypatch: pytest.MonkeyPatch, step: Callable[[_Script], object]
) -> tuple[SessionTable, Session, Callable]:
    """Return a table as on a weak machine, whose first copy is early, and what follows that.

    ``step`` is done after the second load of the word, which still stands, and before the third.
    """
    monkeypatch.setattr(table, "_DOUBT_TRIES", 5)
    writer = make_writer()
    (made,) = add(writer, 5)
    looked = reader_of(writer, verify=True)
    words = _Script(writer.index.words.tolist())
    words.steps = [int, int, lambda: step(words)]
    looked.index = seqlock.SequenceWords(words)
    real, early = looked.copy_whole, [DAMAGED]
    return looked, made, lambda word: early.pop() if early else real(word)


def test_a_copy_that_was_early_is_made_again_where_loads_are_reordered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked, made, copy = _doubting(monkeypatch, len)
    _, _, (fields, payload) = looked.find(UUID(int=5), copy)
    assert (fields[1], payload) == (made.version, made._payload)


@pytest.mark.parametrize("word", [MOVED, CLOSED])
def test_an_early_copy_of_a_table_given_up_is_no_miss(
    monkeypatch: pytest.MonkeyPatch, word: int
) -> None:
    looked, _, copy = _doubting(
        monkeypatch, lambda words: seqlock.give_up(words, memoryview(bytearray(1)), word)
    )
    with pytest.raises(TableGone):
        looked.find(UUID(int=5), copy)


def test_an_early_copy_of_what_is_removed_meanwhile_is_a_miss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked, _, copy = _doubting(monkeypatch, lambda words: words.__setitem__(5, EMPTY))
    assert looked.find(UUID(int=5), copy) is None


def test_damage_stays_damage_after_some_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_DOUBT_TRIES", 5)
    writer = make_writer()
    add(writer, 5)
    looked = reader_of(writer, verify=True)
    copied = []

    def copy(word: int) -> object:
        copied.append(word)
        return DAMAGED

    with pytest.raises(CorruptRegistry):
        looked.find(UUID(int=5), copy)
    assert len(copied) == 6


# ---------------------------------------------------------------------------- check


def test_a_sound_table_has_nothing_wrong() -> None:
    writer = make_writer(50, 128)
    _crowd(writer, 3, 40)
    for distance in range(0, 40, 3):
        writer.remove(3 + distance)
    assert reader_of(writer).check() == []
    assert writer.check() == []


def _give_up(writer: TableWriter) -> None:
    writer.index.words[20] = MOVED


def _close(writer: TableWriter) -> None:
    writer.index.words[20] = CLOSED


def _damage_header(writer: TableWriter) -> None:
    writer.slots.memory[_start(writer, 5) + 30] ^= 1


def _damage_payload(writer: TableWriter) -> None:
    writer.slots.memory[_start(writer, 5) + 64] ^= 1


def _damage_crc(writer: TableWriter) -> None:
    writer.slots.memory[_start(writer, 5) + PAYLOAD_CRC_OFFSET] ^= 1


def _age(writer: TableWriter) -> None:
    writer.index.words[5] += 1 << 24


def _lead_out(writer: TableWriter) -> None:
    writer.index.words[5] |= SLOT_MASK


def _name_twice(writer: TableWriter) -> None:
    writer.index.words[6] = writer.index.words[5]
    writer.reach[5] = 2


def _insert_twice(writer: TableWriter) -> None:
    writer.insert(session(writer, 5))


def _forget_version(writer: TableWriter) -> None:
    writer.change[0] = 2


def _stray(writer: TableWriter) -> None:
    writer.index.words[4] = writer.index.words[5]
    writer.index.words[5] = EMPTY


def _stray_far(writer: TableWriter) -> None:
    writer.index.words[5 + MAX_DISTANCE + 1] = writer.index.words[5]
    writer.index.words[5] = EMPTY


def _reach_high(writer: TableWriter) -> None:
    writer.reach[30] = 2


def _reach_higher(writer: TableWriter) -> None:
    writer.reach[5] = 2


def _reach_low(writer: TableWriter) -> None:
    writer.reach[10] = 0


def _no_status(writer: TableWriter) -> None:
    _set_status(writer, 5, 6)


#: How to break each invariant of a table with the sessions 10, 47 (at 11) and 5, in slots 0 to 2.
BREAKS: dict[Callable[[TableWriter], None], str] = {
    _give_up: "entry 20 is 1: the table was given up",
    _close: "entry 20 is 2: the table was given up",
    _damage_header: "entry 5, slot 2, version 3: its slot does not fit its crcs or its version",
    _damage_payload: "entry 5, slot 2, version 3: its slot does not fit its crcs or its version",
    _damage_crc: "entry 5, slot 2, version 3: its slot does not fit its crcs or its version",
    _age: "entry 5, slot 2, version 4: its slot does not fit its crcs or its version",
    _lead_out: ("entry 5, slot 16777215, version 3: its slot does not fit its crcs or its version"),
    _no_status: "entry 5, slot 2, version 3: its slot holds no session (6)",
    _name_twice: "slot 2 is of the entries 5 and 6",
    _insert_twice: "00000000-0000-0000-0000-000000000005 is at the entries 5 and 6",
    _forget_version: "entry 5, slot 2, version 3: newer than the change word's 1",
    _stray: "entry 4, slot 2, version 3: its id's home is 5",
    _stray_far: "entry 260, slot 2, version 3: its id's home is 5",
    _reach_high: "reach of 30 is 2, not 0",
    _reach_higher: "reach of 5 is 2, not 1",
    _reach_low: "reach of 10 is 0, not 2",
}


@both_ways
@pytest.mark.parametrize("break_it", BREAKS, ids=lambda function: function.__name__)
def test_a_broken_invariant_is_named(
    break_it: Callable[[TableWriter], None], *, verify: bool
) -> None:
    writer = make_writer()
    add(writer, 10, 10 + writer.geometry.index_size, 5)
    looked = reader_of(writer, verify=verify)
    assert looked.check() == []
    break_it(writer)
    # A reach that is too high is no damage to a reader: a killed writer may leave one.
    assert (BREAKS[break_it] in looked.check()) is (break_it not in {_reach_high, _reach_higher})
    assert BREAKS[break_it] in writer.check()


def test_every_broken_invariant_is_named_at_once() -> None:
    writer = make_writer()
    add(writer, 10, 10 + writer.geometry.index_size, 5)
    for break_it in (_give_up, _damage_header, _reach_low):
        break_it(writer)
    assert {BREAKS[one] for one in (_give_up, _damage_header, _reach_low)} <= set(
        reader_of(writer).check()
    )


def test_a_version_that_was_begun_is_not_newer_than_the_change_word() -> None:
    writer = make_writer()
    add(writer, 5)
    # As a kill between the word and the even store leaves it.
    writer.change[0] = 1
    assert reader_of(writer).check() == []
