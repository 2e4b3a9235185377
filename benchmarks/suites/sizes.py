"""What it costs to have guessed no size: growing while sessions come, and records of any size.

A registry that begins with 64 slots and grows is filled beside one that was made with room for
all, the two taking turns, each with one reader in a process of its own that looks sessions up
meanwhile. A record of 64 KiB is read from slots of 512 bytes and from one slot that holds it.
"""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING, Final

from benchmarks.companion import Companion
from benchmarks.figures import Figure, Ratio
from jidoka_shm import SessionManager, SessionReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from benchmarks.bench import Bench

NAME: Final = "sizes"
SYSTEM: Final = "jidoka_shm"

GROWN, GIVEN = "create, from 64 slots", "create, room given"
PAUSE, LONGEST = "the longest create while it grows", "the longest create, room given"
READ_GROWN, READ_GIVEN = "look-up beside growth, p99.9", "look-up beside creates, p99.9"
AMONG, AMONG_FEW = "fresh look-up among them", "fresh look-up among 1,000"
MANY_SLOTS, ONE_SLOT = "read 64 KiB in slots of 512 bytes", "read 64 KiB in a slot of 72 KiB"
UNITS: Final = dict.fromkeys((PAUSE, LONGEST), "ms")

RATIOS: Final = (
    Ratio(suite=NAME, row=GROWN, beside_row=GIVEN, at_most=2),
    Ratio(suite=NAME, row=PAUSE, at_most=2_000),
    Ratio(suite=NAME, row=READ_GROWN, beside_row=READ_GIVEN, at_most=3),
    Ratio(suite=NAME, row=AMONG, beside_row=AMONG_FEW, at_most=2.5),
    Ratio(suite=NAME, row=MANY_SLOTS, beside_row=ONE_SLOT, at_most=1.5),
)

#: It looks sessions up until its input ends, and prints the time that one in a thousand exceeded.
READER: Final = """
import sys, threading, time
from jidoka_shm import SessionReader
reader = SessionReader(sys.argv[1], cache_size=0)
ids = list(reader)
end = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), end.set()), daemon=True).start()
print("up", flush=True)
taken, now = [], time.perf_counter_ns
while True:
    for sid in ids:
        begun = now()
        reader.get_session_info(sid)
        taken.append(now() - begun)
    if end.is_set():
        break
taken.sort()
print(taken[-1 - len(taken) // 1000])
"""
#: Sessions that are there before the others come, and that the reader looks up.
FIRST: Final = 50
FEW: Final = 1_000
#: Look-ups that are timed together.
TIMED: Final = 10_000
#: Bytes of a long record's map, and of a slot that holds it.
LONG: Final = 64 << 10
LARGE: Final = 72 << 10


def steps(bench: Bench) -> int:
    """Return how many measurements it makes."""
    return bench.effort.crowds + bench.effort.rounds


def run(bench: Bench) -> list[Figure]:
    """Measure."""
    found: dict[str, list[float]] = {}
    for measured in (growing(bench), long_records(bench)):
        for values in measured:
            bench.advance()
            for row, value in values.items():
                found.setdefault(row, []).append(value)
    return [
        Figure(suite=NAME, row=row, system=SYSTEM, unit=UNITS.get(row, "ns"), values=[values])
        for row, values in found.items()
    ]


@contextlib.contextmanager
def _registry(bench: Bench, **options: int) -> Iterator[SessionManager]:
    place = bench.place(NAME)
    name = f"bench-{place.parent.name}-{place.name}"
    with SessionManager(name, fresh=True, **options) as manager:  # type: ignore[arg-type]
        try:
            yield manager
        finally:
            manager.unlink()


def growing(bench: Bench) -> Iterator[dict[str, float]]:
    """Yield what creates and look-ups take where their room is made, and where it is given."""
    sessions = max(4 * FIRST, *bench.effort.sizes)
    for _ in range(bench.effort.crowds):
        found: dict[str, float] = {}
        for rows, capacity in (
            ((GROWN, PAUSE, READ_GROWN), 64),
            ((GIVEN, LONGEST, READ_GIVEN), sessions),
        ):
            with _registry(bench, capacity=capacity, max_capacity=sessions) as manager:
                found |= zip(rows, _fill(manager, sessions), strict=True)
                found[AMONG] = _look_up(manager)
        with _registry(bench, capacity=FEW) as manager:
            for number in range(FEW):
                manager.create_session({"n": number, "project": "p"})
            found[AMONG_FEW] = _look_up(manager)
        yield found


def _fill(manager: SessionManager, sessions: int) -> tuple[float, float, float]:
    """Return a create's nanoseconds, the longest one's milliseconds, and the reader's figure."""
    for number in range(FIRST):
        manager.create_session({"n": number, "project": "p"})
    reader = Companion(READER, manager.name)
    longest, begun = 0, time.perf_counter_ns()
    before = begun
    for number in range(FIRST, sessions):
        manager.create_session({"n": number, "project": "p"})
        now = time.perf_counter_ns()
        longest = max(longest, now - before)
        before = now
    taken = (before - begun) / (sessions - FIRST)
    return taken, longest / 1e6, float(reader.end())


def _look_up(manager: SessionManager) -> float:
    with SessionReader(manager.name, cache_size=0) as reader:
        ids = random.Random(1).sample(list(reader), min(len(reader), TIMED))
        return _timed(reader, ids * (TIMED // len(ids)))


def _timed(reader: SessionReader, ids: list[UUID]) -> float:
    begun = time.perf_counter_ns()
    for sid in ids:
        reader.get_session_info(sid)
    return (time.perf_counter_ns() - begun) / len(ids)


def long_records(bench: Bench) -> Iterator[dict[str, float]]:
    """Yield the nanoseconds of reading a long record from many slots, and from one."""
    with contextlib.ExitStack() as stack:
        readers = {}
        for row, slot_size in ((MANY_SLOTS, 512), (ONE_SLOT, LARGE)):
            manager = stack.enter_context(_registry(bench, capacity=FEW, slot_size=slot_size))
            sid = manager.create_session({"text": "x" * LONG})
            reader = stack.enter_context(SessionReader(manager.name, cache_size=0))
            readers[row] = reader, [sid] * TIMED
        for _ in range(bench.effort.rounds):
            yield {row: _timed(reader, ids) for row, (reader, ids) in readers.items()}
