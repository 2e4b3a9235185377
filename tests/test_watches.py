"""Watches: a process's end is noticed once, with how it ended, and nobody is reaped."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import signal
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from host import exit_code, forked, in_child, stop_at_line
from living import Grandchild, Living, next_descriptor, pidfds

from jidoka_shm import descriptors, processes
from jidoka_shm import watches as watches_module
from jidoka_shm.control import Identity
from jidoka_shm.owners import Owners
from jidoka_shm.watches import Watches, is_dead

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

REFUSALS = [errno.ENOSYS, errno.EPERM, errno.EMFILE, errno.ENFILE]


class Watched:
    """Watches, in a loop of the test's own thread, over owners that the test sets."""

    def __init__(self) -> None:
        self.owners = Owners()
        self.watches = Watches("watched")
        self.noticed = asyncio.Event()
        self.watches.notify(self.noticed.set)

    def follow(self, *owners: Identity) -> bool:
        """Have each own a session, and be watched."""
        for owner in owners:
            self.owners.set(owner.pid, owner)
        self.watches.follow(self.owners)
        return not self.owners.arrived

    def drop(self, *owners: Identity) -> None:
        """Have each own nothing any more."""
        for owner in owners:
            self.owners.set(owner.pid, None)
        self.watches.follow(self.owners)

    async def end_of(self, owner: Identity) -> str:
        """Wait until an owner's end is noticed and return what is said of it."""
        watches = self.watches
        while owner not in watches.ended or owner in {*watches._descriptors, *watches._polled}:
            self.noticed.clear()
            await asyncio.wait_for(self.noticed.wait(), 30)
        return self.watches.ended.pop(owner)


def _run(work: Callable[[Watched], Coroutine[Any, Any, None]]) -> None:
    """Do ``work`` in a loop, and assert that no pidfd is left."""

    async def main() -> None:
        watched = Watched()
        try:
            await work(watched)
        finally:
            watched.watches.close()
        assert pidfds() == before

    before = pidfds()
    asyncio.run(main())


@pytest.fixture
def child() -> Iterator[Living]:
    """A child of this process."""
    with Living() as made:
        yield made


def _who(pid: int) -> Identity:
    found = processes.find(pid)
    assert found is not None
    return found


# ---------------------------------------------------------------------------- how it ended


@pytest.mark.parametrize(
    ("end", "code", "text"),
    [
        *((lambda child, code=code: child.exit(code), code, f"exited with status {code}") for code in (0, 3, 255)),
        (lambda child: child.kill(), -9, "was killed by signal 9 (SIGKILL)"),
        (lambda child: child.kill(signal.SIGTERM), -15, "was killed by signal 15 (SIGTERM)"),
        (lambda child: child.kill(signal.SIGUSR1), -10, "was killed by signal 10 (SIGUSR1)"),
        (lambda child: child.kill(40), -40, "was killed by signal 40"),
    ],
)  # fmt: skip
def test_a_childs_end_is_told_and_left_to_be_waited_for(
    child: Living, end: Callable[[Living], None], code: int, text: str
) -> None:
    async def work(watched: Watched) -> None:
        assert watched.follow(owner)
        assert watched.watches.ended == {}
        end(child)
        assert await watched.end_of(owner) == f"owner process {child.pid} {text}"

    owner = _who(child.pid)
    _run(work)
    assert child.wait() == code


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        (os.CLD_EXITED, 9, "exited with status 9"),
        (os.CLD_KILLED, 9, "was killed by signal 9 (SIGKILL)"),
        (os.CLD_DUMPED, 6, "was killed by signal 6 (SIGABRT)"),
    ],
)
def test_each_manner_of_an_end_has_its_text(
    monkeypatch: pytest.MonkeyPatch, code: int, status: int, text: str
) -> None:
    found = os.waitid_result((77, 0, signal.SIGCHLD, status, code))
    monkeypatch.setattr(os, "waitid", lambda *_: found)
    assert watches_module._manner(0) == text


def test_one_of_which_there_is_nothing_to_ask_yet_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "waitid", lambda *_: None)
    assert watches_module._manner(0) == "ended"


def test_the_end_of_a_process_of_another_parent_is_noticed() -> None:
    async def work(watched: Watched) -> None:
        with Grandchild() as other:
            owner = _who(other.pid)
            watched.follow(owner)
            other.exit()
            assert await watched.end_of(owner) == f"owner process {other.pid} ended"

    _run(work)


def test_the_end_of_a_child_that_was_waited_for_first_is_noticed(child: Living) -> None:
    async def work(watched: Watched) -> None:
        watched.follow(owner)
        child.exit(3)
        assert child.wait() == 3
        assert await watched.end_of(owner) == f"owner process {child.pid} ended"

    owner = _who(child.pid)
    _run(work)


