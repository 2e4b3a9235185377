from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest
from host import Script, descriptors_of, in_child, objects_of, path_of
from support import INSTANCE, ME, wait_until

from jidoka_shm import segment
from jidoka_shm.control import ControlWriter
from jidoka_shm.errors import RegistryForbidden, RegistryNotFound, WriterAlreadyRunning
from jidoka_shm.layout import CONTROL_SIZE
from jidoka_shm.lock import WriterLock, find_control, make_control

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Makes a registry, says so, and does what follows.
HOLD = """
import os, sys, warnings
from jidoka_shm import SessionManager
manager = SessionManager(sys.argv[1], capacity=8)
print("held", flush=True)
"""


@pytest.fixture(autouse=True)
def _unlinked(name: str) -> Iterator[None]:
    """Remove what the test made under its name."""
    yield
    for tail in objects_of(name):
        segment.unlink(f"/jidoka_shm.{name}{tail}")


def _take(name: str, *, wait: float = 0.0) -> WriterLock:
    return WriterLock(name, wait=wait, open_control=make_control)


def _name_writer(name: str) -> None:
    """Fill a control as a writer does once it has the lock."""
    descriptor = segment.open_writable(f"/jidoka_shm.{name}")
    segment.reserve(descriptor, CONTROL_SIZE)
    control = ControlWriter(segment.map_writable(descriptor, CONTROL_SIZE))
    control.initialize(INSTANCE, 1, ME)
    control.complete()
    os.close(descriptor)


# ---------------------------------------------------------------------------- taking it


def test_taking_the_lock_makes_an_empty_control(name: str) -> None:
    lock = _take(name)
    assert objects_of(name) == {""}
    assert segment.size_of(lock.descriptor) == 0
    assert lock.is_named()
    lock.release()


def test_the_lock_can_be_taken_without_making_anything(name: str) -> None:
    with pytest.raises(RegistryNotFound) as caught:
        WriterLock(name, wait=0, open_control=find_control)
    assert (caught.value.name, caught.value.timeout) == (name, 0)
    assert objects_of(name) == set()
    _take(name).release()
    WriterLock(name, wait=0, open_control=find_control).release()


@pytest.mark.parametrize("open_control", [make_control, find_control])
def test_a_second_holder_is_refused_with_the_firsts_pid(name: str, open_control: object) -> None:
    lock = _take(name)
    _name_writer(name)
    with pytest.raises(WriterAlreadyRunning) as caught:
        WriterLock(name, wait=0, open_control=open_control)
    assert (caught.value.name, caught.value.pid) == (name, ME.pid)
    assert "SessionReader" in str(caught.value)
    lock.release()


def test_a_pid_is_not_read_from_an_object_of_another_format(name: str) -> None:
    lock = _take(name)
    segment.reserve(lock.descriptor, CONTROL_SIZE)
    os.pwrite(lock.descriptor, b"X" * CONTROL_SIZE, 0)
    with pytest.raises(WriterAlreadyRunning) as caught:
        _take(name)
    assert caught.value.pid is None
    lock.release()


def test_a_holder_that_has_not_said_who_it_is_refuses_as_well(name: str) -> None:
    """A2: an empty control is not stale while somebody holds its lock."""
    lock = _take(name)
    with pytest.raises(WriterAlreadyRunning) as caught:
        _take(name)
    assert caught.value.pid is None
    segment.reserve(lock.descriptor, CONTROL_SIZE)
    with pytest.raises(WriterAlreadyRunning) as caught:
        _take(name)
    assert caught.value.pid is None
    lock.release()


def test_a_holder_in_another_process_refuses_with_its_pid(name: str) -> None:
    with Script(HOLD + "input()", name) as holder:
        assert holder.line() == "held"
        with pytest.raises(WriterAlreadyRunning, match=f"process {holder.pid}") as caught:
            _take(name)
        assert caught.value.pid == holder.pid
        holder.go()
        holder.end()
    _take(name).release()


