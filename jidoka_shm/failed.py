"""Errors as replies: what a ``Failed`` is made of, and which error a client makes of it."""

from __future__ import annotations

from typing import Any, Final, cast
from uuid import UUID

from . import errors
from .errors import JidokaError
from .protocol import Failed, ProtocolError

#: Letters of a text that goes to the other side about what a stranger sent.
_LONGEST_TEXT: Final = 4096

#: What bad arguments raise besides the package's own errors.
_PLAIN: Final[dict[str, type[Exception]]] = {"ValueError": ValueError, "TypeError": TypeError}


def pack_error(error: Exception) -> Failed:
    """Return the reply that an error becomes."""
    if isinstance(error, JidokaError):
        return Failed(type(error).__name__, [_packed(fact) for fact in error.args])
    # Of a class of its own too, as UnicodeError is of ValueError's; and whatever it is made of.
    name = next((name for name, kind in _PLAIN.items() if isinstance(error, kind)), "ValueError")
    return Failed(name, [_packed(str(error))])


def unpack_error(failed: Failed) -> Exception:
    """Return the error that a reply stands for.

    Raises:
        ProtocolError: where it stands for none.
    """
    kind = getattr(errors, failed.error, None) or _PLAIN.get(failed.error)
    if not isinstance(kind, type) or not issubclass(kind, (JidokaError, *_PLAIN.values())):
        msg = f"no error of this protocol: {failed.error[:80]!r}"
        raise ProtocolError(msg)
    facts = [_fact(fact) for fact in failed.facts]
    try:
        error: Exception = cast("Any", kind)(*facts)
    except TypeError:
        msg = f"{failed.error} is not made of {len(facts)} facts"
        raise ProtocolError(msg) from None
    return error


def _packed(fact: object) -> object:
    """Return a fact of an error as a reply has it."""
    if isinstance(fact, str):
        # The path to a bad value quotes the keys on it, which a stranger makes as long as a frame.
        return fact[:_LONGEST_TEXT]
    return fact.bytes if isinstance(fact, UUID) else fact


def _fact(fact: object) -> object:
    """Return a fact as the error has it: an id as such, a list as a tuple."""
    if isinstance(fact, bytes) and len(fact) == 16:  # noqa: PLR2004 - an id's bytes
        return UUID(bytes=fact)
    return tuple(fact) if isinstance(fact, list) else fact
