"""Watches: which owner processes are alive, learnt from one pidfd a process.

A pidfd becomes readable when its process ends, however it ends, and whoever its parent is. Where
none can be had, or half of the descriptors are in use, the process is looked at now and then
instead. Only the loop's own thread calls this, but for ``close``.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, Final

from . import descriptors, processes
from .logs import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from .control import Identity
    from .owners import Owners

#: Owners that one call of ``follow`` begins to watch, so that other callers get their turn.
_BATCH: Final = 64

#: Processes without a pidfd that one call of ``poll`` looks at, a file of /proc each.
_LOOKED_AT: Final = 512

#: Processes that one line of the log names.
_NAMED: Final = 3

#: Asks how a child ended and leaves it to be waited for by the code that made it.
_ASK: Final = os.WEXITED | os.WNOHANG | os.WNOWAIT


class Watches:
    """The processes that are watched, and those that have ended.

    Attributes:
        ended: what is known of the end of each process that was watched, until it is taken out.
    """

    def __init__(self, registry: str) -> None:
        """Watch nobody yet.

        Args:
            registry: the registry's name, for the log.
        """
        self._registry = registry
        self._descriptors: dict[Identity, int] = {}
        #: Those that were not looked at for the longest first.
        self._polled: OrderedDict[Identity, None] = OrderedDict()
        self._notify: Callable[[], None] = _nobody
        self.ended: dict[Identity, str] = {}

    def notify(self, call: Callable[[], None]) -> None:
        """Have ``call()`` made in the loop's thread whenever ``ended`` has got another entry."""
        self._notify = call

    def follow(self, owners: Owners) -> None:
        """Watch those that have arrived, some at a time, and no longer those that departed."""
        for owner in list(owners.departed):
            self._drop(owner)
            owners.departed.discard(owner)
        # Each is taken out when it is watched, so that an exception between two loses none.
        for owner in list(islice(owners.arrived, _BATCH)):
            self._watch(owner)
            owners.arrived.discard(owner)

    def poll(self) -> None:
        """Look at processes for which there is no pidfd: at all, or at some where they are many."""
        for owner in list(islice(self._polled, _LOOKED_AT)):
            self._polled.move_to_end(owner)
            if is_dead(owner):
                self._end(owner, "ended")

    def close(self) -> None:
        """Let go of all pidfds, of a loop that runs no more or is a forked child's parent's.

        By closing descriptors alone: a child shares the parent's epoll, and unregistering one
        there would unregister the parent's.
        """
        self._polled.clear()
        while self._descriptors:
            # Taken out first: a number that is closed may be another's by the time of a fork.
            os.close(self._descriptors.popitem()[1])

    def _watch(self, owner: Identity) -> None:
        if owner in self._descriptors or owner in self._polled or owner in self.ended:
            return
        if not _is_known(owner):
            return
        try:
            watched = self._listen(owner)
        except BaseException:
            # Else it would pass for one that is watched.
            self._drop(owner)
            raise
        extra = {"registry": self._registry, "owner_pid": owner.pid, "by_pidfd": watched}
        log.debug("registry %r: watching process %d", self._registry, owner.pid, extra=extra)
        if not watched:
            self._polled[owner] = None
            if is_dead(owner):
                self._end(owner, "is gone")

    def _listen(self, owner: Identity) -> bool:
        """Watch a process by a pidfd and return whether that can be done."""
        try:
            self._descriptors[owner] = descriptor = os.pidfd_open(owner.pid)
            # Its number counts all that the process has opened. The other half is for clients, and
            # for the program that this is part of.
            is_few = descriptor < descriptors.room() // 2
            # The pid may have been another process's when the descriptor was opened. One that
            # has ended and was not waited for still has it, and can say how it ended.
            if is_few and processes.started_at(owner.pid) == owner.start:
                loop = asyncio.get_running_loop()
                loop.add_reader(descriptor, self._on_readable, owner, descriptor)
                return True
        except (OSError, OverflowError):
            # ESRCH: it is gone. ENOSYS, EPERM: an old kernel or a sandbox. EMFILE, ENFILE: no
            # descriptor is left. EINVAL, ENOENT: the pid is a thread's. Beyond 31 bits: nobody's.
            pass
        self._drop(owner)
        return False

    def _on_readable(self, owner: Identity, descriptor: int) -> None:
        self._end(owner, _manner(descriptor))

    def _end(self, owner: Identity, manner: str) -> None:
        # In this order: a call that an exception cuts short is made again.
        self.ended.setdefault(owner, describe(owner, manner))
        self._notify()
        self._drop(owner)

    def _drop(self, owner: Identity) -> None:
        """Watch a process no longer."""
        self._polled.pop(owner, None)
        descriptor = self._descriptors.get(owner)
        if descriptor is not None:
            asyncio.get_running_loop().remove_reader(descriptor)
            # As in close; and on one line, so that an exception before it leaves all as it was.
            os.close(self._descriptors.pop(owner))


def is_dead(owner: Identity) -> bool:
    """Return whether a process is certain to live no more.

    Nothing is known of one in another pid namespace, nor of one whose start time nobody noted.
    """
    return _is_known(owner) and processes.is_alive(owner) is False


def describe(owner: Identity, manner: str) -> str:
    """Return the error of a session whose owner ended in some manner."""
    return processes.describe_owner(owner.pid, manner)


def log_ends(registry: str, errors: dict[Identity, str], sessions: int) -> None:
    """Say in one line which owner processes ended, and how: the first of them by name.

    Args:
        registry: the registry's name.
        errors: the error of each one's sessions.
        sessions: how many sessions they had, all together.
    """
    more = f" and {len(errors) - _NAMED} more" if len(errors) > _NAMED else ""
    named = ", ".join(islice(errors.values(), _NAMED)) + more
    pids = [owner.pid for owner in islice(errors, _NAMED)]
    extra = {"registry": registry, "owners": len(errors), "owner_pids": pids, "sessions": sessions}
    if all(error.endswith(processes.WELL) for error in errors.values()):
        log.info("registry %r: %s; sessions terminated: %d", registry, named, sessions, extra=extra)
    else:
        text = "registry %r: %s; sessions terminated: %d"
        log.warning(text, registry, named, sessions, extra=extra)


def _is_known(owner: Identity) -> bool:
    return bool(owner.start) and owner.namespace == processes.own_namespace() != 0


def _manner(descriptor: int) -> str:
    """Return how the process of a pidfd ended, as far as this process may know."""
    try:
        found = os.waitid(os.P_PIDFD, descriptor, _ASK)
    except ChildProcessError:
        # Somebody else's child, or it has been waited for.
        found = None
    return processes.describe_end(found)


def _nobody() -> None:
    """Stand for whoever is not there yet."""
