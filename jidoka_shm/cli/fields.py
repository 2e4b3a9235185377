"""Where everything stands in a registry's memory, by layout.py, and what stands there now."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from jidoka_shm.layout import (
    CONTROL_FIELDS,
    CONTROL_SIZE,
    FORMAT_VERSION,
    SLOT_DTYPE,
    SLOT_HEADER_SIZE,
    SOCKET_PATH_SIZE,
    TABLE_FIELDS,
    TABLE_HEADER,
    TABLE_HEADER_SIZE,
    control_name,
    table_name,
)

from .inspection import Json, open_reader, view_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jidoka_shm.layout import Geometry, Memory

#: Fields of the control that are no word.
_WIDTHS: Final = {"instance": 16, "socket_path": SOCKET_PATH_SIZE}


def layout(name: str) -> Json:
    """Return the objects of a registry, their parts and fields, and the fields' values."""
    with open_reader(name) as reader:
        view = view_of(reader)
        control = cast("Memory", view.control.change.obj)
        table = view.table
        return {
            "name": name,
            "format": FORMAT_VERSION,
            "control": {
                "object": control_name(name),
                "size": CONTROL_SIZE,
                "fields": _control(control),
            },
            "table": {
                "object": table_name(name, view.identity[1]),
                "size": table.geometry.size,
                "header": _header(table.slots.memory),
                **_parts(table.geometry),
            },
        }


def _control(memory: Memory) -> Json:
    words = memoryview(memory)[:CONTROL_SIZE].cast("Q")
    fields: Json = {}
    for name, offset in CONTROL_FIELDS.items():
        width = _WIDTHS.get(name, 8)
        # A word in one load, so that none is seen half-stored.
        value = words[offset // 8] if width == 8 else bytes(memory[offset : offset + width])  # noqa: PLR2004 - a word
        fields[name] = {"offset": offset, "width": width, "value": _value(name, value)}
    return fields


def _header(memory: Memory) -> Json:
    fields: Json = {}
    values = TABLE_HEADER.unpack(bytes(memory[:TABLE_HEADER_SIZE]))
    for (name, (offset, code)), value in zip(TABLE_FIELDS.items(), values, strict=True):
        width = struct.calcsize(code)
        fields[name] = {"offset": offset, "width": width, "value": _value(name, value)}
    return fields


def _value(name: str, value: Any) -> int | str | None:  # noqa: ANN401 - a number or bytes
    if name == "instance":
        return str(UUID(bytes=value))
    if name == "socket_path":
        return value.rstrip(b"\0").decode(errors="replace") or None
    # As text: many readers of JSON keep no more than 53 bits of a number.
    return f"{value:#018x}" if name == "magic" else int(value)


def _parts(geometry: Geometry) -> Json:
    return {
        "index": {
            "offset": geometry.index_offset,
            "size": 8 * geometry.entries,
            "homes": geometry.index_size,
            "entries": geometry.entries,
        },
        "reach": {"offset": geometry.reach_offset, "size": geometry.index_size},
        "slots": {
            "offset": geometry.slots_offset,
            "size": geometry.slot_count * geometry.slot_size,
            "count": geometry.slot_count,
            "slot_size": geometry.slot_size,
            "fields": _slot(),
        },
    }


def _slot() -> Json:
    """Return the fields of a record, from the beginning of its first slot."""
    fields: Json = {}
    for name in SLOT_DTYPE.names or ():
        kind, offset, *_ = cast("dict[str, Any]", SLOT_DTYPE.fields)[name]
        fields[name] = {"offset": offset, "width": kind.itemsize}
    # Each record's own, in as many slots as it takes.
    fields["payload"] = {"offset": SLOT_HEADER_SIZE, "width": None}
    return fields


def rows(found: Json) -> Iterator[tuple[object, ...]]:
    """Yield what ``layout`` returned as rows: part, field, offset, width, value."""
    table = found["table"]
    for part, fields in (("control", found["control"]["fields"]), ("header", table["header"])):
        for name, field in fields.items():
            yield part, name, field["offset"], field["width"], field["value"]
    index, reach, slots = table["index"], table["reach"], table["slots"]
    yield "table", "index", index["offset"], index["size"], f"{index['entries']} entries of 8"
    yield "table", "reach", reach["offset"], reach["size"], f"{index['homes']} bytes"
    size = f"{slots['count']} slots of {slots['slot_size']}"
    yield "table", "slots", slots["offset"], slots["size"], size
    for name, field in slots["fields"].items():
        value = None if field["width"] else "payload_length bytes, on into the next slots"
        yield "slot", name, field["offset"], field["width"], value
