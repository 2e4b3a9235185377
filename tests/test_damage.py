"""Damage: every byte of a table changed, and what readers and the next writer then say.

A small table in plain memory is changed one byte at a time: live bytes to 0, to 255 and in each
bit, the others to a value or two. What may come of it is a right answer, a miss, or a typed error;
a session that the byte has nothing to do with is read as ever.
"""

from __future__ import annotations

import contextlib
import zlib
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from msgspec.structs import astuple
from support import at, make_registry, make_writer, reader_of, session, successor_of
from tables import maps_of

from jidoka_shm import processes
from jidoka_shm.attachment import Attachment
from jidoka_shm.control import COUNTERS, ControlWriter, Identity
from jidoka_shm.errors import (
    CorruptRegistry,
    JidokaError,
    RegistryClosed,
    RegistryFull,
    SessionNotFound,
)
from jidoka_shm.layout import CONTROL_FIELDS, SLOT_HEADER_SIZE, SLOT_MASK
from jidoka_shm.maps import encode_map
from jidoka_shm.reads import SessionReads
from jidoka_shm.registry import Registry
from jidoka_shm.session import Session, SessionStatus
from jidoka_shm.table import SessionTable
from jidoka_shm.usage import Usage
from jidoka_shm.writer import TableWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NEXT = Identity(5353, 88, 4026531836)

#: Home entries of the table.
HOMES = 37

#: Ids of which three share the home 5, and one has the last home; and ids that are not there.
IDS = [UUID(int=key) for key in (5, 5 + HOMES, 5 + 2 * HOMES, HOMES - 1)]
ABSENT = [UUID(int=key) for key in (5 + 3 * HOMES, 7, 2 * HOMES - 1)]

CREATED = "2026-01-02T03:04:05.678901+00:00"

#: What the sessions hold. The first has a record of two slots.
FIELDS: dict[UUID, dict[str, Any]] = {
    IDS[0]: {"metadata": {"a": "x" * 60}, "status": "active", "pid": 4242},
    IDS[1]: {"llm_config": {"t": 0.5}, "status": "idle"},
    IDS[2]: {},
    IDS[3]: {"metadata": {"user": "Zo\xeb"}, "status": "terminated", "error": "over"},
}


class Damaged:
    """A table with sessions in it, of which a byte is to be changed.

    Attributes:
        writer: its writer.
        memory: its memory.
        sessions: the sessions as they are.
        own: the bytes that make each session: its word and its record.
        met: the bytes that a look-up of each session may come across, its own included.
        live: all of them.
    """

    def __init__(self) -> None:
        self.writer = writer = make_writer(8, 128)
        self.memory = writer.slots.memory  # type: ignore[assignment]  # in tests it is one
        assert writer.geometry.index_size == HOMES
        # The first one stays in slot 0, since one byte more in an empty word names that slot: were
        # an older record there, it would be a sound one that nobody can tell from a live session.
        for sid in (IDS[3], IDS[0], IDS[1], UUID(int=5 + 4 * HOMES)):
            writer.insert(self._made(sid))
        writer.remove(7)
        for sid in IDS[:2]:
            writer.replace(writer.look_up(sid)[0], self._made(sid))  # type: ignore[index]
        writer.insert(self._made(IDS[2]))
        found = {sid: writer.look_up(sid) for sid in IDS}
        assert [one and one[0] for one in found.values()] == [5, 6, 7, HOMES - 1]
        assert writer.space.records == {found[IDS[0]][1] & SLOT_MASK: 2}  # type: ignore[index]
        self.sessions = {sid: one[2] for sid, one in found.items() if one}
        self.own = {sid: set(self._own(*one[:2])) for sid, one in found.items() if one}
        first = writer.geometry.reach_offset
        self.met = {IDS[3]: {first + HOMES - 1} | self.own[IDS[3]]}
        for last, sid in enumerate(IDS[:3], 1):
            self.met[sid] = {first + 5}.union(*(self.own[one] for one in IDS[:last]))
        self.live = set().union(*self.met.values())

    def _made(self, sid: UUID) -> Session:
        return session(self.writer, sid.int, created_at=CREATED, **FIELDS.get(sid, {}))

    def _own(self, entry: int, word: int) -> Iterator[int]:
        yield from range(start := 64 + 8 * entry, start + 8)
        start = self.writer.slots.offset(word & SLOT_MASK)
        length = int.from_bytes(self.memory[start + 44 : start + 48], "little")
        yield from range(start, start + SLOT_HEADER_SIZE + length)


