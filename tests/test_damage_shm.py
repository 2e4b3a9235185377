"""Damage to the objects in /dev/shm, before anybody attaches: what a reader and a manager say.

``test_damage.py`` changes every byte of a table in plain memory; here control and table header are
changed, objects are cut, stretched and exchanged, and some damage goes the whole way.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import zlib
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from host import descriptors_of, objects_of, path_of
from msgspec.structs import astuple

from jidoka_shm import (
    CorruptRegistry,
    FormatMismatch,
    JidokaError,
    RegistryClosed,
    RegistryNotFound,
    Session,
    SessionManager,
    SessionReader,
    SessionStatus,
    segment,
)
from jidoka_shm.header import TableHeader
from jidoka_shm.layout import CLOSED, CONTROL_FIELDS, CONTROL_SIZE, MOVED, Geometry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Two of one home; the second has a record of two slots.
IDS = [UUID(int=key) for key in (5, 5 + 37, 9)]
ABSENT = UUID(int=7)


class Left:
    """The objects of a registry whose manager closed, to be damaged and made whole again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.paths = {"control": path_of(name), "table": path_of(name, 1)}
        with SessionManager(name, capacity=8, slot_size=128, cleanup_delay=3600) as manager:
            for sid in IDS:
                manager.create_session(session_id=sid, metadata={"a": sid.int})
            manager.update_session(IDS[1], metadata={"a": "x" * 130})
            manager.update_session(IDS[0], status="active", pid=1)
            manager.terminate_session(IDS[2], "over")
            self.sessions = {sid: astuple(manager[sid]) for sid in IDS}
            self.geometry = manager._registry.table.geometry
            assert [*manager._registry.table.space.records.values()] == [2]
        self.whole = {kind: path.read_bytes() for kind, path in self.paths.items()}

    def mend(self) -> None:
        """Make the objects what they were."""
        for kind, raw in self.whole.items():
            self.paths[kind].write_bytes(raw)

    def put(self, kind: str, at: int, raw: bytes) -> None:
        """Overwrite a part of an object."""
        with self.paths[kind].open("r+b", buffering=0) as file:
            file.seek(at)
            file.write(raw)

    def bytes(self) -> dict[str, bytes]:
        """Return what the objects hold now."""
        return {kind: path.read_bytes() for kind, path in self.paths.items()}


@pytest.fixture
def left(name: str) -> Iterator[Left]:
    yield Left(name)
    for tail in objects_of(name):
        segment.unlink(f"/jidoka_shm.{name}{tail}")


def _values(old: int) -> list[int]:
    return sorted({0, 255, *(old ^ 1 << bit for bit in range(8))} - {old})


def _assert_whole(left: Left, handle: SessionReader | SessionManager) -> None:
    """Assert that a handle reads all that there was, in every way."""
    assert {sid: astuple(handle[sid]) for sid in IDS} == left.sessions
    assert {one.session_id: astuple(one) for one in handle.values()} == left.sessions
    assert {one.session_id for one in handle.list_sessions()} == set(IDS[:2])
    assert handle.get_session_status(IDS[0]) is SessionStatus.ACTIVE
    assert handle.get_session_pid(IDS[0]) == 1
    assert sum(handle.count_by_status().values()) == len(handle) == handle.stats().sessions == 3
    assert set(handle) == set(IDS)
    assert ABSENT not in handle
    assert handle.writer_alive in {True, False, None}
    assert handle.version is None or handle.version >= 0


# ---------------------------------------------------------------------------- the control


#: What a reader says of a control of which one byte of a field is changed; of all others nothing.
REFUSED: dict[str, type[JidokaError]] = {
    "magic": FormatMismatch,
    "format": FormatMismatch,
    "instance": CorruptRegistry,
    "generation": CorruptRegistry,
}

WIDTHS = {field: 16 if field == "instance" else 8 for field in CONTROL_FIELDS}
WIDTHS["socket_path"] = 128


def _bytes_of(field: str) -> range:
    return range(CONTROL_FIELDS[field], CONTROL_FIELDS[field] + WIDTHS[field])


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("field", CONTROL_FIELDS)
def test_a_reader_meets_a_control_with_one_byte_changed(
    left: Left, field: str, *, verify: bool
) -> None:
    """A10: a changed control is another format or damage, or the sessions are as they were."""
    for at in _bytes_of(field):
        for value in _values(left.whole["control"][at]):
            left.put("control", at, bytes([value]))
            if field in REFUSED:
                with pytest.raises(REFUSED[field]):
                    SessionReader(left.name, timeout=0, verify=verify)
            else:
                with SessionReader(left.name, timeout=0, verify=verify) as reader:
                    _assert_whole(left, reader)
        left.put("control", at, left.whole["control"][at : at + 1])


