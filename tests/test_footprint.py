"""What a registry costs: memory a slot, a reader's own memory, and words loaded a look-up."""

from __future__ import annotations

import random
import tracemalloc
from uuid import UUID

import numpy as np
import pytest
from host import path_of, run_script
from support import ME, make_writer, session, successor_of

from jidoka_shm import SessionManager
from jidoka_shm.layout import Geometry


@pytest.mark.parametrize("capacity", [1000, 4096, 16_384, 100_000, 1_048_576])
@pytest.mark.parametrize("slot_size", [128, 512])
def test_a_slot_costs_its_size_and_at_most_48_bytes(capacity: int, slot_size: int) -> None:
    geometry = Geometry.for_capacity(capacity, slot_size)
    beyond = geometry.size - geometry.slot_count * slot_size
    assert beyond <= 48 * geometry.slot_count


def test_all_of_a_registry_is_reserved_when_it_is_made(name: str) -> None:
    """A store to a page that is not there would end in SIGBUS on a full /dev/shm."""
    with SessionManager(name) as manager:
        for path in (path_of(name), path_of(name, 1)):
            found = path.stat()
            assert found.st_blocks * 512 >= found.st_size
        manager.unlink()


def test_a_reader_takes_little_memory_of_its_own(name: str) -> None:
    """Measured against an interpreter with the same two libraries, before the first list."""
    code = """
        import sys
        import msgspec, numpy

        def own() -> int:
            with open("/proc/self/smaps_rollup") as lines:
                kib = [int(line.split()[1]) for line in lines if line.startswith("Private_")]
            return sum(kib) * 1024

        before = own()
        from jidoka_shm import SessionReader
        reader = SessionReader(sys.argv[1], cache_size=0)
        for session_id in sys.argv[2:]:
            reader.get_session_info(session_id)
        print(own() - before)
    """
    with SessionManager(name) as manager:
        ids = [manager.create_session({"n": n}) for n in range(100)]
        taken = int(run_script(code, name, *ids))
        manager.unlink()
    assert taken < 4 * 1024 * 1024


def test_taking_up_long_records_takes_the_memory_of_a_few() -> None:
    writer = make_writer(8192, 4096)
    for key in range(24):
        writer.insert(session(writer, key, metadata={"a": "x" * (1 << 20)}))
    tracemalloc.start()
    try:
        successor_of(writer).resume(ME, lambda _: None)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_look_ups_stay_short_in_a_full_table_that_changes_for_ever() -> None:
    """D5: no removal leaves anything behind; `python -m benchmarks probes` makes ten million."""
    capacity, chance = 2000, random.Random(4)
    writer = make_writer(capacity, 128)
    keys = [chance.getrandbits(128) for _ in range(capacity)]
    for key in keys:
        writer.insert(session(writer, key))
    for _ in range(10 * capacity):
        at = chance.randrange(capacity)
        writer.remove(writer.look_up(UUID(int=keys[at]))[0])
        keys[at] = chance.getrandbits(128)
        writer.insert(session(writer, keys[at]))
    size = writer.geometry.index_size
    hits = [1 + writer.look_up(UUID(int=key))[0] - key % size for key in keys]
    # A miss loads as many words as the reach of its home says.
    assert np.frombuffer(writer.reach, np.uint8).mean() < 0.35
    assert np.mean(hits) < 1.45
    assert writer.check() == []
