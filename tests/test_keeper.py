"""``Keeper``: a thread that is there as long as there is something to wait for."""

from __future__ import annotations

import os
import threading

import pytest
from host import in_child
from support import wait_until

from jidoka_shm.keeper import Keeper


class Watched:
    """Something to wait for, until it is taken away."""

    def __init__(self) -> None:
        self.end, self._start = os.pipe()
        self.looks = 0
        self.is_there = True
        self.keeper = Keeper("a keeper", self._look)

    def _look(self) -> tuple[list[int | None], float]:
        self.looks += 1
        return ([self.end] if self.is_there else []), 1000.0

    def say(self) -> None:
        """Make the descriptor readable."""
        os.write(self._start, b"1")

    def stop(self) -> None:
        """Have the thread end, and wait for that."""
        self.is_there = False
        self.keeper.ring()
        self.keeper.join()
        os.close(self.end)
        os.close(self._start)


def _is_there() -> bool:
    return any(thread.name == "a keeper" for thread in threading.enumerate())


def test_a_thread_is_there_while_there_is_something_to_wait_for() -> None:
    watched = Watched()
    watched.keeper.ring()
    watched.keeper.join()
    assert (_is_there(), watched.looks) == (False, 0)
    watched.keeper.begin()
    wait_until(lambda: watched.looks == 1)
    watched.keeper.ring()
    wait_until(lambda: watched.looks >= 2)
    watched.is_there = False
    watched.say()
    wait_until(lambda: not _is_there())
    watched.is_there = True
    watched.keeper.begin()
    assert _is_there()
    watched.stop()
    assert not _is_there()


def test_who_rings_as_it_ends_is_not_left_alone() -> None:
    watched = Watched()
    watched.is_there = False
    done = watched.keeper._is_done

    def come_late() -> bool:
        if watched.looks == 1:
            # Another thread's, between the look that found nothing and the end.
            watched.is_there = True
            watched.keeper.begin()
        return done()

    watched.keeper._is_done = come_late  # type: ignore[method-assign]
    watched.keeper.begin()
    wait_until(lambda: watched.looks >= 2)
    assert _is_there()
    watched.stop()


def test_a_thread_that_cannot_be_started_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()

    def refuse(_: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            watched.keeper.begin()
    watched.keeper.begin()
    watched.stop()


def test_a_forked_child_lets_go_of_the_bell() -> None:
    watched = Watched()
    watched.keeper.begin()
    bell = watched.keeper._bell

    def look() -> None:
        watched.keeper.close_in_child()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(bell)

    assert in_child(look) == 0
    watched.stop()