def test_the_names_of_other_registries_have_locks_of_their_own(name: str) -> None:
    locks = [_take(name), _take(f"{name}-1"), _take(f"{name}_")]
    for lock in locks:
        lock.release()
        path_of(lock.name).unlink()


def test_releasing_lets_the_next_one_in_and_may_be_repeated(name: str) -> None:
    for _ in range(3):
        lock = _take(name)
        lock.release()
        lock.release()
        assert lock.descriptor == -1


def test_a_lock_that_was_released_has_no_name(name: str) -> None:
    lock = _take(name)
    assert lock.is_named()
    lock.release()
    assert not lock.is_named()


def test_releasing_twice_does_not_close_what_came_after(name: str) -> None:
    lock = _take(name)
    lock.release()
    other = _take(name)
    lock.release()
    with pytest.raises(WriterAlreadyRunning):
        _take(name)
    other.release()


def test_the_descriptor_does_not_outlive_an_exec(name: str) -> None:
    lock = _take(name)
    assert not os.get_inheritable(lock.descriptor)
    lock.release()


# ---------------------------------------------------------------------------- waiting


def test_waiting_gets_the_lock_when_the_holder_releases_it(name: str) -> None:
    first = _take(name)
    taken: list[WriterLock] = []
    tries = []

    def open_control(control: str) -> int:
        tries.append(control)
        return make_control(control)

    def wait() -> None:
        taken.append(WriterLock(name, wait=60, open_control=open_control))

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: len(tries) > 2)
    assert not taken
    first.release()
    thread.join()
    assert taken[0].is_named()
    taken[0].release()


def test_waiting_ends_after_its_time(name: str) -> None:
    lock = _take(name)
    before = time.monotonic()
    with pytest.raises(WriterAlreadyRunning):
        _take(name, wait=0.05)
    assert time.monotonic() - before >= 0.05
    lock.release()


# ---------------------------------------------------------------------------- what it survives


def test_the_lock_is_free_once_its_holder_was_killed(name: str) -> None:
    with Script(HOLD + "input()", name) as holder:
        holder.line()
        holder.kill()
        _take(name).release()


def test_the_lock_is_free_once_its_holder_was_killed_though_a_child_of_it_lives(name: str) -> None:
    """P5: a forked child does not keep the lock alive."""
    fork = """
# That the process has threads is the point.
warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
if not os.fork():
    print("forked", flush=True)
    sys.stdin.read()
    print("ended", flush=True)
    os._exit(0)
sys.stdin.read()
"""
    with Script(HOLD + fork, name) as holder:
        assert [holder.line(), holder.line()] == ["held", "forked"]
        holder.kill()
        lock = _take(name)
        # The child is still there: it ends only when its input does.
        holder.close_input()
        assert holder.line() == "ended"
        lock.release()


def test_the_lock_is_held_though_a_forked_child_ends(name: str) -> None:
    """P5: a forked child does not release the lock."""
    lock = _take(name)

    def in_the_child() -> None:
        assert lock.descriptor == -1
        lock.release()
        with pytest.raises(WriterAlreadyRunning):
            _take(name)

    assert in_child(in_the_child) == 0
    assert lock.descriptor >= 0
    with pytest.raises(WriterAlreadyRunning):
        _take(name)
    lock.release()


def test_releasing_does_not_wait_for_a_child_that_was_just_forked(name: str) -> None:
    # Until its hook has run, or until its exec, a child has such a copy of the descriptor.
    lock = _take(name)
    copy = os.dup(lock.descriptor)
    lock.release()
    try:
        _take(name).release()
    finally:
        os.close(copy)


def test_a_lock_that_nobody_got_is_free(name: str) -> None:
    # An interrupt may come right after it was taken.
    def take_and_lose() -> None:
        _take(name)

    for _ in range(2):
        take_and_lose()
    assert descriptors_of(path_of(name)) == []


