"""What became different between two looks at the sessions of a registry.

A look sees the present and nothing else, so what happened to a session between two of them is told
as one change, and a session that came and went between them is not told of. Of each session the
changes come in this order::

    created  updated ...  terminated  removed

``updated`` comes any number of times, ``terminated`` at most once: a session that was terminated
and removed between two looks is ``removed`` at once. One that a look first sees terminated is
``created`` and ``terminated``; one whose id was given to a new session meanwhile is ``removed``
and ``created``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from .session import Session, SessionStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from uuid import UUID

_ENDED: Final = SessionStatus.TERMINATED


class ChangeKind(StrEnum):
    """What became different of a session."""

    CREATED = "created"
    UPDATED = "updated"
    TERMINATED = "terminated"
    REMOVED = "removed"


#: An attribute of an enumeration costs as much as four of a module.
_CREATED, _UPDATED, _TERMINATED, _REMOVED = ChangeKind


class Change(NamedTuple):
    """One difference between two looks at a registry.

    Attributes:
        kind: what became different.
        session: the session as the later look found it; a removed one as it was told of last.
    """

    kind: ChangeKind
    session: Session


def differences(told: Mapping[UUID, Session], found: Mapping[UUID, Session | None]) -> list[Change]:
    """Return what became different: first what was removed, then all else as it was committed.

    Args:
        told: each session as it was told of last.
        found: the sessions that may be different, as they are now; None where one is gone.
    """
    removed: list[Change] = []
    others: list[Change] = []
    for session_id, new in found.items():
        old = told.get(session_id)
        if old is not None and new is not None and not _is_another(old, new):
            if new.version > old.version:
                others.append(Change(_kind_of(old, new), new))
            continue
        if old is not None:
            removed.append(Change(_REMOVED, old))
        if new is not None:
            others.append(Change(_CREATED, new))
            if new.status is _ENDED:
                others.append(Change(_TERMINATED, new))
    return [*_in_order(removed), *_in_order(others)]


def changes_since(sessions: Iterable[Session], version: int) -> list[Change]:
    """Return what was committed after ``version`` to sessions of which nothing else is known.

    One that was never changed since it was created is ``created``, any other is ``updated``: when
    that one was created is not in the memory.
    """
    return _in_order(
        [Change(_latest(session), session) for session in sessions if session.version > version]
    )


def _is_another(old: Session, new: Session) -> bool:
    """Return whether an id was given to a new session after the old one was removed."""
    # No session comes back to life, and none is created twice.
    revived = old.status is _ENDED and new.status is not _ENDED
    again = revived or old._created != new._created  # noqa: SLF001 - when, in nanoseconds
    return again and new.version > old.version


def _kind_of(old: Session, new: Session) -> ChangeKind:
    ended = new.status is _ENDED and old.status is not _ENDED
    return _TERMINATED if ended else _UPDATED


def _latest(session: Session) -> ChangeKind:
    """Return what a session's last commit was, as far as the session tells."""
    if session.status is _ENDED:
        return _TERMINATED
    untouched = session._created == session._updated  # noqa: SLF001 - when, in nanoseconds
    return _CREATED if untouched else _UPDATED


def _in_order(changes: list[Change]) -> list[Change]:
    # Stable: the two changes of one version stay as they are.
    return sorted(changes, key=lambda change: change.session.version)
