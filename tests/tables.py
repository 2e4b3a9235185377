"""What the tests of the modules over plain memory share: tables filled, and values for maps."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import pytest
from hypothesis import strategies as st
from support import session

from jidoka_shm.layout import SLOT_DTYPE
from jidoka_shm.maps import encode_maps

if TYPE_CHECKING:
    from collections.abc import Callable

    from jidoka_shm.layout import Memory
    from jidoka_shm.session import Session
    from jidoka_shm.slots import Slots
    from jidoka_shm.writer import TableWriter

T = TypeVar("T")

#: Where the payload's crc stands in a slot, for what damages it or makes it right.
PAYLOAD_CRC_OFFSET: Final = cast("Any", SLOT_DTYPE.fields)["payload_crc"][1]

#: For a test that takes ``verify``: once as an x86-64 reads, once with all crcs computed.
both_ways = pytest.mark.parametrize("verify", [False, True], ids=["plain", "verified"])

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)
json_values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)
json_maps = st.dictionaries(st.text(), json_values, max_size=4)


def copies_of(value: T) -> list[T]:
    """Return what each way of copying a value makes of it."""
    pickled = [pickle.dumps(value, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    loaded = [pickle.loads(data) for data in pickled]  # noqa: S301 - made a line above
    return [*loaded, copy.copy(value), copy.deepcopy(value)]


def maps_of(metadata: dict | None = None, llm_config: dict | None = None) -> dict[str, bytes]:
    """Return the maps of a new session, as ``Registry.create`` takes them."""
    return {"maps": encode_maps(metadata, llm_config)}


def add(writer: TableWriter, *keys: int, **fields: object) -> list[Session]:
    """Insert a session for each key and return them."""
    added = []
    for key in keys:
        added.append(session(writer, key, **fields))
        writer.insert(added[-1])
    return added


def state_of(writer: TableWriter) -> tuple[bytes, bytes, list[int]]:
    """Return what a failed change must leave as it was: control, index, reach, free slots."""
    control = bytes(writer.control._memory)
    return control, bytes(writer.slots.memory[: writer.slots.begin]), sorted(writer.space)


class MetSlots:
    """A table's slots, of which each head that a quick look-up copies is met by a commit."""

    def __init__(self, slots: Slots, commit: Callable[[], object]) -> None:
        self.memory, self.begin = slots.memory, slots.begin
        self.slot_size, self.limit, self.end = slots.slot_size, slots.limit, slots.end
        self.unpack_from = self._met(slots.unpack_from, commit)
        self.unpack_brief = self._met(slots.unpack_brief, commit)

    def _met(
        self, unpack: Callable[[Memory, int], T], commit: Callable[[], object]
    ) -> Callable[[Memory, int], T]:
        def met(memory: Memory, at: int) -> T:
            head = unpack(memory, at)
            commit()
            return head

        return met
