from __future__ import annotations

import errno
import itertools
import os
import signal
import stat
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from host import (
    descriptors_of,
    give_up_in_few_lines,
    in_child,
    list_own_names_alone,
    objects_of,
    path_of,
    run_script,
    stop_at_line,
)
from support import INSTANCE, ME

from jidoka_shm import ownership, segment, seqlock
from jidoka_shm.attachment import Attachment, ReadOptions, attach
from jidoka_shm.control import ControlWriter, Identity
from jidoka_shm.errors import (
    CorruptRegistry,
    FormatMismatch,
    RegistryForbidden,
    RegistryFull,
    RegistryNotFound,
    WriterAlreadyRunning,
)
from jidoka_shm.header import TableHeader
from jidoka_shm.layout import (
    CLOSED,
    CONTROL_FIELDS,
    CONTROL_MAGIC,
    CONTROL_SIZE,
    FORMAT_VERSION,
    MOVED,
    TABLE_FIELDS,
    Geometry,
)
from jidoka_shm.table import SessionTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jidoka_shm.layout import Memory
    from jidoka_shm.ownership import Ownership

GEOMETRY = Geometry.for_capacity(1, 128)
AT_ONCE = ReadOptions(timeout=0, cache_size=0, verify=False)

Claimed = tuple["Ownership", "Memory", TableHeader, bool]


@pytest.fixture(autouse=True)
def _unlinked(name: str) -> Iterator[None]:
    """Remove what the test made under its name."""
    yield
    for tail in objects_of(name):
        segment.unlink(f"/jidoka_shm.{name}{tail}")


def _claim(name: str, *, fresh: bool = False, mode: int = 0o600, by: Identity = ME) -> Claimed:
    return ownership.claim(name, GEOMETRY, by, path=None, mode=mode, fresh=fresh, wait=0)


def _make(name: str) -> TableHeader:
    """Make a registry, as of a writer that is gone, and return its table's header."""
    own, _, header, found = _claim(name)
    assert not found
    own.release()
    return header


def _index(memory: Memory) -> memoryview:
    return memoryview(memory)[GEOMETRY.index_offset : GEOMETRY.reach_offset].cast("Q")


def _words(name: str, generation: int = 1) -> list[int]:
    """Return the index words of a table, as they stand in its object."""
    return _index(bytearray(path_of(name, generation).read_bytes())).tolist()


def _field(name: str, field: str) -> int:
    """Return a word of a registry's control, as it stands in its object."""
    start = CONTROL_FIELDS[field]
    return int.from_bytes(path_of(name).read_bytes()[start : start + 8], "little")