def test_a_child_that_is_waited_for_by_a_thread_gives_it_its_status(child: Living) -> None:
    async def work(watched: Watched) -> None:
        watched.follow(owner)
        waiter.start()
        child.exit(3)
        assert (await watched.end_of(owner)).startswith(f"owner process {child.pid} e")

    codes: list[int] = []
    waiter = threading.Thread(target=lambda: codes.append(child.wait()))
    owner = _who(child.pid)
    _run(work)
    waiter.join()
    assert codes == [3]


def test_a_child_that_ended_before_it_was_watched_still_says_how(child: Living) -> None:
    async def work(watched: Watched) -> None:
        watched.follow(owner)
        assert await watched.end_of(owner) == f"owner process {child.pid} exited with status 3"

    owner = _who(child.pid)
    child.become_zombie(3)
    _run(work)
    assert child.wait() == 3


def test_one_that_is_gone_before_it_was_watched_is_gone(child: Living) -> None:
    async def work(watched: Watched) -> None:
        watched.follow(owner)
        assert watched.watches.ended == {owner: f"owner process {child.pid} is gone"}
        assert watched.noticed.is_set()

    owner = _who(child.pid)
    child.exit()
    child.wait()
    _run(work)


def test_a_later_process_of_the_same_pid_is_not_taken_for_it(child: Living) -> None:
    """P1: a pid with another start time is another process, and the owner is dead."""

    async def work(watched: Watched) -> None:
        earlier = replace(_who(child.pid), start=_who(child.pid).start - 1)
        watched.follow(earlier)
        assert watched.watches.ended == {earlier: f"owner process {child.pid} is gone"}
        assert pidfds() == 0

    _run(work)


@pytest.mark.parametrize("pid", [2**22 + 1, 2**31, 2**32 - 1])
def test_a_number_that_no_pid_can_be_is_gone(pid: int) -> None:
    async def work(watched: Watched) -> None:
        owner = Identity(pid, 1, processes.own_namespace())
        watched.follow(owner)
        assert watched.watches.ended == {owner: f"owner process {pid} is gone"}

    _run(work)


def test_each_of_many_that_end_at_once_is_noticed() -> None:
    async def work(watched: Watched) -> None:
        children = [Living() for _ in range(70)]
        try:
            owners = [_who(each.pid) for each in children]
            assert not watched.follow(*owners)
            assert pidfds() == 64
            assert watched.follow()
            assert pidfds() == 70
            for each in children:
                each.kill()
            for owner in owners:
                assert "(SIGKILL)" in await watched.end_of(owner)
            assert pidfds() == 0
        finally:
            for each in children:
                each.__exit__()

    _run(work)


# ---------------------------------------------------------------------------- who is watched


def test_one_process_costs_one_descriptor_however_often_it_arrives(child: Living) -> None:
    async def work(watched: Watched) -> None:
        for _ in range(3):
            assert watched.follow(owner)
            watched.owners.replace(watched.owners)
            assert watched.owners.arrived == {owner}
        assert watched.follow()
        assert pidfds() == 1
        child.exit()
        await watched.end_of(owner)

    owner = _who(child.pid)
    _run(work)


def test_one_that_departs_is_watched_no_longer(child: Living) -> None:
    async def work(watched: Watched) -> None:
        with Living() as other:
            theirs = _who(other.pid)
            watched.follow(owner, theirs)
            watched.drop(owner)
            assert pidfds() == 1
            child.exit()
            child.wait()
            other.exit()
            await watched.end_of(theirs)
        assert watched.watches.ended == {}

    owner = _who(child.pid)
    _run(work)


def test_one_whose_end_is_noted_is_not_watched_again_before_it_is_taken_out(child: Living) -> None:
    async def work(watched: Watched) -> None:
        watched.follow(owner)
        child.become_zombie(3)
        text = await watched.end_of(owner)
        watched.watches.ended[owner] = text
        watched.owners.replace(watched.owners)
        assert watched.follow()
        assert watched.watches.ended == {owner: text}
        assert pidfds() == 0

    owner = _who(child.pid)
    _run(work)


def test_this_process_itself_can_be_watched() -> None:
    async def work(watched: Watched) -> None:
        watched.follow(processes.own_identity())
        assert pidfds() == 1
        assert watched.watches.ended == {}

    _run(work)


