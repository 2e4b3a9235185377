from __future__ import annotations

import errno
import os
import stat
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from host import exit_code, forked, path_of

from jidoka_shm import SessionManager, SessionReader, segment
from jidoka_shm.errors import RegistryForbidden, RegistryFull, UnsupportedPlatform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZE = 8192


@pytest.fixture
def shm(name: str) -> Iterator[str]:
    """The name of an object, as shm_open takes it; removed after the test."""
    full = f"/jidoka_shm.{name}"
    yield full
    segment.unlink(full)


@pytest.fixture
def made(shm: str) -> Iterator[int]:
    """A descriptor of a new object."""
    descriptor = segment.create(shm)
    yield descriptor
    os.close(descriptor)


def _mode(descriptor: int) -> int:
    return stat.S_IMODE(os.fstat(descriptor).st_mode)


# ---------------------------------------------------------------------------- make, open, remove


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_no_umask_changes_a_mode(shm: str, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        descriptor = segment.create(shm)
        assert _mode(descriptor) == 0o600
        segment.set_mode(descriptor, mode)
    finally:
        os.umask(before)
    assert _mode(descriptor) == mode
    os.close(descriptor)


def test_a_new_object_is_empty(made: int) -> None:
    assert segment.size_of(made) == 0


@pytest.mark.usefixtures("made")
def test_what_is_there_is_not_made_again(shm: str) -> None:
    """A9: an object is made only where there is none of its name."""
    with pytest.raises(FileExistsError, match=shm):
        segment.create(shm)


def test_what_is_not_there_is_not_opened(shm: str) -> None:
    for opened in (segment.open_readable, segment.open_writable):
        with pytest.raises(FileNotFoundError, match=shm):
            opened(shm)
    assert not segment.SHM_DIRECTORY.joinpath(shm[1:]).exists()


def test_opening_leaves_size_and_name_as_they_are(shm: str, made: int) -> None:
    segment.reserve(made, SIZE)
    for opened in (segment.open_readable, segment.open_writable):
        descriptor = opened(shm)
        assert os.path.sameopenfile(descriptor, made)
        assert segment.leads_to(shm, descriptor)
        assert segment.size_of(descriptor) == SIZE
        assert segment.is_named(descriptor)
        os.close(descriptor)


def test_a_descriptor_to_read_cannot_write(shm: str, made: int) -> None:
    segment.reserve(made, SIZE)
    descriptor = segment.open_readable(shm)
    with pytest.raises(PermissionError):
        segment.map_writable(descriptor, SIZE)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(descriptor, b"x")
    os.close(descriptor)


@pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
def test_what_is_no_shared_memory_is_refused_at_once(shm: str, name: str, kind: str) -> None:
    path = path_of(name)
    make = {"fifo": lambda: os.mkfifo(path), "folder": path.mkdir, "link": _link_to_zero(path)}
    make[kind]()
    try:
        for open_it in (segment.open_readable, segment.open_writable):
            with pytest.raises(OSError, match="not a shared-memory object") as caught:
                open_it(shm)
            assert caught.value.errno == errno.EINVAL
    finally:
        path.rmdir() if kind == "folder" else path.unlink()


def _link_to_zero(path: Path) -> Callable[[], None]:
    return lambda: path.symlink_to("/dev/zero")


def test_no_descriptor_outlives_an_exec(shm: str, made: int) -> None:
    opened = [made, segment.open_readable(shm), segment.open_writable(shm)]
    assert not any(os.get_inheritable(descriptor) for descriptor in opened)
    for descriptor in opened[1:]:
        os.close(descriptor)


def test_a_removed_object_has_no_name(shm: str, made: int) -> None:
    assert segment.is_named(made)
    segment.unlink(shm)
    assert not segment.is_named(made)
    other = segment.create(shm)
    assert not segment.is_named(made)
    assert segment.leads_to(shm, other)
    assert not segment.leads_to(shm, made)
    os.close(other)


def test_removing_what_is_not_there_is_no_error(shm: str) -> None:
    segment.unlink(shm)
    segment.unlink(shm)


@pytest.mark.usefixtures("made")
def test_the_objects_of_all_registries_are_listed(shm: str, name: str) -> None:
    stranger = segment.SHM_DIRECTORY / f"stranger.{name}"
    stranger.touch()
    try:
        listed = [found for found in segment.names() if name in found]
    finally:
        stranger.unlink()
    assert listed == [shm]


def test_an_object_of_this_user_passes(made: int, name: str) -> None:
    segment.check_owner(made, name)


def test_an_object_of_another_user_is_refused(
    made: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    with pytest.raises(RegistryForbidden) as caught:
        segment.check_owner(made, name)
    assert (caught.value.name, caught.value.uid) == (name, own)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.usefixtures("made")
def test_another_user_cannot_open_an_object(shm: str) -> None:
    def try_to_open() -> None:
        os.setuid(65_534)
        for opened in (segment.open_readable, segment.open_writable):
            with pytest.raises(PermissionError, match=shm):
                opened(shm)

    assert exit_code(forked(try_to_open)) == 0


def test_another_platform_is_told_so(shm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    for call in (segment.create, segment.open_readable, segment.open_writable):
        with pytest.raises(UnsupportedPlatform, match="darwin"):
            call(shm)
    with pytest.raises(UnsupportedPlatform):
        list(segment.names())


# ---------------------------------------------------------------------------- memory


def test_reserved_memory_is_there(made: int) -> None:
    segment.reserve(made, SIZE)
    assert segment.size_of(made) == SIZE
    assert os.fstat(made).st_blocks * 512 >= SIZE
    assert os.pread(made, SIZE, 0) == bytes(SIZE)


def test_reserving_keeps_what_is_there(made: int) -> None:
    segment.reserve(made, 10)
    os.pwrite(made, b"0123456789", 0)
    segment.reserve(made, SIZE)
    assert os.pread(made, 20, 0) == b"0123456789" + bytes(10)


def test_a_full_shm_is_an_error_that_says_so(made: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A8: the error of a full /dev/shm says what is needed and free, and the container's option."""

    def no_space(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(RegistryFull) as caught:
        segment.reserve(made, SIZE)
    free = os.statvfs(segment.SHM_DIRECTORY)
    assert caught.value.needed == SIZE
    assert caught.value.unit == "bytes of /dev/shm"
    # Others may have used some of it meanwhile.
    assert 0 <= caught.value.available <= free.f_blocks * free.f_frsize
    assert "--shm-size" in str(caught.value)


def test_more_than_there_is_cannot_be_reserved(made: int) -> None:
    free = os.statvfs(segment.SHM_DIRECTORY)
    needed = (free.f_blocks + 1) * free.f_frsize
    with pytest.raises(RegistryFull) as caught:
        segment.reserve(made, needed)
    assert caught.value.needed == needed > caught.value.available


def test_what_cannot_be_reserved_is_not_tried_at_everybody_elses_expense(
    made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = os.statvfs(segment.SHM_DIRECTORY)
    full = SimpleNamespace(f_blocks=room.f_blocks, f_bavail=3, f_frsize=4096)
    monkeypatch.setattr(os, "fstatvfs", lambda _: full)
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: pytest.fail("it was tried"))
    with pytest.raises(RegistryFull) as caught:
        segment.reserve(made, 3 * 4096 + 1)
    assert (caught.value.needed, caught.value.available) == (3 * 4096 + 1, 3 * 4096)


def test_a_shm_without_a_size_of_its_own_is_asked(
    made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited = SimpleNamespace(f_blocks=0, f_bavail=0, f_frsize=4096)
    monkeypatch.setattr(os, "fstatvfs", lambda _: unlimited)
    segment.reserve(made, SIZE)
    assert segment.size_of(made) == SIZE


def test_another_failure_to_reserve_is_that_failure(
    made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "posix_fallocate", interrupted)
    with pytest.raises(OSError, match="Input/output error") as caught:
        segment.reserve(made, SIZE)
    assert type(caught.value) is OSError


def test_a_store_is_seen_through_every_mapping(shm: str, made: int) -> None:
    segment.reserve(made, SIZE)
    written = segment.map_writable(made, SIZE)
    reading = segment.open_readable(shm)
    read = segment.map_readable(reading, SIZE)
    os.close(reading)
    memoryview(written).cast("Q")[5] = 77
    assert memoryview(read).cast("Q")[5] == 77
    with pytest.raises(TypeError):
        read[0] = 1
    assert memoryview(read).readonly


def test_a_mapping_outlives_descriptor_and_name(shm: str) -> None:
    descriptor = segment.create(shm)
    segment.reserve(descriptor, SIZE)
    mapped = segment.map_writable(descriptor, SIZE)
    os.close(descriptor)
    segment.unlink(shm)
    mapped[0] = 7
    assert mapped[0] == 7


# ---------------------------------------------------------------------------- the lock


def test_two_descriptors_exclude_each_other_in_one_process(shm: str, made: int) -> None:
    assert segment.try_lock(made)
    other = segment.open_writable(shm)
    assert not segment.try_lock(other)
    # The holder may ask again.
    assert segment.try_lock(made)
    os.close(other)


def test_the_lock_goes_with_its_descriptor(shm: str) -> None:
    holder = segment.create(shm)
    assert segment.try_lock(holder)
    other = segment.open_writable(shm)
    os.close(holder)
    assert segment.try_lock(other)
    os.close(other)


def test_closing_another_descriptor_does_not_drop_the_lock(shm: str, made: int) -> None:
    segment.reserve(made, SIZE)
    assert segment.try_lock(made)
    for opened in (segment.open_readable, segment.open_writable):
        descriptor = opened(shm)
        segment.map_readable(descriptor, SIZE).close()
        os.close(descriptor)
    other = segment.open_writable(shm)
    assert not segment.try_lock(other)
    os.close(other)


def test_a_mapping_of_another_descriptor_does_not_keep_the_lock(shm: str) -> None:
    holder = segment.create(shm)
    segment.reserve(holder, SIZE)
    assert segment.try_lock(holder)
    other = segment.open_writable(shm)
    mapped = segment.map_writable(other, SIZE)
    os.close(holder)
    assert segment.try_lock(other)
    mapped.close()
    os.close(other)


def test_the_lock_is_the_objects_and_not_the_names(shm: str, made: int) -> None:
    assert segment.try_lock(made)
    segment.unlink(shm)
    other = segment.create(shm)
    assert segment.try_lock(other)
    os.close(other)


# ---------------------------------------------------------------------------- handles


def test_a_handle_that_got_no_descriptor_goes_quietly() -> None:
    # An interrupt may come before its __init__ has done anything; a warning here is an error.
    del_of = segment.Handle.__del__
    del_of(segment.Handle.__new__(segment.Handle))


def test_a_handle_closes_with_its_last_user(shm: str, name: str) -> None:
    handle = segment.Handle(segment.create(shm))
    descriptor = handle.descriptor
    users = [handle, handle]
    del handle
    users.pop()
    assert users[0].is_named()
    path_of(name).unlink()
    assert not users[0].is_named()
    users.pop()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_a_name_that_is_no_objects_is_no_registry(name: str, kind: str) -> None:
    path = path_of(name)
    makers = {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "link": lambda: path.symlink_to("/dev/null"),
    }
    makers[kind]()
    try:
        for make in (lambda: SessionReader(name, timeout=0), lambda: SessionManager(name)):
            with pytest.raises(OSError, match="not a shared-memory object"):
                make()
        assert not segment.is_own(f"/{path.name}")
    finally:
        path.rmdir() if kind == "folder" else path.unlink()
