"""The writer's lock: a flock on the control, held by one descriptor that is never mapped.

The kernel's lock is the truth; a pid that the control names only explains. What the lock survives:

=====================================  =================================================
the holder is killed, or exits         free at once
the holder forks, then is killed       free: the child closed its copy right after the fork
another descriptor of it is closed     held: a flock belongs to the open file
the control is mapped, by anybody      held and freed as if it were not
the name is removed, or made anew      not a lock any more; who takes one looks at the name
=====================================  =================================================
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from . import forks, segment
from .control import ControlReader
from .errors import RegistryForbidden, RegistryNotFound, WriterAlreadyRunning
from .layout import CONTROL_SIZE, control_name

if TYPE_CHECKING:
    from collections.abc import Callable

#: How often a lock that is held is tried again while the caller waits for it, in seconds.
_POLL: Final = 0.01


class WriterLock:
    """The lock of one registry. It is held from its making until ``release``."""

    descriptor = -1

    def __init__(self, name: str, *, wait: float, open_control: Callable[[str], int]) -> None:
        """Take the lock.

        Args:
            name: the registry's name.
            wait: how long to wait for another holder, in seconds.
            open_control: ``make_control`` or ``find_control``.

        Raises:
            WriterAlreadyRunning: where another holder lives after that.
            Otherwise what ``open_control`` raises.
        """
        self.name = name
        # Before there is a descriptor: a thread that forks meanwhile must not leave one behind.
        forks.register(self)
        deadline = time.monotonic() + wait
        while not self._take(open_control):
            if time.monotonic() >= deadline:
                raise WriterAlreadyRunning(name, _holder(name))
            time.sleep(_POLL)

    def _take(self, open_control: Callable[[str], int]) -> bool:
        """Try once, or again where the name was made anew meanwhile; return whether it worked."""
        while True:
            self.descriptor = open_control(self.name)
            try:
                locked = segment.try_lock(self.descriptor)
                if locked and self._is_current():
                    return True
            except BaseException:
                self.release()
                raise
            self._close()
            if not locked:
                return False

    def _is_current(self) -> bool:
        """Return whether the control's name leads to the locked object, not to one made since."""
        # Without a descriptor, of which none may be left: a control just made would stay half-made.
        return segment.leads_to(control_name(self.name), self.descriptor)

    def is_named(self) -> bool:
        """Return whether the control still has its name; not where the lock was released."""
        try:
            return segment.is_named(self.descriptor)
        except OSError:
            # Another thread may have closed it a moment ago, and the caller still be reading.
            return False

    def release(self) -> None:
        """Let go. May be repeated."""
        if self.descriptor >= 0:
            # At once, even while a child that was just forked has not closed its copy yet.
            segment.unlock(self.descriptor)
        self._close()

    def __del__(self) -> None:
        # An interrupt may come between taking the lock and handing it out; nobody could release
        # it then, and no manager of this name start in this process any more.
        self._close()

    def _close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def after_fork_in_child(self) -> None:
        """Close the child's copy: a flock lives as long as any copy of its descriptor.

        It is not unlocked, which would take the lock from the parent.
        """
        self._close()


def make_control(name: str) -> int:
    """Return a descriptor of a registry's control, made empty where there is none.

    Raises:
        RegistryForbidden: where it is another user's.
    """
    while True:
        try:
            return segment.create(control_name(name))
        except FileExistsError:
            pass
        try:
            return _open(name)
        except FileNotFoundError:
            continue


def find_control(name: str) -> int:
    """Return a descriptor of a registry's control.

    Raises:
        RegistryNotFound: where there is none.
        RegistryForbidden: where it is another user's.
    """
    try:
        return _open(name)
    except FileNotFoundError:
        raise RegistryNotFound(name, 0) from None


def _open(name: str) -> int:
    try:
        descriptor = segment.open_writable(control_name(name))
    except PermissionError:
        raise RegistryForbidden(name, None) from None
    try:
        segment.check_owner(descriptor, name)
    except RegistryForbidden:
        os.close(descriptor)
        raise
    return descriptor


def _holder(name: str) -> int | None:
    """Return the pid that the control names as its writer, or None."""
    try:
        descriptor = segment.open_readable(control_name(name))
    except OSError:
        return None
    try:
        if segment.size_of(descriptor) < CONTROL_SIZE:
            return None
        control = ControlReader(segment.map_readable(descriptor, CONTROL_SIZE))
        # Of another format the word there may be anything.
        writer = control.writer() if control.is_ours() else None
        return None if writer is None else writer.pid
    finally:
        os.close(descriptor)
