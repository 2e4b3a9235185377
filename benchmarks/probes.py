"""How many index words a look-up loads, after many random removals and creations in a full table.

    python benchmarks/probes.py [--changes N] [--capacity N]

A table in plain memory, filled to its capacity, loses a random session and gets a new one, over
and over. A hit loads the words from its home entry to its own; a miss, those from its home entry
to the end of the home's reach. Both are counted over the whole table, not sampled.
"""

from __future__ import annotations

import argparse
import random
from uuid import UUID

import numpy as np

from jidoka_shm.control import ControlWriter, Identity
from jidoka_shm.layout import CONTROL_SIZE, Geometry
from jidoka_shm.session import Session
from jidoka_shm.writer import TableWriter

#: Lines of the report.
LINES = 10


class Churn:
    """A full table, and what is done to it."""

    def __init__(self, capacity: int, seed: int) -> None:
        control = ControlWriter(bytearray(CONTROL_SIZE))
        control.initialize(UUID(int=1), 1, Identity(1, 1, 1))
        geometry = Geometry.for_capacity(capacity, 128)
        self.table = TableWriter(bytearray(geometry.size), control, geometry)
        self.chance = random.Random(seed)
        self.ids: list[UUID] = []
        for _ in range(capacity):
            self.create()

    def create(self) -> None:
        """Add a session of a random id."""
        key = UUID(int=self.chance.getrandbits(128))
        self.table.insert(Session.make(session_id=key, version=self.table.next_version()))
        self.ids.append(key)

    def change(self) -> None:
        """Remove a random session and add another."""
        at = self.chance.randrange(len(self.ids))
        self.ids[at], self.ids[-1] = self.ids[-1], self.ids[at]
        found = self.table.look_up(self.ids.pop())
        assert found is not None  # noqa: S101 - it was just there
        self.table.remove(found[0])
        self.create()

    def loads(self) -> tuple[float, float]:
        """Return the mean number of words that a miss and a hit load."""
        size = len(self.table.reach)
        miss = float(np.frombuffer(self.table.reach, np.uint8).mean())
        hit = 0
        for key in self.ids:
            found = self.table.look_up(key)
            assert found is not None  # noqa: S101 - each is there
            hit += 1 + found[0] - key.int % size
        return miss, hit / len(self.ids)


def main() -> None:
    """Change and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--changes", type=int, default=10_000_000)
    parser.add_argument("--capacity", type=int, default=16_384)
    options = parser.parse_args()
    churn = Churn(options.capacity, seed=1)
    print("changes       a miss loads  a hit loads")
    for line in range(LINES + 1):
        miss, hit = churn.loads()
        print(f"{line * options.changes // LINES:>10,}  {miss:>12.3f}  {hit:>11.3f}")
        if line < LINES:
            for _ in range(options.changes // LINES):
                churn.change()


if __name__ == "__main__":
    main()
