from __future__ import annotations

import asyncio
import logging
import selectors
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from host import in_child, run_script
from support import wait_until

from jidoka_shm import reactor as reactor_module
from jidoka_shm.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator

HOUR = 3_600_000_000_000


def _now() -> int:
    return time.monotonic_ns()


class Driven:
    """A reactor with what it did."""

    def __init__(self) -> None:
        self.turns: list[int] = []
        self.watches = 0
        #: What the next turns return; None after that.
        self.answers: list[int | Exception | None] = []
        self.wakes = 0
        self.reactor = Reactor("a reactor of the tests", turn=self._turn, watch=self._watch)
        self.loop: Any = self.reactor._loop
        wake = self.loop.call_soon_threadsafe

        def count_and_wake(*arguments: Any) -> object:  # noqa: ANN401 - whatever it takes
            self.wakes += 1
            return wake(*arguments)

        self.loop.call_soon_threadsafe = count_and_wake

    def _turn(self) -> int | None:
        self.turns.append(_now())
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _watch(self) -> None:
        self.watches += 1

    @property
    def thread(self) -> threading.Thread:
        return self.reactor._thread

    def finish(self) -> None:
        """Wait until the thread has done all that it was woken for."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(done.set)
        assert done.wait(30)
        self.wakes -= 1


@pytest.fixture
def driven() -> Iterator[Driven]:
    """A reactor that is stopped after the test."""
    made = Driven()
    yield made
    made.reactor.stop()
    made.thread.join()


# ---------------------------------------------------------------------------- deadlines


def test_it_turns_at_a_deadline_and_not_before(driven: Driven) -> None:
    deadline = _now() + 20_000_000
    driven.reactor.wake_at(deadline)
    wait_until(lambda: driven.turns)
    # The loop may be early by its clock's resolution, a nanosecond, and by a float's rounding.
    assert driven.turns[0] >= deadline - 1_000
    assert len(driven.turns) == 1


def test_no_deadline_wakes_nobody(driven: Driven) -> None:
    driven.reactor.wake_at(None)
    driven.finish()
    assert (driven.turns, driven.wakes) == ([], 0)


def test_a_deadline_that_has_passed_is_due_at_once(driven: Driven) -> None:
    driven.reactor.wake_at(0)
    wait_until(lambda: driven.turns)


def test_a_turn_says_when_the_next_one_is(driven: Driven) -> None:
    driven.answers = [0, _now() + 1_000_000, 0, None, 0]
    driven.reactor.wake_at(0)
    wait_until(lambda: len(driven.turns) == 4)
    driven.finish()
    assert driven.answers == [0]
    driven.reactor.wake_at(0)
    wait_until(lambda: len(driven.turns) == 6)


def test_an_earlier_deadline_wakes_it_and_a_later_one_does_not(driven: Driven) -> None:
    driven.reactor.wake_at(_now() + 2 * HOUR)
    assert driven.wakes == 1
    for deadline in (_now() + 3 * HOUR, _now() + 4 * HOUR):
        driven.reactor.wake_at(deadline)
    assert driven.wakes == 1
    driven.reactor.wake_at(_now() + HOUR)
    assert driven.wakes == 2
    driven.reactor.wake_at(_now() + 1_000_000)
    assert driven.wakes == 3
    wait_until(lambda: driven.turns)


def test_an_earlier_deadline_does_not_wait_for_the_later_one(driven: Driven) -> None:
    driven.reactor.wake_at(_now() + HOUR)
    driven.finish()
    driven.reactor.wake_at(_now() + 1_000_000)
    wait_until(lambda: driven.turns)


def test_a_later_deadline_follows_by_the_turns_answer(driven: Driven) -> None:
    later = _now() + 10_000_000
    driven.answers = [later]
    driven.reactor.wake_at(_now())
    driven.reactor.wake_at(later)
    wait_until(lambda: len(driven.turns) == 2)


def test_deadlines_from_many_threads_are_all_met(driven: Driven) -> None:
    pending: list[int] = []
    lock = threading.Lock()

    def turn() -> int | None:
        with lock:
            now = _now()
            pending[:] = [deadline for deadline in pending if deadline > now]
            return min(pending, default=None)

    def add() -> None:
        for number in range(50):
            with lock:
                pending.append(_now() + 100_000 * (number % 7))
                earliest = min(pending)
            driven.reactor.wake_at(earliest)

    driven.reactor._turn = turn
    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: not pending)


def test_a_turn_that_fails_does_not_end_it(
    driven: Driven, caplog: pytest.LogCaptureFixture
) -> None:
    driven.answers = [ValueError("of the tests")]
    with caplog.at_level(logging.CRITICAL + 1, logger="asyncio"):
        driven.reactor.wake_at(0)
        wait_until(lambda: driven.turns)
        driven.finish()
    driven.reactor.wake_at(0)
    wait_until(lambda: len(driven.turns) == 2)


# ---------------------------------------------------------------------------- watching


def test_a_turn_that_fails_each_time_does_not_stop_the_watch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reactor_module, "_WATCH_INTERVAL", 0.001)
    watches: list[None] = []

    def fail() -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.CRITICAL + 1, logger="asyncio"):
        failing = reactor_module.Reactor("failing", turn=fail, watch=lambda: watches.append(None))
        wait_until(lambda: len(watches) > 3)
        failing.stop()


def test_it_watches_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.1 <= reactor_module._WATCH_INTERVAL <= 1
    monkeypatch.setattr(reactor_module, "_WATCH_INTERVAL", 0.001)
    driven = Driven()
    wait_until(lambda: driven.watches > 3)
    driven.reactor.stop()


def test_a_watch_that_fails_is_called_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reactor_module, "_WATCH_INTERVAL", 0.001)
    calls = []

    def fail_once() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError

    with caplog.at_level(logging.CRITICAL + 1, logger="asyncio"):
        reactor = Reactor("a reactor of the tests", turn=lambda: None, watch=fail_once)
        try:
            wait_until(lambda: len(calls) > 2, seconds=2)
        finally:
            reactor.stop()


# ---------------------------------------------------------------------------- the end


def test_its_thread_has_the_name_given_and_keeps_no_process_alive(driven: Driven) -> None:
    assert driven.thread.name == "a reactor of the tests"
    assert driven.thread.daemon


def test_stopping_ends_thread_and_loop_and_may_be_repeated(driven: Driven) -> None:
    driven.reactor.wake_at(_now() + HOUR)
    for _ in range(3):
        driven.reactor.stop()
        assert not driven.thread.is_alive()
        assert driven.loop.is_closed()


def test_stopping_does_what_was_asked_before(driven: Driven) -> None:
    driven.reactor.wake_at(_now() + 1)
    driven.finish()
    driven.reactor.stop()
    assert len(driven.turns) <= 1


def test_several_threads_may_stop_it_at_once(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven.reactor.stop()
    # As another thread saw it just before.
    monkeypatch.setattr(driven.loop, "is_closed", lambda: False)
    driven.reactor.stop()
    monkeypatch.undo()


def test_it_can_be_stopped_by_what_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reactor_module, "_WATCH_INTERVAL", 0.001)
    stopped = threading.Event()

    def stop() -> None:
        reactor.stop()
        stopped.set()

    reactor = Reactor("a reactor of the tests", turn=lambda: None, watch=stop)
    assert stopped.wait(30)
    reactor._thread.join(30)
    assert reactor._loop.is_closed()
    reactor.stop()


def test_a_deadline_for_one_that_was_stopped_is_ignored(driven: Driven) -> None:
    driven.reactor.stop()
    driven.reactor.wake_at(_now() + 1_000)
    assert driven.turns == []


@pytest.mark.parametrize(
    ("target", "attribute"),
    [
        (selectors, "DefaultSelector"),
        (asyncio, "SelectorEventLoop"),
        (threading, "Thread"),
        (threading.Thread, "start"),
    ],
)
def test_one_that_cannot_be_made_leaves_no_descriptor(
    monkeypatch: pytest.MonkeyPatch, target: object, attribute: str
) -> None:
    def fail(*_: object, **__: object) -> object:
        raise OSError("of the tests")  # noqa: EM101, TRY003 - no user reads it

    with monkeypatch.context() as patch:
        patch.setattr(target, attribute, fail)
        with pytest.raises(OSError, match="of the tests"):
            Reactor("a reactor of the tests", turn=lambda: None, watch=lambda: None)


# ---------------------------------------------------------------------------- forks


def _epolls_and_sockets() -> int:
    """Return how many descriptors this process has of the kinds that a loop uses."""
    links = list(Path("/proc/self/fd").iterdir())
    targets = [str(link.readlink()) for link in links if link.is_symlink()]
    return sum(target.startswith(("socket:", "anon_inode:[eventpoll")) for target in targets)


def test_a_forked_child_has_none_of_its_descriptors(driven: Driven) -> None:
    before = _epolls_and_sockets()

    def in_the_child() -> None:
        assert _epolls_and_sockets() == before - 3

    assert in_child(in_the_child) == 0
    driven.finish()


def test_a_forked_child_does_not_deafen_its_parent(driven: Driven) -> None:
    driven.reactor.wake_at(_now() + HOUR)
    driven.finish()

    def in_the_child() -> None:
        driven.reactor.after_fork_in_child()
        driven.reactor.stop()

    assert in_child(in_the_child) == 0
    driven.reactor.wake_at(_now() + 1_000_000)
    wait_until(lambda: driven.turns)


def test_a_child_may_stop_what_it_inherited_at_its_exit() -> None:
    code = """
        import os, sys, threading, time, warnings
        from jidoka_shm.reactor import Reactor
        warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
        turned = threading.Event()
        reactor = Reactor("parent's", turn=turned.set, watch=lambda: None)
        if not (pid := os.fork()):
            reactor.stop()
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        reactor.wake_at(time.monotonic_ns())
        assert turned.wait(30)
        reactor.stop()
    """
    run_script(code)


def test_a_reactor_of_a_child_works(driven: Driven) -> None:
    def in_the_child() -> None:
        own = Driven()
        own.reactor.wake_at(_now())
        wait_until(lambda: own.turns)
        own.reactor.stop()

    assert in_child(in_the_child) == 0
    assert driven.turns == []


@pytest.mark.parametrize("step", ["selectors.DefaultSelector", "asyncio.SelectorEventLoop"])
def test_a_fork_while_one_is_made_is_no_error_in_the_child(step: str) -> None:
    # Another thread may fork at any moment of it.
    code = """
        import asyncio, os, selectors, sys
        from jidoka_shm.reactor import Reactor

        def fork(*arguments):
            if not (pid := os.fork()):
                os._exit(len(reports))
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            return original(*arguments)

        reports = []
        sys.unraisablehook = reports.append
        module, name = sys.argv[1].split(".")
        original = getattr(sys.modules[module], name)
        setattr(sys.modules[module], name, fork)
        Reactor("a reactor of the tests", turn=lambda: None, watch=lambda: None).stop()
    """
    assert run_script(code, step) == "0\n"


class _Interrupt(BaseException):
    """Stands for a KeyboardInterrupt."""


@pytest.mark.parametrize("moment", ["before", "after", "long before the thread runs"])
def test_an_interrupted_start_leaves_no_thread_and_no_loop(
    monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    start, run = threading.Thread.start, reactor_module.Reactor._run
    may_run = threading.Event()

    def be_interrupted(thread: threading.Thread) -> None:
        if moment == "after":
            start(thread)
        elif moment != "before":
            # As start() does it up to where it waits for the thread.
            late.append(threading.Thread(target=lambda: (may_run.wait(), thread.run())))
            start(late[0])
        raise _Interrupt

    late: list[threading.Thread] = []
    monkeypatch.setattr(reactor_module, "_BEGIN", 30 if moment == "after" else 0.01)
    monkeypatch.setattr(threading.Thread, "start", be_interrupted)
    with pytest.raises(_Interrupt):
        reactor_module.Reactor("interrupted", turn=lambda: None, watch=lambda: None)
    monkeypatch.undo()
    assert reactor_module.Reactor._run is run
    may_run.set()
    for thread in late:
        thread.join()
    assert "interrupted" not in [thread.name for thread in threading.enumerate()]


# ---------------------------------------------------------------------------- work for the loop


def test_work_is_done_in_the_loop_and_waited_for(driven: Driven) -> None:
    done: list[threading.Thread] = []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append(threading.current_thread())

    driven.reactor.run(work)
    assert [thread.name for thread in done] == [driven.reactor._thread.name]


def test_what_the_work_raises_is_raised(driven: Driven) -> None:
    async def work() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        driven.reactor.run(work)


def test_work_for_one_that_was_stopped_is_an_error_at_once(driven: Driven) -> None:
    async def work() -> None:
        pytest.fail("nobody is there to do it")

    driven.reactor.stop()
    with pytest.raises(RuntimeError):
        driven.reactor.run(work)


def test_work_that_comes_after_the_last_turn_is_called_off(driven: Driven) -> None:
    """The loop has done its last turn, and is closed a moment later."""
    waiting = threading.Event()
    close = driven.reactor._loop.close
    threads: list[threading.Thread] = []
    errors: list[Exception] = []

    async def work() -> None:
        pytest.fail("nobody is there to do it")

    def run() -> None:
        try:
            driven.reactor.run(work)
        except RuntimeError as error:
            errors.append(error)

    def close_late() -> None:
        thread = threading.Thread(target=run)
        threads.append(thread)
        thread.start()
        wait_until(lambda: driven.reactor._waiting and driven.reactor._loop._ready)
        close()
        waiting.set()

    driven.reactor._loop.close = close_late
    driven.reactor.stop()
    waiting.wait()
    threads[0].join()
    assert len(errors) == 1


def test_work_in_the_reactors_own_thread_and_in_a_child_is_refused(driven: Driven) -> None:
    async def work() -> None:
        pytest.fail("it cannot be waited for")

    def ask() -> None:
        with pytest.raises(RuntimeError):
            driven.reactor.run(work)

    async def ask_inside() -> None:
        ask()

    driven.reactor.run(ask_inside)
    assert in_child(ask) == 0


def test_a_second_stop_does_not_interrupt_the_work_for_the_end(driven: Driven) -> None:
    ended: list[int] = []
    again = threading.Thread(target=driven.reactor.stop)

    async def end() -> None:
        before = driven.wakes
        again.start()
        while driven.wakes == before:  # noqa: ASYNC110 - another thread counts
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        ended.append(1)

    driven.reactor.at_end(end)
    driven.reactor.stop()
    again.join()
    assert ended == [1]


def test_work_under_way_at_the_end_is_waited_for(driven: Driven) -> None:
    began, done = threading.Event(), []

    async def work() -> None:
        began.set()
        while not driven.reactor._is_ending:  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        done.append(1)

    thread = threading.Thread(target=driven.reactor.run, args=(work,))
    thread.start()
    began.wait()
    driven.reactor.stop()
    thread.join()
    assert done == [1]