@pytest.mark.parametrize("unknown", [{"start": 0}, {"namespace": 0}, {"namespace": 1}])
def test_one_of_which_nothing_is_known_is_neither_watched_nor_dead(
    child: Living, unknown: dict[str, int]
) -> None:
    async def work(watched: Watched) -> None:
        for owner in owners:
            assert watched.follow(owner)
        watched.watches.poll()
        assert (watched.watches.ended, watched.watches._polled, pidfds()) == ({}, {}, 0)
        assert not any(is_dead(owner) for owner in owners)

    known = _who(child.pid)
    owners = [replace(known, **unknown), replace(known, pid=2**22 + 1, **unknown)]
    _run(work)


def test_without_proc_nobody_is_watched_and_nobody_is_dead(
    child: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(watched: Watched) -> None:
        watched.follow(owner)
        assert (watched.watches.ended, watched.watches._polled) == ({}, {})
        assert not is_dead(owner)

    owner = Identity(child.pid, 1, 0)
    monkeypatch.setattr(processes, "own_namespace", lambda: 0)
    _run(work)


# ---------------------------------------------------------------------------- without pidfds


def _refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def pidfd_open(_: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)


@pytest.mark.parametrize("refusal", REFUSALS, ids=errno.errorcode.get)
def test_where_pidfds_are_refused_processes_are_looked_at(
    child: Living, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    async def work(watched: Watched) -> None:
        assert watched.follow(owner)
        watched.watches.poll()
        assert watched.watches.ended == {}
        child.become_zombie(3)
        assert watched.watches.ended == {}
        watched.watches.poll()
        assert watched.noticed.is_set()
        assert await watched.end_of(owner) == f"owner process {child.pid} ended"
        watched.watches.poll()
        assert watched.watches.ended == {}

    owner = _who(child.pid)
    _refuse(monkeypatch, refusal)
    _run(work)
    assert child.wait() == 3


def test_where_pidfds_are_refused_one_that_is_gone_is_found_at_once(
    child: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(watched: Watched) -> None:
        watched.follow(owner)
        assert await watched.end_of(owner) == f"owner process {child.pid} is gone"

    owner = _who(child.pid)
    child.exit()
    child.wait()
    _refuse(monkeypatch, errno.ENOSYS)
    _run(work)


def test_one_that_is_looked_at_and_departs_is_looked_at_no_longer(
    child: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(watched: Watched) -> None:
        watched.follow(owner)
        watched.drop(owner)
        child.become_zombie()
        watched.watches.poll()
        assert watched.watches.ended == {}

    owner = _who(child.pid)
    _refuse(monkeypatch, errno.EMFILE)
    _run(work)


def test_one_that_the_loop_does_not_take_is_looked_at(
    child: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As epoll_ctl answers beyond /proc/sys/fs/epoll/max_user_watches.
    async def work(watched: Watched) -> None:
        def add_reader(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(asyncio.get_running_loop(), "add_reader", add_reader)
            assert watched.follow(owner)
        assert pidfds() == 0
        child.become_zombie()
        watched.watches.poll()
        await watched.end_of(owner)

    owner = _who(child.pid)
    _run(work)


def test_one_that_proc_hides_now_is_looked_at_and_not_dead(
    child: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(_: int) -> tuple[int, bool]:
        raise PermissionError

    async def work(watched: Watched) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(processes, "_look", look)
            watched.follow(owner)
            watched.watches.poll()
        assert (watched.watches.ended, pidfds()) == ({}, 0)
        child.become_zombie()
        watched.watches.poll()
        await watched.end_of(owner)

    owner = _who(child.pid)
    _run(work)


def test_a_thread_that_is_named_by_its_own_number_is_looked_at() -> None:
    async def work(watched: Watched) -> None:
        thread.start()
        await asyncio.get_running_loop().run_in_executor(None, began.wait)
        owner = _who(thread.native_id or 0)
        watched.follow(owner)
        assert (watched.watches.ended, pidfds()) == ({}, 0)
        end.set()
        thread.join()
        while not watched.watches.ended:
            watched.watches.poll()
        await watched.end_of(owner)

    began, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (began.set(), end.wait()))
    _run(work)


def test_half_of_the_descriptors_are_for_owners_and_the_others_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work(watched: Watched) -> None:
        children = [Living() for _ in range(4)]
        try:
            room = 2 * next_descriptor(after=2)
            monkeypatch.setattr(descriptors, "room", lambda: room)
            owners = [_who(each.pid) for each in children]
            assert watched.follow(*owners)
            assert (pidfds(), len(watched.watches._polled)) == (2, 2)
            for each, owner in zip(children, owners, strict=True):
                each.become_zombie()
                watched.watches.poll()
                assert str(each.pid) in await watched.end_of(owner)
            assert pidfds() == 0
        finally:
            for each in children:
                each.__exit__()

    _run(work)


def test_many_that_are_looked_at_have_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(watched: Watched) -> None:
        watched.follow(*owners)
        while not watched.follow():
            pass
        looked.clear()
        rounds = -(-len(owners) // watches_module._LOOKED_AT)
        counts = []
        for _ in range(2 * rounds):
            before = len(looked)
            watched.watches.poll()
            counts.append(len(looked) - before)
        assert max(counts) <= watches_module._LOOKED_AT
        assert set(looked[: len(looked) // 2]) == set(owners)
        # One that ends takes nobody's turn.
        dead.update(owners[::2])
        for _ in range(rounds + 1):
            watched.watches.poll()
        assert watched.watches.ended.keys() == dead

    def is_alive(owner: Identity) -> bool:
        looked.append(owner)
        return owner not in dead

    _refuse(monkeypatch, errno.ENOSYS)
    monkeypatch.setattr(processes, "is_alive", is_alive)
    looked: list[Identity] = []
    dead: set[Identity] = set()
    namespace = processes.own_namespace()
    owners = [Identity(pid, 1, namespace) for pid in range(1, 1301)]
    _run(work)


# ---------------------------------------------------------------------------- what goes wrong


def _interrupted_at_line(number: int, watched: Watched) -> bool:
    """Follow with a MemoryError before a line, then whole; return whether that line came."""

    def fail() -> None:
        raise MemoryError

    try:
        came = stop_at_line(number, lambda: watched.watches.follow(watched.owners), fail)
    except MemoryError:
        came = True
    # The next turn makes up for it.
    watched.watches.follow(watched.owners)
    return came


def test_an_exception_at_any_line_leaves_no_owner_unwatched() -> None:
    async def work(watched: Watched) -> None:
        for number in itertools.count(1):
            with Living() as one:
                owner = _who(one.pid)
                watched.owners.set(0, owner)
                came = _interrupted_at_line(number, watched)
                assert pidfds() == 1
                one.exit(3)
                text = await watched.end_of(owner)
                assert text == f"owner process {one.pid} exited with status 3"
                watched.owners.set(0, None)
            if not came:
                break
        assert number > 10

    _run(work)


def test_an_exception_at_any_line_leaves_none_watched_that_departed(child: Living) -> None:
    async def work(watched: Watched) -> None:
        for number in itertools.count(1):
            watched.follow(owner, own)
            watched.owners.set(owner.pid, None)
            came = _interrupted_at_line(number, watched)
            assert set(watched.watches._descriptors) == {own}
            assert pidfds() == 1
            if not came:
                break
        assert number > 5

    owner, own = _who(child.pid), processes.own_identity()
    _run(work)


@pytest.mark.parametrize("step", ["_manner", "describe", "notify"])
def test_a_callback_that_fails_is_called_again(
    child: Living, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    failures: list[int] = []

    def fail_once(*arguments: Any) -> Any:  # noqa: ANN401 - whatever it stands for
        if not failures:
            failures.append(1)
            raise MemoryError
        return call(*arguments)

    async def work(watched: Watched) -> None:
        nonlocal call
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        watched.follow(owner)
        if step == "notify":
            call = watched.watches._notify
            watched.watches.notify(fail_once)
        else:
            monkeypatch.setattr(watches_module, step, fail_once)
        child.exit(3)
        assert await watched.end_of(owner) == f"owner process {child.pid} exited with status 3"
        assert (failures, pidfds()) == ([1], 0)

    call: Callable[..., object] = getattr(watches_module, step, lambda: None)
    owner = _who(child.pid)
    _run(work)


# ---------------------------------------------------------------------------- forks


def test_closing_in_a_forked_child_leaves_the_parents_watches_alone(child: Living) -> None:
    async def work(watched: Watched) -> None:
        def in_the_child() -> None:
            watched.watches.close()
            assert pidfds() == 0
            watched.watches.close()

        watched.follow(owner, own)
        assert in_child(in_the_child) == 0
        assert pidfds() == 2
        child.exit(3)
        assert await watched.end_of(owner) == f"owner process {child.pid} exited with status 3"

    owner, own = _who(child.pid), processes.own_identity()
    _run(work)


def test_a_childs_child_that_keeps_the_descriptor_does_not_keep_it_from_being_noticed(
    child: Living,
) -> None:
    async def work(watched: Watched) -> None:
        watched.follow(owner)
        # It closes nothing, and lives on.
        end, begin = os.pipe()
        keeper = forked(lambda: (os.close(begin), os.read(end, 1)))
        try:
            child.exit()
            await watched.end_of(owner)
            # What the loop let go of does not come back.
            for _ in range(10):
                await asyncio.sleep(0)
            assert watched.watches.ended == {}
        finally:
            os.close(begin)
            os.close(end)
            assert exit_code(keeper) == 0

    owner = _who(child.pid)
    _run(work)