def _put(path: Any, offset: int, data: bytes) -> None:  # noqa: ANN401 - a Path
    """Overwrite a part of an object."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _table(instance: UUID, generation: int) -> bytes:
    """Return a whole table."""
    memory = bytearray(GEOMETRY.size)
    TableHeader(instance, generation, GEOMETRY, 0).store(memory)
    return bytes(memory)


def _mode(name: str, generation: int | None = None) -> int:
    return stat.S_IMODE(path_of(name, generation).stat().st_mode)


# ---------------------------------------------------------------------------- create, take over


def test_a_new_registry_is_complete(name: str) -> None:
    own, memory, header, found = _claim(name)
    assert not found
    assert objects_of(name) == {"", ".1"}
    assert own.control.is_ours()
    assert own.control.instance == header.instance
    assert own.control.generation == header.generation == 1
    assert own.control.writer() == ME
    assert own.control.change[0] == 0
    assert TableHeader.read(memory) == header
    assert header.geometry == GEOMETRY
    assert not any(_index(memory))
    assert own.is_locked()
    assert own.is_named()
    assert own.is_whole()
    own.release()


def test_every_new_registry_is_an_instance_of_its_own(name: str) -> None:
    instances = set()
    for _ in range(3):
        own, _, header, _ = _claim(name, fresh=True)
        instances.add(header.instance)
        own.release()
    assert len(instances) == 3


def test_what_a_writer_left_is_taken_over_as_it_is(name: str) -> None:
    own, memory, header, _ = _claim(name)
    _index(memory)[3] = 1 << 40
    own.release()
    larger = Geometry.for_capacity(100, 256)
    again = ownership.claim(name, larger, ME, path=None, mode=0o600, fresh=False, wait=0)
    assert again[3]
    assert again[2] == header
    assert _index(again[1])[3] == 1 << 40
    again[0].release()


def test_a_living_writer_keeps_its_registry(name: str) -> None:
    own, _, header, _ = _claim(name)
    for fresh in (False, True):
        with pytest.raises(WriterAlreadyRunning) as caught:
            _claim(name, fresh=fresh)
        assert caught.value.pid == ME.pid
    with pytest.raises(WriterAlreadyRunning):
        ownership.remove(name)
    assert own.is_whole()
    assert own.control.instance == header.instance
    own.release()


@pytest.mark.parametrize("mask", [0o077, 0o777])
def test_both_objects_have_the_mode_asked_for(name: str, mask: int) -> None:
    before = os.umask(mask)
    try:
        for mode in (0o600, 0o644, 0o640):
            own, *_ = _claim(name, mode=mode)
            assert _mode(name) == _mode(name, 1) == mode
            own.release()
    finally:
        os.umask(before)


def test_releasing_lets_go_of_all_but_the_memory(name: str) -> None:
    own, memory, _, _ = _claim(name)
    own.release()
    own.release()
    assert not own.is_locked()
    _index(memory)[0] = 0
    # What is left is a descriptor of each mapping and the handle of the table.
    assert len(descriptors_of(path_of(name))) == 1
    assert len(descriptors_of(path_of(name, 1))) == 2
    del own, memory
    assert descriptors_of(path_of(name)) == descriptors_of(path_of(name, 1)) == []


# ---------------------------------------------------------------------------- half-made


def test_a_creation_killed_at_any_line_is_followed_by_a_whole_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_own_names_alone(monkeypatch, name)
    complete = False
    for number in itertools.count(1):
        code = in_child(lambda n=number: stop_at_line(n, lambda: _claim(name), _kill_this_process))
        began = path_of(name).exists() and path_of(name).stat().st_size > 0
        assert not complete or began
        complete = began and _field(name, "magic") == CONTROL_MAGIC
        if complete:
            assert isinstance(attach(name, AT_ONCE), Attachment)
        else:
            with pytest.raises(RegistryNotFound):
                attach(name, AT_ONCE)
        own, memory, header, found = _claim(name)
        assert found == complete
        assert TableHeader.read(memory) == header
        assert own.control.instance == header.instance
        assert own.control.change[0] == 0
        assert objects_of(name) == {"", ".1"}
        own.destroy()
        own.release()
        assert objects_of(name) == set()
        if code == 0:
            break
    assert number > 100
    assert complete


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _control(*, magic: int = 0, generation: int = 1) -> bytes:
    """Return a control whose fields are filled."""
    memory = bytearray(CONTROL_SIZE)
    control = ControlWriter(memory)
    control.initialize(INSTANCE, generation, ME)
    memory[:8] = magic.to_bytes(8, "little")
    return bytes(memory)


@pytest.mark.parametrize(
    ("control", "table"),
    [
        (b"", None),
        (bytes(100), None),
        (bytes(CONTROL_SIZE), None),
        (bytes(2 * CONTROL_SIZE), None),
        (bytes(CONTROL_SIZE), b""),
        (bytes(CONTROL_SIZE), bytes(10)),
        (bytes(CONTROL_SIZE), bytes(GEOMETRY.size)),
        (bytes(CONTROL_SIZE), bytes(8) + _table(INSTANCE, 1)[8:]),
        (bytes(CONTROL_SIZE), _table(INSTANCE, 1)),
        (_control(), _table(INSTANCE, 1)),
        (_control(), None),
        (bytes(8) + b"\xff" * (CONTROL_SIZE - 8), b"\xff" * GEOMETRY.size),
    ],
)
def test_what_a_killed_creation_left_is_made_anew(
    name: str, control: bytes, table: bytes | None
) -> None:
    path_of(name).write_bytes(control)
    if table is not None:
        path_of(name, 1).write_bytes(table)
    own, memory, header, found = _claim(name)
    assert not found
    assert own.control.is_ours()
    assert TableHeader.read(memory) == header
    assert header.instance != INSTANCE
    assert own.control.change[0] == 0
    assert not any(own.control.counters().values())
    assert not any(_index(memory))
    own.release()


@pytest.mark.parametrize("generations", [(2,), (1, 2, 3), (7, 100_000_000_000)])
def test_a_creation_closes_and_removes_leftover_tables(
    name: str, generations: tuple[int, ...]
) -> None:
    old = {}
    for generation in generations:
        path_of(name, generation).write_bytes(_table(INSTANCE, generation))
        descriptor = segment.open_readable(f"/jidoka_shm.{name}.{generation}")
        old[generation] = segment.map_readable(descriptor, GEOMETRY.size)
        os.close(descriptor)
    own, *_, found = _claim(name)
    assert not found
    assert objects_of(name) == {"", ".1"}
    for memory in old.values():
        assert set(_index(memory)) == {CLOSED}
    own.release()


def test_a_takeover_sends_readers_of_other_tables_on_and_removes_them(name: str) -> None:
    header = _make(name)
    path_of(name, 2).write_bytes(_table(header.instance, 2))
    path_of(name, 3).write_bytes(b"what is this?")
    descriptor = segment.open_readable(f"/jidoka_shm.{name}.2")
    memory = segment.map_readable(descriptor, GEOMETRY.size)
    os.close(descriptor)
    own, _, found_header, found = _claim(name)
    assert found
    own.discard_others(found_header.generation)
    assert objects_of(name) == {"", ".1"}
    assert set(_index(memory)) == {MOVED}
    assert not any(_words(name))
    own.release()


@pytest.mark.parametrize("data", [b"", b"garbage", b"\xff" * 4096, _table(INSTANCE, 8)[:-1]])
def test_garbage_under_a_tables_name_is_removed(name: str, data: bytes) -> None:
    for generation in (1, 8):
        path_of(name, generation).write_bytes(data)
    own, *_ = _claim(name)
    assert objects_of(name) == {"", ".1"}
    own.release()


@pytest.mark.parametrize("tail", [".x", ".1.2", ".-1", ".", ".1 "])
def test_what_is_no_table_of_the_registry_is_left_alone(name: str, tail: str) -> None:
    stranger = path_of(name + tail)
    stranger.write_bytes(_table(INSTANCE, 1))
    own, *_ = _claim(name)
    own.destroy()
    own.release()
    assert objects_of(name) == {tail}
    assert stranger.read_bytes() == _table(INSTANCE, 1)


def test_a_registry_whose_name_begins_alike_is_left_alone(name: str) -> None:
    header = _make(f"{name}-2")
    own, *_ = _claim(name)
    own.destroy()
    own.release()
    again, _, kept, found = _claim(f"{name}-2")
    assert found
    assert kept == header
    again.destroy()
    again.release()


# ---------------------------------------------------------------------------- failures


class Failed(Exception):  # noqa: N818 - no error of the package
    """Raised on purpose."""


def _fail_at(patch: pytest.MonkeyPatch, target: object, attribute: str, call: int) -> None:
    """Make the ``call``-th call of a function raise."""
    original = getattr(target, attribute)
    calls = itertools.count(1)

    def fail(*arguments: object, **options: object) -> object:
        if next(calls) == call:
            raise Failed
        return original(*arguments, **options)

    patch.setattr(target, attribute, fail)


#: What a creation calls once it has the lock: the object, the function, and which call of it.
STEPS = [
    (segment, "open_writable", 1),
    (segment, "set_mode", 2),
    (segment, "reserve", 1),
    (segment, "map_writable", 1),
    (ControlWriter, "clear", 1),
    (segment, "names", 1),
    (segment, "create", 2),
    (segment, "set_mode", 4),
    (segment, "reserve", 2),
    (segment, "map_writable", 2),
    (TableHeader, "store", 1),
    (ControlWriter, "initialize", 1),
    (ControlWriter, "complete", 1),
]


@pytest.mark.parametrize(("target", "attribute", "call"), STEPS)
def test_a_creation_that_fails_leaves_no_name_and_no_descriptor(
    name: str, monkeypatch: pytest.MonkeyPatch, target: object, attribute: str, call: int
) -> None:
    with monkeypatch.context() as patch:
        _fail_at(patch, target, attribute, call)
        with pytest.raises(Failed):
            _claim(name)
    assert objects_of(name) == set()
    own, *_, found = _claim(name)
    assert not found
    own.release()


@pytest.mark.parametrize("call", [1, 2])
def test_a_creation_without_room_leaves_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """A8: no room in /dev/shm for control or table: an error at creation, and nothing left."""
    sizes = []
    fallocate = os.posix_fallocate

    def full(descriptor: int, offset: int, size: int) -> None:
        sizes.append(size)
        if len(sizes) == call:
            raise OSError(28, "No space left on device")
        fallocate(descriptor, offset, size)

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(RegistryFull) as caught:
            _claim(name)
    assert caught.value.needed == sizes[-1] == (CONTROL_SIZE, GEOMETRY.size)[call - 1]
    assert objects_of(name) == set()


@pytest.mark.parametrize(
    ("target", "attribute", "call"),
    [
        (segment, "open_writable", 1),
        (segment, "open_writable", 2),
        (segment, "open_writable", 3),
        (segment, "set_mode", 1),
        (segment, "set_mode", 2),
        (segment, "map_writable", 1),
        (segment, "map_writable", 2),
        (TableHeader, "read", 1),
    ],
)
def test_a_takeover_that_fails_leaves_all_as_it_was(
    name: str, monkeypatch: pytest.MonkeyPatch, target: object, attribute: str, call: int
) -> None:
    header = _make(name)
    before = path_of(name).read_bytes(), path_of(name, 1).read_bytes()
    with monkeypatch.context() as patch:
        _fail_at(patch, target, attribute, call)
        with pytest.raises(Failed):
            _claim(name)
    assert (path_of(name).read_bytes(), path_of(name, 1).read_bytes()) == before
    own, _, again, found = _claim(name)
    assert found
    assert again == header
    own.release()


# ---------------------------------------------------------------------------- what is not ours


def _break_format(name: str) -> None:
    _put(path_of(name), CONTROL_FIELDS["format"], (FORMAT_VERSION + 1).to_bytes(8, "little"))


def _break_magic(name: str) -> None:
    _put(path_of(name), 0, b"SOMETHIN")


def _truncate_control(name: str) -> None:
    os.truncate(path_of(name), 8)


def _fill_control(name: str) -> None:
    path_of(name).write_bytes(b"\xff" * CONTROL_SIZE)


def _replace_control(name: str) -> None:
    path_of(name).write_bytes(b"a few words")


FOREIGN: list[tuple[Callable[[str], None], int | None]] = [
    (_break_format, FORMAT_VERSION + 1),
    (_break_magic, None),
    (_truncate_control, 0),
    (_fill_control, None),
    (_replace_control, None),
]


@pytest.mark.parametrize(("spoil", "found"), FOREIGN)
def test_a_foreign_format_is_refused_and_stays_as_it_is(
    name: str, spoil: Callable[[str], None], found: int | None
) -> None:
    """A10: an upgrade meets the old layout, and leaves it as it is."""
    _make(name)
    spoil(name)
    control, table = path_of(name).read_bytes(), path_of(name, 1).read_bytes()
    for _ in range(2):
        with pytest.raises(FormatMismatch) as caught:
            _claim(name)
        assert (caught.value.name, caught.value.found) == (name, found)
        assert caught.value.supported == FORMAT_VERSION
    assert path_of(name).read_bytes().rstrip(b"\0") == control.rstrip(b"\0")
    assert path_of(name, 1).read_bytes() == table


def _flip_header(name: str) -> None:
    _put(path_of(name, 1), TABLE_FIELDS["slot_count"][0], b"\xfe")


def _truncate_table(name: str) -> None:
    os.truncate(path_of(name, 1), GEOMETRY.size - 1)


def _truncate_header(name: str) -> None:
    os.truncate(path_of(name, 1), 63)


def _empty_table(name: str) -> None:
    os.truncate(path_of(name, 1), 0)


def _foreign_instance(name: str) -> None:
    path_of(name, 1).write_bytes(_table(uuid4(), 1))


def _foreign_generation(name: str) -> None:
    path_of(name, 1).write_bytes(_table(UUID(bytes=path_of(name).read_bytes()[16:32]), 2))


def _missing_table(name: str) -> None:
    path_of(name, 1).rename(path_of(name, 2))


DAMAGED = [
    _flip_header,
    _truncate_table,
    _truncate_header,
    _empty_table,
    _foreign_instance,
    _foreign_generation,
    _missing_table,
]


@pytest.mark.parametrize("spoil", DAMAGED)
def test_a_damaged_registry_is_refused_and_stays_as_it_is(
    name: str, spoil: Callable[[str], None]
) -> None:
    """A10: a header that is damaged or another's is refused by a manager."""
    _make(name)
    spoil(name)
    before = {tail: path_of(name + tail).read_bytes() for tail in objects_of(name)}
    for _ in range(2):
        with pytest.raises(CorruptRegistry):
            _claim(name)
    assert {tail: path_of(name + tail).read_bytes() for tail in objects_of(name)} == before


