"""What the service logs, a line each on standard error: text for people, or JSON for programs."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Final, TextIO

from jidoka_shm.errors import shown
from jidoka_shm.logs import log

from .output import escape

LEVELS: Final = ("debug", "info", "warning", "error")

#: What it means that nobody reads any more: a pipe, or a terminal, without its other end.
_NOBODY: Final = frozenset({errno.EPIPE, errno.EIO})

#: What a record has of its own; all else are fields that its caller gave.
_OWN: Final = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})


def begin(level: str, *, as_json: bool) -> None:
    """Send what this process logs to standard error.

    Args:
        level: the least level that is written, one of ``LEVELS``.
        as_json: one JSON object a line.
    """
    handler = logging.NullHandler() if sys.stderr is None else Lines(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else TextLines())
    # The root's, so that what asyncio has to say comes in the same form.
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(capture=True)


class Lines(logging.Handler):
    """Writes lines until nobody reads them any more, and drops those for which there is no room.

    They are not buffered: a line that could not be written must not come later, between others, nor
    at the process's end, where it would change the status of a service that ended well.
    """

    def __init__(self, stream: TextIO) -> None:
        """Write to the descriptor of ``stream``, in its encoding."""
        super().__init__()
        self._descriptor = stream.fileno()
        self._encoding = stream.encoding
        self._lost = 0
        self._why: OSError | None = None
        self._is_cut = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; before it, how many were lost."""
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001 - a message that does not fit its facts is no end
            self.handleError(record)
            return
        try:
            if self._lost:
                self._write(self.format(_loss(self._lost, self._why)))
                self._lost = 0
            self._write(text)
        except OSError as error:
            if error.errno in _NOBODY:
                self._write_nowhere()
            else:
                self._lost, self._why = self._lost + 1, error

    def _write(self, text: str) -> None:
        """Write all of a line, or raise; what is there of one that was cut gets its end first."""
        data = f"{text}\n".encode(self._encoding, "backslashreplace")
        if self._is_cut:
            data = b"\n" + data
        while data:
            done = os.write(self._descriptor, data)
            self._is_cut = not data[:done].endswith(b"\n")
            data = data[done:]

    def _write_nowhere(self) -> None:
        """Lead standard error nowhere: what else this process writes to it must not fail either."""
        # Where no descriptor is left for it, the next line tries again: a log never fails.
        with (
            contextlib.suppress(OSError),
            open(os.devnull, "wb") as nothing,  # noqa: PTH123 - a name of os's own
        ):
            os.dup2(nothing.fileno(), self._descriptor, inheritable=False)


def _loss(count: int, why: OSError | None) -> logging.LogRecord:
    """Return what is logged of lines that were lost, whatever the level."""
    text, facts = "%d lines of this log could not be written: %s", (count, why)
    return log.makeRecord(log.name, logging.WARNING, __file__, 0, text, facts, None)


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
        known = _OWN | entry.keys()
        fields = {key: each for key, each in vars(record).items() if key not in known}
        return json.dumps(entry | fields, default=shown)
