from __future__ import annotations

import os
from typing import TYPE_CHECKING

from host import exit_code, forked, in_child, run_script

from jidoka_shm import forks

if TYPE_CHECKING:
    from collections.abc import Callable


class Item:
    """Counts in how many forked children of its line it was told so."""

    def __init__(self, do: Callable[[], object] = int) -> None:
        self.told = 0
        self._do = do

    def after_fork_in_child(self) -> None:
        self.told += 1
        self._do()


def test_a_child_is_told_before_any_of_its_code_and_the_parent_is_not() -> None:
    item = Item()
    forks.register(item)

    def in_the_child() -> None:
        assert item.told == 1

    assert in_child(in_the_child) == 0
    assert item.told == 0


def test_every_item_is_told_once_each_time() -> None:
    items = [Item() for _ in range(5)]
    for item in [*items, items[0]]:
        forks.register(item)

    def in_the_child() -> None:
        assert [item.told for item in items] == [1] * 5
        assert in_child(in_the_grandchild) == 0

    def in_the_grandchild() -> None:
        assert [item.told for item in items] == [2] * 5

    assert in_child(in_the_child) == 0
    assert in_child(in_the_child) == 0


def test_an_item_of_a_child_is_told_in_its_own_children() -> None:
    def in_the_child() -> None:
        item = Item()
        forks.register(item)
        assert in_child(lambda: os._exit(item.told)) == 1
        assert item.told == 0

    assert in_child(in_the_child) == 0


def test_registering_keeps_nothing_alive() -> None:
    end, begin = os.pipe()
    item = Item(do=lambda: os.write(begin, b"told"))
    forks.register(item)
    del item
    pid = forked(lambda: None)
    os.close(begin)
    assert os.read(end, 10) == b""
    os.close(end)
    assert exit_code(pid) == 0


def test_items_may_be_registered_while_they_are_told() -> None:
    kept: list[Item] = []

    def register_another() -> None:
        kept.append(Item())
        forks.register(kept[-1])

    items = [Item(do=register_another) for _ in range(3)]
    for item in items:
        forks.register(item)

    def in_the_child() -> None:
        assert [item.told for item in items] == [1] * 3
        assert len(kept) == 3

    assert in_child(in_the_child) == 0


def test_one_item_that_fails_keeps_no_other_from_being_told() -> None:
    code = """
        import os, sys
        from jidoka_shm import forks

        class Item:
            def __init__(self, fails):
                self.fails = fails

            def after_fork_in_child(self):
                told.append(self)
                if self.fails:
                    raise OSError

        told = []
        items = [Item(number % 2 == 0) for number in range(8)]
        for item in items:
            forks.register(item)
        # However what a hook raises is reported.
        sys.unraisablehook = sys.excepthook = lambda *_: None
        if not (pid := os.fork()):
            os._exit(len(told))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    assert run_script(code) == "8\n"
