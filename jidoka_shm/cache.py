"""The cache of look-ups: a session stays good exactly while its index word does.

So a hit costs one load of eight bytes, nothing is ever told that it is out of date, and what a
process keeps is bounded. A word that changed, to empty too, means "look again from home" and not
"gone": the session may have been removed and created again at another entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID

    from .seqlock import Found


class Cache:
    """Sessions that were looked up, each with entry and word; the longest kept go first.

    Threads share one without a lock: the worst that a race does is to forget a session.

    Attributes:
        size: how many it keeps, 1 or more, and for a moment one more a thread; what keeps none
            does not call ``keep``.
        kept: what it keeps, under the id's int. Readers look here themselves, since a call costs
            as much as the rest of a hit; ``words[entry] == word`` is what makes it one. It is
            the same dict for ever.
    """

    __slots__ = ("kept", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.kept: dict[int, Found] = {}

    def __len__(self) -> int:
        return len(self.kept)

    def keep(self, session_id: UUID, found: Found) -> None:
        """Remember a session."""
        kept = self.kept
        kept[session_id.int] = found
        if len(kept) > self.size:
            self._forget()

    def _forget(self) -> None:
        """Forget the older half."""
        # All at once, because finding a dict's first key over and over is linear in the keys
        # deleted before. Another thread may forget the same ones, or may have kept one more than
        # there was room for: counted from the end, or such ones would stay and add up.
        keys = list(self.kept)
        for key in keys[: max(len(keys) - self.size // 2 - 1, 0)]:
            self.kept.pop(key, None)
