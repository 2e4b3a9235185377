"""How many index words a look-up loads, after many random removals and creations in a full table.

A table in plain memory, filled to its capacity, loses a random session and gets a new one, over
and over. A hit loads the words from its home entry to its own; a miss, those from its home entry
to the end of the home's reach. Both are counted over the whole table, not sampled; nothing is
timed.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final
from uuid import UUID

import numpy as np

from benchmarks.figures import Figure
from jidoka_shm.control import ControlWriter, Identity
from jidoka_shm.layout import CONTROL_SIZE, Geometry
from jidoka_shm.session import Session
from jidoka_shm.writer import TableWriter

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.figures import Ratio

NAME: Final = "probes"

RATIOS: Final[tuple[Ratio, ...]] = ()

#: How often they are counted after the first time.
LINES: Final = 10


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


def steps(bench: Bench) -> int:
    """Return how often the words are counted."""
    del bench
    return LINES + 1


def run(bench: Bench) -> list[Figure]:
    """Change and count."""
    churn = Churn(bench.effort.sessions, seed=1)
    figures: list[Figure] = []
    for line in range(LINES + 1):
        made = line * bench.effort.changes // LINES
        for row, value in zip(("a miss loads", "a hit loads"), churn.loads(), strict=True):
            figures.append(
                Figure(
                    suite=NAME,
                    row=row,
                    system="jidoka_shm",
                    unit="words",
                    values=[[value]],
                    axis="changes",
                    at=made,
                )
            )
        bench.advance()
        if line < LINES:
            for _ in range(bench.effort.changes // LINES):
                churn.change()
    return figures
