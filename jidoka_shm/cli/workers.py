"""The demo's processes: a writer that changes sessions, readers that look them up.

``python -m jidoka_shm.cli.workers ROLE JSON`` runs one. It reports lines of JSON on its standard
output and ends when its standard input does, so none outlives the process that started it.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import numpy as np

from jidoka_shm import seqlock
from jidoka_shm.errors import JidokaError
from jidoka_shm.layout import CLOSED
from jidoka_shm.manager import SessionManager
from jidoka_shm.reader import SessionReader

from . import proofs
from .ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: How often a process reports, in seconds.
_INTERVAL: Final = 0.25

#: Look-ups or changes between two looks at the clock.
_BATCH: Final = 200


def report(**fields: Any) -> None:  # noqa: ANN401 - whatever JSON takes
    """Tell the parent."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def batches() -> Iterator[bool]:
    """Yield until standard input ends, each time whether it is time to report."""
    due = time.monotonic() + _INTERVAL
    while True:
        now = time.monotonic()
        yield now >= due
        if now >= due:
            due = now + _INTERVAL
            if select.select([sys.stdin], [], [], 0)[0]:
                return


# ---------------------------------------------------------------------------- the writer


def write(name: str, run: str, sessions: str, ledger: str) -> None:
    """Create the sessions of a file, or take over what is there, and change them for ever."""
    samples = proofs.load(Path(sessions))
    ids = proofs.session_ids(UUID(run), len(samples))
    book = Ledger(Path(ledger), len(samples))
    with SessionManager(name, capacity=proofs.capacity_for(samples), grow=False) as manager:
        if manager.recovery is None:
            for at, session_id in enumerate(ids):
                book.intended[at] = 1
                metadata, llm_config = proofs.proven(samples[at], session_id, 1)
                manager.create_session(metadata, llm_config, session_id=session_id)
                book.acknowledged[at] = 1
            report(created=len(ids))
        else:
            report(**audit(manager, ids, book))
        change(manager, samples, ids, book)


def audit(manager: SessionManager, ids: list[UUID], book: Ledger) -> dict[str, Any]:
    """Return what a takeover found of what its predecessor had acknowledged."""
    lost = torn = 0
    for at, session_id in enumerate(ids):
        session = manager.get(session_id)
        found = None if session is None else proofs.change_of(session)
        if session is None or (found is not None and found < book.acknowledged[at]):
            lost += 1
        elif found is None or found > book.intended[at]:
            torn += 1
        else:
            # The one change that was under way when the writer died may have been made.
            book.acknowledged[at] = found
    recovery = manager.recovery
    return {
        "recovered": 0 if recovery is None else recovery.kept,
        "dropped": 0 if recovery is None else len(recovery.dropped),
        "lost": lost,
        "torn": torn,
        "problems": manager.check(),
    }


def change(
    manager: SessionManager, samples: list[proofs.Sample], ids: list[UUID], book: Ledger
) -> None:
    """Change sessions at full speed until standard input ends."""
    chance = random.Random(len(ids))  # noqa: S311 - chooses sessions, keeps no secret
    statuses = ("active", "idle")
    for _ in batches():
        for _ in range(_BATCH):
            at = chance.randrange(len(ids))
            number = int(book.acknowledged[at]) + 1
            metadata, llm_config = proofs.proven(samples[at], ids[at], number)
            book.intended[at] = number
            manager.update_session(
                ids[at], status=statuses[number % 2], metadata=metadata, llm_config=llm_config
            )
            book.acknowledged[at] = number


# ---------------------------------------------------------------------------- a reader


#: Of a careless reader's looks, the share that is interrupted for long, and for how many seconds.
_LONG_SHARE: Final = 0.002
_LONG: Final = 0.3


class CarelessWords(seqlock.SequenceWords):
    """Index words read as they must not be: without the second load."""

    __slots__ = ()

    def read(self, entry: int, copy: Callable[[int], Any]) -> tuple[int, Any]:
        """Return an entry's word and a copy that may be of another record by now.

        Being interrupted between the two is rare; here it is provoked, or seconds could pass
        without. A read with the second load would only try again.
        """
        word = self.words[entry]
        os.sched_yield()
        # Now and then for long enough that even a slot that rested for a thousand commits is
        # written anew.
        if random.random() < _LONG_SHARE:  # noqa: S311 - chance is no secret here
            time.sleep(_LONG)
        return word, None if word <= CLOSED else copy(word)


