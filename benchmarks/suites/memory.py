"""Memory: of the store, a session; and of a process that has attached and looked each up once."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from benchmarks import peers
from benchmarks.crew import Failed, Member
from benchmarks.figures import Figure
from benchmarks.worker import Order

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.figures import Ratio

NAME: Final = "memory"
SHARED: Final = "the store, a session"
READER: Final = "a reader that keeps look-ups, of its own"
BARE: Final = "a reader that keeps none, of its own"
#: The machine of Erlang and the echo have no readers.
LEFT_OUT: Final = ("ets", "genserver", "echo")

#: Seconds for the look-ups of one reader.
LONGEST: Final = 1.0

RATIOS: Final[tuple[Ratio, ...]] = ()


def _systems(bench: Bench) -> list[str]:
    return ["jidoka_shm", *(name for name in bench.foreign if name not in LEFT_OUT)]


def steps(bench: Bench) -> int:
    """Return how many measurements it makes."""
    return bench.effort.crowds * len(_systems(bench))


def run(bench: Bench) -> list[Figure]:
    """Measure."""
    found: dict[tuple[str, str], list[list[float]]] = {}
    for _ in range(bench.effort.crowds):
        for system in _systems(bench):
            try:
                for row, value in _measure(bench, system).items():
                    found.setdefault((row, system), []).append([value])
            except Failed as error:
                bench.drop(system, str(error))
            bench.advance()
    return [
        Figure(suite=NAME, row=row, system=system, unit="B", values=values)
        for (row, system), values in sorted(found.items(), key=lambda item: item[0][0])
    ]


def _measure(bench: Bench, system: str) -> dict[str, float]:
    cls, sessions = peers.load(system), bench.effort.sessions
    held = min(sessions, cls.largest or sessions)
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(Member(system, bench.place(system), sessions))
        host.ask(Order("make"))
        found: dict[str, float] = {}
        for name, method in ((READER, "repeated"), (BARE, "look_up")):
            if not hasattr(cls, method):
                continue
            reader = (
                stack.enter_context(Member(system, host.place, sessions)) if cls.shared else host
            )
            # By its own means a system is no other the second time.
            found[name] = reader.ask(Order("memory", method, seconds=LONGEST))[0]
        if cls.shared:
            host.ask(Order("attach"))
        found[SHARED] = host.ask(Order("call", "shared_bytes"))[0] / held
        return found
