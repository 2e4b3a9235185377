"""What was measured: figures, their medians and spreads, and ratios between them."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: What a file of another layout says of itself.
FORMAT = 1

OWN = "jidoka_shm"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One row of one system.

    Attributes:
        suite: of which suite.
        row: what was done.
        system: which system did it.
        unit: of the values.
        values: one list for each process that was measured, one value for each of its rounds.
            The rounds of all systems were taken in turn: equal places belong together.
        axis: what is varied, for a row that is measured at several places: sessions, readers,
            changes, or the quantile of a distribution.
        at: where on it.
    """

    suite: str
    row: str
    system: str
    unit: str
    values: list[list[float]]
    axis: str = ""
    at: float | None = None

    @property
    def flat(self) -> list[float]:
        """All values."""
        return [value for process in self.values for value in process]


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """A figure beside another, and the goal of the two where there is one.

    Attributes:
        suite: of which suite.
        row: of which row.
        system: of which system.
        beside_row: beside which row; None where the figure stands for itself.
        beside: and system.
        at_most: what the ratio is to stay under, or the figure itself, in its unit.
        at_least: what it is not to fall below.
        at: where on the axis.
    """

    suite: str
    row: str
    system: str = OWN
    beside_row: str | None = None
    beside: str = OWN
    at_most: float | None = None
    at_least: float | None = None
    at: float | None = None

    def is_met(self, value: float) -> bool | None:
        """Return whether a value is within the goal, or None where there is no goal."""
        if self.at_most is not None:
            return value <= self.at_most
        return None if self.at_least is None else value >= self.at_least


class Report(msgspec.Struct, kw_only=True):
    """All that one run found.

    Attributes:
        environment: what it ran on.
        options: how it was asked to run.
        figures: what was measured.
        ratios: which of them are compared, and their goals.
        skipped: the systems that were left out, and why.
        format: the layout of this.
    """

    environment: dict[str, str]
    options: dict[str, str | int | float]
    figures: list[Figure] = []
    ratios: list[Ratio] = []
    skipped: dict[str, str] = {}
    format: int = FORMAT

    def find(self, suite: str, row: str, system: str, at: float | None = None) -> Figure | None:
        """Return a figure, or None where it was not measured."""
        wanted = (suite, row, system, at)
        for figure in self.figures:
            if (figure.suite, figure.row, figure.system, figure.at) == wanted:
                return figure
        return None

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        # Beside it first: what is there may be an earlier report, or this one after fewer suites.
        part = path.with_name(path.name + ".part")
        part.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")
        part.replace(path)


def load(path: Path) -> Report:
    """Return the report of a file.

    Raises:
        ValueError: where it is none.
        OSError: where it cannot be read.
    """
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except msgspec.DecodeError as error:
        msg = f"{path} is no report of these benchmarks: {error}"
        raise ValueError(msg) from None
    if report.format != FORMAT:
        msg = f"{path} has the layout {report.format}, this is {FORMAT}: run the benchmarks again"
        raise ValueError(msg)
    return report


class Middle(NamedTuple):
    """A median and the quartiles around it."""

    low: float
    median: float
    high: float

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, as a share of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0


def middle(values: Sequence[float]) -> Middle:
    """Return the median and the quartiles of some values."""
    if len(values) == 1:
        return Middle(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Middle(low, median, high)


def ratio(figure: Figure, beside: Figure) -> Middle:
    """Return a figure as a multiple of another: the middle of the ratios of each round.

    The two of a round were measured one right after the other, so that what slows the machine down
    for a while does so for both, and leaves their ratio as it is.
    """
    pairs = [
        (one, other)
        for ones, others in zip(figure.values, beside.values, strict=False)
        for one, other in zip(ones, others, strict=False)
        if other
    ]
    if not pairs:
        return Middle(0.0, 0.0, 0.0)
    return middle([one / other for one, other in pairs])
