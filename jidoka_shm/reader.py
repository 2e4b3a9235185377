"""``SessionReader``: look sessions up from any process, with no lock and no system call."""

from __future__ import annotations

import functools
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from . import forks
from .arguments import check_flag, check_seconds, check_whole
from .attachment import Attachment, ReadOptions, attach, attach_again, detached, try_again
from .errors import RegistryClosed
from .layout import check_name
from .reads import SessionReads

if TYPE_CHECKING:
    from typing import Self


class AttachedReads(SessionReads):
    """Reading by an attachment that is replaced when the registry goes on elsewhere."""

    #: What a read of one that is closed says.
    _ended = "this reader is closed"

    def __init__(self, name: str, options: ReadOptions, view: Attachment) -> None:
        """Take what was checked, and what to read by."""
        self._name = name
        self._options = options
        self._lock = threading.RLock()
        self._closed = False
        self._view = view
        forks.register(self)

    def _attach_again(self, old: Attachment) -> None:
        # Not under the lock: each thread waits for its own timeout and for nobody else's, and a
        # signal handler that reads in the middle of this waits for nothing that it interrupts.
        view = attach_again(self._name, old, self._options) if self._view is old else None
        if view is not None:
            self._go_on_with(view, old)

    def _attach_at_once(self, old: Attachment) -> None:
        opened = try_again(self._name, old, self._options) if self._view is old else None
        if isinstance(opened, Exception):
            raise opened
        if opened is not None:
            self._go_on_with(opened, old)

    def follow(self) -> Exception | None:
        """Attach to what bears the name now, without waiting; return why that cannot be yet.

        Raises:
            RegistryClosed: where nothing bears it any more.
        """
        view = self._view
        if view.is_named() and view.control.generation == view.identity[1]:
            return None
        opened = try_again(self._name, view, self._options)
        if not isinstance(opened, Attachment):
            return opened
        self._go_on_with(opened, view)
        return None

    def _go_on_with(self, view: Attachment, old: Attachment) -> None:
        with self._lock:
            if self._view is old:
                self._view = view
            if self._closed:
                # Closed by another thread meanwhile, which must stand.
                self._view = detached(RegistryClosed, self._name, self._ended)

    def close(self) -> None:
        """Let go of the registry. May be repeated; reads in other threads end by themselves."""
        self._closed = True
        self._view = detached(RegistryClosed, self._name, self._ended)

    def after_fork_in_child(self) -> None:
        """Replace the lock, which a thread that is not here may hold."""
        self._lock = threading.RLock()


class SessionReader(AttachedReads):
    """A registry, read-only, in any process and from any thread.

    Leaving ``with`` closes it. It can be pickled, as its name and options, and used after a fork.
    """

    def __init__(
        self,
        name: str,
        *,
        timeout: float = 1.0,
        cache_size: int = 65_536,
        verify: bool = False,
    ) -> None:
        """Attach to a registry; a reader never makes one.

        Args:
            name: the registry's name.
            timeout: how long to wait for it to be there, in seconds.
            cache_size: how many look-ups to keep; 0 keeps none.
            verify: compute the crcs of whatever is read, 150 ns or so a look-up. Damage to the
                memory is found so; a machine other than x86-64 always does.

        Raises:
            RegistryNotFound: where no registry is there in time.
            RegistryForbidden, FormatMismatch, CorruptRegistry: where it cannot be read.
            InvalidName: for a name that no registry can have.
        """
        checked = check_name(name)
        options = ReadOptions(
            timeout=check_seconds("timeout", timeout),
            cache_size=check_whole("cache_size", cache_size),
            verify=check_flag("verify", verify),
        )
        super().__init__(checked, options, attach(checked, options))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), self._name, **asdict(self._options)), ()

    def __repr__(self) -> str:
        return f"SessionReader({self._name!r}, {self._summary()})"
