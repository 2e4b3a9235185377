"""All sessions: listed, copied as columns, counted. Figures are those of one session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import turns
from benchmarks.figures import Ratio
from benchmarks.turns import Row

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.figures import Figure

NAME: Final = "list"

ROWS: Final = (
    Row(name="list, after a change", methods=("list_all",), whole=True),
    Row(name="list, unchanged", methods=("list_again", "list_all"), whole=True),
    Row(name="list, first of a reader", methods=("list_first",), foreign=(), whole=True),
    Row(name="snapshot", methods=("snapshot",), foreign=(), whole=True),
    Row(name="count by status", methods=("count",), whole=True),
)

RATIOS: Final = (
    # The first alone reads every record; the others know most of them.
    Ratio(suite=NAME, row="list, unchanged", beside_row="list, first of a reader", at_most=0.05),
    Ratio(suite=NAME, row="list, after a change", beside_row="list, first of a reader"),
    Ratio(
        suite=NAME,
        row="list, after a change",
        beside_row="list, after a change",
        beside="ets",
        at_most=0.125,
    ),
    Ratio(suite=NAME, row="list, after a change", beside_row="list, after a change", beside="lmdb"),
    Ratio(suite=NAME, row="list, after a change", at_most=1000),
    Ratio(suite=NAME, row="snapshot", at_most=60),
)


def steps(bench: Bench) -> int:
    """Return how many measurements it makes."""
    return bench.effort.processes * turns.steps(ROWS, bench)


def run(bench: Bench) -> list[Figure]:
    """Measure."""
    effort = bench.effort
    return turns.take(bench, NAME, ROWS, sessions=effort.sessions, processes=effort.processes)
