"""The thread of a supervisor: there as long as it has children, and asleep while they run."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Keeper:
    """Calls ``look`` when a child has ended, when it is rung for, and now and then."""

    def __init__(self, name: str, look: Callable[[], tuple[Sequence[int | None], float]]) -> None:
        """Begin with no thread.

        Args:
            name: the thread's name.
            look: does what is due, and returns the descriptors to wait for and for how many
                seconds at most. The thread ends where there are none.
        """
        self._name = name
        self._look = look
        # A signal handler may ring in the middle of a ring.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._runs = self._rung = False
        self._bell = -1

    def begin(self) -> None:
        """Have the thread look; from now on there is something to wait for."""
        with self._lock:
            self.ring()
            if not self._runs:
                self._start()

    def ring(self) -> None:
        """Have the thread look, where there is one."""
        with self._lock:
            self._rung = True
            if self._runs:
                os.eventfd_write(self._bell, 1)

    def join(self) -> None:
        """Wait for the thread's end; it ends when ``look`` finds nothing to wait for."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def close_in_child(self) -> None:
        """Let go of what a forked child has of its parent's."""
        self._close_bell()

    def _start(self) -> None:
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
        except BaseException:
            self._close_bell()
            raise
        self._thread, self._runs = thread, True

    def _run(self) -> None:
        while True:
            self._rung = False
            descriptors, seconds = self._look()
            if descriptors:
                self._wait(descriptors, seconds)
            elif self._is_done():
                return

    def _is_done(self) -> bool:
        with self._lock:
            # Rung for since it looked: whoever rang relies on it.
            if not self._rung:
                self._runs = False
                self._close_bell()
            return not self._rung

    def _wait(self, descriptors: Sequence[int | None], seconds: float) -> None:
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        for descriptor in descriptors:
            if descriptor is not None:
                # Another thread may close it at any moment. Then this one is rung for, and what
                # it hears of another file under that number makes it look, and no more.
                poll.register(descriptor, select.POLLIN)
        poll.poll(seconds * 1000)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def _close_bell(self) -> None:
        # Taken out first: a number that is closed may be another's by the time of a fork.
        bell, self._bell = self._bell, -1
        if bell >= 0:
            os.close(bell)
