"""A service under many clients, and how soon an owner's death is seen."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from benchmarks import turns
from benchmarks.figures import Ratio
from benchmarks.suites.write import ASYNC, AT_ONCE, PIPELINED, SERVICE
from benchmarks.turns import Row

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.figures import Figure

NAME: Final = "service"
CROWD: Final = "jidoka_shm 64 clients"

ROWS: Final = (
    *(dataclasses.replace(row, foreign=()) for row in PIPELINED if row.name.startswith("update")),
    Row(
        name="update, by 100 tasks",
        methods=("update_by_tasks",),
        own=(ASYNC,),
        foreign=(),
        once=True,
        count=AT_ONCE,
    ),
    Row(
        name="update, by 64 clients",
        methods=("update_by_all",),
        own=(CROWD,),
        foreign=(),
        once=True,
        count=AT_ONCE,
    ),
)
#: In milliseconds: how often is said by the effort.
DEATH: Final = Row(
    name="an owner's death, until it is seen",
    methods=("death",),
    own=(SERVICE,),
    foreign=(),
    quantile=0.5,
    scale=1e6,
    unit="ms",
)
LATE: Final = dataclasses.replace(DEATH, name=f"{DEATH.name}, p99", quantile=0.99)

RATIOS: Final = (
    Ratio(
        suite=NAME,
        row="update, by 100 tasks",
        system=ASYNC,
        beside_row="update, pipelined",
        beside=SERVICE,
    ),
    # Changes a second of all of them, beside those of one that pipelines.
    Ratio(
        suite=NAME,
        row="update, pipelined",
        system=SERVICE,
        beside_row="update, by 64 clients",
        beside=CROWD,
        at_least=0.2,
    ),
    Ratio(suite=NAME, row=LATE.name, system=SERVICE, at_most=20),
)


def _rows(bench: Bench) -> tuple[Row, ...]:
    owners = bench.effort.owners
    return (*ROWS, *(dataclasses.replace(row, count=owners) for row in (DEATH, LATE)))


def steps(bench: Bench) -> int:
    """Return how many measurements it makes."""
    return bench.effort.processes * turns.steps(_rows(bench), bench)


def run(bench: Bench) -> list[Figure]:
    """Measure."""
    effort, rows = bench.effort, _rows(bench)
    return turns.take(bench, NAME, rows, sessions=effort.sessions, processes=effort.processes)
