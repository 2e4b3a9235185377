"""What a session's two maps may hold, and their encoding.

Maps hold what JSON holds: str keys at every level, and str, 64-bit int, finite float, bool, None,
list and dict values, at most ``MAX_DEPTH`` containers deep. What comes back equals what went in;
anything else is an error that names the path to it. The test for that is cheap because it asks
only whether a copy comes back equal; the path is looked for when it does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw

from .errors import InvalidMetadata, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

Map = dict[str, Any]

MAX_DEPTH: Final = 32

_encode: Final = msgspec.msgpack.Encoder().encode
_to_json: Final = msgspec.json.Encoder().encode
_from_json: Final = msgspec.json.Decoder().decode
_EMPTY_MAP: Final = Raw(_encode({}))

#: What the encoders raise for what they cannot take; a stranger's ``__eq__`` is not among them.
_REFUSALS: Final = (
    msgspec.MsgspecError,
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,
)


def encode_map(value: object, name: str) -> Raw:
    """Return ``value`` as msgpack, once it is known to hold only what JSON holds.

    Args:
        value: the map, or None for an empty one.
        name: what to call it in an error.

    Raises:
        InvalidMetadata: naming the path of the first value that would not come back equal.
    """
    if value is None:
        return _EMPTY_MAP
    if not isinstance(value, dict):
        raise InvalidMetadata(name, f"is {_describe(value)}, not a dict")
    packed = _pack(value, MAX_DEPTH)
    if packed is None:
        raise _fault(value, name, MAX_DEPTH)
    return Raw(packed)


def encode_maps(metadata: object, llm_config: object) -> bytes:
    """Return a new session's two maps as an array of what ``encode_map`` makes of each.

    They are tested and packed in one go where both pass; that is all that the record of most
    sessions holds.
    """
    if isinstance(metadata, dict) and isinstance(llm_config, dict):
        packed = _pack([metadata, llm_config], MAX_DEPTH + 1)
        if packed is not None:
            return packed
    return _encode([encode_map(metadata, "metadata"), encode_map(llm_config, "llm_config")])


def _pack(value: object, room: int) -> bytes | None:
    """Return ``value`` as msgpack, or None where JSON would not bring it back equal.

    By way of JSON, since msgpack alone also brings back bytes, int keys, infinities and
    datetimes; and as msgpack, since JSON alone also brings back ints beyond 64 bits.

    Args:
        value: what may be part of a map.
        room: how many containers deep it may be.
    """
    try:
        text = _to_json(value)
        copy = _from_json(text)
        if copy != value:
            return None
        # Brackets in strings count as well, which only asks for the exact answer too often.
        if text.count(b"[") + text.count(b"{") > room and _is_deeper(value, room):
            return None
        # The copy, which is what was tested: another thread may have changed the value since.
        return _encode(copy)
    except _REFUSALS:
        return None


def _is_deeper(value: object, room: int) -> bool:
    """Return whether ``value`` has more than ``room`` containers one in the other."""
    level: list[Any] = [value]
    for _ in range(room + 1):
        level = [item for item in level if isinstance(item, (dict, list))]
        if not level:
            return False
        # Without the text of any path, which a million containers would each get.
        level = [each for item in level for each in _held(item)]
    return True


def _held(item: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return item.values() if isinstance(item, dict) else item


def _children(value: object) -> list[tuple[str, object]]:
    """Return what a container holds, each behind the text that follows its path."""
    if isinstance(value, dict):
        return [(f"[{_quoted(key)}]", child) for key, child in value.items()]
    if isinstance(value, list):
        return [(f"[{at}]", child) for at, child in enumerate(value)]
    return []


def _fault(value: object, path: str, room: int) -> InvalidMetadata:
    """Return the error for the first part of ``value`` that does not come back equal."""
    if room == 0 and isinstance(value, (dict, list)):
        return InvalidMetadata(path, f"is more than {MAX_DEPTH} deep")
    for key in value if isinstance(value, dict) else ():
        if not isinstance(key, str) or _pack(key, room) is None:
            return InvalidMetadata(path, f"has the key {_describe(key)}")
    for step, child in _children(value):
        if _pack(child, room - 1) is None:
            return _fault(child, path + step, room - 1)
    return InvalidMetadata(path, f"is {_describe(value)}")


def _quoted(key: object) -> str:
    """Return a key as it stands in a path: as Python has it, in double quotes."""
    if not isinstance(key, str):
        return ascii(key)
    return '"' + "".join(map(_escaped, key)) + '"'


def _escaped(letter: str) -> str:
    if letter in '"\\':
        return "\\" + letter
    return letter if letter.isprintable() else ascii(letter)[1:-1]


def _describe(value: object) -> str:
    """Return a short text of a value and its type."""
    return f"{shown(value)} ({type(value).__name__})"