def test_a_reader_does_not_look_at_the_reserved_bytes_of_a_control(left: Left) -> None:
    fields = {at for field in CONTROL_FIELDS for at in _bytes_of(field)}
    raw = bytearray(b"\xff" * CONTROL_SIZE)
    for at in fields:
        raw[at] = left.whole["control"][at]
    left.put("control", 0, raw)
    for make in (SessionReader, SessionManager):
        with make(left.name) as handle:
            _assert_whole(left, handle)
            assert handle.check() == []


@pytest.mark.parametrize("field", CONTROL_FIELDS)
def test_a_manager_meets_a_control_with_one_byte_changed(left: Left, field: str) -> None:
    """A10: what is not this format's, or not this table's, is refused and left as it is."""
    for at in _bytes_of(field):
        old = left.whole["control"][at]
        for value in (old ^ 255, old ^ 1 << at % 8):
            left.put("control", at, bytes([value]))
            before = left.bytes()
            if field in REFUSED:
                with pytest.raises(REFUSED[field]):
                    SessionManager(left.name)
                assert left.bytes() == before
            else:
                with SessionManager(left.name) as manager:
                    assert manager.recovery is not None
                    assert (manager.recovery.kept, manager.recovery.dropped) == (3, ())
                    _assert_whole(left, manager)
                    assert manager.check() == []
            left.mend()


@pytest.mark.parametrize("size", [0, 1, 7, 8, 64, 100, CONTROL_SIZE - 1])
def test_a_control_that_was_cut_is_not_found(left: Left, size: int) -> None:
    os.truncate(left.paths["control"], size)
    with pytest.raises(RegistryNotFound):
        SessionReader(left.name, timeout=0)


def test_a_control_without_its_magic_is_not_found(left: Left) -> None:
    left.put("control", 0, bytes(8))
    with pytest.raises(RegistryNotFound):
        SessionReader(left.name, timeout=0)


@pytest.mark.parametrize("size", [40, 64, 72, 100, 200, CONTROL_SIZE - 1])
def test_a_control_that_was_cut_behind_its_generation_is_made_whole(left: Left, size: int) -> None:
    os.truncate(left.paths["control"], size)
    with SessionManager(left.name) as manager:
        _assert_whole(left, manager)
        assert manager.check() == []


@pytest.mark.parametrize("size", [CONTROL_SIZE + 1, 2 * CONTROL_SIZE, 2**20])
def test_a_control_that_was_stretched_is_read(left: Left, size: int) -> None:
    os.truncate(left.paths["control"], size)
    for make in (SessionReader, SessionManager):
        with make(left.name) as handle:
            _assert_whole(left, handle)


# ---------------------------------------------------------------------------- the table


def _assert_refused(left: Left) -> None:
    """Assert that both kinds of handle find the registry damaged, and leave it as it is."""
    before = left.bytes()
    for make in (lambda: SessionReader(left.name, timeout=0), lambda: SessionManager(left.name)):
        with pytest.raises(CorruptRegistry):
            make()
        assert left.bytes() == before
    assert descriptors_of(left.paths["table"]) == descriptors_of(left.paths["control"]) == []


def test_a_header_with_any_byte_changed_is_damage(left: Left) -> None:
    """A10: each byte of a table's header, changed to any of some values, is damage for both."""
    for at in range(64):
        for value in _values(left.whole["table"][at]):
            left.put("table", at, bytes([value]))
            _assert_refused(left)
        left.put("table", at, left.whole["table"][at : at + 1])
    with SessionManager(left.name) as manager:
        _assert_whole(left, manager)


@pytest.mark.parametrize("size", [0, 1, 8, 63, 64, 65, 4095, 4096, -64, -1])
def test_a_table_that_was_cut_is_damage(left: Left, size: int) -> None:
    """A3: nothing is mapped beyond what exists, whatever the header says."""
    os.truncate(left.paths["table"], size if size >= 0 else left.geometry.size + size)
    _assert_refused(left)


@pytest.mark.parametrize("more", [1, 64, 4096, 2**20])
def test_a_table_that_was_stretched_is_damage(left: Left, more: int) -> None:
    os.truncate(left.paths["table"], left.geometry.size + more)
    _assert_refused(left)


def test_a_header_that_claims_more_than_there_is_is_damage(left: Left) -> None:
    """A3: the header claims 1 MiB, the object has 64 KiB."""
    instance = UUID(bytes=left.whole["control"][16:32])
    claimed = Geometry(index_size=8125, slot_count=1901, slot_size=512)
    assert claimed.size == 2**20
    memory = bytearray(claimed.size)
    TableHeader(instance, 1, claimed, 0).store(memory)
    left.paths["table"].write_bytes(memory[: 2**16])
    _assert_refused(left)
    with pytest.raises(CorruptRegistry, match=f"claims {claimed.size} bytes and there are 65536"):
        SessionReader(left.name, timeout=0)