@pytest.mark.parametrize("spoil", [*(spoil for spoil, _ in FOREIGN), *DAMAGED])
def test_fresh_discards_whatever_is_there(name: str, spoil: Callable[[str], None]) -> None:
    header = _make(name)
    spoil(name)
    own, memory, new, found = _claim(name, fresh=True)
    assert not found
    assert new.instance != header.instance
    assert TableHeader.read(memory) == new
    assert objects_of(name) == {"", ".1"}
    own.release()


def test_fresh_closes_what_readers_still_have(name: str) -> None:
    _make(name)
    view = attach(name, AT_ONCE)
    own, *_ = _claim(name, fresh=True)
    assert view.table.change[0] % 2 == 1
    assert set(view.words) == {CLOSED}
    own.release()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give an object away")
@pytest.mark.parametrize(("generation", "fresh"), [(None, False), (None, True), (1, False)])
def test_what_belongs_to_another_user_is_refused_and_stays(
    name: str, generation: int | None, *, fresh: bool
) -> None:
    _make(name)
    os.chown(path_of(name, generation), 65_534, -1)
    before = path_of(name).read_bytes(), path_of(name, 1).read_bytes()
    with pytest.raises(RegistryForbidden) as caught:
        _claim(name, fresh=fresh)
    assert (caught.value.name, caught.value.uid) == (name, 65_534)
    if not fresh:
        assert (path_of(name).read_bytes(), path_of(name, 1).read_bytes()) == before
    assert path_of(name, generation).stat().st_uid == 65_534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give an object away")
