"""What a forked child must let go of: one hook for the module, whatever is open."""

from __future__ import annotations

import os
import sys
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """An object that a forked child inherits and must not use as its parent does."""

    def after_fork_in_child(self) -> None:
        """Let go of what belongs to the parent; called in the child, before any of its code."""


_aware: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def register(item: ForkAware) -> None:
    """Have ``item.after_fork_in_child()`` called in every child forked while it lives."""
    _aware.add(item)


def _in_child() -> None:
    for item in list(_aware):
        try:
            item.after_fork_in_child()
        except Exception:  # noqa: BLE001 - the others must still let go of their locks
            sys.excepthook(*sys.exc_info())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
