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
    """Gives each line of one registry once a minute at most, with how often it was kept back."""

    def __init__(self, registry: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the registry's name: what is said of one must not keep another's lines back."""
        self._registry = registry
        self._clock = clock
        self._last: dict[str, float] = {}
        self._kept_back: dict[str, int] = {}

    def warning(self, message: str, *facts: object, **fields: object) -> None:
        """Warn, unless the same message, whatever its facts, was given a moment ago.

        Args:
            message: a format of ``logging``, of which the registry's name is the first fact; there
                are as many as the program has lines.
            facts: what else goes into it.
            fields: attributes of the record, for programs that read the log.
        """
        more = self._count(message)
        if more is not None:
            text, extra = self._line(message, more, fields)
            log.warning(text, self._registry, *facts, extra=extra)

    def exception(self, message: str, *facts: object, **fields: object) -> None:
        """Give an error with the traceback of the exception that is handled; as ``warning``."""
        more = self._count(message)
        if more is not None:
            text, extra = self._line(message, more, fields)
            log.exception(text, self._registry, *facts, extra=extra)  # noqa: LOG004 - its caller is

    def _count(self, message: str) -> int | None:
        """Return how often a message was kept back; None where this one is, too."""
        now = self._clock()
        if now - self._last.get(message, -_INTERVAL) < _INTERVAL:
            self._kept_back[message] = self._kept_back.get(message, 0) + 1
            return None
        self._last[message] = now
        return self._kept_back.pop(message, 0)

    def _line(
        self, message: str, more: int, fields: dict[str, object]
    ) -> tuple[str, dict[str, object]]:
        text = f"{message} (and {more} times before)" if more else message
        return text, {"registry": self._registry, "kept_back": more, **fields}
