"""The log: one line, not thousands, for what strangers can make happen as often as they like."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: The package's log. Without a program's own handler nothing of it is shown.
log: Final = logging.getLogger("jidoka_shm")
log.addHandler(logging.NullHandler())

#: How long the same warning is kept back after it was given, in seconds.
_INTERVAL: Final = 60.0


class Seldom:
    """Gives each warning once a minute at most, with how often it was kept back."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}
        self._kept_back: dict[str, int] = {}

    def warning(self, message: str, *facts: object) -> None:
        """Warn, unless the same message, whatever its facts, was given a moment ago.

        Args:
            message: a format of ``logging``; there are as many as the program has lines.
            facts: what goes into it.
        """
        now = self._clock()
        if now - self._last.get(message, -_INTERVAL) < _INTERVAL:
            self._kept_back[message] = self._kept_back.get(message, 0) + 1
            return
        self._last[message] = now
        more = self._kept_back.pop(message, 0)
        log.warning(f"{message} (and {more} times before)" if more else message, *facts)
