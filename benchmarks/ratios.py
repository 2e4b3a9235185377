"""What a call costs beside a dict's look-up and beside LMDB, in one run on one machine.

    python benchmarks/ratios.py [--sessions N] [--rounds N] [--json]

Every case runs once a round, one after the other, so that a slow moment of the machine meets
all of them; a figure is the median of the rounds. LMDB stands for what a program would use
otherwise: one environment, a transaction a call, msgpack records of the same fields. It runs
without syncing to a disk, in the same tmpfs. Needs the extra ``bench``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import tempfile
import time
import uuid
from typing import TYPE_CHECKING, Any

import lmdb
import msgspec

from jidoka_shm import SessionManager, SessionReader

if TYPE_CHECKING:
    from collections.abc import Callable

METADATA = {"project": "my-project", "user": "ann", "n": 3}
LLM_CONFIG = {"model": "gpt-4", "temperature": 0.7}

#: A case's name, the peer that it is compared with, and the ratio it is to stay under.
GOALS = {
    "repeated look-up": ("dict look-up", 1.45),
    "repeated look-up, equal ids": ("dict look-up, equal ids", 1.45),
    "look-up, ids four times the cache": ("look-up, the same, cache off", 1.25),
    "look-up, the same, none kept": ("fresh look-up", 1.25),
    "fresh look-up": ("LMDB look-up", 0.8),
    "get_session_status": ("LMDB look-up", 0.3),
    "get_session_pid": ("LMDB look-up", 0.3),
    "miss": ("LMDB look-up", 0.2),
    "list_sessions, unchanged": ("list_sessions, after a change", 0.05),
    "create_session": ("LMDB create", 0.9),
    "update_session": ("LMDB update", 0.8),
}

#: A case's name, and the nanoseconds a session that it is to stay under.
LIMITS = {"list_sessions, after a change": 1000.0, "snapshot": 60.0}


class Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A session as a program would keep it in LMDB: maps left encoded until they are used."""

    session_id: uuid.UUID
    status: str
    pid: int | None
    created: int
    updated: int
    version: int
    metadata: msgspec.Raw
    llm_config: msgspec.Raw
    expires: int | None = None
    error: str | None = None


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Record).decode


def make_record(session_id: uuid.UUID) -> Record:
    """Return a record of a new session."""
    now = time.time_ns()
    maps = (msgspec.Raw(encode(METADATA)), msgspec.Raw(encode(LLM_CONFIG)))
    return Record(session_id, "initializing", None, now, now, 1, *maps)


