"""Watching a registry: looks at the right moments, wherever the registry has gone meanwhile.

``Watch`` looks, tells one change after the other, and never waits; ``Changes`` sleeps between its
steps. A step where nothing was committed loads the change word once. Nothing is written to the
memory, so no watcher is in a writer's way.

An exception in the middle of a step, such as that of a signal handler, loses nothing: a look is
kept only once what is to be told of it is, and a change counts as told when its caller gets it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from . import forks
from .access import ATTACHMENTS
from .arguments import check_seconds, check_whole
from .differences import Change
from .errors import CorruptRegistry, RegistryClosed, RegistryNotFound
from .looks import TableLook
from .table import TableGone
from .telling import Telling

if TYPE_CHECKING:
    from typing import Self

    from .access import Access
    from .attachment import Attachment
    from .looks import Look

#: How often to ask what no load tells, in seconds: whether the registry still has its name, and
#: whether a commit that is under way for so long was made after all.
_ASK: Final = 1.0

#: How often at most to look for the next registry, in seconds: that takes system calls.
_SEEK: Final = 0.05

#: How long a registry may be half-way between two tables before it counts as gone, or damaged.
_PATIENCE: Final = 1.0

#: No change word: the first look is in any case.
_NONE: Final = -1


class _Place(NamedTuple):
    """Where a watch looks. One object, so that an interrupt leaves both parts or neither."""

    view: Attachment
    look: TableLook


class Watch:
    """What one watcher was told, and what it has to be told next."""

    def __init__(self, handle: Access, *, since: int | None, latency: float) -> None:
        """Look for the first time.

        Args:
            handle: what reads the registry.
            since: the version beyond which to tell of what is there; None to tell of nothing.
            latency: how often to look, in seconds.

        Raises:
            RegistryClosed: where there is no registry now.
            ValueError, TypeError: for an argument that cannot be.
        """
        self._latency = check_seconds("latency", latency)
        self._handle = handle
        #: What was told, and what is to be: for who takes it.
        self.telling = Telling()
        #: Where it looks; None once its handle is closed.
        self._place: _Place | None = None
        self._change, self._is_sure = _NONE, False
        self._due = self._ask_at = 0.0
        self._is_lost, self._unready_since = False, math.inf
        self._lock = threading.RLock()
        self._begin(None if since is None else check_whole("since", since))
        forks.register(self)

    def _begin(self, since: int | None) -> None:
        def begin(view: Attachment) -> tuple[_Place, Look]:
            place = _Place(view, TableLook(view.table))
            return place, place.look.look()

        self._place, look = self._handle._on_table(begin)  # noqa: SLF001 - a part of it
        self.telling.begin(look.found, since)
        self._keep(self._place.look, look)

    # ------------------------------------------------------------------ one step

    def step(self, deadline: float) -> Change | float | None:
        """Return the next change; else for how long to wait before the next step, in seconds.

        Args:
            deadline: when to give up, by the monotonic clock. One look is made in any case.

        Returns:
            None where the deadline is over, or the handle closed.

        Raises:
            FormatMismatch, RegistryForbidden, CorruptRegistry, ReadContended: as of a list. The
                next step tries again.
            ValueError: for a call out of the middle of another one, by a signal handler.
        """
        with self._alone():
            pause = self._poll(deadline)
            return self.telling.take() if pause is None else pause

    def poll(self, deadline: float) -> float | None:
        """Return for how long to wait; None where a step gives a change or the end.

        Otherwise as ``step``.
        """
        with self._alone():
            return self._poll(deadline)

    def _alone(self) -> threading.RLock:
        # The lock itself knows, and forgets however a call ends.
        if self._lock._is_owned():  # type: ignore[attr-defined] # noqa: SLF001 - as said
            msg = "this iterator is in the middle of a look: use one of its own in a signal handler"
            raise ValueError(msg)
        return self._lock

    def _poll(self, deadline: float) -> float | None:
        if not self._is_open() or self.telling.queue:
            return None
        now = time.monotonic()
        until = min(self._due, deadline)
        if now < until:
            return until - now
        # Before the look: one that fails is not to be made again at once, for ever.
        self._due = now + (max(self._latency, _SEEK) if self._is_lost else self._latency)
        self.telling.forget_told()
        self._look(now)
        # Another thread may have closed the handle meanwhile.
        if self.telling.queue or self._place is None or now >= deadline:
            return None
        # The look may have taken longer than the latency.
        return max(min(self._due, deadline) - time.monotonic(), 0.0)

    def _is_open(self) -> bool:
        """Return whether the handle is, and let go of its memory where not."""
        try:
            self._handle._view.table  # noqa: B018, SLF001 - that of a closed handle raises
        except RegistryClosed:
            self._place, self.telling = None, Telling()
            return False
        return True

    # ------------------------------------------------------------------ one look

    def _look(self, now: float) -> None:
        """Look, at the next table and at the next registry too where it comes to that."""
        for _ in range(ATTACHMENTS):
            if self._look_here(now):
                return

    def _look_here(self, now: float) -> bool:
        """Return False where there is another table to look at."""
        view = self._handle._view  # noqa: SLF001 - a part of it
        if not self._is_open() or self._place is None:
            return True
        if view is not self._place.view:
            return self._turn_to(view, self._place.view)
        asks = now >= self._ask_at
        if (asks and not self._ask(view, now)) or (self._is_lost and not asks):
            return self._follow(view, now)
        if self._is_sure and view.table.change[0] == self._change:
            return True
        try:
            look = self._place.look.look()
        except TableGone:
            return self._follow(view, now)
        # In this order: what is cut short after a line is done again, and finds the same.
        self.telling.tell(look.found)
        self._keep(self._place.look, look)
        self._is_lost = False
        return True

    def _keep(self, at: TableLook, look: Look) -> None:
        at.keep(look)
        # Odd, the change word stays as it is when the word is stored that is the commit. A second
        # look at the same odd word sees that, unless the writer was stopped in between.
        self._is_sure = look.change % 2 == 0 or look.change == self._change
        self._change = look.change

    def _ask(self, view: Attachment, now: float) -> bool:
        """Ask what no load tells; return whether the registry still has its name."""
        self._ask_at = now + _ASK
        self._is_sure = self._is_sure and self._change % 2 == 0
        return view.is_named()

    def _turn_to(self, view: Attachment, old: Attachment) -> bool:
        """Turn to another table, once the sessions of another registry were told to be removed."""
        self._is_lost, self._unready_since = False, math.inf
        if self.telling.sessions and view.identity[0] != old.identity[0]:
            self.telling.tell_all_gone()
            return True
        # The words of another table may be the same by chance, and after another registry's the
        # change word too.
        self._change = _NONE
        self._place = _Place(view, TableLook(view.table, self.telling.sessions))
        return False

    def _follow(self, view: Attachment, now: float) -> bool:
        """Attach to what follows a table; return True where nothing does as yet."""
        try:
            self._handle._attach_at_once(view)  # noqa: SLF001 - a part of it
        except RegistryClosed:
            self._lose(view)
        except (RegistryNotFound, CorruptRegistry) as error:
            # So it looks for a moment where a table grows, and where a registry is made or
            # destroyed.
            self._unready_since = min(self._unready_since, now)
            if now - self._unready_since >= _PATIENCE:
                if isinstance(error, CorruptRegistry):
                    raise
                self._lose(view)
        else:
            return False
        return True

    def _lose(self, view: Attachment) -> None:
        """Tell of all sessions as removed, since their registry is gone."""
        if not self._is_lost:
            self.telling.tell_all_gone()
            # Only one word may have been damaged, which its next writer mends.
            self._change = _NONE
            self._place = _Place(view, TableLook(view.table))
            self._is_lost = True

    # ------------------------------------------------------------------ beside the looks

    @property
    def name(self) -> str:
        """The registry's name."""
        return self._handle.name

    def __len__(self) -> int:
        """Return of how many sessions the watcher knows."""
        return len(self.telling.sessions)

    def __reduce__(self) -> NoReturn:
        msg = "what was told of changes cannot be pickled: call changes() in the other process"
        raise TypeError(msg)

    def after_fork_in_child(self) -> None:
        """Replace the lock, which a thread that is not here may hold."""
        self._lock = threading.RLock()


class Changes(Iterator[Change]):
    """An iterator of what becomes different in a registry.

    It ends after a time without a change, and when its handle is closed. Iterating again goes on
    from there. Threads that share one get each change once.
    """

    def __init__(self, watch: Watch, timeout: float | None) -> None:
        """Take what looks.

        Args:
            watch: that.
            timeout: end after so many seconds without a change; None is never.
        """
        self._watch = watch
        self._timeout = math.inf if timeout is None else check_seconds("timeout", timeout)
        self._is_over = False

    def __iter__(self) -> Self:
        self._is_over = False
        return self

    def __next__(self) -> Change:
        deadline = time.monotonic() + self._timeout
        mark = self._watch.telling.mark()
        try:
            while not self._is_over:
                found = self._watch.step(deadline)
                if isinstance(found, Change):
                    return found
                if found is None:
                    self._is_over = True
                else:
                    time.sleep(found)
        except BaseException:
            self._watch.telling.go_back(mark)
            raise
        raise StopIteration

    def __repr__(self) -> str:
        return f"Changes({self._watch.name!r}, {len(self._watch)} sessions known)"
