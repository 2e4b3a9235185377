"""One asyncio loop in a daemon thread: what a manager does by itself, and when.

It turns at deadlines, and at once when a watched process has ended.

There is one timer, for the earliest deadline. Another thread wakes the loop only for a deadline
earlier than that, so a thousand terminations cost one wake-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import threading
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, Final

from . import forks
from .watches import Watches

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

#: Loops of forked-from processes, kept for ever: collecting one would warn, or act on the epoll
#: that it shares with the parent.
_abandoned: Final[list[asyncio.AbstractEventLoop]] = []

#: How long a thread that was made may take to begin, in seconds.
_BEGIN: Final = 0.5

#: How long ``run`` waits, in seconds.
_LONGEST: Final = 5.0

#: How often ``watch`` is called, in seconds.
_WATCH_INTERVAL: Final = 0.5


class Reactor:
    """Calls ``turn`` at its deadlines and ``watch`` now and then, in a thread of its own."""

    def __init__(
        self,
        name: str,
        *,
        turn: Callable[[], int | None],
        watch: Callable[[], None],
        watches: Watches | None = None,
    ) -> None:
        """Start the thread.

        Args:
            name: the thread's name.
            turn: does what is due and returns the next deadline, in nanoseconds of
                CLOCK_MONOTONIC, which is the loop's own clock; or None.
            watch: called every half second.
            watches: processes at whose end ``turn`` is called. The reactor lets go of them when
                it ends.
        """
        self._turn = turn
        self._watch = watch
        self._watches = Watches(name) if watches is None else watches
        self._watches.notify(self._wake_now)
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self._armed: int | None = None
        self._asked: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop.call_later(_WATCH_INTERVAL, self._tick)
        self._began = threading.Event()
        self._given_up = self._is_ending = False
        self._ending: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._waiting: set[Future[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        try:
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            forks.register(self)
            self._thread.start()
        except RuntimeError:
            self._loop.close()
            raise
        except BaseException:
            self._give_up()
            raise

    def wake_at(self, deadline: int | None) -> None:
        """Have ``turn`` called at ``deadline``, unless it is called before that anyway."""
        if deadline is None:
            return
        armed, asked = self._armed, self._asked
        if (armed is not None and armed <= deadline) or (asked is not None and asked <= deadline):
            return
        # Only a hint that spares wake-ups: the loop's own thread alone decides what it waits for,
        # so no two threads can overwrite each other's deadline. Before the call, or it could be
        # set after the loop has come to it and gone by, and then stand for nothing.
        self._asked = deadline
        # One that was stopped meanwhile has nothing to wake; its manager is closed.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake, deadline)

    def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have the loop do ``work``, and wait for it, for some seconds at most.

        Raises:
            RuntimeError: where the reactor was stopped, in a forked child, and in the reactor's
                own thread, which cannot wait for itself.
            TimeoutError: where the work takes longer.
        """
        # In a forked child the thread does not run, whatever the loop says of itself.
        if threading.current_thread() is self._thread or not self._thread.is_alive():
            msg = "the reactor's thread cannot do this work"
            raise RuntimeError(msg)
        done: Future[None] = Future()
        self._waiting.add(done)
        try:
            # The coroutine is made there: one that an interrupt leaves here would warn.
            self._loop.call_soon_threadsafe(self._begin, work, done)
            if self._loop.is_closed():
                # It may have been closed before this was among those that it calls off.
                done.cancel()
            done.result(_LONGEST)
        except CancelledError:
            msg = "the reactor was stopped"
            raise RuntimeError(msg) from None
        finally:
            self._waiting.discard(done)

    def at_end(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have the loop do ``work`` when the reactor is stopped, before the thread ends."""
        self._ending = work

    def stop(self) -> None:
        """End the thread and wait for it; in that thread itself, end it with this callback."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop_once)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def after_fork_in_child(self) -> None:
        """Let go in a forked child, where the thread does not run, of what the parent uses.

        By closing descriptors alone: the loop's own close would unregister them from the epoll
        that both processes share, and so deafen the parent.
        """
        if self._loop.is_closed():
            return
        _abandoned.append(self._loop)
        loop: Any = self._loop
        loop._ssock.close()  # noqa: SLF001 - its wake-up pair has no public name
        loop._csock.close()  # noqa: SLF001 - the other end
        self._selector.close()
        self._watches.close()

    def _give_up(self) -> None:
        """End what an interrupted start has left: a thread, or none."""
        self._given_up = True
        # Nobody knows whether the interrupt came before the thread was made. One that was begins
        # within this time, or finds that it is not wanted.
        if self._began.wait(_BEGIN):
            self.stop()
        else:
            self._loop.close()

    def _run(self) -> None:
        self._began.set()
        if self._given_up:
            return
        try:
            self._loop.run_forever()
            self._end()
        finally:
            # First: a forked child of a loop that is closed looks no further.
            self._watches.close()
            self._loop.close()
            # Work that came too late even for a task. Nobody is to wait for it in vain.
            for done in list(self._waiting):
                done.cancel()

    def _begin(self, work: Callable[[], Coroutine[Any, Any, None]], done: Future[None]) -> None:
        if done.set_running_or_notify_cancel():
            task = self._loop.create_task(_do(work, done))
            # The loop itself holds no task that waits.
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _stop_once(self) -> None:
        # Another thread's stop may come when the loop does what is to be done at the end.
        if not self._is_ending:
            self._is_ending = True
            self._loop.stop()

    def _end(self) -> None:
        if self._ending is not None:
            self._loop.run_until_complete(self._ending())
        # What other threads wait for meanwhile: a task that is dropped would warn.
        while tasks := asyncio.all_tasks(self._loop):
            self._loop.run_until_complete(asyncio.wait(tasks))

    def _wake_now(self) -> None:
        self._wake(0)

    def _wake(self, deadline: int | None) -> None:
        self._asked = None
        if deadline is None or (self._armed is not None and self._armed <= deadline):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed = deadline
        self._timer = self._loop.call_at(deadline / 1e9, self._fire)

    def _fire(self) -> None:
        self._armed = None
        self._wake(self._turn())

    def _tick(self) -> None:
        # First, so that a watch that fails is called again all the same.
        self._loop.call_later(_WATCH_INTERVAL, self._tick)
        # An exception between a hint and its call would leave it standing for nothing.
        self._asked = None
        try:
            self._watches.poll()
            self._wake(self._turn())
        finally:
            # Else a turn that fails each time would keep a removed name from being noticed.
            self._watch()


async def _do(work: Callable[[], Coroutine[Any, Any, None]], done: Future[None]) -> None:
    try:
        await work()
    except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
        done.set_exception(error)
    else:
        done.set_result(None)
