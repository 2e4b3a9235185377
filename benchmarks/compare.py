"""``python -m benchmarks compare OLD.json NEW.json``: what changed between two runs.

Two runs are apart in time, and so may be the machine. A ratio counts as changed only where the
quartiles of the two do not meet; and what the same systems beside jidoka_shm did meanwhile is shown
below, since these did not change.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.figures import OWN, Figure, load, middle
from benchmarks.tables import make_console, number, place

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.figures import Report


class Change(NamedTuple):
    """A figure in two runs.

    Attributes:
        figure: the new one.
        low: the least ratio of new to old that the quartiles allow.
        ratio: of the medians.
        high: the greatest.
    """

    figure: Figure
    low: float
    ratio: float
    high: float

    @property
    def is_beyond_spread(self) -> bool:
        """Whether the two differ by more than they vary."""
        return not self.low <= 1 <= self.high

    @property
    def is_own(self) -> bool:
        """Whether it is of jidoka_shm."""
        return self.figure.system.startswith(OWN)


def changes(old: Report, new: Report) -> list[Change]:
    """Return each figure that both runs have."""
    pairs = (
        (old.find(figure.suite, figure.row, figure.system, figure.at), figure)
        for figure in new.figures
    )
    return [_change(before, after) for before, after in pairs if before is not None]


def _change(before: Figure, after: Figure) -> Change:
    old, new = middle(before.flat), middle(after.flat)
    if not old.low:
        return Change(after, 1.0, 1.0, 1.0)
    return Change(after, new.low / old.high, new.median / old.median, new.high / old.low)


def drift(found: Iterable[Change]) -> float | None:
    """Return by how much the times of the other systems changed, which are the same code."""
    times = [change.ratio for change in found if not change.is_own and change.figure.unit == "ns"]
    return statistics.median(times) if times else None


def table(found: Sequence[Change]) -> Table:
    """Return a table of all changes of jidoka_shm, those beyond the spread marked."""
    shown = Table("suite", "row", "system", title="new / old", title_justify="left")
    for name in ("ratio", "between", ""):
        shown.add_column(name, justify="right")
    for change in found:
        figure = change.figure
        at = "" if figure.at is None else f", {place(figure.axis, figure.at)}"
        mark = _mark(change)
        spread = f"{number(change.low)} and {number(change.high)}"
        cells = (f"{figure.row}{at}", figure.system, number(change.ratio), spread, mark)
        shown.add_row(figure.suite, *cells)
    return shown


def _mark(change: Change) -> str:
    if not change.is_beyond_spread:
        return ""
    return "less" if change.ratio < 1 else "more"


def main(arguments: Sequence[str]) -> int:
    """Compare the two files and return the exit status: 2 where they cannot be compared."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args(arguments)
    try:
        old, new = load(options.old), load(options.new)
    except (OSError, ValueError) as error:
        Console(stderr=True).print(f"benchmarks: {error}", markup=False)
        return 2
    show(old, new, make_console())
    return 0


def show(old: Report, new: Report, console: Console) -> None:
    """Print what changed."""
    for name, report in (("old", old), ("new", new)):
        said = ", ".join(f"{key} {value}" for key, value in report.environment.items())
        console.print(f"{name}: {said}", markup=False, highlight=False)
    for name in old.options.keys() & new.options.keys() - {"suites"}:
        if old.options[name] != new.options[name]:
            said = f"{old.options[name]} and {new.options[name]}"
            console.print(f"not the same was measured: {name} {said}", markup=False)
    found = changes(old, new)
    own = [change for change in found if change.is_own]
    console.print(table(own))
    beyond = sum(change.is_beyond_spread for change in own)
    console.print(f"{beyond} of {len(own)} figures changed by more than they vary")
    drifted = drift(found)
    if drifted is not None:
        console.print(f"the times of the other systems changed by {number(drifted)}")