def test_exchanged_tables_of_two_registries_are_damage_until_they_are_put_back(
    left: Left, name: str
) -> None:
    other = Left(f"{name}-other")
    try:
        for _ in range(2):
            left.paths["table"].rename(path_of(name, 99))
            other.paths["table"].rename(left.paths["table"])
            path_of(name, 99).rename(other.paths["table"])
            if left.bytes() == left.whole:
                break
            _assert_refused(left)
            _assert_refused(other)
        for one in (left, other):
            with SessionReader(one.name) as reader, SessionManager(one.name) as manager:
                _assert_whole(one, reader)
                _assert_whole(one, manager)
                assert manager.check() == []
    finally:
        for tail in objects_of(other.name):
            segment.unlink(f"/jidoka_shm.{other.name}{tail}")


@pytest.mark.parametrize("word", [MOVED, CLOSED])
@pytest.mark.parametrize("entry", [0, 1, 36, 290])
def test_an_entry_that_says_given_up_by_itself_ends_no_registry(
    left: Left, entry: int, word: int
) -> None:
    # A destruction leaves the change word odd; a word that was damaged does not.
    left.put("table", 64 + 8 * entry, word.to_bytes(8, "little"))
    with SessionManager(left.name) as manager:
        assert manager.recovery is not None
        assert manager.recovery.kept == 3
        assert [one.entry for one in manager.recovery.dropped] == [entry]
        _assert_whole(left, manager)
        assert manager.check() == []
        with SessionReader(left.name) as reader:
            _assert_whole(left, reader)


def test_a_destruction_cut_short_between_reaches_and_words_did_not_begin(left: Left) -> None:
    change = CONTROL_FIELDS["change"]
    with SessionReader(left.name) as reader:
        left.put("control", change, bytes([left.whole["control"][change] | 1]))
        left.put("table", left.geometry.reach_offset, b"\xff" * left.geometry.index_size)
        _assert_whole(left, reader)
        assert reader.get(ABSENT) is None
        with SessionManager(left.name) as manager:
            assert manager.recovery is not None
            _assert_whole(left, manager)
            assert manager.check() == []
            manager.create_session(session_id=ABSENT)
            assert astuple(reader[ABSENT]) == astuple(manager[ABSENT])


@pytest.mark.parametrize("end", ["unlink", "fresh"])
def test_a_look_up_through_any_home_learns_that_its_table_was_given_up(
    left: Left, end: str
) -> None:
    homes = left.geometry.index_size
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(SessionReader(left.name)) for _ in range(homes)]
        if end == "unlink":
            SessionManager(left.name).unlink()
            for home, reader in enumerate(readers):
                with pytest.raises(RegistryClosed):
                    reader.get(UUID(int=home))
        else:
            manager = stack.enter_context(SessionManager(left.name, fresh=True))
            for home, reader in enumerate(readers):
                manager.create_session(session_id=UUID(int=home))
                assert astuple(reader[UUID(int=home)]) == astuple(manager[UUID(int=home)])


def _record(left: Left, sid: UUID) -> range:
    """Return the bytes of a session's record and of its word."""
    raw, geometry = left.whole["table"], left.geometry
    for start in range(64, geometry.reach_offset, 8):
        slot = geometry.slots_offset + (word := raw[start : start + 8])[0] * geometry.slot_size
        if any(word) and raw[slot : slot + 16] == sid.bytes:
            length = int.from_bytes(raw[slot + 44 : slot + 48], "little")
            return range(slot, slot + 64 + length)
    raise LookupError(sid)


