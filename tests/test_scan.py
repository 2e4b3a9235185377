"""Scans: an atomic snapshot where no commit came between, else each session whole and current."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import make_writer, reader_of, session
from tables import add, both_ways

from jidoka_shm import seqlock
from jidoka_shm.errors import CorruptRegistry
from jidoka_shm.layout import CLOSED, MOVED, SLOT_DTYPE, SLOT_MASK, index_word
from jidoka_shm.scan import NO_SESSIONS, Sessions, count_sessions, scan_headers, scan_sessions
from jidoka_shm.session import CODE_OF_STATUS, Session
from jidoka_shm.table import SessionTable, TableGone

if TYPE_CHECKING:
    from collections.abc import Callable

    from jidoka_shm.writer import TableWriter


def _sessions(table: SessionTable) -> tuple[int | None, list[Session]]:
    """Return the answer of a scan, in the order of versions."""
    found = _scan(table)
    return found.change, _by_version(found)


def _scan(table: SessionTable, known: Sessions = NO_SESSIONS) -> Sessions:
    """Return a scan, once it is sure that its parts say the same of each entry."""
    found = scan_sessions(table, known)
    assert found.entries.tolist() == sorted(found.sessions)
    versions = [found.sessions[at].version for at in sorted(found.sessions)]
    assert (found.words >> np.uint64(24)).tolist() == versions
    return found


def _by_version(found: Sessions) -> list[Session]:
    return sorted(found.sessions.values(), key=lambda one: one.version)


def _headers(table: SessionTable) -> tuple[int | None, list[tuple[int, int]]]:
    """Return the answer of a scan as id and version, in the order of versions."""
    change, rows = scan_headers(table)
    return change, sorted(map(_id_and_version, rows), key=lambda one: one[1])


def _id_and_version(row: np.void) -> tuple[int, int]:
    return int.from_bytes(row["session_id"].tobytes()), row["version"].item()


def _listed(sessions: list[Session]) -> list[tuple[int, int]]:
    return [(one.session_id.int, one.version) for one in sessions]


# ---------------------------------------------------------------------------- at rest


@both_ways
def test_an_empty_table_has_no_sessions(*, verify: bool) -> None:
    table = reader_of(make_writer(), verify=verify)
    assert _sessions(table) == (0, [])
    assert _headers(table) == (0, [])


@both_ways
def test_all_sessions_are_found_as_of_the_change_word(*, verify: bool) -> None:
    writer = make_writer(200, 128)
    rng = random.Random(2)
    made = add(writer, *(rng.getrandbits(128) for _ in range(150)), *(n << 40 for n in range(50)))
    table = reader_of(writer, verify=verify)
    assert _sessions(table) == (400, made)
    assert _headers(table) == (400, _listed(made))


@both_ways
def test_what_was_removed_or_replaced_is_not_found(*, verify: bool) -> None:
    writer = make_writer()
    _, _, kept = add(writer, 1, 2, 3)
    writer.remove(1)
    changed = session(writer, 2, status="active")
    writer.replace(2, changed)
    table = reader_of(writer, verify=verify)
    assert _sessions(table) == (10, [kept, changed])
    assert _headers(table) == (10, _listed([kept, changed]))


@both_ways
def test_each_session_stands_at_its_entry_with_its_word(*, verify: bool) -> None:
    writer = make_writer()
    made = add(writer, 1, 2, 40)
    found = _scan(reader_of(writer, verify=verify))
    places = [writer.look_up(one.session_id)[:2] for one in made]
    assert found.sessions == dict(zip([entry for entry, _ in places], made, strict=True))
    assert dict(zip(found.entries.tolist(), found.words.tolist(), strict=True)) == dict(places)


@both_ways
def test_the_columns_are_the_fields_of_the_sessions(*, verify: bool) -> None:
    writer = make_writer()
    made = add(writer, 1 << 120, pid=4242, status="idle", created_at="2026-01-02T03:04:05Z")
    made += add(writer, 2**128 - 1, updated_at="1969-12-31T23:59:59Z", metadata={"a": 1})
    _, rows = scan_headers(reader_of(writer, verify=verify))
    names = ("version", "created_at", "updated_at", "pid", "payload_length", "status")
    assert sorted(rows[list(names)].tolist()) == [
        (
            one.version,
            one._created,
            one._updated,
            one.pid or 0,
            len(one._payload),
            CODE_OF_STATUS[one.status],
        )
        for one in made
    ]
    assert {row["session_id"].tobytes() for row in rows} == {one.session_id.bytes for one in made}


@both_ways
@pytest.mark.parametrize("odd", [False, True])
def test_the_columns_stand_where_the_slots_header_has_them(*, odd: bool, verify: bool) -> None:
    writer = make_writer()
    add(writer, 1, 2)
    writer.change[0] += odd
    _, rows = scan_headers(reader_of(writer, verify=verify))
    assert rows.dtype == SLOT_DTYPE


@both_ways
def test_the_columns_are_a_copy(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 1)
    _, rows = scan_headers(reader_of(writer, verify=verify))
    writer.slots.memory[writer.slots.begin :] = bytes(len(writer.slots.memory) - writer.slots.begin)
    assert rows["version"].tolist() == [1]


@both_ways
@pytest.mark.parametrize("keys", [(), (1, 2, 40)])
def test_after_a_kill_in_mid_commit_all_sessions_are_found_and_no_snapshot_is_claimed(
    keys: tuple[int, ...], *, verify: bool
) -> None:
    writer = make_writer()
    made = add(writer, *keys)
    seqlock.hold(writer.change, writer.next_version())
    table = reader_of(writer, verify=verify)
    assert _sessions(table) == (None, made)
    assert _headers(table) == (None, _listed(made))


# ---------------------------------------------------------------------------- known sessions


def _copied(table: SessionTable) -> list[int]:
    """Return a list that gets the word of each copy that the table makes."""
    copied, whole, many = [], table.copy_whole, table.copy_many

    def copy_whole(word: int) -> object:
        copied.append(word)
        return whole(word)

    def copy_many(words: np.ndarray) -> object:
        copied.extend(words.tolist())
        return many(words)

    table.copy_whole, table.copy_many = copy_whole, copy_many
    return copied


@both_ways
def test_a_scan_of_a_large_table_reads_the_slots_of_its_sessions_alone(*, verify: bool) -> None:
    """D8: 10 live sessions in 65,536 slots are listed by 10 copies."""
    writer = make_writer(65_520, 128)
    assert writer.slots.count == 65_536
    made = add(writer, *range(0, 65_000, 6_500))
    table = reader_of(writer, verify=verify)
    copied = _copied(table)
    found = _scan(table)
    assert sorted(found.sessions) == list(range(0, 65_000, 6_500))
    assert copied == [writer.index.words[entry] for entry in range(0, 65_000, 6_500)]
    assert len(made) == len(copied) == 10
    rows = []
    copy_headers = table.slots.copy_headers
    table.slots.copy_headers = lambda words: rows.append(len(words)) or copy_headers(words)
    assert len(scan_headers(table)[1]) == 10
    assert rows == [10]


@both_ways
def test_known_sessions_are_not_read_again(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 1, 2, 3)
    table = reader_of(writer, verify=verify)
    known = _scan(table)
    copied = _copied(table)
    again = _scan(table, known)
    assert copied == []
    assert again.sessions == known.sessions
    assert all(again.sessions[at] is one for at, one in known.sessions.items())


@both_ways
def test_of_some_known_sessions_only_what_changed_is_read(*, verify: bool) -> None:
    writer = make_writer()
    _, two, _ = add(writer, 1, 2, 3)
    table = reader_of(writer, verify=verify)
    known = _scan(table)
    changed = session(writer, 1, status="active")
    writer.replace(1, changed)
    writer.remove(3)
    (four,) = add(writer, 4)
    copied = _copied(table)
    again = _scan(table, known)
    assert copied == [writer.index.words[1], writer.index.words[4]]
    assert (again.change, _by_version(again)) == (12, [two, changed, four])


@both_ways
def test_the_known_sessions_are_left_as_they_are(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 1, 2)
    table = reader_of(writer, verify=verify)
    known = _scan(table)
    before = (known.change, known.entries.tolist(), known.words.tolist(), dict(known.sessions))
    writer.remove(1)
    writer.replace(2, session(writer, 2))
    _scan(table, known)
    after = (known.change, known.entries.tolist(), known.words.tolist(), known.sessions)
    assert after == before


@both_ways
@settings(max_examples=50)
@given(
    first=st.sets(st.integers(0, 60), max_size=20), then=st.sets(st.integers(0, 60), max_size=20)
)
def test_what_came_and_went_between_two_scans_is_all_that_the_second_is_different_in(
    first: set[int], then: set[int], *, verify: bool
) -> None:
    writer = make_writer(40, 128)
    add(writer, *first)
    table = reader_of(writer, verify=verify)
    known = _scan(table)
    for key in first - then:
        writer.remove(writer.look_up(UUID(int=key))[0])
    made = add(writer, *(then - first))
    copied = _copied(table)
    found = _scan(table, known)
    assert sorted(copied) == sorted(writer.look_up(one.session_id)[1] for one in made)
    assert {one.session_id.int for one in found.sessions.values()} == then


def test_one_word_at_two_entries_is_one_session_to_who_verifies() -> None:
    """Damage of which no crc tells."""
    writer = make_writer()
    made = add(writer, 5, 9)
    table = reader_of(writer, verify=True)
    known = _scan(table)
    writer.index.words[30] = writer.index.words[5]
    assert _by_version(_scan(table, known)) == made
    assert _by_version(_scan(table)) == made


@both_ways
def test_a_session_that_came_back_is_no_known_one(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 1)
    table = reader_of(writer, verify=verify)
    known = _scan(table)
    writer.remove(1)
    (anew,) = add(writer, 1)
    assert _by_version(_scan(table, known)) == [anew]


# ---------------------------------------------------------------------------- beside a writer


def _met(table: SessionTable, when: str, commit: Callable[[], object]) -> None:
    """Let a commit be made once in a scan: when the index is copied, or when slots are.

    ``again`` is before the first entry is read once more by its own word.
    """
    owner, name = {
        "index": (table, "occupied"),
        "slots": (table, "copy_many"),
        "headers": (table.slots, "copy_headers"),
        "again": (table, "read"),
    }[when]
    real = getattr(owner, name)

    def met(*args: object) -> object:
        setattr(owner, name, real)
        if when == "again":
            commit()
            return real(*args)
        copied = real(*args)
        commit()
        return copied

    setattr(owner, name, met)


def _changes(writer: TableWriter) -> dict[str, Callable[[], object]]:
    """Return changes of a table with the sessions 1, 2 and 3."""
    return {
        "replace": lambda: writer.replace(2, session(writer, 2, status="active")),
        "remove": lambda: writer.remove(2),
        "insert": lambda: add(writer, 4),
        "remove and create again": lambda: (writer.remove(2), add(writer, 2)),
        "replace twice": lambda: [
            writer.replace(2, session(writer, 2, status=status)) for status in ("active", "idle")
        ],
        "change all": lambda: (
            writer.remove(1),
            writer.replace(2, session(writer, 2)),
            writer.remove(3),
            add(writer, 5, 6),
        ),
    }


KINDS = list(_changes(make_writer()))


def _at_rest(writer: TableWriter) -> list[tuple[int, int]]:
    return _listed(_sessions(reader_of(writer))[1])


@both_ways
@pytest.mark.parametrize("when", ["index", "slots"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_scan_that_a_commit_came_into_is_whole_and_no_snapshot(
    kind: str, when: str, *, verify: bool
) -> None:
    writer = make_writer()
    add(writer, 1, 2, 3)
    table = reader_of(writer, verify=verify)
    _met(table, when, _changes(writer)[kind])
    change, found = _sessions(table)
    assert change is None
    assert _listed(found) == _at_rest(writer)


@both_ways
@pytest.mark.parametrize("when", ["index", "headers"])
@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_a_commit_came_into_are_whole_and_no_snapshot(
    kind: str, when: str, *, verify: bool
) -> None:
    writer = make_writer()
    add(writer, 1, 2, 3)
    table = reader_of(writer, verify=verify)
    _met(table, when, _changes(writer)[kind])
    change, found = _headers(table)
    assert change is None
    now = _at_rest(writer)
    # What was created after the index was copied need not be there; all else is as it is now.
    assert set(found) <= set(now)
    assert {one for one in now if one[0] <= 3} <= set(found)
    assert len(found) == len(set(found))


@both_ways
def test_only_what_changed_is_read_again(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 1, 2, 3)
    table = reader_of(writer, verify=verify)
    read, real = [], table.read

    def counted(entry: int, copy: Callable) -> object:
        read.append(entry)
        return real(entry, copy)

    table.read = counted
    _met(table, "slots", _changes(writer)["replace"])
    _scan(table)
    assert read == [2]


@both_ways
def test_a_commit_after_the_slots_are_copied_leaves_the_snapshot_as_it_was(*, verify: bool) -> None:
    writer = make_writer()
    made = add(writer, 1, 2, 3)
    table = reader_of(writer, verify=verify)
    change, found = _sessions(table)
    _changes(writer)["change all"]()
    assert (change, found) == (6, made)


def _moved_home(
    when: str, scan: Callable[[SessionTable], tuple], *, verify: bool
) -> tuple[int | None, list[tuple[int, int]], list[tuple[int, int]]]:
    """Scan while session 40 is removed and created again nearer to its home, and 3 is removed.

    Returns:
        The change word and sessions of the scan, and the sessions afterwards.
    """
    writer = make_writer()
    add(writer, 3, 40)
    assert writer.look_up(UUID(int=40))[0] == 4
    table = reader_of(writer, verify=verify)

    def move() -> None:
        writer.remove(3)
        writer.remove(4)
        add(writer, 40)

    # The first change makes entry 3 one to be read again; by then 40 is there, and at 4 no more.
    _met(table, when, lambda: writer.replace(3, session(writer, 3)))
    _met(table, "again", move)
    change, found = scan(table)
    return change, found, _at_rest(writer)


@both_ways
def test_a_session_removed_and_created_again_is_listed_once_and_as_it_is_now(
    *, verify: bool
) -> None:
    change, found, now = _moved_home("slots", _sessions, verify=verify)
    assert (change, _listed(found)) == (None, now)
    assert [key for key, _ in now] == [40]


@both_ways
def test_a_session_removed_and_created_again_has_one_row_as_it_is_now(*, verify: bool) -> None:
    change, found, now = _moved_home("headers", _headers, verify=verify)
    assert (change, found) == (None, now)


@both_ways
def test_an_id_at_two_entries_is_listed_once_with_the_newest_version(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 3)
    (newer,) = add(writer, 3)
    seqlock.hold(writer.change, writer.next_version())
    table = reader_of(writer, verify=verify)
    assert _sessions(table) == (None, [newer])
    assert _headers(table) == (None, _listed([newer]))


@both_ways
@settings(max_examples=50)
@given(data=st.data())
def test_a_scan_between_any_changes_lists_what_lived_throughout_once(
    data: st.DataObject, *, verify: bool
) -> None:
    writer = make_writer(8, 128)
    size = writer.geometry.index_size
    keys = [home + turn * size for home in (3, 4) for turn in range(4)]
    live = set(data.draw(st.sets(st.sampled_from(keys), max_size=6)))
    add(writer, *live)
    lived = set(live)
    table = reader_of(writer, verify=verify)

    def change() -> None:
        for key in data.draw(st.lists(st.sampled_from(keys), max_size=4)):
            found = writer.look_up(UUID(int=key))
            if found is None:
                add(writer, key)
                lived.discard(key)
            elif data.draw(st.booleans()):
                writer.replace(found[0], session(writer, key))
            else:
                writer.remove(found[0])
                lived.discard(key)

    for when in ("index", "slots", "again"):
        _met(table, when, change)
    _, found = _sessions(table)
    listed = [one.session_id.int for one in found]
    assert len(listed) == len(set(listed))
    assert lived <= set(listed)
    assert writer.check() == []


# ---------------------------------------------------------------------------- given up

scans = pytest.mark.parametrize("scan", [_sessions, _headers])


@both_ways
@scans
@pytest.mark.parametrize("word", [MOVED, CLOSED])
def test_a_table_that_was_given_up_is_gone(word: int, scan: Callable, *, verify: bool) -> None:
    writer = make_writer()
    add(writer, 1)
    seqlock.give_up(writer.index.words, writer.reach, word)
    with pytest.raises(TableGone):
        scan(reader_of(writer, verify=verify))


@both_ways
@scans
@pytest.mark.parametrize("entry", [0, 100, 290])
def test_a_table_of_which_one_entry_was_given_up_is_gone(
    entry: int, scan: Callable, *, verify: bool
) -> None:
    writer = make_writer()
    add(writer, 1)
    writer.index.words[entry] = MOVED
    with pytest.raises(TableGone):
        scan(reader_of(writer, verify=verify))


@both_ways
@pytest.mark.parametrize(("when", "scan"), [("slots", _sessions), ("headers", _headers)])
def test_a_table_that_is_given_up_during_the_scan_is_gone(
    when: str, scan: Callable, *, verify: bool
) -> None:
    writer = make_writer()
    add(writer, 1, 2, 3)
    table = reader_of(writer, verify=verify)

    def grow() -> None:
        seqlock.hold(writer.change, writer.next_version())
        seqlock.give_up(writer.index.words, writer.reach, MOVED)

    _met(table, when, grow)
    with pytest.raises(TableGone):
        scan(table)


# ---------------------------------------------------------------------------- damage


@both_ways
@scans
@pytest.mark.parametrize("slot", [24, SLOT_MASK])
@pytest.mark.parametrize("version", [0, 2])
def test_a_slot_number_too_large_is_damage_or_no_session(
    version: int, slot: int, scan: Callable, *, verify: bool
) -> None:
    writer = make_writer()
    made = add(writer, 1, 2)
    writer.index.words[20] = max(index_word(version, slot), CLOSED + 1)
    try:
        _, found = scan(reader_of(writer, verify=verify))
    except CorruptRegistry:
        return
    assert found in (made, _listed(made))


@both_ways
def test_a_length_too_large_is_damage(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 1, 2)
    start = writer.slots.offset(writer.index.words[2] & SLOT_MASK)
    writer.slots.memory[start + 44 : start + 48] = b"\xff\xff\xff\xff"
    with pytest.raises(CorruptRegistry, match="entry 2, slot 1, version 2 holds no session"):
        _scan(reader_of(writer, verify=verify))


@both_ways
def test_of_many_damaged_ones_a_slot_is_named(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 1, 2, 3)
    for entry in (2, 3):
        writer.index.words[entry] |= SLOT_MASK
    with pytest.raises(CorruptRegistry, match=f"entry 2, slot {SLOT_MASK}, version 2 holds no"):
        _scan(reader_of(writer, verify=verify))


@both_ways
def test_damage_that_a_commit_mends_meanwhile_is_none(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 1, 2, 3)
    writer.index.words[2] |= SLOT_MASK
    table = reader_of(writer, verify=verify)

    def mend() -> None:
        writer.index.words[2] = index_word(2, 1)
        writer.replace(2, session(writer, 2))

    _met(table, "slots", mend)
    change, found = _sessions(table)
    assert change is None
    assert _listed(found) == _at_rest(writer)


@scans
def test_no_flipped_bit_of_a_header_is_listed_verified(scan: Callable) -> None:
    writer = make_writer()
    add(writer, 1, 2)
    table = reader_of(writer, verify=True)
    start = writer.slots.offset(writer.index.words[2] & SLOT_MASK)
    for bit in range(8 * 64):
        writer.slots.memory[start + bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptRegistry):
            scan(table)
        writer.slots.memory[start + bit // 8] ^= 1 << bit % 8


def test_no_flipped_bit_of_a_payload_is_listed_verified() -> None:
    writer = make_writer()
    _, two = add(writer, 1, 2, metadata={"a": 1})
    table = reader_of(writer, verify=True)
    start = writer.slots.offset(writer.index.words[2] & SLOT_MASK)
    for bit in range(8 * 64, 8 * (64 + len(two._payload))):
        writer.slots.memory[start + bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptRegistry):
            _scan(table)
        writer.slots.memory[start + bit // 8] ^= 1 << bit % 8


@both_ways
@scans
@given(
    spots=st.lists(
        st.tuples(st.integers(64, 5000), st.binary(min_size=1, max_size=24)),
        min_size=1,
        max_size=6,
    )
)
def test_a_scan_of_memory_written_over_ends_well_or_in_a_typed_error(
    spots: list[tuple[int, bytes]], scan: Callable, *, verify: bool
) -> None:
    writer = make_writer(2, 128)
    made = _listed(add(writer, 3, 3 + writer.geometry.index_size))
    memory = writer.slots.memory
    for start, raw in spots:
        at = start % len(memory)
        memory[at : at + len(raw)] = raw[: len(memory) - at]
    table = reader_of(writer, verify=verify)
    try:
        found = scan_sessions(table, NO_SESSIONS).sessions.values()
        rows = _listed(found) if scan is _sessions else _headers(table)[1]
    except (CorruptRegistry, TableGone):
        return
    if table.verify:
        assert set(rows) <= set(made)


@both_ways
def test_a_session_that_moved_during_a_count_counts_once(
    monkeypatch: pytest.MonkeyPatch, *, verify: bool
) -> None:
    """Removed and created again, it may be met at both its entries."""
    writer = make_writer(8, 192)
    size = writer.geometry.index_size
    near, far = 5, 5 + size
    add(writer, near, far)
    table = reader_of(writer, verify=verify)
    occupied = SessionTable.occupied

    def meet_a_move(self: SessionTable) -> object:
        before = occupied(self)
        monkeypatch.undo()
        writer.remove(writer.look_up(UUID(int=far))[0])
        writer.remove(writer.look_up(UUID(int=near))[0])
        add(writer, far)
        # As if the copy had been made from the entry it left to the one it came to.
        return tuple(map(np.concatenate, zip(before, occupied(self), strict=True)))

    monkeypatch.setattr(SessionTable, "occupied", meet_a_move)
    assert count_sessions(table) == 1
