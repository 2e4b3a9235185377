"""What a watcher was told, and what it is to be told next.

A change counts as told when its caller gets it: whoever is interrupted before that goes back to
where it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .differences import Change, ChangeKind, changes_since, differences

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from .session import Session

#: No version is greater.
_LARGEST: Final = (1 << 64) - 1


class Queue:
    """Changes, and how many of them were told."""

    __slots__ = ("changes", "told")

    def __init__(self, changes: list[Change]) -> None:
        self.changes = changes
        self.told = 0

    def __bool__(self) -> bool:
        return self.told < len(self.changes)


class Telling:
    """What is told to one watcher.

    Attributes:
        sessions: each session as it was told of last.
        queue: what is to be told; replaced as a whole, so that an interrupt leaves the old or the
            new one.
    """

    def __init__(self) -> None:
        self.sessions: dict[UUID, Session] = {}
        self.queue = Queue([])

    def begin(self, found: Mapping[UUID, Session | None], since: int | None) -> None:
        """Tell of what is there, as far as it was committed after ``since``; None is of nothing."""
        if since == 0:
            self.tell(found)
            return
        last = _LARGEST if since is None else since
        sessions = {key: one for key, one in found.items() if one is not None}
        self.sessions = {key: one for key, one in sessions.items() if one.version <= last}
        self.queue = Queue(changes_since(sessions.values(), last))

    def tell(self, found: Mapping[UUID, Session | None]) -> None:
        """Tell what became different of the sessions ``found``; what was to be told is told."""
        self.queue = Queue(differences(self.sessions, found))

    def tell_all_gone(self) -> None:
        """Tell of all sessions as removed."""
        self.tell(dict.fromkeys(self.sessions))

    def forget_told(self) -> None:
        """Let go of what was told already, and is kept for who has to be told again."""
        if self.queue.told:
            self.queue = Queue(self.queue.changes[self.queue.told :])

    def take(self) -> Change | None:
        """Return the next change, which counts as told then; None where there is none."""
        queue = self.queue
        if not queue:
            return None
        change = queue.changes[queue.told]
        key = change.session.session_id
        if change.kind is ChangeKind.REMOVED:
            self.sessions.pop(key, None)
        else:
            self.sessions[key] = change.session
        queue.told += 1
        return change

    def mark(self) -> tuple[Queue, int]:
        """Return what ``go_back`` goes back to."""
        queue = self.queue
        return queue, queue.told

    def go_back(self, mark: tuple[Queue, int]) -> None:
        """Tell again what was taken since a mark."""
        queue, told = mark
        if self.queue is queue:
            queue.told = told
        else:
            self.queue.told = 0
