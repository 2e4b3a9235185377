"""iceoryx2's blackboard, by its Python package: one writer, readers without locks, fixed keys.

What it does not do: all keys are made with the blackboard, so nothing is created or deleted; a
value is a fixed number of bytes; there is no list of values. A key is found by comparing one after
the other in a callback to Python, so it holds 1,000 here, and 10,000 would take minutes to make. A
program keeps the handle of a key that it has found: that is the repeated look-up.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, ClassVar

import iceoryx2

from benchmarks import records

from .base import Peer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

LONGEST = 252
READERS = 64


class Key(ctypes.Structure):
    """An id."""

    _fields_ = (("high", ctypes.c_uint64), ("low", ctypes.c_uint64))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and (self.high, self.low) == (other.high, other.low)

    def __hash__(self) -> int:
        return hash((self.high, self.low))


class Value(ctypes.Structure):
    """A record of at most so many bytes."""

    _fields_ = (("length", ctypes.c_uint32), ("packed", ctypes.c_ubyte * LONGEST))


class Blackboard(Peer):
    """A blackboard of records."""

    name: ClassVar[str] = "iceoryx2"
    packages: ClassVar[tuple[str, ...]] = ("iceoryx2",)
    largest: ClassVar[int | None] = 1_000

    _made: Any = None
    _is_maker = False

    def __init__(self, place: str, ids: Sequence[UUID]) -> None:
        super().__init__(place, ids)
        iceoryx2.set_log_level(iceoryx2.LogLevel.Fatal)
        # What it makes for all its users on a host would stay when the last of them ends.
        self._prefix = f"{self.place.parent.name}-{self.place.name}-"
        config = iceoryx2.config.default()
        config.global_cfg.prefix = iceoryx2.FileName.new(self._prefix)
        config.global_cfg.root_path = iceoryx2.Path.new(f"{self.place}/")
        self.node = iceoryx2.NodeBuilder.new().config(config).create(iceoryx2.ServiceType.Ipc)
        self.service = self.node.service_builder(iceoryx2.ServiceName.new("sessions"))

    def make(self) -> None:
        """Make all keys, and the writer."""
        # First, as it takes long and may be interrupted.
        self._is_maker = True
        creator = self.service.blackboard_creator(Key).max_readers(READERS).max_nodes(READERS)
        for key in self.ids:
            creator = creator.add(_key(key), _value(records.make_record(key)))
        self._made = creator.create()
        self.writer = self._made.writer_builder().create()

    def attach(self) -> None:
        """Open it, and make a reader."""
        self.opened = self._made or self.service.blackboard_opener(Key).open()
        self.reader: Any = self.opened.reader_builder().create()
        self.handles: dict[UUID, Any] = {}

    def close(self) -> None:
        """Let go of everything; the last process that does so removes it."""
        for each in (
            "handles",
            "written",
            "reader",
            "writer",
            "opened",
            "_made",
            "service",
            "node",
        ):
            vars(self).pop(each, None)
        for path in self.place.parent.parent.glob(f"{self._prefix}*") if self._is_maker else ():
            path.unlink()

    def shared_bytes(self) -> int:
        """Return the bytes of its keys and values: two cells each, as the writer swaps them."""
        return len(self.ids) * (ctypes.sizeof(Key) + 2 * ctypes.sizeof(Value))

    def before_repeated(self, keys: list[UUID]) -> None:
        """Find the handles."""
        for key in keys:
            if key not in self.handles:
                self.handles[key] = self.reader.entry(_key(key), Value)

    def repeated(self, keys: list[UUID]) -> None:
        """Read through a handle that is kept, and decode."""
        handles, decode = self.handles, records.decode
        for key in keys:
            value = handles[key].get().decode_as(Value)
            decode(bytes(value.packed[: value.length]))

    def look_up(self, keys: list[UUID]) -> None:
        """Find the handle, read and decode."""
        entry, decode = self.reader.entry, records.decode
        for key in keys:
            value = entry(_key(key), Value).get().decode_as(Value)
            decode(bytes(value.packed[: value.length]))

    def miss(self, keys: list[UUID]) -> None:
        """Look for a key that is none."""
        entry = self.reader.entry
        for key in keys:
            try:
                entry(_key(key), Value)
            except iceoryx2.EntryHandleError:
                continue

    def before_update(self, keys: list[UUID]) -> None:
        """Have what is to be written at hand, as the one writer of a program does."""
        self.written = getattr(self, "written", {})
        for key in keys:
            if key not in self.written:
                handle = self.writer.entry(_key(key), Value)
                self.written[key] = (handle, records.make_record(key))

    def update(self, keys: list[UUID]) -> None:
        """Change the record that the writer keeps, and publish it."""
        written = self.written
        for key in keys:
            handle, record = written[key]
            record = records.moved(record)
            handle.update_with_copy(_value(record))
            written[key] = (handle, record)


def _key(key: UUID) -> Key:
    return Key(key.int >> 64, key.int & (1 << 64) - 1)


def _value(record: records.Record) -> Value:
    packed = records.encode(record)
    value = Value(len(packed))
    ctypes.memmove(value.packed, packed, len(packed))
    return value