@pytest.mark.parametrize("generation", [1, 7])
def test_a_table_of_another_user_is_in_nobodys_way(
    name: str, generation: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Any user may make any name in /dev/shm, so none may stand in the way of a registry's owner."""
    header = _make(name)
    if generation == 7:
        path_of(name, 7).write_bytes(b"theirs")
    os.chown(path_of(name, generation), 65_534, -1)
    theirs = path_of(name, generation).read_bytes()
    if generation == 7:
        own, *_, found = _claim(name)
        assert found
        assert own.control.instance == header.instance
        own.release()
    own, _, header, _ = _claim(name, fresh=True)
    assert header.generation != generation
    assert f"{name}.{generation} is left alone" in caplog.text
    own.destroy()
    own.release()
    assert objects_of(name) == {f".{generation}"}
    assert path_of(name, generation).read_bytes() == theirs


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_claim_that_fails_lets_go_of_the_lock(name: str) -> None:
    path_of(name, 7).write_bytes(b"theirs")
    path_of(name, 7).chmod(0o600)

    def claim_twice() -> None:
        os.setuid(65_534)
        for _ in range(2):
            own, *_ = _claim(name)
            own.destroy()
            own.release()

    assert in_child(claim_twice) == 0


def test_a_claim_lets_go_of_the_lock_though_it_cannot_clean_up(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listing /dev/shm takes a descriptor, and there may be none left."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "no descriptors")

    with monkeypatch.context() as patch:
        patch.setattr(ownership.Ownership, "create_table", fail)
        patch.setattr(ownership, "_discard_incomplete", fail)
        with pytest.raises(OSError, match="no descriptors") as caught:
            _claim(name)
    # The error is kept, and with it all that its frames refer to.
    own, *_ = _claim(name)
    own.destroy()
    own.release()
    assert caught.value.errno == errno.EMFILE


def test_a_foreign_object_under_the_name_is_not_even_resized(name: str) -> None:
    path_of(name).write_bytes(b"theirs, and short")
    path_of(name).chmod(0o640)
    with pytest.raises(FormatMismatch):
        _claim(name)
    assert path_of(name).read_bytes() == b"theirs, and short"
    assert path_of(name).stat().st_mode & 0o777 == 0o640
    own, *_ = _claim(name, fresh=True)
    own.destroy()
    own.release()


@pytest.mark.parametrize("word", [2**64 - 1, 2**64 - 2, 2**63])
def test_a_change_word_beyond_all_versions_can_be_discarded(name: str, word: int) -> None:
    _make(name)
    own, *_ = _claim(name)
    own.control.change[0] = word
    own.release()
    own, *_ = _claim(name, fresh=True)
    assert own.control.change[0] == 0
    own.control.change[0] = word
    own.destroy()
    own.release()
    assert objects_of(name) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("mode", "uid"), [(0o600, None), (0o644, None), (0o666, 0)])
def test_another_user_cannot_take_a_registry_over(name: str, mode: int, uid: int | None) -> None:
    own, *_ = _claim(name, mode=mode)
    own.release()

    def try_to() -> None:
        os.setuid(65_534)
        for fresh in (False, True):
            with pytest.raises(RegistryForbidden) as caught:
                _claim(name, fresh=fresh)
            assert caught.value.uid == uid
        with pytest.raises(RegistryForbidden):
            ownership.remove(name)

    assert in_child(try_to) == 0
    assert objects_of(name) == {"", ".1"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_segment_that_another_user_made_is_refused(name: str) -> None:
    """A9: another user made the predictable name first."""
    code = """
        import os, sys
        from jidoka_shm.manager import SessionManager
        os.setuid(65_534)
        SessionManager(sys.argv[1], capacity=8, mode=0o644).close()
    """
    run_script(code, name)
    with pytest.raises(RegistryForbidden) as caught:
        _claim(name)
    assert caught.value.uid == 65_534
    assert objects_of(name) == {"", ".1"}


# ---------------------------------------------------------------------------- the end


def test_destroying_closes_the_index_and_removes_the_names(name: str) -> None:
    own, memory, _, _ = _claim(name)
    version = seqlock.last_version(own.control.change)
    own.destroy()
    assert own.control.change[0] == 2 * version + 1
    assert set(_index(memory)) == {CLOSED}
    assert objects_of(name) == set()
    assert not own.is_named()
    assert not own.is_whole()
    assert own.is_locked()
    own.destroy()
    assert own.control.change[0] == 2 * version + 1
    own.release()


def test_destroying_again_does_not_touch_what_came_after(name: str) -> None:
    """A2: a name that leads to another object by now is not removed."""
    own, *_ = _claim(name)
    own.destroy()
    other, memory, _, found = _claim(name)
    assert not found
    own.destroy()
    assert other.is_whole()
    assert other.control.change[0] == 0
    assert not any(_index(memory))
    own.release()
    other.release()


def test_a_destruction_killed_at_any_line_is_finished_by_the_next_claim(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_own_names_alone(monkeypatch, name)
    give_up_in_few_lines(monkeypatch)
    began = ended = False
    for number in itertools.count(1):
        header = _make(name)
        path_of(name, 2).write_bytes(_table(INSTANCE, 2))

        def die(n: int = number) -> None:
            own, *_ = _claim(name)
            stop_at_line(n, own.destroy, _kill_this_process)

        code = in_child(die)
        assert not ended or not path_of(name).exists()
        ended = not path_of(name).exists()
        closed = not path_of(name, 1).exists() or _words(name)[0] == CLOSED
        assert closed or not began
        began = closed
        if not ended:
            _open_what_is_left(name)
        own, memory, again, found = _claim(name)
        assert found != closed
        assert (again.instance == header.instance) == found
        if found:
            own.discard_others(1)
        assert objects_of(name) == {"", ".1"}
        assert not any(_index(memory))
        own.destroy()
        own.release()
        if code == 0:
            break
    assert number > 50
    assert began
    assert ended


def _open_what_is_left(name: str) -> None:
    """Attach to a registry that may be half destroyed: it works, or there is none any more."""
    try:
        view = attach(name, AT_ONCE)
    except RegistryNotFound:
        assert not path_of(name, 1).exists()
    else:
        assert set(view.words[2:-2]) in ({0}, {CLOSED})


def test_removing_destroys_what_nobody_writes(name: str) -> None:
    header = _make(name)
    view = attach(name, AT_ONCE)
    ownership.remove(name, instance=header.instance)
    assert set(view.words) == {CLOSED}
    assert objects_of(name) == set()
    with pytest.raises(RegistryNotFound):
        ownership.remove(name)
    _make(name)
    ownership.remove(name)
    assert objects_of(name) == set()


@pytest.mark.parametrize("spoil", [*(spoil for spoil, _ in FOREIGN), *DAMAGED])
def test_removing_takes_what_is_damaged_as_well(name: str, spoil: Callable[[str], None]) -> None:
    _make(name)
    spoil(name)
    ownership.remove(name)
    assert objects_of(name) == set()


def test_removing_one_instance_leaves_another_as_it_is(name: str) -> None:
    own, *_ = _claim(name, mode=0o644)
    own.release()
    before = path_of(name).read_bytes(), path_of(name, 1).read_bytes()
    ownership.remove(name, instance=uuid4())
    assert (path_of(name).read_bytes(), path_of(name, 1).read_bytes()) == before
    assert _mode(name) == _mode(name, 1) == 0o644


# ---------------------------------------------------------------------------- names gone


@pytest.mark.parametrize("generation", [None, 1])
def test_a_name_that_somebody_removed_is_noticed(name: str, generation: int | None) -> None:
    own, *_ = _claim(name)
    path_of(name, generation).unlink()
    assert not own.is_whole()
    assert own.is_named() == (generation is not None)
    own.release()


@pytest.mark.parametrize("generation", [None, 1])
def test_a_name_that_was_made_anew_is_noticed(name: str, generation: int | None) -> None:
    own, *_ = _claim(name)
    data = path_of(name, generation).read_bytes()
    path_of(name, generation).unlink()
    path_of(name, generation).write_bytes(data)
    assert not own.is_whole()
    own.release()


@pytest.mark.parametrize("generation", [None, 1])
def test_revoking_closes_the_registry_and_removes_the_name_that_is_left(
    name: str, generation: int | None
) -> None:
    own, memory, header, _ = _claim(name)
    table = SessionTable(memory, own.control.change, header.geometry)
    path_of(name, generation).unlink()
    own.revoke([table])
    assert own.control.change[0] % 2 == 1
    assert set(_index(memory)) == {CLOSED}
    own.release()
    assert objects_of(name) == set()


def test_revoking_leaves_the_names_of_a_successor(name: str) -> None:
    own, memory, header, _ = _claim(name)
    table = SessionTable(memory, own.control.change, header.geometry)
    path_of(name).unlink()
    path_of(name, 1).unlink()
    other, theirs, _, found = _claim(name)
    assert not found
    own.revoke([table])
    assert set(_index(memory)) == {CLOSED}
    assert other.is_whole()
    assert not any(_index(theirs))
    assert other.control.change[0] == 0
    own.release()
    other.release()
