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

_TERMINATED: Final = SessionStatus.TERMINATED


class ChangeKind(StrEnum):
    """What became different of a session."""

    CREATED = "created"
    UPDATED = "updated"
    TERMINATED = "terminated"
    REMOVED = "removed"


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
    changes: list[Change] = []
    for session_id, session in found.items():
        changes += _between(told.get(session_id), session)
    return _in_order(changes)


def changes_since(sessions: Iterable[Session], version: int) -> list[Change]:
    """Return what was committed after ``version`` to sessions of which nothing else is known.

    One that was never changed since it was created is ``created``, any other is ``updated``: when
    that one was created is not in the memory.
    """
    return _in_order(
        [Change(_latest(session), session) for session in sessions if session.version > version]
    )


def _between(old: Session | None, new: Session | None) -> list[Change]:
    if new is None:
        return [] if old is None else [Change(ChangeKind.REMOVED, old)]
    if old is None:
        created = [Change(ChangeKind.CREATED, new)]
        return [*created, Change(ChangeKind.TERMINATED, new)] if _has_ended(new) else created
    if new.version <= old.version:
        return []
    if _is_another(old, new):
        return [Change(ChangeKind.REMOVED, old), *_between(None, new)]
    ended = _has_ended(new) and not _has_ended(old)
    return [Change(ChangeKind.TERMINATED if ended else ChangeKind.UPDATED, new)]


def _has_ended(session: Session) -> bool:
    return session.status is _TERMINATED


def _is_another(old: Session, new: Session) -> bool:
    """Return whether an id was given to a new session after the old one was removed."""
    # No session comes back to life, and none is created twice.
    revived = _has_ended(old) and not _has_ended(new)
    return revived or old._created != new._created  # noqa: SLF001 - when, in nanoseconds


def _latest(session: Session) -> ChangeKind:
    """Return what a session's last commit was, as far as the session tells."""
    if _has_ended(session):
        return ChangeKind.TERMINATED
    untouched = session._created == session._updated  # noqa: SLF001 - when, in nanoseconds
    return ChangeKind.CREATED if untouched else ChangeKind.UPDATED


def _in_order(changes: list[Change]) -> list[Change]:
    # Stable: the two changes of one version stay as they are.
    return sorted(
        changes, key=lambda one: (one.kind is not ChangeKind.REMOVED, one.session.version)
    )
