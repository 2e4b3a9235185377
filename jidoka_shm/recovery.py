"""What a manager found when it took a registry over, returned and logged."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .writer import Dropped

_log = logging.getLogger("jidoka_shm")

#: Dropped records that one line of the log names; a million of them must not make it a book.
_NAMED: Final = 10


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a manager took over.

    Attributes:
        kept: sessions that are there again, whole.
        dropped: records that were damaged, and why.
        clean: whether the last writer closed; False after a crash.
    """

    kept: int
    dropped: tuple[Dropped, ...]
    clean: bool

    def log(self, name: str) -> None:
        """Say so in the log: a warning where anything was dropped."""
        _log.log(
            logging.WARNING if self.dropped else logging.INFO,
            "took over registry %r (%s): %d sessions kept, %d damaged records dropped%s",
            name,
            "closed" if self.clean else "its writer died",
            self.kept,
            len(self.dropped),
            f": {list(self.dropped[:_NAMED])}" if self.dropped else "",
        )
