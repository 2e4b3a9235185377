"""Beginning: a reader's first look-up, a writer's start, and the takeover of what was left."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from benchmarks import peers, turns
from benchmarks.crew import Failed, Member
from benchmarks.figures import Figure, Ratio
from benchmarks.turns import Row
from benchmarks.worker import Order

if TYPE_CHECKING:
    from benchmarks.bench import Bench

NAME: Final = "start"
ATTACH: Final = "attach and look one up"

#: What a reader in another process attaches to; a dict is none.
ATTACHED: Final = ("lmdb", "sqlite", "redis", "manager", "iceoryx2")

ROWS: Final = (
    Row(name="start, empty", methods=("start_empty",), foreign=(), count=1, scale=1e6, unit="ms"),
    Row(name="takeover", methods=("take_over",), foreign=(), count=1, scale=1e6, unit="ms"),
)

RATIOS: Final = (Ratio(suite=NAME, row="takeover", beside_row="start, empty"),)


def _systems(bench: Bench) -> list[str]:
    return ["jidoka_shm", *(name for name in bench.foreign if name in ATTACHED)]


def steps(bench: Bench) -> int:
    """Return how many measurements it makes."""
    attached = bench.effort.crowds * bench.effort.rounds * len(_systems(bench))
    return attached + bench.effort.processes * turns.steps(ROWS, bench)


def run(bench: Bench) -> list[Figure]:
    """Measure."""
    effort = bench.effort
    attached: dict[str, list[list[float]]] = {}
    for _ in range(effort.crowds):
        for system, values in _attach(bench).items():
            attached.setdefault(system, []).append(values)
    return [
        *(
            Figure(suite=NAME, row=ATTACH, system=system, unit="ms", values=values)
            for system, values in attached.items()
        ),
        *turns.take(bench, NAME, ROWS, sessions=effort.sessions, processes=effort.processes),
    ]


def _attach(bench: Bench) -> dict[str, list[float]]:
    """Return the milliseconds of each system, of one reader process after the other."""
    found: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(bench.crew(_systems(bench), bench.effort.sessions))
        for _ in range(bench.effort.rounds):
            for system, host in list(hosts.items()):
                try:
                    found.setdefault(system, []).append(_attach_one(host))
                except Failed as error:
                    bench.drop(system, f"{ATTACH}: {error}")
                    del hosts[system]
                bench.advance()
    return {system: values for system, values in found.items() if values}


def _attach_one(host: Member) -> float:
    cls = peers.load(host.system)
    row = "repeated" if hasattr(cls, "repeated") else "look_up"
    with Member(host.system, host.place, host.sessions) as reader:
        (seconds,) = reader.ask(Order("attach_and_look", row))
    return seconds * 1e3
