"""Where the time of a look-up goes: each step of it added to those before, in one process.

A *repeated* look-up of a reader that keeps sessions, and a *fresh* one of a reader that keeps none.
The steps are those of ``SessionReads.get_session_info`` and of ``seqlock.quick_look_up``, written
out once more so that the last ones can be left away; the last row of each is the call itself. What
a row takes above the one before it is what its step costs.
"""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from benchmarks import records
from benchmarks.figures import Figure, Ratio
from jidoka_shm import Session, SessionManager, SessionReader
from jidoka_shm.layout import CLOSED, SLOT_HEADER_SIZE, SLOT_MASK
from jidoka_shm.session import STATUS_OF_CODE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.bench import Bench

    Step = Callable[[UUID], object]

NAME: Final = "parts"
SYSTEM: Final = "jidoka_shm"

DICT: Final = "a dict, by equal ids"
REPEATED: Final = "repeated: the call itself"
FRESH: Final = "fresh: the call itself"

RATIOS: Final = (
    Ratio(suite=NAME, row=REPEATED, beside_row=DICT),
    Ratio(suite=NAME, row=FRESH, beside_row=DICT),
)


def steps(bench: Bench) -> int:
    """Return how many measurements it makes."""
    return bench.effort.processes * bench.effort.rounds


def run(bench: Bench) -> list[Figure]:
    """Measure: all rows in turn, again and again."""
    found: dict[str, list[list[float]]] = {}
    for _ in range(bench.effort.processes):
        with _rows(bench) as (rows, ids):
            for step in rows.values():
                _timed(step, ids)
            taken: dict[str, list[float]] = {row: [] for row in rows}
            for _ in range(bench.effort.rounds):
                for row, step in rows.items():
                    taken[row].append(_timed(step, ids))
                bench.advance()
        for row, values in taken.items():
            found.setdefault(row, []).append(values)
    return [
        Figure(suite=NAME, row=row, system=SYSTEM, unit="ns", values=values)
        for row, values in found.items()
    ]


def _timed(step: Step, ids: list[UUID]) -> float:
    begun = time.perf_counter_ns()
    for sid in ids:
        step(sid)
    return (time.perf_counter_ns() - begun) / len(ids)


@contextlib.contextmanager
def _rows(bench: Bench) -> Iterator[tuple[dict[str, Step], list[UUID]]]:
    place = bench.place(NAME)
    name = f"bench-{place.parent.name}-{place.name}"
    with SessionManager(name, fresh=True) as manager:
        ids = records.make_ids(bench.effort.sessions)
        for sid in ids:
            plain = records.make_plain(sid)
            maps = plain["metadata"], plain["llm_config"]
            manager.create_session(*maps, session_id=sid)
        # Equal ids, as a program has them that reads them from somewhere.
        keys = [UUID(int=sid.int) for sid in random.Random(1).sample(ids, len(ids))]
        with SessionReader(name) as keeps, SessionReader(name, cache_size=0) as fresh:
            there = {sid: fresh[sid] for sid in ids}
            for key in keys:
                keeps.get_session_info(key)
            rows: dict[str, Step] = {DICT: there.__getitem__}
            rows |= _repeated(keeps) | {REPEATED: keeps.get_session_info}
            rows |= _fresh(fresh) | {FRESH: fresh.get_session_info}
            yield rows, keys
        manager.unlink()


class _Keeping:
    """A look-up in a reader's cache, step by step."""

    def __init__(self, reader: SessionReader) -> None:
        self._view = reader._view  # noqa: SLF001 - its parts are what is measured

    def call(self, session_id: UUID) -> object:
        return session_id

    def typed(self, session_id: UUID) -> object:
        return self._view if type(session_id) is UUID else None

    def got(self, session_id: UUID) -> object:
        if type(session_id) is UUID:
            return self._view.kept.get(session_id.int)
        return None


def _repeated(reader: SessionReader) -> dict[str, Step]:
    keeping = _Keeping(reader)
    return {
        "repeated: a call": keeping.call,
        "repeated: + is it a UUID": keeping.typed,
        "repeated: + dict.get by its int": keeping.got,
    }


def _fresh(reader: SessionReader) -> dict[str, Step]:  # noqa: C901 - a function a step
    table = reader._view.table  # noqa: SLF001 - as above
    words, reach, slots = table.index.words, table.reach, table.slots
    unpack_from, memory, size = slots.unpack_from, slots.memory, len(table.reach)
    begin, slot_size, statuses = slots.begin, slots.slot_size, STATUS_OF_CODE

    def home(session_id: UUID) -> Any:  # noqa: ANN401 - whatever a step comes to
        return reach[session_id.int % size]

    def word(session_id: UUID) -> Any:  # noqa: ANN401 - as above
        entry = session_id.int % size
        end = entry + reach[entry]
        while entry < end:
            found = words[entry]
            if found > CLOSED:
                return found
            entry += 1
        return None

    def head(session_id: UUID) -> Any:  # noqa: ANN401 - as above
        key = session_id.int
        entry = key % size
        end = entry + reach[entry]
        while entry < end:
            found = words[entry]
            if found > CLOSED:
                fields = unpack_from(memory, begin + (found & SLOT_MASK) * slot_size)
                if fields[0] == key.to_bytes(16):
                    return fields
            entry += 1
        return None

    def payload(session_id: UUID) -> Any:  # noqa: ANN401 - as above
        key = session_id.int
        entry = key % size
        end = entry + reach[entry]
        while entry < end:
            found = words[entry]
            if found > CLOSED:
                start = begin + (found & SLOT_MASK) * slot_size
                fields = unpack_from(memory, start)
                if fields[0] == key.to_bytes(16):
                    start += SLOT_HEADER_SIZE
                    raw = memory[start : start + fields[5]]
                    return raw if words[entry] == found else None
            entry += 1
        return None

    def session(session_id: UUID) -> Any:  # noqa: ANN401 - as above
        key = session_id.int
        entry = key % size
        end = entry + reach[entry]
        while entry < end:
            found = words[entry]
            if found > CLOSED:
                start = begin + (found & SLOT_MASK) * slot_size
                which, version, created, updated, pid, length, code = unpack_from(memory, start)
                if which == key.to_bytes(16):
                    start += SLOT_HEADER_SIZE
                    raw = memory[start : start + length]
                    if words[entry] == found:
                        status, owner = statuses[code], pid or None
                        return Session(session_id, version, status, owner, created, updated, raw)
            entry += 1
        return None

    return {
        "fresh: a call, the home and its reach": home,
        "fresh: + the word": word,
        "fresh: + the slot's head, and is it the id": head,
        "fresh: + the payload, and the word again": payload,
        "fresh: + the Session": session,
    }
