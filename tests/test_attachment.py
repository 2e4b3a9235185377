from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from host import descriptors_of, in_child, objects_of, path_of
from support import INSTANCE, ME, wait_until

from jidoka_shm import attachment, ownership, segment
from jidoka_shm.attachment import ReadOptions, attach, attach_again, detached
from jidoka_shm.control import ControlWriter
from jidoka_shm.errors import (
    CorruptRegistry,
    ForkedHandle,
    FormatMismatch,
    RegistryClosed,
    RegistryForbidden,
    RegistryNotFound,
    SessionNotFound,
)
from jidoka_shm.header import TableHeader
from jidoka_shm.layout import (
    CONTROL_FIELDS,
    CONTROL_MAGIC,
    CONTROL_SIZE,
    FORMAT_VERSION,
    TABLE_FIELDS,
    Geometry,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


GEOMETRY = Geometry.for_capacity(1, 128)
AT_ONCE = ReadOptions(timeout=0, cache_size=4, verify=False)
PATIENT = ReadOptions(timeout=60, cache_size=4, verify=False)


@pytest.fixture(autouse=True)
def _unlinked(name: str) -> Iterator[None]:
    """Remove what the test made under its name."""
    yield
    for tail in objects_of(name):
        segment.unlink(f"/jidoka_shm.{name}{tail}")


def _make(name: str, *, fresh: bool = False) -> TableHeader:
    """Make a registry, as of a writer that is gone, and return its table's header."""
    own, _, header, _ = ownership.claim(
        name, GEOMETRY, ME, path=None, mode=0o600, fresh=fresh, wait=0
    )
    own.release()
    return header


def _put(path: Path, offset: int, data: bytes) -> None:
    """Overwrite a part of an object."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _put_generation(name: str, generation: int) -> None:
    _put(path_of(name), CONTROL_FIELDS["generation"], generation.to_bytes(8, "little"))


def _table(instance: UUID, generation: int = 1, geometry: Geometry = GEOMETRY) -> bytearray:
    memory = bytearray(geometry.size)
    TableHeader(instance, generation, geometry, 0).store(memory)
    return memory


def _control(*, magic: int = CONTROL_MAGIC) -> bytes:
    memory = bytearray(CONTROL_SIZE)
    ControlWriter(memory).initialize(INSTANCE, 1, ME)
    return magic.to_bytes(8, "little") + bytes(memory[8:])


# ---------------------------------------------------------------------------- finding it


def test_an_attachment_is_of_the_registry_and_its_table(name: str) -> None:
    header = _make(name)
    view = attach(name, AT_ONCE)
    assert view.identity == (header.instance, 1)
    assert view.table.geometry == GEOMETRY
    assert view.control.writer() == ME
    assert len(view.words) == GEOMETRY.entries
    assert view.is_named()
    assert view.words.readonly
    path_of(name).unlink()
    assert not view.is_named()


def test_it_holds_one_descriptor_of_the_control_and_its_mappings(name: str) -> None:
    _make(name)
    view = attach(name, AT_ONCE)
    assert len(descriptors_of(path_of(name))) == 2
    assert len(descriptors_of(path_of(name, 1))) == 1
    del view
    # At once, with no garbage collection.
    assert descriptors_of(path_of(name)) == descriptors_of(path_of(name, 1)) == []


@pytest.mark.parametrize("verify", [False, True])
def test_it_verifies_if_that_is_asked(name: str, *, verify: bool) -> None:
    _make(name)
    view = attach(name, ReadOptions(timeout=0, cache_size=0, verify=verify))
    weak = os.environ.get("JIDOKA_SHM_WEAK_MEMORY") == "1"
    assert view.table.verify == (verify or weak)


@pytest.mark.parametrize("timeout", [0.0, 0.02])
def test_a_registry_that_nobody_makes_is_not_found(name: str, timeout: float) -> None:
    before = time.monotonic()
    with pytest.raises(RegistryNotFound) as caught:
        attach(name, ReadOptions(timeout=timeout, cache_size=0, verify=False))
    assert time.monotonic() - before >= timeout
    assert (caught.value.name, caught.value.timeout) == (name, timeout)
    assert name in str(caught.value)
    assert f"{timeout:g} s" in str(caught.value)
    assert objects_of(name) == set()


@pytest.mark.parametrize(
    "control",
    [b"", bytes(100), _control()[: CONTROL_SIZE - 1], bytes(CONTROL_SIZE), _control(magic=0)],
)
def test_a_registry_that_stays_half_made_is_not_found(name: str, control: bytes) -> None:
    """A1: what is empty, too short or without its magic at the deadline is not found."""
    path_of(name).write_bytes(control)
    path_of(name, 1).write_bytes(_table(INSTANCE))
    with pytest.raises(RegistryNotFound):
        attach(name, ReadOptions(timeout=0.01, cache_size=0, verify=False))


def test_a_registry_that_is_being_made_is_waited_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A1: control and table appear empty, then sized, then filled: attached to once complete."""
    looks = []
    look = attachment._open

    def count_and_look(*arguments: Any) -> object:  # noqa: ANN401 - whatever it takes
        looks.append(arguments)
        return look(*arguments)

    def step(do: Callable[[], object]) -> None:
        """Do one step of a creation once what was there before has been looked at."""
        seen = len(looks)
        wait_until(lambda: len(looks) > seen + 1)
        do()

    def make() -> None:
        control, table = path_of(name), path_of(name, 1)
        step(control.touch)
        step(lambda: os.truncate(control, 100))
        step(lambda: os.truncate(control, CONTROL_SIZE))
        step(table.touch)
        step(lambda: os.truncate(table, GEOMETRY.size))
        step(lambda: _put(table, 8, _table(INSTANCE)[8:]))
        step(lambda: _put(control, 8, _control()[8:]))
        # Not the order of a creation, but that of a growth; a reader waits for either.
        step(lambda: _put(control, 0, _control()[:8]))
        step(lambda: _put(table, 0, _table(INSTANCE)[:8]))

    monkeypatch.setattr(attachment, "_open", count_and_look)
    thread = threading.Thread(target=make)
    thread.start()
    view = attach(name, PATIENT)
    thread.join()
    assert view.identity == (INSTANCE, 1)


def test_a_table_that_follows_a_missing_one_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = _make(name)
    open_readable = segment.open_readable

    def open_while_a_growth_ends(full: str) -> int:
        if full.endswith(".1") and path_of(name, 1).exists():
            # Between this reader's look at the control and its look for the table.
            path_of(name, 2).write_bytes(_table(header.instance, 2))
            _put_generation(name, 2)
            path_of(name, 1).unlink()
        return open_readable(full)

    monkeypatch.setattr(segment, "open_readable", open_while_a_growth_ends)
    assert attach(name, PATIENT).identity == (header.instance, 2)


# ---------------------------------------------------------------------------- what is wrong there


def test_another_format_is_named(name: str) -> None:
    _make(name)
    _put(path_of(name), CONTROL_FIELDS["format"], (99).to_bytes(8, "little"))
    with pytest.raises(FormatMismatch) as caught:
        attach(name, PATIENT)
    assert (caught.value.name, caught.value.found, caught.value.supported) == (
        name,
        99,
        FORMAT_VERSION,
    )


def test_what_is_no_control_is_another_format(name: str) -> None:
    path_of(name).write_bytes(b"\xff" * CONTROL_SIZE)
    with pytest.raises(FormatMismatch) as caught:
        attach(name, PATIENT)
    assert caught.value.found is None


def test_a_table_smaller_than_its_header_claims_is_corrupt(name: str) -> None:
    """A3: the object was cut below what its header claims."""
    _make(name)
    os.truncate(path_of(name, 1), GEOMETRY.size - 4096)
    with pytest.raises(CorruptRegistry, match=f"claims {GEOMETRY.size} bytes"):
        attach(name, PATIENT)


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(index_size=2**32 - 1, slot_count=17, slot_size=128),
        Geometry(index_size=5, slot_count=2**32 - 1, slot_size=128),
        Geometry(index_size=5, slot_count=17, slot_size=2**24),
    ],
)
def test_a_header_may_claim_what_it_likes(name: str, geometry: Geometry) -> None:
    """A3: the header claims more than the object has: nothing is mapped beyond it."""
    header = _make(name)
    memory = bytearray(GEOMETRY.size)
    TableHeader(header.instance, 1, geometry, 0).store(memory)
    _put(path_of(name, 1), 0, memory[:64])
    with pytest.raises(CorruptRegistry, match=f"claims {geometry.size} bytes"):
        attach(name, PATIENT)


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(index_size=0, slot_count=17, slot_size=128),
        Geometry(index_size=5, slot_count=16, slot_size=128),
        Geometry(index_size=5, slot_count=17, slot_size=64),
        Geometry(index_size=5, slot_count=17, slot_size=129),
    ],
)
def test_sizes_that_no_table_can_have_are_corrupt(name: str, geometry: Geometry) -> None:
    header = _make(name)
    path_of(name, 1).write_bytes(_table(header.instance, geometry=geometry))
    with pytest.raises(CorruptRegistry):
        attach(name, PATIENT)


