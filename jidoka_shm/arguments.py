"""Arguments: each checked where it comes in, so that a bad one changes nothing and says why."""

from __future__ import annotations

import operator
from typing import Final
from uuid import UUID

import msgspec

from .errors import InvalidSessionId, shown

#: What a manager takes where nothing else is said, and so does the command that runs one.
CAPACITY: Final = 16_384
MAX_CAPACITY: Final = 1_048_576
SLOT_SIZE: Final = 512
MAX_RECORD_SIZE: Final = 1 << 20
CLEANUP_DELAY: Final = 0.05
MODE: Final = 0o600
MAX_CLIENTS: Final = 512

#: Longest time that any argument may give: beyond it nanoseconds would not fit 63 bits.
_LONGEST: Final = 100 * 365.25 * 86_400

#: Largest pid that Linux gives out (PID_MAX_LIMIT in include/linux/threads.h).
_LAST_PID: Final = 4 * 1024 * 1024

#: Read and write for the owner, and nothing but reading for others.
_MODES: Final = frozenset({0o600, 0o604, 0o640, 0o644})


def check_seconds(name: str, value: object) -> float:
    """Return ``value`` as a time in seconds, 0 or more."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if 0 <= value <= _LONGEST:
            return float(value)
        msg = f"{name} is {shown(value)}: it must be 0 to {_LONGEST:.0f} seconds"
        raise ValueError(msg)
    raise _wrong_type(name, value, "a number of seconds")


def check_whole(name: str, value: object) -> int:
    """Return ``value`` as a whole number, 0 or more."""
    number = _as_int(name, value, "a whole number")
    if number < 0:
        msg = f"{name} is {shown(number)}: it must be 0 or more"
        raise ValueError(msg)
    return number


def check_word(name: str, value: object) -> int:
    """Return ``value`` as a whole number of 64 bits, 0 or more."""
    number = check_whole(name, value)
    if number >= 1 << 64:
        msg = f"{name} is {shown(number)}: it must be of 64 bits"
        raise ValueError(msg)
    return number


def check_version(value: object) -> int:
    """Return ``value`` as a session's version, 1 or more and of 64 bits."""
    version = _as_int("version", value, "a whole number")
    if not 0 < version < 1 << 64:
        msg = f"version is {shown(version)}: it must be 1 or more, and of 64 bits"
        raise ValueError(msg)
    return version


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` as a bool; 1 and "no" are not."""
    if not isinstance(value, bool):
        raise _wrong_type(name, value, "True or False")
    return value


def check_text(name: str, value: object) -> str:
    """Return ``value`` as text that UTF-8 can carry."""
    if not isinstance(value, str):
        raise _wrong_type(name, value, "a str")
    try:
        encoded = str.encode(value)
    except UnicodeEncodeError:
        msg = f"{name} holds a lone surrogate: give text that UTF-8 can carry"
        raise ValueError(msg) from None
    # Of a caller's own class of str too, which msgpack would not encode.
    return value if type(value) is str else encoded.decode()


def check_pid(value: object) -> int:
    """Return ``value`` as a process id."""
    number = _as_int("pid", value, "a process id")
    if not 0 < number <= _LAST_PID:
        msg = f"pid is {shown(number)}: it must be 1 to {_LAST_PID}"
        raise ValueError(msg)
    return number


def check_mode(value: object) -> int:
    """Return ``value`` as a file mode that lets the owner read and write and none execute."""
    number = _as_int("mode", value, "a file mode such as 0o600")
    if number not in _MODES:
        given = f"{number:#o}" if abs(number) < 1 << 16 else shown(number)
        msg = f"mode is {given}: it must be 0o600, with 0o040 or 0o004 for others to read"
        raise ValueError(msg)
    return number


#: What may stand before an id's text, in letters of either case.
_PREFIX: Final = "session_"


def parse_session_id(value: object) -> UUID:
    """Return the id that ``value`` is or spells.

    Raises:
        InvalidSessionId: where it is neither.
    """
    if isinstance(value, UUID):
        return value if type(value) is UUID else UUID(int=value.int)
    if isinstance(value, str):
        # A plain one: what a subclass says of its parts may be anything.
        text = str.__str__(value)
        size = len(_PREFIX)
        if text[:size].lower() == _PREFIX:
            text = text[size:]
        try:
            # 32 hexadecimal digits, or these with the four hyphens where they belong, and nothing
            # else; in a third of the time of UUID(), which takes braces and hyphens anywhere.
            return msgspec.convert(text, UUID)
        except (msgspec.ValidationError, UnicodeError):
            pass
    raise InvalidSessionId(shown(value))


def _as_int(name: str, value: object, wanted: str) -> int:
    """Return ``value`` as an int, numpy's ints too; a bool is none."""
    if isinstance(value, bool):
        raise _wrong_type(name, value, wanted)
    try:
        return operator.index(value)  # type: ignore[arg-type]  # what it refuses is refused here
    except TypeError:
        raise _wrong_type(name, value, wanted) from None


def _wrong_type(name: str, value: object, wanted: str) -> TypeError:
    return TypeError(f"{name} is of type {type(value).__name__}: it must be {wanted}")
