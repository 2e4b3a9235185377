"""Splices: the payload of a next version, made from the bytes of the last one without decoding it.

Each returns the bytes that ``Payload.encode`` would, or None where it takes decoding.
"""

from __future__ import annotations

from typing import Final

import msgspec

from .session import MAPS_ALONE

_encode: Final = msgspec.msgpack.Encoder().encode

#: What a payload with a request's id begins with, an array of all fields, and what the id does.
_HAS_REQUEST: Final = b"\x98\xc4\x10"

#: msgpack's header of an array of five, the fields up to the deadline, and its None: an end has no
#: time of expiry before its error.
_TO_DEADLINE: Final = b"\x95"
_NONE: Final = b"\xc0"


def with_request(payload: bytes, request: bytes) -> bytes | None:
    """Return a payload's bytes with another request's id, the last field; None without one."""
    has_one = payload[:1] + payload[-18:-16] == _HAS_REQUEST
    return payload[:-16] + request if has_one else None


def with_end(payload: bytes, *, error: str | None, deadline: int) -> bytes | None:
    """Return a payload's bytes with how and when its session ended; None where it has more.

    Most have their maps alone.
    """
    if payload[:1] != MAPS_ALONE:
        return None
    return b"".join((_TO_DEADLINE, payload[1:], _NONE, _encode(error), _encode(deadline)))