@pytest.mark.parametrize("field", TABLE_FIELDS.keys() - {"magic"})
def test_a_header_that_changed_is_corrupt(name: str, field: str) -> None:
    """A10: each header field changed in turn."""
    header = _make(name)
    memory = _table(header.instance)
    memory[TABLE_FIELDS[field][0]] ^= 1
    path_of(name, 1).write_bytes(memory)
    with pytest.raises(CorruptRegistry, match="crc"):
        attach(name, PATIENT)


@pytest.mark.parametrize(
    ("size", "instance", "generation"),
    [(0, INSTANCE, 1), (63, INSTANCE, 1), (None, uuid4(), 1), (None, INSTANCE, 2)],
)
def test_a_table_that_stays_anothers_is_corrupt(
    name: str, size: int | None, instance: UUID, generation: int
) -> None:
    path_of(name).write_bytes(_control())
    path_of(name, 1).write_bytes(_table(instance, generation)[:size])
    with pytest.raises(CorruptRegistry, match=f"{name}.*names table 1"):
        attach(name, ReadOptions(timeout=0.01, cache_size=0, verify=False))


def test_a_table_that_stays_missing_is_corrupt(name: str) -> None:
    _make(name)
    _put_generation(name, 2**64 - 1)
    with pytest.raises(CorruptRegistry, match=f"names table {2**64 - 1}"):
        attach(name, AT_ONCE)