class Reads(SessionReads):
    """A reader of plain memory, which nothing follows."""

    def __init__(self, table: SessionTable, control: ControlWriter, *, cache_size: int = 0) -> None:
        self._name = "damaged"
        self._view = Attachment(control, table, is_named=lambda: True, cache_size=cache_size)

    def _attach_again(self, old: Attachment) -> None:
        raise RegistryClosed(self._name, "its table was given up")

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""


#: How a read of damaged memory may fail.
ALLOWED = (CorruptRegistry, RegistryClosed, SessionNotFound)


def _raw(found: Any) -> Any:  # noqa: ANN401 - whatever was read
    """Return a session's fields as they are, since to compare sessions would decode their maps."""
    return astuple(found) if isinstance(found, Session) else found


def _tried(read: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - whatever it reads
    """Return what is read, or the error that it ends in."""
    try:
        return read(*arguments)
    except ALLOWED as error:
        return error


def _assert_behind_a_header(damaged: Damaged, found: Session) -> None:
    """Assert that a session's payload is of the slots, and its fields end well or in the one error."""
    slots = damaged.writer.slots
    starts = [slots.offset(slot) + SLOT_HEADER_SIZE for slot in range(slots.count)]
    payload = found._payload
    # A slice that went beyond the table would be shorter than its record.
    assert any(damaged.memory[start : start + len(payload)] == payload for start in starts)
    assert type(found.status) is SessionStatus
    for read in (found.to_dict, found.payload, found.__repr__):
        assert not isinstance(_tried(read), (RegistryClosed, SessionNotFound))


def _assert_looked_up(damaged: Damaged, place: int, reads: Reads, *, verified: bool) -> None:
    for sid, original in damaged.sessions.items():
        found, status = _tried(reads.get, sid), _tried(reads.get_session_status, sid)
        if place not in damaged.met[sid]:
            assert (_raw(found), status) == (_raw(original), original.status), sid
        elif verified:
            assert found is None or isinstance(found, ALLOWED) or _raw(found) == _raw(original)
            assert isinstance(status, ALLOWED) or status is original.status
        elif isinstance(found, Session):
            assert found.session_id == sid
            _assert_behind_a_header(damaged, found)
    for sid in ABSENT:
        found = _tried(reads.get, sid)
        assert found is None or isinstance(found, (CorruptRegistry, RegistryClosed))


def _assert_listed(damaged: Damaged, place: int, reads: Reads, *, verified: bool) -> None:
    listed = _tried(lambda: list(reads.values()))
    if isinstance(listed, list):
        ids, raw = [one.session_id for one in listed], [_raw(one) for one in listed]
        for sid, original in damaged.sessions.items():
            if place not in damaged.own[sid]:
                # A word that names a live slot a second time shows by its version alone.
                assert 1 <= raw.count(_raw(original)) <= (1 if verified else 2)
        if verified:
            assert len(set(ids)) == len(ids)
            assert set(ids) <= set(damaged.sessions)
            assert all(_raw(one) == _raw(damaged.sessions[one.session_id]) for one in listed)
        else:
            for one in listed:
                _assert_behind_a_header(damaged, one)
    counted, size = _tried(reads.count_by_status), _tried(reads.__len__)
    used = _tried(reads.usage)
    if isinstance(used, Usage):
        assert 0 <= used.longest_free_run <= used.slots_free <= damaged.writer.geometry.slot_count
    if isinstance(counted, dict):
        assert set(counted) == set(SessionStatus)
        assert abs(sum(counted.values()) - len(damaged.sessions)) <= 1
    assert isinstance(size, RegistryClosed) or abs(size - len(damaged.sessions)) <= 1


def _assert_read(damaged: Damaged, place: int, table: SessionTable) -> None:
    reads = Reads(table, damaged.writer.control)
    _assert_looked_up(damaged, place, reads, verified=table.verify)
    _assert_listed(damaged, place, reads, verified=table.verify)


def _assert_taken_over(damaged: Damaged, place: int) -> None:
    """Assert what the next writer of a copy of the memory keeps, drops and says."""
    control = ControlWriter(bytearray(damaged.writer.control._memory))
    fresh = TableWriter(bytearray(damaged.memory), control, damaged.writer.geometry)
    before = {entry for entry, word in enumerate(fresh.index.words) if word}
    kept, dropped = make_registry(fresh).resume(NEXT)
    after = {entry for entry, word in enumerate(fresh.index.words) if word}
    assert fresh.check() == []
    assert kept == len(after)
    assert [one.entry for one in dropped] == sorted(before - after)
    assert all(one.reason for one in dropped)
    assert control.counters()["dropped"] == len(dropped)
    for sid, original in damaged.sessions.items():
        found = fresh.look_up(sid)
        if place not in damaged.own[sid]:
            assert found is not None, sid
        assert found is None or _raw(found[2]) == _raw(original)
    fresh.insert(session(fresh, 9))
    assert fresh.check() == []


def _images(damaged: Damaged, part: range) -> Iterator[tuple[int, int]]:
    """Yield each byte of a part with each value to change it to."""
    geometry = damaged.writer.geometry
    for place in part:
        old = damaged.memory[place]
        values = {255, 1 << place // 8 % 8}
        if place in damaged.live:
            values = {0, 255, *(old ^ 1 << bit for bit in range(8))}
        elif place < geometry.reach_offset and place % 8 == 0:
            # The words that say that the table was given up.
            values |= {1, 2}
        elif place >= geometry.slots_offset:
            values = {old ^ 255}
        for value in sorted(values - {old}):
            yield place, value


def _parts() -> dict[str, range]:
    geometry = Damaged().writer.geometry
    middle = geometry.slots_offset + geometry.slot_count // 2 * geometry.slot_size
    return {
        "index": range(geometry.index_offset, geometry.index_offset + 8 * geometry.index_size),
        "room": range(geometry.index_offset + 8 * geometry.index_size, geometry.reach_offset),
        "reach": range(geometry.reach_offset, geometry.slots_offset),
        "slots": range(geometry.slots_offset, middle),
        "more slots": range(middle, geometry.size),
    }


def test_the_parts_are_the_whole_table_but_its_header() -> None:
    geometry = Damaged().writer.geometry
    together = [place for part in _parts().values() for place in part]
    assert together == list(range(64, geometry.size))


@pytest.mark.parametrize("part", _parts())
def test_any_byte_changed_leaves_right_answers_misses_and_typed_errors(part: str) -> None:
    """D3: whatever byte of a table is changed, no answer is wrong where crcs are computed."""
    damaged = Damaged()
    memory = damaged.memory
    tables = [reader_of(damaged.writer, verify=verify) for verify in (False, True)]
    warm = Reads(tables[1], damaged.writer.control, cache_size=8)
    checked = Reads(tables[0], damaged.writer.control)
    begin = damaged.writer.geometry.reach_offset
    for place, value in _images(damaged, _parts()[part]):
        old, memory[place] = memory[place], value
        try:
            for table in tables:
                _assert_read(damaged, place, table)
            # A word that became 0 is that of an empty entry.
            word = place // 8 * 8
            if not 64 <= place < begin or memory[word : word + 8] != bytes(8):
                wrong = place in damaged.live or 64 <= place < begin + HOMES
                if begin <= place < begin + HOMES:
                    # A reach that is too high is what a killed writer leaves, too.
                    wrong = value < old
                assert bool(checked.check()) == wrong
            _assert_looked_up(damaged, place, warm, verified=True)
            _assert_taken_over(damaged, place)
        except BaseException as error:
            error.add_note(f"byte {place} changed from {old} to {value}")
            raise
        finally:
            memory[place] = old
        # What was kept while it was damaged is not given once it is not.
        assert [_raw(warm.get(sid)) for sid in IDS] == [_raw(damaged.sessions[sid]) for sid in IDS]
    assert damaged.writer.check() == []


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(("home", "needed"), [(5, 3), (7, 0), (HOMES - 1, 1)])
def test_any_reach_leads_to_the_sessions_within_it_and_to_nothing_else(
    home: int, needed: int, *, verify: bool
) -> None:
    """D3: one too high is no damage, from the last home too; one too low hides, and is found."""
    damaged = Damaged()
    assert damaged.writer.reach[home] == needed
    reads = Reads(reader_of(damaged.writer, verify=verify), damaged.writer.control)
    sessions = {sid: _raw(original) for sid, original in damaged.sessions.items()}
    distances = {sid: damaged.writer.look_up(sid)[0] - home for sid in IDS}  # type: ignore[index]
    for reach in range(256):
        damaged.writer.reach[home] = reach
        for sid, original in damaged.sessions.items():
            hidden = sid.int % HOMES == home and distances[sid] >= reach
            assert _raw(reads.get(sid)) == (None if hidden else sessions[sid]), (sid, reach)
            # The home's own word is loaded before the reach where the status alone is asked for.
            missed = hidden and (distances[sid] > 0 or reads._view.table.verify)
            status = _tried(reads.get_session_status, sid)
            assert isinstance(status, SessionNotFound) if missed else status is original.status
        assert [reads.get(sid) for sid in ABSENT] == [None] * len(ABSENT)
        assert {one.session_id: _raw(one) for one in reads.values()} == sessions
        problem = f"reach of {home} is {reach}, not {needed}"
        assert reads.check() == ([problem] if reach < needed else [])
        assert damaged.writer.check() == ([problem] if reach != needed else [])


#: Numbers for a word of the control that count, follow or contradict something.
NUMBERS = (0, 1, 2, 4242, 2**31, 2**32, 2**40, 2**41, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)


@pytest.mark.parametrize("field", [*COUNTERS, "writer_pid", "writer_start", "writer_namespace"])
def test_any_number_in_the_control_leaves_the_sessions_as_they_are(field: str) -> None:
    damaged = Damaged()
    control = damaged.writer.control
    control.publish_writer(processes.own_identity())
    reads = Reads(reader_of(damaged.writer), control)
    for value in NUMBERS:
        control._words[CONTROL_FIELDS[field] // 8] = value
        _assert_read(damaged, 0, reads._view.table)
        assert reads.writer_alive in {True, False, None}
        assert reads.check() == []
        if field in COUNTERS:
            assert getattr(reads.stats(), field) == value
        before = control.counters()
        for counter in COUNTERS:
            control.count(counter)
        assert control.counters() == {key: (old + 1) % 2**64 for key, old in before.items()}
    assert make_registry(successor_of(damaged.writer)).resume(NEXT) == (4, ())


_NEW = encode_map({"b": 2}, "metadata")
_LONGER = encode_map({"b": "y" * 200}, "metadata")

#: What a writer does to one session, to another, or by itself.
CHANGES: dict[str, Callable[[Registry], object]] = {
    "heartbeat": lambda registry: registry.update(IDS[0], now=at(5)),
    "move": lambda registry: registry.update(IDS[0], status=SessionStatus.IDLE, now=at(5)),
    "map": lambda registry: registry.update(IDS[0], metadata=_NEW, now=at(5)),
    "longer map": lambda registry: registry.update(IDS[0], metadata=_LONGER, now=at(5)),
    "deadline": lambda registry: registry.update(IDS[0], ttl=500, now=at(5)),
    "end": lambda registry: registry.terminate(IDS[0], error="over", now=at(5)),
    "create": lambda registry: registry.create(
        UUID(int=9), **maps_of({"b": 2}, {"b": 2}), owner=None, ttl=9, now=at(5)
    ),
    "remove": lambda registry: registry.expire(at(100)),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_beside_damage_is_made_or_a_typed_error(kind: str) -> None:
    damaged = Damaged()
    for place in sorted(damaged.live):
        for value in (damaged.memory[place] ^ 255, damaged.memory[place] ^ 1 << place % 8):
            control = ControlWriter(bytearray(damaged.writer.control._memory))
            memory = bytearray(damaged.memory)
            registry = make_registry(TableWriter(memory, control, damaged.writer.geometry))
            registry.resume(NEXT)
            registry._deadlines.set(IDS[3].int, 1)
            memory[place] = value
            with contextlib.suppress(JidokaError):
                CHANGES[kind](registry)
            # Neither the other sessions nor the table as a whole suffer from it.
            fresh = successor_of(registry.table)
            make_registry(fresh).resume(NEXT)
            assert fresh.check() == [], (place, value)
            for sid in IDS[1:3]:
                found = fresh.look_up(sid)
                assert place in damaged.own[sid] or (
                    found is not None and _raw(found[2]) == _raw(damaged.sessions[sid])
                ), (place, value)


def _assert_found(writer: TableWriter, problem: str, dropped: int) -> None:
    """Assert what a check says of damage that no crc shows, and which entry a takeover drops."""
    for verify in (False, True):
        assert reader_of(writer, verify=verify).check() == [problem]
    before = {entry for entry, word in enumerate(writer.index.words) if word}
    fresh = successor_of(writer)
    kept, (found,) = make_registry(fresh).resume(NEXT)
    assert (kept, found.entry) == (len(before) - 1, dropped)
    assert {entry for entry, word in enumerate(fresh.index.words) if word} == before - {dropped}
    assert fresh.check() == []


#: Metadata with which a record ends in a slot of 128 bytes, and the room for its end in the next.
_FULL = {"a": "x" * 50}


@pytest.mark.parametrize("is_newer", [False, True])
def test_of_two_records_that_share_a_slot_the_newer_is_kept(*, is_newer: bool) -> None:
    """D3: whole records both, one of which begins in a slot that is the other's."""
    writer = make_writer(8, 128)
    keys = (5, 9) if is_newer else (9, 5)
    for key in keys:
        writer.insert(session(writer, key, **({"metadata": _FULL} if key == 5 else {})))
    ((start, length),) = writer.space.records.items()
    assert length == 2
    word = writer.index.words[9]
    old, new = (writer.slots.offset(slot) for slot in (word & SLOT_MASK, start + 1))
    writer.slots.memory[new : new + 128] = writer.slots.memory[old : old + 128]
    writer.index.words[9] = word & ~SLOT_MASK | start + 1
    reader = reader_of(writer, verify=True)
    assert all(reader.look_up(UUID(int=key)) is not None for key in (5, 9))
    problem = f"slot {start + 1} is of the entries 5 and 9"
    _assert_found(writer, problem, 5 if is_newer else 9)


def test_a_record_without_room_for_its_end_is_dropped() -> None:
    """D3: a whole record in the last slot, which would need one more."""
    writer = make_writer(8, 128)
    for key in (5, 9):
        writer.insert(session(writer, key, **({"metadata": _FULL} if key == 5 else {})))
    word, last = writer.index.words[5], writer.geometry.slot_count - 1
    old, new = (writer.slots.offset(slot) for slot in (word & SLOT_MASK, last))
    writer.slots.memory[new : new + 128] = writer.slots.memory[old : old + 128]
    writer.index.words[5] = word & ~SLOT_MASK | last
    assert reader_of(writer, verify=True).look_up(UUID(int=5)) is not None
    _assert_found(writer, "the slots of the entry 5 end beyond the table", 5)


@pytest.mark.parametrize("length", [250, 2**24 - 64, 2**24 - 63, 2**31, 2**32 - 1])
def test_a_length_that_leads_elsewhere_is_damage_though_its_header_is_right(length: int) -> None:
    """D3: into another record's slots, beyond the table, or beyond what any record takes."""
    writer = make_writer(40, 128)
    for key in (5, 9):
        writer.insert(session(writer, key, metadata={"a": "x" * 100}))
    assert writer.space.records == {16: 2, 18: 2}
    start, memory = writer.slots.offset(16), writer.slots.memory
    memory[start + 44 : start + 48] = length.to_bytes(4, "little")
    memory[start + 60 : start + 64] = zlib.crc32(memory[start : start + 60]).to_bytes(4, "little")
    for verify in (False, True):
        reads = Reads(reader_of(writer, verify=verify), writer.control)
        found = _tried(reads.get, UUID(int=5))
        if verify or length > 250:
            assert isinstance(found, CorruptRegistry)
        assert _raw(reads.get(UUID(int=9))) == _raw(writer.look_up(UUID(int=9))[2])  # type: ignore[index]
        assert reads.get_session_status(UUID(int=5)) is SessionStatus.INITIALIZING
    (entry,) = [entry for entry, word in enumerate(writer.index.words) if word & SLOT_MASK == 16]
    kept, (dropped,) = make_registry(fresh := successor_of(writer)).resume(NEXT)
    assert (kept, dropped.entry, fresh.check()) == (1, entry, [])


@pytest.mark.parametrize("value", NUMBERS)
def test_any_change_word_leaves_the_sessions_as_they_are(value: int) -> None:
    damaged = Damaged()
    damaged.writer.change[0] = value
    for verify in (False, True):
        table = reader_of(damaged.writer, verify=verify)
        _assert_read(damaged, 0, table)
        assert Reads(table, damaged.writer.control).version == (None if value % 2 else value // 2)
    fresh = successor_of(damaged.writer)
    assert make_registry(fresh).resume(NEXT) == (4, ())
    assert fresh.check() == []
    with contextlib.suppress(RegistryFull):
        made = session(fresh, 9)
        assert made.version > max(one.version for one in damaged.sessions.values())
        fresh.insert(made)
    assert fresh.check() == []


@pytest.mark.parametrize("kind", ["heartbeat", "move"])
def test_a_change_gives_no_damage_a_right_crc(kind: str) -> None:
    """D3: a record that was damaged is not copied into one whose crcs say that it is whole."""
    damaged = Damaged()
    original = damaged.sessions[IDS[0]]
    for place in sorted(damaged.own[IDS[0]]):
        for bit in range(8):
            control = ControlWriter(bytearray(damaged.writer.control._memory))
            memory = bytearray(damaged.memory)
            registry = make_registry(TableWriter(memory, control, damaged.writer.geometry))
            registry.resume(NEXT)
            memory[place] ^= 1 << bit
            with contextlib.suppress(JidokaError):
                CHANGES[kind](registry)
            found = _tried(reader_of(registry.table, verify=True).look_up, IDS[0])
            if isinstance(found, tuple):
                kept = found[2].pid, found[2]._created, found[2]._payload
                assert kept == (original.pid, original._created, original._payload), (place, bit)