class Bench:
    """A registry, an LMDB and a dict of the same sessions, and the cases over them."""

    def __init__(self, sessions: int, folder: str) -> None:
        self.name = f"ratios-{os.getpid()}"
        self.manager = SessionManager(self.name, capacity=max(sessions, 16_384), fresh=True)
        self.ids = [self.manager.create_session(METADATA, LLM_CONFIG) for _ in range(sessions)]
        random.Random(1).shuffle(self.ids)
        # As a program has them that reads its ids from requests: not the objects that were kept.
        self.equal = [uuid.UUID(int=key.int) for key in self.ids]
        self.drawn = random.Random(2).choices(self.ids, k=sessions)
        self.unknown = [uuid.uuid4() for _ in self.ids]
        self.reader = SessionReader(self.name)
        self.uncached = SessionReader(self.name, cache_size=0)
        self.small = SessionReader(self.name, cache_size=sessions // 4)
        self.dict = {key: self.manager[key] for key in self.ids}
        self.env = lmdb.open(folder, map_size=1 << 28, sync=False, max_dbs=2)
        self.records = self.env.open_db(b"records")
        self.created = self.env.open_db(b"created")
        with self.env.begin(self.records, write=True) as transaction:
            for key in self.ids:
                transaction.put(key.bytes, encode(make_record(key)))

    def close(self) -> None:
        """Leave nothing behind."""
        self.env.close()
        for reader in (self.reader, self.uncached, self.small):
            reader.close()
        self.manager.unlink()

    # A case does its work once for each id it is given, or once for all.

    def lmdb_look_ups(self) -> None:
        """Look each id up in LMDB."""
        begin, records = self.env.begin, self.records
        for key in self.ids:
            with begin(records) as transaction:
                decode(transaction.get(key.bytes))

    def lmdb_updates(self) -> None:
        """Change each record's status in LMDB."""
        begin, records, replace = self.env.begin, self.records, msgspec.structs.replace
        for key in self.ids:
            with begin(records, write=True) as transaction:
                record = decode(transaction.get(key.bytes))
                status = "active" if record.status != "active" else "idle"
                changed = replace(
                    record, status=status, updated=time.time_ns(), version=record.version + 1
                )
                transaction.put(key.bytes, encode(changed))

    def lmdb_creates(self) -> None:
        """Put a new record into LMDB as often as there are ids."""
        begin, created = self.env.begin, self.created
        for _ in self.ids:
            key = uuid.uuid4()
            record = encode(make_record(key))
            with begin(created, write=True) as transaction:
                transaction.put(key.bytes, record)

    def empty_lmdb(self) -> None:
        """Take out what ``lmdb_creates`` put in."""
        with self.env.begin(write=True) as transaction:
            transaction.drop(self.created, delete=False)

    def updates(self) -> None:
        """Change each session's status."""
        update = self.manager.update_session
        status = "active" if self.manager[self.ids[0]].status != "active" else "idle"
        for key in self.ids:
            update(key, status=status)

    def touch(self) -> None:
        """Commit one change after a list."""
        self.reader.list_sessions()
        self.manager.update_session(self.ids[0])

    def cases(self) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
        """Return each case: what comes before it, and what is timed."""
        none: Callable[[], object] = lambda: None  # noqa: E731 - the one that does nothing
        return {
            "dict look-up": (none, lambda: _each(self.dict.__getitem__, self.ids)),
            "repeated look-up": (
                lambda: _each(self.reader.get_session_info, self.ids),
                lambda: _each(self.reader.get_session_info, self.ids),
            ),
            "dict look-up, equal ids": (none, lambda: _each(self.dict.__getitem__, self.equal)),
            "repeated look-up, equal ids": (
                lambda: _each(self.reader.get_session_info, self.equal),
                lambda: _each(self.reader.get_session_info, self.equal),
            ),
            "look-up, the same, cache off": (
                none,
                lambda: _each(self.uncached.get_session_info, self.drawn),
            ),
            "look-up, ids four times the cache": (
                none,
                lambda: _each(self.small.get_session_info, self.drawn),
            ),
            # In rounds of one order, which a cache of a quarter never has the next id of.
            "look-up, the same, none kept": (
                lambda: _each(self.small.get_session_info, self.ids),
                lambda: _each(self.small.get_session_info, self.ids),
            ),
            "LMDB look-up": (none, self.lmdb_look_ups),
            "fresh look-up": (none, lambda: _each(self.uncached.get_session_info, self.ids)),
            "get_session_status": (none, lambda: _each(self.uncached.get_session_status, self.ids)),
            "get_session_pid": (none, lambda: _each(self.uncached.get_session_pid, self.ids)),
            "miss": (none, lambda: _each(self.uncached.get, self.unknown)),
            "list_sessions, after a change": (self.touch, self.reader.list_sessions),
            "list_sessions, unchanged": (self.reader.list_sessions, self.reader.list_sessions),
            "list_sessions, first of a reader": (self.renew, self.list_anew),
            "snapshot": (none, self.reader.snapshot),
            "LMDB update": (none, self.lmdb_updates),
            "update_session": (none, self.updates),
        }

    def renew(self) -> None:
        """Take a reader that has listed nothing yet."""
        self.new = SessionReader(self.name)

    def list_anew(self) -> object:
        """List with it."""
        return self.new.list_sessions()


def _each(call: Callable[[Any], object], keys: list[uuid.UUID]) -> None:
    for key in keys:
        call(key)


def timed(work: Callable[[], object], count: int) -> float:
    """Return the nanoseconds that ``work`` takes for each of ``count``."""
    gc.collect()
    gc.disable()
    begun = time.perf_counter_ns()
    kept = work()
    ended = time.perf_counter_ns()
    gc.enable()
    del kept
    return (ended - begun) / count


def creates(bench: Bench) -> dict[str, float]:
    """Return what a creation takes, in a registry of its own so that it never fills."""
    capacity = max(len(bench.ids), 16_384)
    with SessionManager(f"{bench.name}-new", capacity=capacity, fresh=True) as manager:
        create = manager.create_session
        found = {
            "create_session": timed(
                lambda: [create(METADATA, LLM_CONFIG) for _ in bench.ids], len(bench.ids)
            ),
            "LMDB create": timed(bench.lmdb_creates, len(bench.ids)),
        }
        manager.unlink()
    bench.empty_lmdb()
    return found


def takeover(sessions: int) -> tuple[float, float]:
    """Return the seconds that starting empty takes, and taking over ``sessions``, alike in size."""
    name = f"ratios-{os.getpid()}-heir"
    begun = time.perf_counter()
    manager = SessionManager(name, capacity=max(sessions, 16_384), fresh=True)
    empty = time.perf_counter() - begun
    for _ in range(sessions):
        manager.create_session(METADATA, LLM_CONFIG)
    manager.close()
    begun = time.perf_counter()
    heir = SessionManager(name)
    full = time.perf_counter() - begun
    heir.unlink()
    return empty, full


def measure(sessions: int, rounds: int) -> dict[str, float]:
    """Return the median of each case, in nanoseconds a look-up, a change or a session listed."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        bench = Bench(sessions, folder)
        try:
            for _ in range(rounds):
                for case, (prepare, work) in bench.cases().items():
                    prepare()
                    times.setdefault(case, []).append(timed(work, sessions))
                for case, found in creates(bench).items():
                    times.setdefault(case, []).append(found)
        finally:
            bench.close()
    return {case: statistics.median(found) for case, found in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--takeover", type=int, default=10_000, help="sessions to take over")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    medians = measure(options.sessions, options.rounds)
    empty, full = takeover(options.takeover)
    if options.json:
        print(json.dumps({"ns": medians, "empty_s": empty, "takeover_s": full}, indent=2))
        return
    print(f"Python {platform.python_version()}, {options.sessions:,} sessions, ids in random order")
    for case, (peer, goal) in GOALS.items():
        ratio = medians[case] / medians[peer]
        print(f"{case:34} {ratio:6.3f} x {peer:32} (goal {goal})")
    for case, limit in LIMITS.items():
        print(f"{case:34} {medians[case]:6.0f} ns a session{' ':21} (goal {limit:.0f})")
    first = medians["list_sessions, first of a reader"]
    print(f"{'list_sessions, first of a reader':34} {first:6.0f} ns a session")
    print(f"takeover of {options.takeover:,} sessions: {full - empty:.3f} s above an empty start")


if __name__ == "__main__":
    main()