@pytest.mark.parametrize("again", [False, True])
def test_a_registry_whose_destruction_was_cut_short_is_not_found(name: str, *, again: bool) -> None:
    _make(name)
    old = attach(name, AT_ONCE)
    _make(name, fresh=True)
    _put(path_of(name), CONTROL_FIELDS["change"], (1).to_bytes(8, "little"))
    path_of(name, 1).unlink()
    with pytest.raises(RegistryNotFound):
        attach_again(name, old, AT_ONCE) if again else attach(name, AT_ONCE)


def test_failed_tries_leave_no_descriptor(name: str) -> None:
    path_of(name).write_bytes(_control())
    path_of(name, 1).write_bytes(_table(INSTANCE)[:100])
    for _ in range(3):
        with pytest.raises(CorruptRegistry):
            attach(name, AT_ONCE)
    assert descriptors_of(path_of(name)) == descriptors_of(path_of(name, 1)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("generation", [None, 1])
def test_what_this_user_may_not_read_is_forbidden(name: str, generation: int | None) -> None:
    _make(name)
    for each in (None, 1):
        path_of(name, each).chmod(0o600 if each == generation else 0o644)

    def try_to() -> None:
        os.setuid(65_534)
        with pytest.raises(RegistryForbidden) as caught:
            attach(name, PATIENT)
        assert caught.value.name == name

    assert in_child(try_to) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_may_read_what_lets_others_read(name: str) -> None:
    own, *_ = ownership.claim(name, GEOMETRY, ME, path=None, mode=0o644, fresh=False, wait=0)
    own.release()

    def read() -> None:
        os.setuid(65_534)
        assert attach(name, AT_ONCE).look_up(uuid4()) is None

    assert in_child(read) == 0


# ---------------------------------------------------------------------------- attaching again


def test_a_new_instance_is_attached_to(name: str) -> None:
    _make(name)
    old = attach(name, AT_ONCE)
    header = _make(name, fresh=True)
    view = attach_again(name, old, AT_ONCE)
    assert view is not old
    assert view.identity == (header.instance, 1)
    assert len(view.cache) == 0


def test_a_new_generation_is_attached_to(name: str) -> None:
    header = _make(name)
    old = attach(name, AT_ONCE)
    path_of(name, 2).write_bytes(_table(header.instance, 2))
    _put_generation(name, 2)
    assert attach_again(name, old, AT_ONCE).identity == (header.instance, 2)


def test_the_same_table_again_is_a_closed_registry(name: str) -> None:
    _make(name)
    old = attach(name, AT_ONCE)
    with pytest.raises(RegistryClosed, match="destroyed") as caught:
        attach_again(name, old, PATIENT)
    assert caught.value.name == name
    path_of(name, 1).unlink()
    with pytest.raises(RegistryClosed):
        attach_again(name, old, PATIENT)


def test_a_name_that_is_gone_is_a_closed_registry(name: str) -> None:
    _make(name)
    old = attach(name, AT_ONCE)
    ownership.remove(name)
    with pytest.raises(RegistryClosed, match="destroyed"):
        attach_again(name, old, PATIENT)


def test_a_follower_that_is_being_made_is_waited_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(name)
    old = attach(name, AT_ONCE)
    ownership.remove(name)
    path_of(name).write_bytes(_control(magic=0))
    tries = []

    def finish_after_some_tries(_: float) -> None:
        tries.append(1)
        if len(tries) == 2:
            path_of(name, 1).write_bytes(_table(INSTANCE))
        if len(tries) == 4:
            path_of(name).write_bytes(_control())

    monkeypatch.setattr(time, "sleep", finish_after_some_tries)
    assert attach_again(name, old, PATIENT).identity == (INSTANCE, 1)
    assert len(tries) == 4


@pytest.mark.parametrize("complete", [False, True])
def test_a_follower_that_is_never_ready_is_an_error(name: str, *, complete: bool) -> None:
    _make(name)
    old = attach(name, AT_ONCE)
    ownership.remove(name)
    path_of(name).write_bytes(_control(magic=CONTROL_MAGIC if complete else 0))
    with pytest.raises(CorruptRegistry if complete else RegistryNotFound):
        attach_again(name, old, AT_ONCE)


def test_a_follower_of_another_format_is_named(name: str) -> None:
    _make(name)
    old = attach(name, AT_ONCE)
    ownership.remove(name)
    path_of(name).write_bytes(b"\xff" * CONTROL_SIZE)
    with pytest.raises(FormatMismatch):
        attach_again(name, old, PATIENT)


# ---------------------------------------------------------------------------- detached


def test_any_use_of_what_is_detached_raises_anew() -> None:
    view = detached(RegistryClosed, "a-name", "because")
    caught = []
    for attribute in (
        "table",
        "cache",
        "quick_look_up",
        "look_up",
        "is_named",
        "listing",
        "anything",
    ):
        with pytest.raises(RegistryClosed, match="'a-name': because") as info:
            getattr(view, attribute)
        caught.append(info.value)
    assert len(set(map(id, caught))) == len(caught)
    with pytest.raises(SessionNotFound):
        detached(SessionNotFound, INSTANCE).table  # noqa: B018 - the access is what raises


def test_what_stands_where_words_were_raises_however_it_is_asked() -> None:
    """A forked child may return into a change, where words and reaches are asked by number."""
    gone: Any = detached(ForkedHandle, "a")
    with pytest.raises(ForkedHandle):
        gone.words  # noqa: B018 - asking raises
    with pytest.raises(ForkedHandle):
        gone[3]
    with pytest.raises(ForkedHandle):
        gone[3] = 1
    with pytest.raises(ForkedHandle):
        bytes(gone)
