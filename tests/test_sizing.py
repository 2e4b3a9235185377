"""The page on sizes: each number that it has is what the package makes of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from jidoka_shm import Session, SessionManager, arguments, protocol
from jidoka_shm.layout import (
    CONTROL_SIZE,
    MAX_RECORD_SIZE,
    ROOM_TO_END,
    SPARE_SLOTS,
    Geometry,
    index_size_for,
)
from jidoka_shm.session import Payload
from jidoka_shm.slots import pack_slot
from jidoka_shm.usage import best_slot_size

PAGE = (Path(__file__).parents[1] / "docs" / "sizing.md").read_text(encoding="utf-8")

SLOT_SIZE = arguments.SLOT_SIZE


def _sessions() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - the page's own
    return names["SESSIONS"]


def _table(first: str) -> list[str]:
    """Return the rows of the table whose first title begins so."""
    _, _, rest = PAGE.partition(f"\n| {first}")
    return rest.partition("\n\n")[0].split("\n")[2:]


def _room(metadata: dict[str, Any], llm_config: dict[str, Any]) -> int:
    made = Session.make(session_id=UUID(int=1), metadata=metadata, llm_config=llm_config)
    return len(pack_slot(made)) + ROOM_TO_END


def _with_index(slots: int, slot_size: int) -> str:
    return f"{slots * (slot_size + 38.7):,.0f}"


def _row(what: str, room: int) -> str:
    slots = -(-room // SLOT_SIZE)
    best = best_slot_size(np.full(1000, room))
    cells = [
        what,
        f"{room - ROOM_TO_END:,}",
        f"{slots}",
        f"{slots * SLOT_SIZE:,}",
        _with_index(slots, SLOT_SIZE),
        f"{best:,}",
        _with_index(-(-room // best), best),
    ]
    return f"| {' | '.join(cells)} |"


def test_the_table_of_sessions_is_what_they_take() -> None:
    assert _table("session") == [_row(what, _room(*maps)) for what, maps in _sessions().items()]


def test_a_manager_gives_each_of_them_the_slots_of_the_page(name: str) -> None:
    with SessionManager(name, capacity=2048) as manager:
        for row, maps in zip(_table("session"), _sessions().values(), strict=True):
            before = manager.usage()
            manager.create_session(*maps)
            after = manager.usage()
            cells = [cell.strip().replace(",", "") for cell in row.split("|")]
            assert after.record_bytes - before.record_bytes == int(cells[2])
            assert after.slots_used - before.slots_used == int(cells[3])
        manager.unlink()


def _megabytes(capacity: int) -> float:
    return Geometry.for_capacity(capacity, SLOT_SIZE).size / 1e6


@pytest.mark.parametrize("place", range(5))
def test_the_table_of_capacities_is_what_tables_take(place: int) -> None:
    capacity = arguments.CAPACITY << place if place < 4 else arguments.MAX_CAPACITY
    both = _megabytes(capacity) + _megabytes(capacity // 2)
    row = f"| {capacity:,} | {_megabytes(capacity):.1f} | {both if place else 0:.1f} |"
    assert _table("`capacity`")[place] == (row if place else row.replace("0.0", "-"))
    assert len(_table("`capacity`")) == 5


def test_what_a_session_may_have_beside_its_maps_is_as_long_as_the_page_says() -> None:
    maps = Session.make()._payload
    most = 2**64 - 1
    marks = {"deadline": most, "owner_start": most, "owner_namespace": 2**32 - 1}
    # No session that lives has an error.
    made = Payload(
        metadata=Session.make().payload().metadata,
        llm_config=Session.make().payload().llm_config,
        expires=2**63 - 1,
        request=bytes(16),
        **marks,
    )
    assert f"add {len(made.encode()) - len(maps)} bytes at most" in PAGE


def test_the_numbers_of_the_text_are_the_packages() -> None:
    text = " ".join(PAGE.split())
    assert f"({arguments.CAPACITY:,} slots of {SLOT_SIZE} bytes)" in text
    assert f"the default is {arguments.MAX_CAPACITY:,}." in text
    assert f"- {SPARE_SLOTS} **spare slots**" in text
    assert f"Room to end**: {ROOM_TO_END} bytes" in text
    assert arguments.MAX_RECORD_SIZE == protocol.MAX_RECORD == 1 << 20
    assert MAX_RECORD_SIZE == 16 << 20
    table = Geometry.for_capacity(1000, SLOT_SIZE)
    per_slot = 9 * index_size_for(1000) + (1000 + SPARE_SLOTS) * SLOT_SIZE
    assert 0 <= table.size - per_slot - 2096 < 64
    assert f"- 2,096 bytes of header and index, and the registry {CONTROL_SIZE:,} bytes" in text
    assert f"takes {4096 + 38.7:,.1f}" in text
    # A record of 4 KiB in small slots: a third more than it has.
    assert 1.30 < 34 * (128 + 38.7) / (4096 + 96) < 1.37
