"""Arguments: each checked where it comes in, so that a bad one changes nothing and says why."""

from __future__ import annotations

from typing import Final

from .errors import shown

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
    raise _WrongTypeError(name, value, "a number of seconds")


def check_whole(name: str, value: object) -> int:
    """Return ``value`` as a whole number, 0 or more."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise _WrongTypeError(name, value, "a whole number")
    number = int.__index__(value)
    if number < 0:
        msg = f"{name} is {shown(number)}: it must be 0 or more"
        raise ValueError(msg)
    return number


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` as a bool; 1 and "no" are not."""
    if not isinstance(value, bool):
        raise _WrongTypeError(name, value, "True or False")
    return value


def check_text(name: str, value: object) -> str:
    """Return ``value`` as text that UTF-8 can carry."""
    if not isinstance(value, str):
        raise _WrongTypeError(name, value, "a str")
    # A plain one: the encoder refuses a str of another class, and only in the middle of a change.
    text = str.__str__(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        msg = f"{name} holds a lone surrogate: give text that UTF-8 can carry"
        raise ValueError(msg) from None
    return text


def check_pid(value: object) -> int:
    """Return ``value`` as a process id."""
    if not isinstance(value, int) or isinstance(value, bool):
        msg = "pid"
        raise _WrongTypeError(msg, value, "a process id")
    # A plain one: the text of an enum's member is its name, and /proc knows none of that name.
    pid = int.__index__(value)
    if not 0 < pid <= _LAST_PID:
        msg = f"pid is {shown(pid)}: it must be 1 to {_LAST_PID}"
        raise ValueError(msg)
    return pid


def check_mode(value: object) -> int:
    """Return ``value`` as a file mode that lets the owner read and write and none execute."""
    if not isinstance(value, int) or isinstance(value, bool):
        msg = "mode"
        raise _WrongTypeError(msg, value, "a file mode such as 0o600")
    mode = int.__index__(value)
    if mode not in _MODES:
        text = f"{mode:#o}"[:80]
        msg = f"mode is {text}: it must be 0o600, with 0o040 or 0o004 for others to read"
        raise ValueError(msg)
    return mode


class _WrongTypeError(TypeError):
    """An argument of a type that it cannot have."""

    def __init__(self, name: str, value: object, wanted: str) -> None:
        super().__init__(f"{name} is of type {type(value).__name__}: it must be {wanted}")
