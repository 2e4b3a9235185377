"""What a manager found when it took a registry over, returned and logged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .logs import log

if TYPE_CHECKING:
    from .survey import Dropped


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
        """Say so in the log."""
        state = "closed" if self.clean else "its writer died"
        extra = {"registry": name, "state": state, "sessions": self.kept}
        log.info(
            "took over registry %r (%s): %d sessions kept", name, state, self.kept, extra=extra
        )
        if self.dropped:
            log_dropped(name, self.dropped)


def log_dropped(name: str, dropped: tuple[Dropped, ...]) -> None:
    """Warn of records that were damaged and are gone, the first of them by name."""
    count, named = len(dropped), list(dropped[:_NAMED])
    extra = {"registry": name, "records": count}
    log.warning("registry %r: %d damaged records dropped: %s", name, count, named, extra=extra)
