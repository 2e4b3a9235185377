"""Looking sessions up: again, for the first time, for the status alone, in vain, by text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import turns
from benchmarks.figures import Ratio
from benchmarks.turns import Row

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.figures import Figure

NAME: Final = "read"

ROWS: Final = (
    Row(name="repeated", methods=("repeated", "look_up")),
    Row(
        name="repeated, equal ids",
        methods=("repeated", "look_up"),
        foreign=("dict",),
        keys="equal",
    ),
    Row(name="fresh", methods=("look_up",)),
    Row(name="status only", methods=("status",)),
    Row(name="owner only", methods=("owner",)),
    Row(name="miss", methods=("miss",), keys="unknown"),
    Row(name="by string id", methods=("by_text",), keys="text"),
    # What keeping costs where it seldom or never helps: a cache of a quarter of the sessions.
    Row(name="drawn, cache of a quarter", methods=("quarter",), foreign=(), keys="drawn"),
    Row(name="drawn, no cache", methods=("look_up",), foreign=(), keys="drawn"),
    Row(name="in one order, cache of a quarter", methods=("quarter",), foreign=()),
)

RATIOS: Final = (
    Ratio(suite=NAME, row="repeated", beside_row="repeated", beside="dict", at_most=1.3),
    Ratio(
        suite=NAME,
        row="repeated, equal ids",
        beside_row="repeated, equal ids",
        beside="dict",
        at_most=1.3,
    ),
    Ratio(suite=NAME, row="repeated", beside_row="repeated", beside="ets", at_most=0.333),
    Ratio(suite=NAME, row="fresh", beside_row="fresh", beside="lmdb", at_most=0.65),
    Ratio(suite=NAME, row="status only", beside_row="fresh", beside="ets", at_most=1.0),
    Ratio(suite=NAME, row="status only", beside_row="fresh", beside="lmdb", at_most=0.3),
    Ratio(suite=NAME, row="owner only", beside_row="fresh", beside="lmdb", at_most=0.3),
    Ratio(suite=NAME, row="miss", beside_row="fresh", beside="lmdb", at_most=0.2),
    Ratio(suite=NAME, row="drawn, cache of a quarter", beside_row="drawn, no cache", at_most=1.25),
    Ratio(suite=NAME, row="in one order, cache of a quarter", beside_row="fresh", at_most=1.25),
)


def steps(bench: Bench) -> int:
    """Return how many measurements it makes."""
    return bench.effort.processes * turns.steps(ROWS, bench)


def run(bench: Bench) -> list[Figure]:
    """Measure."""
    effort = bench.effort
    return turns.take(bench, NAME, ROWS, sessions=effort.sessions, processes=effort.processes)
