"""Quick look-ups: each agrees with a closer look, or leaves the answer to it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from msgspec.structs import astuple
from support import make_writer, reader_of, session
from tables import MetSlots, add

from jidoka_shm import seqlock
from jidoka_shm.errors import CorruptRegistry
from jidoka_shm.layout import CLOSED, MAX_DISTANCE, MOVED, SLOT_MASK, index_word
from jidoka_shm.session import STATUS_OF_CODE, Session
from jidoka_shm.table import SessionTable, TableGone

if TYPE_CHECKING:
    from collections.abc import Callable

    from jidoka_shm.seqlock import Found, SequenceWords
    from jidoka_shm.slots import Slots
    from jidoka_shm.writer import TableWriter

    Quick = Callable[[SessionTable, int], "Answer"]

#: An answer: what was found, nothing where it is not there, None where that is left open.
Answer = tuple[Any, ...] | None


@pytest.fixture(autouse=True)
def _memory_is_ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tables have quick look-ups, which one that verifies does not."""
    monkeypatch.setattr(seqlock, "WEAK", False)


def _fields(found: Found | tuple[()] | None) -> Answer:
    """Return what was found field by field, to be compared whether or not a record is damaged."""
    return (*found[:2], *astuple(found[2])) if found else found


def _make_look_up(index: SequenceWords, reach: memoryview[int], slots: Slots) -> Callable:
    """Return a quick look-up that tells entry and word as well."""
    kept: list[Found] = []
    quick = seqlock.quick_look_up(index, reach, slots, lambda _, found: kept.append(found))

    def look_up(session_id: UUID) -> Answer:
        kept.clear()
        found = quick(session_id)
        # What is found is kept, and nothing else is.
        assert [each[2] for each in kept] == ([found] if found else [])
        return _fields(kept[0]) if isinstance(found, Session) else found

    return look_up


def _look_up(table: SessionTable, key: int) -> Answer:
    return _make_look_up(table.index, table.reach, table.slots)(UUID(int=key))


def _glance(table: SessionTable, key: int) -> Answer:
    return table.quick_glance(UUID(int=key))


def _close_look(table: SessionTable, key: int) -> Answer:
    """Return what ``look_up`` finds, None where it raises."""
    try:
        return _fields(table.look_up(UUID(int=key)) or ())
    except (TableGone, CorruptRegistry):
        return None


def _close_glance(table: SessionTable, key: int) -> Answer:
    """Return id, owner pid and status code of what ``find`` finds, None where it raises."""
    try:
        found = table.find(UUID(int=key), table.copy_head)
    except (TableGone, CorruptRegistry):
        return None
    if found is None:
        return ()
    raw, *_, pid, _, code = found[2][0]
    return raw, pid, code


#: Each quick function, what asks the table closely for the same, and what makes the function.
QUICK = {
    "look_up": (_look_up, _close_look, _make_look_up),
    "glance": (_glance, _close_glance, seqlock.quick_glance),
}
each_quick = pytest.mark.parametrize(("quick", "close", "make"), QUICK.values(), ids=QUICK)


def _crowd(writer: TableWriter, home: int, count: int) -> list[int]:
    """Insert sessions that all have one home, and return their ids."""
    keys = [home + turn * writer.geometry.index_size for turn in range(count)]
    add(writer, *keys, pid=4242, status="idle")
    return keys


# ---------------------------------------------------------------------------- at rest


@each_quick
def test_it_agrees_with_a_closer_look_for_each_of_many_ids(
    quick: Quick, close: Quick, make: object
) -> None:
    writer = make_writer(600, 128)
    rng = random.Random(3)
    keys = [rng.getrandbits(128) if n % 2 else rng.randrange(4000) << 9 for n in range(600)]
    live = list(dict.fromkeys(keys))
    add(writer, *live, pid=7)
    for key in live[::3]:
        writer.remove(writer.look_up(UUID(int=key))[0])
    add(writer, *live[::6], status="active")
    table, size = reader_of(writer), writer.geometry.index_size
    answers = {"found at home": 0, "found farther": 0, "not there": 0, "not there, past others": 0}
    for key in [*keys, *(rng.getrandbits(128) for _ in range(2000))]:
        found = quick(table, key)
        assert found == close(table, key)
        assert found is not None
        home, exact = key % size, table.look_up(UUID(int=key))
        if exact is None:
            answers["not there, past others" if table.reach[home] else "not there"] += 1
        else:
            answers["found farther" if exact[0] > home else "found at home"] += 1
    assert min(answers.values()) > 20, answers


