"""Changes: embedded and through a service, one by one and many in one round trip.

A service is compared with what else goes through another process, and with an echo of the bytes of
an update, which is what a round trip costs by itself. Another kind of client is one more name in
``SERVICES``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import turns
from benchmarks.figures import Ratio
from benchmarks.turns import Row

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.figures import Figure

NAME: Final = "write"

#: Systems of jidoka_shm whose changes go through a service.
SERVICES: Final = ("jidoka_shm service",)
SERVICE: Final = SERVICES[0]
#: Changes of one pipeline, and of many clients or tasks together.
AT_ONCE: Final = 1_000
ASYNC: Final = "jidoka_shm async"
#: Other systems whose changes go through another process.
TRIPS: Final = ("redis", "manager", "genserver")

EMBEDDED: Final = (
    Row(name="create", methods=("create",), once=True),
    Row(name="update", methods=("update",), once=True),
    Row(name="terminate", methods=("terminate",), once=True),
)
SERVED: Final = (
    Row(
        name="create, by a service",
        methods=("create",),
        own=SERVICES,
        foreign=TRIPS,
        once=True,
    ),
    Row(
        name="update, by a service",
        methods=("update", "echo"),
        own=(*SERVICES, ASYNC),
        foreign=(*TRIPS, "echo"),
        once=True,
    ),
    Row(
        name="terminate, by a service",
        methods=("terminate",),
        own=SERVICES,
        foreign=TRIPS,
        once=True,
    ),
)
PIPELINED: Final = tuple(
    # So many at once, whatever they take: with fewer, a figure would be that of the round trip.
    Row(
        name=f"{change}, pipelined",
        methods=(f"{change}_pipelined",),
        own=SERVICES,
        once=True,
        count=AT_ONCE,
    )
    for change in ("create", "update", "terminate")
)
ROWS: Final = (*EMBEDDED, *SERVED, *PIPELINED)

RATIOS: Final = (
    Ratio(suite=NAME, row="create", beside_row="create", beside="lmdb", at_most=0.9),
    Ratio(suite=NAME, row="update", beside_row="update", beside="lmdb", at_most=0.8),
    Ratio(
        suite=NAME,
        row="update, by a service",
        system=SERVICE,
        beside_row="update, by a service",
        beside="echo",
        at_most=1.5,
    ),
    Ratio(
        suite=NAME,
        row="update, by a service",
        system=ASYNC,
        beside_row="update, by a service",
        beside="echo",
    ),
    Ratio(
        suite=NAME,
        row="update, pipelined",
        system=SERVICE,
        beside_row="update, by a service",
        beside=SERVICE,
        at_most=0.25,
    ),
)


def steps(bench: Bench) -> int:
    """Return how many measurements it makes."""
    return bench.effort.processes * turns.steps(ROWS, bench)


def run(bench: Bench) -> list[Figure]:
    """Measure."""
    effort = bench.effort
    return turns.take(bench, NAME, ROWS, sessions=effort.sessions, processes=effort.processes)