def make_careless(reader: SessionReader) -> None:
    """Take the second load of the word out of a reader."""
    table = reader._view.table  # noqa: SLF001 - the one place that breaks it on purpose
    table.index = CarelessWords(table.index.words)
    reader._view.quick_look_up = seqlock.never_quick  # noqa: SLF001 - as above
    # A machine of weak memory order verifies each copy as well, and would see what this lets by.
    table.copy_whole = table.slots.copy_whole


class Reading:
    """One reader's look-ups, each checked, some timed."""

    def __init__(self, name: str, ids: list[UUID], *, careless: bool) -> None:
        self.fresh = SessionReader(name, timeout=30, cache_size=0)
        self.cached = SessionReader(name, timeout=30)
        for reader in (self.fresh, self.cached) if careless else ():
            make_careless(reader)
        self.ids = ids
        self.newest = [0] * len(ids)
        self.counts = {"look_ups": 0, "overlapped": 0, "torn": 0}
        self.times: dict[str, list[int]] = {"fresh": [], "repeated": []}

    def batch(self, chance: random.Random) -> None:
        """Make some look-ups, and time the last ones."""
        for _ in range(_BATCH):
            at = chance.randrange(len(self.ids))
            before = self.fresh.version
            self.look_up(self.fresh, at)
            overlapped = before is None or self.fresh.version != before
            self.counts["overlapped"] += overlapped
            self.look_up(self.cached, at)
        self.time(at)

    def look_up(self, reader: SessionReader, at: int) -> None:
        """Look one session up: it must be there, prove itself, and not be older than before."""
        self.counts["look_ups"] += 1
        try:
            found = proofs.change_of(reader.get_session_info(self.ids[at]))
        except JidokaError:
            found = None
        if found is None or found < self.newest[at]:
            self.counts["torn"] += 1
        else:
            self.newest[at] = found

    def time(self, at: int) -> None:
        """Time a fresh look-up, then the second of two of a cached one; both count."""
        session_id, clock = self.ids[at], time.perf_counter_ns
        try:
            self.cached.get_session_info(session_id)
            begun = clock()
            self.fresh.get_session_info(session_id)
            middle = clock()
            self.cached.get_session_info(session_id)
            ended = clock()
        except JidokaError:
            self.counts["torn"] += 1
            return
        self.counts["look_ups"] += 3
        self.times["fresh"].append(middle - begun)
        self.times["repeated"].append(ended - middle)

    def percentiles(self) -> dict[str, float]:
        """Return p50 and p99 of the times, in nanoseconds, with what the clock itself takes."""
        return {
            f"{kind}_p{q}_ns": float(np.percentile(times, q)) if times else 0.0
            for kind, times in self.times.items()
            for q in (50, 99)
        }

    def retries(self) -> int:
        """Return how often a look-up met a commit and looked again."""
        return sum(reader.stats().retries for reader in (self.fresh, self.cached))


def read(name: str, run: str, count: int, seed: int, *, careless: bool) -> None:
    """Look sessions up at full speed until standard input ends."""
    reading = Reading(name, proofs.session_ids(UUID(run), count), careless=careless)
    chance = random.Random(seed)  # noqa: S311 - chooses sessions, keeps no secret
    report(ready=True)
    for due in batches():
        reading.batch(chance)
        if due:
            alive = reading.fresh.writer_alive
            report(**reading.counts, retries=reading.retries(), writer_alive=alive)
    report(**reading.counts, retries=reading.retries(), **reading.percentiles(), end=True)


def main() -> None:
    """Run the role that the command line names."""
    # Ctrl-C goes to the whole group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    role, options = sys.argv[1], json.loads(sys.argv[2])
    try:
        (write if role == "write" else read)(**options)
    except BrokenPipeError:
        os._exit(1)  # the parent is gone, and nobody wants to know
    except (JidokaError, OSError) as error:
        sys.exit(f"jidoka-shm demo, {role}: {error}")


if __name__ == "__main__":
    main()