@each_quick
@pytest.mark.parametrize("last_home", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_a_closer_look_after_each_of_many_changes(
    seed: int, quick: Quick, close: Quick, make: object, *, last_home: bool
) -> None:
    rng = random.Random(seed)
    writer = make_writer(16, 128)
    size = writer.geometry.index_size
    homes = (size - 2, size - 1) if last_home else (3, 4, 5)
    keys = [home + turn * size for home in homes for turn in range(6)]
    table = reader_of(writer)
    for step in range(300):
        key = rng.choice(keys)
        there = writer.look_up(UUID(int=key))
        if there is None and writer.free_slots > 1:
            add(writer, key, pid=step + 1)
        elif there is not None and rng.randrange(3):
            writer.remove(there[0])
        elif there is not None:
            changed = session(writer, key, status=rng.choice(["active", "terminated"]))
            writer.replace(there[0], changed)
        for each in keys:
            found = quick(table, each)
            assert found is not None, (step, each)
            assert found == close(table, each), (step, each)
            assert bool(found) == (writer.look_up(UUID(int=each)) is not None), (step, each)


@each_quick
@pytest.mark.parametrize("last_home", [False, True])
def test_it_finds_a_session_at_each_distance_from_home(
    quick: Quick, close: Quick, make: object, *, last_home: bool
) -> None:
    writer = make_writer(MAX_DISTANCE + 1, 128)
    home = writer.geometry.index_size - 1 if last_home else 3
    keys = _crowd(writer, home, MAX_DISTANCE + 1)
    table = reader_of(writer)
    for key in keys:
        assert quick(table, key) == close(table, key) != ()
    assert quick(table, home + 1000 * writer.geometry.index_size) == ()
    for entry in range(home, home + MAX_DISTANCE):
        writer.remove(entry)
    assert quick(table, keys[-1]) == close(table, keys[-1]) != ()
    assert [quick(table, key) for key in keys[:-1]] == MAX_DISTANCE * [()]


@each_quick
@pytest.mark.parametrize("full", [False, True])
def test_a_reach_that_leads_to_the_end_of_the_index_leads_no_farther(
    quick: Quick, close: Quick, make: object, *, full: bool
) -> None:
    writer = make_writer(MAX_DISTANCE + 1, 128)
    size = writer.geometry.index_size
    if full:
        _crowd(writer, size - 1, MAX_DISTANCE + 1)
    table = reader_of(writer)
    key = size - 1 + 1000 * size
    writer.reach[size - 1] = 255
    assert quick(table, key) == close(table, key) == ()


def test_a_look_up_finds_a_session_and_gives_it_to_be_kept_with_entry_and_word() -> None:
    writer = make_writer()
    (made,) = add(writer, 5, metadata={"a": 1}, pid=7)
    kept: list[tuple[UUID, Found]] = []
    table = reader_of(writer)
    look_up = table.make_quick_look_up(lambda *found: kept.append(found))
    assert look_up(UUID(int=5)) == made == table.make_quick_look_up()(UUID(int=5))
    assert kept == [(UUID(int=5), (5, writer.index.words[5], made))]


def test_a_look_up_copies_a_payload_of_its_own() -> None:
    writer = make_writer()
    add(writer, 5, metadata={"a": 1})
    found = reader_of(writer).make_quick_look_up()(UUID(int=5))
    assert found
    start = writer.slots.offset(writer.index.words[5] & SLOT_MASK)
    writer.slots.memory[start : start + 512] = bytes(512)
    assert found.metadata == {"a": 1}


@pytest.mark.parametrize(("pid", "seen"), [(None, 0), (1, 1), (2**22, 2**22)])
def test_a_glance_finds_status_and_owner(pid: int | None, seen: int) -> None:
    writer = make_writer()
    for code, status in STATUS_OF_CODE.items():
        add(writer, code, status=status, pid=pid)
        found = _glance(reader_of(writer), code)
        assert found == (UUID(int=code).bytes, seen, code)
        assert STATUS_OF_CODE[found[2]] is status


def test_a_table_that_verifies_leaves_everything_open() -> None:
    writer = make_writer()
    add(writer, 5)
    table = reader_of(writer, verify=True)
    assert table.make_quick_look_up() is table.quick_glance is seqlock.never_quick
    assert seqlock.never_quick(UUID(int=5)) is None


# ---------------------------------------------------------------------------- given up


@each_quick
@pytest.mark.parametrize("word", [MOVED, CLOSED])
@pytest.mark.parametrize("entry", [3, 4, 5])
def test_a_table_that_is_given_up_is_left_to_a_closer_look(
    entry: int, word: int, quick: Quick, close: Quick, make: object
) -> None:
    writer = make_writer()
    keys = _crowd(writer, 3, 4)
    writer.remove(5)
    table = reader_of(writer)
    writer.index.words[entry] = word
    for at, key in enumerate(keys, start=3):
        # What lies before the word that says so is found as ever.
        assert quick(table, key) == close(table, key)
        assert (quick(table, key) is None) == (at >= entry)
    assert quick(table, 3 + 1000 * writer.geometry.index_size) is None


# ---------------------------------------------------------------------------- damage


@pytest.mark.parametrize("neighbours", [0, 2])
@pytest.mark.parametrize(
    ("change", "quick"),
    # A status's code is not judged where it is only returned.
    [("slot", _look_up), ("status", _look_up), ("slot", _glance)],
)
def test_damage_is_left_to_a_closer_look(change: str, neighbours: int, quick: Quick) -> None:
    writer = make_writer()
    *_, key = _crowd(writer, 3, neighbours + 1)
    entry = 3 + neighbours
    if change == "slot":
        writer.index.words[entry] = index_word(1, SLOT_MASK)
    else:
        start = writer.slots.offset(writer.index.words[entry] & SLOT_MASK)
        writer.slots.memory[start + 48] = 6
    assert quick(reader_of(writer), key) is None


@pytest.mark.parametrize("length", [24 * 512 - 63, 2**24 - 63, 2**31, 2**32 - 1])
def test_a_length_too_large_is_left_to_a_closer_look(length: int) -> None:
    writer = make_writer()
    add(writer, 5)
    start = writer.slots.offset(writer.index.words[5] & SLOT_MASK)
    writer.slots.memory[start + 44 : start + 48] = length.to_bytes(4, "little")
    assert _look_up(reader_of(writer), 5) is None


def _flips(writer: TableWriter, entry: int) -> list[tuple[int, int]]:
    """Return offset and bit of all that a look-up of ``entry``, whose home is 3, may load."""
    geometry = writer.geometry
    start = writer.slots.offset(writer.index.words[entry] & SLOT_MASK)
    places = [
        *range(geometry.index_offset + 8 * entry, geometry.index_offset + 8 * entry + 8),
        geometry.reach_offset + 3,
        *range(start, start + 80),
    ]
    return [(at, 1 << bit) for at in places for bit in range(8)]


@each_quick
@pytest.mark.parametrize("damaged", [3, 4, 5])
def test_no_flipped_bit_makes_it_say_what_a_closer_look_does_not(
    damaged: int, quick: Quick, close: Quick, make: object
) -> None:
    writer = make_writer()
    keys = [*_crowd(writer, 3, 3), 3 + 1000 * writer.geometry.index_size]
    table, memory = reader_of(writer), writer.slots.memory
    before = {key: quick(table, key) for key in keys}
    left_open = 0
    for at, bit in _flips(writer, damaged):
        memory[at] ^= bit
        for key in keys:
            found, exact = quick(table, key), close(table, key)
            left_open += found is None
            # A neighbour that cannot be stops a closer look; the quick one may go past it.
            assert found in ((None, before[key]) if exact is None else (None, exact)), (
                at,
                bit,
                key,
            )
        memory[at] ^= bit
    assert left_open
    assert {key: quick(table, key) for key in keys} == before


@each_quick
@pytest.mark.parametrize("seed", range(20))
def test_memory_written_over_ends_in_an_answer_or_leaves_it_open(
    seed: int, quick: Quick, close: Quick, make: object
) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        writer = make_writer(2, 128)
        keys = _crowd(writer, 3, 2)
        memory = writer.slots.memory
        for _ in range(rng.randrange(1, 6)):
            raw = rng.randbytes(rng.randrange(1, 24))
            at = rng.randrange(64, len(memory) - len(raw))
            memory[at : at + len(raw)] = raw
        table = reader_of(writer)
        for key in [*keys, 3 + 1000 * writer.geometry.index_size]:
            found, exact = quick(table, key), close(table, key)
            assert found is None or exact is None or found == exact, (seed, key)


# ---------------------------------------------------------------------------- beside a writer


def _commits(writer: TableWriter, entry: int, key: int) -> dict[str, Callable[[], object]]:
    """Return changes of the session at an entry."""
    return {
        "replace": lambda: writer.replace(entry, session(writer, key, status="active")),
        "remove": lambda: writer.remove(entry),
        "create again": lambda: (writer.remove(entry), add(writer, key)),
        "another instead": lambda: (
            writer.remove(entry),
            add(writer, 3 + 50 * writer.geometry.index_size),
        ),
        "give up": lambda: seqlock.give_up(writer.index.words, writer.reach, MOVED),
    }


@each_quick
@pytest.mark.parametrize("change", _commits(make_writer(), 0, 0))
@pytest.mark.parametrize("met", ["its own", "a neighbour's"])
def test_it_concludes_nothing_from_a_copy_that_a_commit_came_into(
    met: str, change: str, quick: Quick, close: Quick, make: Callable
) -> None:
    writer = make_writer()
    keys = _crowd(writer, 3, 2)
    table = reader_of(writer)
    commit = _commits(writer, 3, keys[0])[change]
    look = make(table.index, table.reach, MetSlots(table.slots, commit))
    assert look(UUID(int=keys[met == "a neighbour's"])) is None
    assert table.index.retries == 1


@each_quick
def test_a_commit_of_another_entry_is_none_of_its_concern(
    quick: Quick, close: Quick, make: Callable
) -> None:
    writer = make_writer()
    add(writer, 3, 5)
    table = reader_of(writer)
    slots = MetSlots(table.slots, lambda: writer.replace(5, session(writer, 5)))
    assert make(table.index, table.reach, slots)(UUID(int=3)) == close(table, 3)
    assert table.index.retries == 0


@each_quick
def test_each_look_up_that_met_a_commit_is_counted(
    quick: Quick, close: Quick, make: Callable
) -> None:
    writer = make_writer()
    add(writer, 3)
    table = reader_of(writer)
    slots = MetSlots(table.slots, lambda: writer.replace(3, session(writer, 3)))
    look = make(table.index, table.reach, slots)
    for times in range(1, 11):
        assert look(UUID(int=3)) is None
        assert table.index.retries == times


@each_quick
@pytest.mark.parametrize("last", [False, True])
def test_what_is_inserted_meanwhile_is_found_or_not_there_yet(
    quick: Quick, close: Quick, make: Callable, *, last: bool
) -> None:
    writer = make_writer()
    size = writer.geometry.index_size
    home = size - 1 if last else 3
    add(writer, home)
    table = reader_of(writer)
    made: list[object] = []

    def insert_once() -> None:
        if not made:
            made.extend(add(writer, home + size))

    look = make(table.index, table.reach, MetSlots(table.slots, insert_once))
    first, then = look(UUID(int=home + size)), close(table, home + size)
    assert made
    assert then != ()
    assert first == then or first == ()  # noqa: PLR1714 - what was found is not hashable
    assert quick(table, home + size) == then
