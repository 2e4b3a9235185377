"""What several test modules use: tables in plain memory, waiting for a condition, and not waiting."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import UUID

from jidoka_shm.control import ControlWriter, Identity
from jidoka_shm.layout import CONTROL_SIZE, MAX_RECORD_SIZE, Geometry
from jidoka_shm.marks import Instant
from jidoka_shm.registry import Registry
from jidoka_shm.session import Session
from jidoka_shm.space import FreeSlots
from jidoka_shm.table import SessionTable
from jidoka_shm.writer import TableWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

INSTANCE = UUID("0f0e0d0c-0b0a-4908-8706-050403020100")
ME = Identity(4242, 77, 4026531836)


def make_writer(
    capacity: int = 8, slot_size: int = 512, *, max_record_size: int = MAX_RECORD_SIZE
) -> TableWriter:
    """Return a writer of an empty table in a bytearray, as of a new registry."""
    control = ControlWriter(bytearray(CONTROL_SIZE))
    control.initialize(INSTANCE, 1, ME)
    control.complete()
    geometry = Geometry.for_capacity(capacity, slot_size)
    memory = bytearray(geometry.size)
    return TableWriter(memory, control, geometry, max_record_size=max_record_size)


def reader_of(writer: TableWriter, *, verify: bool = False) -> SessionTable:
    """Return another look at a writer's memory."""
    return SessionTable(writer.slots.memory, writer.change, writer.geometry, verify=verify)


def successor_of(writer: TableWriter) -> TableWriter:
    """Return a new writer of the same memory, with nothing of the old one's own."""
    limit, parts = writer.max_record_size, (writer.slots.memory, writer.control, writer.geometry)
    return TableWriter(*parts, max_record_size=limit)


def keep_free(writer: TableWriter, slots: Iterable[int]) -> None:
    """Leave a writer no other free slots, for records of one slot, the first to be taken first."""
    writer.space = FreeSlots(0, 0, writer.space.records)
    writer.space.singles.extend(slots)


def make_registry(
    writer: TableWriter, *, cleanup_delay: int = 50, grow: Callable[..., object] | None = None
) -> Registry:
    """Return the rules over a writer; the delay is in nanoseconds."""
    return Registry(writer, writer.control, cleanup_delay=cleanup_delay, grow=grow)


def at(moment: int) -> Instant:
    """Return the moment on both clocks, in nanoseconds; the wall clock a million seconds ahead."""
    return Instant(moment + 10**15, moment)


def session(writer: TableWriter, key: int, **fields: object) -> Session:
    """Return a session of the writer's next version, as yet nowhere."""
    return Session.make(session_id=UUID(int=key), version=writer.next_version(), **fields)


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for a condition; the limit only catches hanging."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


@contextmanager
def taking_less_than(seconds: float) -> Iterator[None]:
    """Fail where a call waits that must not wait; a busy machine is allowed for."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < seconds
