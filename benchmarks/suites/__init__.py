"""The suites: what is measured, each in a module of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from . import (
    growth,
    listing,
    memory,
    parts,
    probes,
    read,
    scaling,
    service,
    sizes,
    start,
    watching,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.bench import Bench
    from benchmarks.figures import Figure, Ratio


class Suite(NamedTuple):
    """What the module of a suite has.

    Attributes:
        steps: returns how many measurements it makes, for the progress bar.
        run: measures, and calls ``bench.advance`` after each measurement.
        ratios: of its figures, and their goals.
    """

    steps: Callable[[Bench], int]
    run: Callable[[Bench], list[Figure]]
    ratios: Sequence[Ratio]


SUITES: Final = {
    module.NAME: Suite(module.steps, module.run, module.RATIOS)
    for module in (
        read,
        listing,
        write,
        service,
        scaling,
        growth,
        sizes,
        memory,
        start,
        watching,
        probes,
        parts,
    )
}
