"""What the service logs, a line each on standard error: text for people, or JSON for programs."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any, Final

from jidoka_shm.errors import shown

from .output import escape

LEVELS: Final = ("debug", "info", "warning", "error")

#: What a record has of its own; all else are fields that its caller gave.
_OWN: Final = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})


def begin(level: str, *, as_json: bool) -> None:
    """Send what this process logs to standard error.

    Args:
        level: the least level that is written, one of ``LEVELS``.
        as_json: one JSON object a line.
    """
    handler = Lines(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else TextLines())
    # The root's, so that what asyncio has to say comes in the same form.
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(capture=True)


class Lines(logging.StreamHandler[Any]):
    """Writes lines until nobody reads them any more."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Write nowhere from now on, where the other end of a pipe is closed."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)
            return
        # The line is in the stream's buffer still: Python would fail to write it once more at its
        # end, and make that the status of a service that ended well.
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123 - a name of os's own
            os.dup2(nothing.fileno(), self.stream.fileno(), inheritable=False)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")


class TextLines(logging.Formatter):
    """Time, level and message; behind an exception's line its traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """Return the line."""
        return f"{_time(record)} {record.levelname} {escape(record.message)}"


class JsonLines(logging.Formatter):
    """An object with time, level, message, logger, pid and the fields that the caller gave."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object, in ASCII and without a line end."""
        entry: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "logger": record.name,
            "pid": record.process,
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        fields = {key: each for key, each in vars(record).items() if key not in _OWN}
        return json.dumps(fields | entry if fields else entry, default=shown)
