"""Deadlines: which session is due next, on one heap, with no clock of its own."""

from __future__ import annotations

import heapq
from typing import Final

#: A heap may hold this many entries that were replaced or dropped before it is rebuilt, on top
#: of as many as there are deadlines; so a heartbeat that moves one deadline for ever stays small.
_SLACK: Final = 64


class Deadlines:
    """When each key is due, in any unit that only grows."""

    def __init__(self) -> None:
        self._due: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: int, when: int | None) -> None:
        """Make ``key`` due at ``when``, instead of any earlier answer; None is never."""
        if when is None:
            self._due.pop(key, None)
        elif self._due.get(key) != when:
            self._due[key] = when
            heapq.heappush(self._heap, (when, key))
        if len(self._heap) > 2 * len(self._due) + _SLACK:
            self._heap = [(when, key) for key, when in self._due.items()]
            heapq.heapify(self._heap)

    def next(self) -> int | None:
        """Return the earliest deadline, or None."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: int, limit: int) -> list[int]:
        """Return up to ``limit`` keys whose time has come, the earliest first, and keep them.

        A key stays due until it is set to another time or to None.
        """
        kept: list[tuple[int, int]] = []
        while len(kept) < limit and (when := self.next()) is not None and when <= now:
            item = heapq.heappop(self._heap)
            # A key moved away and back stands there twice, one right after the other; answered
            # twice, a session would be terminated and removed in one go.
            if not kept or item != kept[-1]:
                kept.append(item)
        for item in kept:
            heapq.heappush(self._heap, item)
        return [key for _, key in kept]
