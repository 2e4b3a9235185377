"""Reports as tables: each suite's figures, each with its ratio to jidoka_shm, and its goals."""

from __future__ import annotations

from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table

from benchmarks.figures import OWN, Figure, middle, ratio

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from benchmarks.figures import Middle, Ratio, Report

#: Columns of what is printed into a file.
WIDTH: Final = 140
#: The units of what takes time.
TIMES: Final = ("ns", "us", "ms", "s")
#: From so much on, a number is shown without a fraction.
WHOLE: Final = 100


def make_console() -> Console:
    """Return a console that shows tables whole in a file as well."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def tables(report: Report, suite: str) -> Iterator[Table]:
    """Yield the tables of a suite."""
    figures = [figure for figure in report.figures if figure.suite == suite]
    flat = [figure for figure in figures if figure.at is None]
    if flat:
        yield _flat(suite, flat)
    varied = [figure for figure in figures if figure.at is not None]
    for row in dict.fromkeys(figure.row for figure in varied):
        yield _along(f"{suite}: {row}", [figure for figure in varied if figure.row == row])
    goals = [each for each in report.ratios if each.suite == suite]
    if goals:
        yield _goals(report, suite, goals)


def _flat(suite: str, figures: list[Figure]) -> Table:
    table = Table("row", "system", title=suite, title_justify="left")
    for name in ("median", "spread", f"x {OWN}", "spread"):
        table.add_column(name, justify="right")
    for row, found in groupby(figures, attrgetter("row")):
        several = list(found)
        base = base_of(several)
        for figure in several:
            first = row if figure is several[0] else ""
            last = figure is several[-1]
            table.add_row(first, figure.system, *_cells(figure, base), end_section=last)
    return table


def base_of(figures: Iterable[Figure]) -> Figure | None:
    """Return the figure of jidoka_shm that others of the row are multiples of."""
    return next((figure for figure in figures if figure.system.startswith(OWN)), None)


def _cells(figure: Figure, base: Figure | None) -> list[str]:
    found = middle(figure.flat)
    cells = [f"{number(found.median)} {figure.unit}", f"{found.spread:.0%}"]
    if base is None:
        return [*cells, "", ""]
    times = ratio(figure, base)
    if not times.median:
        return [*cells, "", ""]
    return [*cells, number(times.median), "" if figure is base else f"{times.spread:.0%}"]


def _along(title: str, figures: list[Figure]) -> Table:
    """Return a table with a column for each place of the axis, a line for each system."""
    axis = figures[0].axis
    places = sorted({figure.at for figure in figures if figure.at is not None})
    table = Table("system", title=f"{title}, {figures[0].unit}", title_justify="left")
    if any(not figure.system.startswith(OWN) for figure in figures):
        table.caption = f"in brackets: times {OWN}"
    for at in places:
        table.add_column(place(axis, at), justify="right")
    for system in dict.fromkeys(figure.system for figure in figures):
        cells = []
        for at in places:
            here = [figure for figure in figures if figure.at == at]
            cells.append(_cell(next((f for f in here if f.system == system), None), base_of(here)))
        table.add_row(system, *cells)
    return table


def place(axis: str, at: float) -> str:
    """Return a place on an axis as text: a count, or a percentile."""
    if axis == "quantile":
        return "max" if at == 1 else f"p{100 * at:g}"
    return f"{at:,.0f} {axis}"


def _cell(figure: Figure | None, base: Figure | None) -> str:
    if figure is None:
        return ""
    text = number(middle(figure.flat).median)
    if base is None or figure is base:
        return text
    return f"{text} ({number(ratio(figure, base).median)})"


def _goals(report: Report, suite: str, goals: list[Ratio]) -> Table:
    table = Table("figure", "beside", title=f"{suite}: ratios", title_justify="left")
    for name in ("ratio", "spread", "goal", ""):
        table.add_column(name, justify="right")
    for goal in goals:
        found = value_of(report, goal)
        if found is not None:
            met = {None: "", True: "met", False: "missed"}[goal.is_met(found.median)]
            wanted = _wanted(goal)
            cells = (number(found.median), f"{found.spread:.0%}", wanted, met)
            table.add_row(f"{goal.row} ({goal.system})", _beside(goal), *cells)
    return table


def behind_table(report: Report) -> Table:
    """Return a table of the rows in which a peer took less time than jidoka_shm.

    By the upper quartile of the ratios: a difference within the spread is none.
    """
    table = Table("suite", "row", "peer", title="where a peer is ahead", title_justify="left")
    table.add_column(f"x {OWN}", justify="right")
    table.add_column("spread", justify="right")
    timed = [figure for figure in report.figures if figure.unit in TIMES and figure.at is None]
    for (suite, row), found in groupby(timed, attrgetter("suite", "row")):
        several = list(found)
        base = base_of(several)
        for figure in several:
            if base is None or figure.system.startswith(OWN):
                continue
            times = ratio(figure, base)
            if 0 < times.high < 1:
                table.add_row(
                    suite, row, figure.system, number(times.median), f"{times.spread:.0%}"
                )
    return table


def value_of(report: Report, goal: Ratio) -> Middle | None:
    """Return what a ratio came to, or None where one of the two was not measured."""
    figure = report.find(goal.suite, goal.row, goal.system, goal.at)
    if figure is None:
        return None
    if goal.beside_row is None:
        return middle(figure.flat)
    beside = report.find(goal.suite, goal.beside_row, goal.beside, goal.at)
    return None if beside is None else ratio(figure, beside)


def _beside(goal: Ratio) -> str:
    return "" if goal.beside_row is None else f"{goal.beside_row} ({goal.beside})"


def _wanted(goal: Ratio) -> str:
    if goal.at_most is not None:
        return f"at most {goal.at_most:g}"
    return "" if goal.at_least is None else f"at least {goal.at_least:g}"


def number(value: float) -> str:
    """Return a number with as many digits as mean something."""
    if abs(value) >= WHOLE:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value else "0"
