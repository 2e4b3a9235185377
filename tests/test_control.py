"""The control: each field where it belongs, the magic last, and a writer's identity whole."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import INSTANCE, ME

from jidoka_shm import seqlock
from jidoka_shm.control import COUNTERS, ControlReader, ControlWriter, Identity
from jidoka_shm.errors import CorruptRegistry, FormatMismatch
from jidoka_shm.layout import (
    CONTROL_FIELDS,
    CONTROL_MAGIC,
    CONTROL_SIZE,
    FORMAT_VERSION,
    SOCKET_PATH_SIZE,
)

if TYPE_CHECKING:
    from collections.abc import Callable

OTHER = Identity(5000, 99, 4026532000)


@pytest.fixture
def control() -> ControlWriter:
    made = ControlWriter(bytearray(CONTROL_SIZE))
    made.initialize(INSTANCE, 3, ME)
    made.complete()
    return made


def _reader(control: ControlWriter) -> ControlReader:
    return ControlReader(control._memory)


def _set(control: ControlWriter, name: str, value: int) -> None:
    at = CONTROL_FIELDS[name]
    control._memory[at : at + 8] = value.to_bytes(8, "little")


# ---------------------------------------------------------------------------- creation


def test_memory_that_is_all_zero_is_not_complete() -> None:
    assert not ControlReader(bytearray(CONTROL_SIZE)).is_complete()


def test_a_control_without_its_magic_is_not_complete() -> None:
    made = ControlWriter(bytearray(CONTROL_SIZE))
    made.initialize(INSTANCE, 3, ME)
    assert not made.is_complete()
    assert not made.is_ours()


def test_the_magic_is_all_that_completes_a_control() -> None:
    made = ControlWriter(bytearray(CONTROL_SIZE))
    made.initialize(INSTANCE, 3, ME)
    before = bytes(made._memory)
    made.complete()
    assert made._memory[8:] == before[8:]
    assert made._memory[:8] == b"JIDOKA-C"


def test_a_complete_control_says_what_it_was_made_with(control: ControlWriter) -> None:
    reader = _reader(control)
    assert (reader.instance, reader.generation, reader.writer()) == (INSTANCE, 3, ME)


def test_a_complete_control_is_ours(control: ControlWriter) -> None:
    assert _reader(control).is_complete()
    assert _reader(control).is_ours()


def test_a_new_control_has_counted_nothing(control: ControlWriter) -> None:
    assert _reader(control).counters() == dict.fromkeys(COUNTERS, 0)


def test_a_half_made_control_can_be_cleared() -> None:
    made = ControlWriter(bytearray(CONTROL_SIZE))
    made.initialize(INSTANCE, 3, ME)
    made.clear()
    assert made._memory == bytes(CONTROL_SIZE)


def test_a_complete_control_is_not_cleared(control: ControlWriter) -> None:
    before = bytes(control._memory)
    with pytest.raises(CorruptRegistry):
        control.clear()
    assert control._memory == before


# ---------------------------------------------------------------------------- formats


def test_our_own_format_is_taken(control: ControlWriter) -> None:
    _reader(control).check_format("agents")


@pytest.mark.parametrize("version", [0, FORMAT_VERSION - 1, FORMAT_VERSION + 1, 2**64 - 1])
def test_another_format_version_is_named(control: ControlWriter, version: int) -> None:
    _set(control, "format", version)
    with pytest.raises(FormatMismatch) as caught:
        _reader(control).check_format("agents")
    assert caught.value.args == ("agents", version, FORMAT_VERSION)


@pytest.mark.parametrize("magic", [0, 1, CONTROL_MAGIC ^ 1 << 63])
def test_a_foreign_magic_has_no_format_version(control: ControlWriter, magic: int) -> None:
    _set(control, "magic", magic)
    with pytest.raises(FormatMismatch) as caught:
        _reader(control).check_format("agents")
    assert caught.value.found is None


@pytest.mark.parametrize("field", ["magic", "format"])
def test_no_flipped_bit_of_magic_or_format_is_ours(control: ControlWriter, field: str) -> None:
    at = CONTROL_FIELDS[field]
    for bit in range(64):
        control._memory[at + bit // 8] ^= 1 << bit % 8
        assert not control.is_ours(), bit
        control._memory[at + bit // 8] ^= 1 << bit % 8


# ---------------------------------------------------------------------------- fields


def _calls() -> dict[str, Callable[[ControlWriter], object]]:
    """Return what stores to each field, and nothing to another."""
    return {
        "writer_pid": lambda control: control.retire_writer(),
        "change": lambda control: seqlock.hold(control.change, 7),
        **{name: lambda control, name=name: control.count(name) for name in COUNTERS},
    }


@pytest.mark.parametrize("field", _calls())
def test_a_store_changes_its_own_word_only(control: ControlWriter, field: str) -> None:
    before = bytes(control._memory)
    _calls()[field](control)
    changed = {at - at % 8 for at in range(CONTROL_SIZE) if control._memory[at] != before[at]}
    assert changed == {CONTROL_FIELDS[field]}


def test_the_instance_is_stored_in_network_byte_order(control: ControlWriter) -> None:
    assert control._memory[16:32] == INSTANCE.bytes


def test_the_change_word_is_seen_by_every_reader(control: ControlWriter) -> None:
    control.change[0] = 2**63 + 5
    assert _reader(control).change.tolist() == [2**63 + 5]


def test_the_change_word_is_one_word(control: ControlWriter) -> None:
    assert len(control.change) == 1


@pytest.mark.parametrize("name", COUNTERS)
def test_a_counter_adds_up(control: ControlWriter, name: str) -> None:
    control.count(name)
    control.count(name, 4)
    control.count(name, 0)
    assert _reader(control).counters() == dict.fromkeys(COUNTERS, 0) | {name: 5}


def test_another_part_of_the_memory_is_not_looked_at() -> None:
    # A mapping is a page or more; what follows the control's own bytes is not its.
    memory = bytearray(CONTROL_SIZE + 3)
    ControlWriter(memory).initialize(INSTANCE, 3, ME)
    assert memory[CONTROL_SIZE:] == bytes(3)


# ---------------------------------------------------------------------------- the writer


def test_a_writer_that_closed_is_none(control: ControlWriter) -> None:
    control.retire_writer()
    assert _reader(control).writer() is None


def test_the_next_writer_takes_the_place_of_the_last(control: ControlWriter) -> None:
    control.publish_writer(OTHER)
    assert _reader(control).writer() == OTHER


def test_an_identity_read_while_it_was_stored_is_read_again(
    control: ControlWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, real = _reader(control), seqlock.end_scan

    def taken_over(change: object, before: int) -> bool:
        monkeypatch.setattr(seqlock, "end_scan", real)
        seqlock.hold(control.change, 1)
        control.publish_writer(OTHER)
        seqlock.settle(control.change, 1)
        return real(change, before)

    monkeypatch.setattr(seqlock, "end_scan", taken_over)
    assert reader.writer() == OTHER


def test_a_change_word_that_stays_odd_does_not_hold_up_a_reader(control: ControlWriter) -> None:
    seqlock.hold(control.change, 1)
    assert _reader(control).writer() == ME


def test_a_change_word_that_never_rests_does_not_hold_up_a_reader(
    control: ControlWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    monkeypatch.setattr(seqlock, "end_scan", lambda *_: bool(tries.append(None)))
    assert _reader(control).writer() == ME
    assert len(tries) < 1000


@given(st.binary(max_size=256))
def test_any_bytes_can_be_read(raw: bytes) -> None:
    reader = ControlReader(bytearray(raw.ljust(CONTROL_SIZE, b"\0")))
    assert isinstance(reader.instance, UUID)
    assert reader.writer() is None or reader.writer().pid > 0
    assert (reader.generation >= 0, len(reader.counters())) == (True, len(COUNTERS))


@given(st.binary(max_size=16))
def test_any_bytes_are_our_format_or_a_mismatch(raw: bytes) -> None:
    reader = ControlReader(bytearray(raw.ljust(CONTROL_SIZE, b"\0")))
    if reader.is_ours():
        reader.check_format("agents")
    else:
        with pytest.raises(FormatMismatch):
            reader.check_format("agents")


# ---------------------------------------------------------------------------- the service


def _store_path(control: ControlWriter, raw: bytes) -> None:
    at = CONTROL_FIELDS["socket_path"]
    control._memory[at : at + SOCKET_PATH_SIZE] = raw.ljust(SOCKET_PATH_SIZE, b"\0")


@pytest.mark.parametrize("path", ["/run/user/1000/a.sock", "/run/\u00e9", "x" * 127])
def test_the_path_that_was_published_is_read(control: ControlWriter, path: str) -> None:
    assert _reader(control).socket_path is None
    control.publish_socket(path)
    assert _reader(control).socket_path == path
    control.publish_socket(None)
    assert _reader(control).socket_path is None


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/a\0/b", "/a"),
        (b"\0/a", None),
        (b"/\xff", None),
        (b"x" * SOCKET_PATH_SIZE, "x" * SOCKET_PATH_SIZE),
    ],
)
def test_a_damaged_path_is_what_can_be_read_of_it_or_none(
    control: ControlWriter, raw: bytes, path: str | None
) -> None:
    _store_path(control, raw)
    assert _reader(control).socket_path == path


@given(raw=st.binary(max_size=SOCKET_PATH_SIZE))
def test_any_path_can_be_read(raw: bytes) -> None:
    control = ControlWriter(bytearray(CONTROL_SIZE))
    _store_path(control, raw)
    assert control.socket_path is None or "\0" not in control.socket_path


def test_removals_are_what_was_removed_and_what_was_dropped(control: ControlWriter) -> None:
    control.count("removed", 5)
    control.count("dropped", 2)
    control.count("updated")
    assert _reader(control).removals == 7


class Watched(bytearray):
    """Plain memory that notes what a reader would take for the path after each store."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.seen: list[str | None] = []

    def __setitem__(self, key: object, value: object) -> None:
        super().__setitem__(key, value)
        self.seen.append(ControlReader(self).socket_path)


def test_half_a_path_is_seen_at_no_step() -> None:
    memory = Watched(CONTROL_SIZE)
    control = ControlWriter(memory)
    for path in ("/one.sock", "/another/one.sock", "/o", None):
        control.publish_socket(path)
    told = [path for path, _ in itertools.groupby(memory.seen)]
    assert told == [None, "/one.sock", None, "/another/one.sock", None, "/o", None]


def test_a_path_too_long_for_the_control_changes_nothing(control: ControlWriter) -> None:
    control.publish_socket("/a")
    with pytest.raises(ValueError, match="128 bytes: 127 is the limit"):
        control.publish_socket("x" * 128)
    assert control.socket_path == "/a"
