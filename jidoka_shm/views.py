"""The views of a handle as a ``Mapping``: each iteration is one scan.

A Mapping's own views would look up each id again, and raise for one that ended meanwhile.
"""

from __future__ import annotations

from collections.abc import ItemsView, ValuesView
from typing import TYPE_CHECKING
from uuid import UUID

from .session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .reads import SessionReads


class SessionItems(ItemsView[UUID, Session]):
    """The pairs of id and session."""

    _mapping: SessionReads

    def __contains__(self, item: object) -> bool:
        pair = item if isinstance(item, tuple) and len(item) == 2 else (None, None)  # noqa: PLR2004 - a pair
        found = self._mapping.get(pair[0])
        return found is not None and found == pair[1]

    def __iter__(self) -> Iterator[tuple[UUID, Session]]:
        for session in self._mapping.values():
            yield session.session_id, session


class SessionValues(ValuesView[Session]):
    """The sessions."""

    _mapping: SessionReads

    def __contains__(self, value: object) -> bool:
        if isinstance(value, Session):
            return self._mapping.get(value.session_id) == value
        # It may call itself equal to anything.
        return value in list(self)

    def __iter__(self) -> Iterator[Session]:
        scanned = self._mapping._listing().scanned  # noqa: SLF001 - its view
        return iter(list(scanned.sessions.values()))
