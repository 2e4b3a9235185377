"""What each call costs as sessions grow more, up to a million.

Each system is made with room for all of them. A row of what is made small and grows is one more
``Row`` here, with a method of its own in peers/own.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import turns
from benchmarks.turns import Row

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.figures import Figure, Ratio

NAME: Final = "growth"

#: Those that any number of sessions fits into, in a time worth waiting for.
SYSTEMS: Final = ("dict", "lmdb", "sqlite")

ROWS: Final = (
    Row(name="repeated", methods=("repeated", "look_up"), foreign=SYSTEMS),
    Row(name="fresh", methods=("look_up",), foreign=SYSTEMS),
    Row(name="status only", methods=("status",), foreign=SYSTEMS),
    Row(name="miss", methods=("miss",), foreign=SYSTEMS, keys="unknown"),
    Row(name="update", methods=("update",), foreign=SYSTEMS, once=True),
    Row(name="create", methods=("create",), foreign=SYSTEMS, once=True),
    Row(name="list, a session", methods=("list_all",), foreign=SYSTEMS, whole=True),
    Row(name="count, a session", methods=("count",), foreign=SYSTEMS, whole=True),
)

RATIOS: Final[tuple[Ratio, ...]] = ()


def steps(bench: Bench) -> int:
    """Return how many measurements it makes."""
    return len(bench.effort.sizes) * bench.effort.crowds * turns.steps(ROWS, bench)


def run(bench: Bench) -> list[Figure]:
    """Measure."""
    return [
        figure
        for sessions in bench.effort.sizes
        for figure in turns.take(
            bench, NAME, ROWS, sessions=sessions, processes=bench.effort.crowds, at=sessions
        )
    ]