def _taken_over(left: Left, caplog: pytest.LogCaptureFixture) -> dict[UUID, Session]:
    """Take a registry over and return what is kept; what is not must be named and counted."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "jidoka_shm"), SessionManager(left.name) as manager:
        recovery = manager.recovery
        assert recovery is not None
        assert manager.check() == []
        assert manager.stats().dropped == len(recovery.dropped)
        assert recovery.kept == len(manager)
        count = f"{len(recovery.dropped)} damaged records dropped"
        assert (count in caplog.text) is bool(recovery.dropped)
        assert all(f"entry={one.entry}, reason=" in caplog.text for one in recovery.dropped[:10])
        manager.create_session()
        return dict(manager)


@pytest.mark.parametrize("verify", [False, True])
def test_a_record_with_any_byte_changed_is_dropped_and_the_others_are_kept(
    left: Left, caplog: pytest.LogCaptureFixture, *, verify: bool
) -> None:
    """D3: the whole way: a reader beside the damage, a manager that drops it, the reader after."""
    record = _record(left, IDS[1])
    rng = random.Random(20)
    for at in rng.sample(record, 24):
        old = left.whole["table"][at]
        left.put("table", at, bytes([value := rng.choice(_values(old))]))
        with SessionReader(left.name, verify=verify) as reader:
            for sid in (IDS[0], IDS[2]):
                assert astuple(reader[sid]) == left.sessions[sid], (at, value)
            if reader._view.table.verify:
                with pytest.raises(CorruptRegistry):
                    reader.get(IDS[1])
                with pytest.raises(CorruptRegistry):
                    reader.list_sessions()
            kept = _taken_over(left, caplog)
            assert {sid: astuple(kept[sid]) for sid in (IDS[0], IDS[2])} == {
                sid: left.sessions[sid] for sid in (IDS[0], IDS[2])
            }
            assert (IDS[1] in kept, len(kept)) == (False, 3), (at, value)
            assert IDS[1] not in reader
            assert dict(reader) == kept
        left.mend()


@pytest.mark.parametrize("beyond", [0, 1, 2**24, 2**31, 2**32 - 2**13])
def test_a_length_that_leads_to_the_tables_end_and_beyond_is_damage(
    left: Left, caplog: pytest.LogCaptureFixture, beyond: int
) -> None:
    """A3: a length whose header has the right crc leads no reader to where nothing is mapped."""
    record = _record(left, IDS[1])
    length = left.geometry.size - record.start - 64 + beyond
    header = left.whole["table"][record.start : record.start + 60]
    header = header[:44] + length.to_bytes(4, "little") + header[48:]
    left.put("table", record.start, header + zlib.crc32(header).to_bytes(4, "little"))
    for verify in (False, True):
        with SessionReader(left.name, verify=verify) as reader:
            assert astuple(reader[IDS[0]]) == left.sessions[IDS[0]]
            if verify or beyond:
                with pytest.raises(CorruptRegistry):
                    reader.get(IDS[1])
                with pytest.raises(CorruptRegistry):
                    reader.list_sessions()
    kept = _taken_over(left, caplog)
    assert (IDS[1] in kept, len(kept)) == (False, 3)


def test_a_table_with_some_bytes_changed_is_sound_once_taken_over(
    left: Left, caplog: pytest.LogCaptureFixture
) -> None:
    """D3: any byte of a table may be another, and what is kept is as it was."""
    rng = random.Random(21)
    for _ in range(60):
        places = [rng.randrange(64, left.geometry.size) for _ in range(rng.choice([1, 2, 20]))]
        for at in places:
            left.put("table", at, rng.randbytes(1))
        kept: dict[Any, Session] = _taken_over(left, caplog)
        for sid, fields in left.sessions.items():
            assert sid not in kept or astuple(kept[sid]) == fields, places
        assert len(set(kept) - set(IDS)) == 1, places
        left.mend()


# ---------------------------------------------------------------------------- failing to attach


def _no_memory(*_: object) -> None:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("make", [SessionReader, SessionManager])
def test_a_mapping_that_fails_leaves_the_objects_as_they_are(
    left: Left, monkeypatch: pytest.MonkeyPatch, make: type, failing: int
) -> None:
    """L2: mmap fails while a reader or a manager attaches: same size, same bytes, same object."""
    before = left.bytes(), [path.stat().st_ino for path in left.paths.values()]
    function = "map_readable" if make is SessionReader else "map_writable"
    real, calls = getattr(segment, function), []

    def fail_once(descriptor: int, size: int) -> object:
        calls.append(size)
        return _no_memory() if len(calls) == failing else real(descriptor, size)

    with monkeypatch.context() as patch:
        patch.setattr(segment, function, fail_once)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            make(left.name)
    assert len(calls) == failing
    assert (left.bytes(), [path.stat().st_ino for path in left.paths.values()]) == before
    assert descriptors_of(left.paths["table"]) == descriptors_of(left.paths["control"]) == []
    with make(left.name) as handle:
        _assert_whole(left, handle)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_mapping_that_fails_during_creation_leaves_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """L2: mmap fails while a registry is made: no object is left, and the next attempt works."""
    real, calls = segment.map_writable, []

    def fail_once(descriptor: int, size: int) -> object:
        calls.append(size)
        return _no_memory() if len(calls) == failing else real(descriptor, size)

    with monkeypatch.context() as patch:
        patch.setattr(segment, "map_writable", fail_once)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            SessionManager(name)
    assert objects_of(name) == set()
    SessionManager(name).unlink()


def test_a_file_of_words_is_no_registry(name: str) -> None:
    path: Path = path_of(name)
    path.write_bytes(b"a shopping list\n" * 300)
    try:
        for make in (SessionReader, SessionManager):
            with pytest.raises(FormatMismatch, match="an unknown format"):
                make(name)
        assert path.read_bytes() == b"a shopping list\n" * 300
    finally:
        path.unlink()