@pytest.mark.parametrize("step", ["try_lock", "leads_to"])
def test_a_fork_while_the_lock_is_taken_leaves_the_child_no_copy(
    name: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    # Another thread may fork at any moment of it.
    path_of(name).touch(0o600)
    held: list[int] = []

    def in_the_child() -> None:
        assert descriptors_of(path_of(name)) == []

    with monkeypatch.context() as patch:
        original = getattr(segment, step)

        def fork_and_go_on(*arguments: int) -> object:
            held.append(in_child(in_the_child))
            return original(*arguments)

        patch.setattr(segment, step, fork_and_go_on)
        _take(name).release()
    assert held == [0]


def test_another_descriptor_of_the_control_may_come_and_go(name: str) -> None:
    """P6: closing another descriptor of the control drops no lock."""
    lock = _take(name)
    _name_writer(name)
    for opened in (segment.open_readable, segment.open_writable):
        os.close(opened(f"/jidoka_shm.{name}"))
    with pytest.raises(WriterAlreadyRunning):
        _take(name)
    lock.release()


# ---------------------------------------------------------------------------- the name


def test_a_name_made_anew_has_a_lock_of_its_own(name: str) -> None:
    first = _take(name)
    path_of(name).unlink()
    second = _take(name)
    assert not first.is_named()
    assert second.is_named()
    assert not os.path.sameopenfile(first.descriptor, second.descriptor)
    first.release()
    with pytest.raises(WriterAlreadyRunning):
        _take(name)
    second.release()


@pytest.mark.parametrize("made_anew", [False, True])
def test_the_lock_of_a_name_that_went_meanwhile_is_not_taken_for_it(
    name: str, monkeypatch: pytest.MonkeyPatch, *, made_anew: bool
) -> None:
    """A2: the locked object is compared with what bears the name now."""
    try_lock = segment.try_lock
    locked = []

    def try_lock_after_a_removal(descriptor: int) -> bool:
        if not locked:
            path_of(name).unlink()
            if made_anew:
                path_of(name).touch(0o600)
        locked.append(os.fstat(descriptor).st_ino)
        return try_lock(descriptor)

    monkeypatch.setattr(segment, "try_lock", try_lock_after_a_removal)
    lock = _take(name)
    assert len(locked) == 2
    assert os.fstat(lock.descriptor).st_ino == path_of(name).stat().st_ino == locked[1]
    lock.release()


def test_a_name_that_went_meanwhile_is_not_found(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _take(name).release()
    try_lock = segment.try_lock

    def try_lock_after_a_removal(descriptor: int) -> bool:
        path_of(name).unlink()
        return try_lock(descriptor)

    monkeypatch.setattr(segment, "try_lock", try_lock_after_a_removal)
    with pytest.raises(RegistryNotFound):
        WriterLock(name, wait=0, open_control=find_control)
    assert objects_of(name) == set()


def test_a_name_that_goes_between_two_tries_to_make_it_is_made(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path_of(name).touch(0o600)
    open_writable = segment.open_writable

    def open_after_a_removal(full: str) -> int:
        path_of(name).unlink()
        return open_writable(full)

    monkeypatch.setattr(segment, "open_writable", open_after_a_removal)
    _take(name).release()
    assert objects_of(name) == {""}


# ---------------------------------------------------------------------------- failures


@pytest.mark.parametrize("step", ["try_lock", "leads_to"])
def test_a_failure_on_the_way_leaves_no_descriptor_and_no_lock(
    name: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path_of(name).touch(0o600)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(segment, step, fail)
        with pytest.raises(KeyboardInterrupt):
            _take(name)
    _take(name).release()


def test_the_control_of_another_user_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path_of(name).touch(0o666)
    own = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: own + 1)
        with pytest.raises(RegistryForbidden) as caught:
            _take(name)
    assert (caught.value.name, caught.value.uid) == (name, own)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("open_control", [make_control, find_control])
def test_a_control_that_cannot_be_opened_is_refused(name: str, open_control: object) -> None:
    path_of(name).touch(0o600)

    def in_the_child() -> None:
        os.setuid(65_534)
        with pytest.raises(RegistryForbidden) as caught:
            WriterLock(name, wait=0, open_control=open_control)
        assert caught.value.uid is None

    assert in_child(in_the_child) == 0
